"""Frames that wait for a session, frames that are captured, flows on their lanes, tables that change under load.

Topology: fastpath_world.py.
"""

import itertools
import os
import random
import socket
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack

import pytest
from kernel.fastpath_pair import LEFT, ip4, ip6, mac, wait_for
from kernel.fastpath_peer import (
    FRAME,
    IPV4,
    IPV6,
    UDP,
    ethernet,
    ip_packet,
    udp,
)
from kernel.fastpath_world import A, B, C, World, build, plain, start_again, use

from weave_router.fastpath import engine as fp
from weave_router.host.bpf_driver import load_tap_program

# -- parking ---------------------------------------------------------------------------------------------------------


def test_parked_frames_go_first_and_in_order(without_sessions: World) -> None:
    world = without_sessions
    parked = [plain(B, 60, i) for i in range(40)]
    world.put(*parked)
    wait_for(lambda: world.engine.counters()["parked"] == 40)
    assert world.events(fp.EV_NEED_SESSION) == [(fp.EV_NEED_SESSION, 2)]
    world.engine.stop()
    later = [plain(B, 60, 100 + i) for i in range(10)]
    world.put(*later)  # will be read in the burst in which the session is there already
    use(world)
    start_again(world)
    assert world.frames(count=50) == [*parked, *later]


def test_parking_has_a_limit_of_frames_and_of_bytes(without_sessions: World) -> None:
    world = without_sessions
    before = world.engine.drops()
    world.put(*[plain(B, 60, i) for i in range(80)])
    world.put(*[plain(C, 9000, i) for i in range(40)])
    wait_for(lambda: world.engine.counters()["frames_in"] == 120)
    assert world.engine.counters()["parked"] == 64 + 29  # 262,144 / 9,014
    assert world.dropped("park_full", before) == 27
    use(world, 2)
    use(world, 3)
    assert world.frames(2, 64) == [plain(B, 60, i) for i in range(64)]
    world.datagrams(3, 29 * 7)


def test_parking_has_a_limit_in_all(without_sessions: World) -> None:
    world = without_sessions
    before = world.engine.drops()
    for slot in range(10, 40):
        world.engine.node_set(slot, flags=0, pod_mtu=1368)
        world.engine.route_set(LEFT + 0x4000 + 64 * slot, 26, slot)
        world.put(*[plain(LEFT + 0x4000 + 64 * slot, 9000, i) for i in range(29)])
        wait_for(lambda slot=slot: world.engine.counters()["frames_in"] == 29 * (slot - 9))  # type: ignore[misc]
    assert 4194304 // 9300 <= world.engine.counters()["parked"] <= 4194304 // 9014
    assert world.dropped("park_full", before) == 29 * 30 - world.engine.counters()["parked"]


def test_parked_frames_expire_after_3_seconds(without_sessions: World) -> None:
    world = without_sessions
    before = world.engine.drops()
    start = time.monotonic()
    world.put(plain(B))
    wait_for(lambda: world.dropped("no_session", before) == 1)
    assert 2.9 < time.monotonic() - start < 3.6
    use(world)
    world.settle()


def test_parked_frames_do_not_follow_the_slot_to_another_node(without_sessions: World) -> None:
    world = without_sessions
    before = world.engine.drops()
    world.put(plain(B, 60, 1))
    wait_for(lambda: world.engine.counters()["parked"] == 1)
    world.engine.node_del(2)
    world.engine.node_set(2, flags=0, pod_mtu=1368)
    use(world)
    world.settle()
    assert world.dropped("no_session", before) == 1


# -- capture ---------------------------------------------------------------------------------------------------------


def test_capture_of_a_node_or_a_number(world: World) -> None:
    peer = world.peers[2]
    pair = ip4(A), ip4(B)
    out = ethernet(mac(B), mac(A), IPV4, ip_packet(*pair, UDP, udp(*pair, bytes(300))))
    back = ethernet(mac(A), mac(B), IPV6, ip_packet(ip6(B), ip6(A), UDP, udp(ip6(B), ip6(A), bytes(40))))

    def traffic() -> None:
        world.put(out, plain(B), plain(C))
        world.frames(2, 2)
        world.frames(3, 1)
        peer.send(peer.sealed(FRAME, back))
        assert world.side.port.receive() == back

    traffic()
    world.engine.capture_start(slot=2, snap=128)
    with pytest.raises(ValueError, match="running"):
        world.engine.capture_start()
    traffic()
    found = world.engine.capture_read()
    assert [(d, n, f) for _, d, n, f in found] == [(0, len(out), out[:128]), (0, 60, plain(B)), (1, len(back), back)]
    assert all(abs(ns - time.time_ns()) < 5e9 for ns, *_ in found)
    assert world.engine.capture_stop() == 0
    world.engine.capture_start(number=B)
    traffic()
    assert [f for *_, f in world.engine.capture_read()] == [out, back]
    for _ in range(300):
        world.put(*[out] * 4)
        world.frames(2, 4)
    assert len(world.engine.capture_read()) == 1024
    assert world.engine.capture_stop() == 176


# -- many workers and moving tables ----------------------------------------------------------------------------------


@pytest.mark.parametrize("with_program", [True, False], ids=["program", "no-program"])
def test_a_flow_stays_on_one_lane(with_program: bool) -> None:
    """Four workers, traffic both ways: tun alone moves flows to where answers are written."""
    with ExitStack() as stack:
        program = load_tap_program() if with_program else -1
        if with_program:
            stack.callback(os.close, program)
        world = build(stack, workers=4, steering=program)
        peer, lanes = world.peers[2], {}
        flows = [(4, port) for port in range(2000, 2040)] + [(6, port) for port in range(2000, 2040)]
        for _ in range(8):
            for family, port in flows:
                pair = (ip4(A), ip4(B)) if family == 4 else (ip6(A), ip6(B))
                kind = IPV4 if family == 4 else IPV6
                body = udp(*pair, bytes(600), sport=port, dport=53)
                world.put(ethernet(mac(B), mac(A), kind, ip_packet(*pair, UDP, body)))
                [one] = world.datagrams()
                [(_, _frame)] = one.frames()
                lanes.setdefault((family, port), set()).add(one.lane)
                back = udp(pair[1], pair[0], bytes(600), sport=53, dport=port)
                peer.send(peer.sealed(FRAME, ethernet(mac(A), mac(B), kind, ip_packet(pair[1], pair[0], UDP, back))))
                assert world.side.port.receive() is not None
        assert all(len(found) == 1 for found in lanes.values())
        assert {next(iter(found)) for found in lanes.values()} == {0, 1, 2, 3}


class Flows:
    """UDP flows between A and B, begun by B's side, over four workers whose TAP has no program."""

    def __init__(self, stack: ExitStack) -> None:
        self.world = build(stack, workers=4, steering=-1)
        self.all = [(family, port) for family in (4, 6) for port in range(2000, 2012)]

    def from_b(self, flow: tuple[int, int]) -> None:
        family, port = flow
        pair = (ip4(B), ip4(A)) if family == 4 else (ip6(B), ip6(A))
        frame = ethernet(mac(A), mac(B), IPV4 if family == 4 else IPV6,
                         ip_packet(*pair, UDP, udp(*pair, bytes(600), sport=53, dport=port)))  # fmt: skip
        self.world.peers[2].send(self.world.peers[2].sealed(FRAME, frame))
        assert self.world.side.port.receive() == frame

    def from_a(self, flow: tuple[int, int], size: int = 600) -> bytes:
        family, port = flow
        pair = (ip4(A), ip4(B)) if family == 4 else (ip6(A), ip6(B))
        return ethernet(mac(B), mac(A), IPV4 if family == 4 else IPV6,
                        ip_packet(*pair, UDP, udp(*pair, bytes(size), sport=port, dport=53)))  # fmt: skip

    def seen(self) -> dict[tuple[int, int], tuple[int, int]]:
        """Flow -> (which worker reads a frame of it, the lane that it goes on)."""
        found = {}
        for flow in self.all:
            before = [each["frames_in"] for each in self.world.engine.worker_counters()]
            self.world.put(self.from_a(flow))
            [one] = self.world.datagrams()
            after = [each["frames_in"] for each in self.world.engine.worker_counters()]
            [reader] = [i for i in range(4) if after[i] > before[i]]
            found[flow] = reader, one.lane
        return found


def test_a_flow_that_the_other_side_began_and_left_silent_stays_on_its_lane() -> None:
    """Without a program tun forgets a flow to which nothing was written for 3 s, and gives it a queue of its own."""
    with ExitStack() as stack:
        flows = Flows(stack)
        for flow in flows.all:
            flows.from_b(flow)
        first = flows.seen()
        assert {reader for reader, _ in first.values()} == {0, 1, 2, 3} and all(a == b for a, b in first.values())
        later = first
        deadline = time.monotonic() + 10
        while sum(later[flow][0] != first[flow][0] for flow in flows.all) < len(flows.all) // 3:
            assert time.monotonic() < deadline, "tun forgot nothing"
            later = flows.seen()
            assert [later[flow][1] for flow in flows.all] == [first[flow][1] for flow in flows.all]
        for flow in flows.all:
            flows.from_b(flow)  # tun learns from this write
        assert flows.seen() == first


def test_two_workers_on_one_lane_share_its_counters() -> None:
    """One reads a flow of the other's lane: no counter comes twice, and pieces stay consecutive."""
    with ExitStack() as stack:
        flows = Flows(stack)
        world = flows.world
        for flow in flows.all:
            flows.from_b(flow)
        first = flows.seen()
        deadline = time.monotonic() + 10
        pairs: list[tuple[tuple[int, int], tuple[int, int]]] = []
        while not pairs:
            assert time.monotonic() < deadline, "tun forgot nothing"
            later = flows.seen()
            pairs = [(one, other) for one in flows.all for other in flows.all
                     if later[one][0] != later[other][0] and later[one][1] == later[other][1] == later[other][0]]
        moved, stayed = pairs[0]
        lane = first[moved][1]
        world.path(payload_max=548)
        size, each = 1300, 300
        world.put(*[flows.from_a(flow, size) for _ in range(each) for flow in (moved, stayed)])
        found = world.datagrams(count=3 * 2 * each)
        assert {one.lane for one in found} == {lane}
        assert len({one.counter for one in found}) == len(found)
        frames = Counter(one.counter - one.piece for one in found)
        assert set(frames.values()) == {3}, "pieces are not consecutive"


def test_workers_that_open_one_session_at_once_accept_nothing_twice() -> None:
    """Two copies of every datagram, each to another worker at the same time, and the first of its lane, for which a
    window is made: one of them is accepted, the other counted."""
    with ExitStack() as stack:
        world = build(stack, workers=2)
        copies = senders(world, stack)
        for generation in range(1, 61):
            fresh, before = 0x500100 + generation, world.engine.drops()["replay"]
            world.engine.session_add(fresh, 2, suite=fp.SUITE_AESGCM, send_key=bytes([102]) * 32,
                                     recv_key=bytes([2]) * 32, remote_index=0x300002, flags=0)  # fmt: skip
            world.peers[2].remote_index = fresh
            frames = [ethernet(mac(A), mac(B), 0x1234, i.to_bytes(2, "big") * 30) for i in range(100)]
            sealed = [world.peers[2].sealed(FRAME, frame, lane=i) for i, frame in enumerate(frames)]
            world.engine.stop()
            for send, datagram in itertools.product(copies, sealed):
                send(datagram)
            start_again(world)
            found = [world.side.port.receive() for _ in frames]
            assert sorted(found) == frames
            wait_for(lambda: world.engine.drops()["replay"] - before == len(frames))  # noqa: B023
            figures = world.engine.session_figures(fresh)
            assert figures.rx_packets == figures.rx_failed == len(frames)
            assert world.events(fp.EV_CONFIRMED) == [(fp.EV_CONFIRMED, fresh)]
        assert world.side.port.receive(0.0) is None


def senders(world: World, stack: ExitStack) -> list[Callable[[bytes], object]]:
    """One for each of two workers: the kernel spreads senders over the sockets of the port."""
    found: dict[int, Callable[[bytes], object]] = {}
    while len(found) < 2:
        one = stack.enter_context(world.space.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM))
        one.connect(("127.0.0.1", 6783))
        before = [each["datagrams_received"] for each in world.engine.worker_counters()]
        one.send(b"?")
        wait_for(lambda: sum(each["datagrams_received"] for each in world.engine.worker_counters()) > sum(before))  # noqa: B023
        [worker] = [i for i, n in enumerate(before) if world.engine.worker_counters()[i]["datagrams_received"] > n]
        found.setdefault(worker, one.send)
    return list(found.values())


def test_tables_change_under_load_without_a_miss(world: World) -> None:
    """Routes, exceptions, nodes, paths and sessions of others, and the path of the very node, changed at full speed."""
    before = world.engine.drops()
    sent = 0
    rng = random.Random(11)
    for turn in range(1500):
        frame = plain(B, 600, turn)
        world.put(frame)
        sent += 1
        world.path(payload_max=1472 - turn % 3)
        number = LEFT + 0x8000 + rng.randrange(4096)
        world.engine.route_set(number, 32, fp.SLOT_LOCAL, bytes([2, *number.to_bytes(5, "big")]))
        if turn % 2:
            world.engine.route_del(number, 32)
        slot = 100 + turn % 7
        world.engine.node_set(slot, flags=0, pod_mtu=1368)
        world.engine.session_add(0x700000 + slot, slot, suite=fp.SUITE_AESGCM, send_key=bytes(32), recv_key=bytes(32),
                                 remote_index=1, flags=fp.SESSION_MAY_SEND)  # fmt: skip
        world.engine.path_set(slot, remote=("127.0.0.1", 9), local="", epoch=0, payload_max=548, flags=0)
        world.engine.session_use(slot, 0x700000 + slot)
        world.engine.session_del(0x700000 + slot)
        world.engine.node_del(slot)
        if sent == 50:
            assert [f[14:18] for f in world.frames(2, 50)] == [(turn - 49 + i).to_bytes(4, "big") for i in range(50)]
            sent = 0
    assert world.side.drops() == {name: n for name, n in before.items() if n}


def test_sessions_change_under_load_without_a_miss(world: World) -> None:
    """Twenty rekeys, each former session deleted while frames go: all arrive, none twice."""
    before, used = world.engine.drops(), world.index(2)
    for generation in range(1, 21):
        fresh = 0x500100 + generation
        world.engine.session_add(fresh, 2, suite=fp.SUITE_AESGCM, send_key=bytes([102]) * 32, recv_key=bytes([2]) * 32,
                                 remote_index=0x300002, flags=fp.SESSION_MAY_SEND)  # fmt: skip
        frames = [plain(B, 600, i) for i in range(60)]
        world.put(*frames[:30])
        world.engine.session_use(2, fresh)
        world.put(*frames[30:])
        world.engine.session_del(used)
        used = fresh
        assert world.frames(2, 60) == frames
    assert world.side.drops() == {name: n for name, n in before.items() if n}
