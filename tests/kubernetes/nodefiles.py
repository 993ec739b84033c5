"""Configuration of a node's containerd and kubelet. Writes two files, knows nothing else. Called by cluster.py."""

import json
from pathlib import Path
from typing import Final

_CONTAINERD: Final = """\
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
"""
"""Lowering an OOM score is not allowed where the machine itself is a container."""


def write(folder: Path, *, cgroup: str, pause: str, name_server: str) -> None:
    """``name_server``: of the pods; empty: none."""
    (folder / "containerd.toml").write_text(_CONTAINERD.format(pause=pause))
    (folder / "kubelet.yaml").write_text(json.dumps({
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"},
        # Several kubelets on one kernel would clear away each other's pods without a root of their own.
        "cgroupDriver": "cgroupfs", "cgroupRoot": f"/{cgroup}", "failCgroupV1": False, "failSwapOn": False,
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "clusterDomain": "cluster.local", "clusterDNS": [name_server] if name_server else [], "resolvConf": "/dev/null",
        "imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
        "evictionHard": {"memory.available": "1Mi", "nodefs.available": "0%", "nodefs.inodesFree": "0%",
                         "imagefs.available": "0%"},
        "maxPods": 250, "registryPullQPS": 0, "kubeAPIQPS": 500, "kubeAPIBurst": 1000,
        "nodeStatusUpdateFrequency": "3s",
    }, indent=1))  # fmt: skip
