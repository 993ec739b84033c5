"""Objects that the tests and the demo apply, as values. Knows no cluster. Called by both."""

from pathlib import Path
from typing import Any

from kubernetes.images import BUSYBOX

Object = dict[str, Any]
SERVE = "mkdir -p /www; hostname > /www/name; echo up > /tmp/up; exec httpd -f -p 8080 -h /www"
"""Answers with the pod's own name."""


def fetch(path: str, address: str, port: int) -> list[str]:
    """A command for a pod that prints one line of HTTP. By nc: wget of a static busybox crashes where it looks up."""
    return ["sh", "-c", f"printf 'GET {path} HTTP/1.0\\r\\n\\r\\n' | nc -w 3 {address} {port} | tail -n 1"]


def shared(folder: Path) -> Object:
    """Fields of a pod that sees this folder of the machine, under the same name."""
    return {"volumes": [{"name": "shared", "hostPath": {"path": str(folder), "type": "Directory"}}],
            "container": {"volumeMounts": [{"name": "shared", "mountPath": str(folder)}]}}


def pod(name: str, node: str = "", command: str = "exec sleep 1000000", labels: dict[str, str] | None = None,
        **fields: Any) -> Object:
    container = {
        "name": "main", "image": BUSYBOX, "imagePullPolicy": "Never", "command": ["sh", "-c", command],
        **fields.pop("container", {}),
    }  # fmt: skip
    where = {"nodeName": node} if node else {}
    spec = {"terminationGracePeriodSeconds": 0, "containers": [container], **where, **fields}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels or {}}, "spec": spec}


def service(name: str, selector: dict[str, str], **fields: Any) -> Object:
    spec = {"selector": selector, "ipFamilyPolicy": "PreferDualStack", "ports": [{"port": 80, "targetPort": 8080}],
            **fields}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}
