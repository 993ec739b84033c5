"""iperf3 between two namespaces: the figure that readers know. Called by the demo and the benchmarks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from .namespace import LabError, Namespace, kill_process

PORT: Final = 5201


@dataclass(frozen=True)
class Iperf:
    """What arrived at the receiver. Datagrams of a UDP run that did not: ``lost`` on the way, ``overrun`` at the
    receiver's own socket, because iperf3 did not read in time (200 Mbit/s fill it within 4 ms)."""

    mbit_s: float
    retransmits: int = 0
    sent: int = 0
    lost: int = 0
    overrun: int = 0


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
        argv += ["-u", "-b", f"{udp_mbit}M", "-w", "208K"] if udp_mbit else []  # as much as any kernel grants
        argv += ["-l", str(size)] if size else []
        argv += ["-P", str(streams)] if streams > 1 else []
        argv += ["-R"] if reverse else []
        before = overruns(sink) if udp_mbit else 0
        done = source.run(argv, check=False, timeout=seconds + 20)
        overrun = overruns(sink) - before if udp_mbit else 0
    finally:
        kill_process(server)
    return _read(done.stdout, overrun, udp=bool(udp_mbit))


def overruns(namespace: Namespace) -> int:
    """Datagrams of either family that found a socket of this namespace full, since it is there."""
    four, six = (namespace.run(["cat", f"/proc/net/{file}"]).stdout.splitlines() for file in ("snmp", "snmp6"))
    names, figures = (line.split() for line in four if line.startswith("Udp:"))
    found = dict(zip(names, figures, strict=True)) | dict(line.split() for line in six)
    return int(found["RcvbufErrors"]) + int(found["Udp6RcvbufErrors"])


def _read(text: str, overrun: int, *, udp: bool) -> Iperf:
    answer: dict[str, Any] = json.loads(text)
    if "error" in answer:
        raise LabError(f"iperf3: {answer['error']}")
    end = answer["end"]
    if not udp:
        received = end["sum_received"]["bits_per_second"] / 1e6
        return Iperf(received, retransmits=end["sum_sent"].get("retransmits", 0))
    total = end["sum"]
    arrived = 1 - total["lost_packets"] / max(1, total["packets"])
    lost = max(0, total["lost_packets"] - overrun)
    return Iperf(total["bits_per_second"] / 1e6 * arrived, sent=total["packets"], lost=lost, overrun=overrun)
