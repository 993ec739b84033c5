"""Gathers the facts for doctor.py by trying each kernel feature, in a network namespace of its own where it may.

Changes nothing that stays. Synchronous; needs no running router. Called by the ``doctor`` command.
"""

import ctypes
import os
import platform
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from pyroute2.netlink.exceptions import NetlinkError

from weave_router.errors import UserError
from weave_router.host import (
    bridge_driver,
    doctor,
    files,
    files_driver,
    firewalld_driver,
    forwarding,
    forwarding_driver,
    install_driver,
    sysctl_driver,
    tap_driver,
    udp_driver,
)
from weave_router.host.netlink_driver import open_netlink
from weave_router.host.nft_driver import Nft
from weave_router.host.underlay_driver import underlay

_CLONE_NEWNET: Final = 0x40000000
_CAPABILITIES: Final = {"NET_ADMIN": 12, "NET_RAW": 13, "SYS_ADMIN": 21, "BPF": 39}
_PROBE_TAP: Final = "wr-probe"
_PROBE_BRIDGE: Final = "wr-probe-br"


def facts(own_links: tuple[str, ...] = (), refuse: frozenset[str] = frozenset(),
          networks: Path = install_driver.STANDARD_NETWORKS) -> doctor.Facts:
    """``own_links``: the bridge's name first. ``networks``: where runtimes look for them."""
    bridge = own_links[0] if own_links else "weave"
    nft_error, drops = _forward_drops(bridge)
    return doctor.Facts(
        kernel=platform.release(),
        tun=_tun(),
        capabilities=_capabilities(),
        features=features(refuse),
        bridge_netfilter=_bridge_netfilter(bridge),
        forward_drops=drops,
        legacy=forwarding_driver.legacy(),
        bridge=bridge,
        nft_error=nft_error,
        underlay=_underlay(own_links),
        managers=tuple(
            doctor.NetworkManager(name, files_driver.is_running(name), files_driver.is_kept_off(name))
            for name in files.KEEPS_OFF
        ),
        neighbours=_neighbours(),
        ahead=install_driver.ahead(networks),
    )


def features(refuse: frozenset[str] = frozenset()) -> dict[str, bool | None]:
    """Each kernel feature of the fast path, tried. In a thread, which takes its namespace with it."""
    found: dict[str, bool | None] = dict.fromkeys(doctor.FEATURES)

    def probe() -> None:
        if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET) == 0:
            _probe_tap(found, refuse)
            _attempt(lambda: _probe_locked(found, refuse))
        _attempt(lambda: _probe_udp(found, refuse))
        found["realtime"] = "realtime" not in refuse and _realtime()

    thread = threading.Thread(target=probe, name="doctor")
    thread.start()
    thread.join()
    return found


def _attempt(probe: Callable[[], None]) -> None:
    """What cannot even be tried stays unknown."""
    try:
        probe()
    except (UserError, OSError):
        return


def _probe_tap(found: dict[str, bool | None], refuse: frozenset[str]) -> None:
    def probe() -> None:
        tap = tap_driver.open_tap(_PROBE_TAP, 1, refuse)
        found.update(csum=tap.csum, tso=tap.tso, uso=tap.uso, bpf=tap.steering and tap.credits is not None)
        tap_driver.close_tap(tap)

    _attempt(probe)


def _probe_locked(found: dict[str, bool | None], refuse: frozenset[str]) -> None:
    found["locked"] = False
    if "locked" in refuse:
        return
    ipr = open_netlink()
    try:
        ipr.link("add", ifname=_PROBE_BRIDGE, kind="bridge")
        bridge = ipr.link("get", ifname=_PROBE_BRIDGE)[0]["index"]
        port = ipr.link("get", ifname=_PROBE_TAP)[0]["index"]
        ipr.link("set", index=port, master=bridge)
        ipr.brport("set", index=port, locked=1)
        found["locked"] = True
    except NetlinkError:
        return
    finally:
        ipr.close()


def _probe_udp(found: dict[str, bool | None], refuse: frozenset[str]) -> None:
    udp = udp_driver.open_udp("", 0, 1, refuse)
    found.update(udp_segment=udp.segment, udp_gro=udp.gro)
    udp_driver.close_udp(udp)


def _realtime() -> bool:
    """Asked for the calling thread, which ends with it."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except OSError:
        return False
    return Path("/proc/thread-self/schedstat").exists()


def _tun() -> bool:
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _capabilities() -> frozenset[str]:
    lines = Path("/proc/thread-self/status").read_text().splitlines()
    effective = next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))
    return frozenset(name for name, bit in _CAPABILITIES.items() if effective >> bit & 1)


def _neighbours() -> int | None:
    """The lesser of both families' tables."""
    found = [sysctl_driver.read(f"net/{family}/neigh/default/gc_thresh3") for family in ("ipv4", "ipv6")]
    return min((int(each) for each in found if each is not None), default=None)


def _bridge_netfilter(bridge: str) -> bool | None:
    """Of the bridge, or, where it is not there yet, of its namespace."""
    if (everywhere := sysctl_driver.read("net/bridge/bridge-nf-call-iptables")) is None:
        return None
    ipr = open_netlink()
    try:
        return bridge_driver.has_netfilter(ipr, bridge)
    except UserError:
        return everywhere == "1"
    finally:
        ipr.close()


def _forward_drops(bridge: str) -> tuple[str, tuple[forwarding.ForwardDrop, ...]]:
    try:
        nft = Nft()
    except UserError as error:
        return str(error), ()
    try:
        drops = forwarding.forward_drops(forwarding_driver.listing(nft), bridge)
        trusted = firewalld_driver.is_trusted(bridge)
        return "", tuple(
            replace(drop, place=f"firewalld's zone {firewalld_driver.ZONE}", missing=())
            if trusted and drop.table == forwarding.FIREWALLD else drop
            for drop in drops
        )  # fmt: skip
    except UserError as error:
        return str(error), ()
    finally:
        nft.close()


def _underlay(own_links: tuple[str, ...]) -> tuple[str, int] | None:
    ipr = open_netlink()
    try:
        found = underlay(ipr, own_links=own_links)
    except UserError:
        return None
    finally:
        ipr.close()
    return found.link, found.mtu
