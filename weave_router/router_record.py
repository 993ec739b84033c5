"""What this node tells the others about itself beside its blocks: addresses, exceptions, multicast groups.

Pods, bridge and exposed addresses that no block covers, stations that speak with a MAC of their own, and groups that a
pod here listens to. Made by router.py; knows neither disk nor clock.
"""

import contextlib
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any, Final

from weave_router import limits
from weave_router.api.addresses import AddressBook
from weave_router.cni.attachments import Attachments
from weave_router.fastpath import engine as fastpath
from weave_router.ipam.number import mac_of
from weave_router.ipam.service import Service
from weave_router.mesh.record import Prefix

if TYPE_CHECKING:
    from weave_router.mesh.driver import MeshDriver

GROUP_SECONDS: Final = 300.0
"""A group that no pod reported for so long has no member (RFC 3376 section 8.4: 260 s, and a lost report)."""
TOGETHER_SECONDS: Final = 0.02
"""New groups are told together after this pause: each pod that comes joins one, and each telling sorts them all."""
LEAVE_SECONDS: Final = 10.0
"""What other members get to speak up after one left; the bridge asks them at once."""


class OwnRecord:
    """``other_owner``: the name of another node that answers for a number. ``later``: calls back after so many seconds.
    ``join`` before the mesh starts."""

    def __init__(
        self, bridge_address: IPv4Address | None, other_owner: Callable[[int], str | None],
        later: Callable[[float, Callable[[], None]], object],
    ) -> None:  # fmt: skip
        self._bridge = bridge_address
        self._other_owner = other_owner
        self._later = later
        self._telling = False
        self._groups: dict[bytes, float] = {}
        self._foreign: dict[int, bytes] = {}
        self._told: frozenset[int] = frozenset()

    def join(self, mesh: "MeshDriver", attachments: Attachments, ipam: Service | None,
             book: AddressBook | None) -> None:
        self._mesh, self._attachments, self._ipam, self._book = mesh, attachments, ipam, book

    def announce_of(self, numbers: Iterable[int]) -> None:
        """Something changed about these. Who lies in a block of this node, with the MAC that follows, is no news."""
        exceptions = self._attachments.exceptions()
        if self._ipam is None or not all(
            self._ipam.covers(n) and n not in self._told and n not in exceptions for n in numbers
        ):
            self.announce()

    def announce(self) -> None:
        """What this node answers for beside its blocks. ValueError when the record cannot hold it."""
        bridge = () if self._bridge is None else (int(self._bridge),)
        found = {number: Prefix(number, 32) for number in (*self._attachments.numbers(), *bridge)
                 if self._ipam is None or not self._ipam.covers(number)}
        if self._bridge is not None and self._book is not None:
            found |= {number: Prefix(number, 32, mac_of(int(self._bridge))) for number in self._book.exposed()}
        for number, mac in (self._foreign | self._attachments.exceptions()).items():
            found[number] = Prefix(number, 32, mac)
        self._mesh.do(lambda mesh, now: mesh.set_prefixes(found.values(), now))
        self._told = frozenset(found)

    def engine_event(self, event: tuple[Any, ...], now: float) -> None:
        """A group report, or a station that announced itself, as a worker saw it."""
        if event[0] == fastpath.EV_GROUP:
            self._group(event[1], event[2], now)
        elif event[0] == fastpath.EV_ANNOUNCE:
            self._foreign_mac(event[1], event[2])

    def _group(self, mac: bytes, joined: bool, now: float) -> None:
        """The bridge is a querier: members report again within GROUP_SECONDS, and at once after somebody left."""
        known = mac in self._groups
        if joined:
            self._groups[mac] = now + GROUP_SECONDS
        elif known:
            self._groups[mac] = min(self._groups[mac], now + LEAVE_SECONDS)
        if joined and not known and not self._telling:
            self._telling = True
            self._later(TOGETHER_SECONDS, self._tell_groups)

    def _tell_groups(self) -> None:
        self._telling = False
        self._mesh.do(lambda mesh, at: mesh.set_groups(self._groups, at))

    def expire_groups(self, now: float) -> None:
        gone = [mac for mac, until in self._groups.items() if until < now]
        for mac in gone:
            del self._groups[mac]
        if gone:
            self._tell_groups()

    def _foreign_mac(self, number: int, mac: bytes) -> None:
        """A local station speaks for an address of the range with its own MAC: announce both (an exception)."""
        known = mac in (mac_of(number), self._foreign.get(number), self._attachments.exceptions().get(number))
        if known or self._other_owner(number) is not None or len(self._foreign) >= limits.RECORD_PREFIXES_MAX // 2:
            return
        self._foreign[number] = mac
        with contextlib.suppress(ValueError):
            self.announce()
