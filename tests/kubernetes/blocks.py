"""Whose a block is by its Lease, and who has an address by the kernel's own word. Called by the tests of the fence."""

import json
from collections import Counter
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, ip_address
from typing import Any

from kubernetes import rollout
from kubernetes.cluster import Cluster, Node, wait_for

PREFIX = "weave-router-block-"
LOOK_SECONDS = 20


@dataclass(frozen=True)
class Block:
    """``holder``: UID of a Node and the router's identity, with a dot between; empty: free."""

    name: str
    network: IPv4Network
    holder: str
    gen: int

    @property
    def uid(self) -> str:
        return self.holder.partition(".")[0]


def blocks(cluster: Cluster) -> list[Block]:
    found = cluster.get("leases", *rollout.SYSTEM, "-l", "app.kubernetes.io/name=weave-router")
    return [Block(lease["metadata"]["name"], network_of(lease["metadata"]["name"]),
                  lease["spec"].get("holderIdentity") or "", lease["spec"].get("leaseTransitions") or 0)
            for lease in found if lease["metadata"]["name"].startswith(PREFIX)]  # fmt: skip


def network_of(name: str) -> IPv4Network:
    return IPv4Network("{}.{}.{}.{}/{}".format(*name.removeprefix(PREFIX).split("-")))


def held_by(cluster: Cluster, uid: str) -> list[Block]:
    return [block for block in blocks(cluster) if block.uid == uid]


def uids(cluster: Cluster) -> dict[str, str]:
    """Node's name -> its UID."""
    return {node["metadata"]["name"]: node["metadata"]["uid"] for node in cluster.get("nodes")}


def strays(cluster: Cluster) -> list[Block]:
    """Blocks whose holder is no Node that there is."""
    known = set(uids(cluster).values())
    return [block for block in blocks(cluster) if block.holder and block.uid not in known]


def addresses(node: Node) -> list[str]:
    """Of every pod's namespace on the node, as the kernel has them: pods' and the cluster's, not link-local ones.

    Where a namespace comes or goes meanwhile, all are looked at again."""
    words = "echo []; for name in $(ls /run/netns); do ip -n $name -j address; done"

    def look() -> str:
        done = node.run("sh", "-ec", words, check=False)
        return done.stdout if done.returncode == 0 else ""

    said: str = wait_for(f"{node.name}'s namespaces", look, LOOK_SECONDS)
    found: list[dict[str, Any]] = [link for line in said.splitlines() if line for link in json.loads(line)]
    return [entry["local"] for link in found if link.get("ifname") != "lo" for entry in link.get("addr_info", [])
            if entry["scope"] == "global"]  # fmt: skip


def twice(nodes: list[Node]) -> list[str]:
    """Addresses that more than one pod has."""
    counted = Counter(ip_address(address) for node in nodes for address in addresses(node))
    return [str(address) for address, count in counted.items() if count > 1]


def outside(cluster: Cluster, node: Node) -> list[str]:
    """IPv4 addresses of the node's pods that lie in no block of its."""
    mine = [block.network for block in held_by(cluster, uids(cluster)[node.name])]
    found = [ip_address(address) for address in addresses(node)]
    return [str(address) for address in found
            if isinstance(address, IPv4Address) and not any(address in network for network in mine)]  # fmt: skip
