"""What a fast path does when a count or a clock comes to its bound: keys that sealed enough, stations that went silent
or moved. Topology: fastpath_world.py; the bounds are those of limits.py made small.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from kernel.fastpath_pair import mac, wait_for
from kernel.fastpath_peer import FRAME, ethernet
from kernel.fastpath_world import A, B, C, World, build, plain, use

from weave_router.fastpath import engine as fp
from weave_router.limits import REKEY_BYTES, REKEY_PACKETS, STATION_HOLD_SECONDS, STATION_SECONDS

STATION = b"\2\2\2\2\2\2"
SECONDS, HOLD = 0.5, 0.25


def test_the_bounds_in_use() -> None:
    """docs/protocol.md gives the same."""
    assert (REKEY_PACKETS, REKEY_BYTES) == (2**28, 2**38)
    assert HOLD / SECONDS > STATION_HOLD_SECONDS / STATION_SECONDS == 1 / 10


# -- keys ------------------------------------------------------------------------------------------------------------


def sealed(world: World) -> int:
    """Datagrams on slot 2's session, of all workers."""
    return world.engine.session_figures(world.index(2)).tx_packets


def send(world: World, count: int, size: int = 60) -> None:
    for _ in range(count):
        world.put(plain(B, size))
        assert world.frames() == [plain(B, size)]


def asked(world: World) -> int:
    """New keys asked for since the last call; for slot 2's session alone."""
    found = world.events(fp.EV_REKEY)
    assert {session for _, session in found} <= {world.index(2)}
    return len(found)


@pytest.mark.parametrize(("workers", "share"), [(1, 40), (2, 20)])
def test_a_key_is_renewed_after_so_many_datagrams(workers: int, share: int) -> None:
    """Each worker has its share, so that all together never seal more; a path that moves begins no new count."""
    with ExitStack() as stack:
        world = build(stack, workers=workers, rekey_packets=40)
        before, sent = sealed(world), 1  # before: of either worker
        send(world, 1)
        world.path(epoch=1)
        while not asked(world):
            assert sent < share
            send(world, 1)
            sent += 1
        assert share - before <= sent <= share - (before if workers == 1 else 0)
        send(world, 50)
        assert asked(world) == 0, "once for a key"


def test_a_key_is_renewed_after_so_many_bytes() -> None:
    with ExitStack() as stack:
        world = build(stack, rekey_bytes=50_000)
        while not asked(world):
            assert world.engine.session_figures(world.index(2)).tx_bytes < 50_000
            send(world, 1, 1200)
        assert 50_000 <= world.engine.session_figures(world.index(2)).tx_bytes < 51_300


def test_the_next_key_has_a_count_of_its_own() -> None:
    with ExitStack() as stack:
        world = build(stack, sessions=False, rekey_packets=30)
        use(world)
        send(world, 30)
        assert asked(world) == 1
        world.engine.session_del(world.index(2))
        use(world)
        send(world, 29)
        assert asked(world) == 0
        send(world, 1)
        assert asked(world) == 1


# -- stations --------------------------------------------------------------------------------------------------------


@pytest.fixture
def world() -> Iterator[World]:
    with ExitStack() as stack:
        yield build(stack, station_seconds=SECONDS, station_hold_seconds=HOLD)


def hear(world: World, slot: int) -> int:
    """A frame of the station from this node; which node it is behind then."""
    peer = world.peers[slot]
    peer.send(peer.sealed(FRAME, ethernet(mac(A), STATION, 0x1234, bytes(40))))
    assert world.side.port.receive() is not None
    [(_, where, _)] = world.engine.stations()
    return where


def to_station(mark: int) -> bytes:
    return ethernet(STATION, mac(A), 0x1234, bytes([mark]) * 46)


def test_a_station_is_learned_and_forgotten_with_its_node(world: World) -> None:
    assert hear(world, 2) == 2
    world.put(to_station(1))
    assert world.frames(2) == [to_station(1)]
    world.engine.node_del(2)
    assert world.engine.stations() == []


def test_a_silent_station_is_unknown_again(world: World) -> None:
    """Frames for it go to who asks for floods, to nobody if none does, and back to it once it is heard."""
    before = world.engine.drops()
    assert hear(world, 2) == 2
    wait_for(lambda: world.engine.stations()[0][2] > SECONDS * 1000)
    world.put(to_station(1))
    world.settle(3)
    assert world.dropped("no_listener", before) == 1
    world.engine.node_set(3, flags=fp.NODE_ANSWER | fp.NODE_FLOOD, pod_mtu=1368)
    world.put(to_station(2))
    assert world.frames(3) == [to_station(2)]
    assert world.silent(2)
    assert hear(world, 2) == 2
    world.put(to_station(3))
    assert world.frames(2) == [to_station(3)]
    assert world.silent(3)


def test_a_station_that_speaks_does_not_age(world: World) -> None:
    until = time.monotonic() + 1.5 * SECONDS
    while time.monotonic() < until:
        assert hear(world, 2) == 2
    world.put(to_station(1))
    assert world.frames(2) == [to_station(1)]


def test_a_station_that_moves_stays_for_a_while(world: World) -> None:
    """Two nodes that claim it by turns get it by turns of the hold, however often they speak."""
    begun = time.monotonic()
    assert hear(world, 2) == 2
    assert hear(world, 3) == 2
    world.put(to_station(1))
    assert world.frames(2) == [to_station(1)]
    wait_for(lambda: hear(world, 3) == 3)
    moved = time.monotonic()
    assert moved - begun >= HOLD
    assert hear(world, 2) == 3
    world.put(to_station(2), plain(C))
    assert world.frames(3, 2) == [to_station(2), plain(C)]
    assert world.silent(2)
