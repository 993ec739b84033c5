"""Reads what is below the overlay: underlay interface and MTU, the host's routes and nameservers. Changes nothing.

Synchronous, in a worker thread. Called by the composition root at start and by the doctor.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from socket import AF_INET, AF_INET6
from typing import Any, Final

from pyroute2.netlink.exceptions import NetlinkError

from weave_router.host.faults import Fault, HostError
from weave_router.host.netlink_driver import Link, Netlink, explain, links
from weave_router.host.overlap import Address, HostRoute, nameservers_untrusted, network_of
from weave_router.limits import POD_MTU_MAX, POD_MTU_MIN, UNDERLAY_OVERHEAD

_RTN_UNICAST: Final = 1
_RT_TABLE_LOCAL: Final = 255
_RESOLV_CONF: Final = Path("/etc/resolv.conf")


@dataclass(frozen=True)
class Underlay:
    link: str
    mtu: int

    @property
    def pod_mtu(self) -> int:
        return default_pod_mtu(self.mtu)


def default_pod_mtu(underlay_mtu: int) -> int:
    """Room for an IPv6 underlay, a relay and one VLAN tag; never below what IPv6 in the pods needs."""
    return max(POD_MTU_MIN, min(POD_MTU_MAX, underlay_mtu - UNDERLAY_OVERHEAD))


def underlay(ipr: Netlink, peers: Iterable[str] = (), *, own_links: Collection[str] = ()) -> Underlay:
    """The narrowest interface on the way to the peers; without peers that of the default route, else any that is up.
    A peer may be this host itself (one list for all): the way to it, loopback, is none."""
    by_index = {link.index: link for link in links(ipr)}
    found = [by_index[index] for peer in peers if (index := _route_to(ipr, peer)) in by_index]
    candidates = [link for link in found if link.name != "lo"]
    candidates = candidates or [by_index[index] for index in _defaults(ipr) if index in by_index]
    candidates = candidates or [link for link in by_index.values() if _may_carry(link)]
    usable = [link for link in candidates if link.name not in own_links]
    if not usable:
        raise HostError(Fault.NO_UNDERLAY)
    narrowest = min(usable, key=lambda link: (link.mtu, link.index))
    return Underlay(narrowest.name, narrowest.mtu)


def _may_carry(link: Link) -> bool:
    return link.up and link.name != "lo" and not link.master and link.kind not in ("bridge", "tun")


def _route_to(ipr: Netlink, peer: str) -> int:
    """The interface's index; 0 for a name, and for what is unreachable now: it says nothing about the MTU."""
    try:
        return int(ipr.route("get", dst=str(ip_address(peer)))[0].get_attr("RTA_OIF") or 0)
    except (ValueError, NetlinkError, IndexError):
        return 0


def _defaults(ipr: Netlink) -> list[int]:
    """Interfaces of the default routes, the preferred metric of each family alone."""
    found = []
    for family in (AF_INET, AF_INET6):
        routes = [route for route in _routes(ipr, family) if route["dst_len"] == 0 and _oif(route)]
        if routes:
            found.append(_oif(min(routes, key=lambda route: route.get_attr("RTA_PRIORITY") or 0)))
    return found


def has_default_route(ipr: Netlink, family: int) -> bool:
    return any(route["dst_len"] == 0 for route in _routes(ipr, family))


def _routes(ipr: Netlink, family: int) -> list[Any]:
    with explain("list", "routes"):
        return [
            route
            for route in ipr.get_routes(family=family)
            if route["type"] == _RTN_UNICAST and route.get_attr("RTA_TABLE", route["table"]) != _RT_TABLE_LOCAL
        ]


def _oif(route: Any) -> int:
    """Of a multipath route the first way: they carry the same packets, so any of them speaks for the MTU."""
    ways = route.get_attr("RTA_MULTIPATH") or ()
    return int(route.get_attr("RTA_OIF") or (ways[0]["oif"] if ways else 0))


def host_routes(ipr: Netlink) -> list[HostRoute]:
    """Every route of the host that leads somewhere, default and link-local routes left out."""
    names = {link.index: link.name for link in links(ipr)}
    found = []
    for family in (AF_INET, AF_INET6):
        for route in _routes(ipr, family):
            destination = route.get_attr("RTA_DST")
            if destination and not ip_address(destination).is_link_local:
                network = network_of(destination, route["dst_len"])
                found.append(HostRoute(network, names.get(_oif(route), "no link")))
    return found


def nameservers(path: Path = _RESOLV_CONF) -> list[Address]:
    try:
        return nameservers_untrusted(path.read_text(errors="replace"))
    except OSError:
        return []
