"""Replay window of the fast path: against a naive set over random sequences, and a table of edges as WireGuard's."""

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weave_router.fastpath.probe import WINDOW_SIZE, Window

LIMIT = (1 << 56) - 1
"""Counters are 56 bits on the wire."""


class Naive:
    """What the window promises, word for word: each counter once, none further than WINDOW_SIZE behind the newest."""

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.newest = 0

    def accept(self, counter: int) -> bool:
        fresh = counter not in self.seen and self.newest - counter <= WINDOW_SIZE
        if fresh:
            self.seen.add(counter)
        self.newest = max(self.newest, counter)
        return fresh


STEPS = st.one_of(
    st.integers(-WINDOW_SIZE - 130, 200),
    st.sampled_from([0, 1, -1, 63, 64, 65, -63, -64, -65, WINDOW_SIZE, -WINDOW_SIZE, -WINDOW_SIZE - 1, 8192, -8192]),
    st.integers(1, 1 << 40),
)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, LIMIT >> 1), st.lists(STEPS, min_size=1, max_size=150))
def test_equals_a_naive_set_on_any_steps(start: int, steps: list[int]) -> None:
    window, naive, counter = Window(), Naive(), start
    for step in steps:
        counter = min(max(0, counter + step), LIMIT)
        assert window.accept(counter) == naive.accept(counter), counter


@pytest.mark.parametrize("seed", range(6))
def test_equals_a_naive_set_on_long_shuffled_traffic(seed: int) -> None:
    rng = random.Random(seed)
    window, naive, base = Window(), Naive(), 0
    for _ in range(30_000):
        base += rng.choice((0, 1, 1, 1, 2, rng.randrange(400)))
        counter = max(0, base - int(rng.expovariate(1 / rng.choice((3, 300, 6000)))))
        assert window.accept(counter) == naive.accept(counter)


T_LIM = WINDOW_SIZE + 1
EDGES: list[list[tuple[int, bool]]] = [
    # The table of WireGuard's replay_test.go and selftest/counter.c, with our window size.
    [(0, True), (1, True), (1, False), (9, True), (8, True), (7, True), (7, False), (T_LIM, True), (T_LIM - 1, True),
     (T_LIM - 1, False), (T_LIM - 2, True), (2, True), (2, False), (T_LIM + 16, True), (3, False), (T_LIM + 16, False),
     (T_LIM * 4, True), (T_LIM * 4 - (T_LIM - 1), True), (10, False), (T_LIM * 4 - T_LIM, False),
     (T_LIM * 4 - (T_LIM + 1), False), (T_LIM * 4 - (T_LIM - 2), True), (T_LIM * 4 + 1 - T_LIM, False), (0, False),
     (LIMIT - 1, True), (LIMIT, True), (LIMIT - 1, False), (LIMIT, False), (LIMIT - WINDOW_SIZE, True),
     (LIMIT - WINDOW_SIZE - 1, False)],
    [(n, True) for n in range(1, WINDOW_SIZE + 1)] + [(0, True), (0, False)],
    [(n, True) for n in range(2, WINDOW_SIZE + 2)] + [(1, True), (0, False)],
    [(n, True) for n in range(WINDOW_SIZE + 1, 0, -1)],
    [(n, True) for n in range(WINDOW_SIZE + 2, 1, -1)] + [(0, False)],
    [(n, True) for n in range(WINDOW_SIZE, 0, -1)] + [(WINDOW_SIZE + 1, True), (0, False)],
    [(n, True) for n in range(WINDOW_SIZE, 0, -1)] + [(0, True), (WINDOW_SIZE + 1, True)],
    [(1, True), (1 + (1 << 20), True), (2, False), (1 + (1 << 20) - WINDOW_SIZE, True)],
]  # fmt: skip


@pytest.mark.parametrize("sequence", EDGES, ids=range(len(EDGES)))
def test_edges(sequence: list[tuple[int, bool]]) -> None:
    window = Window()
    assert [(counter, window.accept(counter)) for counter, _ in sequence] == sequence


def test_no_worker_accepts_what_another_is_about_to_accept() -> None:
    """Where no program steers datagrams by lane, the copies of one come to several workers."""
    count, window = 2_000_000, Window()
    assert window.accept(0)
    with ThreadPoolExecutor(2) as pool:
        again = pool.submit(window.accept_newest, count)
        assert window.accept_all(1, count + 1) == count
        assert again.result() == 0
