"""The commands of docs/kubernetes.md, as they stand there, on a healthy cluster: what they print is what it says."""

import re

import pytest
from kubernetes import pods, product, reference
from kubernetes.cluster import Cluster, wait_for
from kubernetes.conftest import Pod
from kubernetes.rollout import router_pod
from kubernetes.test_away import wait_recovered
from kubernetes.typed import typed
from quality import promises


@pytest.fixture(scope="module")
def busybox(cluster: Cluster, serving: dict[str, Pod]) -> object:
    with cluster.objects(pods.pod("busybox")):
        product.wait_running(cluster, ["busybox"])
        yield


@pytest.mark.parametrize("line", promises.ON_CLUSTER)
def test_on_the_cluster(cluster: Cluster, busybox: object, line: str) -> None:
    done = typed(cluster, line)
    assert done.returncode == 0, done.stderr
    assert re.search(promises.ON_CLUSTER[line], done.stdout, re.MULTILINE), done.stdout


@pytest.mark.parametrize("line", promises.ON_NODE)
def test_on_a_node(cluster: Cluster, line: str) -> None:
    done = cluster.nodes[0].run("sh", "-c", line)
    assert re.search(promises.ON_NODE[line], done.stdout, re.MULTILINE), done.stdout


def test_symptom_another_networks_file_comes_first(cluster: Cluster, serving: dict[str, Pod]) -> None:
    """Pods get its addresses; `ls` shows it before ours; with it gone, they get ours again."""
    def address(name: str) -> str:
        with cluster.objects(pods.pod(name, cluster.nodes[0].name)):
            product.wait_running(cluster, [name])
            return Pod(cluster, cluster.nodes[0], name).addresses[0]
    try:
        reference.install(cluster)
        assert address("stray").startswith("10.244.")
        assert cluster.nodes[0].run("ls", "/etc/cni/net.d").stdout.split()[:2] == [
            reference.NAME, "10-weave-router.conflist"]
    finally:
        reference.clear(cluster)
    assert not address("found").startswith("10.244.")


def test_symptom_udp_is_blocked(cluster: Cluster, serving: dict[str, Pod]) -> None:
    """From the second node to the first, while pods of both talk: status names a reason, and then it heals."""
    near, far = cluster.nodes[:2]
    rules = f"add table inet blocked; add chain inet blocked in {{ type filter hook input priority 0; }}; " \
            f"add rule inet blocked in ip saddr {far.v4} udp dport 6783 drop; " \
            f"add rule inet blocked in ip6 saddr {far.v6} udp dport 6783 drop"
    line = f"kubectl -n kube-system exec {router_pod(cluster, near)} -- weave-router status connections"
    cluster.nodes[0].run("nft", rules)
    reason = re.compile(r"no-proof|path-silent|path-lost|unreachable")
    packet = ("ping", "-c", "1", "-W", "1", serving[far.name].addresses[0])

    def said() -> bool:
        serving[near.name].run(*packet, check=False)
        return bool(reason.search(typed(cluster, line).stdout))
    try:
        wait_for("a reason in status connections", said, 60, 0)
    finally:
        cluster.nodes[0].run("nft", "delete table inet blocked")
    wait_for("all is established again", lambda: not said(), 60, 0)
    serving[near.name].run(*packet)


def test_symptom_the_rights_are_gone(cluster: Cluster, serving: dict[str, Pod]) -> None:
    """The Role without `watch` on Leases: Trouble says forbidden; the manifest brings it back."""
    status = "kubectl -n kube-system exec ds/weave-router -- weave-router status"
    assert typed(cluster, "kubectl -n kube-system delete rolebinding weave-router").returncode == 0
    try:
        with cluster.without_api():  # watches under way are not asked for their rights again
            pass
        wait_for("Trouble", lambda: "forbidden: compare the Role" in typed(cluster, status).stdout, 60, 1)
    finally:
        assert typed(cluster, "kubectl apply -f deploy/weave-router.yaml").returncode == 0
    wait_for("no Trouble", lambda: re.search(r"Trouble: none", typed(cluster, status).stdout), 60, 1)
    wait_recovered(cluster)
