"""How a universe begins: the size of its blocks, whose they are with ``new``, and the deal that a ``seed=`` agrees on.

Pure: domain, range, names and (for ``new``) randomness are arguments, so that every node of a seed computes the same
universe without a word. Called by service.py; knows no message and no store.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from ipaddress import IPv4Network

from .values import Found, FrozenMap, NodeId, Register


def block_prefix(range_v4: IPv4Network) -> int:
    """Blocks of 64 addresses in large ranges, at least four in small ones."""
    return min(30, max(26, range_v4.prefixlen + 6))


def block_count(range_v4: IPv4Network) -> int:
    return 1 << (block_prefix(range_v4) - range_v4.prefixlen)


def network_of(range_v4: IPv4Network, block: int) -> IPv4Network:
    prefix = block_prefix(range_v4)
    return IPv4Network((int(range_v4.network_address) + (block << (32 - prefix)), prefix))


def new_universe(me: NodeId, range_v4: IPv4Network, random: bytes) -> Found:
    """All of it is mine; ``random``: 16 bytes."""
    mine = Register(0, 0, me, me)
    return Found(random, FrozenMap({block: mine for block in range(block_count(range_v4))}))


def seed_universe(range_v4: IPv4Network, names: Sequence[str], domain: bytes) -> bytes:
    words = [domain, str(range_v4).encode(), *(name.encode() for name in sorted(names))]
    return hashlib.sha256(b"weave-router seed\0" + b"\0".join(words)).digest()[:16]


def slot_of(universe: bytes, name: str) -> NodeId:
    """Stands for the node that will be launched under this name; nobody has a key of it."""
    return hashlib.sha256(b"weave-router slot\0" + universe + name.encode()).digest()[:16]


def seeded(range_v4: IPv4Network, names: Sequence[str], name: str, domain: bytes) -> Found:
    """Equal shares in the order of the sorted names; ``name`` is this node's."""
    universe = seed_universe(range_v4, names, domain)
    slots = [slot_of(universe, each) for each in sorted(names)]
    count = block_count(range_v4)
    dealt = [Register(0, 0, slot, slot) for slot in slots]
    registers = FrozenMap({block: dealt[block * len(slots) // count] for block in range(count)})
    return Found(universe, registers, frozenset(slots), slot_of(universe, name))
