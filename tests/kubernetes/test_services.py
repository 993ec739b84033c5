"""Services, under kube-proxy in both modes, with and without the cluster's CIDR, IPv4 and IPv6.

    client (pod, node or outside) -> Service -> pod that answers with its own name
"""

import contextlib
import itertools
import re
import subprocess
from collections.abc import Iterator
from functools import partial

import pytest
from kubernetes import pods, product
from kubernetes.cluster import CLUSTER_V4, Cluster, run, wait_for
from kubernetes.conftest import Pod
from kubernetes.keeper import PREFIX

MODES = [(mode, cidr) for mode in ("nftables", "iptables") for cidr in ("", CLUSTER_V4)]
NODE_PORT, LOCAL_PORT, HOST_PORT, OUTSIDE = 30080, 30081, 8089, f"{PREFIX}-switch"


@pytest.fixture(scope="module", params=MODES, ids=lambda mode: f"{mode[0]}-{'cidr' if mode[1] else 'no-cidr'}")
def proxied(request: pytest.FixtureRequest, cluster: Cluster, serving: dict[str, Pod]) -> Iterator[Cluster]:
    """The Services under this mode of kube-proxy."""
    for node in cluster.nodes:
        node.start_proxy(*request.param)
    made = [
        pods.service("web", {"app": "web"}, type="NodePort", ports=[
            {"port": 80, "targetPort": 8080, "nodePort": NODE_PORT}]),
        pods.service("web-local", {"only": "one"}, type="NodePort", externalTrafficPolicy="Local", ports=[
            {"port": 80, "targetPort": 8080, "nodePort": LOCAL_PORT}]),
        pods.pod("one", cluster.nodes[1].name, pods.SERVE, {"only": "one"},
                 container={"ports": [{"containerPort": 8080, "hostPort": HOST_PORT}],
                            "readinessProbe": {"httpGet": {"path": "/name", "port": 8080}, "periodSeconds": 1},
                            "livenessProbe": {"tcpSocket": {"port": 8080}}}),
    ]  # fmt: skip
    with cluster.objects(*made):
        product.wait_running(cluster, ["one"])
        for node, name in itertools.product(cluster.nodes, ("web", "web-local")):
            for address in addresses(cluster, name):
                ask = partial(from_netns, node.netns, address, 80)
                wait_for(f"{node.name}'s rules for {name} at {address}", ask, 30)
        yield cluster


def addresses(cluster: Cluster, name: str) -> list[str]:
    (found,) = (item for item in cluster.get("services") if item["metadata"]["name"] == name)
    return list(found["spec"]["clusterIPs"])


def bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def from_netns(netns: str, address: str, port: int) -> str:
    """The name that answers; empty when nobody does."""
    url = f"http://{bracketed(address)}:{port}/name"
    return run("ip", "netns", "exec", netns, "curl", "-gsS", "-m", "3", "--noproxy", "*", url, check=False).stdout


@contextlib.contextmanager
def connected(netns: str, address: str, port: int) -> Iterator[None]:
    """A connection that stays: of one that ends, only the side that closed first still knows."""
    words = f"exec 3<>/dev/tcp/{address}/{port} && echo open && read -r"
    child = subprocess.Popen(["ip", "netns", "exec", netns, "bash", "-c", words], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True, start_new_session=True)  # fmt: skip
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "open\n"
        yield
    finally:
        child.kill()
        child.communicate()


def from_pod(pod: Pod, address: str, port: int) -> str:
    return pod.run(*pods.fetch("/name", address, port), check=False)


def test_cluster_ip_from_every_pod(proxied: Cluster, serving: dict[str, Pod]) -> None:
    """Twelve calls each: the Service has three pods, the caller's own among them."""
    for address in addresses(proxied, "web"):
        for pod in serving.values():
            answers = [from_pod(pod, address, 80).strip() for _ in range(4)]
            assert set(answers) <= {other.name for other in serving.values()}, (address, pod.name, answers)


def test_cluster_ip_from_every_node(proxied: Cluster) -> None:
    for address in addresses(proxied, "web"):
        for node in proxied.nodes:
            answers = [from_netns(node.netns, address, 80) for _ in range(4)]
            assert all(answer.startswith("web-") for answer in answers), (address, node.name, answers)


def test_a_pod_reaches_itself_through_its_service(proxied: Cluster) -> None:
    one = Pod(proxied, proxied.nodes[1], "one")
    for address in addresses(proxied, "web-local"):
        assert from_pod(one, address, 80).strip() == "one"


def test_node_port_from_outside_and_from_pods(proxied: Cluster, serving: dict[str, Pod]) -> None:
    for node in proxied.nodes:
        for address in (node.v4, node.v6):
            assert from_netns(OUTSIDE, address, NODE_PORT).startswith("web-"), (node.name, address)
            for pod in serving.values():
                assert from_pod(pod, address, NODE_PORT).startswith("web-"), (node.name, address, pod.name)


def test_local_policy_keeps_the_clients_address(proxied: Cluster) -> None:
    """The pod sees the outside host itself, not a node."""
    one = Pod(proxied, proxied.nodes[1], "one")
    for address, client in ((proxied.nodes[1].v4, "192.168.77.1"), (proxied.nodes[1].v6, "fd77::1")):
        ask = partial(from_netns, OUTSIDE, address, LOCAL_PORT)
        assert ask().strip() == "one"
        with connected(OUTSIDE, address, LOCAL_PORT):
            seen = one.run("netstat", "-tn")
            assert re.search(rf"{re.escape(client)}:\d+\s+ESTABLISHED", seen), seen
    assert from_netns(OUTSIDE, proxied.nodes[0].v4, LOCAL_PORT) == ""


def test_host_port(proxied: Cluster, serving: dict[str, Pod]) -> None:
    address = proxied.nodes[1].v4
    assert from_netns(OUTSIDE, address, HOST_PORT).strip() == "one"
    assert {from_pod(pod, address, HOST_PORT).strip() for pod in serving.values()} == {"one"}


def test_host_to_pod(proxied: Cluster, serving: dict[str, Pod]) -> None:
    for node in proxied.nodes:
        for pod in serving.values():
            for address in pod.addresses:
                assert from_netns(node.netns, address, 8080).strip() == pod.name, (node.name, pod.name, address)


def test_probes_hold(proxied: Cluster) -> None:
    (one,) = (pod for pod in proxied.get("pods") if pod["metadata"]["name"] == "one")
    (status,) = one["status"]["containerStatuses"]
    assert status["ready"] and status["restartCount"] == 0
