"""Blocks in use, blocks given away, and leaving (R1, R12). Called by ``ownership.step`` only.

Must not know single addresses: the allocator says which blocks are used, resting or idle. A node's home block is in
use by its bridge address, so that it is never given away before the bridge goes.
"""

from __future__ import annotations

from weave_router.limits import GIFT_BLOCKS_MAX

from .knowledge import EVERYBODY, Out, issuing, knowledge_of, send, voters
from .values import (
    Ask,
    Block,
    Cooled,
    FrozenMap,
    Gate,
    Granted,
    Have,
    Knowledge,
    Leave,
    Message,
    NodeId,
    Occupy,
    Refused,
    Register,
    State,
    Tell,
    Vacate,
    Waiting,
    Want,
    Wipe,
)


def owned(state: State) -> list[Block]:
    return sorted(b for b, r in state.registers.items() if r.owner == state.me)


def idle(state: State) -> list[Block]:
    """Blocks that may be given away (R1): own, and neither an address in use nor one that rests."""
    return [b for b in owned(state) if b not in state.used and b not in state.cooling]


def on_occupy(state: State, event: Occupy, out: Out) -> State:
    register = state.registers.get(event.block)
    if register is None or register.owner != state.me:
        out.append(Refused("this node does not own the block"))
    elif not issuing(state):
        out.append(Refused("new addresses wait for the gate"))
    elif state.leaving or event.block in state.contested:
        out.append(Refused("no new addresses from this block"))
    else:
        out.append(Granted(event.block))
        return state._replace(used=state.used | {event.block}, cooling=state.cooling - {event.block})
    return state


def on_vacate(state: State, event: Vacate, out: Out) -> State:
    if event.block not in state.used:
        return state
    return state._replace(used=state.used - {event.block}, cooling=state.cooling | {event.block})


def on_cooled(state: State, event: Cooled, out: Out) -> State:
    return state._replace(cooling=state.cooling - {event.block})


def on_want(state: State, event: Want, out: Out) -> State:
    if issuing(state):
        send(state, out, event.donor, Ask())
    return state


def on_ask(state: State, m: Message, body: Ask, out: Out) -> State:
    """Half of what is idle, to an admitted member that nobody was promised to refuse (R3, R7)."""
    receivers = voters(state) - state.promised
    if state.gate != Gate.OPEN or m.sender not in receivers:
        return state
    spare = idle(state)
    return give(state, m.sender, spare[: min(GIFT_BLOCKS_MAX, (len(spare) + 1) // 2)], out)


def give(state: State, receiver: NodeId, blocks: list[Block], out: Out) -> State:
    if not blocks:
        return state
    gift: dict[Block, Register] = {}
    for block in blocks:
        old = state.registers[block]
        gift[block] = Register(old.gen, old.seq + 1, receiver, state.me)
    state = state._replace(registers=state.registers.with_items(gift), owed=state.owed.with_items(gift))
    send(state, out, EVERYBODY, Tell(Knowledge(registers=FrozenMap(gift))))
    return state


def on_have(state: State, m: Message, body: Have, out: Out) -> State:
    done = [b for b, r in body.registers.items() if state.owed.get(b) == r and r.owner == m.sender]
    return state._replace(owed=state.owed.without(done))


def on_leave(state: State, event: Leave, out: Out) -> State:
    if state.gate != Gate.OPEN or state.round is not None or state.used or state.cooling:
        out.append(Refused("leaving needs an open gate, no open round and no address in use or resting"))
        return state
    return state._replace(leaving=True)


def continue_leaving(state: State, out: Out) -> State:
    """Give everything away, wait for every "on disk", say so and be gone. Runs after each event while leaving."""
    if not state.leaving or state.gate != Gate.OPEN:
        return state
    heirs = sorted(voters(state) - state.promised - {state.me})
    if heirs:
        mine = owned(state)
        for i, heir in enumerate(heirs):
            state = give(state, heir, mine[i :: len(heirs)], out)
        if state.owed:
            out.append(Waiting(frozenset(r.owner for r in state.owed.values())))
            return state
    return say_good_bye(state._replace(gate=Gate.LEFT, left=state.left | {state.me}), out)


def say_good_bye(state: State, out: Out) -> State:
    """The last word is all that this node knows: what it gave, whom it saw boot, what it promised."""
    send(state, out, EVERYBODY, Tell(knowledge_of(state)))
    out.append(Wipe())
    return state
