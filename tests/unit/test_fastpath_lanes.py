"""The counters of a lane that two workers seal on, where no program gives both directions of a flow one queue."""

import time
from concurrent.futures import ThreadPoolExecutor

from weave_router.fastpath.probe import Lane


def test_readers_of_one_lane_take_each_counter_once_and_pieces_together() -> None:
    """Runs of three, as for a frame in three pieces: no counter twice, none left out, no run in another's. Until the
    readers have interrupted each other a few times."""
    times, together, deadline = 200_000, 0, time.monotonic() + 20
    with ThreadPoolExecutor(2) as pool:
        while together < 3:
            assert time.monotonic() < deadline, "the readers met too rarely"
            lane = Lane()
            readers = [pool.submit(lane.take, 5, 3, times, 2) for _ in range(2)]
            mine, others = (reader.result() for reader in readers)
            assert sorted(mine + others) == list(range(1, 6 * times, 3))
            assert mine == sorted(mine) and others == sorted(others)
            together += max(mine[0], others[0]) < min(mine[-1], others[-1])


def test_a_path_epoch_that_was_left_gives_no_counter() -> None:
    """To a reader that still has a train of the former path: its counters would come a second time."""
    lane = Lane()
    assert lane.take(1, 1, 2, 1) == [1, 2]
    assert lane.take(2, 1, 2, 1) == [1, 2]
    assert lane.take(1, 1, 1, 1) == [0]
    assert lane.take(2, 1, 1, 1) == [3]
