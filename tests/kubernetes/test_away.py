"""What is there goes on while something is missing: the API server for a minute (SOAK: five), or the CPUs.

    pinger (node-1) ──10 a second──> web (node-2)          the routers of all nodes are killed meanwhile
    phoenix (node-3): its pause container is killed, kubelet gives it a new sandbox: DEL and ADD
"""

import itertools
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from kubernetes import pods, processes, product
from kubernetes.cluster import Cluster, Node, wait_for
from kubernetes.conftest import Pod
from kubernetes.images import ROOT
from kubernetes.test_life import router_pods

SOAK = bool(os.environ.get("SOAK"))
AWAY_SECONDS = 300 if SOAK else 60
SATURATED_SECONDS = 120
"""That each CPU works; not less in the short form: liveness is given up after 6 failures, 10 s apart."""
IDLE_SHARE = 0.05
"""Of the CPUs' time, at most, meanwhile."""
PINGED_SECONDS = AWAY_SECONDS + 30
"""From the pod's start: the API server goes away once the pod is known to run."""
CONVERGED_SECONDS = 10
PINGS_A_SECOND = 10
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


def gaps(text: str) -> list[int]:
    """Lengths of the runs of lost pings."""
    seen = [int(serial) for serial in re.findall(r"seq=(\d+)", text)]
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
    pinger = f"ping -i {1 / PINGS_A_SECOND} -w {PINGED_SECONDS} {target} > {folder}/pings; exec sleep 1000000"
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
            wait_for("the last ping", lambda: "transmitted" in (folder / "pings").read_text(), PINGED_SECONDS)
            assert time.monotonic() - began >= AWAY_SECONDS
        began = time.monotonic()
        wait_for("the routers have converged", lambda: converged(cluster), CONVERGED_SECONDS)
        print(f"converged {time.monotonic() - began:.1f} s after the API server was back")
        assert "100% packet loss" not in (folder / "phoenix").read_text()
        lost = gaps((folder / "pings").read_text())
        print(f"pings lost in a row: {lost or 'none'}, of {PINGED_SECONDS * PINGS_A_SECOND}")
        # Two of the three routers are on the way, and each of them was killed once.
        assert len(lost) <= 2 and all(run <= GAP_SECONDS * PINGS_A_SECOND for run in lost)
    wait_recovered(cluster)


def wait_recovered(cluster: Cluster) -> None:
    """kubelet's own watches wait up to a minute: that of its Node, beside whose Unknown it posts heartbeats until then,
    and that of its pods, none of which it starts."""
    product.wait_ready(cluster, 120)
    made = [pods.pod(f"again-{node.name}", node.name) for node in cluster.nodes]
    with cluster.objects(*made):
        product.wait_running(cluster, [item["metadata"]["name"] for item in made], 120)


def probed(cluster: Cluster) -> dict[str, tuple[str, int, str]]:
    """Node -> its router pod, restarts of it, and since when it is Ready."""
    found = {}
    for name, pod in router_pods(cluster).items():
        (container,) = pod["status"]["containerStatuses"]
        (since,) = (c["lastTransitionTime"] for c in pod["status"]["conditions"]
                    if c["type"] == "Ready" and c["status"] == "True")
        found[name] = (pod["metadata"]["uid"], container["restartCount"], since)
    return found


def test_probes_hold_while_both_cpus_are_saturated(cluster: Cluster, serving: dict[str, Pod]) -> None:
    """Four busy loops on the machine and four in a pod of each node, for two CPUs, as long as a file is there."""
    flag = cluster.folder / "busy" / "flag"
    flag.parent.mkdir()
    loop = f"while [ -e {flag} ]; do :; done"
    four = " & ".join([f"({loop})"] * 3 + [loop])
    waiting = f"while :; do until [ -e {flag} ]; do sleep 0.1; done; {four}; done"
    made = [pods.pod(f"busy-{node.name}", node.name, waiting, **pods.shared(flag.parent)) for node in cluster.nodes]
    with cluster.objects(*made):
        product.wait_running(cluster, [item["metadata"]["name"] for item in made])
        before, worked = probed(cluster), worked_seconds()
        flag.touch()
        try:
            busy = [subprocess.Popen(["sh", "-c", loop], start_new_session=True) for _ in range(4)]
            wait_for("two minutes of work by each CPU", lambda: worked_seconds() - worked >= SATURATED_SECONDS,
                     SATURATED_SECONDS / (1 - IDLE_SHARE))
        finally:
            flag.unlink()
        for each in busy:
            each.wait(10)
        assert probed(cluster) == before


def worked_seconds() -> float:
    """Of the mean CPU, since the machine started."""
    up, idle = map(float, Path("/proc/uptime").read_text().split())
    return up - idle / (os.cpu_count() or 1)
