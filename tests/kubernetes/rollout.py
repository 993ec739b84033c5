"""What is done to the product's routers: killed, deleted, rolled out, undone; and what the cluster says of it.

Called by the tests of the cluster's life.
"""

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from kubernetes import commands, images, pods, product
from kubernetes.cluster import Cluster, Node, wait_for

SYSTEM: Final = ("-n", "kube-system")
WAIT_SECONDS: Final = 180


def router_pods(cluster: Cluster) -> dict[str, dict[str, Any]]:
    """Those that are not being deleted, by the names of the nodes that they were given."""
    found = cluster.get("pods", *SYSTEM, "-l", "name=weave-router")
    kept = [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]
    return {pod["spec"]["nodeName"]: pod for pod in kept if "nodeName" in pod["spec"]}


def router_pod(cluster: Cluster, node: Node) -> str:
    return str(router_pods(cluster)[node.name]["metadata"]["name"])


def inside(cluster: Cluster, node: Node, *command: str, check: bool = True) -> str:
    """A command in the node's router pod."""
    return cluster.kubectl(*SYSTEM, "exec", router_pod(cluster, node), "--", *command, check=check).stdout


def kill(cluster: Cluster, node: Node) -> None:
    """SIGKILL of the router; returns when another one serves."""
    children = "/proc/1/task/1/children"
    before = inside(cluster, node, "sh", "-c", f"read pid _ < {children}; kill -9 $pid; echo $pid").split()

    def another() -> bool:
        return inside(cluster, node, "cat", children, check=False).split() not in (before, [])

    wait_for("another router", another, 20)
    wait_ready(cluster, node)


def wait_ready(cluster: Cluster, node: Node) -> None:
    words = (*SYSTEM, "exec", router_pod(cluster, node), "--", "weave-router-cni", "probe", "ready")
    wait_for(f"{node.name} serves", lambda: cluster.kubectl(*words, check=False).returncode == 0, 40)


def delete(cluster: Cluster, node: Node) -> None:
    """The router's pod; returns when its successor serves."""
    before = router_pod(cluster, node)
    cluster.kubectl(*SYSTEM, "delete", "pod", before, "--wait=false")
    wait_for("its successor", lambda: is_ready(router_pods(cluster).get(node.name), before), 60)


def forget_router(cluster: Cluster, node: Node) -> None:
    """Of a machine that is off: its pod's object."""
    where = ("-l", "name=weave-router", "--field-selector", f"spec.nodeName={node.name}")
    for pod in cluster.get("pods", *SYSTEM, *where):
        cluster.kubectl(*SYSTEM, "delete", "pod", pod["metadata"]["name"], "--force", "--grace-period=0")


def is_ready(pod: dict[str, Any] | None, but_not: str = "") -> bool:
    return pod is not None and pod["metadata"]["name"] != but_not and all(
        status["ready"] for status in pod["status"].get("containerStatuses", [{"ready": False}]))


def container(pod: dict[str, Any] | None) -> str:
    """Id of the router's container; empty while there is none."""
    statuses = pod["status"].get("containerStatuses", []) if pod else []
    return str(statuses[0].get("containerID", "")) if statuses else ""


def wait_rolled_out(cluster: Cluster) -> None:
    cluster.kubectl(*SYSTEM, "rollout", "status", "ds/weave-router", f"--timeout={WAIT_SECONDS}s",
                    timeout=WAIT_SECONDS + 10)


def restart(cluster: Cluster) -> None:
    cluster.kubectl(*SYSTEM, "rollout", "restart", "ds/weave-router")
    wait_rolled_out(cluster)


def undo(cluster: Cluster) -> None:
    """As docs/operations.md says."""
    commands.execute(cluster, commands.block("Roll back"))


def set_env(cluster: Cluster, *settings: str) -> None:
    """``NAME=value``, or ``NAME-`` to remove it."""
    cluster.kubectl(*SYSTEM, "set", "env", "ds/weave-router", *settings)
    wait_rolled_out(cluster)


def change_image(cluster: Cluster, tag: str, late: float) -> None:
    """As docs/operations.md says; the nodes get the new image only ``late`` seconds after the DaemonSet names it."""
    name = f"docker.io/library/weave-router:{tag}"
    archive = images.router_as(cluster.folder, name)
    with ThreadPoolExecutor(1) as thread:
        upgrade = thread.submit(commands.execute, cluster, commands.block("Upgrade"), IMAGE=name)
        arrives = time.monotonic() + late
        wait_for("the image's arrival", lambda: time.monotonic() >= arrives, late + 5)
        for node in cluster.nodes:
            node.run("ctr", "-n", "k8s.io", "images", "import", str(archive))
        archive.unlink()
        upgrade.result()


@contextlib.contextmanager
def pulled(cluster: Cluster) -> Iterator[list[Path]]:
    """Archives of the image that the DaemonSet names now, where that is not the one that every node boots with."""
    (daemon_set,) = cluster.get("ds", *SYSTEM, "-l", "name=weave-router")
    (only,) = daemon_set["spec"]["template"]["spec"]["containers"]
    found = [] if only["image"] == images.router_name() else [images.router_as(cluster.folder, only["image"])]
    try:
        yield found
    finally:
        for archive in found:
            archive.unlink()


class Watch:
    """What must not happen meanwhile: a Node that leaves Ready, a sandbox that cannot be made."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._ready = ready_since(cluster)
        self._failed = self._failures()

    def _failures(self) -> set[str]:
        events = self.cluster.get("events", "-A", "--field-selector", "reason=FailedCreatePodSandBox")
        return {f"{event['involvedObject']['name']}: {event['message']}" for event in events}

    def check(self) -> None:
        assert ready_since(self.cluster) == self._ready
        assert self._failures() - self._failed == set()


def heartbeat(cluster: Cluster, node: Node) -> str:
    """When its kubelet spoke last of the Node; empty where there is no Node."""
    return next((found["lastHeartbeatTime"] for each in cluster.get("nodes") if each["metadata"]["name"] == node.name
                 for found in each["status"]["conditions"] if found["type"] == "Ready"), "")


def ready_since(cluster: Cluster) -> dict[str, str]:
    """Since when each Node has been Ready; the time is of the last change."""
    return {node["metadata"]["name"]: f"{found['status']} {found['lastTransitionTime']}"
            for node in cluster.get("nodes") for found in node["status"]["conditions"] if found["type"] == "Ready"}


def start_pod(cluster: Cluster, node: Node, name: str) -> float:
    """Seconds until it ran; it is deleted again."""
    began = time.monotonic()
    with cluster.objects(pods.pod(name, node.name)):
        product.wait_running(cluster, [name])
        return time.monotonic() - began
