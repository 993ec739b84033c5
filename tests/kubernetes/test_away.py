"""What is there goes on while the API server is away, for a minute (SOAK: five).

    pinger (node-1) ──10 a second──> web (node-2)          the routers of all nodes are killed meanwhile
    phoenix (node-3): its pause container is killed, kubelet gives it a new sandbox: DEL and ADD
"""

import itertools
import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

from kubernetes import pods, processes, product, rollout
from kubernetes.cluster import Cluster, Node, wait_for
from kubernetes.conftest import Pod
from kubernetes.images import ROOT

SOAK = bool(os.environ.get("SOAK"))
AWAY_SECONDS = 300 if SOAK else 60
CONVERGED_SECONDS = 10
PINGS_A_SECOND = 10
PAGE_SECONDS = 30
"""Until the pinger writes, at most: 4 KiB at a time, which are 7 s of pings."""
GAP_SECONDS = 2.5
"""Of traffic, while a router is killed and started again: the promise of a restart."""


def status(node: Node) -> dict[str, Any]:
    """By the socket on the node: without the API server."""
    said = node.run(f"{ROOT}/.venv/bin/weave-router", "status", "--json", check=False).stdout
    found: dict[str, Any] = json.loads(said) if said.startswith("{") else {}
    return found


def attachments(node: Node) -> list[str]:
    return [each["address"] for each in status(node)["ipam"]["attachments"]]


def converged(cluster: Cluster) -> bool:
    found = [status(node).get("kubernetes", {}) for node in cluster.nodes]
    return all(each.get("status") == "ready" and not each["troubles"] for each in found)


def pinged(folder: Path) -> list[int]:
    """Serials of the pings that were answered, as far as they are written."""
    return [int(serial) for serial in re.findall(r"seq=(\d+) ", (folder / "pings").read_text())]


def gaps(seen: list[int]) -> list[int]:
    """Lengths of the runs of lost pings."""
    return [later - earlier - 1 for earlier, later in itertools.pairwise(seen) if later - earlier > 1]


def kill_router(node: Node) -> None:
    """SIGKILL, and wait for the next one to answer."""
    before = processes.router(node)
    os.kill(before, signal.SIGKILL)
    wait_for(f"another router on {node.name}", lambda: processes.router(node) not in (0, before), 15)
    wait_for(f"{node.name}'s router answers", lambda: status(node), 30)


def test_the_api_server_is_away_for_a_minute(cluster: Cluster, serving: dict[str, Pod]) -> None:
    folder = cluster.folder / "away"
    folder.mkdir()
    near, middle, last = cluster.nodes
    target = serving[middle.name].addresses[0]
    pinger = f"exec ping -i {1 / PINGS_A_SECOND} {target} > {folder}/pings"
    phoenix = f"ping -c 1 -W 5 {target} >> {folder}/phoenix 2>&1; exec sleep 1000000"
    made = [pods.pod("pinger", near.name, pinger, restartPolicy="Never", **pods.shared(folder)),
            pods.pod("phoenix", last.name, phoenix, **pods.shared(folder))]
    with cluster.objects(*made):
        product.wait_running(cluster, ["pinger", "phoenix"])
        uid = next(pod["metadata"]["uid"] for pod in cluster.get("pods") if pod["metadata"]["name"] == "phoenix")
        held = attachments(last)
        with cluster.without_api():
            began = time.monotonic()
            wait_for("the routers see it", lambda: not any(
                status(node)["kubernetes"]["status"] == "ready" for node in cluster.nodes), 30)
            for node in cluster.nodes:
                kill_router(node)
            os.kill(processes.pause(last, uid), signal.SIGKILL)
            wait_for("the new sandbox's ping", lambda: (folder / "phoenix").read_text().count("transmitted") == 2, 60)
            wait_for("the old sandbox's DEL", lambda: len(attachments(last)) == len(held), 30)
            wait_for("the end of it", lambda: time.monotonic() - began >= AWAY_SECONDS, AWAY_SECONDS)
            came = len(pinged(folder))
            wait_for("pings at the end", lambda: len(pinged(folder)) > came, PAGE_SECONDS)
        began = time.monotonic()
        wait_for("the routers have converged", lambda: converged(cluster), CONVERGED_SECONDS)
        print(f"converged {time.monotonic() - began:.1f} s after the API server was back")
        assert "100% packet loss" not in (folder / "phoenix").read_text()
        lost = gaps(pinged(folder))
        print(f"pings lost in a row: {lost or 'none'}, of {pinged(folder)[-1]}")
        # Two of the three routers are on the way, and each of them was killed once.
        assert len(lost) <= 2 and all(run <= GAP_SECONDS * PINGS_A_SECOND for run in lost)
    wait_recovered(cluster)


def wait_recovered(cluster: Cluster) -> None:
    """Not of the product: what else was a client of the API server, until pods start again wherever they are sent."""
    heard = {node.name: rollout.heartbeat(cluster, node) for node in cluster.nodes}
    cluster.renew_clients()
    wait_for("every kubelet's word", lambda: all(
        rollout.heartbeat(cluster, node) != heard[node.name] for node in cluster.nodes), 60)
    product.wait_ready(cluster)
    made = [pods.pod("again"), *(pods.pod(f"again-{node.name}", node.name) for node in cluster.nodes)]
    with cluster.objects(*made):
        product.wait_running(cluster, [item["metadata"]["name"] for item in made])
