"""The product against the kernel's plaintext VXLAN, between the same namespaces, in one run, case by case.

    pod a -- [h1: router, VXLAN] ----cable---- [h2: router, VXLAN] -- pod b      encrypted, and the yardstick
    pod c -- [h3: router       ] ----cable---- [h4: router       ] -- pod d      the same with --plaintext

Each kind of wire in turn: segmented (tso, gso and UDP segmentation off and GRO on at both ends, as on a card without
offloads) and offloads, each also with bridge netfilter and so conntrack on the hosts (``segmented-netfilter``), and
the floods of UDP as on a kernel whose TAP knows no UDP segmentation, before 6.2 (``segmented-without-uso``).
Cases are those of _measures.py, and ``footprint``: start-up time, resident memory and idle CPU of one router. Runs
alternate, so that a machine that slows down slows all alike; the figure is the median of ``--rounds``. Prints a table
and merges what it measured into ``benchmarks/results/latest.json``: object ``throughput`` by figure and wire, each with
where and when, and object ``ratios`` (``tcp1.encrypted.segmented``), which is what bars are set on: so a run may be cut
into pieces. Exit status 1 where a bar is missed. Needs root and the installed program.

    throughput.py [--rounds N] [--seconds S] [--wire WIRE]... [--cases NAME,...]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

from _measures import CLOCK, UNITS, Figures, Way, measures  # noqa: E402
from _results import RESULTS, Bar, circumstances, merge_figures, met  # noqa: E402
from lab import Host, Lab, LabError, Pod, Router  # noqa: E402
from lab.cluster import start_cluster  # noqa: E402
from lab.namespace import Nic  # noqa: E402
from lab.vxlan import join_vxlan, lay_vxlan  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

WIRES = {"segmented": Nic.SEGMENTED, "offloads": Nic.OFFLOADS}
NETFILTER, WITHOUT_USO = "-netfilter", "-without-uso"
KINDS = [wire + more for more in ("", NETFILTER, WITHOUT_USO) for wire in WIRES]
VXLAN_ADDRESSES = ("10.99.0.1", "10.99.0.2")
VXLAN_ADDRESSES_V6 = ("fd99::1", "fd99::2")
PLAINTEXT = ("tcp1", "udp64")
"""Cases that are measured in plaintext too."""
BY_USO = ("udp64", "udp64x64", "udp1350", "udp1350x64")
"""Cases that UDP segmentation on the TAP makes faster."""
FOOTPRINT = "footprint"
IDLE_SECONDS = 5.0
CASES = (*measures(None, 0), FOOTPRINT)  # type: ignore[arg-type]  # names only

BARS: dict[str, Bar] = {  # by ratio
    **{f"tcp1.plaintext_to_encrypted.{wire}": (">=", 0.95) for wire in WIRES},
    "tcp1.encrypted.segmented": (">=", 0.75),
    "tcp1.encrypted.offloads": (">=", 0.60),
    **{f"tcp4.encrypted_to_tcp1.{wire}": (">=", 0.95) for wire in WIRES},
    **{f"udp64.encrypted.{wire}": (">=", 1.5) for wire in WIRES},
    **{f"udp64.encrypted.{wire}{WITHOUT_USO}": (">=", 1.0) for wire in WIRES},
    **{f"udp64x64.encrypted.{wire}": (">=", 1.1) for wire in WIRES},
    **{f"udp1350.encrypted.{wire}": (">=", 1.0) for wire in WIRES},
    **{f"rtt.p50.encrypted.{wire}": ("<=", 2.0) for wire in WIRES},
    **{f"rtt.p99.encrypted.{wire}": ("<=", 3.0) for wire in WIRES},
    **{f"rtt_unpinned.p50.encrypted.{wire}": ("<=", 1.4) for wire in WIRES},
    "cpu_per_gb.encrypted.segmented": ("<=", 1.8),
    "cpu_per_gb.encrypted.offloads": ("<=", 2.3),
    **{f"footprint.idle_percent.{wire}": ("<=", 0.5) for wire in WIRES},
    **{f"rtt_loaded.p50_us.encrypted.{wire}": ("<=", 300.0) for wire in WIRES},
    **{f"rtt_loaded.p99_us.encrypted.{wire}": ("<=", 1500.0) for wire in WIRES},
}


# -- where ----------------------------------------------------------------------------------------------------------


def two_hosts(
    lab: Lab, names: tuple[str, str], wire: str, flags: list[str]
) -> tuple[list[Host], list[Pod], list[Router]]:
    cable = lab.cable(nic=WIRES[wire.partition("-")[0]])
    hosts = [lab.host(name, cable, bridge_netfilter=wire.endswith(NETFILTER)) for name in names]
    refused = {"WEAVE_ROUTER_REFUSE": "uso"} if wire.endswith(WITHOUT_USO) else {}
    routers, pods = start_cluster(lab, hosts, flags=flags, env=refused)
    return hosts, pods, routers


def ways_of(lab: Lab, wire: str, plaintext: bool) -> tuple[dict[str, Way], Router]:
    """(the ways by name, the router on the near side of the encrypted one)."""
    hosts, (a, b), routers = two_hosts(lab, ("h1", "h2"), wire, [])
    lay_vxlan(*hosts)
    for pod, address, address_v6 in zip((a, b), VXLAN_ADDRESSES, VXLAN_ADDRESSES_V6, strict=True):
        join_vxlan(pod.host, pod, address)
        pod.ip(f"address add {address_v6}/64 dev vx0 nodad")
    ways = [Way("vxlan", a, b, VXLAN_ADDRESSES[1], VXLAN_ADDRESSES_V6[1]), Way("encrypted", a, b, b.v4, b.v6)]
    if plaintext:
        _, (c, d), _ = two_hosts(lab, ("h3", "h4"), wire, ["--plaintext"])
        ways.append(Way("plaintext", c, d, d.v4, d.v6))
    return {way.name: way for way in ways}, routers[0]


# -- run and report -------------------------------------------------------------------------------------------------

Samples = dict[str, dict[str, list[float]]]  # "figure.wire" -> way -> one figure a round


def run_wire(wire: str, cases: list[str], rounds: int, seconds: float, console: Console) -> Samples:
    samples: Samples = {}
    if wire.endswith(WITHOUT_USO):
        cases = [case for case in cases if case in BY_USO]
    with Lab() as lab:
        ways, router = ways_of(lab, wire, plaintext=any(case in PLAINTEXT for case in cases))
        known = measures(lab, seconds)
        for case in cases:
            names = [name for name in ways if name != "plaintext" or case in PLAINTEXT]
            names = ["encrypted"] if case == FOOTPRINT else names
            taken: Samples = {}
            for number in range(rounds):
                with console.status(f"{wire} wire, {case}, round {number + 1} of {rounds}"):
                    for name in names if number % 2 == 0 else names[::-1]:
                        figures = footprint(router) if case == FOOTPRINT else known[case](ways[name])
                        keep(taken, wire, name, figures)
            for key, per in taken.items():
                console.print(f"{key}{UNITS.get(key[:3], '')}: {describe(per)}", highlight=False)
            samples |= taken
    return samples


def keep(taken: Samples, wire: str, name: str, figures: Figures) -> None:
    for figure, value in figures.items():
        taken.setdefault(f"{figure}.{wire}", {}).setdefault(name, []).append(round(value, 3))


def footprint(router: Router) -> Figures:
    """Of one router beside another: seconds until its API answers, MiB resident, percent of a core while idle."""
    router.stop()
    begun = time.monotonic()
    router.launch()
    start = time.monotonic() - begun
    process = Path(f"/proc/{router.pid}")
    before, begun = _worked(process), time.monotonic()
    time.sleep(IDLE_SECONDS)  # the idle time itself
    idle = (_worked(process) - before) / (time.monotonic() - begun) * 100
    resident = int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    return {"footprint.start_seconds": start, "footprint.resident_mib": resident, "footprint.idle_percent": idle}


def _worked(process: Path) -> float:
    fields = (process / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK


def describe(taken: dict[str, list[float]]) -> str:
    return ", ".join(f"{name} {statistics.median(values):,.2f}" for name, values in taken.items())


def ratios_of(samples: Samples) -> dict[str, float]:
    """Ratios to VXLAN; of the footprint, and of round trips under load, the figures themselves."""
    ratios: dict[str, float] = {}
    middles = {key: {name: statistics.median(values) for name, values in taken.items()}
               for key, taken in samples.items()}  # fmt: skip
    for key, middle in middles.items():
        figure, wire = key.rsplit(".", 1)
        if figure.startswith(FOOTPRINT):
            ratios[key] = round(middle["encrypted"], 3)
            continue
        for name in middle.keys() - {"vxlan"}:
            ratios[f"{figure}.{name}.{wire}"] = round(middle[name] / middle["vxlan"], 3)
        if figure.startswith("rtt_loaded"):
            ratios[f"{figure}_us.encrypted.{wire}"] = middle["encrypted"]
        if "plaintext" in middle:
            ratios[f"{figure}.plaintext_to_encrypted.{wire}"] = round(middle["plaintext"] / middle["encrypted"], 3)
        if figure == "tcp4" and (one := middles.get(f"tcp1.{wire}")):
            ratios[f"tcp4.encrypted_to_tcp1.{wire}"] = round(middle["encrypted"] / one["encrypted"], 3)
    return dict(sorted(ratios.items()))


def held(name: str, ratio: float) -> bool | None:
    """Whether the bar of this ratio holds; None where it has none."""
    if name not in BARS:
        return None
    return met(BARS[name], ratio)


def show(ratios: dict[str, float], console: Console) -> None:
    table = Table("ratio to kernel VXLAN", "measured", "bar", "held", title="Throughput")
    words = {True: "[green]yes[/]", False: "[bold red]NO[/]", None: ""}
    for name, ratio in ratios.items():
        bar = " ".join(map(str, BARS[name])) if name in BARS else ""
        table.add_row(name, f"{ratio:.3f}", bar, words[held(name, ratio)])
    console.print(table)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed against kernel VXLAN, in network namespaces.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2, help="length of each throughput run")
    parser.add_argument("--wire", action="append", choices=KINDS, help="these only [default: all]")
    parser.add_argument("--cases", default=",".join(CASES), help="by commas [default: all]: " + ",".join(CASES))
    options = parser.parse_args()
    options.cases = options.cases.split(",")
    if unknown := set(options.cases) - set(CASES):
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    options.wire = options.wire or KINDS
    return options


def main() -> int:
    options = parse()
    console = Console() if sys.stdout.isatty() else Console(width=110)
    ratios: dict[str, float] = {}
    for wire in options.wire:
        samples = run_wire(wire, options.cases, options.rounds, options.seconds, console)
        found = ratios_of(samples)
        how = {"rounds": options.rounds, "seconds": options.seconds}
        figures = {key: {**circumstances(), **how, "samples": taken} for key, taken in samples.items()}
        merge_figures("throughput", figures, found)
        ratios |= found
    show(ratios, console)
    console.print(f"merged into {RESULTS.relative_to(ROOT)}")
    return 0 if all(held(name, ratio) is not False for name, ratio in ratios.items()) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as error:
        sys.exit(f"throughput: {error}")
