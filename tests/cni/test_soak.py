"""ADD and DEL while executable and router are killed at random points; and pods whose first instruction is one ping.

        p0 .. p7 --- a --- switch --- b --- target

The short forms run in `make test`, the long ones by `make soak-cni`, also in pieces (``ROUNDS`` and ``SEED``). What
may be left after a kill is a runtime's to clean up, as it does: by DEL, repeated, and by GC for what was never told.
After that nothing is left at all.
"""

import json
import os
import random
import subprocess
import time
from collections.abc import Iterator

import pytest
from cni.node import Node, added, quiet
from lab.lab import Lab
from lab.namespace import Namespace
from lab.router import Router, ping, wait_for

from weave_router import limits

LONG = bool(os.environ.get("SOAK"))
ROUNDS = int(os.environ.get("ROUNDS") or (10_000 if LONG else 300))
PINGS = 1_000 if LONG else 60
ROUTER_KILLS_EVERY = 50
"""Rounds between two deaths of the router: its start takes a second, a round 50 ms."""
KILL_WITHIN = 0.04
"""Seconds in which an executable's life ends: an ADD takes about 10 to 30 ms."""
SEED = 20261124


@pytest.fixture(scope="module")
def nodes(lab: Lab) -> tuple[Node, Node]:
    switch = lab.switch()
    hosts = [lab.host(label, switch) for label in "ab"]
    peers = [host.address() for host in hosts]
    routers = [lab.router(host, peers=peers, flags=["--ipalloc-init", "seed=a,b"]) for host in hosts]
    for router in routers:
        router.launch()
    for router in routers:
        wait_for("the other node", lambda router=router: len(router.status()["peers"]) == 2)
    return Node(routers[0]), Node(routers[1])


@pytest.fixture
def pods(lab: Lab) -> Iterator[list[Namespace]]:
    made = [lab.namespace(f"p{number}") for number in range(8)]
    yield made
    for pod in made:
        pod.delete()


def used(router: Router) -> list[str]:
    """Containers that hold an address, resting ones aside."""
    listed = router.get("/status/addresses")
    assert listed is not None
    return [one["container_id"] for one in listed if one["container_id"] and one["state"] != "resting"]


class Rounds:
    """One after the other; ``random`` decides what dies and when."""

    def __init__(self, node: Node, pods: list[Namespace], seed: int) -> None:
        self.node = node
        self.pods = pods
        self.random = random.Random(seed)
        self.killed = {"ADD": 0, "DEL": 0, "router": 0}
        self.lost: set[str] = set()

    def start(self, verb: str, pod: Namespace, container: str) -> "subprocess.Popen[bytes]":
        shim = self.node.shim
        environment = shim.environment(verb, CNI_CONTAINERID=container, CNI_NETNS=str(pod.path))
        process = subprocess.Popen(self.node.router.host.argv([str(shim.executable)]), stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, env=environment)
        assert process.stdin
        process.stdin.write(json.dumps(shim.config("1.1.0")).encode())
        process.stdin.close()
        process.stdin = None
        return process

    def call(self, verb: str, pod: Namespace, container: str, *, kill: bool, kill_router: bool = False) -> bool:
        """Whether it came to a good end."""
        process = self.start(verb, pod, container)
        if kill or kill_router:
            try:
                process.wait(self.random.uniform(0, KILL_WITHIN))
            except subprocess.TimeoutExpired:
                self.killed[verb] += kill
        if kill_router:
            self.node.router.kill()
            self.killed["router"] += 1
            self.node.router.launch(wait=False)
        if kill:
            process.kill()
        said, _ = process.communicate(timeout=60)
        if kill_router:
            self.node.router.wait_ready()
        assert kill or process.returncode == 0, (verb, container, said)
        return process.returncode == 0

    def round(self, number: int) -> None:
        """A runtime repeats its DEL until it succeeds; one in twenty forgets, and its GC comes later."""
        pod, container = self.random.choice(self.pods), f"c{number}"
        blow = self.random.choice(("none", "ADD", "DEL", "both"))
        router_dies = self.random.choice(("ADD", "DEL")) if number % ROUTER_KILLS_EVERY == 7 else ""
        self.call("ADD", pod, container, kill=blow in ("ADD", "both"), kill_router=router_dies == "ADD")
        done = self.call("DEL", pod, container, kill=blow in ("DEL", "both"), kill_router=router_dies == "DEL")
        while not done:
            if self.random.random() < 0.05:
                self.lost.add(container)
                self.replace(pod)
                return
            done = self.call("DEL", pod, container, kill=self.random.random() < 0.2)

    def replace(self, pod: Namespace) -> None:
        """Its sandbox is removed although no DEL succeeded."""
        pod.delete()
        pod.create()


def test_soak_killed_at_random_points(nodes: tuple[Node, Node], pods: list[Namespace]) -> None:
    node, seed = nodes[0], int(os.environ.get("SEED", SEED))
    rounds = Rounds(node, pods, seed)
    began = time.monotonic()
    for number in range(ROUNDS):
        rounds.round(number)
    wait_for("undone ADDs", lambda: {name for name, _ in node.attachments()} <= rounds.lost)
    # One killed as it wrote leaves half an entry, which is nobody's after a while.
    late = limits.CNI_JOURNAL_TEMPORARY_SECONDS + 2 * limits.CNI_ALIVE_SECONDS
    wait_for("the journal to be empty", lambda: node.journal() == [], late)
    quiet(node.run("GC", None))
    figures = f"{ROUNDS} rounds in {time.monotonic() - began:.0f} s, killed {rounds.killed}, lost {len(rounds.lost)}"
    print(figures)
    assert node.attachments() == [], figures
    assert used(node.router) == [], figures
    assert node.journal() == [], figures
    wait_for("the ports to go", lambda: node.ports() == [])
    assert rounds.killed["ADD"] and rounds.killed["DEL"] and rounds.killed["router"], figures
    assert json.loads(node.router.cli("ipam", "check", "--json").stdout)["findings"] == []
    added(node.run("ADD", pods[0], "last"))
    quiet(node.run("DEL", pods[0], "last"))


def test_soak_first_instruction_is_a_ping(nodes: tuple[Node, Node], pods: list[Namespace], lab: Lab) -> None:
    """From a pod that ADD has just answered for to a pod on the other host, by each family in turn."""
    a, b = nodes
    target = lab.namespace("target")
    ips = [ip["address"].partition("/")[0] for ip in added(b.run("ADD", target, "target"))["ips"]]
    wait_for("a session", lambda: bool(a.router.status()["connections"]))
    lost = []
    for number in range(PINGS):
        pod = pods[number % len(pods)]
        added(a.run("ADD", pod, f"ping{number}"))
        if not ping(pod, ips[number % 2], wait=2.0):
            lost.append(number)
        quiet(a.run("DEL", pod, f"ping{number}"))
    quiet(b.run("DEL", target, "target"))
    assert lost == [], f"{len(lost)} of {PINGS} lost"
