"""The books of a running cluster: what the kernel says pods have, and each router's store as a node of the invariants.

Truth about a pod is its namespace, truth about a router its disk: neither is asked of the program under test. For
tests of addresses; knows no pytest. ``model.invariants`` judges what is read here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network

from model.invariants import UP, Node

from weave_router.ipam import durable, founding
from weave_router.store import Store
from weave_router.tunnel.identity import Identity

from .namespace import run
from .network import Pod
from .router import Router


def kernel_addresses(pod: Pod) -> list[str]:
    """All global IPv4 addresses of a pod's namespace."""
    listed = json.loads(run(["ip", "-n", pod.name, "-json", "-4", "address", "show"]).stdout or "[]")
    return [entry["local"] for link in listed for entry in link.get("addr_info", []) if entry["scope"] == "global"]


def node_of(router: Router, pods: Iterable[str]) -> Node:
    """``pods``: the addresses that the kernel showed on this router's host."""
    network = IPv4Network(router.ipalloc_range)
    size = 1 << (32 - founding.block_prefix(network))
    with Store.open(router.host.state_dir, boot_id=router.boot_id, writer=False) as store:
        rows, me = store.ipam.load(), Identity(*store.identity()).node_id

    def block_of(number: int) -> int:
        return (number - int(network.network_address)) // size

    used = {block_of(row.number) for row in rows.leases if not row.resting}
    cooling = {block_of(row.number) for row in rows.leases if row.resting} - used
    state = durable.state_of(me, rows, used, cooling)
    living = frozenset((block_of(int(IPv4Address(text))), -1) for text in pods)
    return Node(UP, state, state, living)
