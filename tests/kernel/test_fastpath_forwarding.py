"""What a fast path does between its tables and its peers (topology: fastpath_world.py)."""

import itertools
import random
import socket
import struct
import time

import pytest
from kernel.fastpath_pair import LEFT, PREFIX6, RIGHT, ip4, ip6, mac, wait_for
from kernel.fastpath_peer import (
    CONTROL,
    CSUM_OPEN,
    FRAGMENT,
    FRAME,
    IPV4,
    IPV6,
    LAST,
    TCP,
    UDP,
    PythonPeer,
    cut,
    ethernet,
    ip_packet,
    opened,
    tcp,
    udp,
    vnet,
)
from kernel.fastpath_world import A, B, C, World, plain, start_again
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import Ether

from weave_router.fastpath import engine as fp

# -- the wire --------------------------------------------------------------------------------------------------------


def test_small_frames_of_one_burst_share_a_datagram(world: World) -> None:
    world.engine.stop()
    frames = [plain(B, 46 + i, i) for i in range(100)]
    world.put(*frames)
    before = world.engine.counters()["datagrams_sent"]
    start_again(world)
    assert world.frames(count=100) == frames
    assert world.engine.counters()["datagrams_sent"] - before < 12


def test_trains_hold_datagrams_of_one_size_and_a_shorter_last(world: World) -> None:
    """Full, full, small, full: every datagram arrives whole, though a train's segments have one size."""
    world.engine.stop()
    rng = random.Random(3)
    sizes = [1368, 1368, 60, 1368, 1000, 1000, 1368, 46, 46, 513, 512, 511, 1368] * 6
    frames = [plain(rng.choice((B, C)), n, i) for i, n in enumerate(sizes)]
    world.put(*frames)
    start_again(world)
    for slot, number in ((2, B), (3, C)):
        wanted = [f for f in frames if f[:6] == mac(number)]
        assert world.frames(slot, len(wanted)) == wanted


def test_fragments_are_consecutive_in_one_lane(world: World) -> None:
    world.path(payload_max=548)
    frame = plain(B, 1368)
    world.put(frame)
    pieces = world.datagrams(count=3)
    assert [p.kind for p in pieces] == [FRAGMENT] * 3
    assert [p.piece for p in pieces] == [0, 1, 2]
    assert [p.flags & LAST for p in pieces] == [0, 0, LAST]
    assert {p.counter - p.piece for p in pieces} == {pieces[0].counter}
    assert b"".join(p.body for p in pieces) == frame
    assert all(len(p.body) + 40 <= 548 for p in pieces)


def test_open_checksums_stay_open_on_the_wire(world: World) -> None:
    whole = ethernet(mac(B), mac(A), IPV4, ip_packet(ip4(A), ip4(B), UDP, udp(ip4(A), ip4(B), bytes(900))))
    world.side.port.send(opened(whole), vnet(whole))
    [one] = world.datagrams()
    assert one.frames() == [(CSUM_OPEN, opened(whole))]


def test_superframes_are_cut_into_numbered_segments(world: World) -> None:
    whole = ethernet(mac(B), mac(A), IPV4, ip_packet(ip4(A), ip4(B), TCP, tcp(ip4(A), ip4(B), bytes(30000)), ident=9))
    world.side.port.send(opened(whole), vnet(whole, 1300))
    wanted = cut(whole, 1300)
    found = world.datagrams(count=len(wanted))
    assert [f.piece for f in found[:-1]] == list(range(len(wanted) - 1))
    assert {f.size for f in found[:-1]} == {1300}
    assert [f.frames()[0][1][:50] for f in found] == [w[:50] for w in wanted]
    assert world.engine.counters()["sends"] < 8


def test_no_nonce_is_used_twice_and_no_epoch_again(world: World) -> None:
    seen: set[tuple[int, int]] = set()
    for epoch in (0, 1, 5):
        world.path(epoch=epoch)
        world.put(*[plain(B, 600) for _ in range(20)])
        found = world.datagrams(count=20)
        assert {f.lane for f in found} == {epoch << 4}
        seen.update((f.lane, f.counter) for f in found)
    assert len(seen) == 60
    before = world.engine.drops()
    world.path(epoch=1)
    world.put(plain(B, 600))
    wait_for(lambda: world.dropped("nonce", before) == 1)
    assert world.silent()
    world.path(epoch=6)
    world.settle()


def test_a_path_that_refuses_trains(world: World) -> None:
    world.path(flags=fp.PATH_NO_GSO)
    world.engine.stop()
    frames = [plain(B, 1000, i) for i in range(50)]
    world.put(*frames)
    before = world.engine.counters()
    start_again(world)
    assert world.frames(count=50) == frames
    after = world.engine.counters()
    assert after["sends"] - before["sends"] == after["datagrams_sent"] - before["datagrams_sent"] == 50


def test_a_kernel_that_refuses_trains_is_told_and_worked_around(world: World) -> None:
    """A socket without UDP checksums cannot segment (net/ipv4/udp.c, udp_send_skb): EIO, EINVAL since 6.11."""
    world.side.sockets[0].setsockopt(socket.SOL_SOCKET, 11, 1)  # SO_NO_CHECK
    world.engine.stop()
    frames = [plain(B, 1000, i) for i in range(50)]
    world.put(*frames)
    start_again(world)
    assert world.frames(count=50) == frames
    assert [event[:2] for event in world.events(fp.EV_GSO_OFF)] == [(fp.EV_GSO_OFF, 2)]
    world.put(*frames)
    assert world.frames(count=50) == frames
    assert world.events(fp.EV_GSO_OFF) == []


def test_errors_of_a_path_are_told_but_do_not_fill_the_ring(world: World) -> None:
    world.engine.path_set(2, remote=("198.51.100.1", 9), local="", epoch=0, payload_max=1472, flags=0)
    before = world.engine.drops()
    for _ in range(50):
        world.put(plain(B, 1000))
    wait_for(lambda: world.dropped("send", before) == 50)
    told = world.events(fp.EV_PATH_ERROR)
    assert told[0] == (fp.EV_PATH_ERROR, 2, 101)  # ENETUNREACH
    assert len(told) < 10
    assert world.engine.counters()["events_lost"] == 0


# -- control ---------------------------------------------------------------------------------------------------------


def test_control_messages_are_padded_and_never_in_a_train(world: World) -> None:
    world.engine.control_send(world.index(2), b"hello", size=1200)
    world.engine.control_send(world.index(2), b"")
    datagram = world.peers[2].receive()
    assert datagram is not None
    assert len(datagram) == 1200
    probe = world.peers[2].open(datagram)
    assert (probe.kind, probe.size, probe.body) == (CONTROL, 5, b"hello" + bytes(1200 - 45))
    assert world.datagrams()[0].size == 0


def test_control_of_a_peer_becomes_an_event(world: World) -> None:
    peer = world.peers[2]
    peer.send(peer.sealed(CONTROL, b"question" + bytes(50), size=8), peer.sealed(CONTROL, bytes(9), size=0))
    wait_for(lambda: world.engine.counters()["control_received"] == 2)
    [event] = world.events(fp.EV_CONTROL)
    assert event[1:] == (world.index(2), 0, ("127.0.0.1", 7002), "127.0.0.1", b"question", 16 + 8 + 58 + 16)


def test_first_use_and_other_sources(world: World) -> None:
    """A session that begins at a later epoch of its path speaks for the path from the first datagram on."""
    peer = world.peers[2]
    peer.send(peer.sealed(CONTROL, b"", lane=0x90))
    wait_for(lambda: world.engine.session_figures(world.index(2)).rx_packets == 1)
    assert [e[0] for e in world.engine.events()] == [fp.EV_CONFIRMED]
    other = world.space.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with other:
        other.bind(("127.0.0.1", 7999))
        other.sendto(peer.sealed(CONTROL, b"", lane=0x91), ("127.0.0.1", 6783))
        other.sendto(peer.sealed(CONTROL, b"", lane=0x80), ("127.0.0.1", 6783))
        wait_for(lambda: world.engine.session_figures(world.index(2)).rx_packets == 3)
        assert world.events(fp.EV_CANDIDATE) == []  # worker 1's lane, and a former epoch
        other.sendto(peer.sealed(CONTROL, b"", lane=0x90), ("127.0.0.1", 6783))
        wait_for(lambda: world.engine.session_figures(world.index(2)).rx_packets == 4)
        assert world.events(fp.EV_CANDIDATE) == [(fp.EV_CANDIDATE, world.index(2), ("127.0.0.1", 7999), "127.0.0.1")]
    world.settle()  # no datagram moves a path by itself


def test_figures_of_a_session(world: World) -> None:
    before = world.engine.session_figures(world.index(2))
    assert before.unanswered_rx_ns == 0
    assert before.first_unanswered_ns > 0
    peer = world.peers[2]
    frame = ethernet(mac(A), mac(B), 0x1234, bytes(50))
    peer.send(peer.sealed(FRAME, frame))
    wait_for(lambda: world.engine.session_figures(world.index(2)).rx_packets == 1)
    heard = world.engine.session_figures(world.index(2))
    assert heard.first_unanswered_ns == 0
    assert heard.unanswered_rx_ns == heard.last_rx_ns > 0
    world.settle()
    sent = world.engine.session_figures(world.index(2))
    assert sent.unanswered_rx_ns == 0
    assert sent.tx_packets == before.tx_packets + 2
    assert sent.tx_bytes == before.tx_bytes + 2 * (16 + 8 + 4 + 54 + 16)


# -- who may say what ------------------------------------------------------------------------------------------------


def arp_of(hardware: bytes, number: int) -> bytes:
    return b"\0\1\x08\0\6\4\0\2" + hardware + number.to_bytes(4, "big") + mac(A) + A.to_bytes(4, "big")


def advertisement(number: int, options: bytes = b"", protocol: int = 58, source: str = "") -> bytes:
    body = b"\x88\0\0\0\x60\0\0\0" + PREFIX6 + number.to_bytes(4, "big") + b"\2\1" + mac(number)
    return ip_packet(source or "fe80::1", ip6(A), protocol, body, options=options)


FOREIGN = {
    "mac": ethernet(mac(A), mac(C), 0x1234, bytes(40)),
    "own-mac": ethernet(mac(A), mac(A + 1), 0x1234, bytes(40)),
    "mac-vlan": ethernet(mac(A), mac(C), 0x1234, bytes(40), b"\x81\0\0\1"),
    "ipv4": ethernet(mac(A), mac(B), IPV4, ip_packet(ip4(C), ip4(A), UDP, bytes(8))),
    "ipv4-own": ethernet(mac(A), mac(B), IPV4, ip_packet(ip4(A + 3), ip4(A), UDP, bytes(8))),
    "ipv4-vlan": ethernet(mac(A), mac(B), IPV4, ip_packet(ip4(C), ip4(A), UDP, bytes(8)), b"\x81\0\0\1"),
    "ipv4-fragment": ethernet(mac(A), mac(B), IPV4, ip_packet(ip4(C), ip4(A), UDP, bytes(40), flags=1)),
    "ipv6": ethernet(mac(A), mac(B), IPV6, ip_packet(ip6(C), ip6(A), UDP, bytes(8))),
    "arp": ethernet(b"\xff" * 6, mac(B), 0x0806, arp_of(mac(B), C)),
    "arp-station": ethernet(b"\xff" * 6, b"\2\2\2\2\2\2", 0x0806, arp_of(b"\2\2\2\2\2\2", C)),
    "nd-target": ethernet(mac(A), mac(B), IPV6, advertisement(C)),
    "nd-behind-options": ethernet(mac(A), mac(B), IPV6, advertisement(C, b"\x3a\0\1\4\0\0\0\0", 60)),
    "nd-behind-hop-by-hop": ethernet(mac(A), mac(B), IPV6, advertisement(C, b"\x3a\0\1\4\0\0\0\0", 0)),
    "nd-behind-routing": ethernet(mac(A), mac(B), IPV6, advertisement(C, b"\x3a\0\4\0\0\0\0\0", 43)),
}
OWN = [
    ethernet(mac(A), mac(B), 0x1234, bytes(40)),
    ethernet(mac(A), mac(B), IPV4, ip_packet(ip4(B), ip4(A), UDP, bytes(8))),
    ethernet(mac(A), mac(B), IPV4, ip_packet("8.8.8.8", ip4(A), UDP, bytes(8))),
    ethernet(mac(A), mac(B), IPV4, ip_packet(ip4(LEFT + 0x5000), ip4(A), UDP, bytes(8))),  # nobody's
    ethernet(b"\xff" * 6, mac(B), 0x0806, arp_of(mac(B), B)),
    ethernet(mac(A), mac(B), IPV6, advertisement(B)),
    ethernet(mac(A), b"\2\2\2\2\2\7", 0x1234, bytes(40)),
]


def test_foreign_sources_are_dropped_and_counted(world: World) -> None:
    peer = world.peers[2]
    for name, frame in FOREIGN.items():
        before = world.engine.drops()
        peer.send(peer.sealed(FRAME, frame), peer.sealed(FRAME, OWN[0]))
        assert world.side.port.receive() == OWN[0], name
        assert world.dropped("foreign_source", before) == 1, name
    for frame in OWN:
        peer.send(peer.sealed(FRAME, frame))
        assert world.side.port.receive() == frame


def test_the_mac_of_another_nodes_exception_is_a_foreign_source(world: World) -> None:
    """Exceptions bear MACs that no number gives; several addresses, and several nodes, may have one."""
    real, peer = b"\2\7\7\7\7\7", world.peers[2]
    frame = ethernet(mac(A), real, 0x1234, bytes(40))

    def refused() -> int:
        before = world.engine.drops()
        peer.send(peer.sealed(FRAME, frame), peer.sealed(FRAME, OWN[0]))
        if world.side.port.receive() == frame:
            assert world.side.port.receive() == OWN[0]
        return world.dropped("foreign_source", before)

    world.engine.route_set(C, 32, 3, real)
    world.engine.route_set(C + 1, 32, 3, real)
    assert refused() == 1
    assert world.engine.stations() == []
    world.engine.route_set(B, 32, 2, real)
    assert refused() == 0
    world.engine.route_del(B, 32)
    assert refused() == 1
    world.engine.route_del(C, 32)
    assert refused() == 1
    world.engine.route_set(C + 1, 32, 3)
    assert refused() == 0
    world.engine.route_set(A, 32, fp.SLOT_LOCAL, real)
    assert refused() == 1


def test_a_known_prefix_is_never_flooded(world: World) -> None:
    """Slot 3 asks for everything that is flooded; the frames for slot 2's block, known or gone, never reach it."""
    world.engine.node_set(3, flags=fp.NODE_ANSWER | fp.NODE_FLOOD, pod_mtu=1368)
    frames = [plain(RIGHT + i, 60, i) for i in range(64)]
    world.put(*frames)
    assert world.frames(2, 64) == frames
    world.put(ethernet(b"\2\3\4\5\6\7", mac(A), 0x1234, bytes(40)))
    assert world.frames(3)[0][:6] == b"\2\3\4\5\6\7"
    world.engine.session_use(2, 0)
    world.engine.path_del(2)
    before = world.engine.drops()
    world.put(*frames)  # parked
    world.put(plain(LEFT + 0x9000, 60), plain(LEFT + 3, 60))
    world.settle(3)
    assert world.dropped("no_owner", before) == world.dropped("local_destination", before) == 1
    assert world.silent(3)


def test_groups_and_floods_reach_who_asked(world: World) -> None:
    group = bytes.fromhex("01005e010203")
    world.engine.groups_set(2, [group])
    world.engine.node_set(3, flags=fp.NODE_FLOOD, pod_mtu=1368)
    asked = ethernet(group, mac(A), 0x1234, bytes(40))
    other = ethernet(bytes.fromhex("01005e010204"), mac(A), 0x1234, bytes(40))
    broadcast = ethernet(b"\xff" * 6, mac(A), 0x1234, bytes(40))
    before = world.engine.drops()
    world.put(asked, other, broadcast)
    assert world.frames(3, 3) == [asked, other, broadcast]
    assert world.frames(2) == [asked]
    world.engine.groups_set(2, [])
    world.engine.node_set(3, flags=0, pod_mtu=1368)
    world.put(asked)
    world.settle()
    assert world.dropped("no_listener", before) == 1
    assert world.silent(3)


def test_floods_are_limited(world: World) -> None:
    world.engine.node_set(3, flags=fp.NODE_FLOOD, pod_mtu=1368)
    world.engine.stop()
    before = world.engine.drops()
    loud, quiet, other = mac(A), mac(A + 1), [mac(A + 2 + i) for i in range(8)]
    world.put(*[ethernet(b"\xff" * 6, loud, 0x1234, i.to_bytes(46, "big")) for i in range(300)])
    world.put(*[ethernet(b"\xff" * 6, quiet, 0x1234, i.to_bytes(46, "big")) for i in range(20)])
    start_again(world)
    world.settle()
    of_loud = world.dropped("flood_limit", before)
    assert 100 < of_loud <= 200, "one source leaves half to the others, and loses nothing of theirs"
    world.engine.stop()
    world.put(*[ethernet(b"\xff" * 6, other[i % 8], 0x1234, i.to_bytes(46, "big")) for i in range(600)])
    start_again(world)
    world.settle()
    assert 300 < world.dropped("flood_limit", before) - of_loud < 600, "the worker's own limit"


def test_the_owner_puts_the_real_mac_in_place(world: World) -> None:
    real = b"\2\7\7\7\7\7"
    world.engine.route_set(A, 32, fp.SLOT_LOCAL, real)
    world.engine.route_set(A & ~1, 31, fp.SLOT_LOCAL)
    world.engine.route_set(A, 31, fp.SLOT_LOCAL)  # a network of the same first number is no exception
    peer = world.peers[2]
    frame = ethernet(mac(A), mac(B), 0x1234, bytes(40))
    peer.send(peer.sealed(FRAME, frame))
    assert world.side.port.receive() == real + frame[6:]
    world.engine.route_del(A, 32)
    peer.send(peer.sealed(FRAME, frame))
    assert world.side.port.receive() == frame


# -- congestion ------------------------------------------------------------------------------------------------------


def test_ecn_goes_out_and_comes_back(world: World) -> None:
    """RFC 6040: the inner field goes to the outer header; an outer CE marks what is ECN-capable inside, and drops
    what is not."""
    peer = world.peers[2]
    peer.socket.setsockopt(socket.IPPROTO_IP, 13, 1)  # IP_RECVTOS
    drops = world.engine.drops()
    for family, ecn in itertools.product((4, 6), range(4)):
        number = 1 if family == 4 else 2
        pair = (ip4(A), ip4(B)) if family == 4 else (ip6(A), ip6(B))
        packet = ip_packet(*pair, UDP, udp(*pair, bytes(600)), tos=0x28 | ecn)
        world.put(ethernet(mac(B), mac(A), IPV4 if family == 4 else IPV6, packet))
        _, control, _, _ = receive_message(peer)
        assert [value[0] & 3 for level, kind, value in control if (level, kind) == (0, 1)] == [ecn]
        back = (pair[1], pair[0])
        reply = ip_packet(*back, UDP, udp(*back, bytes(600)), tos=ecn)
        frame = ethernet(mac(A), mac(B), IPV4 if family == 4 else IPV6, reply)
        peer.socket.sendmsg([peer.sealed(FRAME, frame)], [(0, 1, struct.pack("i", 3))], 0, peer.remote)
        if not ecn:
            wait_for(lambda dropped=drops, n=number: world.dropped("congestion", dropped) == n)  # type: ignore[misc]
            continue
        marked = ethernet(mac(A), mac(B), IPV4 if family == 4 else IPV6,
                          ip_packet(*back, UDP, udp(*back, bytes(600)), tos=3))  # fmt: skip
        assert world.side.port.receive() == marked


def receive_message(peer: PythonPeer) -> tuple[bytes, list[tuple[int, int, bytes]], int, object]:
    peer.socket.settimeout(5)
    return peer.socket.recvmsg(65536, 256)


# -- too big ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tags", [b"", b"\x81\0\0\5"], ids=["plain", "vlan"])
def test_too_big_is_said_to_the_sender(world: World, tags: bytes) -> None:
    world.engine.node_set(2, flags=0, pod_mtu=1300)
    pair = ip4(A), ip4(B)
    packet = ip_packet(*pair, UDP, udp(*pair, bytes(1273)))
    world.put(ethernet(mac(B), mac(A), IPV4, packet, tags))
    answer = Ether(world.side.port.receive())
    assert (answer.dst, answer.src) == (mac(A).hex(":"), mac(B).hex(":"))
    assert (answer[IP].src, answer[IP].dst, answer[ICMP].type, answer[ICMP].code) == (pair[1], pair[0], 3, 4)
    assert answer[ICMP].nexthopmtu == 1300
    quoted = bytes(answer[ICMP].payload)
    assert packet.startswith(quoted)
    assert len(answer[IP]) == 576
    assert_valid(answer)

    six = ip6(A), ip6(B)
    packet = ip_packet(*six, TCP, tcp(*six, bytes(1300), seq=77))
    time.sleep(0.011)  # not a synchronisation: one answer to a node in 10 ms
    world.put(ethernet(mac(B), mac(A), IPV6, packet, tags))
    answer = Ether(world.side.port.receive())
    assert (answer[IPv6].src, answer[IPv6].dst, answer[ICMPv6PacketTooBig].mtu) == (six[1], six[0], 1300)
    assert packet.startswith(bytes(answer[ICMPv6PacketTooBig].payload))
    assert len(answer[IPv6]) == 1280
    assert_valid(answer)
    world.settle()


def assert_valid(frame: Ether) -> None:
    """Every checksum is the one that scapy computes."""
    again = frame.copy()
    layer = again
    while layer:
        for name in ("chksum", "cksum"):
            if name in layer.fields:
                delattr(layer, name)
        if isinstance(layer, (ICMP, ICMPv6PacketTooBig)):
            break
        layer = layer.payload
    assert bytes(again) == bytes(frame)


def test_too_big_is_never_below_what_the_family_guarantees(world: World) -> None:
    world.engine.node_set(2, flags=0, pod_mtu=600)
    six = ip6(A), ip6(B)
    world.put(ethernet(mac(B), mac(A), IPV6, ip_packet(*six, UDP, udp(*six, bytes(700)))))
    assert Ether(world.side.port.receive())[ICMPv6PacketTooBig].mtu == 1280


def test_no_answer_to_a_multicast_and_not_often(world: World) -> None:
    group = bytes.fromhex("01005e010203")
    world.engine.node_set(2, flags=0, pod_mtu=1300)
    world.engine.groups_set(2, [group])
    packet = ip_packet(ip4(A), "225.1.2.3", UDP, bytes(1400))
    before = world.engine.drops()
    world.put(ethernet(group, mac(A), IPV4, packet))
    pair = ip4(A), ip4(B)
    world.engine.stop()
    world.put(*[ethernet(mac(B), mac(A), IPV4, ip_packet(*pair, UDP, udp(*pair, bytes(1273)))) for _ in range(30)])
    start_again(world)
    world.settle()
    assert world.dropped("too_big", before) == 31
    assert 1 <= world.engine.counters()["too_big_sent"] <= 3


def test_without_df_it_is_the_overlay_s_to_carry(world: World) -> None:
    world.engine.node_set(2, flags=0, pod_mtu=1300)
    pair = ip4(A), ip4(B)
    frame = ethernet(mac(B), mac(A), IPV4, ip_packet(*pair, UDP, udp(*pair, bytes(2000)), flags=0))
    world.put(frame)
    assert b"".join(piece.body for piece in world.datagrams(count=2)) == frame
