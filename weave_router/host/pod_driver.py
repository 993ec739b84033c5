"""Wires a pod by a plan and takes it off again. Whatever fails, nothing stays.

Synchronous, in a worker thread. The host's side needs the host's netlink and nft; the pod's side goes through a
netlink socket that somebody opened inside the pod (handover_driver.py), so this process enters no namespace.
Called by the attach handlers of the composition root and cni/.
"""

import contextlib
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from errno import EEXIST, EINVAL, ENODEV, ENOENT, EOPNOTSUPP, ESRCH
from ipaddress import IPv4Address, IPv4Interface, IPv6Interface
from socket import AF_INET, AF_INET6
from typing import Final

from pyroute2.netlink.exceptions import NetlinkError

from weave_router.host import sysctl_driver
from weave_router.host.faults import Fault, HostError
from weave_router.host.names import GRAVE_GROUP, is_port_name
from weave_router.host.netfilter import PortGuard, guard_added, guard_removed
from weave_router.host.netlink_driver import (
    BRIDGE_PORT_FORWARDING,
    NTF_MASTER,
    NUD_NOARP,
    Link,
    Netlink,
    explain,
    find,
    links,
    need,
)
from weave_router.host.nft_driver import Nft
from weave_router.host.pod import ALIAS_PREFIX, Attached, PodPlan, read_alias
from weave_router.limits import PORT_NAME_TRIES, PORT_UP_SECONDS

_IFA_F_NODAD: Final = 0x02
_RTNH_F_ONLINK: Final = 4
_ADDR_GEN_EUI64: Final = 0
_POLL_SECONDS: Final = 0.001


def attach(ipr: Netlink, nft: Nft, plan: PodPlan, pod: Netlink, netns_fd: int) -> Attached:
    """Wire the pod: when this returns, its first packet works. ``pod``: netlink inside it, ``netns_fd``: it."""
    with ExitStack() as undo:
        plan = _name_port(ipr, nft, plan)
        bridge = need(ipr, plan.bridge)
        undo.callback(_forget_pair, ipr, plan.port)
        _create_pair(ipr, plan, netns_fd)
        undo.callback(_forget_guard, nft, plan.guard)
        nft.run(guard_added(plan.guard), f"add the guards of {plan.port}")
        port = _plug(ipr, plan, bridge)
        inside = _configure_pod(pod, plan)
        _await_forwarding(ipr, plan.port)
        _announce(pod, inside, plan)
        attached = Attached(plan.port, port.index, inside.index, plan.mac, plan.ipv4, plan.ipv6)
        undo.pop_all()
    return attached


def detach(ipr: Netlink, nft: Nft, guard: PortGuard) -> bool:
    """At once out of the bridge and down; the pair waits in a group for ``reap``. False: it was gone already."""
    port = find(ipr, guard.port)
    if port is not None:
        with explain("take out of the bridge", guard.port):
            try:
                ipr.link("set", index=port.index, master=0, state="down", group=GRAVE_GROUP)
            except NetlinkError as error:  # the pod's end went, and the pair with it
                if error.code != ENODEV:
                    raise
                port = None
    nft.run(guard_removed(guard), f"remove the guards of {guard.port}")
    return port is not None


def cut_off(ipr: Netlink, port: str) -> None:
    """The port goes down and stays: its pod lost its address."""
    found = find(ipr, port)
    if found is not None:
        with explain("take down", port):
            ipr.link("set", index=found.index, state="down")


def reap(ipr: Netlink) -> None:
    """Delete all detached pairs in one call: 20 cost as much as one (20 ms)."""
    with explain("delete detached links of", f"group {GRAVE_GROUP:#x}"):
        try:
            ipr.link("del", group=GRAVE_GROUP)
        except NetlinkError as error:
            if error.code not in (ENODEV, EINVAL):  # an empty group
                raise


def ports(ipr: Netlink) -> list[Link]:
    """Every port of ours that stands on this host, by its name; whose it is stands in its alias."""
    return [link for link in links(ipr) if is_port_name(link.name) and link.group != GRAVE_GROUP]


def live(ipr: Netlink, bridge: str) -> list[tuple[str, str, IPv4Address]]:
    """(attachment, interface, address) of every pod that stands on this bridge, as the kernel has it."""
    link = find(ipr, bridge)
    found = (read_alias(port.alias) for port in ports(ipr) if link is not None and port.master == link.index)
    return [pod for pod in found if pod is not None]


def verify(ipr: Netlink, plan: PodPlan) -> list[str]:
    """What is not as planned at the host's side of a pod, in words."""
    port, bridge = find(ipr, plan.port), find(ipr, plan.bridge)
    if port is None or bridge is None:
        return [f"{plan.port if port is None else plan.bridge} is gone"]
    flags = {name: value for name, value in _port_flags(plan).items() if name != "locked" or "locked" in port.port}
    checks = {
        f"{plan.port} is no port of {plan.bridge}": port.master == bridge.index,
        f"{plan.port} is down": port.up,
        f"the MTU of {plan.port} is {port.mtu} instead of {plan.mtu}": port.mtu == plan.mtu,
    }
    checks |= {f"{name} of {plan.port} is not {value}": port.port.get(name) == value for name, value in flags.items()}
    return [problem for problem, well in checks.items() if not well]


def _name_port(ipr: Netlink, nft: Nft, plan: PodPlan) -> PodPlan:
    """A port of our name is the same pod's remains (removed) or another pod's (step to the next name)."""
    owner = f"{ALIAS_PREFIX}{plan.attachment} {plan.ifname} "
    for salt in range(PORT_NAME_TRIES):
        candidate = plan.renamed(salt)
        taken = find(ipr, candidate.port)
        if taken is None:
            return candidate
        if taken.alias.startswith(owner) or not taken.alias or taken.group == GRAVE_GROUP:
            detach(ipr, nft, candidate.guard)
            _delete(ipr, taken)
            return candidate
    raise HostError(Fault.NETLINK, operation="create port", link=plan.port, errno=EEXIST)


def _create_pair(ipr: Netlink, plan: PodPlan, netns_fd: int) -> None:
    """Created from the host's side, the pod's end straight into its namespace: no name of it ever shows here."""
    peer = {
        "ifname": plan.ifname,
        "net_ns_fd": netns_fd,
        "address": plan.mac,
        "mtu": plan.mtu,
        "gso_max_size": plan.gso_max_size,
    }
    with explain("create the pair of", plan.port):
        try:
            ipr.link("add", ifname=plan.port, kind="veth", mtu=plan.mtu, peer=peer)
        except NetlinkError as error:
            if error.code == EEXIST:
                raise HostError(Fault.POD_NAME_TAKEN, link=plan.ifname, errno=EEXIST) from error
            raise


def _plug(ipr: Netlink, plan: PodPlan, bridge: Link) -> Link:
    """The flags before the port is up: at no moment does it learn or flood."""
    port = need(ipr, plan.port)
    sysctl_driver.write(f"net/ipv6/conf/{plan.port}/disable_ipv6", "1", link=plan.port)
    with explain("put into the bridge", plan.port):
        ipr.link("set", index=port.index, master=bridge.index, ifalias=plan.alias)
    with explain("set the bridge port flags of", plan.port):
        flags = _port_flags(plan)
        locked = flags.pop("locked")
        ipr.brport("set", index=port.index, **flags)
        if locked:
            with contextlib.suppress(NetlinkError):  # before Linux 5.18 the guards hold alone
                ipr.brport("set", index=port.index, locked=locked)
    if not plan.station:
        with explain(f"enter {plan.mac} into the forwarding table for", plan.port):
            ipr.fdb("replace", ifindex=port.index, lladdr=plan.mac, state=NUD_NOARP, flags=NTF_MASTER)
    with explain("bring up", plan.port):
        ipr.link("set", index=port.index, state="up")
    return port


def _port_flags(plan: PodPlan) -> dict[str, int]:
    guarded = not plan.station
    return {
        "learning": int(plan.station),
        "unicast_flood": int(plan.station),
        "mode": int(plan.hairpin),
        "locked": int(guarded and "locked" not in plan.refuse),
    }


def _configure_pod(pod: Netlink, plan: PodPlan) -> Link:
    """Addresses before the link is up, so that what the kernel announces at that moment is complete."""
    inside = need(pod, plan.ifname)
    with explain("set the address mode of", plan.ifname):
        try:
            pod.link("set", index=inside.index, af_spec=_eui64(), mtu=plan.mtu)
        except NetlinkError as error:  # no IPv6 in this pod
            if error.code not in (EOPNOTSUPP, EINVAL, ENOENT):
                raise
    _add_address(pod, inside, plan.ipv4, 0)
    if plan.ipv6 is not None:
        _add_address(pod, inside, plan.ipv6, _IFA_F_NODAD)
    with explain("bring up", plan.ifname):
        pod.link("set", index=inside.index, state="up")
    _default_routes(pod, inside, plan)
    return inside


def _eui64() -> dict[str, list[tuple[str, object]]]:
    """The guards know the link-local address by the MAC."""
    inet6 = {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", _ADDR_GEN_EUI64)]}
    return {"attrs": [("AF_INET6", inet6)]}


def _add_address(pod: Netlink, inside: Link, address: IPv4Interface | IPv6Interface, flags: int) -> None:
    with explain(f"add address {address} to", inside.name):
        pod.addr(
            "add",
            index=inside.index,
            family=AF_INET if address.version == 4 else AF_INET6,
            address=str(address.ip),
            prefixlen=address.network.prefixlen,
            flags=flags,
        )


def _default_routes(pod: Netlink, inside: Link, plan: PodPlan) -> None:
    """On-link, because a pod may be given a /32. A pod that has a default route already keeps it."""
    for family, name, gateway in ((AF_INET, "IPv4", plan.gateway_ipv4), (AF_INET6, "IPv6", plan.gateway_ipv6)):
        if gateway is None:
            continue
        try:
            pod.route("add", family=family, dst="default", gateway=str(gateway), oif=inside.index, flags=_RTNH_F_ONLINK)
        except NetlinkError as error:
            if error.code != EEXIST:
                words = {"family": name, "gateway": gateway}
                raise HostError(Fault.POD_ROUTE, link=inside.name, errno=error.code, **words) from error


def _await_forwarding(ipr: Netlink, name: str) -> None:
    """The kernel opens a port from a work queue, a little after both ends are up; until then it drops everything."""
    end = time.monotonic() + PORT_UP_SECONDS
    while need(ipr, name).port.get("state") != BRIDGE_PORT_FORWARDING:
        if time.monotonic() > end:
            raise HostError(Fault.POD_NO_CARRIER, link=name, seconds=PORT_UP_SECONDS)
        time.sleep(_POLL_SECONDS)


def _announce(pod: Netlink, inside: Link, plan: PodPlan) -> None:
    """Its own MAC once more: with arp_notify and ndisc_notify (handover_driver.py) the pod's kernel then sends a
    gratuitous ARP and an unsolicited neighbour advertisement; what it sent at link-up met a closed port."""
    with explain("announce the addresses of", plan.ifname):
        pod.link("set", index=inside.index, address=plan.mac)


def _forget_pair(ipr: Netlink, name: str) -> None:
    with contextlib.suppress(HostError, NetlinkError):
        port = find(ipr, name)
        if port is not None:
            _delete(ipr, port)


def _delete(ipr: Netlink, link: Link) -> None:
    with explain("delete", link.name):
        try:
            ipr.link("del", index=link.index)
        except NetlinkError as error:
            if error.code not in (ENODEV, ESRCH):
                raise


def _forget_guard(nft: Nft, guard: PortGuard) -> None:
    with contextlib.suppress(HostError):
        nft.run(guard_removed(guard), f"remove the guards of {guard.port}")


def reattach(ipr: Netlink, plans: Sequence[PodPlan]) -> list[PodPlan]:
    """Plans of pods that still stand, with the port names they really have; the others are gone."""
    standing = {link.alias: link.name for link in ports(ipr)}
    return [replace(plan, port=standing[plan.alias]) for plan in plans if plan.alias in standing]
