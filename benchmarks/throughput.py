"""The first speed figures: the product against the kernel's plaintext VXLAN, between the same namespaces, in one run.

    pod a -- [h1: router, VXLAN] ----cable---- [h2: router, VXLAN] -- pod b      encrypted, and the yardstick
    pod c -- [h3: router       ] ----cable---- [h4: router       ] -- pod d      the same with --plaintext

Each kind of wire in turn: segmented (tso, gso, gro and checksum offload off at both ends, so the underlay carries
frames of MTU size) and with offloads. Runs alternate, so that a machine that slows down slows all alike; the figure is
the median of ``--rounds``. Bridge netfilter is off. Prints a table and writes ``benchmarks/results/latest.json``, whose
object ``ratios`` is what bars are set on. Exit status 1 where a bar is missed. Needs root and the installed program.

    throughput.py [--rounds N] [--seconds S] [--wire segmented|offloads] [--only tcp|udp|rtt]
"""

from __future__ import annotations

import argparse
import os
import statistics
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

from _results import RESULTS, merge  # noqa: E402
from lab import Host, Lab, LabError, Pod  # noqa: E402
from lab.cluster import start_cluster  # noqa: E402
from lab.iperf import iperf  # noqa: E402
from lab.vxlan import join_vxlan, lay_vxlan  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

WIRES = {"segmented": False, "offloads": True}
SMALL_PAYLOAD = 22  # a frame of 64 bytes: 14 Ethernet, 20 IPv4, 8 UDP
ROUND_TRIPS = 20_000
VXLAN_ADDRESSES = ("10.99.0.1", "10.99.0.2")

BARS = {  # ratio: (least or most, figure); those of the first speed issue, then what later ones promise
    "tcp1.encrypted.segmented": (">=", 0.55),
    "tcp1.encrypted.offloads": (">=", 0.45),
    "tcp1.plaintext_to_encrypted.segmented": (">=", 0.95),
    "tcp1.plaintext_to_encrypted.offloads": (">=", 0.95),
}


@dataclass(frozen=True)
class Way:
    """One way from a pod to a pod."""

    name: str
    near: Pod
    far: Pod
    to: str


@dataclass(frozen=True)
class Metric:
    """Something measured on each way. ``unit`` is printed; results are medians of rounds."""

    name: str
    unit: str
    measure: Callable[[Way], float]
    ways: tuple[str, ...]


# -- what is measured -----------------------------------------------------------------------------------------------


def tcp(seconds: float) -> Callable[[Way], float]:
    return lambda way: iperf(way.near, way.far, way.to, seconds=seconds).mbit_s


def pps(lab: Lab, seconds: float, flows: int) -> Callable[[Way], float]:
    """Frames a second that arrived, of a flood as fast as one sender can."""

    def measure(way: Way) -> float:
        receiver = lab.traffic.listen(way.far, "pps-recv", timeout=0.3)
        options = {"to": way.to, "port": receiver.port, "small": SMALL_PAYLOAD, "seconds": seconds, "flows": flows}
        lab.traffic.start(way.near, "pps-send", **options).result()
        return float(receiver.result()["pps"])

    return measure


def rtt(lab: Lab, key: str) -> Callable[[Way], float]:
    """Idle ping-pong in microseconds, both CPUs kept awake."""

    def measure(way: Way) -> float:
        echo = lab.traffic.listen(way.far, "echo")
        with awake_cpus():
            options = {"to": way.to, "port": echo.port, "count": ROUND_TRIPS, "interval": 0}
            result = lab.traffic.start(way.near, "rtt", **options).result()
        echo.stop()
        return float(result[key])

    return measure


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


def metrics(lab: Lab, seconds: float, only: str) -> list[Metric]:
    all_ways, pair = ("vxlan", "encrypted", "plaintext"), ("vxlan", "encrypted")
    found = [
        Metric("tcp1", "Mbit/s", tcp(seconds), all_ways),
        Metric("udp64", "frames/s", pps(lab, seconds, 1), pair),
        Metric("udp64x64", "frames/s", pps(lab, seconds, 64), pair),
        Metric("rtt.p50", "us", rtt(lab, "p50_us"), pair),
        Metric("rtt.p99", "us", rtt(lab, "p99_us"), pair),
    ]
    return [metric for metric in found if metric.name.startswith(only)]


# -- where ----------------------------------------------------------------------------------------------------------


def two_hosts(lab: Lab, names: tuple[str, str], offloads: bool, flags: list[str]) -> tuple[list[Host], list[Pod]]:
    cable = lab.cable(offloads=offloads)
    hosts = [lab.host(name, cable) for name in names]
    _, pods = start_cluster(lab, hosts, flags=flags)
    return hosts, pods


def ways_of(lab: Lab, offloads: bool, plaintext: bool) -> dict[str, Way]:
    hosts, (a, b) = two_hosts(lab, ("h1", "h2"), offloads, [])
    lay_vxlan(*hosts)
    for pod, address in zip((a, b), VXLAN_ADDRESSES, strict=True):
        join_vxlan(pod.host, pod, address)
    ways = [Way("vxlan", a, b, VXLAN_ADDRESSES[1]), Way("encrypted", a, b, b.v4)]
    if plaintext:
        _, (c, d) = two_hosts(lab, ("h3", "h4"), offloads, ["--plaintext"])
        ways.append(Way("plaintext", c, d, d.v4))
    return {way.name: way for way in ways}


# -- run and report -------------------------------------------------------------------------------------------------

Samples = dict[str, dict[str, list[float]]]  # "metric.wire" -> way -> one figure a round


def run_wire(wire: str, rounds: int, seconds: float, only: str, console: Console) -> Samples:
    samples: Samples = {}
    with Lab() as lab:
        ways = ways_of(lab, WIRES[wire], plaintext="tcp".startswith(only))
        for metric in metrics(lab, seconds, only):
            taken: dict[str, list[float]] = {name: [] for name in metric.ways}
            for number in range(rounds):
                with console.status(f"{wire} wire, {metric.name}, round {number + 1} of {rounds}"):
                    order = metric.ways if number % 2 == 0 else metric.ways[::-1]
                    for name in order:
                        taken[name].append(metric.measure(ways[name]))
            samples[f"{metric.name}.{wire}"] = taken
            console.print(f"{wire} wire, {metric.name} ({metric.unit}): {describe(taken)}", highlight=False)
    return samples


def describe(taken: dict[str, list[float]]) -> str:
    return ", ".join(f"{name} {statistics.median(values):,.1f}" for name, values in taken.items())


def ratios_of(samples: Samples) -> dict[str, float]:
    ratios: dict[str, float] = {}
    for key, taken in samples.items():
        middle = {name: statistics.median(values) for name, values in taken.items()}
        metric, wire = key.rsplit(".", 1)
        for name in middle.keys() - {"vxlan"}:
            ratios[f"{metric}.{name}.{wire}"] = round(middle[name] / middle["vxlan"], 3)
        if "plaintext" in middle:
            ratios[f"{metric}.plaintext_to_encrypted.{wire}"] = round(middle["plaintext"] / middle["encrypted"], 3)
    return dict(sorted(ratios.items()))


def held(name: str, ratio: float) -> bool | None:
    """Whether the bar of this ratio holds; None where it has none."""
    if name not in BARS:
        return None
    sign, figure = BARS[name]
    return ratio >= figure if sign == ">=" else ratio <= figure


def show(ratios: dict[str, float], console: Console) -> None:
    table = Table("ratio to kernel VXLAN", "measured", "bar", "held", title="Throughput")
    words = {True: "[green]yes[/]", False: "[bold red]NO[/]", None: ""}
    for name, ratio in ratios.items():
        bar = " ".join(map(str, BARS[name])) if name in BARS else ""
        table.add_row(name, f"{ratio:.3f}", bar, words[held(name, ratio)])
    console.print(table)


def write(ratios: dict[str, float], samples: Samples, options: argparse.Namespace) -> None:
    merge("throughput", {"rounds": options.rounds, "seconds": options.seconds, "samples": samples}, ratios)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed against kernel VXLAN, in network namespaces.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="length of each throughput run")
    parser.add_argument("--wire", choices=sorted(WIRES), help="one kind of wire only")
    parser.add_argument("--only", choices=["tcp", "udp", "rtt"], default="", help="one kind of figure only")
    return parser.parse_args()


def main() -> int:
    options = parse()
    console = Console() if sys.stdout.isatty() else Console(width=110)
    samples: Samples = {}
    for wire in [options.wire] if options.wire else WIRES:
        samples |= run_wire(wire, options.rounds, options.seconds, options.only, console)
    ratios = ratios_of(samples)
    show(ratios, console)
    write(ratios, samples, options)
    console.print(f"written to {RESULTS.relative_to(ROOT)}")
    return 0 if all(held(name, ratio) is not False for name, ratio in ratios.items()) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as error:
        sys.exit(f"throughput: {error}")
