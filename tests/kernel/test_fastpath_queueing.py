"""What waits between a real TAP and the cipher: a sparse flow passes a blasting one, and the longest gives way.

Topology: fastpath_world.py. What is put in while the engine stands still comes as one burst, so order and drops are
the discipline's, not the machine's.
"""

import fcntl
import mmap
import os
import struct
from collections.abc import Iterator

import pytest
from kernel.fastpath_pair import mac, wait_for
from kernel.fastpath_peer import ethernet
from kernel.fastpath_world import A, B, C, World, plain, start_again

from weave_router.fastpath import engine as fp
from weave_router.fastpath.probe import flow_hash
from weave_router.host import bpf_driver, tap_driver
from weave_router.host.steering import CREDITS, SPENT

BLAST = 200  # fewer than one burst reads ahead
MANY = 800  # read faster than they are served, until 4 MB wait
DEEP = 1500  # more than a flow in company may have waiting
CREDIT_FRAMES = 256
TURN = 8  # small frames in a flow's turn (QUANTUM), and the one that went straight through
OTHER = A + 1


def from_other(target: int, number: int, n: int = 46) -> bytes:
    return ethernet(mac(target), mac(OTHER), 0x1234, b"other" + number.to_bytes(4, "big") + bytes(n - 9))


def test_a_sparse_flow_passes_a_blasting_one(world: World) -> None:
    """A ping behind 200 frames of another pod to the same peer is among the first; both flows stay in order."""
    world.engine.stop()
    blast = [plain(B, 600, i) for i in range(BLAST)]
    sparse = [from_other(B, i) for i in range(3)]
    world.put(*blast, *sparse)
    start_again(world)
    found = world.frames(count=BLAST + len(sparse))
    places = [found.index(one) for one in sparse]
    assert places == sorted(places)
    assert places[-1] < TURN + len(sparse), places
    assert [one for one in found if one not in sparse] == blast


def test_the_longest_flow_gives_way_and_is_counted(world: World) -> None:
    """6.4 MB of one pod and a few frames of another: what may not wait is dropped of the first, under `queue`."""
    before, read = world.engine.drops(), world.engine.counters()
    world.engine.stop()
    for i in range(MANY):
        world.put(plain(B, 8000, i))
        if i % 50 == 0:
            world.put(from_other(C, i))
    start_again(world)
    assert world.frames(slot=3, count=MANY // 50) == [from_other(C, i) for i in range(0, MANY, 50)]
    wait_for(lambda: not world.side.queued())
    lost = world.dropped("queue", before)
    assert 40 < lost < MANY - 100, "4 MB wait, what is above it does not"
    wait_for(lambda: world.engine.counters()["frames_in"] - read["frames_in"] + lost == MANY + MANY // 50)
    assert {event[0] for event in world.engine.events()} <= {fp.EV_PATH_ERROR}


def test_superframes_are_not_lost_for_being_many(world: World) -> None:
    """5.4 MB of large frames: the kernel's queue counts frames and holds what is not read yet."""
    before, read = world.engine.drops(), world.engine.counters()
    world.engine.stop()
    world.put(*[plain(B, 9000, i) for i in range(600)])
    start_again(world)
    wait_for(lambda: world.engine.counters()["frames_in"] - read["frames_in"] == 600)
    assert world.dropped("queue", before) == 0


@pytest.fixture
def credits(world: World) -> Iterator[mmap.mmap]:
    program, words = bpf_driver.load_credit_program()
    fcntl.ioctl(world.side.taps[0], tap_driver.TUNSETFILTEREBPF, struct.pack("i", program))
    os.close(program)
    yield words
    world.engine.stop()
    words.close()
    fcntl.ioctl(world.side.taps[0], tap_driver.TUNSETFILTEREBPF, struct.pack("i", -1))


def overrun(world: World, credits: mmap.mmap) -> None:
    """DEEP frames of one flow at once, and one of another among them."""
    world.engine.stop()
    blast = [plain(B, 60, i) for i in range(DEEP)]
    world.put(*blast[: DEEP // 2], from_other(C, 0), *blast[DEEP // 2 :])
    start_again(world, credits)
    assert world.frames(count=DEEP) == blast
    assert world.frames(slot=3) == [from_other(C, 0)]
    wait_for(lambda: not world.side.queued())


def bind(world: World, credits: mmap.mmap) -> int:
    """The word of a flow that overran the worker; the engine stands still. A pause frees it, so once is not enough."""
    words = memoryview(credits).cast("I")
    at = flow_hash(plain(B, 60)) % CREDITS
    for _ in range(20):
        overrun(world, credits)
        world.engine.stop()
        if words[at]:
            return at
    raise AssertionError("never bound")


def test_a_flow_that_overruns_us_is_bound_and_no_other(world: World, credits: mmap.mmap) -> None:
    """What came at once is served; then so much of it may be on its way, the rest costs no read; then it is free."""
    at, words = bind(world, credits), memoryview(credits).cast("I")
    assert words[at] == SPENT + CREDIT_FRAMES, "nothing waits, so all of its credit is there"
    assert words[CREDITS] == 0
    world.put(*[plain(B, 60, i) for i in range(DEEP)], *[from_other(C, i) for i in range(DEEP)])
    assert words[CREDITS] == DEEP - CREDIT_FRAMES
    assert words[at] == SPENT
    before = world.engine.drops()
    start_again(world, credits)
    assert words[at] == 0, "a start frees all"
    assert world.frames(count=CREDIT_FRAMES) == [plain(B, 60, i) for i in range(CREDIT_FRAMES)]
    assert world.frames(slot=3, count=DEEP) == [from_other(C, i) for i in range(DEEP)]
    assert world.dropped("queue", before) == 0
    words[at] = SPENT
    world.put(*[plain(B, 60, i) for i in range(3)])
    assert world.engine.drops()["kernel_flow_credit"] == 3


def test_a_bound_ends_whatever_became_of_the_frames(world: World, credits: mmap.mmap) -> None:
    """Credit that a full queue swallowed never comes back by itself."""
    words, at = memoryview(credits).cast("I"), flow_hash(plain(B, 60)) % CREDITS
    for _ in range(20):
        overrun(world, credits)
        if words[at]:
            words[at] = SPENT
            break
    else:
        raise AssertionError("never bound")
    wait_for(lambda: words[at] == 0)
    world.put(plain(B, 60, 7))
    assert world.frames() == [plain(B, 60, 7)]


def test_a_bound_flow_that_goes_straight_through_keeps_its_credit(world: World, credits: mmap.mmap) -> None:
    """One frame at a time waits for nobody, and still gives back what it took."""
    words, at = memoryview(credits).cast("I"), flow_hash(plain(B, 60)) % CREDITS
    seen = set[int]()
    for _ in range(20):
        overrun(world, credits)
        for i in range(5):
            world.put(plain(B, 60, i))
            assert world.frames() == [plain(B, 60, i)]
            wait_for(lambda: words[at] in (0, SPENT + CREDIT_FRAMES))
            seen.add(words[at])
        if SPENT + CREDIT_FRAMES in seen:
            return
    raise AssertionError("never bound")


def test_a_flow_alone_is_not_bound(world: World, credits: mmap.mmap) -> None:
    """There is nobody from whom it could take."""
    words, at = memoryview(credits).cast("I"), flow_hash(plain(B, 60)) % CREDITS
    world.engine.stop()
    world.put(*[plain(B, 60, i) for i in range(DEEP)])
    start_again(world, credits)
    assert world.frames(count=DEEP) == [plain(B, 60, i) for i in range(DEEP)]
    assert words[at] == 0
