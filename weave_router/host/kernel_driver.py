"""Reads small facts of this kernel and its namespace: boot id, its own drop counters, AES, the host's addresses.

Changes nothing. Called by the composition root and the status page; files are read on the caller's thread (tens of
microseconds), netlink on the host room's.
"""

import socket
from collections.abc import Collection
from ipaddress import ip_interface
from pathlib import Path
from typing import Final, Self

from weave_router.host.netlink_driver import addresses_by_link, links
from weave_router.host.rtnl_driver import Rtnl

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_NET_DEV: Final = Path("/proc/self/net/dev")
_SNMP: Final = Path("/proc/self/net/snmp")
_SNMP6: Final = Path("/proc/self/net/snmp6")
_CPUINFO: Final = Path("/proc/cpuinfo")
_RTMGRP_LINK: Final = 0x1
_RTMGRP_IPV4_IFADDR: Final = 0x10
_RTMGRP_IPV6_IFADDR: Final = 0x100
_MESSAGES: Final = 1000
"""Read per question; what is left is the next one's."""
_MESSAGE_BYTES: Final = 16  # their heads: that they came is all


def boot_id() -> str:
    return _BOOT_ID.read_text().strip()


def has_aes() -> bool:
    """AES instructions: x86 lists ``aes`` in flags, arm64 in Features."""
    return any(
        "aes" in line.split() for line in _CPUINFO.read_text().splitlines() if line.startswith(("flags", "Features"))
    )


def drops(tap: str) -> dict[str, int]:
    """What the kernel dropped before us: at the TAP's queue (the router reads too slowly) and at UDP sockets' buffers
    of this namespace."""
    found = {"kernel_tap_queue": _tap_dropped(_read(_NET_DEV), tap)}
    found["kernel_udp_buffer"] = _udp_errors(_read(_SNMP)) + _udp6_errors(_read(_SNMP6))
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # a kernel without IPv6
        return ""


def _tap_dropped(net_dev: str, tap: str) -> int:
    for line in net_dev.splitlines():
        name, _, figures = line.partition(":")
        if name.strip() == tap:
            return int(figures.split()[11])
    return 0


def _udp_errors(snmp: str) -> int:
    names, values = [line.split() for line in snmp.splitlines() if line.startswith("Udp:")][:2] or [[], []]
    return int(dict(zip(names, values, strict=True)).get("RcvbufErrors", 0))


def _udp6_errors(snmp6: str) -> int:
    return sum(int(line.split()[1]) for line in snmp6.splitlines() if line.startswith("Udp6RcvbufErrors"))


class AddressChanges:
    """Whether the kernel told of an address or an interface since the last question: every pod that comes or goes is
    one, and the list has all of them."""

    def __init__(self) -> None:
        """OSError: the namespace gives no socket."""
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._socket = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        self._socket.bind((0, _RTMGRP_LINK | _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR))
        self._first = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def heard(self) -> bool:
        """The first answer is yes: what was before nobody knows."""
        heard, self._first = self._first, False
        for _ in range(_MESSAGES):
            try:
                self._socket.recv(_MESSAGE_BYTES)
            except BlockingIOError:
                break
            except OSError:  # ENOBUFS: more than the socket holds
                pass
            heard = True
        return heard


def host_addresses(rtnl: Rtnl, *, own_links: Collection[str] = ()) -> list[str]:
    """Addresses that other hosts may reach us at: no loopback, no link-local, none of our own bridge and ports."""
    found: list[str] = []
    every, by_link = links(rtnl), addresses_by_link(rtnl)
    ours = {link.index for link in every if link.name in own_links}
    for link in every:
        if link.name == "lo" or link.index in ours or link.master in ours or not link.up:
            continue
        for text in by_link.get(link.index, ()):
            address = ip_interface(text).ip
            if not (address.is_link_local or address.is_loopback or address.is_multicast):
                found.append(str(address))
    return list(dict.fromkeys(found))
