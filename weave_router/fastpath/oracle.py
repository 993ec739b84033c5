"""What the fast path does with one frame from the TAP, said once more in plain Python: the oracle of its tests.

Pure: a frame and the tables in, a decision out. It shares no code with the compiled workers and must not know sessions,
ciphers or sockets; a superframe, a rate limit and the station table's ageing are not its subject. Only tests call it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

SLOT_NONE: Final = 0
SLOT_LOCAL: Final = 1

_IPV4, _ARP, _VLAN, _QINQ, _IPV6 = 0x0800, 0x0806, 0x8100, 0x88A8, 0x86DD
_ICMP, _IGMP, _TCP, _UDP, _ICMPV6 = 1, 2, 6, 17, 58
_LEAST = {_ICMP: 4, _IGMP: 4, _TCP: 20, _UDP: 8, _ICMPV6: 4}

ANNOUNCE: Final = "announce"
GROUP: Final = "group"
Event = tuple[str, object, object]
"""(ANNOUNCE, number, mac) or (GROUP, mac, joined)."""


@dataclass(frozen=True)
class Node:
    """A peer as the node table has it. ``ready``: it has a session and a path."""

    answer: bool = True
    flood: bool = False
    groups: frozenset[bytes] = frozenset()
    pod_mtu: int = 1368
    ready: bool = True


@dataclass(frozen=True)
class Tables:
    """Everything a decision depends on. ``routes``: (number, prefix length) -> slot."""

    universe: int
    universe_bits: int
    prefix6: bytes
    routes: Mapping[tuple[int, int], int]
    nodes: Mapping[int, Node]
    stations: Mapping[bytes, int] = field(default_factory=dict)

    def owner(self, number: int) -> int:
        for bits in range(32, -1, -1):
            slot = self.routes.get((number >> (32 - bits) << (32 - bits), bits))
            if slot is not None:
                return slot
        return SLOT_NONE

    def holds(self, address: bytes) -> bool:
        """Is this IPv4 or IPv6 address of the universe?"""
        if len(address) == 16:
            return bool(self.prefix6) and address[:12] == self.prefix6
        shift = 32 - self.universe_bits
        return int.from_bytes(address) >> shift == self.universe >> shift


@dataclass(frozen=True)
class Decision:
    """``targets``: slots the frame is sent to; ``parked``: slots it waits for; ``answer``: a frame back to the TAP."""

    drops: tuple[str, ...] = ()
    targets: tuple[int, ...] = ()
    parked: tuple[int, ...] = ()
    answer: bytes = b""
    events: tuple[Event, ...] = ()


@dataclass(frozen=True)
class _Packet:
    """A frame taken apart; ``l4`` 0: no transport header that counts."""

    frame: bytes
    ethertype: int = 0
    family: int = 0
    l3: int = 0
    l4: int = 0
    end: int = 0
    protocol: int = 0

    @property
    def transport(self) -> bytes:
        return self.frame[self.l4 : self.end]


def decide(frame: bytes, tables: Tables) -> Decision:
    """Where does this frame go, and why not?"""
    if len(frame) < 14:
        return Decision(drops=("malformed_inside",))
    packet = _take_apart(frame)
    if frame[0] & 1:
        return _multicast(packet, tables)
    if frame[:2] == b"\x0a\x58":
        return _to_slot(packet, tables, tables.owner(int.from_bytes(frame[2:6])))
    slot = tables.stations.get(frame[:6], SLOT_NONE)
    return _to_slot(packet, tables, slot) if slot else _flood(packet, tables)


def _to_slot(packet: _Packet, tables: Tables, slot: int) -> Decision:
    if slot in (SLOT_NONE, SLOT_LOCAL):
        return Decision(drops=("no_owner" if slot == SLOT_NONE else "local_destination",))
    node = tables.nodes[slot]
    if not node.ready:
        return Decision(parked=(slot,))
    fragmentable = packet.family == 4 and not packet.frame[packet.l3 + 6] & 0x40
    if packet.family and packet.end - packet.l3 > node.pod_mtu and not fragmentable:
        return Decision(drops=("too_big",))
    return Decision(targets=(slot,))


def _flood(packet: _Packet, tables: Tables) -> Decision:
    wanted = [slot for slot, node in sorted(tables.nodes.items()) if node.flood or packet.frame[:6] in node.groups][:64]
    each = [_to_slot(packet, tables, slot) for slot in wanted]
    if not each:
        return Decision(drops=("no_listener",))
    return Decision(
        drops=tuple(drop for one in each for drop in one.drops),
        targets=tuple(slot for one in each for slot in one.targets),
        parked=tuple(slot for one in each for slot in one.parked),
    )


def _multicast(packet: _Packet, tables: Tables) -> Decision:
    if packet.frame[:3] == b"\x01\x80\xc2":
        return Decision(drops=("link_local",))
    if packet.ethertype == _ARP:
        return _arp(packet, tables)
    if packet.family == 4 and packet.protocol == _IGMP:
        return Decision(drops=("link_local",), events=tuple(_igmp_groups(packet.transport)))
    if packet.family == 6 and packet.protocol == _ICMPV6:
        return _neighbour_discovery(packet, tables)
    return _flood(packet, tables)


def _refusal(tables: Tables, number: int) -> str:
    """Why ARP or ND for this number is not answered; empty: it is."""
    slot = tables.owner(number)
    if slot == SLOT_NONE:
        return "no_owner"
    if slot == SLOT_LOCAL:
        return "local_destination"
    return "" if tables.nodes[slot].answer else "no_answer"


def _derived(number: bytes) -> bytes:
    return b"\x0a\x58" + number


def _arp(packet: _Packet, tables: Tables) -> Decision:
    arp = packet.frame[packet.l3 : packet.l3 + 28]
    if len(arp) < 28 or arp[:6] != b"\x00\x01\x08\x00\x06\x04":
        return Decision(drops=("malformed_inside",))
    operation, hardware, sender, target = arp[6:8], arp[8:14], arp[14:18], arp[24:28]
    if not tables.holds(target):
        return _flood(packet, tables)
    if sender == target and hardware != _derived(sender):
        return Decision(events=((ANNOUNCE, int.from_bytes(sender), hardware),))
    if sender == target or sender == bytes(4) or operation != b"\x00\x01":
        return Decision(drops=("link_local",))
    if why := _refusal(tables, int.from_bytes(target)):
        return Decision(drops=(why,))
    head = packet.frame[6:12] + _derived(target) + packet.frame[12 : packet.l3]
    return Decision(answer=head + arp[:6] + b"\x00\x02" + _derived(target) + target + hardware + sender)


def _neighbour_discovery(packet: _Packet, tables: Tables) -> Decision:
    message, source = packet.transport, packet.frame[packet.l3 + 8 : packet.l3 + 24]
    kind = message[0]
    if kind in (143, 131, 132):
        return Decision(drops=("link_local",), events=tuple(_mld_groups(message)))
    if kind in (130, 133, 134):
        return Decision(drops=("link_local",))
    if kind not in (135, 136):
        return _flood(packet, tables)
    if len(message) < 24:
        return Decision(drops=("malformed_inside",))
    target = message[8:24]
    if not tables.holds(target):
        link_local = target[0] == 0xFE and target[1] & 0xC0 == 0x80
        return Decision(drops=("link_local",)) if link_local else _flood(packet, tables)
    if kind == 136:
        hardware = message[26:32]
        if len(hardware) < 6 or message[24] != 2 or hardware == _derived(target[12:]):
            return Decision(drops=("link_local",))
        return Decision(events=((ANNOUNCE, int.from_bytes(target[12:]), hardware),))
    if source == bytes(16):
        return Decision(drops=("link_local",))
    if why := _refusal(tables, int.from_bytes(target[12:])):
        return Decision(drops=(why,))
    return Decision(answer=_advertisement(packet, source, target))


def _advertisement(packet: _Packet, source: bytes, target: bytes) -> bytes:
    hardware = _derived(target[12:])
    icmp = b"\x88\x00\x00\x00\x60\x00\x00\x00" + target + b"\x02\x01" + hardware
    addresses = target + source
    value = _checksum(addresses + len(icmp).to_bytes(4) + _ICMPV6.to_bytes(4) + icmp)
    head = packet.frame[6:12] + hardware + packet.frame[12 : packet.l3]
    return head + b"\x60\0\0\0" + len(icmp).to_bytes(2) + b"\x3a\xff" + addresses + icmp[:2] + value + icmp[4:]


def _checksum(data: bytes) -> bytes:
    total = sum(int.from_bytes(data[i : i + 2]) for i in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ((~total & 0xFFFF) or 0xFFFF).to_bytes(2)


# -- groups ------------------------------------------------------------------------------------------------------------


def _group(address: bytes, joined: bool) -> Event:
    if len(address) == 4:
        return GROUP, b"\x01\x00\x5e" + bytes([address[1] & 0x7F]) + address[2:], joined
    return GROUP, b"\x33\x33" + address[12:], joined


def _igmp_groups(message: bytes) -> Iterator[Event]:
    if len(message) < 8:
        return
    if message[0] in (0x12, 0x16, 0x17):
        yield _group(message[4:8], message[0] != 0x17)
    elif message[0] == 0x22:
        yield from _records(message, 4)


def _mld_groups(message: bytes) -> Iterator[Event]:
    if len(message) < 8:
        return
    if message[0] == 143:
        yield from _records(message, 16)
    elif len(message) >= 24:
        yield _group(message[8:24], message[0] == 131)


def _records(message: bytes, size: int) -> Iterator[Event]:
    """IGMPv3 (RFC 3376 section 4.2) and MLDv2 (RFC 3810 section 5.2): at most 64 records, each whole."""
    at = 8
    for _ in range(min(int.from_bytes(message[6:8]), 64)):
        if len(message) < at + 4 + size:
            return
        kind, sources = message[at], int.from_bytes(message[at + 2 : at + 4])
        if kind != 6:
            yield _group(message[at + 4 : at + 4 + size], sources > 0 if kind in (1, 3) else kind in (2, 4, 5))
        at += 4 + size + sources * size + message[at + 1] * 4


# -- a frame taken apart -----------------------------------------------------------------------------------------------


def _take_apart(frame: bytes) -> _Packet:
    at = 12
    for kinds in ((_QINQ, _VLAN), (_VLAN,)):
        if int.from_bytes(frame[at : at + 2]) not in kinds:
            break
        at += 4
        if len(frame) < at + 2:
            return _Packet(frame, end=len(frame))
    ethertype, l3 = int.from_bytes(frame[at : at + 2]), at + 2
    plain = _Packet(frame, ethertype, l3=l3, end=len(frame))
    if ethertype == _IPV4:
        return _ipv4(frame, l3, plain)
    return _ipv6(frame, l3, plain) if ethertype == _IPV6 else plain


def _ipv4(frame: bytes, l3: int, plain: _Packet) -> _Packet:
    head = frame[l3 : l3 + 20]
    if len(head) < 20 or head[0] >> 4 != 4:
        return plain
    size, end = (head[0] & 15) * 4, l3 + int.from_bytes(head[2:4])
    if size < 20 or end > len(frame) or l3 + size > end:
        return plain
    bare = _Packet(frame, _IPV4, 4, l3, end=end)
    later = int.from_bytes(head[6:8]) & 0x1FFF
    return bare if later else _with_transport(bare, l3 + size, head[9])


def _ipv6(frame: bytes, l3: int, plain: _Packet) -> _Packet:
    head = frame[l3 : l3 + 40]
    if len(head) < 40 or head[0] >> 4 != 6:
        return plain
    end, protocol, at, routed = l3 + 40 + int.from_bytes(head[4:6]), head[6], l3 + 40, False
    if end > len(frame):
        return plain
    bare = _Packet(frame, _IPV6, 6, l3, end=end)
    for _ in range(4):
        if protocol not in (0, 43, 60):
            break
        if end < at + 8:
            return bare
        routed |= protocol == 43
        protocol, at = frame[at], at + (frame[at + 1] + 1) * 8
        if at > end:
            return bare
    if routed and protocol != _ICMPV6:
        return bare
    return _with_transport(bare, at, protocol)


def _with_transport(bare: _Packet, l4: int, protocol: int) -> _Packet:
    if protocol not in _LEAST or bare.end < l4 + _LEAST[protocol]:
        return bare
    return _Packet(bare.frame, bare.ethertype, bare.family, bare.l3, l4, bare.end, protocol)
