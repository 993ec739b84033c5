"""How speed follows the number of workers, of peers and of table entries: three curves of encrypted traffic.

    workers   pod a -- [router --workers n] ----cable---- [router --workers n] -- pod b       TCP 1 and 64-byte 64 flows
    peers     n real routers on one switch, every one with a session to the first; the first two carry the traffic
    tables    two engines (tests/kernel/fastpath_pair.py) with n entries that the traffic does not use, in 16,384 blocks

On a wire with offloads. ``--points`` cuts a run into pieces: each point replaces itself in object ``curves`` of
``benchmarks/results/latest.json``, ``ratios`` has the last of each curve to its first (``tables.udp64.100000``: the
frames/s with 100,000 entries in parts of those with 10). Needs root and the installed program.

    curves.py [--rounds N] [--seconds S] [--curve workers|peers|tables]... [--points N,...]
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

from _measures import Figures, Way, measures  # noqa: E402
from _results import RESULTS, circumstances, load, merge_figures  # noqa: E402
from kernel.fastpath_pair import RIGHT, ip4, pair  # noqa: E402
from lab import Lab, LabError  # noqa: E402
from lab.cluster import attach_pods, start_cluster, wait_joined  # noqa: E402
from lab.namespace import Namespace  # noqa: E402
from lab.router import ping, wait_for  # noqa: E402
from lab.traffic import Traffic  # noqa: E402
from rich.console import Console  # noqa: E402

from weave_router import limits  # noqa: E402
from weave_router.fastpath import engine as fp  # noqa: E402

POINTS = {"workers": (1, 2, 3, 4), "peers": (1, 4, 16, 64), "tables": (10, 1_000, 100_000)}
CASES = ("tcp1", "udp64x64")
BLOCKS = 16_384
UNRELATED_SLOT = 3
UNRELATED = 0x0B000000
"""11.0.0.0: where the unused entries begin."""
LAUNCHED_AT_ONCE = 8


def workers(count: int, rounds: int, seconds: float) -> list[Figures]:
    with Lab() as lab:
        cable = lab.cable()
        hosts = [lab.host(name, cable) for name in ("h1", "h2")]
        _, (a, b) = start_cluster(lab, hosts, flags=["--workers", str(count)])
        return taken(lab, Way("encrypted", a, b, b.v4), rounds, seconds)


def peers(count: int, rounds: int, seconds: float) -> list[Figures]:
    """``count`` routers besides the first."""
    with many_neighbours(), Lab() as lab:
        switch = lab.switch()
        hosts = [lab.host(f"h{number}", switch) for number in range(1, count + 2)]
        routers = [lab.router(host, bridge_address=f"10.32.{number}.1", peers=[hosts[0].address()] * (number > 1))
                   for number, host in enumerate(hosts, 1)]  # fmt: skip
        for at in range(0, len(routers), LAUNCHED_AT_ONCE):
            lab.parallel(*(router.launch for router in routers[at : at + LAUNCHED_AT_ONCE]))
        pods = attach_pods(lab, routers[:2], 1)
        wait_joined(lab, pods)
        for number in range(2, count + 2):  # a session with each: its bridge answers
            wait_for(f"h{number}", lambda number=number: ping(pods[0], f"10.32.{number}.1", wait=0.5), 60)
        return taken(lab, Way("encrypted", *pods, pods[1].v4), rounds, seconds)


@contextmanager
def many_neighbours() -> Iterator[None]:
    """The kernel counts the neighbours of all namespaces together: hosts that know each other fill its table."""
    files = [Path(f"/proc/sys/net/{family}/neigh/default/gc_thresh{serial}")
             for family in ("ipv4", "ipv6") for serial in (3, 2, 1)]  # fmt: skip
    before = {file: file.read_text() for file in files}
    try:
        for serial, file in enumerate(files):
            file.write_text(str(max(int(before[file]), limits.NEIGHBOURS >> serial % 3)))
        yield
    finally:
        for file, text in reversed(before.items()):
            file.write_text(text)


def taken(lab: Lab, way: Way, rounds: int, seconds: float) -> list[Figures]:
    known = measures(lab, seconds)
    return [{name: value for case in CASES for name, value in known[case](way).items()} for _ in range(rounds)]


def tables(count: int, rounds: int, seconds: float) -> list[Figures]:
    """Entries of length /32 beside blocks of /26, all of a node that nobody talks to."""
    with ExitStack() as stack:
        both = stack.enter_context(pair())
        traffic = Traffic()
        stack.callback(traffic.close)
        near, far = (Namespace(name, name) for name in both.stacks())
        for side in (both.left, both.right):
            side.engine.node_set(UNRELATED_SLOT, flags=fp.NODE_ANSWER, pod_mtu=1368)
            for block in range(min(BLOCKS, count)):
                side.engine.route_set(UNRELATED + block * 64, 26, UNRELATED_SLOT)
            for entry in range(count - min(BLOCKS, count)):
                side.engine.route_set(UNRELATED + entry * 7 + 1, 32, UNRELATED_SLOT, b"\2" + entry.to_bytes(5, "big"))
        return [table_run(traffic, near, far, seconds) for _ in range(rounds)]


def table_run(traffic: Traffic, near: Namespace, far: Namespace, seconds: float) -> Figures:
    receiver = traffic.listen(far, "pps-recv", timeout=0.3)
    options = {"to": ip4(RIGHT + 2), "port": receiver.port, "small": 22, "seconds": seconds, "flows": 1}
    traffic.start(near, "pps-send", **options).result()
    return {"udp64": float(receiver.result()["pps"])}


CURVES: dict[str, Callable[[int, int, float], list[Figures]]] = {"workers": workers, "peers": peers, "tables": tables}


def middles(points: dict[str, dict[str, list[float]]]) -> dict[int, dict[str, float]]:
    return {int(at): {name: statistics.median(values) for name, values in per["samples"].items()}
            for at, per in points.items()}  # fmt: skip


def ratios_of(curve: str, points: dict[int, dict[str, float]]) -> dict[str, float]:
    first, last = min(points), max(points)
    return {f"{curve}.{name}.{last}": round(points[last][name] / value, 3)
            for name, value in points[first].items() if first != last and name in points[last]}  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed over workers, peers and table entries.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2, help="length of each run")
    parser.add_argument("--curve", action="append", choices=sorted(CURVES), help="these only [default: all]")
    parser.add_argument("--points", default="", help="by commas, of every curve that is run [default: all]")
    return parser.parse_args()


def main() -> int:
    options = parse()
    console = Console() if sys.stdout.isatty() else Console(width=110)
    for curve in options.curve or CURVES:
        wanted = [int(word) for word in options.points.split(",") if word] or POINTS[curve]
        for point in wanted:
            with console.status(f"{curve}: {point}"):
                found = CURVES[curve](point, options.rounds, options.seconds)
            samples = {name: [round(figures[name], 3) for figures in found] for name in found[0]}
            known = load().get("curves", {}).get(curve, {})
            known[str(point)] = {**circumstances(), "rounds": options.rounds, "samples": samples}
            middle = middles(known)
            merge_figures("curves", {curve: known}, ratios_of(curve, middle))
            said = ", ".join(f"{name} {value:,.1f}" for name, value in middle[point].items())
            console.print(f"{curve} {point}: {said}", highlight=False)
    console.print(f"merged into {RESULTS.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as error:
        sys.exit(f"curves: {error}")
