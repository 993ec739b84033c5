"""Whom to call now: targets and members that are due, within bounds, and what becomes of each call.

A call's number becomes its link's. Works on what core.py owns (the replica, the links that are up); knows no stream.
targets.py keeps the times, this decides. Called by core.py alone.
"""

from collections.abc import Callable, Iterator, Mapping
from random import Random
from typing import Final

from weave_router import limits
from weave_router.mesh import status
from weave_router.mesh.events import Dial
from weave_router.mesh.record import FLAG_NAT, Endpoint, SignedRecord
from weave_router.mesh.replica import Replica
from weave_router.mesh.table import Delta
from weave_router.mesh.targets import Callee, Member, Target, Targets, retry_interval

LINKS_SOUGHT: Final = 6
"""With fewer links than this, more are looked for now and then; limits.LINKS_DISCOVERED_MAX is the ceiling."""


class Calls:
    """``up``: node id -> number of its link, as the core keeps it. ``emit`` takes the effects."""

    def __init__(self, targets: Targets, replica: Replica, up: Mapping[bytes, int], *, discovery: bool, rng: Random,
                 numbers: Iterator[int], emit: Callable[[Dial], None], link_limit: int = limits.LINKS_MAX) -> None:
        self.targets = targets
        self.dials: dict[int, float] = {}
        """Not connected yet -> by when they must be."""
        self._replica = replica
        self._up = up
        self._discovery = discovery
        self._sought = min(limits.LINKS_DISCOVERED_MAX, link_limit)
        self._rng = rng
        self._numbers = numbers
        self._emit = emit
        self._calls: dict[int, Callee] = {}

    @property
    def _members(self) -> int:
        return len(self._replica.table)

    # -- whom -------------------------------------------------------------------------------------------------------
    def get_timer(self) -> float | None:
        return self.targets.get_timer() if len(self.dials) < limits.DIALS_MAX else None

    def make(self, now: float) -> None:
        """All calls that are due, as far as there is room."""
        for target in self.targets.due_targets(now):
            node_id = self._linked_at((target.host, target.port)) or target.node_id
            if node_id is not None and node_id in self._up:
                self.targets.linked(target, node_id)
            elif len(self.dials) < limits.DIALS_MAX:
                self._dial(target, (target.host, target.port), now)
        room = limits.DIALS_MAX - len(self.dials)
        for member in self.targets.due_members(now, room, self._wanted):
            endpoints = self._ways_to(member.node_id)
            self._dial(member, endpoints[member.attempts % len(endpoints)], now)

    def _dial(self, callee: Callee, endpoint: Endpoint, now: float) -> None:
        number = next(self._numbers)
        self._calls[number] = callee
        self.dials[number] = now + limits.OPENING_SECONDS
        self._emit(Dial(number, *endpoint, callee.attempts))
        self.targets.calling(callee, number)

    def _linked_at(self, endpoint: Endpoint) -> bytes | None:
        """The node at the far end of a link, if it says that it listens at this address."""
        for node_id in self._up:
            signed = self._replica.table.get(node_id)
            if signed is not None and endpoint in signed.record.endpoints:
                return node_id
        return None

    def _wanted(self, node_id: bytes) -> bool:
        """Whether a member is to be called: it is out of reach, or we have few links."""
        if not self._discovery or node_id in self._up or node_id == self._replica.own_id or not self._ways_to(node_id):
            return False
        few = len(self._up) + len(self._calls) < self._sought
        topology = self._replica.topology
        room = len(topology.links.get(node_id, ())) < limits.LINKS_MAX
        return (few and room) or node_id not in topology.reachable

    def _ways_to(self, node_id: bytes) -> list[Endpoint]:
        """Where a member may be called. An address that is ours, too (a container bridge has the same on every host)
        would lead to ourselves."""
        signed = self._replica.table.get(node_id)
        if signed is None or signed.record.flags & FLAG_NAT:
            return []
        own = self._replica.own.signed.record.endpoints
        return [endpoint for endpoint in signed.record.endpoints if endpoint not in own]

    # -- what may be worth a call -----------------------------------------------------------------------------------
    def discover(self, now: float) -> None:
        """While links are few, some members that were not needed may be needed now."""
        if self._discovery and len(self._up) < self._sought:
            ids = sorted(signed.node_id for signed in self._replica.table if signed.node_id not in self._up)
            for node_id in self._rng.sample(ids, min(limits.LINKS_DISCOVERED_MAX, len(ids))):
                self.targets.want(node_id, self.targets.first_call_at(node_id, now))

    def discover_if_few(self, now: float) -> None:
        if len(self._up) < min(LINKS_SOUGHT, self._sought, self._members - 1):
            self.discover(now)

    def follow(self, delta: Delta, now: float) -> None:
        """A record that is new, or of a new start, or that names another way."""
        if delta.new is None or delta.node_id == self._replica.own_id or not self._discovery:
            return
        if delta.old is None or way_of(delta.old) != way_of(delta.new):
            self.targets.want(delta.node_id, self.targets.first_call_at(delta.node_id, now))

    def lost(self, node_id: bytes, now: float) -> None:
        """No link to it any more, or out of reach: call again, after a while."""
        self.targets.want(node_id, now + retry_interval(self._members) * self._rng.uniform(0.9, 1.1))

    # -- what became of a call --------------------------------------------------------------------------------------
    def connected(self, number: int) -> float | None:
        """The deadline of the whole opening; None if the call was given up."""
        return self.dials.pop(number, None)

    def abandon(self, target: Target) -> int | None:
        """Forget a target's call; returns its number if there is one."""
        if target.call is not None:
            self._calls.pop(target.call, None)
        return target.call

    def failed(self, number: int, reason: str, now: float) -> None:
        callee = self._calls.pop(number, None)
        if callee is None:
            return
        if callee.node_id is not None and callee.node_id in self._up:
            self.targets.linked(callee, callee.node_id)  # another call got through meanwhile
        else:
            self.targets.failed(callee, reason, self._members, now)

    def linked(self, number: int, node_id: bytes, now: float, settled: bool = True) -> None:
        """``settled`` is False if the link cannot stay for want of room."""
        callee = self._calls.pop(number, None)
        if callee is None:
            self.targets.drop(node_id)
        elif not settled:
            self.targets.failed(callee, status.REASONS["full"], self._members, now)
        elif isinstance(callee, Member) and callee.node_id != node_id:
            self.targets.failed(callee, "another node answers there", self._members, now)
        else:
            self.targets.linked(callee, node_id)

    def reached_self(self, number: int, now: float) -> None:
        callee = self._calls.pop(number, None)
        if callee is not None:
            self.targets.is_self(callee, self._members, now)


def way_of(signed: SignedRecord) -> tuple[object, ...]:
    record = signed.record
    return record.incarnation, record.endpoints, record.flags & FLAG_NAT
