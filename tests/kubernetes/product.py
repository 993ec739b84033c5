"""The product in a cluster: the manifest as it stands, applied, and waited for. Called by conftest.py and demo.py."""

import json
import time
from collections.abc import Iterable
from typing import Any

from kubernetes import commands
from kubernetes.cluster import Cluster, ClusterError, wait_for
from kubernetes.images import ROOT

MANIFEST = ROOT / "deploy" / "weave-router.yaml"


def install(cluster: Cluster) -> float:
    """Seconds from `kubectl apply` to every Node Ready and the DaemonSet rolled out."""
    began = time.monotonic()
    cluster.kubectl("apply", "-f", str(MANIFEST))
    wait_installed(cluster)
    took = time.monotonic() - began
    wait_for("ServiceAccount default", lambda: cluster.get("serviceaccounts"), 30)
    return took


def wait_installed(cluster: Cluster) -> None:
    """The DaemonSet rolled out and every Node Ready."""
    cluster.kubectl("-n", "kube-system", "rollout", "status", "ds/weave-router", "--timeout=120s", timeout=130)
    wait_ready(cluster)


def wait_ready(cluster: Cluster, seconds: float = 60) -> None:
    """ClusterError with what the Nodes say that are not Ready."""
    try:
        wait_for("Nodes Ready", lambda: all_ready(cluster), seconds)
    except ClusterError as error:
        said = [f"{node['metadata']['name']}: {condition}" for node in cluster.get("nodes")
                for condition in node["status"]["conditions"]
                if condition["type"] == "Ready" and condition["status"] != "True"]
        raise ClusterError(f"{error}; {'; '.join(said)}") from None


def all_ready(cluster: Cluster) -> bool:
    nodes = cluster.get("nodes")
    ready = [c["status"] for node in nodes for c in node["status"]["conditions"] if c["type"] == "Ready"]
    return bool(ready) and all(status == "True" for status in ready)


def running(cluster: Cluster) -> set[str]:
    """Names of the pods whose containers run and are ready."""
    return {
        pod["metadata"]["name"] for pod in cluster.get("pods")
        if all(status["ready"] for status in pod["status"].get("containerStatuses", [{"ready": False}]))
    }  # fmt: skip


def wait_running(cluster: Cluster, names: Iterable[str], seconds: float = 60) -> None:
    wanted = set(names)
    wait_for(f"pods {' '.join(sorted(wanted)[:5])}", lambda: wanted <= running(cluster), seconds)


def wait_ended(cluster: Cluster, names: Iterable[str], seconds: float = 90) -> dict[str, str]:
    """Name -> Succeeded or Failed, when all have ended."""
    wanted = set(names)

    def ended() -> dict[str, str]:
        phases = {pod["metadata"]["name"]: pod["status"]["phase"] for pod in cluster.get("pods")}
        found = {name: phases[name] for name in wanted & phases.keys() if phases[name] in ("Succeeded", "Failed")}
        return found if len(found) == len(wanted) else {}

    result: dict[str, str] = wait_for(f"the end of {len(wanted)} pods", ended, seconds)
    return result


def documents(text: str) -> list[dict[str, Any]]:
    """The objects that kubectl printed as JSON, one after another or as a list."""
    decoder, found, at = json.JSONDecoder(), [], 0
    while rest := text[at:].lstrip():
        value, end = decoder.raw_decode(rest)
        at = len(text) - len(rest) + end
        found += value["items"] if value["kind"] == "List" else [value]
    return found


def router_on(cluster: Cluster, node: str) -> str:
    """Name of the newest router's pod on a node. ClusterError where there is none."""
    found = [pod for pod in cluster.get("pods", "-n", "kube-system", "-l", "name=weave-router")
             if pod["spec"].get("nodeName") == node]
    if not found:
        raise ClusterError(f"{node} has no router's pod")
    newest: dict[str, Any] = max(found, key=lambda pod: pod["metadata"]["creationTimestamp"])
    return str(newest["metadata"]["name"])


def run_documented(cluster: Cluster, part: str) -> str:
    """The one command of docs/kubernetes.md that contains ``part``, by a shell, as it stands there; what it prints."""
    text = (ROOT / "docs" / "kubernetes.md").read_text()
    (line,) = (line for line in text.splitlines() if line.startswith(("kubectl ", "until ")) and part in line)
    return commands.execute(cluster, line.replace("deploy/weave-router.yaml", str(MANIFEST)))
