"""What docs/kubernetes.md tells people to type, and who types it in the tests.

``commands`` reads the document: lines of its ``sh`` blocks, and code spans that begin with a program. Each must stand
in one of the tables below, and each entry must stand in the document. Reads text only. Called by
test_promises.py, and by tests/kubernetes/ and tests/k3s/, which run their tables.
"""

import re
from typing import Final

from quality.tree import ROOT

DOCUMENT: Final = ROOT / "docs" / "kubernetes.md"
_PROGRAMS: Final = r"kubectl \S+|make|ls|runc|modprobe|sysctl|weave-router"
_IN_POD: Final = "kubectl -n kube-system exec ds/weave-router -- weave-router"

ON_CLUSTER: Final = {
    "kubectl get pods -n kube-system -l name=weave-router -o wide": r" 1/1 +Running .* node-1 ",
    "kubectl get nodes": r"node-1 +Ready",
    f"{_IN_POD} status": r"Trouble: none",
    f"{_IN_POD} status connections": r"established",
    f"{_IN_POD} doctor": r"bridge netfilter: on.*\n(.*\n)*ok +underlay MTU: ",
    "kubectl exec busybox -- ip route": r"^default via \S+ dev eth0",
    "kubectl get events --field-selector involvedObject.kind=Node": r"node/node-1",
    "kubectl get events --field-selector reason=FailedCreatePodSandBox": r"",
    "kubectl -n kube-system get pods -l name=weave-router -o wide": r" 1/1 +Running .* node-1 ",
    "kubectl -n kube-system logs ds/weave-router": r"\S",
    "kubectl -n kube-system get lease weave-router-universe -o yaml": r"10\.32\.0\.0/12",
    "kubectl -n kube-system get leases -l app.kubernetes.io/name=weave-router": r"weave-router-block-10-\S+ +\S+\.\S",
    "kubectl -n kube-system get secret weave-router": r"weave-router +Opaque",
}
"""Command -> what it prints on a cluster where all is well."""

ON_NODE: Final = {
    "ls /etc/cni/net.d": r"^10-weave-router\.conflist$",
    "ls /opt/cni/bin/portmap": r"portmap",
    "runc --version": r"runc version \d",
}

AT_INSTALL: Final = (
    "kubectl -n kube-system create configmap weave-router --from-literal=config.toml='mtu = 1300'",
    "kubectl apply -f deploy/weave-router.yaml",
    "kubectl -n kube-system set env ds/weave-router WEAVE_ROUTER_LOG_LEVEL=debug",
    "kubectl -n kube-system rollout status ds/weave-router",
    "kubectl -n kube-system create configmap weave-router --from-literal=config.toml='targets = [\"192.0.2.98\"]' "
    "--dry-run=client -o yaml | kubectl apply -f -",
    "kubectl -n kube-system rollout restart ds/weave-router",
)
"""Run by tests/k3s/."""

ELSEWHERE: Final = {
    "make image IMAGE=registry.example/weave-router:0.1.0": "kubernetes/test_image.py::test_make_image_takes_a_name",
    "weave-router token new --domain-of FILE": "kube/test_router.py::test_a_cluster_comes_up_and_its_token_rotates",
    "weave-router token status": "unit/test_cli_commands.py::test_token_status",
    "modprobe br_netfilter": "unit/test_host_pure.py::test_each_finding_has_a_way_out",
    "sysctl -w net.ipv4.neigh.default.gc_thresh3=32768": "unit/test_host_pure.py::test_each_finding_has_a_way_out",
    "kubectl -n kube-system get configmap kube-proxy -o yaml": "kubernetes/test_services.py::test_host_to_pod",
    "kubectl delete -f deploy/weave-router.yaml": "k3s/test_k3s.py::test_z_delete_leaves_pods_their_wiring",
    "weave-router reset": "cni/test_firewall.py::test_reset_takes_every_rule_back",
    "make demo-kubernetes": "Makefile::demo-kubernetes",
    "make soak-kubernetes": "Makefile::soak-kubernetes",
    "make test-kubernetes": "Makefile::test-kubernetes",
    "make test-kubernetes CONFORMANCE=1": "Makefile::test-kubernetes",
    "weave-router status warnings": "kubernetes/test_z_uninstall.py::test_another_network_before_ours_is_named",
    "kubectl -n kube-system set env ds/weave-router WEAVE_ROUTER_UNINSTALL=1":
        "kubernetes/test_z_uninstall.py::test_uninstalled_with_pods_still_running",
    "until ! kubectl -n kube-system get lease -l app.kubernetes.io/name=weave-router "
    "-o jsonpath='{.items[*].spec.holderIdentity}' | grep '[^ ]'; do sleep 5; done":
        "kubernetes/test_z_uninstall.py::test_uninstalled_with_pods_still_running",
    "kubectl -n kube-system delete secret,lease -l app.kubernetes.io/name=weave-router":
        "kube/test_leaving.py::test_the_documented_command_removes_the_rest",
    "weave-router expose": "mesh/test_ipam.py::test_claim_attach_by_name_expose_hide",
}
"""Command -> file under tests/ and function that runs it, or what stands for it where it would change the machine."""


def commands() -> set[str]:
    text = DOCUMENT.read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    return {line for line in lines if line} | {span for span in spans if re.match(rf"({_PROGRAMS}) ", span)}


OPTIONS: Final = {
    "WEAVE_ROUTER_KUBERNETES": "kubernetes/test_a_install.py::test_a_peer_on_every_node",
    "WEAVE_ROUTER_NODE_NAME": "kubernetes/test_a_install.py::test_a_peer_on_every_node",
    "WEAVE_ROUTER_NAMESPACE": "kubernetes/test_a_install.py::test_a_peer_on_every_node",
    "WEAVE_ROUTER_KUBERNETES_API": "kube/test_router.py::test_a_cluster_comes_up_and_its_token_rotates",
    "WEAVE_ROUTER_SERVICE_ACCOUNT": "kube/test_router.py::test_a_cluster_comes_up_and_its_token_rotates",
    "WEAVE_ROUTER_TOKEN_FILE": "kube/test_options.py::test_the_token_of_a_file_comes_before_the_secret",
    "WEAVE_ROUTER_CONN_LIMIT": "mesh/test_trusted.py::test_the_link_too_many_is_told",
    "WEAVE_ROUTER_IPALLOC_RANGE": "kube/test_api_server.py::test_first_starts_at_once_agree_on_universe_and_token",
    "WEAVE_ROUTER_TARGETS": "k3s/test_k3s.py::test_the_configmap_is_read_and_variables_come_first",
    "WEAVE_ROUTER_MTU": "k3s/test_k3s.py::test_the_configmap_is_read_and_variables_come_first",
    "WEAVE_ROUTER_UNINSTALL": "kube/test_leaving.py::test_pods_stay_until_they_end_and_then_all_is_gone",
    "WEAVE_ROUTER_LOG_LEVEL": "k3s/test_k3s.py::test_a_variable_set_later",
}
"""Variable -> the test of its effect."""


def options() -> set[str]:
    """Every variable that the document names; `WEAVE_ROUTER_<FLAG>` is none."""
    return set(re.findall(r"\b(WEAVE_ROUTER_[A-Z_]*[A-Z])\b(?!<)", DOCUMENT.read_text())) - {"WEAVE_ROUTER_"}
