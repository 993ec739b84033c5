"""What becomes of one record that a neighbour hands on: taken, waited with, counted, or a sign of ourselves elsewhere.

The replica is node 1's, its neighbour is node 2 over a real link; records are signed, nothing else runs.
"""

from random import Random

import pytest
from unit.mesh_helpers import identity, record, signed
from unit.mesh_sim import PORT, tokens

from weave_router.limits import RECORD_BURST
from weave_router.mesh.events import CloneSeen, RestoredState
from weave_router.mesh.link import Link, State
from weave_router.mesh.opening import Opening
from weave_router.mesh.own import OwnRecord
from weave_router.mesh.record import SignedRecord
from weave_router.mesh.replica import Replica
from weave_router.tunnel.identity import verify
from weave_router.tunnel.wire import SuiteCode


@pytest.fixture
def link() -> Link:
    """Node 1's end of its link to node 2."""
    near, far = (
        Link(Opening(initiator=seed == 1, identity=identity(seed), tokens=tokens(), suite=SuiteCode.AESGCM_SHA256,
                     index=seed, entropy=Random(seed).randbytes),
             own=signed(seed), remote=("10.0.0.1", PORT), verify=verify, now=0.0)
        for seed in (1, 2)
    )  # fmt: skip
    while near.state is not State.UP:
        far.receive_data(near.data_to_send(), 0.0)
        near.receive_data(far.data_to_send(), 0.0)
    return near


@pytest.fixture
def replica() -> Replica:
    return Replica(OwnRecord(record(1, incarnation=5, seq=3), identity(1).sign, 0.0), verify=verify, now=0.0)


def heard(replica: Replica, link: Link, *records: SignedRecord, now: float = 0.0) -> Replica:
    for one in records:
        replica.receive_untrusted(one.data, 7, link, now)
    return replica


def test_a_new_record_is_taken_and_an_older_one_is_not(replica: Replica, link: Link) -> None:
    heard(replica, link, signed(3, seq=4), signed(3, seq=2))
    held = replica.table.get(signed(3).node_id)
    assert held is not None and held.record.seq == 4
    assert not replica.counters


@pytest.mark.parametrize(("data", "reason"), [
    (signed(3).data[:-1], "record encoding"),
    (signed(3, domain=b"other-do").data, "record domain"),
    (bytes(64) + signed(3).data[64:], "record signature"),
    (signed(2, x25519_public=identity(3).x25519_public).data, "record of another key"),
])  # fmt: skip
def test_what_cannot_be_used_is_counted(replica: Replica, link: Link, data: bytes, reason: str) -> None:
    replica.receive_untrusted(data, 7, link, 0.0)
    assert replica.counters == {reason: 1}
    assert len(replica.table) == 1 and link.state is State.UP


def test_more_than_a_burst_waits(replica: Replica, link: Link) -> None:
    heard(replica, link, *(signed(3, seq=seq) for seq in range(1, RECORD_BURST + 4)))
    assert replica.counters == {"record deferred": 3}


def test_the_buried_come_back_with_a_greater_incarnation_only(replica: Replica, link: Link) -> None:
    heard(replica, link, signed(3, incarnation=2))
    replica.bury(signed(3).node_id)
    heard(replica, link, signed(3, incarnation=2, seq=9))
    assert signed(3).node_id not in replica.table
    heard(replica, link, signed(3, incarnation=3), now=1.0)
    assert signed(3).node_id in replica.table


def test_our_own_record_comes_back(replica: Replica, link: Link) -> None:
    """The same and older ones say nothing; a later one of this run is risen above."""
    heard(replica, link, replica.own.signed, signed(1, incarnation=5, seq=2), signed(1, incarnation=4, seq=9))
    assert replica.own.draft.seq == 3 and not replica.events
    heard(replica, link, signed(1, incarnation=5, seq=8))
    assert replica.own.draft.seq == 8 and not replica.events


def test_another_run_is_a_restored_state_before_the_first_sync_and_a_clone_after(replica: Replica, link: Link) -> None:
    other = signed(1, incarnation=9, run=b"another run here")
    heard(replica, link, other)
    assert replica.events == [RestoredState(9)]
    heard(replica, link, other, other)
    assert replica.events[1:] == [CloneSeen(other)] and replica.clone == other
    fresh = Replica(OwnRecord(record(1), identity(1).sign, 0.0), verify=verify, now=0.0)
    fresh.synced()
    assert heard(fresh, link, other).events == [CloneSeen(other)]


def test_what_the_router_before_had_heard_is_checked_like_a_neighbours_word(replica: Replica) -> None:
    forged = bytes(64) + signed(4).data[64:]
    replica.remember_untrusted([signed(3).data, forged, b"none", replica.own.signed.data], 0.0)
    assert signed(3).node_id in replica.table and signed(4).node_id not in replica.table
    assert replica.counters == {"record signature": 1, "record size": 1}
