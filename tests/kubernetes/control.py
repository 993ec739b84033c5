"""Files of the control plane: keys by openssl, the static tokens, one kubeconfig per identity, and the command lines.

No process is started here and no kernel touched. Called by cluster.py.
"""

import json
import secrets
import subprocess
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Final

PORT: Final = 6443
GROUPS: Final = {
    "admin": ("admin", "system:masters"),
    "controller-manager": ("system:kube-controller-manager", "system:masters"),
    "scheduler": ("system:kube-scheduler", ""),
    "proxy": ("system:kube-proxy", ""),
}
PROGRAMS: Final = ("etcd", "apiserver", "controller-manager", "scheduler")
"""In the order of starting."""


@dataclass(frozen=True)
class Ranges:
    """``pods``: of which every Node is given a part; empty: the Nodes carry none, which ours has no use for."""

    service_v4: str
    service_v6: str
    pods: str = ""

    @property
    def api_service(self) -> str:
        return str(ip_network(self.service_v4)[1])

    @property
    def name_server(self) -> str:
        return str(ip_network(self.service_v4)[10])


KUBEADM: Final = Ranges("10.96.0.0/16", "fd00:10:96::/112")
K3S: Final = Ranges("10.43.0.0/16", "fd00:10:43::/112", "10.42.0.0/16")


def prepare(control: Path, nodes: dict[str, Path], address: str, ranges: Ranges) -> None:
    """Everything under ``control``; into each node's own folder what that node may know."""
    control.mkdir(parents=True, exist_ok=True)
    _certificates(control, address, ranges)
    authority = (control / "ca.crt").read_text()
    identities = {name: (*who, secrets.token_hex(16)) for name, who in GROUPS.items()}
    identities |= {name: (f"system:node:{name}", "system:nodes", secrets.token_hex(16)) for name in nodes}
    lines = [f'{token},{user},{name}-uid,"{group}"' for name, (user, group, token) in identities.items()]
    (control / "tokens.csv").write_text("\n".join(lines) + "\n")
    for name in GROUPS:
        (control / f"{name}.kubeconfig").write_text(_kubeconfig(authority, address, identities[name][2]))
    for name, folder in nodes.items():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "kubelet.kubeconfig").write_text(_kubeconfig(authority, address, identities[name][2]))
        (folder / "proxy.kubeconfig").write_text(_kubeconfig(authority, address, identities["proxy"][2]))


def _kubeconfig(authority: str, address: str, token: str) -> str:
    encoded = b64encode(authority.encode()).decode()
    cluster = {"server": f"https://{address}:{PORT}", "certificate-authority-data": encoded}
    return json.dumps({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "test", "cluster": cluster}], "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    }, indent=1)  # fmt: skip


def _certificates(control: Path, address: str, ranges: Ranges) -> None:
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    names = "DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:localhost"
    (control / "api.ext").write_text(f"subjectAltName={names},IP:{ranges.api_service},IP:{address},IP:127.0.0.1\n")
    for words in (
        ["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", "sa.key"],
        ["pkey", "-in", "sa.key", "-pubout", "-out", "sa.pub"],
        ["req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-days", "30", "-subj", "/CN=test-ca"],
        ["req", *key, "-keyout", "api.key", "-out", "api.csr", "-subj", "/CN=kube-apiserver"],
        ["x509", "-req", "-in", "api.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "30",
         "-extfile", "api.ext", "-out", "api.crt"],
    ):  # fmt: skip
        subprocess.run(["openssl", *words], cwd=control, check=True, capture_output=True)


def commands(control: Path, bin: Path, address: str, ranges: Ranges) -> dict[str, Sequence[str]]:
    """Name, of PROGRAMS, -> command line."""
    pod_cidrs = ["--allocate-node-cidrs", f"--cluster-cidr={ranges.pods}"] if ranges.pods else []
    return {
        "etcd": [
            "etcd", f"--data-dir={control}/etcd", "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379", "--unsafe-no-fsync=true", "--log-level=warn",
        ],
        "apiserver": [
            f"{bin}/kube-apiserver", "--etcd-servers=http://127.0.0.1:2379", f"--secure-port={PORT}",
            f"--advertise-address={address}", f"--tls-cert-file={control}/api.crt",
            f"--tls-private-key-file={control}/api.key", "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={control}/sa.pub", f"--service-account-signing-key-file={control}/sa.key",
            f"--service-cluster-ip-range={ranges.service_v4},{ranges.service_v6}", "--authorization-mode=Node,RBAC",
            f"--token-auth-file={control}/tokens.csv", "--allow-privileged=true",
            f"--client-ca-file={control}/ca.crt", "--kubelet-preferred-address-types=InternalIP",
        ],
        "controller-manager": [
            f"{bin}/kube-controller-manager", f"--kubeconfig={control}/controller-manager.kubeconfig",
            f"--service-account-private-key-file={control}/sa.key", f"--root-ca-file={control}/ca.crt",
            "--leader-elect=false", "--node-monitor-grace-period=20s", *pod_cidrs,
        ],
        "scheduler": [
            f"{bin}/kube-scheduler", f"--kubeconfig={control}/scheduler.kubeconfig",
            f"--authentication-kubeconfig={control}/scheduler.kubeconfig",
            f"--authorization-kubeconfig={control}/scheduler.kubeconfig", "--leader-elect=false",
        ],
    }  # fmt: skip
