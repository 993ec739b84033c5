"""What can be measured on one way from a pod to a pod: each measure gives its figures by name.

    tcp1 tcp4 tcp1_reverse tcp1_ipv6     Mbit/s received; tcp1 also cpu_per_gb, CPU seconds per 10^9 bytes
    udp64 udp64x64 udp1350 udp1350x64    frames/s received of a flood as fast as one sender can (x64: of 64 flows)
    udp64_clean udp1350_clean            the highest frames/s of which less than 0.1 % are lost
    rtt rtt_unpinned rtt_loaded          us: idle, each side on a CPU of its own that may not sleep; idle as it comes;
                                         beside a TCP stream

Knows namespaces and the generator, nothing of routers. Called by throughput.py, others.py, curves.py.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lab import Lab, Pod
from lab.iperf import iperf
from lab.namespace import Namespace, kill_process, run
from lab.traffic import Task

PAYLOADS: Final = {64: 22, 1350: 1308}
"""Bytes of a frame -> of its UDP payload (14 Ethernet, 20 IPv4, 8 UDP less). A payload of 1,350 would not fit a pod's
MTU of 1,368 and measure the kernel's fragments."""
LOSS_MOST: Final = 0.001
STEPS: Final = 6
"""Halvings of the search for the highest clean rate: within 2 % of it."""
ROUND_TRIPS: Final = 20_000
PINGS_LOADED: Final = 500
SILENCE: Final = 1.2  # seconds
CLOCK: Final = os.sysconf("SC_CLK_TCK")

Figures = dict[str, float]
Measure = Callable[["Way"], Figures]


@dataclass(frozen=True)
class Way:
    """One way from a pod to a pod. ``to_v6``: empty where the way has no IPv6."""

    name: str
    near: Pod
    far: Pod
    to: str
    to_v6: str = ""


# -- TCP --------------------------------------------------------------------------------------------------------------


def busy_seconds() -> float:
    """What all CPUs worked since the boot: user, nice, system, irq and softirq of /proc/stat; guests' are in user."""
    user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8])
    return (user + nice + system + irq + softirq) / CLOCK


def whole(seconds: float) -> int:
    """iperf3 takes no parts of a second."""
    return max(1, round(seconds))


def tcp1(seconds: float) -> Measure:
    def measure(way: Way) -> Figures:
        before, length = busy_seconds(), whole(seconds)
        rate = iperf(way.near, way.far, way.to, seconds=length).mbit_s
        return {"tcp1": rate, "cpu_per_gb": (busy_seconds() - before) / (rate * length / 8e3)}

    return measure


def tcp(name: str, seconds: float, *, streams: int = 1, reverse: bool = False, ipv6: bool = False) -> Measure:
    def measure(way: Way) -> Figures:
        to = way.to_v6 if ipv6 else way.to
        return {name: iperf(way.near, way.far, to, seconds=whole(seconds), streams=streams, reverse=reverse).mbit_s}

    return measure


# -- UDP --------------------------------------------------------------------------------------------------------------


def flood(lab: Lab, way: Way, payload: int, seconds: float, flows: int, rate: float = 0) -> tuple[float, float]:
    """(frames/s that arrived, part that was lost); ``rate`` 0: as fast as it goes."""
    receiver = lab.traffic.listen(way.far, "pps-recv", timeout=0.3)
    options = {"to": way.to, "port": receiver.port, "small": payload, "seconds": seconds, "flows": flows}
    sent = lab.traffic.start(way.near, "pps-send", **options, pps=rate or None).result()["sent"]
    got = receiver.result()
    return float(got["pps"]), 1 - got["received"] / max(1, sent)


def udp(lab: Lab, name: str, size: int, seconds: float, flows: int) -> Measure:
    return lambda way: {name: flood(lab, way, PAYLOADS[size], seconds, flows)[0]}


def udp_clean(lab: Lab, name: str, size: int, seconds: float) -> Measure:
    """Halving between nothing and what arrives of a flood."""

    def measure(way: Way) -> Figures:
        low, high = 0.0, flood(lab, way, PAYLOADS[size], seconds / 2, 1)[0] * 1.1
        for _ in range(STEPS):
            rate = (low + high) / 2
            clean = flood(lab, way, PAYLOADS[size], seconds / 2, 1, rate)[1] <= LOSS_MOST
            low, high = (rate, high) if clean else (low, rate)
        return {name: low}

    return measure


# -- round trips ------------------------------------------------------------------------------------------------------


def rtt(lab: Lab, name: str, *, pinned: bool) -> Measure:
    """Ping-pong as fast as it goes, with nothing beside it or before: who had to wait is real time for a second."""

    def measure(way: Way) -> Figures:
        time.sleep(SILENCE)
        with ExitStack() as stack:
            if pinned:
                stack.enter_context(awake_cpus())
                stack.enter_context(sides_apart(way))
            return round_trips(lab, way, name, ROUND_TRIPS, 0, apart=pinned)

    return measure


def rtt_loaded(lab: Lab, name: str) -> Measure:
    """One every 2 ms, beside one TCP stream the same way."""

    def measure(way: Way) -> Figures:
        receiver = lab.traffic.listen(way.far, "tcp-recv")
        stream = lab.traffic.start(way.near, "tcp-send", to=way.to, port=receiver.port, seconds=60)
        try:
            return round_trips(lab, way, name, PINGS_LOADED, 2)
        finally:
            for task in (stream, receiver):
                kill_process(task.process)

    return measure


def round_trips(lab: Lab, way: Way, name: str, count: int, interval_ms: float, *, apart: bool = False) -> Figures:
    near, far = two_cpus() if apart else (os.sched_getaffinity(0), os.sched_getaffinity(0))
    with started_on(far):
        echo: Task = lab.traffic.listen(way.far, "echo")
    options = {"to": way.to, "port": echo.port, "count": count, "interval": interval_ms}
    with started_on(near):
        asking = lab.traffic.start(way.near, "rtt", **options)
    result = asking.result()
    echo.stop()
    return {f"{name}.{part}": float(result[f"{part}_us"]) for part in ("p50", "p99", "p999")}


def two_cpus() -> tuple[set[int], set[int]]:
    """One for each side; the same where there is only one."""
    cpus = sorted(os.sched_getaffinity(0))
    return {cpus[0]}, {cpus[1 % len(cpus)]}


@contextmanager
def started_on(cpus: set[int]) -> Iterator[None]:
    """Children started inside run on these."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def sides_apart(way: Way) -> Iterator[None]:
    """What runs in the near host has the first CPU, what runs in the far one the second: routers, or other overlays."""
    everywhere = os.sched_getaffinity(0)
    sides = {way.near: two_cpus()[0], way.far: two_cpus()[1]}
    threads = {thread: cpus for pod, cpus in sides.items() for thread in threads_in(getattr(pod, "host", pod))}
    try:
        for thread, cpus in threads.items():
            os.sched_setaffinity(thread, cpus)
        yield
    finally:
        for thread in threads:
            os.sched_setaffinity(thread, everywhere)


def threads_in(host: Namespace) -> list[int]:
    pids = run(["ip", "netns", "pids", host.name]).stdout.split()
    return [int(path.name) for pid in pids for path in Path(f"/proc/{pid}/task").iterdir()]


@contextmanager
def awake_cpus() -> Iterator[None]:
    """Holding /dev/cpu_dma_latency at 0 keeps CPUs from sleeping: else the figure is the time to wake one."""
    try:
        handle = os.open("/dev/cpu_dma_latency", os.O_WRONLY)
    except OSError:
        yield
        return
    try:
        os.write(handle, struct.pack("i", 0))
        yield
    finally:
        os.close(handle)


# -- all --------------------------------------------------------------------------------------------------------------

UNITS: Final = {"tcp": ", Mbit/s", "udp": ", frames/s", "rtt": ", us", "cpu": ", CPU s/GB"}
"""By the first three letters of a figure's name."""


def measures(lab: Lab, seconds: float) -> dict[str, Measure]:
    """Case -> its measure."""
    return {
        "tcp1": tcp1(seconds),
        "tcp4": tcp("tcp4", seconds, streams=4),
        "tcp1_reverse": tcp("tcp1_reverse", seconds, reverse=True),
        "tcp1_ipv6": tcp("tcp1_ipv6", seconds, ipv6=True),
        "udp64": udp(lab, "udp64", 64, seconds, 1),
        "udp64x64": udp(lab, "udp64x64", 64, seconds, 64),
        "udp1350": udp(lab, "udp1350", 1350, seconds, 1),
        "udp1350x64": udp(lab, "udp1350x64", 1350, seconds, 64),
        "udp64_clean": udp_clean(lab, "udp64_clean", 64, seconds),
        "udp1350_clean": udp_clean(lab, "udp1350_clean", 1350, seconds),
        "rtt": rtt(lab, "rtt", pinned=True),
        "rtt_unpinned": rtt(lab, "rtt_unpinned", pinned=False),
        "rtt_loaded": rtt_loaded(lab, "rtt_loaded"),
    }
