"""Every operator-facing error of this room, one sentence each: link, operation, errno and the way out.

Pure. Raise ``HostError(Fault.X, ...)``; nothing else in this room builds a sentence for the operator, except usage
errors in names.py. ``tests/unit/test_host_errors.py`` lists all of them, rendered.
"""

import errno as errnos
import os
from enum import Enum
from typing import Final

from weave_router.errors import UserError

WAYS_OUT: Final = {
    errnos.EPERM: "run as root, or give the process CAP_NET_ADMIN",
    errnos.EACCES: "run as root, or give the process CAP_NET_ADMIN",
    errnos.EROFS: "mount it writable for this process (in a container: a writable /proc/sys)",
    errnos.ENODEV: "the link went away meanwhile; try again, and see `ip link` and `journalctl -k` for who removed it",
    errnos.EEXIST: "something else made it; see `ip -d link`, then `weave-router reset` or remove it by hand",
    errnos.EOPNOTSUPP: "this kernel lacks it; see `weave-router doctor`, or load the module (bridge, veth, tun)",
    errnos.ENOENT: "this kernel or namespace lacks it; see `weave-router doctor`",
    errnos.EBUSY: "another program uses it; see `ip -d link` for its master and owner",
    errnos.ENOMEM: "the kernel is out of memory; free some and try again",
    errnos.ENOBUFS: "the kernel is out of buffers; try again",
}
WAY_OUT_ELSE: Final = "see `weave-router doctor` and `journalctl -k`"


class Fault(Enum):
    """What can go wrong on this machine; the value is the sentence."""

    NETLINK = "cannot {operation} {link}: {errno}; {way_out}"
    SYSCTL = "cannot set sysctl {name} = {value} for {link}: {errno}; {way_out}"
    NOT_AS_SET = (
        "{link} does not keep what was set: {what}; another program (a network manager, a sysctl file) sets it too: "
        "tell it to leave {link} alone, see docs/operations.md"
    )
    LINK_KIND = (
        "cannot use {link}: it exists and is a {kind}, not a {wanted}; take another --bridge name, "
        "or remove it with `ip link del {link}`"
    )
    NO_LINK = "link {link} does not exist (ENODEV); {way_out}"

    TUN_MISSING = (
        "cannot open /dev/net/tun for {link}: {errno}; run `modprobe tun`, "
        "or hand the device to the container (--device /dev/net/tun)"
    )
    TAP_KIND = (
        "cannot attach to TAP {link}: {errno}; a link of this name exists that is no multi-queue TAP: "
        "remove it with `ip link del {link}`"
    )
    TAP_BUSY = (
        "cannot attach to TAP {link}: {errno}; another program holds its queues: stop it, or take another --bridge name"
    )
    TAP_OPEN = "cannot attach to TAP {link}: {errno}; {way_out}"
    TAP_IOCTL = "cannot {operation} on TAP {link}: {errno}; {way_out}"
    TAP_HELD = (
        "TAP {link} is held by pid {pid} ({command}); stop that router, "
        "or start this one in another network namespace or with another --bridge"
    )
    LOCK_FILE = "cannot lock {path} for TAP {link}: {errno}; see that the run dir exists and belongs to root"

    UDP_IN_USE = (
        "cannot bind UDP {host} port {port}: {errno}; another program has the port "
        "(`ss -ulpn sport = :{port}` says which): stop it, or take another --port on every node"
    )
    UDP_ADDRESS = "cannot bind UDP {host} port {port}: {errno}; --host must be an address of this machine"
    UDP_BIND = "cannot bind UDP {host} port {port}: {errno}; {way_out}"
    UDP_OPTION = "cannot set {operation} on the UDP socket of port {port}: {errno}; {way_out}"

    BRIDGE_NO_NUMBER = "bridge {link} has no overlay address yet; give `launch --bridge-address ADDRESS`"
    POD_ADDRESS = "cannot attach {link}: {address} is not inside the range {universe}; take an address of the range"
    POD_ADDRESSES = (
        "cannot attach {link}: {count} addresses beside this container id are more than the port's alias holds; "
        "ask for fewer"
    )
    POD_MTU = "pod MTU {mtu} is out of bounds: take {least} to {most} (--mtu)"
    POD_NAME_TAKEN = (
        "cannot attach {link}: the pod already has an interface of this name (EEXIST); "
        "detach it first, or take another --ifname"
    )
    POD_ROUTE = "cannot set the {route} of {link} by {gateway}: {errno}; {way_out}"
    POD_NO_CARRIER = (
        "port {link} did not come up within {seconds} s; "
        "see `ip -d link show {link}` and whether something took the pod's namespace away"
    )
    NETNS_OPEN = "cannot open network namespace {path}: {errno}; give a path like /proc/PID/ns/net or /run/netns/NAME"
    NETNS_KIND = "{path} is no network namespace (setns: {errno}); give a path like /proc/PID/ns/net or /run/netns/NAME"
    NETNS_ENTER = "cannot enter network namespace {path}: {errno}; run as root (setns needs CAP_SYS_ADMIN)"
    NETNS_OWN = "{path} is the router's own network namespace; attach the namespace of a pod"

    HANDOVER_AWAY = "cannot reach the router at {path}: {errno}; is it running? (`weave-router status`)"
    HANDOVER_SILENT = "the router at {path} hung up or gave no answer within {seconds} s; see its log"
    HANDOVER_LISTEN = "cannot listen at {path}: {errno}; see that the run dir exists and belongs to root"

    BRIDGE_NETFILTER = (
        "br_netfilter is not loaded, which {link} needs for Services: run `modprobe br_netfilter`, "
        "and `echo br_netfilter > /etc/modules-load.d/br_netfilter.conf` for the next boot"
    )

    NFT_MISSING = "cannot load libnftables.so.1 ({reason}); install it (Debian, Ubuntu: `apt install libnftables1`)"
    NFT_REFUSED = "cannot {operation} in nft table {table}: {reason}; {way_out}"

    RANGE_ROUTE = (
        "the range {universe} overlaps the route {route} of {link}; "
        "take a free range with --ipalloc-range (the same on every node)"
    )
    RANGE_NAMESERVER = (
        "the nameserver {nameserver} of {path} lies inside the range {universe}; "
        "take a free range with --ipalloc-range (the same on every node)"
    )
    NO_UNDERLAY = (
        "no underlay interface found: this host has no default route and no other link that is up; "
        "give the pod MTU by --mtu, or bring the network up first"
    )

    INSTALL_INCOMPLETE = "{path} is missing: this package was not built whole; install it again (`make install`)"
    INSTALL_WRITE = "cannot write {path}: {errno}; is the folder the runtime's (--bin-dir, --conf-dir), and writable?"

    INSTALL_REMOVE = "cannot remove {path}: {errno}; is its folder writable?"

    RESET_ATTACHED = (
        "{count} attached, first {first}; detach them first, or force it (`weave-router reset --force`): "
        "they lose their network at once"
    )


def errno_text(errno: int) -> str:
    return f"{errnos.errorcode.get(errno, f'errno {errno}')} ({os.strerror(errno)})"


def sentence(fault: Fault, *, errno: int = 0, **words: object) -> str:
    """The text for the operator. ``way_out`` comes from the errno where the caller knows no better one."""
    words.setdefault("way_out", WAYS_OUT.get(errno, WAY_OUT_ELSE))
    return fault.value.format(errno=errno_text(errno), **words)


class HostError(UserError):
    """One fault of this machine, with its errno (0 where the kernel gave none)."""

    def __init__(self, fault: Fault, *, errno: int = 0, **words: object) -> None:
        super().__init__(sentence(fault, errno=errno, **words))
        self.fault = fault
        self.errno = errno
