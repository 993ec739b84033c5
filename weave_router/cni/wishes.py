"""What a configuration may ask of a pod beside an address: MAC, MTU and routes, as values. Pure.

Written by an operator or a runtime: typed and bounded by verbs.py, checked for sense here; what depends on this node
(its range, its MTU) is checked by service.py. What would be ignored in silence is refused by name.
"""

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from weave_router.cni.codes import CniError, Code
from weave_router.host.pod import PodRoute
from weave_router.limits import CNI_ROUTES_MAX

Text = Annotated[str, Meta(max_length=4096)]
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_IPAM_OURS: Final = ("type", "ips", "routes")


class Route(msgspec.Struct):
    """As in the specification's results; the fields from ``mtu`` on (1.1.0) change how a route works."""

    to: Text = msgspec.field(name="dst")
    gateway: Text | None = msgspec.field(name="gw", default=None)
    mtu: int | None = None
    advmss: int | None = None
    priority: int | None = None
    table: int | None = None
    scope: int | None = None


Routes = Annotated[tuple[Route, ...], Meta(max_length=CNI_ROUTES_MAX)]


class Ipam(msgspec.Struct):
    """The router's own IPAM needs no configuration; these two may stand there as well."""

    ips: tuple[Text, ...] | None = None
    routes: Routes | None = None


def check_ipam(ipam: dict[str, Any]) -> None:
    """No plugin of another is called, and no key is passed over."""
    kind = ipam.get("type", "")
    if kind not in ("", "weave-router-cni"):
        raise CniError(Code.UNSUPPORTED_FIELD, f"\"ipam\" of type {str(kind)[:64]!r} is not supported: the router "
                                               "gives the addresses (`weave-router launch --help`); remove \"ipam\"")
    others = sorted(key for key, value in ipam.items() if value and key not in _IPAM_OURS)
    if others:
        raise CniError(Code.UNSUPPORTED_FIELD, f"\"{others[0][:64]}\" in \"ipam\" is not supported, \"ips\" and "
                                               "\"routes\" are: remove it; the range is the router's (--ipalloc-range)")


def mac_of(text: str) -> str:
    """Lower case, or empty for none."""
    mac = text.strip().lower().replace("-", ":")
    if mac and (not _MAC.fullmatch(mac) or int(mac[:2], 16) & 1 or not int(mac.replace(":", ""), 16)):
        raise CniError(Code.BAD_CONFIG, f"{text[:64]!r} is no MAC of one station (MAC, \"mac\"): six pairs of "
                                        "hexadecimal digits, the first one even")
    return mac


def routes_of(listed: tuple[Route, ...]) -> tuple[PodRoute, ...]:
    routes = tuple(map(_route, listed))
    doubles = [str(route.to) for n, route in enumerate(routes) if route.to in [one.to for one in routes[:n]]]
    if doubles:
        raise CniError(Code.BAD_CONFIG, f"\"routes\" names {doubles[0]} twice")
    return routes


def _route(route: Route) -> PodRoute:
    for name in ("mtu", "advmss", "priority", "table", "scope"):
        if getattr(route, name):
            raise CniError(Code.UNSUPPORTED_FIELD, f"\"{name}\" of the route to {route.to[:64]} is not supported: "
                                                   "\"dst\" and \"gw\" are; remove it")
    to, gateway = _network(route.to), _gateway(route.gateway)
    if gateway is not None and gateway.version != to.version:
        raise CniError(Code.BAD_CONFIG, f"\"gw\" {gateway} of the route to {to} is of the other family")
    return PodRoute(to, gateway)


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text)
    except ValueError as error:
        raise CniError(Code.BAD_CONFIG, f"\"dst\" of a route: {str(error)[:100]}") from None


def _gateway(text: str | None) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text) if text else None
    except ValueError as error:
        raise CniError(Code.BAD_CONFIG, f"\"gw\" of a route: {str(error)[:100]}") from None
