"""What ``make demo`` runs: the main job, shown on three hosts with two pods each, and proven with figures.

        pods a b          pods a b          pods a b
          | |               | |               | |
        [ h1 ]  <-lists-> [ h2 ]  <-lists-- [ h3 ]        one router each; h1 and h3 are never told of each other
           |                 |                 |
        ---+-----------------+-----------------+---       underlay switch, MTU 1500, IPv4 and IPv6

Pods are attached by the CNI executable, as a container runtime does, and get addresses of their host's own block.
Needs root and the installed program; everything happens in network namespaces that are gone at the end, also after
Ctrl-C. ``KEEP=1`` or ``--keep`` leaves them up and says how to enter; ``--sweep`` removes what was kept. Exit status 0
only if all held. By hand: ``PYTHONPATH=tests .venv/bin/python -m lab.demo``.
"""

from __future__ import annotations

import itertools
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from rich.console import Console
from rich.table import Table

from . import plugin
from .cluster import JOIN_DEADLINE, pairs, routers_for, wait_group_known, wait_joined
from .iperf import iperf
from .lab import Lab
from .namespace import LabError, sweep
from .network import Host, Pod, Switch
from .router import Router, program
from .traffic import Result

FAMILIES: Final = ("v4", "v6")
NAMES: Final = {"v4": "IPv4", "v6": "IPv6"}
IPERF_SECONDS: Final = 2
UDP_MBIT: Final = 200
UDP_LOST_MAX: Final = 0.001  # UDP is not told when a queue is full; on two busy CPUs one is, now and then
TCP_BYTES: Final = 64 << 20
DATAGRAMS: Final = 500
DATAGRAM_MAX: Final = 60_000
LOAD_SECONDS: Final = 8.0
GAP_MAX_MS: Final = 2500.0
GROUPS: Final = {"v4": "239.7.8.3", "v6": "ff05::783"}
GROUP_PORT: Final = 7830
PLAIN_WIDTH: Final = 118
MARKER: Final = b"weave-marker-xyz"  # 16 bytes: what ping -p takes


@dataclass(frozen=True)
class Row:
    """One line of the closing table."""

    what: str
    figure: str
    held: bool


@dataclass
class Demo:
    """The steps in order. Each yields rows; the first step that raises ends the demo."""

    lab: Lab
    console: Console
    rows: list[Row] = field(default_factory=list)
    hosts: list[Host] = field(default_factory=list)
    routers: list[Router] = field(default_factory=list)
    pods: list[Pod] = field(default_factory=list)

    def run(self) -> bool:
        steps: list[tuple[str, Callable[[], Iterator[Row]]]] = [
            ("three hosts, three routers, six pods", self.build),
            ("every pod pings every pod", self.ping_all),
            ("iperf3 between every two hosts", self.iperf_all),
            ("transfers whose every byte is checked", self.transfers),
            ("multicast", self.multicast),
            ("what a listener on the underlay sees", self.secrecy),
            ("router h2 killed with -9 under load and relaunched", self.kill_under_load),
        ]
        for number, (title, step) in enumerate(steps, 1):
            self._step(f"[{number}/{len(steps)}] {title}", step)
        return all(row.held for row in self.rows)

    def _step(self, title: str, step: Callable[[], Iterator[Row]]) -> None:
        start = time.monotonic()
        with self.console.status(title):
            fresh = list(step())
        held = all(row.held for row in fresh)
        mark = "[green]ok[/]" if held else "[red]FAILED[/]"
        self.console.print(
            f"{title.replace('[', '(', 1).replace(']', ')', 1)}: {mark}, {time.monotonic() - start:.1f} s"
        )
        self.rows += fresh

    # -- steps ------------------------------------------------------------------------------------------------------

    def build(self) -> Iterator[Row]:
        start = time.monotonic()
        switch: Switch = self.lab.switch()
        self.hosts = [self.lab.host(label, switch) for label in ("h1", "h2", "h3")]
        self.routers = routers_for(self.lab, self.hosts, seeded=True)
        self.lab.parallel(*(router.launch for router in self.routers))
        launched = time.monotonic() - start
        self.pods = [self.lab.pod(host, letter) for host in self.hosts for letter in "ab"]
        owners = [router for router in self.routers for _ in "ab"]
        self.lab.parallel(*(partial(plugin.add, *one) for one in zip(owners, self.pods, strict=True)))
        wait_joined(self.lab, self.pods)
        yield Row("3 routers launched, each lists one other", f"{launched:.1f} s", True)
        joined = time.monotonic() - start
        what = "6 pods attached by the CNI executable, every host reaches every other"
        yield Row(what, f"after {joined:.1f} s", joined < JOIN_DEADLINE)

    def ping_all(self) -> Iterator[Row]:
        for family in FAMILIES:
            tasks = [partial(round_trip, near, far.address(family)) for near, far in pairs(self.pods)]
            answers = [answer for batch in batches(tasks, 10) for answer in self.lab.parallel(*batch)]
            times = [answer for answer in answers if answer is not None]
            median = f"median {statistics.median(times):.2f} ms" if times else "no answer"
            figure = f"{len(times)} of {len(tasks)} pairs, {median}"
            yield Row(f"ping, {NAMES[family]}, every pod to every pod", figure, len(times) == len(tasks))

    def across(self) -> list[tuple[Pod, Pod]]:
        """One pair of pods for every two hosts."""
        firsts = [host.pods[0] for host in self.hosts]
        return list(itertools.combinations(firsts, 2))

    def iperf_all(self) -> Iterator[Row]:
        for family, (near, far) in itertools.product(FAMILIES, self.across()):
            tcp = iperf(near, far, far.address(family), seconds=IPERF_SECONDS)
            what = f"{NAMES[family]}, {near.label} to {far.label}"
            yield Row(f"iperf3 TCP, {what}", f"{tcp.mbit_s:,.0f} Mbit/s", tcp.mbit_s > 1)
            udp = iperf(near, far, far.address(family), seconds=1, udp_mbit=UDP_MBIT, size=1200)
            figure = f"{udp.mbit_s:,.0f} of {UDP_MBIT} Mbit/s, {udp.lost:,} of {udp.sent:,} lost"
            figure += f", {udp.overrun:,} by iperf3" if udp.overrun else ""
            yield Row(f"iperf3 UDP, {what}", figure, udp.sent > 0 and udp.lost <= UDP_LOST_MAX * udp.sent)

    def transfers(self) -> Iterator[Row]:
        for seed, (family, (near, far)) in enumerate(itertools.product(FAMILIES, self.across())):
            what = f"{NAMES[family]}, {near.label} to {far.label}"
            stream = self.lab.traffic.tcp(near, far, far.address(family), bytes=TCP_BYTES, seed=seed)()
            yield Row(f"TCP {TCP_BYTES >> 20} MiB, {what}", f"hash {stream['hash']}", stream_is_whole(stream))
            got = self.lab.traffic.udp(
                near, far, far.address(family), count=DATAGRAMS, max_size=DATAGRAM_MAX, rate=UDP_MBIT, seed=seed
            )()
            figure = (
                f"{got['unique']:,} of {got['sent']:,} datagrams to {DATAGRAM_MAX:,} bytes, {got['corrupt']} corrupt"
            )
            held = got["lost"] <= UDP_LOST_MAX * got["sent"] and got["corrupt"] == got["duplicated"] == 0
            yield Row(f"UDP, {what}", figure, held)

    def multicast(self) -> Iterator[Row]:
        sender, *others = self.pods
        for group in GROUPS.values():
            listen = partial(self.lab.traffic.listen, mode="mcast-recv", group=group, interface="eth0", port=GROUP_PORT)
            tasks = [listen(pod) for pod in others]
            wait_group_known(self.lab, sender, others, group, GROUP_PORT + 1)
            send = self.lab.traffic.start(
                sender, "mcast-send", to=group, interface="eth0", port=GROUP_PORT, count=100, pps=200, max_size=1200
            )
            sent = send.result()["sent"]
            heard = [task.result()["unique"] for task in tasks]
            figure = f"{sent} sent, {min(heard)} to {max(heard)} heard by {len(heard)} pods"
            yield Row(f"multicast {group}, {sender.label} to all", figure, min(heard) == sent)

    def secrecy(self) -> Iterator[Row]:
        near, far = self.hosts[0].pods[0], self.hosts[2].pods[0]
        outside = self.lab.capture(near.host, "eth0", "")
        inside = self.lab.capture(far, "eth0", "icmp")
        near.run(["ping", "-n", "-q", "-c", "20", "-i", "0.02", "-p", MARKER.hex(), "-s", "1000", far.v4])
        seen_inside = sum(MARKER in packet for packet in inside.packets())
        packets = outside.packets()
        seen_outside = sum(MARKER in packet for packet in packets)
        figure = f"in 0 of {len(packets)}" if not seen_outside else f"in {seen_outside} of {len(packets)}"
        held = seen_outside == 0 and seen_inside >= 20 and len(packets) >= 20
        yield Row(f"pings with a marker ({seen_inside} seen in the pod), on the underlay", f"{figure} packets", held)

    def kill_under_load(self) -> Iterator[Row]:
        (a1, b1), (a2, b2), (_, b3) = (host.pods for host in self.hosts)
        traffic = self.lab.traffic
        tcp = traffic.tcp(a1, a2, a2.v4, seconds=LOAD_SECONDS, rate=100)
        across = traffic.stream(b1, b2, b2.v4, seconds=LOAD_SECONDS)
        beside = traffic.stream(b1, b3, b3.v6, seconds=LOAD_SECONDS)
        local = traffic.stream(a2, b2, b2.v4, seconds=LOAD_SECONDS)
        time.sleep(LOAD_SECONDS / 4)  # load before the blow, not synchronisation
        self.routers[1].kill()
        self.routers[1].launch()
        stream, gap, other, inner = tcp(), across(), beside(), local()
        megabytes = f"{stream['bytes'] / 1e6:.0f} MB, hash {stream['hash']}, longest pause {stream['gap_ms']:.0f} ms"
        yield Row(f"kill -9 of h2's router: TCP {a1.label} to {a2.label}", megabytes, stream_is_whole(stream))
        worst = max(gap[f"gap{size}_ms"] for size in ("_small", "_full"))
        yield Row(f"kill -9: UDP gap {b1.label} to {b2.label}", f"{worst:.0f} ms", 0 < worst <= GAP_MAX_MS)
        for what, got in ((f"{b1.label} to {b3.label}", other), (f"{a2.label} to {b2.label}, one host", inner)):
            yield Row(f"kill -9: UDP {what}", f"{got['lost']} of {got['sent']} lost", got["lost"] == 0)

    # -- the end ----------------------------------------------------------------------------------------------------

    def show_status(self) -> None:
        self.console.rule("weave-router status on h1")
        self.console.print(self.routers[0].cli("status").stdout, markup=False, highlight=False)

    def show_table(self) -> None:
        table = Table("what was tried", "figure", "held", title="Weave Router demo")
        for row in self.rows:
            table.add_row(row.what, row.figure, "[green]yes[/]" if row.held else "[bold red]NO[/]")
        self.console.print(table)

    def show_how_to_enter(self) -> None:
        self.console.rule("kept: how to enter")
        for router in self.routers:
            env = " ".join(f"{key}={value}" for key, value in router.environment.items())
            self.console.print(f"{router.name}: ip netns exec {router.host.name} env {env} {program()} status")
        for pod in self.pods:
            self.console.print(f"{pod.label} ({pod.v4}, {pod.v6}): ip netns exec {pod.name} bash", soft_wrap=True)
        self.console.print(f"remove it all: PYTHONPATH=tests {sys.executable} -m lab.demo --sweep")


def stream_is_whole(result: Result) -> bool:
    sums_agree = (result["bytes"], result["hash"]) == (result["sent_bytes"], result["sent_hash"])
    return sums_agree and result["bytes"] > 0 and not result["corrupt"] and not result["timed_out"]


def round_trip(source: Pod, address: str) -> float | None:
    """Median round trip of three echoes in ms; None unless all came back."""
    done = source.run(["ping", "-n", "-c", "3", "-i", "0.05", "-W", "2", address], check=False)
    times = [float(found) for found in re.findall(r"time=([0-9.]+) ms", done.stdout)]
    return statistics.median(times) if len(times) == 3 else None


def batches(tasks: Sequence[Callable[[], float | None]], size: int) -> Iterator[Sequence[Callable[[], float | None]]]:
    """Not all at once: sixty pings on two cores would measure the scheduler."""
    for at in range(0, len(tasks), size):
        yield tasks[at : at + size]


def main() -> int:
    console = Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH)
    if "--sweep" in sys.argv[1:]:
        console.print(f"removed {len(sweep(kept=True))} namespaces")
        return 0
    keep = "--keep" in sys.argv[1:] or os.environ.get("KEEP", "") not in ("", "0")
    start = time.monotonic()
    with Lab(keep=keep) as lab:
        demo = Demo(lab, console)
        try:
            held = demo.run()
            demo.show_status()
        except LabError:
            demo.show_table()
            raise
        demo.show_table()
        if keep:
            demo.show_how_to_enter()
    verdict = "all held" if held else "NOT all held"
    console.print(f"{verdict}, {time.monotonic() - start:.0f} s" + ("" if keep else ", nothing left behind"))
    return 0 if held else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as error:
        sys.exit(f"demo: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
