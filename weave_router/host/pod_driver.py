"""Wires a pod by a plan and takes it off again. Whatever fails, nothing stays.

Synchronous, in a worker thread. The host's side needs the host's netlink and nft; the pod's side goes through a
netlink socket that somebody opened inside the pod (handover_driver.py), so this process enters no namespace.
Called by the attach handlers of the composition root and cni/.
"""

import contextlib
import time
from collections.abc import Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass, replace
from errno import EAFNOSUPPORT, EEXIST, EINVAL, ENODEV, ENOENT, EOPNOTSUPP, ESRCH, EXFULL
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

from weave_router.host import rtnl as rtnl_messages
from weave_router.host import sysctl_driver
from weave_router.host.faults import Fault, HostError
from weave_router.host.names import GRAVE_GROUP, is_port_name
from weave_router.host.netfilter import PortGuard, guards_added, guards_removed
from weave_router.host.netlink_driver import (
    PORT_FLAGS,
    Link,
    Netlink,
    find,
    links,
    need,
    set_if_there,
)
from weave_router.host.nft_driver import Nft
from weave_router.host.pod import ALIAS_PREFIX, DEFAULT_V4, DEFAULT_V6, Attached, PodPlan, read_alias
from weave_router.host.rtnl import Message
from weave_router.host.rtnl_driver import Rtnl
from weave_router.host.rtnl_numbers import BR_STATE_FORWARDING
from weave_router.limits import PORT_NAME_TRIES, PORT_UP_SECONDS

_IFA_F_NODAD: Final = 0x02
_ADDR_GEN_EUI64: Final = 0
_NO_IPV6: Final = (EOPNOTSUPP, EINVAL, ENOENT, EAFNOSUPPORT)
"""What setting an address mode says in a pod without IPv6."""
_POLL_SECONDS: Final = 0.0002


@dataclass(frozen=True)
class Half:
    """A pod that is wired and not open yet. ``pod``: netlink inside it, the caller's to close."""

    plan: PodPlan
    pod: Rtnl
    port: Link
    inside: Link
    bridge_mac: str
    routed: tuple[bool, bool]


@dataclass(frozen=True)
class Leaving:
    """A port on its way off. ``index``: of its link; 0: not known."""

    guard: PortGuard
    index: int = 0


def enter(rtnl: Rtnl, nft: Nft, plans: Sequence[PodPlan]) -> list[PodPlan]:
    """The guards of ports to be, all in one transaction; the plans with the names that are free."""
    named: list[PodPlan] = []
    for plan in plans:
        named.append(_name_port(rtnl, nft, plan, {before.port for before in named}))
    nft.change(guards_added([plan.guard for plan in named]), f"add the guards of {', '.join(p.port for p in named)}")
    return named


def begin(rtnl: Rtnl, nft: Nft, plan: PodPlan, pod: Rtnl, netns_fd: int) -> Half:
    """Wire a pod whose guards are entered, all but the owner's name on its port: what stands without one is nobody's,
    and a router that starts removes it. ``pod``: netlink inside it, ``netns_fd``: it."""
    with ExitStack() as undo:
        undo.callback(_forget_guard, nft, plan.guard)
        bridge = need(rtnl, plan.bridge)
        undo.callback(_forget_pair, rtnl, plan.port)
        port = _create_pair(rtnl, plan, bridge, netns_fd)
        inside, routed = _configure_pod(pod, plan)
        _plug(rtnl, plan, port)
        undo.pop_all()
    return Half(plan, pod, port, inside, bridge.mac, routed)


def finish(rtnl: Rtnl, nft: Nft, half: Half) -> Attached:
    """Name the owner and announce the addresses: when this returns, the pod's first packet works."""
    plan = half.plan
    with ExitStack() as undo:
        undo.callback(abandon, rtnl, nft, half)
        _carry_out(plan.port, rtnl, ("name the owner of", rtnl_messages.link_alias(half.port.index, plan.alias)))
        port = _await_forwarding(rtnl, half.pod, plan)
        announced = rtnl_messages.link_mac(half.inside.index, plan.mac)
        _carry_out(plan.ifname, half.pod, ("announce the addresses of", announced))
        undo.pop_all()
    return Attached(plan.port, port.index, half.inside.index, plan.mac, plan.ipv4, plan.ipv6, port.mac, half.bridge_mac,
                    *half.routed)  # fmt: skip


def abandon(rtnl: Rtnl, nft: Nft, half: Half) -> None:
    """Nothing of it stays."""
    _forget_guard(nft, half.plan.guard)
    _forget_pair(rtnl, half.plan.port)


def detach(rtnl: Rtnl, nft: Nft, leaving: Sequence[Leaving]) -> list[int | HostError]:
    """At once closed and unknown to the bridge, which may have their MACs at other ports from now on; the pairs wait in
    a group for ``reap``. Per port its index, 0 where it was gone, or what the kernel said."""
    indices = [one.index or _index_of(rtnl, one.guard.port) for one in leaving]
    standing = [(one, index) for one, index in zip(leaving, indices, strict=True) if index]
    codes = rtnl.run(*(message for one, index in standing for message in (
        rtnl_messages.link_group(index, GRAVE_GROUP), rtnl_messages.port_close(index),
        rtnl_messages.forwarding_gone(index, one.guard.mac))))  # fmt: skip
    closed = {index: _closed(rtnl, one.guard.port, index, max(grouped, closed)) for (one, index), grouped, closed in
              zip(standing, codes[::3], codes[1::3], strict=True)}  # fmt: skip
    _remove_guards(nft, [one.guard for one in leaving])
    return [closed.get(index, 0) for index in indices]


def _closed(rtnl: Rtnl, port: str, index: int, code: int) -> int | HostError:
    if code not in (0, ENODEV):  # its bridge lets nobody close it (it speaks STP), or it is in none any more
        (code,) = rtnl.run(rtnl_messages.link_away(index, GRAVE_GROUP))
    if code in (0, ENODEV):  # the pod's end went, and the pair with it
        return 0 if code else index
    return HostError(Fault.NETLINK, operation="take out of the bridge", link=port, errno=code)


def _index_of(rtnl: Rtnl, name: str) -> int:
    found = find(rtnl, name)
    return 0 if found is None else found.index


def cut_off(ipr: Netlink, port: str) -> None:
    """The port goes down and stays: its pod lost its address."""
    found = find(ipr, port)
    if found is not None:
        set_if_there(ipr, "take down", found, state="down")


def reap(rtnl: Rtnl, closed: Sequence[int] = ()) -> None:
    """Delete all detached pairs in one call: 20 cost as much as one (10 to 20 ms). For 0.4 ms of that (20 pairs: 3) the
    kernel holds its lock; then it waits alone, and whoever else has a netlink goes on. Their names are free by then.
    ``closed``: ports that leave their bridge first, each by itself: for each the kernel waits with its lock held."""
    rtnl.run(*(rtnl_messages.link_away(index, GRAVE_GROUP) for index in closed))
    (code,) = rtnl.run(rtnl_messages.group_delete(GRAVE_GROUP))
    if code not in (0, ENODEV, EINVAL):  # an empty group
        raise HostError(Fault.NETLINK, operation="delete detached links of", link=f"group {GRAVE_GROUP:#x}", errno=code)


def ports(ipr: Netlink | Rtnl) -> list[Link]:
    """Every port of ours that stands on this host, by its name; whose it is stands in its alias."""
    return [link for link in links(ipr) if is_port_name(link.name) and link.group != GRAVE_GROUP]


def stands(rtnl: Rtnl, name: str) -> bool:
    """A port of this name that nobody detached."""
    link = find(rtnl, name)
    return link is not None and link.group != GRAVE_GROUP


def live(ipr: Netlink | Rtnl, bridge: str) -> list[tuple[str, str, IPv4Address]]:
    """(attachment, interface, address) of every pod that stands on this bridge, as the kernel has it."""
    link = find(ipr, bridge)
    held = [port for port in ports(ipr) if link is not None and port.master == link.index]
    return [pod for port in held for pod in read_alias(port.alias)]


def set_hairpin(rtnl: Rtnl, ipr: Netlink, on: bool) -> None:
    """At every port that has it otherwise."""
    for port in ports(rtnl):
        if port.master and port.port.get("mode") != int(on):
            set_if_there(ipr, "set hairpin of", port, "brport", mode=int(on))


def verify(ipr: Netlink | Rtnl, plan: PodPlan) -> list[str]:
    """What is not as planned at the host's side of a pod, in words."""
    port, bridge = find(ipr, plan.port), find(ipr, plan.bridge)
    if port is None or bridge is None:
        return [f"{plan.port if port is None else plan.bridge} is gone"]
    flags = {name: value for name, value in _port_flags(plan).items() if name != "locked" or "locked" in port.port}
    checks = {
        f"{plan.port} was detached": port.group != GRAVE_GROUP,
        f"{plan.port} is no port of {plan.bridge}": port.master == bridge.index,
        f"{plan.port} is down": port.up,
        f"the MTU of {plan.port} is {port.mtu} instead of {plan.mtu}": port.mtu == plan.mtu,
    }
    checks |= {f"{name} of {plan.port} is not {value}": port.port.get(name) == value for name, value in flags.items()}
    return [problem for problem, well in checks.items() if not well]


def _carry_out(link: str, rtnl: Rtnl, *steps: tuple[str, Message]) -> None:
    """All in one send; what the kernel refused first is told in words."""
    codes = rtnl.run(*(message for _, message in steps))
    for (operation, _), code in zip(steps, codes, strict=True):
        if code:
            raise HostError(Fault.NETLINK, operation=operation, link=link, errno=code)


def _name_port(rtnl: Rtnl, nft: Nft, plan: PodPlan, promised: Set[str]) -> PodPlan:
    """A port of our name is the same pod's remains (removed) or another pod's (step to the next name), as is one that
    is ``promised``."""
    owner = f"{ALIAS_PREFIX}{plan.attachment} {plan.ifname} "
    for salt in range(PORT_NAME_TRIES):
        candidate = plan.renamed(salt)
        if candidate.port in promised:
            continue
        taken = find(rtnl, candidate.port)
        if taken is None:
            return candidate
        if taken.alias.startswith(owner) or not taken.alias or taken.group == GRAVE_GROUP:
            detach(rtnl, nft, [Leaving(candidate.guard, taken.index)])
            _delete(rtnl, taken)
            return candidate
    raise HostError(Fault.NETLINK, operation="create port", link=plan.port, errno=EEXIST)


def _create_pair(rtnl: Rtnl, plan: PodPlan, bridge: Link, netns_fd: int) -> Link:
    """Created from the host's side, the pod's end straight into its namespace: no name of it ever shows here. That name
    may be held by a pair that was detached a moment ago, and so may the last port that a bridge can have."""
    create = rtnl_messages.pair_new(
        plan.port, plan.mtu, bridge.index, plan.ifname, plan.mac, plan.gso_max_size, netns_fd)
    (code,) = rtnl.run(create)
    if code in (EEXIST, EXFULL):
        reap(rtnl)
        (code,) = rtnl.run(create)
    if code == EEXIST:
        raise HostError(Fault.POD_NAME_TAKEN, link=plan.ifname, errno=EEXIST)
    if code:
        raise HostError(Fault.NETLINK, operation="create the pair of", link=plan.port, errno=code)
    return need(rtnl, plan.port)


def _plug(rtnl: Rtnl, plan: PodPlan, port: Link) -> None:
    """The flags before the port is up: at no moment does it learn or flood. Before Linux 5.18 there is no `locked`, and
    the guards hold alone. The pod's end is up: the kernel opens the port within the last message."""
    sysctl_driver.write(f"net/ipv6/conf/{plan.port}/disable_ipv6", "1", link=plan.port)
    flags = {PORT_FLAGS[name]: value for name, value in _port_flags(plan).items()}
    steps = [("set the bridge port flags of", rtnl_messages.port_set(port.index, flags))]
    if not plan.station:
        entry = rtnl_messages.forwarding_entry(port.index, plan.mac)
        steps.append((f"enter {plan.mac} into the forwarding table for", entry))
    _carry_out(plan.port, rtnl, *steps, ("bring up", rtnl_messages.link_up(port.index)))


def _port_flags(plan: PodPlan) -> dict[str, int]:
    guarded = not plan.station
    return {
        "learning": int(plan.station),
        "unicast_flood": int(plan.station),
        "mode": int(plan.hairpin),
        "locked": int(guarded and "locked" not in plan.refuse),
    }


def _configure_pod(pod: Rtnl, plan: PodPlan) -> tuple[Link, tuple[bool, bool]]:
    """Addresses before the link is up, so that what the kernel announces at that moment is complete; routes behind.
    Also whether the default routes (IPv4, IPv6) are ours: a pod that has one already keeps it."""
    inside = need(pod, plan.ifname)
    index = inside.index
    # The guards know the link-local address by the MAC.
    mode = ("set the address mode of", rtnl_messages.address_mode(index, _ADDR_GEN_EUI64))
    steps = [(f"add address {address} to",
              rtnl_messages.address_new(index, address, _IFA_F_NODAD if address.version == 6 else 0))
             for address in plan.addresses]  # fmt: skip
    steps = [mode, *steps, ("bring up", rtnl_messages.link_up(index))]
    routes = _routes(plan)
    codes = pod.run(*(message for _, message in steps),
                    *(rtnl_messages.route_new(index, to, gateway) for to, gateway in routes.items()))  # fmt: skip
    if codes[0] in _NO_IPV6:
        codes[0] = 0
    for (operation, _), code in zip(steps, codes, strict=False):
        if code:
            raise HostError(Fault.NETLINK, operation=operation, link=plan.ifname, errno=code)
    done = {to: _routed(plan, to, gateway, code)
            for (to, gateway), code in zip(routes.items(), codes[len(steps) :], strict=True)}  # fmt: skip
    for route in plan.routes:
        if not done[route.to]:
            words = {"route": f"route to {route.to}", "gateway": route.gateway, "way_out": "the pod has such a route"}
            raise HostError(Fault.POD_ROUTE, link=plan.ifname, errno=EEXIST, **words)
    return inside, (done.get(DEFAULT_V4, False), done.get(DEFAULT_V6, False))


def _routes(plan: PodPlan) -> dict[IPv4Network | IPv6Network, IPv4Address | IPv6Address]:
    """The default ones first."""
    wanted: dict[IPv4Network | IPv6Network, IPv4Address | IPv6Address | None]
    wanted = {DEFAULT_V4: plan.gateway_ipv4, DEFAULT_V6: plan.gateway_ipv6}
    wanted |= {route.to: route.gateway for route in plan.routes}
    return {to: gateway for to, gateway in wanted.items() if gateway is not None}


def _routed(plan: PodPlan, to: IPv4Network | IPv6Network, gateway: IPv4Address | IPv6Address, code: int) -> bool:
    """False: the pod had one."""
    if code not in (0, EEXIST):
        words = {"route": f"route to {to}" if to.prefixlen else f"IPv{to.version} default route", "gateway": gateway}
        raise HostError(Fault.POD_ROUTE, link=plan.ifname, errno=code, **words)
    return code == 0


def _await_forwarding(rtnl: Rtnl, pod: Rtnl, plan: PodPlan) -> Link:
    """The bridge's port is open at once as a rule. The pod's end came up without a carrier: a work queue of the kernel
    activates it a little after both ends are up, and until then it drops everything the pod sends."""
    end = time.monotonic() + PORT_UP_SECONDS
    while True:
        port = need(rtnl, plan.port)
        if port.port.get("state") == BR_STATE_FORWARDING and need(pod, plan.ifname).active:
            return port
        if time.monotonic() > end:
            raise HostError(Fault.POD_NO_CARRIER, link=plan.port, seconds=PORT_UP_SECONDS)
        time.sleep(_POLL_SECONDS)


def _forget_pair(rtnl: Rtnl, name: str) -> None:
    with contextlib.suppress(HostError):
        port = find(rtnl, name)
        if port is not None:
            _delete(rtnl, port)


def _delete(rtnl: Rtnl, link: Link) -> None:
    (code,) = rtnl.run(rtnl_messages.link_delete(link.index))
    if code not in (0, ENODEV, ESRCH):
        raise HostError(Fault.NETLINK, operation="delete", link=link.name, errno=code)


def _forget_guard(nft: Nft, guard: PortGuard) -> None:
    with contextlib.suppress(HostError):
        _remove_guards(nft, [guard])


def _remove_guards(nft: Nft, guards: Sequence[PortGuard]) -> None:
    operation = f"remove the guards of {', '.join(guard.port for guard in guards)}"
    try:
        nft.change(guards_removed(guards), operation)
    except HostError:  # something flushed a set
        nft.change(guards_added(guards) + guards_removed(guards), operation)


def reattach(ipr: Netlink, plans: Sequence[PodPlan], bridge: str) -> list[PodPlan]:
    """Plans of pods that still stand, with the port names they really have; the others are gone. What a kill left half
    wired in this bridge has no owner's name: it is left to ``reap``."""
    found = ports(ipr)
    standing = {link.alias: link.name for link in found}
    for plan in plans:
        missed = find(ipr, plan.port) if plan.alias not in standing else None
        if missed is not None and missed.alias == plan.alias and missed.group != GRAVE_GROUP:
            standing[missed.alias] = missed.name
    ours = find(ipr, bridge)
    for half in found:
        if not half.alias and half.master in (0, ours.index if ours else 0):
            set_if_there(ipr, "take out of the bridge", half, master=0, state="down", group=GRAVE_GROUP)
    return [replace(plan, port=standing[plan.alias]) for plan in plans if plan.alias in standing]
