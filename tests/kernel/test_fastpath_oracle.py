"""The compiled fast path against the pure oracle: random frames and tables through a real TAP to peers in plain Python.

Port -> ta [engine] == UDP on lo == five PythonPeer; a sixth node has no session, so that its frames are parked
"""

import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace

import pytest
from kernel.fastpath_pair import PREFIX6, UNIVERSE, UNIVERSE_BITS, Namespace, Side, by_flow, mac, start_side, wait_for
from kernel.fastpath_peer import FRAME, PythonPeer, ethernet, internet_checksum, ip_packet, pseudo_header, tcp, udp

from weave_router.fastpath import engine as fp
from weave_router.fastpath.oracle import ANNOUNCE, GROUP, Decision, Node, Tables, decide

FRAMES, CHUNK = 2400, 120
PEERS = (2, 3, 4, 5, 6)
SILENT = 7
"""The node that has no session."""
GROUPS = [bytes.fromhex(g) for g in ("01005e000005", "01005e7f0102", "3333000000fb", "333300010203", "ffffffffffff")]
STATIONS = [bytes.fromhex(f"02aabb0000{i:02x}") for i in range(8)]
TAGS = [b"", b"", b"", b"\x81\x00\x00\x07", b"\x88\xa8\x00\x07\x81\x00\x00\x08", b"\x81\x00\x00\x07" * 3]
COUNTED = ("no_owner", "local_destination", "link_local", "no_listener", "no_answer", "malformed_inside", "too_big")


@dataclass
class World:
    side: Side
    peers: dict[int, PythonPeer]
    sessions: int = 0

    def ready(self, slot: int) -> bool:
        return slot in self.peers


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with ExitStack() as stack:
        space = Namespace()
        stack.callback(space.close)
        space.ip("tuntap add ta mode tap vnet_hdr multi_queue", "link set ta mtu 9100 txqueuelen 4000 up")
        side = start_side(space, "ta", 6783, sockets_in=space, watch=("ta", True))
        stack.callback(side.close)
        peers = {}
        for slot in PEERS:
            keys = bytes([slot]) * 32, bytes([slot + 100]) * 32
            suite = fp.SUITE_AESGCM if slot % 2 else fp.SUITE_CHACHAPOLY
            peers[slot] = PythonPeer(space, 7000 + slot, remote_port=6783, index=0x300000 + slot,
                                     remote_index=0x500000 + slot, keys=keys, suite=suite)  # fmt: skip
            stack.callback(peers[slot].close)
            side.engine.node_set(slot, flags=0, pod_mtu=1368)
            side.engine.session_add(0x500000 + slot, slot, suite=suite, send_key=keys[1], recv_key=keys[0],
                                    remote_index=0x300000 + slot, flags=fp.SESSION_MAY_SEND)  # fmt: skip
            side.engine.path_set(slot, remote=("127.0.0.1", 7000 + slot), local="", epoch=0, payload_max=9300, flags=0)
            side.engine.session_use(slot, 0x500000 + slot)
        yield World(side, peers)


def random_tables(rng: random.Random) -> Tables:
    routes: dict[tuple[int, int], int] = {(UNIVERSE, 26): 1}
    for _ in range(30):
        bits = rng.choice((22, 24, 26, 26, 28, 32))
        number = (UNIVERSE | rng.randrange(1 << 12)) >> (32 - bits) << (32 - bits)
        routes[number, bits] = rng.choice((1, *PEERS, *PEERS, SILENT))
    nodes = {
        slot: Node(answer=rng.random() < 0.7, flood=rng.random() < 0.2,
                   groups=frozenset(rng.sample(GROUPS, rng.randrange(4))), pod_mtu=rng.choice((576, 1280, 1368)),
                   ready=slot != SILENT)
        for slot in (*PEERS, SILENT)
    }  # fmt: skip
    return Tables(UNIVERSE, UNIVERSE_BITS, PREFIX6, routes, nodes, {m: rng.choice(PEERS) for m in STATIONS[:5]})


def load(world: World, tables: Tables, before: Tables | None) -> None:
    engine = world.side.engine
    engine.universe_set(tables.universe, tables.universe_bits, tables.prefix6)
    for prefix in before.routes if before else ():
        engine.route_del(*prefix)
    for (number, bits), slot in tables.routes.items():
        engine.route_set(number, bits, slot)
    if before:
        engine.node_del(SILENT)  # and with it what is parked
    for slot, node in tables.nodes.items():
        flags = (fp.NODE_ANSWER if node.answer else 0) | (fp.NODE_FLOOD if node.flood else 0)
        engine.node_set(slot, flags=flags, pod_mtu=node.pod_mtu)
        engine.groups_set(slot, sorted(node.groups))


def learn(world: World, tables: Tables) -> None:
    """Teach the engine the stations: one frame of each from the peer behind which it is."""
    for station, slot in tables.stations.items():
        frame = ethernet(mac(UNIVERSE + 9), station, 0x1234, bytes(30))
        world.peers[slot].send(world.peers[slot].sealed(FRAME, frame))
    wait_for(lambda: {m: s for m, s, _ in world.side.engine.stations()} == dict(tables.stations))


# -- frames ----------------------------------------------------------------------------------------------------------


def number_of(rng: random.Random, tables: Tables) -> int:
    """Mostly of the universe, mostly owned."""
    if rng.random() < 0.2:
        return rng.choice((0x08080808, UNIVERSE + 0xFFFFF, 0, 0xE0000005))
    (number, bits), _ = rng.choice(list(tables.routes.items()))
    return number | rng.randrange(1 << (32 - bits)) if rng.random() < 0.8 else UNIVERSE | rng.randrange(1 << 14)


def six_of(rng: random.Random, number: int) -> bytes:
    prefix = rng.choice(
        (PREFIX6, PREFIX6, PREFIX6, bytes.fromhex("fe80") + bytes(10), bytes.fromhex("2001") + bytes(10))
    )
    return prefix + number.to_bytes(4)


def arp(rng: random.Random, tables: Tables) -> bytes:
    sender, target = number_of(rng, tables), number_of(rng, tables)
    if rng.random() < 0.2:
        target = sender
    hardware = mac(sender) if rng.random() < 0.7 else rng.choice(STATIONS)
    head = b"\0\1\x08\0\6\4" if rng.random() < 0.95 else rng.randbytes(6)
    body = head + rng.choice((b"\0\1", b"\0\1", b"\0\1", b"\0\2")) + hardware
    body += (
        (sender if rng.random() < 0.9 else 0).to_bytes(4) + bytes(6) + target.to_bytes(4) + rng.choice((b"", bytes(18)))
    )
    return body


def icmp6(rng: random.Random, tables: Tables) -> bytes:
    number = number_of(rng, tables)
    kind = rng.choice((135, 135, 135, 136, 136, 133, 134, 130, 131, 132, 143, 128))
    target = six_of(rng, number)
    if kind == 143:
        body = mld2(rng)
    elif kind in (130, 131, 132):
        body = bytes(4) + rng.choice((bytes.fromhex("ff02") + bytes(13) + b"\xfb", rng.randbytes(16)))
    else:
        option = rng.choice((b"", b"\2\1" + mac(number), b"\2\1" + STATIONS[0], b"\1\1" + STATIONS[0]))
        body = bytes(4) + target + option
    source = bytes(16) if rng.random() < 0.1 else PREFIX6 + number_of(rng, tables).to_bytes(4)
    destination = bytes.fromhex("ff02") + rng.randbytes(14)
    message = bytes([kind, 0, 0, 0]) + body
    value = internet_checksum(pseudo_header(source, destination, 58, len(message)) + message)
    message = message[:2] + value.to_bytes(2) + message[4:]
    options, protocol = rng.choice(
        (
            (b"", 58),
            (b"", 58),
            (b"\x3a\0\5\2\0\0\1\0", 0),
            (b"\x3a\0\1\4\0\0\0\0", 60),
            (b"\x3c\0\5\2\0\0\1\0\x3a\0\0\0\0\0\0\0", 0),
            (b"\x3a\0\0\0\0\0\0\0", 43),
        )
    )
    head = b"\x60\0\0\0" + (len(options) + len(message)).to_bytes(2) + bytes([protocol, 255])
    return head + source + destination + options + message


def records(rng: random.Random, size: int) -> bytes:
    found = b""
    for _ in range(rng.randrange(4)):
        sources, extra = rng.randrange(3), rng.choice((0, 0, 1))
        found += (
            bytes([rng.randrange(1, 8), extra, 0, sources]) + rng.randbytes(size) + bytes(sources * size + extra * 4)
        )
    return found[: rng.choice((len(found), len(found), max(0, len(found) - 3)))]


def mld2(rng: random.Random) -> bytes:
    return bytes(2) + rng.randrange(4).to_bytes(2) + records(rng, 16)


def igmp(rng: random.Random) -> bytes:
    kind = rng.choice((0x11, 0x12, 0x16, 0x17, 0x22, 0x22, 0x22))
    body = bytes(2) + rng.randrange(4).to_bytes(2) + records(rng, 4) if kind == 0x22 else rng.randbytes(4)
    message = bytes([kind, 0, 0, 0]) + body
    return ip_packet("10.32.0.5", "224.0.0.22", 2, message, options=rng.choice((b"", b"\x94\4\0\0")))


def transport(rng: random.Random) -> tuple[int, bytes]:
    size = rng.choice((0, 1, 18, 200, 500, 536, 1240, 1320, 1340, 1400, 3000))
    make = rng.choice((tcp, udp))
    if rng.random() < 0.5:
        pair = "10.32.0.5", "10.32.1.9"
        return 0x0800, ip_packet(
            *pair, 6 if make is tcp else 17, make(*pair, rng.randbytes(size)), flags=rng.choice((0, 2))
        )
    pair = "fd00::a20:5", "fd00::a20:109"
    return 0x86DD, ip_packet(*pair, 6 if make is tcp else 17, make(*pair, rng.randbytes(size)))


def random_frame(rng: random.Random, tables: Tables) -> bytes:
    kind = rng.randrange(9)
    if kind < 2:
        ethertype, body = 0x0806, arp(rng, tables)
    elif kind < 4:
        ethertype, body = 0x86DD, icmp6(rng, tables)
    elif kind == 4:
        ethertype, body = 0x0800, igmp(rng)
    elif kind < 7:
        ethertype, body = transport(rng)
    else:
        ethertype, body = (
            rng.choice((0x1234, 40, 0x0800, 0x86DD, 0x0806, 0x8100)),
            rng.randbytes(rng.choice((0, 1, 20, 60))),
        )
    group = b"\xff" * 6 if kind < 2 and rng.random() < 0.8 else rng.choice((*GROUPS, bytes.fromhex("0180c200000e")))
    unicast = mac(number_of(rng, tables)) if rng.random() < 0.7 else rng.choice(STATIONS)
    target = group if rng.random() < (0.85 if kind < 5 else 0.3) else unicast
    frame = ethernet(target, rng.choice((mac(UNIVERSE + 5), STATIONS[7])), ethertype, body, rng.choice(TAGS))
    frame = bytearray(frame)
    for _ in range(rng.choice((0, 0, 0, 0, 1, 2))):
        frame[rng.randrange(12, len(frame))] = rng.randrange(256)
    if len(frame) > 14 and rng.random() < 0.1:
        frame = frame[: rng.randrange(14, len(frame))]
    return bytes(frame)


def clamped(frame: bytes) -> bool:
    """A SYN whose options may be changed is not the oracle's subject."""
    for l3 in (14, 18, 22):
        for l4 in (l3 + 20, l3 + 40):
            if len(frame) > l4 + 20 and frame[l4 + 13] & 2 and frame[l3] >> 4 in (4, 6):
                return 6 in (frame[l3 + 9], frame[l3 + 6])
    return False


# -- comparison ------------------------------------------------------------------------------------------------------


def told(world: World) -> Counter[tuple[object, ...]]:
    names = {fp.EV_ANNOUNCE: ANNOUNCE, fp.EV_GROUP: GROUP}
    return Counter((names[e[0]], *e[1:]) for e in world.side.engine.events(4096) if e[0] in names)  # type: ignore[index]


def compare(world: World, tables: Tables, frames: list[bytes]) -> None:
    decisions = [(frame, decide(frame, tables)) for frame in frames]
    before, read = world.side.engine.drops(), world.side.engine.counters()
    for frame in frames:
        world.side.port.send(frame)
    wait_for(lambda: world.side.engine.counters()["frames_in"] == read["frames_in"] + len(frames))
    drops, after = world.side.engine.drops(), world.side.engine.counters()
    expected: Counter[str] = Counter(drop for _, decision in decisions for drop in decision.drops)
    assert {name: drops[name] - before[name] for name in COUNTED} == {name: expected[name] for name in COUNTED}
    parked = sum(len(decision.parked) for _, decision in decisions)
    assert (after["parked"] - read["parked"]) + (drops["park_full"] - before["park_full"]) == parked
    assert drops["flood_limit"] == before["flood_limit"]
    for slot in PEERS:
        wanted = [frame for frame, decision in decisions for _ in range(decision.targets.count(slot))]
        assert by_flow(received(world.peers[slot], len(wanted))) == by_flow(wanted)  # in order, and only these
    assert answers(world, decisions, after["too_big_sent"] - read["too_big_sent"]) == Counter(
        decision.answer for _, decision in decisions if decision.answer
    )
    assert told(world) == Counter(event for _, decision in decisions for event in decision.events)


def received(peer: PythonPeer, count: int) -> list[bytes]:
    found: list[bytes] = []
    while (datagram := peer.receive(2.0 if len(found) < count else 0.0)) is not None:
        found += [frame for flags, frame in peer.open(datagram).frames()]
    return found


def answers(world: World, decisions: list[tuple[bytes, Decision]], too_big: int) -> Counter[bytes]:
    """What came back out of the TAP, without the ICMP errors (rate limited, hence not the oracle's)."""
    due = sum(1 for _, decision in decisions if decision.answer) + too_big
    found = [world.side.port.receive(2.0) for _ in range(due)]
    assert world.side.port.receive(0.0) is None
    return Counter(frame for frame in found if frame is not None and not is_too_big(frame))


def is_too_big(frame: bytes) -> bool:
    l3 = next(at for at in (14, 18, 22) if frame[at - 2 : at] in (b"\x08\x00", b"\x86\xdd", b"\x08\x06"))
    return (frame[l3 - 2 : l3] == b"\x08\x00" and frame[l3 + 20] == 3) or (
        frame[l3 - 2 : l3] == b"\x86\xdd" and frame[l3 + 40] == 2
    )


def test_random_frames_and_tables(world: World) -> None:
    rng = random.Random(20)
    tables: Tables | None = None
    seen: Counter[str] = Counter()
    for _ in range(FRAMES // CHUNK):
        before, tables = tables, random_tables(rng)
        load(world, tables, before)
        if before is None:
            learn(world, tables)
        else:
            tables = replace(tables, stations=before.stations)
        while world.side.port.receive(0.0) is not None:
            pass
        world.side.engine.events(4096)
        frames = [f for f in (random_frame(rng, tables) for _ in range(CHUNK)) if not clamped(f)]
        compare(world, tables, frames)
        for frame in frames:
            decision = decide(frame, tables)
            seen.update(decision.drops)
            seen.update(f"sent to {len(decision.targets)}" for _ in decision.targets[:1])
            seen.update(str(event[0]) for event in decision.events)
            seen.update(["answer"] if decision.answer else [])
        time.sleep(0.1)  # not a synchronisation: the flood's token bucket refills at this rate
    assert seen.keys() >= {*COUNTED, "answer", ANNOUNCE, GROUP, "sent to 1", "sent to 2"}
