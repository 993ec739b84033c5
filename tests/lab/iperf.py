"""iperf3 between two namespaces: the figure that readers know. Called by the demo and the benchmarks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from .namespace import LabError, Namespace, kill_process

PORT: Final = 5201


@dataclass(frozen=True)
class Iperf:
    """What arrived at the receiver; ``lost`` counts datagrams of a UDP run."""

    mbit_s: float
    retransmits: int = 0
    sent: int = 0
    lost: int = 0


def iperf(
    source: Namespace, sink: Namespace, to: str, *, seconds: float = 2, udp_mbit: int = 0, size: int = 0,
    streams: int = 1, reverse: bool = False,
) -> Iperf:
    """One run; UDP at ``udp_mbit`` where that is not 0, ``size`` bytes each where that is not 0. ``reverse``: the
    source calls, the sink sends."""
    server = sink.popen(["iperf3", "-s", "-1", "-p", str(PORT), "--forceflush"])
    try:
        assert server.stdout is not None
        while "listening" not in (line := server.stdout.readline()):
            if not line:
                raise LabError(f"iperf3 server in {sink.name} ended at once")
        argv = ["iperf3", "-c", to, "-p", str(PORT), "-t", str(seconds), "-J", "--get-server-output"]
        argv += ["-u", "-b", f"{udp_mbit}M"] if udp_mbit else []
        argv += ["-l", str(size)] if size else []
        argv += ["-P", str(streams)] if streams > 1 else []
        argv += ["-R"] if reverse else []
        done = source.run(argv, check=False, timeout=seconds + 20)
    finally:
        kill_process(server)
    return _read(done.stdout, udp=bool(udp_mbit))


def _read(text: str, *, udp: bool) -> Iperf:
    answer: dict[str, Any] = json.loads(text)
    if "error" in answer:
        raise LabError(f"iperf3: {answer['error']}")
    end = answer["end"]
    if not udp:
        received = end["sum_received"]["bits_per_second"] / 1e6
        return Iperf(received, retransmits=end["sum_sent"].get("retransmits", 0))
    total = end["sum"]
    arrived = 1 - total["lost_packets"] / max(1, total["packets"])
    return Iperf(total["bits_per_second"] / 1e6 * arrived, sent=total["packets"], lost=total["lost_packets"])
