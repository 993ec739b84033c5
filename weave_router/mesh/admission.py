"""Openings from outside: how many may be half open, and what became of those that proved nothing.

Pure counting; knows addresses and numbers, no stream. Called by core.py. The oldest opening makes room for a new one,
so a flood of strangers pushes out its own, while a member needs a few milliseconds of its place.
"""

import ipaddress
from collections import OrderedDict
from dataclasses import dataclass

from weave_router import limits
from weave_router.mesh.record import Endpoint


@dataclass(slots=True)
class Stranger:
    count: int
    remote: Endpoint
    at: float


def address_key(host: str) -> str:
    """One IPv4 address, or one IPv6 /64: what one stranger has for nothing."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if address.version == 4:
        return host
    return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))


class Admission:
    def __init__(self) -> None:
        self._open: OrderedDict[int, str] = OrderedDict()
        self._by_address: dict[str, OrderedDict[int, None]] = {}
        self.strangers: dict[str, Stranger] = {}

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, number: int) -> bool:
        return number in self._open

    def add(self, number: int, host: str) -> int | None:
        """Returns the number of the opening that has to go for this one."""
        key = address_key(host)
        same = self._by_address.get(key, OrderedDict())
        oldest: int | None = None
        if len(same) >= limits.OPENINGS_PER_ADDRESS_MAX:
            oldest = next(iter(same))
        elif len(self._open) >= limits.OPENINGS_MAX:
            oldest = next(iter(self._open))
        if oldest is not None:
            self.remove(oldest)
        self._open[number] = key
        self._by_address.setdefault(key, OrderedDict())[number] = None
        return oldest

    def remove(self, number: int) -> None:
        key = self._open.pop(number, None)
        if key is None:
            return
        same = self._by_address[key]
        del same[number]
        if not same:
            del self._by_address[key]

    def refused(self, reason: str, remote: Endpoint, now: float) -> None:
        """Reasons come from our own code (opening.py), so their number is bounded."""
        stranger = self.strangers.get(reason)
        if stranger is None:
            stranger = self.strangers[reason] = Stranger(0, remote, now)
        stranger.count += 1
        stranger.remote, stranger.at = remote, now
