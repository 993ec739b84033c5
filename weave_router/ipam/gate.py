"""The boot gate (R11): no new allocation before somebody who would know has said that this node was not retired.

Answers of open members open it, a majority of gated ones does, being alone does, and so does the operator. Must not
know time; the driver repeats the question (``Retry``). Called by ``ownership.step`` only.
"""

from __future__ import annotations

from .knowledge import EVERYBODY, Out, electorate, knowledge_of, merge, send, voters
from .values import (
    Boot,
    Gate,
    Knowledge,
    Message,
    Refused,
    State,
    SyncAnswer,
    SyncAsk,
    Tell,
    Ungate,
)


def boot(state: State, event: Boot, out: Out) -> State:
    """``state`` is what the store holds."""
    same_boot = event.boot_id == state.boot_id
    state = state._replace(
        incarnation=event.incarnation,
        incarnations=state.incarnations.with_items({state.me: event.incarnation}),
        boot_id=event.boot_id,
        nonce=event.nonce,
        met=frozenset(),
    )
    if same_boot:  # what lives although the store does not know it is entered as used, if it is ours
        mine = frozenset(b for b in event.live if b in state.registers and state.registers[b].owner == state.me)
        state = state._replace(used=state.used | mine)
    else:  # the pods died with the machine; cooling applies, and its time begins again
        state = state._replace(used=frozenset(), cooling=state.cooling | state.used)
    state = state._replace(gate=_gate_after_boot(state, same_boot, event.store_older))
    ask(state, out)
    return state


def _gate_after_boot(state: State, same_boot: bool, store_older: bool) -> Gate:
    if state.gate in (Gate.CANDIDATE, Gate.RETIRED, Gate.LEFT, Gate.RESTORED):
        return state.gate
    if state.arbiter:  # what the store missed, the arbiter knows
        return Gate.CLOSED if store_older or not same_boot else state.gate
    if store_older:
        return Gate.RESTORED
    if same_boot:
        return state.gate
    return Gate.OPEN if electorate(state) == {state.me} else Gate.CLOSED


def ask(state: State, out: Out) -> None:
    if state.gate == Gate.CLOSED:
        send(state, out, EVERYBODY, SyncAsk(state.nonce))


def on_sync_ask(state: State, m: Message, body: SyncAsk, out: Out) -> State:
    """The asker's incarnation is on disk before the answer goes (R10): a round that names an older one gets a NACK."""
    if m.sender in state.promised or not (
        state.arbiter or m.sender in electorate(state)
    ):
        return state
    if state.gate in (Gate.OPEN, Gate.OWN, Gate.CLOSED):
        opener = state.gate == Gate.OPEN
        send(state, out, m.sender, SyncAnswer(body.nonce, opener, knowledge_of(state)))
    return state


def on_sync_answer(state: State, m: Message, body: SyncAnswer, out: Out) -> State:
    state = merge(state, body.knowledge, out)
    if state.gate != Gate.CLOSED or m.sender in state.promised:
        return state
    if body.open:
        return state._replace(gate=Gate.OPEN)
    state = state._replace(met=state.met | {m.sender})
    present = (state.met | {state.me}) & voters(state) - state.promised
    if 2 * len(present) > len(electorate(state)):
        return state._replace(gate=Gate.OPEN)
    return state


def on_ungate(state: State, event: Ungate, out: Out) -> State:
    if state.gate not in (Gate.CLOSED, Gate.RESTORED):
        out.append(Refused("the gate is not closed"))
        return state
    return state._replace(gate=Gate.OWN)


def tell_retired(state: State, m: Message, out: Out) -> None:
    """A returning node hears first of all that it is one no more."""
    send(state, out, m.sender, Tell(Knowledge(retired=frozenset({m.sender}))))
