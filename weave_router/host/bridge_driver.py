"""Makes the bridge of a plan, with the TAP as its port, and checks that it stayed so. Idempotent.

Synchronous, in a worker thread. Called by the composition root at start, when the number is known and after each
attach (``verify``); reset_driver.py removes what this file made.
"""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import replace
from errno import EEXIST
from ipaddress import IPv4Interface, IPv6Interface

from pyroute2.netlink.exceptions import NetlinkError

from weave_router import limits
from weave_router.host import sysctl_driver
from weave_router.host.bridge import MTU_LINK_MAX, BridgePlan, gso_max_size, random_mac
from weave_router.host.faults import Fault, HostError
from weave_router.host.netlink_driver import Link, Netlink, addresses, explain, find, links, need
from weave_router.host.rtnl_driver import Rtnl

_IFA_F_NODAD = 0x02
_MCAST_ROUTER_PERMANENT = 2


def ensure(ipr: Netlink, plan: BridgePlan) -> Link:
    """Bridge and TAP port as planned; what is so already is left alone. The TAP exists (tap_driver.py)."""
    bridge = find(ipr, plan.name) or _create(ipr, plan.name)
    if bridge.kind != "bridge":
        raise HostError(Fault.LINK_KIND, link=plan.name, kind=bridge.kind or "physical link", wanted="bridge")
    _sysctls(ipr, plan)
    _pin_mtu(ipr, bridge, plan.mtu)
    if plan.mac is not None and bridge.mac != plan.mac:
        with explain("set the MAC of", plan.name):
            ipr.link("set", index=bridge.index, address=plan.mac)
    _set_addresses(ipr, bridge, plan)
    if not bridge.up:
        with explain("bring up", plan.name):
            ipr.link("set", index=bridge.index, state="up")
    with explain("make a multicast querier of", plan.name):
        # Else a group that a pod left, or that ended with its pod, would be asked for from all nodes for ever.
        ipr.link("set", index=bridge.index, kind="bridge", br_mcast_querier=1)
    _ensure_tap_port(ipr, bridge, plan)
    problems = verify(ipr, plan)
    if problems:
        raise HostError(Fault.NOT_AS_SET, link=plan.name, what="; ".join(problems))
    return need(ipr, plan.name)


def add_addresses(ipr: Netlink, plan: BridgePlan, more: Sequence[IPv4Interface | IPv6Interface]) -> None:
    """Beside the bridge's own (`expose`); what is there already is left alone."""
    _set_addresses(ipr, need(ipr, plan.name), replace(plan, addresses=tuple(more)))


def remove_addresses(ipr: Netlink, plan: BridgePlan, gone: Sequence[IPv4Interface | IPv6Interface]) -> None:
    bridge = need(ipr, plan.name)
    present = addresses(ipr, bridge.index)
    for address in gone:
        if str(address) in present:
            with explain(f"remove address {address} from", plan.name):
                ipr.addr("del", index=bridge.index, address=str(address.ip), prefixlen=address.network.prefixlen)


def verify(ipr: Netlink | Rtnl, plan: BridgePlan) -> list[str]:
    """What is not as planned, in words; empty when all is well."""
    bridge, tap = find(ipr, plan.name), find(ipr, plan.tap)
    if bridge is None:
        return [f"{plan.name} is gone"]
    if tap is None:
        return [f"{plan.tap} is gone"]
    present = addresses(ipr, bridge.index)
    checks = {
        f"{plan.name} is down": bridge.up,
        f"its MTU is {bridge.mtu} instead of {plan.mtu}": bridge.mtu == plan.mtu,
        f"its MAC is {bridge.mac} instead of {plan.mac}": plan.mac in (None, bridge.mac),
        f"{plan.tap} is no port of it": tap.master == bridge.index,
        f"{plan.tap} is down": tap.up,
        f"the MTU of {plan.tap} is {tap.mtu} instead of {plan.mtu}": tap.mtu == plan.mtu,
        f"mcast_router of {plan.tap} is not {_MCAST_ROUTER_PERMANENT}": tap.port.get("multicast_router")
        == _MCAST_ROUTER_PERMANENT,
    }
    checks |= {f"address {address} is gone": str(address) in present for address in plan.addresses}
    checks |= {f"sysctl {name} is not {value}": sysctl_driver.read(name) in (None, value) for name, value in _own(plan)}
    return [problem for problem, well in checks.items() if not well]


def has_netfilter(ipr: Netlink, name: str) -> bool:
    """Whether frames on this bridge pass iptables and nft: by its own switches, or by those of its namespace."""
    everywhere = [sysctl_driver.read(f"net/bridge/bridge-nf-call-{table}tables") for table in ("ip", "ip6")]
    with explain("read the switches of", name):
        info = ipr.link("get", ifname=name)[0].get_attr("IFLA_LINKINFO")
    data = info.get_attr("IFLA_INFO_DATA") if info else None
    own = [data.get_attr(f"IFLA_BR_NF_CALL_{table}TABLES") for table in ("IP", "IP6")] if data else []
    return everywhere[0] is not None and ("1" in everywhere or 1 in own)


def set_netfilter(ipr: Netlink, name: str, on: bool) -> None:
    """By the bridge's own switches: the sysctl would be for all bridges of the host."""
    if on and sysctl_driver.read("net/bridge/bridge-nf-call-iptables") is None:
        raise HostError(Fault.BRIDGE_NETFILTER, link=name)
    bridge = need(ipr, name)
    with explain(f"switch bridge netfilter {'on' if on else 'off'} for", name):
        ipr.link("set", index=bridge.index, kind="bridge", br_nf_call_iptables=int(on), br_nf_call_ip6tables=int(on))


def _create(ipr: Netlink, name: str) -> Link:
    """The MAC stands in the message that creates it: a bridge without one takes that of each lowest port."""
    with explain("create bridge", name):
        try:
            ipr.link("add", ifname=name, kind="bridge", address=random_mac(os.urandom(6)))
        except NetlinkError as error:
            if error.code != EEXIST:
                raise
    return need(ipr, name)


def _own(plan: BridgePlan) -> list[tuple[str, str]]:
    ipv4, ipv6 = f"net/ipv4/conf/{plan.name}", f"net/ipv6/conf/{plan.name}"
    strict = "1" in (sysctl_driver.read("net/ipv4/conf/all/rp_filter"), sysctl_driver.read(f"{ipv4}/rp_filter"))
    loose = [(f"{ipv4}/rp_filter", "2")] if strict else []  # the kernel takes the greater of all and own
    own = [(f"{ipv4}/forwarding", "1"), (f"{ipv6}/accept_ra", "0"), (f"{ipv6}/accept_dad", "0"), *loose]
    if any(address.version == 6 for address in plan.addresses):
        own += [(f"{ipv6}/disable_ipv6", "0"), (f"{ipv6}/forwarding", "1")]
    return own


def _sysctls(ipr: Netlink, plan: BridgePlan) -> None:
    for name, value in _own(plan):
        sysctl_driver.write(name, value, link=plan.name)
    sysctl_driver.write("net/ipv4/ip_forward", "1", link=plan.name)
    for family in ("ipv4", "ipv6"):
        _more_neighbours(family)
    if any(address.version == 6 for address in plan.addresses):
        _forward_ipv6(ipr, plan)


def _more_neighbours(family: str) -> None:
    """Of the whole machine, so only where this is its first namespace. Greatest first: the others lie below it."""
    for serial, wanted in ((3, limits.NEIGHBOURS), (2, limits.NEIGHBOURS // 2), (1, limits.NEIGHBOURS // 4)):
        name = f"net/{family}/neigh/default/gc_thresh{serial}"
        present = sysctl_driver.read(name)
        if present is not None and int(present) < wanted:
            with contextlib.suppress(HostError):  # the doctor names what stayed
                sysctl_driver.write(name, str(wanted), link="the machine's neighbours")


def _forward_ipv6(ipr: Netlink, plan: BridgePlan) -> None:
    """Forwarding makes a host deaf to router advertisements: one that lives by them is told to listen on (2)."""
    if sysctl_driver.read("net/ipv6/conf/all/forwarding") in (None, "1"):
        return
    for link in links(ipr):
        name = f"net/ipv6/conf/{link.name}/accept_ra"
        if link.name not in (plan.name, plan.tap, "lo") and sysctl_driver.read(name) == "1":
            sysctl_driver.write(name, "2", link=link.name)
    sysctl_driver.write("net/ipv6/conf/all/forwarding", "1", link=plan.name)
    for name, value in _own(plan):  # "all" was copied into every link
        sysctl_driver.write(name, value, link=plan.name)


def _pin_mtu(ipr: Netlink, bridge: Link, mtu: int) -> None:
    """Two different values: setting the present one is no change to the kernel and pins nothing against the ports."""
    other = mtu - 1 if mtu == MTU_LINK_MAX else mtu + 1
    with explain("set the MTU of", bridge.name):
        if bridge.mtu != other:
            ipr.link("set", index=bridge.index, mtu=other)
        ipr.link("set", index=bridge.index, mtu=mtu)
    # The host's own superframes pass the same TAP. Old kernels take no such attribute: slower, no error.
    if bridge.gso_max_size != gso_max_size(mtu):
        with contextlib.suppress(NetlinkError):
            ipr.link("set", index=bridge.index, gso_max_size=gso_max_size(mtu))


def _set_addresses(ipr: Netlink, bridge: Link, plan: BridgePlan) -> None:
    present = addresses(ipr, bridge.index)
    for address in plan.addresses:
        if str(address) in present:
            continue
        with explain(f"add address {address} to", plan.name):
            ipr.addr(
                "add",
                index=bridge.index,
                address=str(address.ip),
                prefixlen=address.network.prefixlen,
                flags=_IFA_F_NODAD if address.version == 6 else 0,
            )


def _ensure_tap_port(ipr: Netlink, bridge: Link, plan: BridgePlan) -> None:
    tap = need(ipr, plan.tap)
    sysctl_driver.write(f"net/ipv6/conf/{plan.tap}/disable_ipv6", "1", link=plan.tap)
    with explain("set the MTU of", plan.tap):
        if tap.mtu != plan.mtu:
            ipr.link("set", index=tap.index, mtu=plan.mtu)
    with explain("make a bridge port of", plan.tap):
        if tap.master != bridge.index:
            ipr.link("set", index=tap.index, master=bridge.index)
        if not tap.up:
            ipr.link("set", index=tap.index, state="up")
    with explain("set the bridge port flags of", plan.tap):
        # Else a multicast querier in a pod cuts off neighbour discovery across the overlay.
        ipr.brport("set", index=tap.index, multicast_router=_MCAST_ROUTER_PERMANENT)
