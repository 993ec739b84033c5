"""What the node's bridge must look like, as a value. Pure; bridge_driver.py makes it so.

The caller derives MAC and addresses from the node's host number (ipam/); this file knows no allocation.
"""

from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Address, IPv6Interface
from typing import Final

from weave_router.ipam.number import mac_text
from weave_router.limits import (
    SUPERFRAME_DATAGRAM_OVERHEAD,
    SUPERFRAME_SEGMENTS,
    SUPERFRAME_SEND_BYTES,
)

MTU_LINK_MAX: Final = 65535
_TCP_HEADER_RESERVE: Final = 256  # what the kernel subtracts from gso_max_size before it divides (MAX_TCP_HEADER)
_TCP4_HEADERS: Final = 40
_TCP6_HEADERS_LONG: Final = 72  # IPv6, timestamps


@dataclass(frozen=True)
class BridgePlan:
    """``addresses``: one per family, with the universe's length. ``mac``: derived; None until there is a number."""

    name: str
    tap: str
    mtu: int
    mac: str | None = None
    addresses: tuple[IPv4Interface | IPv6Interface, ...] = ()
    refuse: frozenset[str] = frozenset()


def wants_hairpin(option: str, bridge_netfilter: bool) -> bool:
    """With bridge netfilter a pod reaches itself through a Service only by its own port; without, the host routes."""
    return option == "on" or (option == "auto" and bridge_netfilter)


def gso_max_size(mtu: int) -> int:
    """Largest superframe of this MTU whose datagrams still fit one send, whatever the TCP headers (about 45 MSS)."""
    segments = min(SUPERFRAME_SEGMENTS, SUPERFRAME_SEND_BYTES // (mtu + SUPERFRAME_DATAGRAM_OVERHEAD))
    wanted = segments * (mtu - _TCP4_HEADERS)
    bound = (segments + 1) * (mtu - _TCP6_HEADERS_LONG) - 1
    return _TCP_HEADER_RESERVE + min(wanted, bound)


def random_mac(random: bytes) -> str:
    """A local unicast MAC from six random bytes: the bridge's until it has its number."""
    return mac_text(bytes([random[0] & 0xFC | 0x02]) + random[1:6])


def link_local_of(mac: str) -> IPv6Address:
    """The EUI-64 link-local address the kernel gives a link (RFC 4291, appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    return IPv6Address(b"\xfe\x80" + bytes(6) + bytes([octets[0] ^ 0x02]) + octets[1:3] + b"\xff\xfe" + octets[3:])
