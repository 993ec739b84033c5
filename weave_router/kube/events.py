"""What is told to people as Events of Nodes: those that wait, and who tells of a block that was lost.

A node that was cut off may be unable to tell: its Node was deleted, and with its pod its token. It says in its record
on the mesh what it lost, and the block's new holder tells it. Both give the event one name, so that the API server
keeps one. Sans-I/O. Called by core.py; read by driver.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv4Network

from weave_router import limits

from . import objects


@dataclass(frozen=True, slots=True)
class Event:
    """``node``: the one it is about. ``key``: the same from whoever tells it; empty: told by one router alone."""

    kind: str
    reason: str
    message: str
    node: str
    uid: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class Lost:
    """By a node's own record: a block that it does not use any more since another's register of ``gen``."""

    node: str
    identity: bytes
    block: int
    gen: int


def lost_event(node: str, uid: str, network: IPv4Network, gen: int, why: str) -> Event:
    """The loser and the new holder may see different causes; the first to tell is heard."""
    sentence = f"block {network} is lost: {why}; its pods are cut off and have to be made anew"
    return Event("Warning", "BlockLost", sentence, node, uid, f"{objects.lease_name(network)}-lost-{gen}")


class EventQueue:
    """In order, the oldest dropped."""

    def __init__(self) -> None:
        self._waiting: deque[Event] = deque(maxlen=limits.KUBE_EVENTS_PENDING)
        self._told: frozenset[Lost] = frozenset()

    def add(self, event: Event) -> None:
        self._waiting.append(event)

    def next(self) -> Event | None:
        return self._waiting.popleft() if self._waiting else None

    def refused(self, event: Event) -> None:
        """Nobody took it: it comes first again, unless newer ones have its room."""
        if len(self._waiting) < limits.KUBE_EVENTS_PENDING:
            self._waiting.appendleft(event)

    def fresh(self, lost: Collection[Lost]) -> list[Lost]:
        """Those that were not among them last time."""
        fresh = sorted(set(lost) - self._told, key=lambda each: (each.block, each.identity))
        self._told = frozenset(lost)
        return fresh
