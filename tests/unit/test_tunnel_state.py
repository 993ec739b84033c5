"""States of a connection: the table against a second list by hand, every pair of the product; choosing a session."""

import itertools

import pytest

from weave_router.tunnel.session import Session, best_session
from weave_router.tunnel.state import IGNORED, TRANSITIONS, Input, State, transition
from weave_router.tunnel.wire import SuiteCode

BY_HAND = """
idle         wanted=connecting ready=established
connecting   ready=established gave-up=failed
established  wanted=- ready=- silent=suspect dead=lost heard=- gave-up=- expired=idle
suspect      wanted=- ready=established silent=- dead=lost heard=established gave-up=- expired=idle
lost         wanted=- ready=established silent=- dead=- heard=established gave-up=- expired=idle
failed       wanted=connecting ready=established
"""
LEGAL = {(State(state), Input(name)): State(state if after == "-" else after)
         for state, *pairs in (line.split() for line in BY_HAND.split("\n") if line)
         for name, after in (pair.split("=") for pair in pairs)}


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Input)))
def test_every_pair_is_legal_or_raises(state: State, event: Input) -> None:
    if (state, event) in LEGAL:
        assert transition(state, event) is LEGAL[state, event]
    else:
        with pytest.raises(ValueError, match=f"{event} in state {state}"):
            transition(state, event)


def test_no_pair_is_in_both_tables() -> None:
    assert not TRANSITIONS.keys() & IGNORED


def session(index: int, created_at: float, initiator: bool) -> Session:
    return Session(index, initiator, SuiteCode.AESGCM_SHA256, False, 1, created_at, 1, 0, ("192.0.2.1", 1), "", True)


@pytest.mark.parametrize(("made", "smaller", "best"), [
    ([], True, None),
    ([(1, 0.0, True)], True, 1),
    ([(1, 0.0, True)], False, 1),
    ([(1, 0.0, True), (2, 120.0, True)], False, 2),  # a rekey
    ([(1, 0.0, True), (2, 120.0, False)], True, 2),  # a rekey by the other end
    ([(1, 0.0, True), (2, 1.0, False)], True, 1),  # crossing: ours is the smaller id's
    ([(1, 0.0, True), (2, 1.0, False)], False, 2),
    ([(1, 0.0, False), (2, 1.0, True)], True, 2),
    ([(1, 0.0, False), (2, 1.0, True)], False, 1),
    ([(1, 0.0, True), (2, 1.0, True), (3, 2.0, False)], True, 2),  # the newest of the rivals
    ([(1, 0.0, True), (2, 5.1, False)], True, 2),  # too far apart to have crossed
])
def test_best_session(made: list[tuple[int, float, bool]], smaller: bool, best: int | None) -> None:
    chosen = best_session([session(*one) for one in made], local_is_smaller=smaller, crossing=5.0)
    assert (chosen and chosen.index) == best


def test_both_ends_choose_the_same_of_crossing_sessions() -> None:
    for order in itertools.permutations([(1, 0.0), (2, 0.3), (3, 0.9)]):
        for flags in itertools.product([True, False], repeat=3):
            here = [session(index, at, flag) for (index, at), flag in zip(order, flags, strict=True)]
            there = [session(index, at + 0.05, not flag) for (index, at), flag in zip(order, flags, strict=True)]
            one = best_session(here, local_is_smaller=True, crossing=5.0)
            two = best_session(there, local_is_smaller=False, crossing=5.0)
            assert one is not None and two is not None
            assert one.index == two.index
