"""The way out: the documented commands, with pods still running, until nothing of ours is left; then in again.

Named so that it runs last: it takes away what the others use, and leaves the cluster installed anew.
"""

import os
import time

from kubernetes import pods, product
from kubernetes.cluster import Cluster, ClusterError, Node, wait_for
from kubernetes.conftest import Installed

PODS = 20 if os.environ.get("SOAK") else 5
"""On each node."""
OTHER = "/etc/cni/net.d/05-other.conflist"


def left_on(node: Node) -> list[str]:
    """Links, rules and files of ours, as the node has them."""
    links = [line.split(":")[1].strip() for line in node.run("ip", "-o", "link").stdout.splitlines()]
    found = [name for name in links if name.startswith(("weave", "vethwr"))]
    found += [line for line in node.run("nft", "list", "ruleset").stdout.splitlines() if "weave" in line]
    places = "/etc/cni/net.d /opt/cni/bin /var/lib/weave-router /run/weave-router"
    listed = node.run("sh", "-c", f"find {places} -type f -o -type s").stdout.splitlines()
    return found + [path for path in listed if "weave" in path]


def sandboxes(node: Node) -> list[str]:
    """Of pods with a network of their own; the host's stay."""
    return [line for line in node.run("ctr", "-n", "k8s.io", "containers", "list").stdout.splitlines()
            if "/many-" in line or "pause" in line]


def test_another_network_before_ours_is_named(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    words = ("-n", "kube-system", "exec", product.router_on(cluster, node.name), "--", "weave-router")
    node.run("sh", "-c", f"echo '{{}}' > {OTHER}.new && mv {OTHER}.new {OTHER}")
    try:
        assert f"{OTHER} sorts before" in cluster.kubectl(*words, "status", "warnings").stdout
        done = cluster.kubectl(*words, "doctor", check=False)
        assert done.returncode == 1 and f"{OTHER} sorts before" in done.stdout
    finally:
        node.run("rm", OTHER)
    assert "sorts before" not in cluster.kubectl(*words, "status", "warnings").stdout


def test_applied_over_what_a_deleted_manifest_left(cluster: Cluster) -> None:
    """Without the uninstall: pods keep their wiring, and the next install goes on with all of it."""
    names = [f"kept-{node.name}" for node in cluster.nodes]
    with cluster.objects(*(pods.pod(name, node.name) for name, node in zip(names, cluster.nodes, strict=True))):
        product.wait_running(cluster, names)
        found = {pod["metadata"]["name"]: pod["status"]["podIP"] for pod in cluster.get("pods")}
        cluster.kubectl("delete", "--wait", "-f", str(product.MANIFEST))
        product.install(cluster)
        for near in names:
            for far in names:
                said = cluster.kubectl("exec", near, "--", "ping", "-c", "2", "-i", "0.1", "-W", "5", found[far]).stdout
                assert " 0% packet loss" in said


def test_uninstalled_with_pods_still_running(installed: Installed) -> None:
    cluster = installed.cluster
    cluster.kubectl("delete", "pods", "--all", "--wait", "--grace-period=0", "--force")
    names = [f"many-{node.name}-{n}" for node in cluster.nodes for n in range(PODS)]
    cluster.apply(*(pods.pod(name, name.rpartition("-")[0].removeprefix("many-")) for name in names))
    product.wait_running(cluster, names, 180)
    addresses = {pod["metadata"]["name"]: pod["status"]["podIP"] for pod in cluster.get("pods")}
    product.run_documented(cluster, "WEAVE_ROUTER_UNINSTALL=1")
    for node in cluster.nodes:
        first = f"default/many-{node.name}-0"
        wait_for(f"{node.name} names its pods", lambda node=node, first=first: first in said(cluster, node), 90)
    near, far = f"many-{cluster.nodes[0].name}-0", f"many-{cluster.nodes[2].name}-0"
    ping = ("ping", "-c", "3", "-i", "0.1", "-W", "5", addresses[far])
    assert " 0% packet loss" in cluster.kubectl("exec", near, "--", *ping).stdout
    cluster.apply(pods.pod("late", cluster.nodes[1].name))
    wait_for("the late one is told", lambda: "is being uninstalled" in cluster.kubectl("describe", "pod", "late").stdout
             or "uninstall waits" in cluster.kubectl("describe", "pod", "late").stdout, 60)
    began = time.monotonic()
    cluster.kubectl("delete", "pods", "--all", "--wait=true", "--timeout=150s", timeout=160)  # none hangs Terminating
    print(f"{len(names) + 1} pods were gone {time.monotonic() - began:.1f} s after")
    product.run_documented(cluster, "until !")
    print(f"every node was cleared {time.monotonic() - began:.1f} s after")
    for node in cluster.nodes:
        assert [line for line in left_on(node) if "attach.sock" not in line and ".lock" not in line] == []
    product.run_documented(cluster, "delete -f")
    wait_for("no router runs", lambda: not cluster.get("pods", "-n", "kube-system", "-l", "name=weave-router"), 60)
    assert {node.name: left_on(node) for node in cluster.nodes} == {node.name: [] for node in cluster.nodes}
    leases = cluster.get("leases", "-n", "kube-system", "-l", "app.kubernetes.io/name=weave-router")
    assert len(leases) > 3 and not any(lease["spec"].get("holderIdentity") for lease in leases)
    product.run_documented(cluster, "delete secret,lease")
    everything = [*cluster.get("leases", "-A"), *cluster.get("secrets", "-A"), *cluster.get("clusterroles"),
                  *cluster.get("clusterrolebindings"), *cluster.get("roles", "-A"), *cluster.get("rolebindings", "-A")]
    assert [item["metadata"]["name"] for item in everything if "weave" in item["metadata"]["name"]] == []
    for node in cluster.nodes:
        wait_for(f"{node.name} has no sandbox left", lambda node=node: not sandboxes(node), 90)


def said(cluster: Cluster, node: Node) -> str:
    try:
        return cluster.kubectl("-n", "kube-system", "exec", product.router_on(cluster, node.name), "--", "weave-router",
                               "status", "warnings", check=False).stdout
    except ClusterError:  # between the old pod and the new one
        return ""


def test_installed_again(cluster: Cluster) -> None:
    product.install(cluster)
    names = [f"again-{node.name}" for node in cluster.nodes]
    with cluster.objects(*(pods.pod(name, node.name) for name, node in zip(names, cluster.nodes, strict=True))):
        product.wait_running(cluster, names)
        found = {pod["metadata"]["name"]: pod["status"]["podIP"] for pod in cluster.get("pods")}
        for far in names:
            assert " 0% packet loss" in cluster.kubectl(
                "exec", names[0], "--", "ping", "-c", "2", "-i", "0.1", "-W", "5", found[far]).stdout
