"""Every operator-facing error of host/, with its sentence. A new fault needs a line here."""

import ast
import errno
from pathlib import Path
from typing import Any

import pytest

from weave_router.errors import UsageError, UserError
from weave_router.host.faults import WAYS_OUT, Fault, HostError, errno_text
from weave_router.host.names import check_ifname

ROOT = "run as root, or give the process CAP_NET_ADMIN"
EPERM = "EPERM (Operation not permitted)"

TABLE: dict[Fault, tuple[dict[str, Any], str]] = {
    Fault.NETLINK: (
        {"operation": "bring up", "link": "weave", "errno": errno.EPERM},
        f"cannot bring up weave: {EPERM}; {ROOT}",
    ),
    Fault.SYSCTL: (
        {"name": "net/ipv4/ip_forward", "value": "1", "link": "weave", "errno": errno.EROFS},
        "cannot set sysctl net/ipv4/ip_forward = 1 for weave: EROFS (Read-only file system); "
        "mount it writable for this process (in a container: a writable /proc/sys)",
    ),
    Fault.NOT_AS_SET: (
        {"link": "weave", "what": "its MTU is 1500 instead of 1368"},
        "weave does not keep what was set: its MTU is 1500 instead of 1368; another program (a network manager, a "
        "sysctl file) sets it too: tell it to leave weave alone, see docs/operations.md",
    ),
    Fault.LINK_KIND: (
        {"link": "weave", "kind": "veth", "wanted": "bridge"},
        "cannot use weave: it exists and is a veth, not a bridge; take another --bridge name, "
        "or remove it with `ip link del weave`",
    ),
    Fault.NO_LINK: (
        {"link": "weave", "errno": errno.ENODEV},
        "link weave does not exist (ENODEV); the link went away meanwhile; try again, "
        "and see `ip link` and `journalctl -k` for who removed it",
    ),
    Fault.TUN_MISSING: (
        {"link": "weave-tap", "errno": errno.ENOENT},
        "cannot open /dev/net/tun for weave-tap: ENOENT (No such file or directory); run `modprobe tun`, "
        "or hand the device to the container (--device /dev/net/tun)",
    ),
    Fault.TAP_KIND: (
        {"link": "weave-tap", "errno": errno.EINVAL},
        "cannot attach to TAP weave-tap: EINVAL (Invalid argument); a link of this name exists that is no multi-queue "
        "TAP: remove it with `ip link del weave-tap`",
    ),
    Fault.TAP_BUSY: (
        {"link": "weave-tap", "errno": errno.EBUSY},
        "cannot attach to TAP weave-tap: EBUSY (Device or resource busy); another program holds its queues: stop it, "
        "or take another --bridge name",
    ),
    Fault.TAP_OPEN: (
        {"link": "weave-tap", "errno": errno.EPERM},
        f"cannot attach to TAP weave-tap: {EPERM}; {ROOT}",
    ),
    Fault.TAP_IOCTL: (
        {"operation": "set the carrier", "link": "weave-tap", "errno": errno.EBADFD},
        "cannot set the carrier on TAP weave-tap: EBADFD (File descriptor in bad state); "
        "see `weave-router doctor` and `journalctl -k`",
    ),
    Fault.TAP_HELD: (
        {"link": "weave-tap", "pid": 12, "command": "weave-router launch"},
        "TAP weave-tap is held by pid 12 (weave-router launch); stop that router, "
        "or start this one in another network namespace or with another --bridge",
    ),
    Fault.LOCK_FILE: (
        {"path": "/run/weave-router/tap-weave-tap.lock", "link": "weave-tap", "errno": errno.ENOENT},
        "cannot lock /run/weave-router/tap-weave-tap.lock for TAP weave-tap: ENOENT (No such file or directory); "
        "see that the run dir exists and belongs to root",
    ),
    Fault.UDP_IN_USE: (
        {"host": "*", "port": 6783, "errno": errno.EADDRINUSE},
        "cannot bind UDP * port 6783: EADDRINUSE (Address already in use); another program has the port "
        "(`ss -ulpn sport = :6783` says which): stop it, or take another --port on every node",
    ),
    Fault.UDP_ADDRESS: (
        {"host": "192.0.2.1", "port": 6783, "errno": errno.EADDRNOTAVAIL},
        "cannot bind UDP 192.0.2.1 port 6783: EADDRNOTAVAIL (Cannot assign requested address); "
        "--host must be an address of this machine",
    ),
    Fault.UDP_BIND: (
        {"host": "*", "port": 80, "errno": errno.EACCES},
        f"cannot bind UDP * port 80: EACCES (Permission denied); {ROOT}",
    ),
    Fault.UDP_OPTION: (
        {"operation": "IP_PKTINFO", "port": 6783, "errno": errno.EOPNOTSUPP},
        f"cannot set IP_PKTINFO on the UDP socket of port 6783: {errno_text(errno.EOPNOTSUPP)}; "
        "this kernel lacks it; see `weave-router doctor`, or load the module (bridge, veth, tun)",
    ),
    Fault.BRIDGE_NO_NUMBER: (
        {"link": "weave"},
        "bridge weave has no overlay address yet; give `launch --bridge-address ADDRESS`",
    ),
    Fault.POD_ADDRESS: (
        {"link": "eth0", "address": "10.0.0.1", "universe": "10.32.0.0/12"},
        "cannot attach eth0: 10.0.0.1 is not inside the range 10.32.0.0/12; take an address of the range",
    ),
    Fault.POD_ADDRESSES: (
        {"link": "eth0", "count": 3},
        "cannot attach eth0: 3 addresses beside this container id are more than the port's alias holds; ask for fewer",
    ),
    Fault.POD_MTU: (
        {"mtu": 100, "least": 1280, "most": 65000},
        "pod MTU 100 is out of bounds: take 1280 to 65000 (--mtu)",
    ),
    Fault.POD_NAME_TAKEN: (
        {"link": "eth0", "errno": errno.EEXIST},
        "cannot attach eth0: the pod already has an interface of this name (EEXIST); "
        "detach it first, or take another --ifname",
    ),
    Fault.POD_ROUTE: (
        {"route": "IPv6 default route", "link": "eth0", "gateway": "fd00::1", "errno": errno.EPERM},
        f"cannot set the IPv6 default route of eth0 by fd00::1: {EPERM}; {ROOT}",
    ),
    Fault.POD_NO_CARRIER: (
        {"link": "vethwr1", "seconds": 2.0},
        "port vethwr1 did not come up within 2.0 s; see `ip -d link show vethwr1` "
        "and whether something took the pod's namespace away",
    ),
    Fault.NETNS_OPEN: (
        {"path": "/run/netns/x", "errno": errno.ENOENT},
        "cannot open network namespace /run/netns/x: ENOENT (No such file or directory); "
        "give a path like /proc/PID/ns/net or /run/netns/NAME",
    ),
    Fault.NETNS_KIND: (
        {"path": "/etc/passwd", "errno": errno.EINVAL},
        "/etc/passwd is no network namespace (setns: EINVAL (Invalid argument)); "
        "give a path like /proc/PID/ns/net or /run/netns/NAME",
    ),
    Fault.NETNS_ENTER: (
        {"path": "/run/netns/x", "errno": errno.EPERM},
        f"cannot enter network namespace /run/netns/x: {EPERM}; run as root (setns needs CAP_SYS_ADMIN)",
    ),
    Fault.NETNS_OWN: (
        {"path": "/proc/1/ns/net"},
        "/proc/1/ns/net is the router's own network namespace; attach the namespace of a pod",
    ),
    Fault.HANDOVER_AWAY: (
        {"path": "/run/weave-router/attach.sock", "errno": errno.ECONNREFUSED},
        "cannot reach the router at /run/weave-router/attach.sock: ECONNREFUSED (Connection refused); "
        "is it running? (`weave-router status`)",
    ),
    Fault.HANDOVER_SILENT: (
        {"path": "/run/weave-router/attach.sock", "seconds": 10},
        "the router at /run/weave-router/attach.sock hung up or gave no answer within 10 s; see its log",
    ),
    Fault.HANDOVER_LISTEN: (
        {"path": "/run/weave-router/attach.sock", "errno": errno.EACCES},
        "cannot listen at /run/weave-router/attach.sock: EACCES (Permission denied); "
        "see that the run dir exists and belongs to root",
    ),
    Fault.BRIDGE_NETFILTER: (
        {"link": "weave"},
        "br_netfilter is not loaded, which weave needs for Services: run `modprobe br_netfilter`, "
        "and `echo br_netfilter > /etc/modules-load.d/br_netfilter.conf` for the next boot",
    ),
    Fault.NFT_MISSING: (
        {"reason": "no such file"},
        "cannot load libnftables.so.1 (no such file); install it (Debian, Ubuntu: `apt install libnftables1`)",
    ),
    Fault.NFT_REFUSED: (
        {"operation": "load the rules", "table": "weave_router", "reason": "Operation not permitted", "way_out": ROOT},
        f"cannot load the rules in nft table weave_router: Operation not permitted; {ROOT}",
    ),
    Fault.RANGE_ROUTE: (
        {"universe": "10.32.0.0/12", "route": "10.40.0.0/16", "link": "eth0"},
        "the range 10.32.0.0/12 overlaps the route 10.40.0.0/16 of eth0; "
        "take a free range with --ipalloc-range (the same on every node)",
    ),
    Fault.RANGE_NAMESERVER: (
        {"universe": "10.32.0.0/12", "nameserver": "10.32.0.10", "path": "/etc/resolv.conf"},
        "the nameserver 10.32.0.10 of /etc/resolv.conf lies inside the range 10.32.0.0/12; "
        "take a free range with --ipalloc-range (the same on every node)",
    ),
    Fault.NO_UNDERLAY: (
        {},
        "no underlay interface found: this host has no default route and no other link that is up; "
        "give the pod MTU by --mtu, or bring the network up first",
    ),
    Fault.INSTALL_INCOMPLETE: (
        {"path": "/x/_bin/weave-router-cni"},
        "/x/_bin/weave-router-cni is missing: this package was not built whole; install it again (`make install`)",
    ),
    Fault.INSTALL_WRITE: (
        {"path": "/opt/cni/bin/weave-router-cni", "errno": errno.EROFS},
        "cannot write /opt/cni/bin/weave-router-cni: EROFS (Read-only file system); is the folder the runtime's "
        "(--bin-dir, --conf-dir), and writable?",
    ),
    Fault.INSTALL_REMOVE: (
        {"path": "/etc/cni/net.d/10-weave-router.conflist", "errno": errno.EROFS},
        "cannot remove /etc/cni/net.d/10-weave-router.conflist: EROFS (Read-only file system); is its folder writable?",
    ),
    Fault.RESET_ATTACHED: (
        {"count": "2 pods are", "first": "abc"},
        "2 pods are attached, first abc; detach them first, or force it (`weave-router reset --force`): "
        "they lose their network at once",
    ),
}


@pytest.mark.parametrize("fault", Fault, ids=lambda fault: fault.name)
def test_sentence(fault: Fault) -> None:
    words, expected = TABLE[fault]
    error = HostError(fault, **words)
    assert str(error) == expected
    assert isinstance(error, UserError) and error.exit_status == 1
    assert (error.fault, error.errno) == (fault, words.get("errno", 0))


def test_every_fault_is_raised_somewhere() -> None:
    """And nobody builds a sentence of its own: UserError and its kin are raised in names.py and faults.py alone."""
    used: set[str] = set()
    for path in Path("weave_router/host").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Fault":
                used.add(node.attr)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and path.name != "names.py":
                assert node.func.id not in ("UserError", "UsageError"), path
    assert used == {fault.name for fault in Fault}


def test_ways_out_are_for_known_errnos() -> None:
    assert set(WAYS_OUT) <= set(errno.errorcode)
    assert errno_text(9999).startswith("errno 9999")


@pytest.mark.parametrize("name", ["", "a" * 16, "a b", "a/b", "..", "-x", "a\n", "ä", "%d"])
def test_interface_names_that_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="is no usable interface name; take 1 to 15 letters"):
        check_ifname(name, "--ifname")
