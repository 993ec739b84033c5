"""What waits between a real TAP and the cipher: a sparse flow passes a blasting one, and the longest gives way.

Topology: fastpath_world.py. What is put in while the engine stands still comes as one burst, so order and drops are
the discipline's, not the machine's.
"""

from kernel.fastpath_pair import mac, wait_for
from kernel.fastpath_peer import ethernet
from kernel.fastpath_world import A, B, C, World, plain, start_again

from weave_router.fastpath import engine as fp

BLAST = 200  # fewer than one burst reads ahead
MANY = 800  # read faster than they are served, until 4 MB wait
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
    wait_for(lambda: not any(world.engine.queue_depths()))
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
