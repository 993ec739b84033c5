"""Host numbers: the 32 bits that a block holds, and how they look as IPv4, IPv6 and MAC.

Pure functions on values. Every room above fastpath may use it; it knows nothing of who owns a number.
"""

import hashlib
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

from weave_router.errors import UsageError

DERIVED_MAC_PREFIX: Final = b"\x0a\x58"
"""Locally administered; the next four bytes are the host number (design: addresses on the wire)."""


def mac_of(number: int) -> bytes:
    """The derived MAC of a host number, 6 bytes."""
    return DERIVED_MAC_PREFIX + number.to_bytes(4, "big")


def mac_text(mac: bytes) -> str:
    """``0a:58:0a:20:00:01``."""
    return mac.hex(":")


def prefix_v6_of(domain: bytes) -> bytes:
    """The universe's ULA /96 as 12 bytes: ``fd`` and the first 88 bits of SHA-256(token domain id)."""
    return b"\xfd" + hashlib.sha256(domain).digest()[:11]


@dataclass(frozen=True, slots=True)
class Universe:
    """The range of all pods: an IPv4 network and the /96 that mirrors it."""

    range_v4: IPv4Network
    prefix_v6: bytes

    @property
    def network_v6(self) -> IPv6Network:
        return IPv6Network((self.prefix_v6 + bytes(4), 96))

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and IPv4Address(number) in self.range_v4

    def ipv4_of(self, number: int) -> IPv4Address:
        return IPv4Address(number)

    def ipv6_of(self, number: int) -> IPv6Address:
        return IPv6Address(self.prefix_v6 + number.to_bytes(4, "big"))

    def number_of(self, address: IPv4Address | IPv6Address) -> int | None:
        """The host number behind an address, None when it lies outside."""
        if isinstance(address, IPv4Address):
            return int(address) if address in self.range_v4 else None
        packed = address.packed
        number = int.from_bytes(packed[12:], "big")
        return number if packed[:12] == self.prefix_v6 and number in self else None


def parse_address(universe: Universe, text: str) -> int:
    """The host number of an address that an operator typed, or one sentence why not."""
    try:
        address = IPv4Address(text)
    except ValueError:
        raise UsageError(f"{text} is not an IPv4 address: give one of {universe.range_v4}") from None
    number = universe.number_of(address)
    if number is None:
        raise UsageError(f"{text} lies outside --ipalloc-range {universe.range_v4}: give one inside")
    if number in (int(universe.range_v4.network_address), int(universe.range_v4.broadcast_address)):
        raise UsageError(f"{text} is the first or last address of {universe.range_v4}, which are reserved")
    return number
