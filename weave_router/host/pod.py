"""How one pod is wired, as a value. Pure; pod_driver.py carries it out.

The caller chose the addresses (ipam/, or the operator). An IPv6 address and the MAC follow from the IPv4 address: the
host number. Called by the attach handlers of the composition root and cni/.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Final, cast

from weave_router.host.bridge import gso_max_size, link_local_of
from weave_router.host.faults import Fault, HostError
from weave_router.host.names import check_ifname, port_name
from weave_router.host.netfilter import PortGuard
from weave_router.ipam.number import mac_of, mac_text
from weave_router.limits import POD_MTU_MAX, POD_MTU_MIN

ALIAS_PREFIX: Final = "weave-router "
DEFAULT_V4: Final = IPv4Network("0.0.0.0/0")
DEFAULT_V6: Final = IPv6Network("::/0")
_ALIAS_MAX: Final = 255  # IFALIASZ - 1


@dataclass(frozen=True)
class PodRoute:
    """One more route of a pod. ``gateway`` None: the bridge."""

    to: IPv4Network | IPv6Network
    gateway: IPv4Address | IPv6Address | None = None


@dataclass(frozen=True)
class PodPlan:
    """``attachment``: who the pod is (container id, or the namespace's device and inode), unique on this node."""

    attachment: str
    ifname: str
    port: str
    bridge: str
    mac: str
    mtu: int
    gso_max_size: int
    ipv4: IPv4Interface
    ipv6: IPv6Interface | None = None
    gateway_ipv4: IPv4Address | None = None
    gateway_ipv6: IPv6Address | None = None
    hairpin: bool = False
    station: bool = False
    refuse: frozenset[str] = frozenset()
    routes: tuple[PodRoute, ...] = ()
    """Beside the default ones; each with its gateway."""
    more: tuple[IPv4Interface | IPv6Interface, ...] = ()
    """Addresses beside the first of each family."""

    @property
    def addresses(self) -> tuple[IPv4Interface | IPv6Interface, ...]:
        return (self.ipv4, *((self.ipv6,) if self.ipv6 else ()), *self.more)

    @property
    def alias(self) -> str:
        """Written on the port: says whose it is to people, to a collision check and to reconciliation."""
        shown = ",".join(str(one.ip) for one in self.addresses if one.version == 4)
        return f"{ALIAS_PREFIX}{self.attachment} {self.ifname} {shown}"[:_ALIAS_MAX]

    @cached_property
    def guard(self) -> PortGuard:
        ipv4 = tuple(one.ip for one in self.addresses if isinstance(one, IPv4Interface))
        ipv6 = tuple(one.ip for one in self.addresses if isinstance(one, IPv6Interface))
        link_local = (link_local_of(self.mac),) if ipv6 else ()
        return PortGuard(self.port, self.mac, ipv4, ipv6 + link_local, self.station)

    def renamed(self, salt: int) -> "PodPlan":
        """The same pod with the next port name: its first choice belongs to another pod."""
        return self.on(port_name(self.attachment, self.ifname, salt))

    def on(self, port: str) -> "PodPlan":
        """The same pod by the name that its port really has."""
        return self if port == self.port else replace(self, port=port)


@dataclass(frozen=True)
class Attached:
    """What stands now. ``port_index`` and ``pod_index`` are link indices, each in its own namespace; ``default_v4`` and
    ``default_v6``: the default route is ours."""

    port: str
    port_index: int
    pod_index: int
    mac: str
    ipv4: IPv4Interface
    ipv6: IPv6Interface | None
    port_mac: str
    bridge_mac: str
    default_v4: bool
    default_v6: bool


def pod_plan(
    *,
    attachment: str,
    address: IPv4Interface,
    universe_v4: IPv4Network,
    universe_v6: IPv6Network | None,
    bridge: str,
    bridge_address: IPv4Address | None,
    mtu: int,
    ifname: str = "eth0",
    default_ipv6: bool = False,
    hairpin: bool = False,
    station: bool = False,
    refuse: frozenset[str] = frozenset(),
    mac: str = "",
    routes: Iterable[PodRoute] = (),
    more: Iterable[IPv4Interface] = (),
) -> PodPlan:
    """Derive everything from the address. ``default_ipv6``: the host itself has an IPv6 default route; ``mac``: another
    one than the derived. A default route among ``routes`` says by whom; it takes the place of ours."""
    check_ifname(ifname, "--ifname")
    if address.ip not in universe_v4:
        raise HostError(Fault.POD_ADDRESS, link=ifname, address=address.ip, universe=universe_v4)
    check_mtu(mtu)
    if bridge_address is None:
        raise HostError(Fault.BRIDGE_NO_NUMBER, link=bridge)
    number, more = int(address.ip), tuple(more)
    ipv6 = universe_v6[number] if universe_v6 is not None else None
    bridge_ipv6 = universe_v6[int(bridge_address)] if universe_v6 is not None else None
    by: dict[IPv4Network | IPv6Network, IPv4Address | IPv6Address | None] = {DEFAULT_V4: bridge_address}
    by[DEFAULT_V6] = bridge_ipv6 if default_ipv6 else None
    for route in routes:
        by[route.to] = route.gateway or (bridge_address if route.to.version == 4 else bridge_ipv6)
    gateway_ipv4, gateway_ipv6 = by.pop(DEFAULT_V4), by.pop(DEFAULT_V6)
    twins = [IPv6Interface((universe_v6[int(one.ip)], 96)) for one in more] if universe_v6 is not None else []
    plan = PodPlan(
        attachment=attachment,
        ifname=ifname,
        port=port_name(attachment, ifname),
        bridge=bridge,
        mac=mac or mac_text(mac_of(number)),
        mtu=mtu,
        gso_max_size=gso_max_size(mtu),
        ipv4=address,
        ipv6=IPv6Interface((ipv6, 96)) if ipv6 is not None else None,
        gateway_ipv4=cast(IPv4Address, gateway_ipv4),
        gateway_ipv6=cast(IPv6Address | None, gateway_ipv6),
        hairpin=hairpin,
        station=station,
        refuse=refuse,
        routes=tuple(PodRoute(to, gateway) for to, gateway in by.items()),
        more=(*more, *twins),
    )
    if more and len(plan.alias) == _ALIAS_MAX:  # a start has to read them all
        raise HostError(Fault.POD_ADDRESSES, link=ifname, count=1 + len(more))
    return plan


def check_mtu(mtu: int) -> int:
    if not POD_MTU_MIN <= mtu <= POD_MTU_MAX:
        raise HostError(Fault.POD_MTU, mtu=mtu, least=POD_MTU_MIN, most=POD_MTU_MAX)
    return mtu


def read_alias(alias: str) -> list[tuple[str, str, IPv4Address]]:
    """(attachment, interface, address) of each address of a port of ours; nothing of what somebody else wrote or the
    kernel cut off."""
    words = alias.removeprefix(ALIAS_PREFIX).rsplit(" ", 2)
    if not alias.startswith(ALIAS_PREFIX) or len(words) != 3:
        return []
    try:
        return [(words[0], words[1], IPv4Address(address)) for address in words[2].split(",")]
    except ValueError:
        return []
