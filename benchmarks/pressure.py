"""What one pod can take from another: round trips and TCP beside a flood, and two TCP streams side by side.

    pods a, c -- [h1: router] ----cable---- [h2: router] -- pods b, d        a talks to b while c disturbs, to d

Each kind of wire in turn. A round: a's TCP alone; c floods with UDP of 64 bytes as fast as it goes, and a's round trips
(one every 2 ms) and TCP are taken beside it; then both send TCP at once. Medians of ``--rounds`` go to object
``pressure`` of ``benchmarks/results/latest.json`` and to ``ratios``: ``pressure.rtt_p99_us``, ``pressure.tcp_kept`` (in
parts of the rate alone) and ``pressure.jain`` (Jain's index of the two streams: 1 is fair, 0.5 is one of them alone),
each by wire. Exit status 1 where a bar is missed. Needs root and the installed program.

    pressure.py [--rounds N] [--seconds S] [--wire segmented|offloads]...
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

from _measures import PAYLOADS, Figures, Way, round_trips, whole  # noqa: E402
from _results import RESULTS, Bar, circumstances, merge_figures, met  # noqa: E402
from lab import Lab, LabError, Pod  # noqa: E402
from lab.cluster import start_cluster  # noqa: E402
from lab.iperf import iperf  # noqa: E402
from lab.namespace import kill_process  # noqa: E402
from rich.console import Console  # noqa: E402
from throughput import WIRES  # noqa: E402

FLOODED_SECONDS = 60
"""Longer than anything that is measured beside it."""
PINGS = 500
BARS: dict[str, Bar] = {"rtt_p99_us": ("<=", 5000.0), "tcp_kept": (">=", 0.4), "jain": (">=", 0.95)}


@contextmanager
def flooded(lab: Lab, near: Pod, far: Pod) -> Iterator[None]:
    receiver = lab.traffic.listen(far, "pps-recv", timeout=FLOODED_SECONDS)
    options = {"to": far.v4, "port": receiver.port, "small": PAYLOADS[64], "seconds": FLOODED_SECONDS}
    sender = lab.traffic.start(near, "pps-send", **options)
    try:
        yield
    finally:
        for task in (sender, receiver):
            kill_process(task.process)


def jain(rates: Sequence[float]) -> float:
    return sum(rates) ** 2 / (len(rates) * sum(rate * rate for rate in rates))


def one_round(lab: Lab, pods: Sequence[Pod], seconds: float) -> Figures:
    a, c, b, d = pods
    alone = iperf(a, b, b.v4, seconds=whole(seconds)).mbit_s
    with flooded(lab, c, d):
        trips = round_trips(lab, Way("beside a flood", a, b, b.v4), "rtt", PINGS, 2)
        beside = iperf(a, b, b.v4, seconds=whole(seconds)).mbit_s
    both = lab.parallel(*(
        lambda near=near, far=far: iperf(near, far, far.v4, seconds=whole(seconds)).mbit_s
        for near, far in ((a, b), (c, d))
    ))  # fmt: skip
    return {
        "rtt_p50_us": trips["rtt.p50"],
        "rtt_p99_us": trips["rtt.p99"],
        "tcp_alone": alone,
        "tcp_kept": beside / alone,
        "jain": jain(both),
    }


def run_wire(wire: str, rounds: int, seconds: float, console: Console) -> list[Figures]:
    with Lab() as lab:
        cable = lab.cable(nic=WIRES[wire])
        _, pods = start_cluster(lab, [lab.host(name, cable) for name in ("h1", "h2")], pods=2)
        taken = []
        for number in range(rounds):
            with console.status(f"{wire} wire, round {number + 1} of {rounds}"):
                taken.append(one_round(lab, pods, seconds))
        return taken


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What one pod can take from another.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2, help="length of each TCP run")
    parser.add_argument("--wire", action="append", choices=sorted(WIRES), help="these only [default: both]")
    return parser.parse_args()


def main() -> int:
    options = parse()
    console = Console() if sys.stdout.isatty() else Console(width=110)
    missed = 0
    for wire in options.wire or WIRES:
        taken = run_wire(wire, options.rounds, options.seconds, console)
        samples = {name: [round(figures[name], 3) for figures in taken] for name in taken[0]}
        middles = {name: statistics.median(values) for name, values in samples.items()}
        ratios = {f"pressure.{name}.{wire}": middles[name] for name in BARS}
        merge_figures("pressure", {wire: {**circumstances(), "rounds": options.rounds, "samples": samples}}, ratios)
        for name, bar in BARS.items():
            well = met(bar, middles[name])
            missed += not well
            verdict = "" if well else "  [bold red]missed[/]"
            console.print(f"{wire} {name}: {middles[name]:,.3f}  (bar {bar[0]} {bar[1]:g}){verdict}", highlight=False)
    console.print(f"merged into {RESULTS.relative_to(ROOT)}")
    return 1 if missed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as error:
        sys.exit(f"pressure: {error}")
