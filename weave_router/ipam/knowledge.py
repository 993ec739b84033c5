"""What a node knows about everybody and how it learns: electorate, merge, re-stamping. Pure functions on ``State``.

Must not know rounds or gates beyond their fields. Called by the other files of the ownership core only.
"""

from __future__ import annotations

from . import arbiter
from .values import (
    Block,
    Body,
    Effect,
    Evict,
    FrozenMap,
    Gate,
    Have,
    Knowledge,
    Message,
    NodeId,
    Register,
    Send,
    State,
    Tell,
)

Out = list[Effect]
EVERYBODY = None


def voters(state: State) -> frozenset[NodeId]:
    """Admitted members that have neither left nor been retired."""
    return state.members - state.retired - state.left


def electorate(state: State) -> frozenset[NodeId]:
    """Voters and those whose admission this node holds on disk: they may be members already."""
    return (state.members | state.proposed) - state.retired - state.left


def issuing(state: State) -> bool:
    """May this node write registers? Behind a closed gate it may be retired, a restored store may repeat itself."""
    return state.gate in (Gate.OPEN, Gate.OWN)


def send(state: State, out: Out, to: NodeId | None, body: Body) -> None:
    out.append(Send(Message(state.me, state.incarnation, state.universe, to, body)))


def knowledge_of(state: State) -> Knowledge:
    """R5: registers, members, incarnations and retirements, whole."""
    return Knowledge(
        registers=state.registers,
        members=state.members,
        proposed=state.proposed,
        incarnations=state.incarnations,
        retired=state.retired,
        promised=state.promised,
        left=state.left,
    )


def heard_of(state: State, node: NodeId, incarnation: int) -> State:
    """Keep the highest incarnation of an identity (R10)."""
    if state.arbiter:
        return state
    if state.incarnations.get(node, -1) >= incarnation:
        return state
    return state._replace(incarnations=state.incarnations.with_items({node: incarnation}))


def merge(state: State, new: Knowledge, out: Out) -> State:
    """Learn. Commutative, associative, idempotent and monotone but for values whose issuer is promised away (R7)."""
    if state.arbiter:
        return arbiter.merge_registers(state, new.registers)
    state = state._replace(
        members=state.members | new.members,
        proposed=state.proposed | new.proposed,
        retired=state.retired | new.retired,
        promised=state.promised | new.promised | new.retired,
        left=state.left | new.left,
    )
    higher = {n: i for n, i in new.incarnations.items() if i > state.incarnations.get(n, -1)}
    state = state._replace(incarnations=state.incarnations.with_items(higher))
    state = _merge_registers(state, new.registers, out)
    if state.me in state.retired:
        return retired(state, out)
    if state.incarnations.get(state.me, -1) > state.incarnation:
        return state._replace(gate=Gate.RESTORED)  # somebody saw a later life of this node than its store remembers
    return state


def _merge_registers(state: State, new: FrozenMap[Block, Register], out: Out) -> State:
    changed: dict[Block, Register] = {}
    contested: set[Block] = set()
    for block, value in new.items():
        mine = state.registers.get(block)
        if value == mine or value.issuer in state.promised:
            continue
        if mine is None or value[:2] > mine[:2]:
            changed[block] = value
        elif value[:2] == mine[:2] and value.owner != mine.owner and state.me in (value.owner, mine.owner):
            contested.add(block)
    lost = {b for b in changed if b in state.registers and state.registers[b].owner == state.me}
    state = state._replace(registers=state.registers.with_items(changed), contested=state.contested | contested)
    _confirm(state, new, out)
    if lost and state.me not in state.retired:
        # Only its owner gives a block away and this owner does not remember it: the store is older than that.
        out.append(Evict(frozenset(lost)))
        state = state._replace(gate=Gate.RESTORED)
    return state


def _confirm(state: State, new: FrozenMap[Block, Register], out: Out) -> None:
    """Tell givers what is on disk here (the Persist of this step stands before every Send)."""
    givers: dict[NodeId, dict[Block, Register]] = {}
    for block, value in new.items():
        if value.owner == state.me != value.issuer and state.registers.get(block) == value:
            givers.setdefault(value.issuer, {})[block] = value
    for giver, values in sorted(givers.items()):
        send(state, out, giver, Have(FrozenMap(values)))


def retired(state: State, out: Out) -> State:
    """This identity is over: it owns nothing, promises nothing, and its pods must go."""
    if state.gate == Gate.RETIRED:
        return state
    mine = frozenset(state.used | {b for b, r in state.registers.items() if r.owner == state.me})
    out.append(Evict(mine))
    return State(
        me=state.me,
        incarnation=state.incarnation,
        boot_id=state.boot_id,
        universe=state.universe,
        gate=Gate.RETIRED,
        retired=state.retired,
        promised=state.promised,
    )


def restamp(state: State, out: Out) -> State:
    """Issue anew what this node owns by the word of somebody promised away (others would refuse that word), and take
    back what it gave to a node that left without having taken it: a leaver's last word carries all it issued."""
    if not issuing(state):
        return state
    again: dict[Block, Register] = {}
    for block, r in state.registers.items():
        orphan = r.owner == state.me != r.issuer and r.issuer in state.promised
        returned = r.owner in state.left and r.issuer == state.me
        if orphan or returned:
            again[block] = Register(r.gen, r.seq + 1, state.me, state.me)
    if not again:
        return state
    state = state._replace(registers=state.registers.with_items(again), owed=state.owed.without(again))
    send(state, out, EVERYBODY, Tell(Knowledge(registers=FrozenMap(again))))
    return state
