"""Traffic between pods of different nodes while something happens to their routers, and what it felt of it.

    pod of node A ──── FLOWS / pairs long TCP flows, CALLS / pairs new connections a second ────> pod of node B
                  ──── one datagram every 10 ms ────────────────────────────────────────────────>

for every ordered pair of nodes. The generators of tests/lab run in the pods' network namespaces, beside the pods'
own processes. On two cores, which carry the routers, the cluster and the load, a flow says something every 0.5 s: 400
numbers a second over 200 flows, each there and back. Called by the tests of the cluster's life.
"""

import contextlib
import itertools
import json
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from kubernetes import pods, product
from kubernetes.cluster import Cluster, ClusterError, Node, wait_for
from lab.tools import tool

FLOWS: Final = 200
CALLS: Final = 50.0
INTERVAL_MS: Final = 500
DATAGRAM_MS: Final = 10
SETTLED: Final = 1000 // DATAGRAM_MS
"""Datagrams of each pair before and after what is done: a silence is seen only between two."""
SETTLE_SECONDS: Final = 60
SERVE_PORT: Final = 7800
FIRST_PORT: Final = 7801
END_SECONDS: Final = 30


@dataclass
class Felt:
    """What the load felt, over all pairs. Gaps and times in milliseconds."""

    gaps: dict[tuple[str, str], float] = field(default_factory=dict)
    """The longest silence of each pair's datagrams."""
    lost: int = 0
    flows: int = 0
    broken: int = 0
    silent: int = 0
    """Flows that stand but whose last number never came back."""
    stall: float = 0
    opened: int = 0
    refused: int = 0
    unfinished: int = 0
    slowest: float = 0
    errors: list[str] = field(default_factory=list)

    @property
    def gap(self) -> float:
        return max(self.gaps.values())

    def __str__(self) -> str:
        return (f"gap {self.gap:.0f} ms, {self.lost} datagrams lost; {self.flows} flows: {self.broken} broken, "
                f"{self.silent} silent, longest stall {self.stall:.0f} ms; {self.opened} new: {self.refused} refused, "
                f"{self.unfinished} unfinished, slowest {self.slowest:.0f} ms {' '.join(self.errors)}").strip()

    def figures(self) -> dict[str, object]:
        """For docs/results/."""
        return {"gap_ms": self.gap, "lost": self.lost, "flows": self.flows, "broken": self.broken,
                "opened": self.opened, "refused": self.refused, "slowest_ms": self.slowest}

    def check(self, gap: float) -> None:
        """AssertionError with all figures where a bar is missed. ``gap``: most milliseconds of a silence."""
        assert self.gap <= gap, str(self)
        assert (self.broken, self.silent, self.refused, self.unfinished) == (0, 0, 0, 0), str(self)
        assert self.slowest <= 3500, str(self)


class Load:
    """Pods ``load-NODE`` on ``nodes``; ``between`` runs the traffic."""

    def __init__(self, cluster: Cluster, nodes: Sequence[Node] | None = None) -> None:
        self.cluster = cluster
        self.nodes = list(nodes or cluster.nodes)
        self._places: dict[str, tuple[int, str]] = {}

    def start(self) -> "Load":
        """Pods made if they are not there."""
        made = {node.name: f"load-{node.name}" for node in self.nodes}
        self.cluster.apply(*(pods.pod(name, node) for node, name in made.items()))
        product.wait_running(self.cluster, made.values())
        found = {pod["metadata"]["name"]: pod for pod in self.cluster.get("pods")}
        for node, name in made.items():
            self._places[node] = (process_of(found[name]["metadata"]["uid"]), found[name]["status"]["podIP"])
        return self

    @contextlib.contextmanager
    def between(self) -> Iterator[Felt]:
        """Traffic runs while the block does; what it felt is filled in at its end."""
        felt = Felt()
        running: list[subprocess.Popen[str]] = []
        try:
            servers = [self._run(running, node.name, "flows", "serve", port=SERVE_PORT) for node in self.nodes]
            pairs = list(itertools.permutations([node.name for node in self.nodes], 2))
            ports = {pair: FIRST_PORT + number for number, pair in enumerate(pairs)}
            receivers = {pair: self._run(running, pair[1], "traffic", "udp-recv", port=ports[pair], timeout=120)
                         for pair in pairs}
            for process in (*servers, *receivers.values()):
                _ready(process)
            callers = [self._run(running, near, "flows", "call", to=self._places[far][1], port=SERVE_PORT,
                                 flows=-(-FLOWS // len(pairs)), interval=INTERVAL_MS, rate=CALLS / len(pairs))
                       for near, far in pairs]
            for process in callers:
                _ready(process)
            senders = [self._run(running, near, "traffic", "stream-send", to=self._places[far][1],
                                 port=ports[near, far], seconds=86400, interval=DATAGRAM_MS) for near, far in pairs]
            self._settle()
            yield felt
            self._settle()
            for process in (*senders, *callers):
                process.terminate()
            for process in senders:
                _result(process)
            for pair, process in receivers.items():
                found = _result(process)
                felt.gaps[pair] = found["gap_ms"]
                felt.lost += found["lost"]
            for process in callers:
                _add(felt, _result(process))
        finally:
            for process in running:
                process.kill()
                process.communicate()

    def _settle(self) -> None:
        """Wait until every pod has heard that many more of each other one."""
        enough = {node: self._heard(node) + SETTLED * (len(self.nodes) - 1) for node in self._places}
        wait_for("the load to be heard", lambda: all(self._heard(node) >= enough[node] for node in enough),
                 SETTLE_SECONDS)

    def _heard(self, node: str) -> int:
        """Datagrams that the pod's kernel gave to a receiver."""
        lines = Path(f"/proc/{self._places[node][0]}/net/snmp").read_text().splitlines()
        names, values = (line.split() for line in lines if line.startswith("Udp:"))
        return int(values[names.index("InDatagrams")])

    def _run(self, running: list[subprocess.Popen[str]], node: str, program: str, mode: str,
             **options: object) -> subprocess.Popen[str]:
        words = itertools.chain.from_iterable((f"--{name}", str(value)) for name, value in options.items())
        process = subprocess.Popen(
            ["nsenter", "-t", str(self._places[node][0]), "--net", str(tool(program)), mode, *words],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True)  # fmt: skip
        running.append(process)
        return process


def _add(felt: Felt, found: dict[str, Any]) -> None:
    for name in ("flows", "broken", "silent", "opened", "refused", "unfinished"):
        setattr(felt, name, getattr(felt, name) + found[name])
    felt.stall = max(felt.stall, found["stall_ms"])
    felt.slowest = max(felt.slowest, found["slowest_ms"])
    felt.errors += [found["error"]] if found["error"] else []


def _ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None and process.stderr is not None
    if not process.stdout.readline():
        raise ClusterError(f"{' '.join(map(str, process.args))}: {process.stderr.read().strip()}")  # type: ignore[arg-type]


def _result(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, said = process.communicate(timeout=END_SECONDS)
    if process.returncode != 0:
        raise ClusterError(f"{' '.join(map(str, process.args))}: {said.strip()}")  # type: ignore[arg-type]
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def process_of(uid: str) -> int:
    """A process of the pod with this uid, by its control group."""
    for path in Path("/proc").glob("[0-9]*/cgroup"):
        with contextlib.suppress(OSError):
            if f"/pod{uid}/" in path.read_text():
                return int(path.parent.name)
    raise ClusterError(f"no process of pod {uid}")
