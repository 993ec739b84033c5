"""Both CPUs work at nothing else for two minutes: kubelet's probes hold."""

import os
import subprocess
from pathlib import Path

from kubernetes import pods, product
from kubernetes.cluster import Cluster, wait_for
from kubernetes.rollout import router_pods

SATURATED_SECONDS = 120
"""That each CPU works; not less in the short form: liveness is given up after 6 failures, 10 s apart."""
IDLE_SHARE = 0.05
"""Of the CPUs' time, at most, meanwhile."""


def probed(cluster: Cluster) -> dict[str, tuple[str, int, str]]:
    """Node -> its router pod, restarts of it, and since when it is Ready."""
    found = {}
    for name, pod in router_pods(cluster).items():
        (container,) = pod["status"]["containerStatuses"]
        (since,) = (c["lastTransitionTime"] for c in pod["status"]["conditions"]
                    if c["type"] == "Ready" and c["status"] == "True")
        found[name] = (pod["metadata"]["uid"], container["restartCount"], since)
    return found


def test_probes_hold_while_both_cpus_are_saturated(cluster: Cluster) -> None:
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
