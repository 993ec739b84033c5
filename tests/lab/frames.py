"""Frames that a pod forges, and those it may send: what guards, router and the other pods are tried with.

scapy is imported when they are made: it takes a second.
"""

from __future__ import annotations

import ctypes
import select
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any, Final

ETH_P_ALL: Final = 3
CLONE_NEWNET: Final = 0x40000000
MARKER_KIND: Final = b"\x88\xb6"
"""For experiments on one's own wire (IEEE 802)."""


@dataclass(frozen=True)
class Station:
    """What a pod or a bridge calls itself."""

    mac: str
    v4: str
    v6: str

    @property
    def link(self) -> str:
        """Link-local address, EUI-64."""
        octets = bytes.fromhex(self.mac.replace(":", ""))
        eui = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
        return str(IPv6Address(b"\xfe\x80" + bytes(6) + eui))


def open_raw(link: str) -> socket.socket:
    """All frames of a link of the calling thread's network namespace."""
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    raw.bind((link, ETH_P_ALL))
    return raw


def open_raw_inside(namespace: Path, link: str = "eth0") -> socket.socket:
    def enter() -> socket.socket:
        with open(namespace) as opened:
            assert ctypes.CDLL(None, use_errno=True).setns(opened.fileno(), CLONE_NEWNET) == 0
        return open_raw(link)

    with ThreadPoolExecutor(1) as thread:  # one that entered a namespace is never used again
        return thread.submit(enter).result()


class Wire:
    """Sends frames in one pod; says which of them another got. A marker frame behind each closes the question."""

    def __init__(self, sender: socket.socket, receiver: socket.socket, own: Station, to: Station) -> None:
        self.sender, self.receiver = sender, receiver
        self._marker = bytes.fromhex((to.mac + own.mac).replace(":", "")) + MARKER_KIND
        self._marks = 0

    def passes(self, frame: bytes) -> bool:
        self._marks += 1
        mark = self._marker + self._marks.to_bytes(4, "big") + bytes(46)
        self.sender.send(frame)
        self.sender.send(mark)
        got = False
        while True:
            ready, _, _ = select.select([self.receiver], [], [], 5)
            assert ready, "the marker did not come through"
            data = self.receiver.recv(4096)
            if data == mark:
                return got
            got |= data[:12] == frame[:12] and data.endswith(frame[-8:])

    def close(self) -> None:
        self.sender.close()
        self.receiver.close()


def solicited(of: Station) -> str:
    """Its solicited-node multicast address (RFC 4291)."""
    return str(IPv6Address(IPv6Address("ff02::1:ff00:0").packed[:13] + IPv6Address(of.v6).packed[13:]))


def forged(own: Station, to: Station, gateway: Station, third: Station) -> dict[str, Any]:
    """Frames that a pod may not send: each has one thing that is not its own. Sent to the other's MAC."""
    from scapy.layers.inet import ICMP, IP, UDP
    from scapy.layers.inet6 import (
        ICMPv6EchoRequest,
        ICMPv6ND_NA,
        ICMPv6ND_NS,
        ICMPv6ND_RA,
        ICMPv6ND_Redirect,
        ICMPv6NDOptDstLLAddr,
        IPv6,
        IPv6ExtHdrDestOpt,
        IPv6ExtHdrHopByHop,
    )
    from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether

    ether = Ether(src=own.mac, dst=to.mac)
    advert = ICMPv6ND_RA() / ICMPv6NDOptDstLLAddr(lladdr=own.mac)
    takeover = ICMPv6ND_NA(tgt=gateway.v6, R=0, S=0, O=1) / ICMPv6NDOptDstLLAddr(lladdr=own.mac)
    return {
        "MAC": Ether(src=gateway.mac, dst=to.mac) / IP(src=own.v4, dst=to.v4) / UDP(),
        "MAC, other ethertype": Ether(src=third.mac, dst=to.mac, type=0x88B5) / (b"x" * 40),
        "MAC, VLAN": Ether(src=third.mac, dst=to.mac) / Dot1Q(vlan=7) / IP(src=own.v4, dst=to.v4) / UDP(),
        "IPv4": ether / IP(src=third.v4, dst=to.v4) / UDP(),
        "IPv4 of the gateway": ether / IP(src=gateway.v4, dst=to.v4) / ICMP(),
        "IPv4 outside": ether / IP(src="192.0.2.1", dst=to.v4) / UDP(),
        "IPv4 unspecified": ether / IP(src="0.0.0.0", dst=to.v4) / UDP(),
        "IPv4, VLAN 0": ether / Dot1Q(vlan=0) / IP(src=third.v4, dst=to.v4) / UDP(),
        "IPv4, 802.1ad 0": ether / Dot1AD(vlan=0) / IP(src=third.v4, dst=to.v4) / UDP(),
        "IPv4, VLAN 0 twice": ether / Dot1Q(vlan=0) / Dot1Q(vlan=0) / IP(src=third.v4, dst=to.v4) / UDP(),
        "IPv4 cut short": Ether(src=own.mac, dst=to.mac, type=0x0800) / b"\x45\x00\x00\x14",
        "ARP sender address": ether / ARP(op=2, hwsrc=own.mac, psrc=gateway.v4, hwdst=to.mac, pdst=to.v4),
        "ARP request, sender address": ether / ARP(op=1, hwsrc=own.mac, psrc=third.v4, pdst=to.v4),
        "ARP sender MAC": ether / ARP(op=2, hwsrc=gateway.mac, psrc=own.v4, hwdst=to.mac, pdst=to.v4),
        "ARP probe for another": ether / ARP(op=1, hwsrc=own.mac, psrc="0.0.0.0", pdst=to.v4),
        "ARP cut short": Ether(src=own.mac, dst=to.mac, type=0x0806) / b"\x00\x01\x08\x00",
        "IPv6": ether / IPv6(src=third.v6, dst=to.v6) / ICMPv6EchoRequest(),
        "IPv6 link-local": ether / IPv6(src=gateway.link, dst=to.v6) / ICMPv6EchoRequest(),
        "IPv6 outside": ether / IPv6(src="2001:db8::1", dst=to.v6) / ICMPv6EchoRequest(),
        "IPv6 unspecified": ether / IPv6(src="::", dst=to.v6) / UDP(),
        "ND advertisement": ether / IPv6(src=own.v6, dst=to.v6, hlim=255) / takeover,
        "ND advertisement from link-local": ether / IPv6(src=own.link, dst=to.link, hlim=255) / takeover,
        "ND advertisement behind options": ether
        / IPv6(src=own.v6, dst=to.v6, hlim=255)
        / IPv6ExtHdrHopByHop()
        / IPv6ExtHdrDestOpt()
        / takeover,
        "ND probe for another": ether / IPv6(src="::", dst=solicited(to), hlim=255) / ICMPv6ND_NS(tgt=to.v6),
        "RA": ether / IPv6(src=own.link, dst=to.link, hlim=255) / advert,
        "RA of the gateway": ether / IPv6(src=gateway.link, dst=to.link, hlim=255) / advert,
        "RA behind options": ether / IPv6(src=own.link, dst=to.link, hlim=255) / IPv6ExtHdrDestOpt() / advert,
        "RA, VLAN 0": ether / Dot1Q(vlan=0) / IPv6(src=own.link, dst=to.link, hlim=255) / advert,
        "redirect": ether / IPv6(src=own.link, dst=to.link, hlim=255) / ICMPv6ND_Redirect(tgt=own.link, dst=to.v6),
    }


def honest(own: Station, to: Station) -> dict[str, Any]:
    """Frames that a pod may send."""
    from scapy.layers.igmp import IGMP
    from scapy.layers.inet import IP, UDP
    from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6MLReport2, ICMPv6ND_NA, ICMPv6ND_NS, IPv6
    from scapy.layers.l2 import ARP, LLC, Dot1AD, Dot1Q, Dot3, Ether

    ether = Ether(src=own.mac, dst=to.mac)
    return {
        "IPv4": ether / IP(src=own.v4, dst=to.v4) / UDP(),
        "IPv4 to all": Ether(src=own.mac, dst="ff:ff:ff:ff:ff:ff") / IP(src=own.v4, dst="255.255.255.255") / UDP(),
        "IGMP": Ether(src=own.mac, dst="01:00:5e:00:00:01") / IP(src=own.v4, dst="224.0.0.1", ttl=1) / IGMP(type=0x11),
        "ARP request": ether / ARP(op=1, hwsrc=own.mac, psrc=own.v4, pdst=to.v4),
        "ARP reply": ether / ARP(op=2, hwsrc=own.mac, psrc=own.v4, hwdst=to.mac, pdst=to.v4),
        "ARP probe for itself": ether / ARP(op=1, hwsrc=own.mac, psrc="0.0.0.0", pdst=own.v4),
        "IPv6": ether / IPv6(src=own.v6, dst=to.v6) / ICMPv6EchoRequest(),
        "IPv6 link-local": ether / IPv6(src=own.link, dst=to.link) / ICMPv6EchoRequest(),
        "ND solicitation": ether / IPv6(src=own.v6, dst=to.v6, hlim=255) / ICMPv6ND_NS(tgt=to.v6),
        "ND probe for itself": ether / IPv6(src="::", dst=to.v6, hlim=255) / ICMPv6ND_NS(tgt=own.v6),
        "ND advertisement": ether / IPv6(src=own.v6, dst=to.v6, hlim=255) / ICMPv6ND_NA(tgt=own.v6),
        "MLD report from nowhere": ether / IPv6(src="::", dst=to.v6, hlim=1) / ICMPv6MLReport2(),
        "VLAN": ether / Dot1Q(vlan=7) / IP(src="192.168.7.1", dst="192.168.7.2") / UDP(),
        "QinQ": ether / Dot1AD(vlan=5) / Dot1Q(vlan=7) / IP(src="192.168.7.1", dst="192.168.7.2") / UDP(),
        "LLC": Dot3(src=own.mac, dst=to.mac) / LLC(dsap=0xAA, ssap=0xAA) / (b"x" * 40),
        "odd ethertype": Ether(src=own.mac, dst=to.mac, type=0x88B5) / (b"x" * 40),
    }
