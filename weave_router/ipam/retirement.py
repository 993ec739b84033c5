"""Retirement rounds (R4 to R9): taking the blocks of machines that the operator promises to be off.

A round waits for the durable promise of every member but the victims and never times out into success. Must not know
time; the driver repeats the question (``Retry``). Called by ``ownership.step`` only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from .knowledge import EVERYBODY, Out, electorate, issuing, knowledge_of, merge, restamp, send, voters
from .values import (
    Abort,
    Aborted,
    Block,
    FrozenMap,
    Knowledge,
    Message,
    Nack,
    NodeId,
    Promise,
    Refused,
    Register,
    Retire,
    RetireAsk,
    Retired,
    Round,
    RoundId,
    State,
    Tell,
    Waiting,
)


def on_retire(state: State, event: Retire, out: Out) -> State:
    victims = _fresh(state, event.victims)
    reason = _refusal(state, victims, event.lost_majority)
    if reason is not None:
        out.append(reason)
        return state
    number = state.rounds_started + 1
    named = FrozenMap({v: state.incarnations.get(v, 0) for v in victims})
    opened = Round(RoundId(state.me, number), named, frozenset({state.me}), lost_majority=event.lost_majority)
    state = state._replace(round=opened, rounds_started=number)
    state = _promise(state, opened.id, victims, out)
    ask(state, out)
    return state


def _fresh(state: State, victims: Iterable[NodeId]) -> frozenset[NodeId]:
    """Retiring the retired is a no-op (R9)."""
    return frozenset(victims) - state.retired


def _refusal(state: State, victims: frozenset[NodeId], lost_majority: bool) -> Refused | None:
    if state.arbiter:
        return Refused("the Kubernetes API owns the blocks: delete the Node, they are free 15 minutes later", victims)
    if not victims:
        return Refused("already retired")
    if not issuing(state):
        return Refused("the gate of this node is not open")
    if state.round is not None:
        return Refused("this node has a round open already", frozenset(state.round.victims))
    if state.leaving or state.me in victims or not victims <= electorate(state):
        return Refused("not a member that can be retired from here", victims - electorate(state))
    if not (lost_majority or _few(state, victims)):
        return Refused("more than half of the members cannot be retired", victims)
    holder = _holder(state, RoundId(state.me, state.rounds_started + 1), victims)
    if holder is not None:
        return Refused("another round is open", frozenset({holder.coordinator}))
    return None


def _few(state: State, victims: frozenset[NodeId]) -> bool:
    """R8: at most half, or the victims could open each other's gates."""
    return 2 * len(victims) <= len(voters(state))


def _holder(state: State, asking: RoundId, victims: frozenset[NodeId]) -> RoundId | None:
    """The open round that forbids a promise to ``asking`` (R6); not one by a victim or an older one by the asker."""
    for victim in sorted(victims - state.retired):
        lock = state.locks.get(victim)
        if lock is None or lock.coordinator in victims:
            continue
        if lock.coordinator != asking.coordinator or lock.number > asking.number:
            return lock
    return None


def _returned(state: State, victims: FrozenMap[NodeId, int]) -> frozenset[NodeId]:
    """Victims seen in a later life than the round names, or alive here: the operator's promise does not hold (R7)."""
    return frozenset(v for v, named in victims.items() if state.incarnations.get(v, 0) > named or v == state.me)


def _promise(state: State, round_id: RoundId, victims: frozenset[NodeId], out: Out) -> State:
    """R7: from here on no value issued by them, no gate opened for them, no block given to them."""
    state = state._replace(
        promised=state.promised | victims, locks=state.locks.with_items({v: round_id for v in victims})
    )
    return restamp(state, out)


def ask(state: State, out: Out) -> None:
    if state.round is not None:
        send(state, out, EVERYBODY, RetireAsk(state.round.id, state.round.victims))


def on_retire_ask(state: State, m: Message, body: RetireAsk, out: Out) -> State:
    """Promise, or say why not. The promise carries all this node knows (R5)."""
    victims = frozenset(body.victims)
    if not issuing(state) or m.sender in state.promised or m.sender not in voters(state):
        return state
    returned = _returned(state, body.victims)
    if returned:
        send(state, out, m.sender, Nack(body.round, returned=min(returned)))
        return state
    holder = _holder(state, body.round, victims)
    if holder is not None:
        send(state, out, m.sender, Nack(body.round, holder=holder))
        return state
    state = _promise(state, body.round, victims, out)
    send(state, out, m.sender, Promise(body.round, knowledge_of(state)))
    return state


def on_promise(state: State, m: Message, body: Promise, out: Out) -> State:
    current = state.round
    assert current is not None and current.id == body.round  # see ownership._obsolete
    state = merge(state, body.knowledge, out)
    reported = _newest(current.reported, _newer(body.knowledge.registers, state.registers))
    return state._replace(round=replace(current, acks=current.acks | {m.sender}, reported=reported))


def on_nack(state: State, m: Message, body: Nack, out: Out) -> State:
    if body.holder is not None:
        out.append(Refused("another round is open", frozenset({body.holder.coordinator})))
    elif body.returned is not None:
        out.append(Refused("the machine was seen alive", frozenset({body.returned})))
    return abort(state, out)


def on_abort(state: State, event: Abort, out: Out) -> State:
    if state.round is not None:
        return abort(state, out)
    tell_closed(state, out)
    return state


def tell_closed(state: State, out: Out) -> None:
    """For members that did not hear it the first time."""
    if state.round is None and state.rounds_started:
        send(state, out, EVERYBODY, Aborted(RoundId(state.me, state.rounds_started)))


def abort(state: State, out: Out) -> State:
    """The lock goes, the promise stays: refusing a victim's values is safe for ever, a second round names it anew."""
    assert state.round is not None
    closed = state.round.id
    state = _unlock(state._replace(round=None), closed)
    tell_closed(state, out)
    return state


def on_aborted(state: State, m: Message, body: Aborted, out: Out) -> State:
    return _unlock(state, body.round) if m.sender == body.round.coordinator else state


def _unlock(state: State, closed: RoundId) -> State:
    gone = [v for v, lock in state.locks.items() if lock[0] == closed.coordinator and lock.number <= closed.number]
    return state._replace(locks=state.locks.without(gone))


def continue_round(state: State, out: Out) -> State:
    """Complete the open round when everybody has promised; give it up when a victim was seen alive. Runs after each
    event, since members come and go while a round is open."""
    current = state.round
    if current is None or not issuing(state):
        return state
    victims = _fresh(state, current.victims)
    if not victims:  # another round did it
        return abort(state, out)
    returned = _returned(state, current.victims.without(state.retired))
    if returned:
        out.append(Refused("the machine was seen alive", returned))
        return abort(state, out)
    missing = electorate(state) - frozenset(current.victims) - current.acks
    if missing or not (current.lost_majority or _few(state, victims)):
        out.append(Waiting(missing))
        return state
    return _complete(state, current, victims, out)


def _newer(told: FrozenMap[Block, Register], known: FrozenMap[Block, Register]) -> FrozenMap[Block, Register]:
    """What is told and was not merged: its issuer is promised away."""
    return FrozenMap({b: r for b, r in told.items() if b not in known or r[:2] > known[b][:2]})


def _newest(one: FrozenMap[Block, Register], other: FrozenMap[Block, Register]) -> FrozenMap[Block, Register]:
    return one.with_items({b: r for b, r in other.items() if b not in one or r[:2] > one[b][:2]})


def _complete(state: State, current: Round, victims: frozenset[NodeId], out: Out) -> State:
    """Take what the retired own by the newest word of all that are left, and what only the retired say that somebody
    else owns: its owner would have said so itself (R5, and members re-stamp when they promise)."""
    gone = state.retired | victims
    left = gone | (state.left - state.promised)  # whose last word was heard; a living giver takes back by itself
    view = _newest(current.reported, state.registers)
    gen = max(1 + max((r.gen for r in view.values()), default=0), len(gone))
    taken = FrozenMap(
        {
            b: Register(gen, 0, state.me, state.me)
            for b, r in view.items()
            if r.owner in gone or r.issuer in gone or {r.owner, r.issuer} <= left
        }
    )
    state = state._replace(
        registers=state.registers.with_items(taken),
        retired=gone,
        promised=state.promised | victims,
        owed=state.owed.without(taken),
        locks=state.locks.without(victims),
        round=None,
    )
    send(state, out, EVERYBODY, Tell(Knowledge(registers=taken, retired=victims)))
    out.append(Retired(victims))
    return state
