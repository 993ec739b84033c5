"""One cluster for the whole room, with the product applied to it and one pod per node.

By their names, modules that measure (test_y_*) run when the room beside this one has ended (.ci/rooms), and those in
which nodes do not stay (test_z_*) at the end.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from kubernetes import pods, product
from kubernetes.cluster import Cluster, Node
from kubernetes.images import ROOT

LOGS = ROOT / "build" / "test-results" / "kubernetes-log"
"""Of the control plane and the nodes' programs, of the last run."""
TEST_SECONDS = 480
"""Where a module says nothing else. The first test of a session boots the cluster, some run many pods; each wait in
them has a shorter end of its own."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "kubernetes" in item.path.parts and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TEST_SECONDS))


def progress(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """Prints a line in spite of pytest's capture."""
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")

    def say(line: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"   {line}", flush=True)

    return say


@dataclass
class Installed:
    """A cluster with the product, and what its first minute showed."""

    cluster: Cluster
    seconds: float
    """From `kubectl apply` to all Nodes Ready and the DaemonSet rolled out."""


@pytest.fixture(scope="session")
def installed(pytestconfig: pytest.Config) -> Iterator[Installed]:
    say = progress(pytestconfig)
    with Cluster(say=say) as cluster:
        cluster.boot()
        seconds = product.install(cluster)
        say(f"applied and rolled out ({seconds:.1f} s)")
        try:
            yield Installed(cluster, seconds)
        finally:
            shutil.copytree(cluster.folder / "log", LOGS, dirs_exist_ok=True)


@pytest.fixture(scope="session")
def cluster(installed: Installed) -> Cluster:
    return installed.cluster


@pytest.fixture(scope="session")
def serving(cluster: Cluster) -> dict[str, "Pod"]:
    """One pod per node that answers HTTP with its name; by the node's name."""
    made = {node.name: f"web-{node.name}" for node in cluster.nodes}
    cluster.apply(*(pods.pod(name, node, pods.SERVE, {"app": "web"}) for node, name in made.items()))
    product.wait_running(cluster, made.values())
    return {node.name: Pod(cluster, node, made[node.name]) for node in cluster.nodes}


class Pod:
    """A running pod, its addresses, and commands in it."""

    def __init__(self, cluster: Cluster, node: Node, name: str) -> None:
        self.cluster, self.node, self.name = cluster, node, name
        found = next(pod for pod in cluster.get("pods") if pod["metadata"]["name"] == name)
        self.addresses = [entry["ip"] for entry in found["status"]["podIPs"]]

    def run(self, *command: str, check: bool = True) -> str:
        return self.cluster.kubectl("exec", self.name, "--", *command, check=check).stdout
