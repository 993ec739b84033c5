"""Opens rtnetlink and reads links from it as values. Synchronous pyroute2: never on the event loop's thread.

Decides nothing. What reads here takes a bare ``Rtnl`` too, which an ADD uses: 30 us a link instead of 500. Called by
the other drivers of this room; nobody else in the product imports pyroute2.
"""

import contextlib
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from errno import ENODEV
from ipaddress import ip_address
from typing import Any, Final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from weave_router.host import rtnl_numbers as n
from weave_router.host.faults import Fault, HostError
from weave_router.host.rtnl import attributes as _attributes
from weave_router.host.rtnl_driver import Rtnl

Netlink = Any  # pyroute2.IPRoute, which carries no types
IFF_UP = 1
IF_OPER_UP = 6
NTF_MASTER = 0x04
NUD_NOARP = 0x40


@dataclass(frozen=True)
class Link:
    """What this room reads of a link. ``port``: IFLA_BRPORT_* values by short name, empty when it is no bridge port."""

    index: int
    name: str
    mac: str
    mtu: int
    up: bool
    carrier: bool
    master: int
    kind: str
    alias: str
    group: int
    gso_max_size: int
    txqlen: int
    active: bool
    """Its operational state is up: the kernel has begun to take packets for it."""
    port: dict[str, Any]


def open_netlink(fileno: int | None = None) -> Netlink:
    """The host's rtnetlink, or a pod's by a socket that was opened inside it (SOCK_DGRAM)."""
    return IPRoute() if fileno is None else IPRoute(fileno=fileno)


@contextlib.contextmanager
def explain(operation: str, link: str, fault: Fault = Fault.NETLINK, **words: object) -> Iterator[None]:
    """Turns a netlink refusal into the operator's sentence."""
    try:
        yield
    except NetlinkError as error:
        raise HostError(fault, operation=operation, link=link, errno=error.code, **words) from error
    except OSError as error:
        raise HostError(fault, operation=operation, link=link, errno=error.errno or 0, **words) from error


def find(ipr: Netlink | Rtnl, name: str) -> Link | None:
    if isinstance(ipr, Rtnl):
        return _find(ipr, name)
    try:
        return _link_of(ipr.link("get", ifname=name)[0])
    except NetlinkError as error:
        if error.code == ENODEV:
            return None
        raise HostError(Fault.NETLINK, operation="read link", link=name, errno=error.code) from error


def _find(rtnl: Rtnl, name: str) -> Link | None:
    body, code = rtnl.link(name)
    if code not in (0, ENODEV):
        raise HostError(Fault.NETLINK, operation="read link", link=name, errno=code)
    return None if code else _read_link(body)


def _read_link(body: bytes) -> Link:
    """An ifinfomsg and its attributes."""
    index, flags = struct.unpack_from("=iI", body, 4)
    found = _attributes(body[16:])
    info = _attributes(found.get(n.IFLA_LINKINFO, b""))
    port = _attributes(info.get(n.IFLA_INFO_SLAVE_DATA, b""))
    return Link(
        index=index,
        name=_text(found, n.IFLA_IFNAME),
        mac=found.get(n.IFLA_ADDRESS, b"").hex(":"),
        mtu=_number(found, n.IFLA_MTU),
        up=bool(flags & IFF_UP),
        carrier=bool(_number(found, n.IFLA_CARRIER)),
        master=_number(found, n.IFLA_MASTER),
        kind=_text(info, n.IFLA_INFO_KIND),
        alias=_text(found, n.IFLA_IFALIAS),
        group=_number(found, n.IFLA_GROUP),
        gso_max_size=_number(found, n.IFLA_GSO_MAX_SIZE),
        txqlen=_number(found, n.IFLA_TXQLEN),
        active=_number(found, n.IFLA_OPERSTATE) == IF_OPER_UP,
        port={name: _number(port, kind) for name, kind in PORT_FLAGS.items() if kind in port},
    )


def _text(found: dict[int, bytes], kind: int) -> str:
    return found.get(kind, b"").rstrip(b"\0").decode(errors="replace")


def _number(found: dict[int, bytes], kind: int) -> int:
    return int.from_bytes(found.get(kind, b""), sys.byteorder)


PORT_FLAGS: Final = {
    "state": n.IFLA_BRPORT_STATE,
    "mode": n.IFLA_BRPORT_MODE,
    "learning": n.IFLA_BRPORT_LEARNING,
    "unicast_flood": n.IFLA_BRPORT_UNICAST_FLOOD,
    "multicast_router": n.IFLA_BRPORT_MULTICAST_ROUTER,
    "locked": n.IFLA_BRPORT_LOCKED,
}
"""Of a bridge port, as pyroute2 names them."""


def need(ipr: Netlink | Rtnl, name: str) -> Link:
    link = find(ipr, name)
    if link is None:
        raise HostError(Fault.NO_LINK, link=name, errno=ENODEV)
    return link


def links(ipr: Netlink | Rtnl) -> list[Link]:
    """Of kernels before 6.7 the list may lack links beside one that went meanwhile: what is missing is to be looked for
    by name before anything is concluded from that."""
    with explain("list", "links"):
        if isinstance(ipr, Rtnl):
            return [_read_link(body) for body in ipr.links()]
        return [_link_of(message) for message in ipr.get_links()]


def set_if_there(ipr: Netlink, operation: str, link: Link, command: str = "link", **words: Any) -> None:
    """Change a link that was there a moment ago: the kernel takes a port away with its pod's namespace."""
    try:
        with explain(operation, link.name):
            getattr(ipr, command)("set", index=link.index, **words)
    except HostError as error:
        if error.errno != ENODEV:
            raise


def _link_of(message: Any) -> Link:
    info = message.get_attr("IFLA_LINKINFO")
    port = info.get_attr("IFLA_INFO_SLAVE_DATA") if info else None
    return Link(
        index=message["index"],
        name=message.get_attr("IFLA_IFNAME") or "",
        mac=message.get_attr("IFLA_ADDRESS") or "",
        mtu=message.get_attr("IFLA_MTU") or 0,
        up=bool(message["flags"] & IFF_UP),
        carrier=bool(message.get_attr("IFLA_CARRIER")),
        master=message.get_attr("IFLA_MASTER") or 0,
        kind=(info.get_attr("IFLA_INFO_KIND") if info else None) or "",
        alias=message.get_attr("IFLA_IFALIAS") or "",
        group=message.get_attr("IFLA_GROUP") or 0,
        gso_max_size=message.get_attr("IFLA_GSO_MAX_SIZE") or 0,
        txqlen=message.get_attr("IFLA_TXQLEN") or 0,
        active=message.get_attr("IFLA_OPERSTATE") == "UP",
        port=_port_of(port),
    )


def _port_of(data: Any) -> dict[str, Any]:
    if data is None or not hasattr(data, "get") or "attrs" not in data:
        return {}
    return {
        name.removeprefix("IFLA_BRPORT_").lower(): value
        for name, value in data["attrs"]
        if name.startswith("IFLA_BRPORT_")
    }


def addresses(ipr: Netlink | Rtnl, index: int) -> list[str]:
    """All addresses of a link as ``address/length``."""
    if isinstance(ipr, Rtnl):
        return addresses_by_link(ipr).get(index, [])
    with explain("list addresses of", f"link {index}"):
        return [f"{m.get_attr('IFA_ADDRESS')}/{m['prefixlen']}" for m in ipr.get_addr(index=index)]


def addresses_by_link(rtnl: Rtnl) -> dict[int, list[str]]:
    """Of every link that has one, by its index, likewise."""
    found: dict[int, list[str]] = {}
    with explain("list", "addresses"):
        for index, packed, length in rtnl.addresses():
            found.setdefault(index, []).append(f"{ip_address(packed)}/{length}")
    return found
