"""Which block is whose: ``step(state, event) -> (state, effects)``, the only way to change a ``State``.

The daemon's driver and the checker (``tests/model``) call this very function. No I/O, no clock, no randomness:
nonces, incarnations and the kernel's boot id arrive in events. Effects are carried out in order; ``Persist`` stands
before everything that others can see (R2). Rules R1 to R12 are in ``docs/protocol.md``.

What each file of the core answers: ``values`` the vocabulary, ``knowledge`` what is known and merged, ``gate`` who may
allocate after a boot, ``admission`` who is a member, ``donation`` how a block changes hands, ``retirement`` how the
blocks of a dead machine are taken, ``arbiter`` all of this where the Kubernetes API says whose a block is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import admission, arbiter, donation, gate, retirement
from .knowledge import Out, heard_of, merge, restamp, send
from .values import (
    Abort,
    Aborted,
    Admitted,
    Ask,
    Boot,
    Cooled,
    Effect,
    Event,
    Found,
    Gate,
    Grant,
    Have,
    Hello,
    Hold,
    Join,
    JoinAsk,
    Knowledge,
    Leave,
    Message,
    Met,
    Nack,
    NodeId,
    Occupy,
    Persist,
    Promise,
    Propose,
    Receive,
    Refused,
    Retire,
    RetireAsk,
    Retry,
    State,
    SyncAnswer,
    SyncAsk,
    Tell,
    Ungate,
    Vacate,
    Want,
    Withdraw,
    durable,
)

__all__ = ["fresh", "step"]


def fresh(me: NodeId) -> State:
    """An identity that was never anywhere."""
    return State(me=me)


def step(state: State, event: Event) -> tuple[State, tuple[Effect, ...]]:
    """Apply one event. ``Boot`` applies to what the store holds, all others to the state in memory."""
    out: Out = []
    if isinstance(event, Receive):
        after = _receive(state, event.message, out)
    else:
        after = _LOCAL[type(event)](state, event, out)
    after = _settle(state, after, out)
    return after, _commit(state, after, out)


def _settle(before: State, state: State, out: Out) -> State:
    """What may have become possible by what was just learned."""
    if state is before:
        return state
    if (state.registers, state.promised, state.left, state.gate) != (
        before.registers,
        before.promised,
        before.left,
        before.gate,
    ):
        state = restamp(state, out)
    state = retirement.continue_round(state, out)
    return donation.continue_leaving(state, out)


def _commit(before: State, after: State, out: Out) -> tuple[Effect, ...]:
    """R2: on disk first, then on the wire or to the pod."""
    if durable(before) == durable(after):
        return tuple(out)
    return (Persist(), *out)


def _receive(state: State, m: Message, out: Out) -> State:
    """R10: the sender's incarnation is kept whatever the message says; words of an earlier life are not heard."""
    if m.sender == state.me or m.to not in (None, state.me) or _obsolete(state, m):
        return state
    if m.universe != state.universe:
        return _meet(state, m, out)
    known_fact = isinstance(m.body, Tell)
    if m.sender in state.retired and not known_fact:
        gate.tell_retired(state, m, out)
        return state
    if not known_fact and (m.sender in state.left or m.incarnation < state.incarnations.get(m.sender, 0)):
        return state
    state = heard_of(state, m.sender, m.incarnation)
    return _REMOTE[type(m.body)](state, m, m.body, out)


def _obsolete(state: State, m: Message) -> bool:
    """Answers to questions that nobody asks any more, and everything once this identity is over."""
    if state.gate in (Gate.RETIRED, Gate.LEFT):
        return True
    if isinstance(m.body, SyncAnswer):
        return state.gate != Gate.CLOSED or m.body.nonce != state.nonce
    if isinstance(m.body, Admitted):
        return state.gate != Gate.CANDIDATE or m.body.nonce != state.nonce
    if isinstance(m.body, Promise | Nack):
        return state.round is None or m.body.round != state.round.id
    return False


def _meet(state: State, m: Message, out: Out) -> State:
    """Two universes, or a node without one: nothing merges, only these three words are understood."""
    if isinstance(m.body, JoinAsk) and m.universe is None:
        return admission.on_join_ask(state, m, m.body, out)
    if isinstance(m.body, Admitted):
        return admission.on_admitted(state, m, m.body, out)
    if isinstance(m.body, Hello) and state.universe is not None and m.universe is not None:
        return admission.on_hello(state, m, m.body, out)
    if state.universe is not None and m.universe is not None:
        out.append(Refused("that node is in another universe", frozenset({m.sender})))
    return state


def _on_met(state: State, event: Met, out: Out) -> State:
    if state.universe is not None:
        send(state, out, event.peer, Hello(admission.spare(state)))
    return state


def _on_retry(state: State, event: Retry, out: Out) -> State:
    """Ask again what was not answered; tell again what was not confirmed."""
    if state.gate == Gate.LEFT:
        return donation.say_good_bye(state, out)
    if state.gate == Gate.CLOSED:
        state = state._replace(nonce=event.nonce, met=frozenset())
        gate.ask(state, out)
    elif state.gate in (Gate.OPEN, Gate.OWN):
        retirement.ask(state, out)
        retirement.tell_closed(state, out)
        for candidate in sorted(state.admissions):
            admission.propose(state, candidate, out)
        if state.owed:
            send(state, out, None, Tell(Knowledge(registers=state.owed)))
    return state


def _on_tell(state: State, m: Message, body: Tell, out: Out) -> State:
    return merge(state, body.knowledge, out)


_LOCAL: dict[type, Callable[[State, Any, Out], State]] = {
    Boot: gate.boot,
    Found: admission.on_found,
    Grant: arbiter.on_grant,
    Withdraw: arbiter.on_withdraw,
    Join: admission.on_join,
    Occupy: donation.on_occupy,
    Vacate: donation.on_vacate,
    Cooled: donation.on_cooled,
    Want: donation.on_want,
    Retire: retirement.on_retire,
    Abort: retirement.on_abort,
    Ungate: gate.on_ungate,
    Leave: donation.on_leave,
    Retry: _on_retry,
    Met: _on_met,
}
"""What this node does by itself or at the operator's word."""

_REMOTE: dict[type, Callable[[State, Message, Any, Out], State]] = {
    Tell: _on_tell,
    Have: donation.on_have,
    Ask: donation.on_ask,
    SyncAsk: gate.on_sync_ask,
    SyncAnswer: gate.on_sync_answer,
    JoinAsk: lambda state, m, body, out: state,
    Propose: admission.on_propose,
    Hold: admission.on_hold,
    Admitted: lambda state, m, body, out: state,
    RetireAsk: retirement.on_retire_ask,
    Promise: retirement.on_promise,
    Nack: retirement.on_nack,
    Aborted: retirement.on_aborted,
    Hello: lambda state, m, body, out: state,
}
"""What it hears inside its universe."""
