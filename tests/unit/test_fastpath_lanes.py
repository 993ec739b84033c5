"""The counters of a lane that two workers seal on, where no program gives both directions of a flow one queue."""

from concurrent.futures import ThreadPoolExecutor

from weave_router.fastpath.probe import Lane


def test_readers_of_one_lane_take_each_counter_once_and_pieces_together() -> None:
    """Three pieces each: no counter twice, none left out, no frame's within another's. Where the readers share a CPU
    they meet once in some milliseconds."""
    lane, pieces, meetings = Lane(), 3, 5
    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(lane.take, 5, pieces, 200_000, 2, meetings) for _ in range(2)]
        mine, others = (reader.result() for reader in readers)
    assert max(len(mine), len(others)) > meetings, "the readers met too rarely"
    assert mine == sorted(mine) and others == sorted(others)
    following = 1
    for counter, times in sorted(mine + others):
        assert counter == following
        following += pieces * times


def test_a_path_epoch_that_was_left_gives_no_counter() -> None:
    """To a reader that still has a train of the former path: its counters would come a second time."""
    lane = Lane()
    assert lane.take(1, 1, 2, 1, 0) == [(1, 2)]
    assert lane.take(2, 1, 2, 1, 0) == [(1, 2)]
    assert lane.take(1, 1, 1, 1, 0) == [(0, 1)]
    assert lane.take(2, 1, 1, 1, 0) == [(3, 1)]
