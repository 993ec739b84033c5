"""The fast path's frame parser and checksums against scapy; any bytes leave offsets that lie inside the frame."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_Router_Alert
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import ARP, LLC, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw
from security.inputs import INPUTS, seeded

from weave_router.fastpath.probe import (
    Parsed,
    checksum,
    complete_checksum,
    flow_hash,
    ipv4_checksum,
    open_checksum,
    parse_untrusted,
)
from weave_router.host.steering import tap_hash

MACS = {"src": "0a:58:0a:20:00:05", "dst": "0a:58:0a:20:00:45"}
TAGS: list[list[Packet]] = [[], [Dot1Q(vlan=5)], [Dot1AD(vlan=9), Dot1Q(vlan=5)], [Dot1Q(vlan=9), Dot1Q(vlan=5)]]
TRANSPORTS: list[Packet] = [
    TCP(sport=1, dport=2, options=[("MSS", 1400), ("Timestamp", (1, 2))]),
    TCP(sport=1, dport=2),
    UDP(sport=53, dport=5353),
]


def framed(tags: list[Packet], *layers: Packet) -> Packet:
    frame = Ether(**MACS)
    for layer in (*tags, *layers):
        frame = frame / layer.copy()
    return frame


def offset_of(data: bytes, packet: Packet, layer: type[Packet]) -> int:
    return len(data) - len(bytes(packet[layer]))


@pytest.mark.parametrize("tags", TAGS, ids=["plain", "vlan", "qinq", "vlan-in-vlan"])
@pytest.mark.parametrize("transport", TRANSPORTS, ids=["tcp-options", "tcp", "udp"])
@pytest.mark.parametrize(
    "network",
    [
        [IP(src="10.32.0.5", dst="10.32.0.69")],
        [IP(src="10.32.0.5", dst="10.32.0.69", options=[IPOption_Router_Alert()])],
        [IPv6(src="fd00::a20:5", dst="fd00::a20:45")],
        [IPv6(src="fd00::a20:5", dst="fd00::a20:45"), IPv6ExtHdrHopByHop()],
        [IPv6(src="fd00::a20:5", dst="fd00::a20:45"), IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt()],
    ],
    ids=["ipv4", "ipv4-options", "ipv6", "hop-by-hop", "destination"],
)
@pytest.mark.parametrize("size", [0, 1, 1300])
def test_offsets_and_checksums_equal_scapys(
    tags: list[Packet], network: list[Packet], transport: Packet, size: int
) -> None:
    data = bytes(framed(tags, *network, transport, Raw(os.urandom(size))))
    frame = Ether(data)
    found = parse_untrusted(data + bytes(3))  # padding is not the datagram's
    l4 = offset_of(data, frame, type(transport))
    assert found == Parsed(
        ethertype=0x0800 if IP in frame else 0x86DD, family=4 if IP in frame else 6,
        l3=offset_of(data, frame, type(network[0])), l4=l4, protocol=6 if TCP in frame else 17, end=len(data),
        payload=len(data) - size, fragment=False,
    )  # fmt: skip
    assert open_checksum(data)[1] == data  # scapy's own checksum
    if found.family == 4:
        header = data[found.l3 : l4]
        assert ipv4_checksum(header[:10] + b"\x12\x34" + header[12:]) == header


def test_what_has_no_transport_header() -> None:
    assert parse_untrusted(bytes(framed([], ARP(psrc="10.32.0.5", pdst="10.32.0.69")))).ethertype == 0x0806
    assert parse_untrusted(bytes(Ether(**MACS, type=40) / LLC() / Raw(bytes(37))))[:3] == (40, 0, 14)
    first = IPv6(dst="fd00::1") / IPv6ExtHdrFragment(offset=0, m=1, nh=17) / Raw(bytes(64))
    assert parse_untrusted(bytes(Ether(**MACS) / first))[3:] == (0, 0, 14 + 40 + 8 + 64, 0, True)
    later = IP(dst="10.32.0.9", frag=5, proto=17) / Raw(bytes(64))
    assert parse_untrusted(bytes(Ether(**MACS) / later))[3:] == (0, 0, 14 + 20 + 64, 0, True)
    head = IP(dst="10.32.0.9", flags="MF") / UDP() / Raw(bytes(64))
    assert parse_untrusted(bytes(Ether(**MACS) / head))[3:] == (34, 17, 14 + 28 + 64, 0, True)


def test_neighbour_discovery_is_seen_behind_any_options() -> None:
    """Linux takes it there too; else the check of foreign sources would be evaded."""
    behind: list[list[Packet]] = [
        [], [IPv6ExtHdrHopByHop()], [IPv6ExtHdrDestOpt()], [IPv6ExtHdrRouting(segleft=0)],
        [IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt(), IPv6ExtHdrRouting(segleft=0)],
    ]  # fmt: skip
    for options in behind:
        for message in (ICMPv6ND_NA(tgt="fd00::1"), ICMPv6ND_NS(tgt="fd00::1")):
            data = bytes(framed([], IPv6(dst="fd00::9"), *options, message))
            assert parse_untrusted(data)[3:5] == (len(data) - 24, 58)


def test_behind_a_routing_header_tcp_and_udp_stay_opaque() -> None:
    data = bytes(framed([], IPv6(dst="fd00::9"), IPv6ExtHdrRouting(segleft=0), UDP(), Raw(b"x")))
    assert parse_untrusted(data)[3:5] == (0, 0)


def test_lengths_that_lie() -> None:
    good = bytes(framed([], IP(dst="10.32.0.9"), UDP(), Raw(bytes(10))))
    for field, value in ((14, 0x44), (14, 0x4F), (14, 0x65), (16, 0xFF)):
        assert parse_untrusted(good[:field] + bytes([value]) + good[field + 1 :]).family == 0, (field, value)
    short = good[:16] + bytes([0, 27]) + good[18:]
    assert parse_untrusted(short)[3:5] == (0, 0)
    tcp = bytes(framed([], IP(dst="10.32.0.9"), TCP()))
    assert parse_untrusted(tcp[:46] + b"\x60" + tcp[47:]).l4 == 0
    assert parse_untrusted(tcp[:46] + b"\x40" + tcp[47:]).l4 == 0


def assert_inside(data: bytes) -> None:
    found = parse_untrusted(data)
    assert 0 <= found.l3 <= len(data)
    assert 0 <= found.end <= len(data)
    if found.family:
        assert found.l3 + (20 if found.family == 4 else 40) <= found.end
    if found.l4:
        least = {1: 4, 2: 4, 58: 4, 6: 20, 17: 8}[found.protocol]
        assert found.l3 < found.l4
        assert found.l4 + least <= found.end
    if found.payload:
        assert found.l4 < found.payload <= found.end
    hashed = flow_hash(data)
    if found.payload and found.l3 == 14 and (found.family == 4 or found.l4 == 54):
        assert hashed == tap_hash(data), "of a whole packet without tags, which the kernel's programs know"


STARTS = [bytes(framed(tags, *layers))[:n] for tags in TAGS for layers in (
    [IP(), TCP()], [IP(), UDP()], [IP(), ICMP()], [IPv6(), TCP()], [IPv6(), UDP()], [IPv6(), ICMPv6ND_NS()],
    [IPv6(), IPv6ExtHdrHopByHop(), UDP()], [ARP()]) for n in (14, 18, 38, 60, 1000)]  # fmt: skip


def test_fuzz_any_bytes_leave_offsets_inside() -> None:
    rng = seeded(1)
    for _ in range(INPUTS):
        data = bytearray(rng.choice(STARTS) + rng.randbytes(rng.choice((0, 1, 8, 40))))
        for _ in range(rng.choice((0, 1, 2, 8))):
            if data:
                data[rng.randrange(len(data))] = rng.choice(
                    (0, 1, 5, 6, 43, 44, 58, 60, 0x45, 0xFF, rng.randrange(256))
                )
        assert_inside(bytes(data[: rng.randrange(len(data) + 1)] if rng.random() < 0.3 else data))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 0xFFFF))
def test_checksum_equals_the_definition(data: bytes, start: int) -> None:
    """RFC 1071, on words as they lie in memory (little-endian machine)."""
    padded = data + bytes(len(data) % 2)
    total = start + sum(int.from_bytes(padded[i : i + 2], "little") for i in range(0, len(padded), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    assert checksum(data, start) == total


def test_a_sum_of_zero_is_sent_as_ones() -> None:
    """UDP has no other word for it (RFC 768)."""
    assert complete_checksum(b"\xff\xff\x00\x00", 4, 0, 2) == b"\xff\xff\xff\xff"


@pytest.mark.parametrize("network", [IP, IPv6])
@pytest.mark.parametrize("transport", [TCP, UDP])
def test_both_directions_of_a_flow_hash_alike(network: type[Packet], transport: type[Packet]) -> None:
    there = Ether(**MACS) / network() / transport(sport=1000, dport=80) / b"x"
    back = Ether(src=MACS["dst"], dst=MACS["src"]) / network() / transport(sport=80, dport=1000) / b"longer"
    other = Ether(**MACS) / network() / transport(sport=1001, dport=80) / b"x"
    assert flow_hash(bytes(there)) == flow_hash(bytes(back)) != flow_hash(bytes(other))


@pytest.mark.parametrize(
    "packet",
    [
        IP() / TCP(sport=1000, dport=80) / b"x",
        IP() / UDP(sport=1000, dport=53) / b"x",
        IP(options=[IPOption_Router_Alert()]) / UDP(sport=1000, dport=53) / b"x",
        IP(flags="MF") / UDP(sport=1000, dport=53) / b"12345678",
        IP(frag=1, proto=17) / b"12345678",
        IP() / ICMP(),
        IPv6(src="fd00::1", dst="fd00::2") / TCP(sport=1000, dport=80) / b"x",
        IPv6(src="fd00::1", dst="fd00::2") / UDP(sport=1000, dport=53) / b"x",
        IPv6(src="fd00::1", dst="fd00::2") / IPv6ExtHdrFragment(m=1) / UDP() / b"12345678",
        ARP(),
        Raw(b"x"),
    ],
    ids=Packet.summary,
)
def test_the_kernels_programs_hash_a_flow_as_we_do(packet: Packet) -> None:
    """Else a flow that comes too fast is not the one that gets no credit."""
    frame = bytes(Ether(**MACS) / packet)
    assert flow_hash(frame) == tap_hash(frame)
