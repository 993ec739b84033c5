"""Becoming a member (R3), founding a universe, and one universe meeting another. Called by ``ownership.step`` only.

Must not know how candidates find the node they ask, nor whether the mesh trusts them: both are settled before.
"""

from __future__ import annotations

from . import arbiter
from .knowledge import EVERYBODY, Out, heard_of, knowledge_of, merge, send, voters
from .values import (
    Admitted,
    Found,
    FrozenMap,
    Gate,
    Hello,
    Hold,
    Join,
    JoinAsk,
    Knowledge,
    Message,
    NodeId,
    Propose,
    Refused,
    Register,
    State,
    Tell,
)


def on_found(state: State, event: Found, out: Out) -> State:
    """``new`` makes one member that owns all; ``seed=`` makes members of the slots and binds this node to its own."""
    if state.universe is not None or state.gate not in (Gate.CANDIDATE,):
        out.append(Refused("this node has a universe already"))
        return state
    if event.arbiter:
        return arbiter.found(state, event)
    registers = {
        b: r if r.owner != event.mine else Register(0, 1, state.me, state.me) for b, r in event.registers.items()
    }
    bound = frozenset() if event.mine is None else frozenset({event.mine})
    state = state._replace(
        universe=event.universe,
        gate=Gate.OPEN,
        registers=FrozenMap(registers),
        members=event.slots | {state.me},
        left=bound,
    )
    if bound:
        mine = {b: r for b, r in registers.items() if r.owner == state.me}
        claim = Knowledge(registers=FrozenMap(mine), members=frozenset({state.me}), left=bound)
        send(state, out, EVERYBODY, Tell(claim))
    return state


def on_join(state: State, event: Join, out: Out) -> State:
    if state.gate != Gate.CANDIDATE:
        out.append(Refused("this node is a member already"))
        return state
    state = state._replace(nonce=event.nonce)
    send(state, out, event.to, JoinAsk(event.nonce))
    return state


def on_join_ask(state: State, m: Message, body: JoinAsk, out: Out) -> State:
    """The admitting node holds the candidate itself and asks all others to; a majority admits (``admit``)."""
    who = m.sender
    if state.arbiter or state.gate != Gate.OPEN or state.leaving or who in state.promised | state.left:
        return state
    state = heard_of(state, who, m.incarnation)
    if who in voters(state):  # the word of admission was lost
        send(state, out, who, Admitted(body.nonce, knowledge_of(state)))
        return state
    holders = state.admissions[who][1] if who in state.admissions else frozenset({state.me})
    state = state._replace(
        proposed=state.proposed | {who},
        admissions=state.admissions.with_items({who: (body.nonce, holders)}),
    )
    propose(state, who, out)
    return admit(state, who, out)


def propose(state: State, who: NodeId, out: Out) -> None:
    if len(voters(state)) > 1:
        send(state, out, EVERYBODY, Propose(who, state.incarnations.get(who, 0)))


def on_propose(state: State, m: Message, body: Propose, out: Out) -> State:
    known = m.sender in voters(state) and m.sender not in state.promised
    if state.gate not in (Gate.OPEN, Gate.OWN) or not known or body.candidate in state.promised | state.left:
        return state
    state = heard_of(state, body.candidate, body.candidate_incarnation)
    state = state._replace(proposed=state.proposed | {body.candidate})
    send(state, out, m.sender, Hold(body.candidate))
    return state


def on_hold(state: State, m: Message, body: Hold, out: Out) -> State:
    if body.candidate not in state.admissions or m.sender not in voters(state):
        return state
    nonce, holders = state.admissions[body.candidate]
    holding = state.admissions.with_items({body.candidate: (nonce, holders | {m.sender})})
    return admit(state._replace(admissions=holding), body.candidate, out)


def admit(state: State, who: NodeId, out: Out) -> State:
    """R3: a member from the moment when a majority of the members known here holds it on disk."""
    nonce, holders = state.admissions[who]
    if state.gate != Gate.OPEN or who in state.promised:
        return state
    if 2 * len(holders & voters(state)) <= len(voters(state)):
        return state
    state = state._replace(members=state.members | {who}, admissions=state.admissions.without({who}))
    send(state, out, EVERYBODY, Tell(Knowledge(members=frozenset({who}))))
    send(state, out, who, Admitted(nonce, knowledge_of(state)))
    return state


def on_admitted(state: State, m: Message, body: Admitted, out: Out) -> State:
    state = state._replace(universe=m.universe, gate=Gate.OPEN)
    state = heard_of(state, m.sender, m.incarnation)
    return merge(state, body.knowledge, out)


def spare(state: State) -> bool:
    """Alone in its universe and no address in use: nothing is lost if it is given up."""
    return (
        state.universe is not None
        and state.members == {state.me}
        and not (state.used or state.cooling or state.proposed - state.members)
    )


def on_hello(state: State, m: Message, body: Hello, out: Out) -> State:
    """The spare universe gives itself up; of two spare ones that of the greater node id; two used ones stay apart."""
    if spare(state) and (not body.spare or m.sender < state.me):
        kept = State(me=state.me, incarnation=state.incarnation, boot_id=state.boot_id)
        return kept._replace(incarnations=FrozenMap({state.me: state.incarnation}))
    if not body.spare:
        out.append(Refused("that node is in another universe", frozenset({m.sender})))
    return state
