"""Whom to call, and when: addresses given by hand, and members read of in the table.

A target is called for ever, every ``retry_interval`` +-10 %, until it is linked or forgotten; our own address is marked
*self*. A member is called when it cannot be reached over links, or while we have few links of our own (discovery).
Knows no socket and no link, only what core.py tells it; time and the generator are arguments.
"""

import heapq
import ipaddress
from collections.abc import Callable, Container
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Final

from weave_router import limits
from weave_router.errors import UsageError
from weave_router.mesh.record import Endpoint

SELF_RETRY_SECONDS: Final = 60.0
"""An address that was our own may move to another node (a name, a floating address)."""
FULL_RETRY_SECONDS: Final = 300.0
"""A target that has no room for us, while we are linked with others: each call of it makes a new record of ours."""


class TargetState(StrEnum):
    WAITING = "waiting"  # not yet tried
    CONNECTING = "connecting"
    CONNECTED = "connected"
    RETRYING = "retrying"
    SELF = "self"


@dataclass(slots=True)
class Target:
    """``text`` as the operator wrote it; ``reason`` is for people; ``retry_at`` by the mesh's clock."""

    text: str
    host: str
    port: int
    state: TargetState = TargetState.WAITING
    reason: str = ""
    node_id: bytes | None = None
    retry_at: float | None = None
    attempts: int = 0
    call: int | None = None


@dataclass(slots=True)
class Member:
    node_id: bytes
    due_at: float
    attempts: int = 0
    call: int | None = None


Callee = Target | Member


def parse_target(text: str, default_port: int) -> Endpoint:
    """``host``, ``host:port``, ``address``, ``[v6]:port`` -> (host, port). UsageError names what is wrong."""
    host, port_text = split_port(text.strip())
    if not host or any(letter.isspace() or letter in "/[]@" for letter in host) or len(host) > 253:
        raise UsageError(f"{text!r} is no peer address: write HOST, HOST:PORT or [IPV6]:PORT")
    port = default_port
    if port_text is not None:
        if not (port_text.isascii() and port_text.isdigit() and 0 < int(port_text) < 65536):
            raise UsageError(f"{text!r} has no valid port: write a number from 1 to 65535 behind the last colon")
        port = int(port_text)
    address = literal(host)
    if address is not None and (address.is_multicast or address.is_unspecified):
        raise UsageError(f"{text!r} is not the address of one host: name the address that the peer listens on")
    return (str(address) if address else host.lower()), port


def split_port(text: str) -> tuple[str, str | None]:
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        return (host, rest[1:] if rest.startswith(":") else None) if bracket and rest[:1] in ("", ":") else ("", None)
    if text.count(":") == 1:
        host, _, port = text.partition(":")
        return host, port
    if ":" in text and literal(text) is None:
        return "", None
    return text, None


def literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def retry_interval(members: int) -> float:
    """Slower in a large cluster, where many call: max(1 s, min(10 s, members / 2 s))."""
    return max(1.0, min(10.0, members / 2))


class Targets:
    """The targets by their text and the members that wait to be called, in order of time."""

    def __init__(self, own_id: bytes, rng: Random, port: int) -> None:
        self._own_id = own_id
        self._rng = rng
        self._port = port
        self._targets: dict[str, Target] = {}
        self._members: dict[bytes, Member] = {}
        self._heap: list[tuple[float, bytes]] = []

    def all(self) -> list[Target]:
        return list(self._targets.values())

    # -- given by hand ----------------------------------------------------------------------------------------------
    def add(self, text: str, now: float) -> Target:
        """The same address twice is one target. UsageError for what is no address, or too many."""
        host, port = parse_target(text, self._port)
        for target in self._targets.values():
            if (target.host, target.port) == (host, port):
                return target
        if len(self._targets) >= limits.TARGETS_MAX:
            raise UsageError(f"{limits.TARGETS_MAX} peer addresses are given already: remove some with "
                             "`weave-router forget ADDRESS`; members find each other through any one of them")
        target = self._targets[text.strip()] = Target(text.strip(), host, port, retry_at=now)
        return target

    def remove(self, text: str) -> Target | None:
        host, port = parse_target(text, self._port)
        for key, target in self._targets.items():
            if (target.host, target.port) == (host, port):
                return self._targets.pop(key)
        return None

    # -- members ----------------------------------------------------------------------------------------------------
    def want(self, node_id: bytes, at: float) -> None:
        """Call this member at this time, unless it is to be called before."""
        member = self._members.get(node_id)
        if member is None:
            member = self._members[node_id] = Member(node_id, at)
        elif member.call is not None or member.due_at <= at:
            return
        member.due_at = at
        heapq.heappush(self._heap, (at, node_id))

    def first_call_at(self, node_id: bytes, now: float) -> float:
        """Of two members that learn of each other at once, the smaller calls first: fewer crosswise links."""
        patience = 0.0 if self._own_id < node_id else 1.0
        return now + patience + self._rng.uniform(0.1, 0.5)

    def drop(self, node_id: bytes) -> None:
        """No need to call it (any more)."""
        self._members.pop(node_id, None)

    # -- time -------------------------------------------------------------------------------------------------------
    def get_timer(self) -> float | None:
        times = [target.retry_at for target in self._targets.values()
                 if target.retry_at is not None and target.call is None]
        if self._heap:
            times.append(self._heap[0][0])
        return min(times, default=None)

    def due_targets(self, now: float) -> list[Target]:
        return [target for target in self._targets.values()
                if target.call is None and target.retry_at is not None and target.retry_at <= now]

    def due_members(self, now: float, room: int, wanted: Callable[[bytes], bool]) -> list[Member]:
        """At most ``room`` members whose time has come; who is not ``wanted`` any more is dropped."""
        result: list[Member] = []
        while self._heap and self._heap[0][0] <= now and len(result) < room:
            at, node_id = heapq.heappop(self._heap)
            member = self._members.get(node_id)
            if member is None or member.due_at != at or member.call is not None:
                continue
            if wanted(node_id):
                result.append(member)
            else:
                del self._members[node_id]
        return result

    # -- what became of a call --------------------------------------------------------------------------------------
    def calling(self, callee: Callee, call: int) -> None:
        callee.call = call
        callee.attempts += 1
        if isinstance(callee, Target):
            callee.state, callee.retry_at = TargetState.CONNECTING, None

    def failed(self, callee: Callee, reason: str, members: int, now: float, *, patient: bool = False) -> None:
        """The call came to nothing, or its link ended. ``patient``: we do well without."""
        callee.call = None
        at = now + (FULL_RETRY_SECONDS if patient else retry_interval(members)) * self._rng.uniform(0.9, 1.1)
        if isinstance(callee, Target):
            callee.state, callee.reason, callee.retry_at = TargetState.RETRYING, reason, at
        elif callee.node_id in self._members:
            callee.due_at = at
            heapq.heappush(self._heap, (at, callee.node_id))

    def is_self(self, callee: Callee, members: int, now: float) -> None:
        """We called ourselves. For a member that was one of its addresses only: it is called at the next."""
        if isinstance(callee, Member):
            self.failed(callee, "", members, now)
            return
        callee.call = None
        callee.state, callee.reason, callee.node_id = TargetState.SELF, "this is our own address", self._own_id
        callee.retry_at = now + SELF_RETRY_SECONDS

    def linked(self, callee: Callee, node_id: bytes) -> None:
        callee.call = None
        if isinstance(callee, Target):
            callee.state, callee.reason, callee.node_id = TargetState.CONNECTED, "", node_id
            callee.retry_at = None
        self.drop(node_id)

    def unlinked(self, node_id: bytes, reason: str, members: int, now: float, *, patient: bool) -> None:
        """The node has no link any more: the targets that led to it are called again."""
        for target in self._targets.values():
            if target.node_id == node_id and target.state is TargetState.CONNECTED:
                self.failed(target, reason, members, now, patient=patient)

    def reached(self, node_id: bytes, endpoints: Container[Endpoint]) -> None:
        """A link came up by whatever call: targets that lead to the same node need none of their own."""
        for target in self._targets.values():
            if target.call is None and (target.node_id == node_id or (target.host, target.port) in endpoints):
                self.linked(target, node_id)
