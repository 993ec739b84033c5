"""Random payloads of a peer that holds the key: nothing crashes, and no frame reaches the TAP that may not.

Port -> ta [engine] == UDP on lo, port 6783 <- PythonPeer (port 7002): a member, but mad or malicious
"""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from kernel.fastpath_pair import (
    ALL_OFFLOADS,
    LEFT,
    PREFIX6,
    RIGHT,
    THIRD,
    Namespace,
    Side,
    add_peer,
    ip4,
    ip6,
    mac,
    start_side,
    wait_for,
)
from kernel.fastpath_peer import (
    BUNDLE,
    CONTROL,
    CSUM_OPEN,
    FRAGMENT,
    FRAME,
    LAST,
    TCP,
    UDP,
    PythonPeer,
    bundle,
    ethernet,
    ip_packet,
    opened,
    tcp,
    udp,
)
from security.inputs import INPUTS, seeded

from weave_router.fastpath import engine as fp
from weave_router.fastpath.probe import parse_untrusted

INDEX = 0x500002
A, B, C = LEFT + 2, RIGHT + 2, THIRD + 2


class World:
    def __init__(self, stack: ExitStack, offloads: int) -> None:
        self.offloads = offloads
        space = Namespace()
        stack.callback(space.close)
        space.ip("tuntap add ta mode tap vnet_hdr multi_queue", "link set ta mtu 9100 up")
        self.side: Side = start_side(space, "ta", 6783, sockets_in=space, watch=("ta", True), offloads=offloads)
        stack.callback(self.side.close)
        self.engine = self.side.engine
        keys = bytes([1]) * 32, bytes([2]) * 32
        self.peer = PythonPeer(space, 7002, remote_port=6783, index=0x300002, remote_index=INDEX, keys=keys)
        stack.callback(self.peer.close)
        self.engine.route_set(LEFT, 26, fp.SLOT_LOCAL)
        self.engine.node_set(3, flags=0, pod_mtu=1368)
        self.engine.route_set(THIRD, 26, 3)
        self.engine.route_set(A + 1, 32, fp.SLOT_LOCAL, b"\2\7\7\7\7\7")
        add_peer(self.engine, slot=2, number=RIGHT, session=INDEX, remote_index=0x300002, keys=keys[::-1])
        self.engine.path_set(2, remote=("127.0.0.1", 7002), local="", epoch=0, payload_max=1472, flags=0)

    def send(self, datagrams: list[bytes]) -> list[bytes]:
        """All of them; the frames that came out of the TAP."""
        before, written = self.engine.counters()["datagrams_received"], self.engine.counters()["tap_writes"]
        self.peer.send(*datagrams)
        wait_for(lambda: self.engine.counters()["datagrams_received"] == before + len(datagrams))
        frames = []
        while (frame := self.side.port.receive(0.0)) is not None:
            frames.append(frame)
        self.peer.send(self.peer.sealed(FRAME, ethernet(mac(A), mac(B), 0x88B5, bytes(46))))
        while (frame := self.side.port.receive(5.0)) != ethernet(mac(A), mac(B), 0x88B5, bytes(46)):
            assert frame is not None
            frames.append(frame)
        # The kernel drops what is too short for the tag that it bears.
        wait_for(lambda: self.engine.counters()["tap_writes"] > written + len(frames))
        return frames


@pytest.fixture(params=[ALL_OFFLOADS, 0], ids=["offloads", "no-offloads"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(stack, request.param)


def inner(rng: random.Random) -> bytes:
    """A frame of this peer, or of somebody else, whole or not."""
    source, target = rng.choice((B,) * 10 + (C, A)), rng.choice((A, A + 1, A, C, LEFT + 0x7000))
    size = rng.choice((0, 1, 30, 200, 1000))
    make, protocol = rng.choice(((tcp, TCP), (udp, UDP)))
    pair = (ip4(source), ip4(target)) if rng.random() < 0.5 else (ip6(source), ip6(target))
    kind = 0x0800 if "." in pair[0] else 0x86DD
    body = ip_packet(*pair, protocol, make(*pair, bytes(size)), ident=rng.randrange(3))
    tags = rng.choice((b"", b"", b"\x81\0\0\1", b"\x88\xa8\0\1\x81\0\0\1"))
    frame = ethernet(
        mac(target), mac(rng.choice((B,) * 10 + (C,))), rng.choice((kind, kind, 0x0806, 0x1234)), body, tags
    )
    if rng.random() < 0.3 and not tags:
        frame = opened(frame) if frame[12:14] in (b"\x08\0", b"\x86\xdd") else frame
    changed = bytearray(frame)
    for _ in range(rng.choice((0, 0, 0, 1, 3))):
        changed[rng.randrange(len(changed))] = rng.choice((0, 255, rng.randrange(256)))
    return bytes(changed[: rng.randrange(len(changed) + 1)] if rng.random() < 0.2 else changed)


def descriptor(rng: random.Random, kind: int | None = None) -> bytes:
    kind = rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 255)) if kind is None else kind
    index, flags = rng.choice((0, 0, 1, 2, 255)), rng.choice((0, CSUM_OPEN, LAST, 3, 255, CSUM_OPEN))
    size, rest = (
        rng.choice((0, 8, 1316, 65535, rng.randrange(65536))),
        rng.choice((bytes(3), bytes(3), rng.randbytes(3))),
    )
    return bytes([kind, index]) + size.to_bytes(2, "big") + bytes([flags]) + rest


def entries(rng: random.Random) -> bytes:
    found = b""
    for _ in range(rng.randrange(1, 6)):
        frame = inner(rng)
        length = (
            len(frame)
            if rng.random() < 0.9
            else rng.choice((0, 13, 14, 65535, len(frame) + 1, len(frame) - 1)) & 0xFFFF
        )
        found += length.to_bytes(2, "big") + bytes([rng.choice((0, 1, 255)), 0]) + frame
    return found[: rng.randrange(len(found) + 1)] if rng.random() < 0.2 else found


def fragments(rng: random.Random) -> list[bytes]:
    frame = inner(rng) * rng.choice((1, 1, 1, 60))
    step = rng.choice((64, 500, 500, 1400)) if rng.random() < 0.95 else 1
    pieces = [frame[at : at + step] for at in range(0, len(frame), step)][:255]
    found = []
    for i, piece in enumerate(pieces):
        index = i if rng.random() < 0.97 else rng.randrange(256)
        flags = (LAST if i == len(pieces) - 1 else 0) | rng.choice((0, CSUM_OPEN))
        found.append(bytes([FRAGMENT, index, 0, 0, flags, 0, 0, 0]) + piece)
    if rng.random() < 0.3:
        found.insert(rng.randrange(len(found) + 1), descriptor(rng) + rng.randbytes(20))
    return found


def flow(rng: random.Random) -> list[bytes]:
    """Segments that could be one superframe, but for what is changed in some of them."""
    make, protocol = rng.choice(((tcp, TCP), (udp, UDP)))
    pair = rng.choice(((ip4(B), ip4(A)), (ip6(B), ip6(A))))
    size, tags, found = rng.choice((8, 100, 536, 1300)), rng.choice((b"", b"\x81\0\0\1")), []
    for i in range(rng.randrange(2, 70)):
        body = make(*pair, bytes(size), seq=i * size) if make is tcp else make(*pair, bytes(size))  # type: ignore[operator]
        packet = ip_packet(*pair, protocol, body, ident=i)
        frame = bytearray(ethernet(mac(A), mac(B), 0x0800 if "." in pair[0] else 0x86DD, packet, tags))
        if rng.random() < 0.05:
            frame[rng.randrange(14 + len(tags), len(frame) - size)] = rng.randrange(256)
        if rng.random() < 0.05:
            frame = frame[: rng.randrange(14, len(frame))] if rng.random() < 0.5 else frame + bytes(3)
        found.append(bytes([rng.choice((1, 2, 3)), i & 255, 0, 8, CSUM_OPEN, 0, 0, 0]) + frame)
    return found


def payloads(rng: random.Random) -> list[bytes]:
    choice = rng.randrange(12)
    if choice > 9:
        return flow(rng)
    if choice < 3:
        return [descriptor(rng, rng.choice((1, 2, 3))) + inner(rng) for _ in range(rng.randrange(1, 5))]
    if choice < 5:
        return [descriptor(rng, BUNDLE) + entries(rng)]
    if choice < 7:
        return fragments(rng)
    if choice == 7:
        return [descriptor(rng, CONTROL) + rng.randbytes(rng.choice((0, 8, 1400)))]
    return [descriptor(rng) + rng.randbytes(rng.choice((0, 1, 13, 14, 60, 1400)))]


def assert_permitted(frame: bytes) -> None:
    """At least an Ethernet header, and no source that belongs to somebody else, wherever it is named."""
    assert len(frame) >= 14
    packet = parse_untrusted(frame)
    others = [n for first in (LEFT, THIRD) for n in range(first, first + 64)]
    assert frame[6:12] not in {mac(n) for n in others}
    source = b""
    if packet.family == 4:
        source = frame[packet.l3 + 12 : packet.l3 + 16]
    elif packet.family == 6 and frame[packet.l3 + 8 : packet.l3 + 20] == PREFIX6:
        source = frame[packet.l3 + 20 : packet.l3 + 24]
    elif packet.ethertype == 0x0806 and len(frame) >= packet.l3 + 28:
        source = frame[packet.l3 + 14 : packet.l3 + 18]
    assert int.from_bytes(source, "big") not in others
    assert frame[:6] != mac(A + 1), "an exception whose real MAC was not put in place"


def test_fuzz_random_payloads_of_a_member(world: World) -> None:
    rng = seeded(7)
    written = 0
    done = 0
    while done < INPUTS:
        batch: list[bytes] = []
        while len(batch) < 400:
            lane = rng.choice((0, 0, 0, 1, 0x10, 255))
            batch += [world.peer.sealed_raw(plain, lane=lane) for plain in payloads(rng)]
        for frame in world.send(batch):
            assert_permitted(frame)
            written += 1
        world.engine.events(4096)
        done += len(batch)
    drops = world.side.drops()
    assert drops.keys() >= {"malformed_outside", "foreign_source", "fragment_lost"}
    assert drops.keys() <= {"malformed_outside", "foreign_source", "fragment_lost", "tap_write"}
    assert drops.get("tap_write", 0) == 0, world.engine.trace()[-20:]
    assert written > done // 20
    assert bool(world.offloads) == bool(world.engine.counters()["segments_joined"])


SHAPES: dict[str, tuple[bytes, str]] = {
    "empty frame": (bytes([FRAME]) + bytes(7), "malformed_outside"),
    "13 bytes": (bytes([FRAME]) + bytes(20), "malformed_outside"),
    "unknown kind": (bytes([6]) + bytes(100), "malformed_outside"),
    "open checksum without transport": (
        bytes([FRAME, 0, 0, 0, 1, 0, 0, 0]) + ethernet(mac(A), mac(B), 0x1234, bytes(60)), "malformed_outside"),
    "open checksum of a fragment": (
        bytes([FRAME, 0, 0, 0, 1, 0, 0, 0])
        + ethernet(mac(A), mac(B), 0x0800, ip_packet(ip4(B), ip4(A), UDP, bytes(40), flags=1)), "malformed_outside"),
    "bundle entry too long": (bytes([BUNDLE]) + bytes(7) + b"\0\x40\0\0" + bytes(63), "malformed_outside"),
    "bundle entry too short": (bytes([BUNDLE]) + bytes(7) + bundle(bytes(13)), "malformed_outside"),
    "bundle with a tail": (bytes([BUNDLE]) + bytes(7) + bytes(3), "malformed_outside"),
    "control longer than itself": (bytes([CONTROL, 0, 0, 9]) + bytes(4) + bytes(8), "malformed_outside"),
    "control longer than an event": (bytes([CONTROL, 0, 6, 1]) + bytes(4) + bytes(2000), "malformed_outside"),
    "a later piece alone": (bytes([FRAGMENT, 1]) + bytes(6) + bytes(60), "fragment_lost"),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_that_are_refused(world: World, name: str) -> None:
    plain, reason = SHAPES[name]
    before = world.engine.drops()[reason]
    assert world.send([world.peer.sealed_raw(plain)]) == []
    assert world.engine.drops()[reason] == before + 1


def test_fragments_must_follow_each_other(world: World) -> None:
    frame = ethernet(mac(A), mac(B), 0x1234, os.urandom(1200))
    piece: Callable[..., bytes] = world.peer.sealed
    whole = [piece(FRAGMENT, frame[:600]), piece(FRAGMENT, frame[600:], piece=1, flags=LAST)]
    assert world.send(whole) == [frame]
    gap = [piece(FRAGMENT, frame[:600]), piece(FRAME, bytes(3)), piece(FRAGMENT, frame[600:], piece=1, flags=LAST)]
    assert world.send(gap) == []
    swapped = [piece(FRAGMENT, frame[:600]), piece(FRAGMENT, frame[600:], piece=1, flags=LAST)][::-1]
    assert world.send(swapped) == []
    lanes = [piece(FRAGMENT, frame[:600], lane=1), piece(FRAGMENT, frame[600:], piece=1, flags=LAST, lane=2)]
    assert world.send(lanes) == []
    two = [piece(FRAGMENT, frame[:600], lane=3), *[piece(FRAGMENT, frame[:600], lane=4)],
           piece(FRAGMENT, frame[600:], piece=1, flags=LAST, lane=3),
           piece(FRAGMENT, frame[600:], piece=1, flags=LAST, lane=4)]  # fmt: skip
    assert world.send(two) == [frame, frame]


def test_a_reassembled_frame_has_a_bound(world: World) -> None:
    pieces = [world.peer.sealed(FRAGMENT, bytes(1000), piece=i) for i in range(100)]
    before = world.engine.drops()["fragment_lost"]
    assert world.send(pieces) == []
    assert world.engine.drops()["fragment_lost"] == before + 100 - 65  # 65,600 bytes at most


def test_more_partial_frames_than_places(world: World) -> None:
    """The oldest gives way; 32 others still complete."""
    frame = ethernet(mac(A), mac(B), 0x1234, os.urandom(100))
    for lane in range(40):
        assert world.send([world.peer.sealed(FRAGMENT, frame[:50], lane=lane)]) == []
    last = [world.peer.sealed(FRAGMENT, frame[50:], piece=1, flags=LAST, lane=lane) for lane in range(40)]
    assert world.send(last) == [frame] * 32
