"""Frames of every size and kind, and superframes, cross two fast paths unmangled (topology: fastpath_pair.py).

What is compared arrives behind the kernel's own segmentation and checksum code.
"""

import hashlib
import random
import select
import socket
import threading
from collections.abc import Iterator

import pytest
from kernel.fastpath_pair import (
    ALL_OFFLOADS,
    CSUM,
    LEFT,
    POD_MTU,
    PORT_RIGHT,
    RIGHT,
    Pair,
    by_flow,
    ip4,
    ip6,
    mac,
    pair,
)
from kernel.fastpath_peer import (
    ACK,
    CWR,
    FIN,
    IPV4,
    IPV6,
    PSH,
    SYN,
    TCP,
    UDP,
    cut,
    ethernet,
    ip_packet,
    opened,
    same_frames,
    tcp,
    udp,
    vnet,
)

from weave_router.fastpath import engine as fp

A, B = LEFT + 2, RIGHT + 2
VLAN, QINQ = b"\x81\x00\x00\x05", b"\x88\xa8\x00\x09\x81\x00\x00\x05"
CONFIGURATIONS: dict[str, dict[str, object]] = {
    "all": {},
    "chachapoly-ipv6-outer": {"suite": fp.SUITE_CHACHAPOLY, "outer": "6", "payload_max": 1452},
    "plaintext": {"session_flags": fp.SESSION_PLAINTEXT},
    "right-without-offloads": {"offloads": (ALL_OFFLOADS, 0)},
    "left-without-offloads": {"offloads": (0, ALL_OFFLOADS)},
    "csum-only": {"offloads": (CSUM, CSUM)},
    "no-udp-segment": {"refuse": frozenset({"udp_segment"})},
}


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def both(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with pair(**CONFIGURATIONS[request.param]) as made:
        yield made


def frame(ethertype: int, body: bytes, tags: bytes = b"") -> bytes:
    return ethernet(mac(B), mac(A), ethertype, body, tags)


def addresses(family: int) -> tuple[str, str]:
    return (ip4(A), ip4(B)) if family == 4 else (ip6(A), ip6(B))


def ip_frame(family: int, protocol: int, body: bytes, tags: bytes = b"", **words: int) -> bytes:
    return frame(IPV4 if family == 4 else IPV6, ip_packet(*addresses(family), protocol, body, **words), tags)


def tcp_frame(
    family: int, payload: bytes, tags: bytes = b"", *, ident: int = 0, tos: int = 0, **words: object
) -> bytes:
    return ip_frame(family, TCP, tcp(*addresses(family), payload, **words), tags, ident=ident, tos=tos)  # type: ignore[arg-type]


def udp_frame(family: int, payload: bytes, tags: bytes = b"", *, flags: int = 2, **words: int) -> bytes:
    return ip_frame(family, UDP, udp(*addresses(family), payload, **words), tags, flags=flags)


def unchanged(both: Pair, frames: list[bytes]) -> None:
    found = both.exchange(frames)
    assert len(found) == len(frames)
    assert by_flow(found) == by_flow(frames)


@pytest.mark.parametrize("payload_max", [548, 1200, 1472])
def test_every_size(both: Pair, payload_max: int) -> None:
    """14 bytes to pod MTU + 18, each one byte longer than the other; the small ones in bundles."""
    both.path(payload_max)
    rng = random.Random(payload_max)
    frames = [frame(0x1234, rng.randbytes(n)) for n in range(POD_MTU + 5)]
    for at in range(0, len(frames), 500):  # all at once are more than may wait to be sealed
        unchanged(both, frames[at : at + 500])


@pytest.mark.parametrize("tags", [VLAN, QINQ], ids=["vlan", "qinq"])
def test_tagged(both: Pair, tags: bytes) -> None:
    """From 20 bytes on: the kernel itself drops shorter tagged frames (skb_vlan_untag)."""
    both.path(548)
    rng = random.Random(1)
    sizes = [2, 3, 30, 400, 480, 490, 500, 1000, POD_MTU]
    unchanged(both, [frame(0x1234, rng.randbytes(n), tags) for n in sizes])
    unchanged(both, [make(family, rng.randbytes(n), tags) for n in (1, 18, 900) for family in (4, 6)
                     for make in (tcp_frame, udp_frame)])  # fmt: skip


def test_llc_and_odd_ethertypes(both: Pair) -> None:
    rng = random.Random(2)
    kinds = [3, 38, 46, 1400, 0x0600, 0x0805, 0x0842, 0x22F0, 0x6558, 0x8035, 0x8847, 0x8863, 0x88CC, 0xFFFF]
    unchanged(both, [frame(kind, rng.randbytes(kind if 46 <= kind <= 1500 else 60)) for kind in kinds])


def test_padding_and_what_only_looks_like_ip(both: Pair) -> None:
    rng = random.Random(3)
    short = udp_frame(4, b"x")
    unchanged(both, [short + bytes(17), short + b"not zeros", frame(IPV4, b"\x45" + rng.randbytes(19)),
                     frame(IPV6, b"\x60" + rng.randbytes(60)), frame(IPV4, b""), frame(IPV6, bytes(1000)),
                     frame(IPV4, bytes([0x4F]) + rng.randbytes(30))])  # fmt: skip


@pytest.mark.parametrize("payload_max", [548, 1472])
def test_open_checksums_arrive_valid(both: Pair, payload_max: int) -> None:
    both.path(payload_max)
    rng = random.Random(4)
    frames = [make(family, rng.randbytes(n), tags) for n in (1, 2, 17, 300, 517, 1300) for family in (4, 6)
              for make in (tcp_frame, udp_frame) for tags in (b"", VLAN)]  # fmt: skip
    starts = [14 if f[12:14] != VLAN[:2] else 18 for f in frames]
    sent = [(opened(f, l3), vnet(f, l3=l3)) for f, l3 in zip(frames, starts, strict=True)]
    assert same_frames(sorted(both.exchange(sent)), sorted(frames))  # flows may pass each other


def test_open_checksum_of_another_protocol_is_completed(both: Pair) -> None:
    """csum_start is not the transport header's: an inner packet of a tunnel. Completed before it is sealed."""
    inner = ip_packet("172.16.0.1", "172.16.0.2", UDP, udp("172.16.0.1", "172.16.0.2", b"payload"))
    whole = ip_frame(4, 4, inner)
    half = opened(whole[:14] + inner)[14:]
    header = bytes([1, 0, 0, 0, 0, 0, 54, 0, 6, 0])
    assert both.exchange([(whole[:34] + half, header)]) == [whole]


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("tags", [b"", VLAN], ids=["plain", "vlan"])
@pytest.mark.parametrize(
    ("size", "gso", "flags", "options"),
    [
        (65535 - 60, 1296, ACK | PSH, b"\x01\x01\x08\x0a" + bytes(range(8))),
        (65535 - 60, 536, ACK | PSH | FIN, b""),
        (1309 + 20, 1308, ACK | CWR | PSH, b""),
        (2616 + 20, 1308, ACK | PSH, b""),
        (30001, 1299, ACK, b""),
        (5000, 100, ACK | FIN, b""),
    ],
)
def test_tcp_superframes(both: Pair, family: int, tags: bytes, size: int, gso: int, flags: int, options: bytes) -> None:
    both.path(1472)
    size -= 40 if family == 6 else 20
    payload = random.Random(size).randbytes(size - len(options))
    whole = tcp_frame(family, payload, tags, ident=65530, seq=0xFFFFF000, flags=flags, options=options)
    l3 = 14 + len(tags)
    found = both.exchange([(opened(whole, l3), vnet(whole, gso, l3))])
    assert same_frames(found, cut(whole, gso, l3))


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(
    ("size", "gso"), [(64 * 1300, 1300), (1301, 1300), (20 * 700 + 1, 700), (64 * 11, 11), (999, 37)]
)
def test_udp_superframes(both: Pair, family: int, size: int, gso: int) -> None:
    both.path(1472)
    payload = random.Random(size).randbytes(min(size, 65000))
    whole = ip_frame(family, UDP, udp(*addresses(family), payload))
    found = both.exchange([(opened(whole), vnet(whole, gso))])
    assert same_frames(found, cut(whole, gso))


def test_segments_with_other_options_are_not_one_superframe(both: Pair) -> None:
    """A timestamp, a window or an acknowledgement that moves in mid-flow is the receiver's to see."""
    both.path(1472)
    frames = []
    for i in range(24):
        stamp = b"\x01\x01\x08\x0a" + (i // 3).to_bytes(4, "big") + bytes(4)
        frames.append(tcp_frame(4, bytes([i]) * 100, ident=i, seq=i * 100, options=stamp))
    both.left.engine.stop()
    for f in frames:
        both.left.port.send(opened(f), vnet(f))
    restart(both)
    assert same_frames(both.exchange([]), frames)


def restart(both: Pair) -> None:
    """What was sent while the left side stood still comes as one burst."""
    side, some = both.left, bool(both.offloads[0])
    sockets = [s.fileno() for s in side.sockets]
    side.engine.start(side.taps, sockets, vnet_hdr=12, tap_csum=some, tap_tso=some, tap_uso=some)


def test_an_open_checksum_does_not_cover_padding(both: Pair) -> None:
    """The kernel sums an open checksum to the end of the buffer; ours ends with the datagram."""
    both.path(1472)
    whole = udp_frame(4, b"12345")
    padded = opened(whole) + b"not zero"
    found = both.exchange([(padded, vnet(whole))])
    if both.offloads[0]:  # else it was completed, over the padding, before we had it
        assert found == [whole + b"not zero"]


def test_tcp_superframes_on_a_narrow_path_are_cut_smaller(both: Pair) -> None:
    both.path(548)
    whole = tcp_frame(4, random.Random(6).randbytes(20000), flags=ACK | PSH)
    before = both.left.engine.counters()["fragmented"]
    found = both.exchange([(opened(whole), vnet(whole, 1300))])
    assert b"".join(f[54:] for f in found) == whole[54:]
    if both.left.engine.counters()["segments_cut"]:
        assert both.left.engine.counters()["fragmented"] == before


def test_udp_superframes_on_a_narrow_path_are_fragmented(both: Pair) -> None:
    both.path(548)
    whole = udp_frame(6, random.Random(7).randbytes(20000))
    assert same_frames(both.exchange([(opened(whole), vnet(whole, 1300))]), cut(whole, 1300))


def test_flows_that_are_joined_stay_apart(both: Pair) -> None:
    """Twelve interleaved flows (the table holds eight), of changing sizes, ids and TOS: each in order, unmangled."""
    both.path(1472)
    rng = random.Random(8)
    frames = []
    for turn in range(40):
        for flow in range(12):
            family = 4 if flow % 2 else 6
            size = 200 if rng.random() < 0.7 else rng.randrange(1, 1300)
            tos = 0x10 if rng.random() < 0.1 else 0
            ident = turn if rng.random() < 0.8 else rng.randrange(65536)
            if flow % 3:
                body = udp(*addresses(family), rng.randbytes(size), sport=flow + 1)
                frames.append(ip_frame(family, UDP, body, ident=ident, tos=tos))
            else:
                flags = ACK | (PSH if rng.random() < 0.1 else 0) | (FIN if rng.random() < 0.05 else 0)
                body = tcp(*addresses(family), rng.randbytes(size), sport=flow + 1, seq=turn * 200, flags=flags)
                frames.append(ip_frame(family, TCP, body, ident=ident, tos=tos))
    found = both.exchange([(opened(f), vnet(f)) for f in frames])
    assert len(found) == len(frames)
    wanted = by_flow(frames)
    for key, some in by_flow(found).items():
        assert same_frames(some, wanted[key])


def test_no_full_size_frame_is_fragmented(both: Pair) -> None:
    """Pod MTU 1,368 on 1,500: 1,472 bytes of UDP payload, 1,452 with an IPv6 underlay; also with tags."""
    both.path(1472 if both.outer == "4" else 1452)
    before = both.left.engine.counters()["fragmented"]
    full = [
        make(family, bytes(POD_MTU - least), tags)
        for tags in (b"", VLAN, QINQ)
        for make, family, least in ((tcp_frame, 4, 40), (udp_frame, 4, 28), (tcp_frame, 6, 60), (udp_frame, 6, 48))
    ]
    assert all(len(f) in (14 + POD_MTU, 18 + POD_MTU, 22 + POD_MTU) for f in full)
    unchanged(both, [*full, frame(0x1234, bytes(POD_MTU), QINQ)])
    superframe = tcp_frame(4, bytes(60000), VLAN)
    both.exchange([(opened(superframe, 18), vnet(superframe, POD_MTU - 40, 18))])
    assert both.left.engine.counters()["fragmented"] == before


def test_a_syn_s_mss_is_lowered_to_the_path(both: Pair) -> None:
    both.path(1000)
    for family, least in ((4, 40), (6, 60)):
        most = 1000 - 40 - 14 - least
        for mss in (most + 1, 1460, 65535):
            want = tcp_frame(family, b"", flags=SYN, options=b"\x02\x04" + most.to_bytes(2, "big"))
            sent = tcp_frame(family, b"", flags=SYN, options=b"\x02\x04" + mss.to_bytes(2, "big"))
            assert same_frames(both.exchange([sent]), [want])
            assert same_frames(both.exchange([(opened(sent), vnet(sent))]), [want])
        less = tcp_frame(family, b"", flags=SYN | ACK, options=b"\x01\x02\x04\x02\x00\x00\x00\x00")
        unchanged(both, [less, tcp_frame(family, b"", options=b"\x02\x04\xff\xff")])


class Relay:
    """Between left and right: loses, doubles and swaps datagrams, by a seed."""

    def __init__(self, both: Pair, port: int, seed: int) -> None:
        self.socket = both.spaces[0].call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self.socket.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)
        self.socket.bind(("127.0.0.1", port))
        self.rng, self.lost, self.stop = random.Random(seed), 0, threading.Event()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        held: bytes | None = None
        while not self.stop.is_set():
            if not select.select([self.socket], [], [], 0.02)[0]:
                continue
            datagram = self.socket.recv(65536)
            chance = self.rng.random()
            if chance < 0.04:
                self.lost += 1
                continue
            if chance < 0.08 and held is None:
                held = datagram
                continue
            for one in [datagram, *([held] if held else []), *([datagram] if chance > 0.95 else [])]:
                self.socket.sendto(one, ("127.0.0.1", PORT_RIGHT))
            held = None

    def close(self) -> None:
        self.stop.set()
        self.thread.join()
        self.socket.close()


@pytest.mark.parametrize("payload_max", [548, 700, 1472])
def test_loss_never_makes_a_corrupt_frame(payload_max: int) -> None:
    """Fragments lost, doubled and swapped: each frame that arrives carries its own hash, and arrives once."""
    with pair() as both:
        relay = Relay(both, 6790, payload_max)
        rng = random.Random(9)
        sent = []
        for _ in range(1500):
            body = rng.randbytes(rng.choice((60, 300, 700, 1368, 3000, 8000)))
            sent.append(frame(0x1234, hashlib.sha256(body).digest() + body))
        try:
            both.path(payload_max, port=6790)
            for at in range(0, len(sent), 20):
                for f in sent[at : at + 20]:
                    both.left.port.send(f)
                select.select([], [], [], 0.002)  # paces the sender: the relay is plain Python
            found = []
            while (got := both.right.port.receive(0.5)) is not None:
                found.append(got)
        finally:
            relay.close()
        assert relay.lost > 50
        assert len(sent) * 0.3 < len(found) < len(sent)
        assert all(hashlib.sha256(f[46:]).digest() == f[14:46] for f in found)
        assert set(found) <= set(sent)
        assert len(set(found)) == len(found)
        drops = both.right.drops()
        assert drops["fragment_lost"] > 0
        assert drops["replay"] > 0
        assert set(drops) == {"fragment_lost", "replay"}
