"""mesh/table.py and topology.py: merge, deltas, rate, bounds, exchange; merge against every order of arrival."""

import itertools
from random import Random

from unit.mesh_helpers import identity, signed

from weave_router import limits
from weave_router.mesh.record import Link, SignedRecord
from weave_router.mesh.table import Delta, Table, Verdict, version_of
from weave_router.mesh.topology import Topology


def test_newest_wins_in_every_order_of_arrival() -> None:
    records = [signed(1, incarnation=1, seq=2), signed(1, incarnation=2, seq=1),
               signed(1, incarnation=2, seq=1, name="b"), signed(1, incarnation=1, seq=3), signed(2)]
    results = set()
    for order in itertools.permutations(records):
        table = Table()
        for one in order:
            table.merge(one, 0.0)
        results.add(tuple(sorted(one.hash for one in table)))
    newest = max(records[:4], key=lambda one: one.order)
    assert results == {tuple(sorted([newest.hash, records[4].hash]))}


def test_verdicts_and_deltas() -> None:
    table = Table()
    first, second = signed(1, seq=1), signed(1, seq=2)
    assert table.merge(first, 0.0, source=7) is Verdict.NEWER
    assert table.merge(first, 0.0) is Verdict.KNOWN
    assert table.merge(second, 0.0, source=8) is Verdict.NEWER
    assert table.merge(first, 0.0) is Verdict.OLDER
    assert table.take_deltas() == [Delta(first.node_id, None, first, 7), Delta(first.node_id, first, second, 8)]
    assert table.take_deltas() == []


def test_deltas_applied_to_nothing_give_the_table() -> None:
    rng, table, copy = Random(5), Table(), {}
    for step in range(400):
        seed = rng.randrange(6)
        if rng.random() < 0.1:
            table.remove(identity(seed).node_id)
        else:
            table.merge(signed(seed, incarnation=rng.randrange(20), seq=rng.randrange(4)), float(step))
        for delta in table.take_deltas():
            assert copy.get(delta.node_id) == delta.old
            copy[delta.node_id] = delta.new
    assert {node_id: one for node_id, one in copy.items() if one} == {one.node_id: one for one in table}


def test_burst_then_one_a_second_and_the_newest_is_not_lost() -> None:
    table = Table()
    records = [signed(1, seq=seq) for seq in range(1, 30)]
    verdicts = [table.merge(one, 100.0) for one in records]
    assert verdicts[:limits.RECORD_BURST] == [Verdict.NEWER] * limits.RECORD_BURST
    assert set(verdicts[limits.RECORD_BURST:]) == {Verdict.DEFERRED}
    due = table.get_timer()
    assert due is not None and 101.0 <= due < 101.001
    table.handle_timer(100.9)
    assert table.get(records[0].node_id) == records[limits.RECORD_BURST - 1]
    table.handle_timer(due)
    assert table.get(records[0].node_id) == records[-1] and table.get_timer() is None
    assert table.merge(signed(1, seq=40), due) is Verdict.DEFERRED
    assert table.merge(records[3], due) is Verdict.OLDER
    assert table.merge(signed(2), due) is Verdict.NEWER, "another origin has its own rate"


def test_older_than_what_waits_is_older() -> None:
    table = Table()
    for seq in range(1, 12):
        table.merge(signed(1, seq=seq), 0.0)
    assert table.merge(signed(1, seq=10), 0.0) is Verdict.OLDER


def test_full_table_takes_no_more_nodes_but_newer_records() -> None:
    table = Table(limit=3)
    for seed in range(3):
        table.merge(signed(seed), 0.0)
    assert table.merge(signed(3), 0.0) is Verdict.FULL
    assert table.merge(signed(1, seq=2), 0.0) is Verdict.NEWER
    table.remove(identity(0).node_id)
    assert table.merge(signed(3), 0.0) is Verdict.NEWER
    assert len(table) == 3


def test_default_bound_is_that_of_the_slots() -> None:
    table, template = Table(), signed(1)
    for index in range(limits.RECORDS_MAX):
        node_id = index.to_bytes(16, "big")
        table.merge(SignedRecord(template.record, template.data, node_id, node_id), 0.0)
    assert len(table) == limits.RECORDS_MAX == limits.NODES_MAX - 1
    assert table.merge(signed(2), 0.0) is Verdict.FULL


def test_forgotten_record_is_not_brought_back_but_a_newer_one_is() -> None:
    table = Table()
    table.merge(signed(1, seq=5), 0.0)
    table.remove(identity(1).node_id)
    assert [delta.new for delta in table.take_deltas()][-1] is None
    assert table.merge(signed(1, seq=5), 1.0) is Verdict.OLDER
    assert table.merge(signed(1, seq=6), 1.0) is Verdict.NEWER
    table.remove(b"nobody")
    assert len(table.take_deltas()) == 1


def test_duplicate_names_are_reported_until_one_changes() -> None:
    table = Table()
    table.merge(signed(1, name="same"), 0.0)
    table.merge(signed(2, name="same"), 0.0)
    assert table.duplicate_names() == {"same": tuple(sorted(identity(seed).node_id for seed in (1, 2)))}
    table.merge(signed(2, name="other", seq=2), 0.0)
    assert table.duplicate_names() == {}
    table.remove(identity(1).node_id)
    assert table.duplicate_names() == {}


def test_missing_from_names_what_is_absent_or_older_within_the_range() -> None:
    mine, theirs = Table(), Table()
    for seed in range(20):
        mine.merge(signed(seed, seq=2 if seed % 3 == 0 else 1), 0.0)
        if seed % 4:
            theirs.merge(signed(seed, seq=3 if seed % 5 == 0 else 1), 0.0)
    missing = mine.missing_from(bytes(16), b"\xff" * 16, theirs.versions())
    for one in missing:
        theirs.merge(one, 0.0)
    for one in theirs.missing_from(bytes(16), b"\xff" * 16, mine.versions()):
        mine.merge(one, 0.0)
    assert mine.versions() == theirs.versions()
    assert mine.versions() == sorted(version_of(one) for one in mine)
    low = sorted(one.node_id for one in mine)[10]
    assert {one.node_id for one in mine.missing_from(low, b"\xff" * 16, [])} == {
        one.node_id for one in mine if one.node_id >= low}


# -- topology ----------------------------------------------------------------------------------------------------------
def test_reachable_is_a_walk_over_links_that_both_ends_name() -> None:
    """Against the naive closure, over random graphs, by deltas."""
    rng = Random(11)
    ids = [identity(seed).node_id for seed in range(8)]
    topology, named = Topology(ids[0]), {}
    for _ in range(300):
        seed = rng.randrange(8)
        others = [other for other in ids if rng.random() < 0.3]
        removed = seed and rng.random() < 0.15
        new = None if removed else signed(seed, links=tuple(map(Link, others)))
        named[ids[seed]] = set() if removed else set(others)
        topology.apply(Delta(ids[seed], None, new))
        before = topology.reachable
        gained, lost = topology.update()
        assert topology.reachable == closure(ids[0], named) == (before | gained) - lost
        assert not topology.stale


def closure(start: bytes, named: dict[bytes, set[bytes]]) -> set[bytes]:
    seen = {start}
    while True:
        more = {b for a in seen for b in named.get(a, ()) if a in named.get(b, ())} - seen
        if not more:
            return seen
        seen |= more


def test_rtt_alone_does_not_make_the_walk_stale() -> None:
    one, two = identity(1).node_id, identity(2).node_id
    topology = Topology(one)
    topology.apply(Delta(one, None, signed(1, links=(Link(two, 1),))))
    topology.update()
    topology.apply(Delta(one, None, signed(1, links=(Link(two, 9),))))
    assert not topology.stale
