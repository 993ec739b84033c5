"""Does the range of the overlay collide with what this host routes or asks? Pure.

Called before ``launch`` builds anything: a range that covers the site's own network cuts the machine off.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from weave_router.host.faults import Fault, sentence

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address


@dataclass(frozen=True)
class HostRoute:
    network: Network
    link: str


def overlap(
    universes: Iterable[Network],
    routes: Iterable[HostRoute],
    nameservers: Iterable[Address],
    *,
    own_links: Collection[str],
    resolv_conf: str = "/etc/resolv.conf",
) -> str | None:
    """The sentence with the way out, or None. ``own_links``: our bridge, whose routes are the range itself."""
    routes, nameservers = list(routes), list(nameservers)
    for universe in universes:
        for route in routes:
            if route.link not in own_links and route.network.prefixlen and _meet(universe, route.network):
                return sentence(Fault.RANGE_ROUTE, universe=universe, route=route.network, link=route.link)
        for nameserver in nameservers:
            if nameserver in universe:
                return sentence(Fault.RANGE_NAMESERVER, universe=universe, nameserver=nameserver, path=resolv_conf)
    return None


def _meet(one: Network, other: Network) -> bool:
    return one.version == other.version and one.overlaps(other)


def nameservers_untrusted(resolv_conf: str) -> list[Address]:
    """Addresses of ``nameserver`` lines (resolv.conf(5)); lines that are none are skipped, as the resolver does."""
    found = []
    for line in resolv_conf.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                found.append(ip_address(words[1].split("%")[0]))
            except ValueError:
                continue
    return found


def network_of(destination: str, length: int) -> Network:
    return ip_network(f"{destination}/{length}", strict=False)
