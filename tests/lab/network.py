"""What a lab is built from: segments (switch, cable), hosts, pods, gateways and NATs.

                      segment 1: 198.18.1.0/24, 2001:db8:1::/64
        h1 (.1) ------+                                           inside segment: 198.18.2.0/24
        h2 (.2) ------+---- gateway or NAT (.254 inside) ---------+---- h3 (.1)

A segment hands out addresses by number, in the ranges for documentation and benchmarks. A gateway joins its segments
before the hosts do, so that they get their default route. Called by lab.py.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Final

from .namespace import LabError, Namespace, Nic
from .wire import End, Faults, Wire

GATEWAY_NUMBER: Final = 254
BOTH: Final = ("v4", "v6")


class Segment(ABC):
    """One IP subnet per family and the wires into it."""

    def __init__(self, index: int, *, mtu: int = 1500, nic: Nic = Nic.OFFLOADS) -> None:
        self.v4 = IPv4Network(f"198.18.{index}.0/24")
        self.v6 = IPv6Network(f"2001:db8:{index:x}::/64")
        self.mtu = mtu
        self.nic = nic
        self.gateway_number: int | None = None
        self.wires: list[Wire] = []
        self._numbers = itertools.count(1)

    def next_number(self) -> int:
        return next(self._numbers)

    def address(self, number: int, family: str) -> str:
        return str((self.v4 if family == "v4" else self.v6)[number])

    @abstractmethod
    def _far_end(self, end: End) -> End | None:
        """The other end of the next wire; None while a cable has only one."""

    def connect(
        self, namespace: Namespace, interface: str, *, faults: Faults | None = None
    ) -> Wire | None:
        near = End(namespace, interface)
        far = self._far_end(near)
        if far is None:
            return None
        wire = Wire(near, far, mtu=self.mtu, nic=self.nic, faults=faults)
        self.wires.append(wire)
        wire.lay()
        self._joined(far)
        return wire

    @abstractmethod
    def _joined(self, far: End) -> None:
        """Called when a wire was laid."""


class Switch(Segment):
    """A bridge in a namespace of its own; every wire ends at a port of it."""

    def __init__(self, namespace: Namespace, index: int, *, mtu: int = 1500, nic: Nic = Nic.OFFLOADS) -> None:
        super().__init__(index, mtu=mtu, nic=nic)
        self.namespace = namespace
        namespace.sysctl({"net.ipv6.conf.default.disable_ipv6": 1})
        namespace.ip(f"link add br0 mtu {mtu} type bridge mcast_snooping 0", "link set br0 up")
        self._ports = itertools.count(1)

    def _far_end(self, end: End) -> End:
        return End(self.namespace, f"p{next(self._ports)}")

    def _joined(self, far: End) -> None:
        self.namespace.ip(f"link set {far.interface} master br0")


class Cable(Segment):
    """Exactly two hosts, nothing between: for measurements, where a switch would cost what it costs.

    The wire exists once the second has joined; addresses of the first are set then.
    """

    def __init__(self, index: int, *, mtu: int = 1500, nic: Nic = Nic.OFFLOADS) -> None:
        super().__init__(index, mtu=mtu, nic=nic)
        self._first: tuple[End, list[str]] | None = None

    def _far_end(self, end: End) -> End | None:
        return self._first[0] if self._first else None

    def remember(self, end: End, lines: list[str]) -> None:
        self._first = (end, lines)

    def _joined(self, far: End) -> None:
        assert self._first is not None
        self._first[0].namespace.ip(*self._first[1])


class Node(Namespace):
    """A namespace with underlay interfaces."""

    def __init__(self, name: str, label: str, directory: Path) -> None:
        super().__init__(name, label)
        self.directory = directory
        self.wires: list[Wire] = []
        self.segments: list[tuple[Segment, str, int]] = []

    def create(self) -> None:
        super().create()
        self.sysctl({"net.ipv6.conf.default.accept_dad": 0, "net.ipv6.conf.default.accept_ra": 0})

    def join(
        self,
        segment: Segment,
        *,
        number: int | None = None,
        families: Sequence[str] = BOTH,
        faults: Faults | None = None,
    ) -> None:
        """Lay a wire, take the next number's addresses, and the default route where the segment has a gateway."""
        interface = f"eth{len(self.segments)}"
        number = segment.next_number() if number is None else number
        lines = self._address_lines(segment, interface, number, families)
        wire = segment.connect(self, interface, faults=faults)
        self.segments.append((segment, interface, number))
        if wire is None:
            assert isinstance(segment, Cable)
            segment.remember(End(self, interface), lines)
            return
        self.wires.append(wire)
        self.ip(*lines)

    def _address_lines(self, segment: Segment, interface: str, number: int, families: Sequence[str]) -> list[str]:
        lines = []
        for family in families:
            prefix = (segment.v4 if family == "v4" else segment.v6).prefixlen
            lines.append(f"address add {segment.address(number, family)}/{prefix} dev {interface}")
            if segment.gateway_number is not None:
                lines.append(f"route add default via {segment.address(segment.gateway_number, family)}")
        return lines

    def address(self, family: str = "v4", segment: Segment | None = None) -> str:
        """The underlay address in the first segment joined, or in the one given."""
        for joined, _, number in self.segments:
            if segment is None or joined is segment:
                return joined.address(number, family)
        raise LabError(f"{self.label} is in no such segment")

    @property
    def wire(self) -> Wire:
        return self.wires[0]


class Gateway(Node):
    """Forwards between its segments. Can shrink what passes, and keep silent about it."""

    def create(self) -> None:
        super().create()
        self.sysctl({"net.ipv4.ip_forward": 1, "net.ipv6.conf.all.forwarding": 1})

    def join_as_gateway(self, segment: Segment) -> None:
        self.join(segment, number=GATEWAY_NUMBER)
        segment.gateway_number = GATEWAY_NUMBER

    def lower_mtu(self, mtu: int) -> None:
        """What is larger and may not be fragmented is dropped from now on, in every direction (a locked route MTU)."""
        for segment, interface, _ in self.segments:
            self.ip(
                f"route change {segment.v4} dev {interface} mtu lock {mtu}",
                f"route change {segment.v6} dev {interface} proto kernel metric 256 mtu lock {mtu}",
            )

    def block_icmp(self) -> None:
        """Say nothing about what was dropped: the black hole of path MTU discovery."""
        self.nft(
            "table inet lab_silence { chain output { type filter hook output priority 0; policy accept;\n"
            "icmp type { destination-unreachable, time-exceeded } counter drop\n"
            "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded } counter drop\n}\n}\n"
        )


class Nat(Gateway):
    """An IPv4 NAT. Kinds, by whom they let in through a port that an inside host has used (RFC 4787's words behind):

    full-cone        anyone                             (endpoint-independent mapping and filtering)
    address          whom that host has sent to         (address-dependent filtering)
    port             the very address and port          (address and port-dependent filtering): plain masquerade
    symmetric        as port, and every destination sees another port of ours
    """

    KINDS: Final = ("full-cone", "address", "port", "symmetric")

    def translate(self, kind: str, *, udp_timeout: int = 30) -> None:
        if kind not in self.KINDS:
            raise LabError(f"NAT kind {kind} is none of {', '.join(self.KINDS)}")
        outside = self.segments[0][1]
        self.nft(nat_rules(kind, outside))
        self.sysctl({f"net.netfilter.nf_conntrack_udp_timeout{word}": udp_timeout for word in ("", "_stream")})


def nat_rules(kind: str, outside: str) -> str:
    """Strangers are dropped before conntrack confirms them: an entry of theirs would take the port from our own."""
    source = "fully-random" if kind == "symmetric" else ""
    learn = {
        "full-cone": "update @owner { udp sport : ip saddr }",
        "address": "update @owner { udp sport : ip saddr } update @contacted { udp sport . ip daddr }",
    }.get(kind, "")
    let_in = {"full-cone": "", "address": "udp dport . ip saddr @contacted"}.get(kind)
    return f"""
table ip lab_nat {{
  map owner {{ type inet_service : ipv4_addr; flags dynamic; size 65535; }}
  set contacted {{ type inet_service . ipv4_addr; flags dynamic; size 65535; }}
  chain prerouting {{ type nat hook prerouting priority dstnat; policy accept;
    {f'iifname "{outside}" meta l4proto udp {let_in} dnat to udp dport map @owner' if let_in is not None else ""}
  }}
  chain postrouting {{ type nat hook postrouting priority srcnat; policy accept;
    {f'oifname "{outside}" meta l4proto udp {learn}' if learn else ""}
    oifname "{outside}" masquerade {source}
  }}
  chain input {{ type filter hook input priority filter; policy accept;
    iifname "{outside}" meta l4proto {{ tcp, udp }} ct state new drop
  }}
  chain forward {{ type filter hook forward priority filter; policy accept;
    iifname "{outside}" ct state new ct status dnat accept
    iifname "{outside}" ct state new drop
  }}
}}
"""


class Pod(Namespace):
    """A container's namespace. Its interface comes from the product, by ``Router.attach``, or from ``vxlan.py``."""

    def __init__(self, name: str, label: str, host: Host) -> None:
        super().__init__(name, label)
        self.host = host
        self.v4 = ""
        self.v6 = ""

    def address(self, family: str = "v4") -> str:
        return self.v4 if family == "v4" else self.v6


class Host(Node):
    """A machine of the lab: underlay addresses, a folder with the router's state and sockets, and pods."""

    def __init__(self, name: str, label: str, directory: Path) -> None:
        super().__init__(name, label, directory)
        self.pods: list[Pod] = []
        self.state_dir = directory / "state"
        self.run_dir = directory / "run"

    def create(self) -> None:
        super().create()
        for folder in (self.directory, self.state_dir, self.run_dir):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
