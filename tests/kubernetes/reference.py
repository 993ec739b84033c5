"""Debian's `bridge` and `host-local` on the nodes of a cluster, static routes between them: what ours is held against.

IPv4 only, while ours gives both families. Called by conformance.py and test_y_many.py.
"""

import json
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, Final

from kubernetes.cluster import Cluster, Node, ip, run

RANGE: Final = IPv4Network("10.244.0.0/16")
NAME: Final = "05-reference.conflist"
"""Sorted before ours: runtimes take the first, and see a change at once."""


def subnet(node: Node) -> str:
    """Of its pods: node-2 has 10.244.12.0/24."""
    return f"10.244.{node.v4.rpartition('.')[2]}.0/24"


def conflist(node: Node) -> dict[str, Any]:
    """The chain is ours too: `portmap` behind the first plugin."""
    bridge = {
        "type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": True, "hairpinMode": True,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": subnet(node)}]], "routes": [{"dst": "0.0.0.0/0"}]},
    }  # fmt: skip
    ports = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}
    return {"cniVersion": "1.0.0", "name": "reference", "plugins": [bridge, ports]}


def folder(node: Node) -> Path:
    """The node's own /etc/cni/net.d."""
    return node.folder / "private/etc/cni/net.d"


def install(cluster: Cluster) -> None:
    for node in cluster.nodes:
        for other in cluster.nodes:
            if other is not node:
                ip("-n", node.netns, "route", "replace", subnet(other), "via", other.v4)
        new = folder(node) / f".{NAME}.new"
        new.write_text(json.dumps(conflist(node)))
        new.rename(folder(node) / NAME)


def remove(cluster: Cluster) -> None:
    """The list only: pods that are there keep bridge and routes."""
    for node in cluster.nodes:
        (folder(node) / NAME).unlink(missing_ok=True)


def clear(cluster: Cluster) -> None:
    """All of it, when no pod of it is left."""
    remove(cluster)
    for node in cluster.nodes:
        run("ip", "-n", node.netns, "link", "del", "cni0", check=False)
        run("ip", "-n", node.netns, "route", "flush", "root", str(RANGE), check=False)
