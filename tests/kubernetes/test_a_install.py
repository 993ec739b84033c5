"""One `kubectl apply`: six objects, every Node Ready, a peer on every node, and the mission's own commands.

Named so that it runs first: what it times is the first minute of the cluster, and what it reads is the manifest.
"""

import json
from typing import Any

from kubernetes import pods, product
from kubernetes.cluster import Cluster
from kubernetes.conftest import Installed, Pod

BAR_SECONDS = 20
SIX = ["ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "DaemonSet"]


def manifest(cluster: Cluster) -> list[dict[str, Any]]:
    text = cluster.kubectl("create", "--dry-run=client", "-f", str(product.MANIFEST), "-o", "json").stdout
    return product.documents(text)


def test_rolled_out_in_time(installed: Installed) -> None:
    print(f"applied and rolled out in {installed.seconds:.1f} s")
    assert installed.seconds <= BAR_SECONDS


def test_six_objects(cluster: Cluster) -> None:
    found = manifest(cluster)
    assert [item["kind"] for item in found] == SIX
    assert {item["metadata"]["name"] for item in found} == {"weave-router"}


def test_the_pod_asks_for_little(cluster: Cluster) -> None:
    spec = manifest(cluster)[-1]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    rights = container["securityContext"]
    assert rights["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW", "SYS_NICE", "DAC_OVERRIDE"]}
    assert not rights["privileged"] and not rights["allowPrivilegeEscalation"] and rights["readOnlyRootFilesystem"]
    assert "ports" not in container and "hostPID" not in spec and "initContainers" not in spec
    assert all("mountPropagation" not in mount for mount in container["volumeMounts"])


def test_no_rule_is_a_wildcard(cluster: Cluster) -> None:
    rules = [rule for item in manifest(cluster) for rule in item.get("rules", [])]
    assert rules
    assert "*" not in json.dumps(rules)


def test_a_peer_on_every_node(cluster: Cluster) -> None:
    said = cluster.kubectl("get", "pods", "-n", "kube-system", "-l", "name=weave-router", "-o", "wide").stdout
    for node in cluster.nodes:
        (line,) = (line for line in said.splitlines() if f" {node.name} " in line)
        assert " 1/1 " in line and " Running " in line, said


def test_the_pods_default_route(cluster: Cluster, serving: dict[str, Pod]) -> None:
    with cluster.objects(pods.pod("busybox")):
        product.wait_running(cluster, ["busybox"])
        routes = cluster.kubectl("exec", "busybox", "--", "ip", "route").stdout.splitlines()
    (default,) = (line for line in routes if line.startswith("default"))
    words = default.split()
    assert words[:2] == ["default", "via"] and words[3:5] == ["dev", "eth0"]


def test_doctor_in_the_image(cluster: Cluster) -> None:
    """Nothing of what it checks fails in the container, with these capabilities."""
    done = cluster.kubectl("-n", "kube-system", "exec", "ds/weave-router", "--", "weave-router", "doctor", check=False)
    assert done.returncode == 0, done.stdout


def test_every_pod_reaches_every_pod(serving: dict[str, Pod]) -> None:
    for near in serving.values():
        for far in serving.values():
            for address in far.addresses:
                assert " 0% packet loss" in near.run("ping", "-c", "2", "-i", "0.1", "-W", "2", address)


def test_the_first_instruction_of_a_pod_finds_its_network(cluster: Cluster, serving: dict[str, Pod]) -> None:
    """One packet, no second try, to a pod on each node; the pod's exit status is ping's."""
    targets = " && ".join(f"ping -c 1 -W 3 {pod.addresses[0]}" for pod in serving.values())
    made = [pods.pod(f"first-{node.name}", node.name, targets, restartPolicy="Never") for node in cluster.nodes]
    with cluster.objects(*made):
        phases = product.wait_ended(cluster, [item["metadata"]["name"] for item in made])
        assert set(phases.values()) == {"Succeeded"}, phases
