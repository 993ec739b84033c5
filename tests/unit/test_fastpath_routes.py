"""The prefix table of the fast path against a naive longest match, over random sequences of put and remove."""

import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weave_router.fastpath.engine import SLOT_LOCAL, SLOT_NONE, Engine
from weave_router.limits import NODES_MAX

Prefix = tuple[int, int]


def engine() -> Engine:
    return Engine(workers=1, mtu=1368)


@pytest.fixture(scope="module")
def shared() -> Iterator[Engine]:
    """One engine for many examples; each removes what it put."""
    yield engine()


def network(number: int, length: int) -> Prefix:
    return (number >> (32 - length) << (32 - length) if length else 0), length


class Naive:
    def __init__(self) -> None:
        self.table: dict[Prefix, int] = {}

    def lookup(self, number: int) -> tuple[int, int]:
        for length in range(32, -1, -1):
            slot = self.table.get(network(number, length))
            if slot is not None:
                return slot, length
        return SLOT_NONE, 0


LOW = st.one_of(st.integers(0, 3), st.integers(0, 0xFFFF))
"""Few values, so that what was put is removed and prefixes of all lengths nest; or any."""
CHANGE = st.tuples(st.booleans(), LOW, st.integers(0, 32), st.integers(SLOT_LOCAL, NODES_MAX + 1))


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 0xFFFF), st.lists(CHANGE, min_size=1, max_size=40))
def test_equals_a_naive_longest_match(shared: Engine, high: int, changes: list[tuple[bool, int, int, int]]) -> None:
    """Half of each number is fixed, so that prefixes nest and touch."""
    naive = Naive()
    for put, low, length, slot in changes:
        prefix = network(high << 16 | low, length)
        if put:
            shared.route_set(*prefix, slot)
            naive.table[prefix] = slot
        else:
            shared.route_del(*prefix)
            naive.table.pop(prefix, None)
        first, last = prefix[0], prefix[0] + (1 << (32 - length)) - 1
        for number in {first, last, max(0, first - 1), min(0xFFFFFFFF, last + 1), high << 16 | low}:
            assert shared.lookup(number) == naive.lookup(number)
    for prefix in naive.table:
        shared.route_del(*prefix)
    assert shared.lookup(high << 16) == (SLOT_NONE, 0)


def test_many_changes_of_one_cluster() -> None:
    """10.32/12 in blocks of /26 and exceptions of /32, put and removed at random; every number of one /20 compared."""
    rng, table, naive = random.Random(5), engine(), Naive()
    for turn in range(4000):
        length = rng.choice((20, 24, 25, 26, 26, 27, 32, 32))
        prefix = network(0x0A200000 | rng.randrange(1 << 12), length)
        if turn % 3 == 2 and naive.table:
            prefix = rng.choice(sorted(naive.table))
            table.route_del(*prefix)
            del naive.table[prefix]
        else:
            slot = rng.randrange(2, 100)
            table.route_set(*prefix, slot)
            naive.table[prefix] = slot
    for number in range(0x0A200000, 0x0A201000):
        assert table.lookup(number) == naive.lookup(number)


def test_a_full_cluster_of_single_addresses() -> None:
    """One /32 in each /24 of a /12 and a block of each node: the trie has room."""
    table = engine()
    for slot in range(2, NODES_MAX + 2):
        table.route_set(0x0A200000 + (slot << 6 & 0xFFFFC0), 26, slot)
    for number in range(0x0A200000, 0x0A300000, 256):
        table.route_set(number + 7, 32, SLOT_LOCAL)
    assert table.lookup(0x0A2FFF07) == (SLOT_LOCAL, 32)
    assert table.lookup(0x0A200000 + (5000 << 6)) == (5000, 26)


def test_a_full_trie_says_so_and_keeps_what_it_has() -> None:
    table = engine()
    with pytest.raises(ValueError, match="full"):
        for i in range(1 << 15):
            table.route_set(i << 17, 32, 2)
    assert table.lookup(1 << 17) == (2, 32)
    table.route_del(1 << 17, 32)
    assert table.lookup(1 << 17) == (SLOT_NONE, 0)


@pytest.mark.parametrize(
    ("number", "length", "slot", "mac"),
    [(1, 31, 2, b""), (1 << 32, 32, 2, b""), (-1, 32, 2, b""), (0, 33, 2, b""), (0, 32, 0, b""),
     (0, 32, NODES_MAX + 2, b""), (0, 24, 2, b"123456"), (0, 32, 2, b"12345")],
)  # fmt: skip
def test_refuses_what_is_not_a_route(number: int, length: int, slot: int, mac: bytes) -> None:
    with pytest.raises((ValueError, OverflowError)):
        engine().route_set(number, length, slot, mac)
