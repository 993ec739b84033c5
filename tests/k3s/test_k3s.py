"""k3s's ranges are found and work, and options have their effect. The tests stand in the order in which they run."""

import ipaddress
import itertools
import json
import re
from collections.abc import Iterator

import pytest
from kubernetes import control, pods, product
from kubernetes.cluster import Cluster, wait_for
from kubernetes.conftest import Pod
from kubernetes.test_away import status
from kubernetes.test_services import from_netns, from_pod
from kubernetes.typed import typed
from quality import promises

PODS = ipaddress.ip_network(control.K3S.pods)
SERVICES = ipaddress.ip_network(control.K3S.service_v4)


@pytest.fixture(scope="module")
def serving(cluster: Cluster) -> Iterator[list[Pod]]:
    names = {node.name: f"web-{node.name}" for node in cluster.nodes}
    made = [pods.pod(name, node, pods.SERVE, {"app": "web"}) for node, name in names.items()]
    with cluster.objects(*made, pods.service("web", {"app": "web"})):
        product.wait_running(cluster, names.values())
        yield [Pod(cluster, node, names[node.name]) for node in cluster.nodes]


def test_the_ranges_are_found(cluster: Cluster, serving: list[Pod]) -> None:
    """The Nodes' parts of the pod range say what it is; they do not say which node gives which address."""
    cidrs = [ipaddress.ip_network(node["spec"]["podCIDR"]) for node in cluster.get("nodes")]
    assert all(cidr.subnet_of(PODS) for cidr in cidrs) and len(cidrs) == 2
    (lease,) = (each for each in cluster.get("leases", "-n", "kube-system")
                if each["metadata"]["name"] == "weave-router-universe")
    assert str(PODS) in json.dumps(lease["metadata"]["annotations"])
    assert all(ipaddress.ip_address(pod.addresses[0]) in PODS for pod in serving)


def test_pods_and_services_connect(cluster: Cluster, serving: list[Pod]) -> None:
    (service,) = (item for item in cluster.get("services") if item["metadata"]["name"] == "web")
    address = service["spec"]["clusterIP"]
    assert ipaddress.ip_address(address) in SERVICES
    for node in cluster.nodes:
        wait_for("the Service", lambda node=node: from_netns(node.netns, address, 80), 30)
    for near, far in itertools.product(serving, serving):
        assert from_pod(near, far.addresses[0], 8080).strip() == far.name
    for pod in serving:
        assert from_pod(pod, address, 80).startswith("web-")


def test_an_option_set_before_the_first_start(serving: list[Pod]) -> None:
    """`mtu` in the ConfigMap."""
    for pod in serving:
        assert "mtu 1300" in pod.run("ip", "link", "show", "eth0")


def test_a_variable_set_later(cluster: Cluster, serving: list[Pod]) -> None:
    """WEAVE_ROUTER_LOG_LEVEL."""
    for line in promises.AT_INSTALL[2:4]:
        assert typed(cluster, line).returncode == 0, line
    logs = typed(cluster, "kubectl -n kube-system logs ds/weave-router").stdout
    assert re.search("debug", logs, re.IGNORECASE), logs[-2000:]


def test_the_configmap_is_read_and_variables_come_first(cluster: Cluster, serving: list[Pod]) -> None:
    """WEAVE_ROUTER_TARGETS, and `targets` in the file; WEAVE_ROUTER_MTU for pods that are made from now on."""
    for line in (*promises.AT_INSTALL[4:], promises.AT_INSTALL[3]):
        done = typed(cluster, line)
        assert done.returncode == 0, (line, done.stderr)
    for node in cluster.nodes:
        assert "192.0.2.98" in json.dumps(status(node)["targets"])
    set_env = "kubectl -n kube-system set env ds/weave-router WEAVE_ROUTER_TARGETS=192.0.2.99 " \
              "WEAVE_ROUTER_MTU=1280"
    for line in (set_env, promises.AT_INSTALL[3]):
        assert typed(cluster, line).returncode == 0, line
    for node in cluster.nodes:
        found = json.dumps(status(node)["targets"])
        assert "192.0.2.99" in found and "192.0.2.98" not in found
    with cluster.objects(pods.pod("smaller", cluster.nodes[0].name)):
        product.wait_running(cluster, ["smaller"])
        assert "mtu 1280" in Pod(cluster, cluster.nodes[0], "smaller").run("ip", "link", "show", "eth0")
    assert "mtu 1300" in serving[0].run("ip", "link", "show", "eth0")


def test_z_delete_leaves_pods_their_wiring(cluster: Cluster, serving: list[Pod]) -> None:
    """The last one: without routers a pod still reaches pods of its node, and the list stays for the runtime."""
    near = cluster.nodes[0]
    with cluster.objects(pods.pod("beside", near.name)):
        product.wait_running(cluster, ["beside"])
        beside = Pod(cluster, near, "beside")
        assert typed(cluster, "kubectl delete -f deploy/weave-router.yaml").returncode == 0
        wait_for("no router", lambda: not cluster.get("pods", "-n", "kube-system", "-l", "name=weave-router"), 60)
        assert from_pod(beside, serving[0].addresses[0], 8080).strip() == serving[0].name
        assert "10-weave-router.conflist" in near.run("ls", "/etc/cni/net.d").stdout
    assert "beside" not in {pod["metadata"]["name"] for pod in cluster.get("pods")}
