"""Events in the life of a cluster, drawn from a seed: routers killed, deleted, rolled out, tokens rotated, a machine
that dies and comes back in three ways; 200 flows between the two nodes that stay, all the time. Nothing leaks.

`SOAK=1` (`make soak-kubernetes`) goes on for SOAK_MINUTES (15) and writes docs/results/kubernetes-soak.json: an
event in half a minute are in half an hour as many as a day has at one in 25 minutes. Last: nodes do not stay.
"""

import base64
import contextlib
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, Final

import pytest
from kubernetes import processes, results, rollout
from kubernetes.blocks import outside, strays, twice
from kubernetes.cluster import Cluster, ClusterError, Node, wait_for
from kubernetes.load import Load
from kubernetes.test_y_restart import RESTART_GAP, ROLLOUT_GAP
from kubernetes.test_z_fence import FREED_SECONDS, forget, is_ready, return_to_service, set_fence

SOAK: Final = bool(os.environ.get("SOAK"))
SECONDS: Final = 60 * float(os.environ.get("SOAK_MINUTES", "15")) if SOAK else 45.0
SEED: Final = int(os.environ.get("SEED", "0")) or int(time.time())
RESULTS: Final = "kubernetes-soak.json"
RSS_MEBIBYTES: Final = 5.0
AGE_SECONDS: Final = 30.0
"""What a router gets before its memory is looked at: caches and links are there by then."""
CONNECTION: Final = r"(?m)^ *\d+: \S+ [0-9A-F]+:([0-9A-F]{4}) 01 (?:\S+ +){5}(\d+) "
"""Of /proc/net/tcp: the other side's port and the inode of what is established."""
UNDER_WAY_SECONDS: Final = 15
API_PORT: Final = 443
API_CONNECTIONS: Final = 6
"""Three watches, one call, and one idle of each."""

pytestmark = pytest.mark.timeout(SECONDS + 900)


class Life:
    """The events. Each returns the longest silence that is allowed for it, in milliseconds."""

    def __init__(self, cluster: Cluster, rng: Random) -> None:
        self.cluster = cluster
        self.rng = rng
        self.victim = cluster.nodes[-1]
        self.images = 0
        self.events: list[Callable[[], float]] = [
            self.kill, self.delete, self.restart, self.change_image, self.rotate, self.another_machine, self.same_disk,
            self.new_disk_same_node]  # fmt: skip

    def kill(self) -> float:
        rollout.kill(self.cluster, self.rng.choice(self.cluster.nodes))
        return RESTART_GAP

    def delete(self) -> float:
        rollout.delete(self.cluster, self.rng.choice(self.cluster.nodes))
        return RESTART_GAP

    def restart(self) -> float:
        rollout.restart(self.cluster)
        return ROLLOUT_GAP

    def change_image(self) -> float:
        self.images += 1
        rollout.change_image(self.cluster, f"soak-{self.images}", self.rng.uniform(0, 5))
        if self.rng.random() < 0.5:
            rollout.undo(self.cluster)
        return ROLLOUT_GAP

    def rotate(self) -> float:
        node = self.cluster.nodes[0]
        old = rollout.inside(self.cluster, node, "cat", "/var/lib/weave-router/token").split()[0]
        new = rollout.inside(self.cluster, node, "weave-router", "token", "new", "--domain-of",
                             "/var/lib/weave-router/token").strip()
        for lines in ([old, new], [new, old], [new]):
            text = base64.b64encode("".join(f"{line}\n" for line in lines).encode()).decode()
            self.cluster.kubectl(*rollout.SYSTEM, "patch", "secret", "weave-router", "--type=merge", "-p",
                                 json.dumps({"data": {"token": text}}))
            for each in self.cluster.nodes:
                wait_for(f"{each.name} has {len(lines)} tokens", lambda each=each, lines=lines: rollout.inside(
                    self.cluster, each, "cat", "/var/lib/weave-router/token", check=False).split() == lines, 30)
        return ROLLOUT_GAP

    def another_machine(self) -> float:
        self.victim.power_off()
        forget(self.cluster, self.victim)
        wait_for("its blocks free", lambda: not strays(self.cluster), FREED_SECONDS, 0.5)
        return_to_service(self.cluster, self.victim)
        return ROLLOUT_GAP

    def same_disk(self) -> float:
        self.victim.power_off()
        forget(self.cluster, self.victim)
        return_to_service(self.cluster, self.victim, new_disk=False)
        return ROLLOUT_GAP

    def new_disk_same_node(self) -> float:
        self.victim.power_off()
        return_to_service(self.cluster, self.victim)
        return ROLLOUT_GAP


def opened(node: Node) -> dict[str, str]:
    """The router's descriptors, each with what it is; one that is closed meanwhile is none."""
    found = {}
    for each in Path(f"/proc/{processes.router(node)}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found[each.name] = os.readlink(each)
    return found


def usage(node: Node) -> tuple[float, int, int]:
    """(MiB resident, open descriptors, connections to the API server, which are not among them) of the node's router.

    The client's pool keeps an idle connection until its next request: how many there are is chance."""
    process = Path(f"/proc/{processes.router(node)}")
    (resident,) = re.findall(r"VmRSS:\s+(\d+) kB", (process / "status").read_text())
    descriptors = list(opened(node).values())
    tables = "".join((process / "net" / name).read_text() for name in ("tcp", "tcp6"))
    to_api = {f"socket:[{inode}]" for port, inode in re.findall(CONNECTION, tables) if int(port, 16) == API_PORT}
    calls = len(to_api.intersection(descriptors))
    return int(resident) / 1024, len(descriptors) - calls, calls


def age(cluster: Cluster, node: Node) -> float:
    said = rollout.inside(cluster, node, "weave-router", "status", "--json", check=False)
    return float(json.loads(said)["service"]["uptime"]) if said else 0.0


def usages(cluster: Cluster) -> dict[str, tuple[float, int, int]]:
    """Of routers that are AGE_SECONDS old at least."""
    wait_for("routers of some age", lambda: all(age(cluster, node) >= AGE_SECONDS for node in cluster.nodes),
             AGE_SECONDS + 60)
    return {node.name: usage(node) for node in cluster.nodes}


def test_a_day_of_events(cluster: Cluster) -> None:
    print(f"seed {SEED}")
    rng = Random(SEED)
    set_fence(cluster)
    life, load = Life(cluster, rng), Load(cluster, cluster.nodes[:-1]).start()
    before = usages(cluster)
    lines: list[dict[str, Any]] = []
    missed: list[str] = []  # a silence too long does not end it before what leaks was looked for
    began = time.monotonic()
    while time.monotonic() - began < SECONDS:
        event = rng.choice(life.events)
        at = time.monotonic()
        with load.between() as felt:
            most = event()
        lines.append({"event": event.__name__, "seconds": round(time.monotonic() - at, 1), **felt.figures()})
        print(f"{time.monotonic() - began:6.0f} s  {event.__name__}: {felt}", flush=True)
        if felt.gap > most:
            missed.append(f"{event.__name__}: {felt}")
        felt.check(felt.gap)
        assert all(is_ready(cluster, node) for node in cluster.nodes)
        assert twice(cluster.nodes) == []
    wait_for("no block of a Node that is gone", lambda: not strays(cluster), FREED_SECONDS, 0.5)
    after = usages(cluster)
    checks = {node.name: rollout.inside(cluster, node, "weave-router", "ipam", "check").strip()
              for node in cluster.nodes}
    if SOAK:
        results.write(RESULTS, {"seed": SEED, "seconds": round(time.monotonic() - began), "missed": missed,
                                "before": before, "after": after, "ipam_check": checks, "events": lines}, "events")
    assert set(checks.values()) == {"all agree"}, checks
    assert [outside(cluster, node) for node in cluster.nodes] == [[], [], []]
    for node in cluster.nodes:
        assert abs(after[node.name][0] - before[node.name][0]) <= RSS_MEBIBYTES, (node.name, before, after)
        assert after[node.name][2] <= API_CONNECTIONS, (node.name, before, after)
        try:  # a probe or a command under way is a descriptor too
            wait_for("as many descriptors", lambda node=node: usage(node)[1] == before[node.name][1], UNDER_WAY_SECONDS)
        except ClusterError as error:
            raise AssertionError((str(error), node.name, before, usage(node), opened(node))) from None
    assert missed == []
