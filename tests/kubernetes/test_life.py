"""The cluster at work: commands into pods, a killed router, secrecy on the wire, and the way out."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kubernetes import pods, product
from kubernetes.cluster import Cluster, Node, run, wait_for
from kubernetes.conftest import Pod
from kubernetes.rollout import router_pods
from kubernetes.test_services import bracketed, from_netns

MARKER = "weave-marker-for-the-wire-0123456789"


def test_exec_and_logs(cluster: Cluster, serving: dict[str, Pod]) -> None:
    for pod in serving.values():
        assert pod.run("cat", "/www/name").strip() == pod.name
    with cluster.objects(pods.pod("talker", command="echo said it; exec sleep 1000")):
        product.wait_running(cluster, ["talker"])
        assert cluster.kubectl("logs", "talker").stdout == "said it\n"


def test_port_forward(cluster: Cluster, serving: dict[str, Pod], tmp_path: Path) -> None:
    """To a pod of each containerd; what kubectl says stands in the failure."""
    for node, port in ((cluster.nodes[1], 18081), (cluster.nodes[2], 18082)):
        name, log = serving[node.name].name, tmp_path / node.name
        with open(log, "wb") as output:
            forward = subprocess.Popen(cluster.kubectl_words("port-forward", f"pod/{name}", f"{port}:8080"),
                                       stdout=output, stderr=output, start_new_session=True)
        try:
            wait_for("port-forward listens", lambda log=log: "Forwarding" in log.read_text(), 20)
            answer = from_netns(cluster.nodes[0].netns, "127.0.0.1", port)
            assert answer.strip() == name, log.read_text()
        finally:
            forward.kill()
            forward.wait()


@contextmanager
def wire(node: Node, path: Path, interface: str = "eth0", *filter: str) -> Iterator[None]:
    """What passes an interface of the node, as a file."""
    capture = subprocess.Popen(
        ["ip", "netns", "exec", node.netns, "tcpdump", "-i", interface, "-U", "-n", "-w", str(path),
         "--immediate-mode", *filter],
        stderr=subprocess.PIPE, text=True, start_new_session=True)  # fmt: skip
    assert capture.stderr is not None
    try:
        assert any("listening" in line for line in capture.stderr)  # up to that line: some versions say no more
        yield
        assert capture.poll() is None  # what ended early saw nothing
    finally:
        capture.terminate()
        capture.communicate()


def test_nothing_in_plain_on_the_wire(cluster: Cluster, serving: dict[str, Pod], tmp_path: Path) -> None:
    """From a pod and from its host, to a pod elsewhere and to its ClusterIP."""
    near, far = serving[cluster.nodes[0].name], serving[cluster.nodes[2].name]
    far.run("sh", "-c", f"echo {MARKER} > /www/marker")
    cluster.kubectl("label", "pod", far.name, "marked=yes", "--overwrite")
    with cluster.objects(pods.service("marked", {"marked": "yes"}, ports=[{"port": 8080}])):
        (service,) = (item for item in cluster.get("services") if item["metadata"]["name"] == "marked")
        addresses = (*far.addresses, *service["spec"]["clusterIPs"])
        commands = [pods.fetch("/marker", address, 8080) for address in addresses]
        urls = [f"http://{bracketed(address)}:8080/marker" for address in addresses]
        for command in commands:
            wait_for("the Service", lambda command=command: MARKER in near.run(*command, check=False), 20)
        with wire(cluster.nodes[0], tmp_path / "wire.pcap"):
            for command, url in zip(commands, urls, strict=True):
                assert near.run(*command).strip() == MARKER
                assert from_host(cluster.nodes[0], url).strip() == MARKER
        captured = (tmp_path / "wire.pcap").read_bytes()
        assert len(captured) > 1000
        assert MARKER.encode() not in captured


def from_host(node: Node, url: str) -> str:
    return run("ip", "netns", "exec", node.netns, "curl", "-gsS", "-m", "3", "--noproxy", "*", url).stdout


def test_a_killed_router_is_back_and_its_pods_never_notice(cluster: Cluster, serving: dict[str, Pod]) -> None:
    """SIGKILL of the router inside its container: process 1 starts it again, kubelet sees nothing of it."""
    node = cluster.nodes[1]
    near, far = serving[node.name], serving[cluster.nodes[0].name]
    name = router_pods(cluster)[node.name]["metadata"]["name"]
    words = ("-n", "kube-system", "exec", name, "--")
    before = cluster.kubectl(*words, "cat", "/proc/1/task/1/children").stdout.split()
    cluster.kubectl(*words, "sh", "-c", f"kill -9 {before[0]}")
    wait_for("another router", lambda: cluster.kubectl(
        *words, "cat", "/proc/1/task/1/children", check=False).stdout.split() not in (before, []), 15)
    wait_for("it answers", lambda: cluster.kubectl(*words, "weave-router-cni", "probe", "ready",
                                                   check=False).returncode == 0, 30)
    assert " 0% packet loss" in near.run("ping", "-c", "3", "-i", "0.1", "-W", "2", far.addresses[0])
    with cluster.objects(pods.pod("after", node.name)):
        product.wait_running(cluster, ["after"])
    assert router_pods(cluster)[node.name]["status"]["containerStatuses"][0]["restartCount"] == 0
