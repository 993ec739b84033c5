"""rtnetlink messages as bytes, built once per pod and sent in batches: 3 us each, where pyroute2 takes 170. Pure.

Only what wiring a pod needs (pod_driver.py); everything that is not on the way of an ADD stays with pyroute2. Layouts:
linux/netlink.h, rtnetlink.h, if_link.h, neighbour.h. rtnl_driver.py numbers, sends and reads them.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Final

from weave_router.host.rtnl_numbers import (
    AF_BRIDGE,
    AF_INET,
    AF_INET6,
    AF_UNSPEC,
    BR_STATE_DISABLED,
    IFA_ADDRESS,
    IFA_FLAGS,
    IFA_LOCAL,
    IFLA_ADDRESS,
    IFLA_AF_SPEC,
    IFLA_BRPORT_STATE,
    IFLA_EXT_MASK,
    IFLA_GROUP,
    IFLA_GSO_MAX_SIZE,
    IFLA_IFALIAS,
    IFLA_IFNAME,
    IFLA_INET6_ADDR_GEN_MODE,
    IFLA_INFO_DATA,
    IFLA_INFO_KIND,
    IFLA_INFO_SLAVE_DATA,
    IFLA_INFO_SLAVE_KIND,
    IFLA_LINKINFO,
    IFLA_MASTER,
    IFLA_MTU,
    IFLA_NET_NS_FD,
    IFLA_PROTINFO,
    NDA_LLADDR,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    NLM_F_REQUEST,
    RTA_DST,
    RTA_GATEWAY,
    RTA_OIF,
    RTEXT_FILTER_SKIP_STATS,
    RTM_DELLINK,
    RTM_DELNEIGH,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
    RTM_SETLINK,
    VETH_INFO_PEER,
)

IFF_UP: Final = 1
_NESTED: Final = 0x8000
_NTF_MASTER, _NTF_STICKY, _NUD_NOARP, _RTNH_F_ONLINK = 0x04, 0x40, 0x40, 4
_RT_TABLE_MAIN, _RTPROT_BOOT, _RTN_UNICAST = 254, 3, 1
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
_ROUTE = struct.Struct("=BBBBBBBBI")
_HEAD = struct.Struct("=HH")
NETLINK_HEAD: Final = struct.Struct("=IHHII")
"""nlmsghdr: length of all, kind, flags, number, 0."""

Address = IPv4Interface | IPv6Interface


@dataclass(frozen=True)
class Message:
    """``flags`` beside request and acknowledgement."""

    kind: int
    flags: int
    body: bytes


def attribute(kind: int, data: bytes) -> bytes:
    return _HEAD.pack(4 + len(data), kind) + data + bytes(-len(data) % 4)


def attributes(data: bytes) -> dict[int, bytes]:
    """kind -> payload of each that stands in ``data``. A link has a hundred of them, and an ADD reads five links."""
    found: dict[int, bytes] = {}
    at, last, unpack = 0, len(data) - _HEAD.size, _HEAD.unpack_from
    while at <= last:
        length, kind = unpack(data, at)
        if length < _HEAD.size:
            break
        found[kind & 0x3FFF] = data[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


def framed(messages: Sequence[Message], first: int, answered: int) -> bytes:
    """For one send, numbered from ``first``. The kernel answers what it refuses, and number ``answered``."""
    return b"".join(
        NETLINK_HEAD.pack(NETLINK_HEAD.size + len(m.body), m.kind,
                          m.flags | NLM_F_REQUEST | (n == answered and NLM_F_ACK), n, 0) + m.body
        for n, m in enumerate(messages, start=first))  # fmt: skip


def nested(kind: int, *inner: bytes) -> bytes:
    return attribute(kind | _NESTED, b"".join(inner))


def _text(kind: int, text: str) -> bytes:
    return attribute(kind, text.encode() + b"\0")


def _u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def _mac(kind: int, mac: str) -> bytes:
    return attribute(kind, bytes.fromhex(mac.replace(":", "")))


# -- links ---------------------------------------------------------------------------------------------------------


def link_get(name: str) -> Message:
    return Message(RTM_GETLINK, 0, _LINK.pack(AF_UNSPEC, 0, 0, 0, 0) + _text(IFLA_IFNAME, name))


def link_list() -> Message:
    """Without counters."""
    return Message(RTM_GETLINK, 0, _LINK.pack(AF_UNSPEC, 0, 0, 0, 0) + _u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS))


def pair_new(port: str, mtu: int, bridge: int, peer: str, peer_mac: str, peer_gso: int, netns: int) -> Message:
    """Both ends at once, down: the port in its bridge, the peer in its namespace under its name, MAC and MTU."""
    inside = (
        _LINK.pack(AF_UNSPEC, 0, 0, 0, 0) + _text(IFLA_IFNAME, peer) + _mac(IFLA_ADDRESS, peer_mac)
        + _u32(IFLA_MTU, mtu) + _u32(IFLA_GSO_MAX_SIZE, peer_gso) + _u32(IFLA_NET_NS_FD, netns)
    )  # fmt: skip
    kind = _text(IFLA_INFO_KIND, "veth") + nested(IFLA_INFO_DATA, attribute(VETH_INFO_PEER | _NESTED, inside))
    return Message(
        RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL,
        _LINK.pack(AF_UNSPEC, 0, 0, 0, 0) + _text(IFLA_IFNAME, port) + _u32(IFLA_MTU, mtu) + _u32(IFLA_MASTER, bridge)
        + nested(IFLA_LINKINFO, kind),
    )  # fmt: skip


def port_set(index: int, flags: dict[int, int]) -> Message:
    """Bridge port flags (IFLA_BRPORT_*, one byte each) of a bridge's port. Kernels pass over flags that they do not
    know."""
    inner = b"".join(attribute(kind, bytes([value])) for kind, value in flags.items())
    info = _text(IFLA_INFO_SLAVE_KIND, "bridge") + nested(IFLA_INFO_SLAVE_DATA, inner)
    return Message(RTM_NEWLINK, 0, _LINK.pack(AF_UNSPEC, 0, index, 0, 0) + nested(IFLA_LINKINFO, info))


def link_alias(index: int, alias: str) -> Message:
    return Message(RTM_SETLINK, 0, _LINK.pack(AF_UNSPEC, 0, index, 0, 0) + _text(IFLA_IFALIAS, alias))


def link_up(index: int) -> Message:
    return Message(RTM_SETLINK, 0, _LINK.pack(AF_UNSPEC, 0, index, IFF_UP, IFF_UP))


def link_group(index: int, group: int) -> Message:
    return Message(RTM_SETLINK, 0, _LINK.pack(AF_UNSPEC, 0, index, 0, 0) + _u32(IFLA_GROUP, group))


def port_close(index: int) -> Message:
    """Not a frame comes in or goes out by this port of a bridge until its link changes, when the kernel opens it again.
    Free of the kernel's waits, which a link that goes down or leaves its bridge is not."""
    state = nested(IFLA_PROTINFO, attribute(IFLA_BRPORT_STATE, bytes([BR_STATE_DISABLED])))
    return Message(RTM_SETLINK, 0, _LINK.pack(AF_BRIDGE, 0, index, 0, 0) + state)


def link_away(index: int, group: int) -> Message:
    """Out of its bridge, down, and into a group."""
    head = _LINK.pack(AF_UNSPEC, 0, index, 0, IFF_UP)
    return Message(RTM_SETLINK, 0, head + _u32(IFLA_MASTER, 0) + _u32(IFLA_GROUP, group))


def link_delete(index: int) -> Message:
    return Message(RTM_DELLINK, 0, _LINK.pack(AF_UNSPEC, 0, index, 0, 0))


def group_delete(group: int) -> Message:
    return Message(RTM_DELLINK, 0, _LINK.pack(AF_UNSPEC, 0, 0, 0, 0) + _u32(IFLA_GROUP, group))


def link_mac(index: int, mac: str) -> Message:
    return Message(RTM_SETLINK, 0, _LINK.pack(AF_UNSPEC, 0, index, 0, 0) + _mac(IFLA_ADDRESS, mac))


def address_mode(index: int, mode: int) -> Message:
    """How the kernel makes the link-local address (IFLA_INET6_ADDR_GEN_MODE)."""
    inner = nested(AF_INET6, attribute(IFLA_INET6_ADDR_GEN_MODE, bytes([mode])))
    return Message(RTM_SETLINK, 0, _LINK.pack(AF_UNSPEC, 0, index, 0, 0) + nested(IFLA_AF_SPEC, inner))


# -- addresses, routes, forwarding ---------------------------------------------------------------------------------


def address_list() -> Message:
    return Message(RTM_GETADDR, 0, _ADDRESS.pack(AF_UNSPEC, 0, 0, 0, 0))


def address_new(index: int, address: Address, flags: int = 0) -> Message:
    head = _ADDRESS.pack(_family(address), address.network.prefixlen, flags & 0xFF, 0, index)
    packed = address.ip.packed
    body = attribute(IFA_LOCAL, packed) + attribute(IFA_ADDRESS, packed) + _u32(IFA_FLAGS, flags)
    return Message(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, head + body)


def route_new(index: int, to: IPv4Network | IPv6Network, gateway: IPv4Address | IPv6Address | None) -> Message:
    """On-link, because a pod may be given a /32. EEXIST where such a route stands already."""
    scope = 0 if gateway is not None or to.version == 6 else 253
    head = _ROUTE.pack(_family(to), to.prefixlen, 0, 0, _RT_TABLE_MAIN, _RTPROT_BOOT, scope, _RTN_UNICAST,
                       _RTNH_F_ONLINK if gateway is not None else 0)  # fmt: skip
    body = _u32(RTA_OIF, index)
    if to.prefixlen:
        body += attribute(RTA_DST, to.network_address.packed)
    if gateway is not None:
        body += attribute(RTA_GATEWAY, gateway.packed)
    return Message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, head + body)


def forwarding_entry(port: int, mac: str) -> Message:
    """Static, in the bridge of the port; sticky, for even a static one follows a frame with this source to the TAP."""
    head = _NEIGHBOUR.pack(AF_BRIDGE, port, _NUD_NOARP, _NTF_MASTER | _NTF_STICKY, 0)
    return Message(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, head + _mac(NDA_LLADDR, mac))


def forwarding_gone(port: int, mac: str) -> Message:
    """ENOENT where the bridge has the MAC at another port, or not at all."""
    head = _NEIGHBOUR.pack(AF_BRIDGE, port, 0, _NTF_MASTER, 0)
    return Message(RTM_DELNEIGH, 0, head + _mac(NDA_LLADDR, mac))


def _family(value: Address | IPv4Network | IPv6Network) -> int:
    return AF_INET if value.version == 4 else AF_INET6
