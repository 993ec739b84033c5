"""Timers and what may shorten them; the one timer of all peers; receiver indices; the handshakes' share of the loop."""

import random
from dataclasses import fields

import pytest

from weave_router.errors import UsageError
from weave_router.limits import HANDSHAKE_LOOP_SHARE, INDEX_SLOTS
from weave_router.tunnel.agenda import Agenda
from weave_router.tunnel.budget import BURST, Budget
from weave_router.tunnel.indices import IndexPool
from weave_router.tunnel.timers import Timers, timers_from_environment


def test_defaults_are_those_of_the_design() -> None:
    timers = Timers()
    assert timers.retry == (0.25, 0.5, 1.0, 2.0, 4.0)
    assert (timers.retry_tail, timers.give_up) == (5.0, 90.0)
    assert (timers.rekey, timers.rekey_other, timers.reject, timers.index_rest) == (120.0, 165.0, 180.0, 180.0)
    assert (timers.suspect, timers.lost, timers.nat_keepalive, timers.roam) == (3.0, 6.5, 20.0, 2.0)
    assert (timers.mtu_confirmed, timers.mtu_interval) == (1.0, 0.2)


def test_every_span_can_be_shortened_by_its_name() -> None:
    for field in fields(Timers):
        if isinstance(field.default, float):
            name = f"WEAVE_ROUTER_DEBUG_{field.name.upper()}"
            value = {"reject": 200.0, "lost": 60.0}.get(field.name, 2.5)
            assert getattr(timers_from_environment({name: str(value)}), field.name) == value
    assert timers_from_environment({}) == Timers()
    assert timers_from_environment({"WEAVE_ROUTER_DEBUG_BOOT_ID": "x", "WEAVE_ROUTER_DEBUG_RETRY": "x"}) == Timers()


@pytest.mark.parametrize(("environ", "sentence"), [
    ({"REKEY": "soon"}, "REKEY is 'soon': give a number of seconds"),
    ({"REKEY": "-1"}, "give a number of seconds"),
    ({"REKEY": "nan"}, "give a number of seconds"),
    ({"REKEY": "200"}, "REKEY must be shorter than"),
    ({"REKEY": "0"}, "REKEY must be shorter than"),
    ({"REKEY_OTHER": "180"}, "REKEY must be shorter than"),
    ({"SUSPECT": "7"}, "SUSPECT must be shorter than"),
])
def test_nonsense_is_one_sentence(environ: dict[str, str], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        timers_from_environment({"WEAVE_ROUTER_DEBUG_" + name: value for name, value in environ.items()})


def test_agenda_agrees_with_a_naive_one() -> None:
    rng = random.Random(1)
    agenda, naive, now = Agenda(), dict[int, float](), 0.0
    for _ in range(5000):
        key, at = rng.randrange(20), now + rng.choice([0.0, 0.5, 1.0, rng.random() * 5])
        match rng.randrange(3):
            case 0:
                agenda.set(key, at)
                naive[key] = at
            case 1:
                agenda.set(key, None)
                naive.pop(key, None)
            case 2:
                now += rng.random()
                due = sorted((at, key) for key, at in naive.items() if at <= now)
                assert agenda.pop_due(now) == [key for _, key in due]
                for _, key in due:
                    del naive[key]
        assert agenda.next_at() == min(naive.values(), default=None)


def test_index_is_never_zero_and_a_freed_slot_rests_and_changes_generation() -> None:
    pool = IndexPool(rest=180.0, slots=3)
    first, second = pool.take(0.0), pool.take(0.0)
    assert (first, second) == (1, 2)
    assert pool.take(0.0) is None, "slot 0 is kept free"
    assert first is not None
    pool.free(first, 10.0)
    assert pool.take(189.9) is None
    assert pool.take(190.0) == 1 << 20 | 1
    assert len(pool) == 2


def test_index_generations_wrap_after_4096() -> None:
    pool = IndexPool(rest=0.0, slots=2)
    seen = []
    for turn in range(4097):
        index = pool.take(float(turn))
        assert index is not None
        seen.append(index)
        pool.free(index, float(turn))
    assert len(set(seen)) == 4096
    assert seen[-1] == seen[0] == 1
    assert max(seen) < 1 << 32
    assert INDEX_SLOTS == 1 << 20


def test_index_that_is_not_in_use_is_our_bug() -> None:
    pool = IndexPool(rest=0.0)
    with pytest.raises(KeyError):
        pool.free(5, 0.0)


def test_handshakes_get_their_share_and_no_more() -> None:
    budget, now, worked = Budget(HANDSHAKE_LOOP_SHARE, 0.0), 0.0, 0.0
    while now < 10.0:
        pause = budget.wait(now)
        if pause:
            now += pause
        else:
            budget.spend(0.001)
            worked += 0.001
            now += 0.001
    assert worked / 10.0 == pytest.approx(HANDSHAKE_LOOP_SHARE, rel=0.02)


def test_budget_allows_a_burst_after_a_pause_but_saves_no_more() -> None:
    budget = Budget(0.2, 0.0)
    assert budget.wait(100.0) == 0.0
    budget.spend(BURST + 0.01)
    assert budget.wait(100.0) == pytest.approx(0.05, rel=0.02)
    assert budget.wait(100.06) == 0.0
