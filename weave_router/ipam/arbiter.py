"""Ownership by an outside arbiter: in Kubernetes the API object says whose a block is, and rules R3 to R9 do not run.

The arbiter's word becomes a register that this node issues for itself, of the generation that the arbiter counts.
Registers travel over the mesh as ever, the newest wins, and forwarding never asks the arbiter. Nobody gives blocks
away, so a register is taken only from its owner. ``State.contested`` are the blocks that are not used until the arbiter
has spoken. Called by ``ownership.step`` and knowledge.py; knows no API.
"""

from __future__ import annotations

from .values import Block, Effect, Evict, Found, FrozenMap, Gate, Grant, Refused, Register, State, Withdraw

Out = list[Effect]


def found(state: State, event: Found) -> State:
    """Nothing is owned yet, and there are no members."""
    return state._replace(universe=event.universe, gate=Gate.OPEN, arbiter=True)


def on_grant(state: State, event: Grant, out: Out) -> State:
    """These blocks are ours. Where another owner's register is as new, the arbiter has to count on first. ``read``: it
    said all there is to say about this node, so a closed gate opens."""
    fresh: dict[Block, Register] = {}
    agreed: set[Block] = set()
    for block, gen in event.gens.items():
        held = state.registers.get(block)
        if held is None or held.gen < gen:
            fresh[block] = Register(gen, 0, state.me, state.me)
        elif held.owner != state.me:
            out.append(Refused("a register as new names another owner", frozenset({held.owner})))
            continue
        agreed.add(block)
    gate = Gate.OPEN if event.read and state.gate == Gate.CLOSED else state.gate
    return state._replace(registers=state.registers.with_items(fresh), contested=state.contested - agreed, gate=gate)


def on_withdraw(state: State, event: Withdraw, out: Out) -> State:
    """They are not ours: who lives in them has to go. The register stays until that of the next owner arrives."""
    gone = event.blocks
    out.append(Evict(gone))
    return state._replace(used=state.used - gone, cooling=state.cooling - gone, contested=state.contested | gone)


def merge_registers(state: State, new: FrozenMap[Block, Register]) -> State:
    """Newest wins. Two owners of one generation: each stops using the block, others keep what they heard first. What
    is said about this node's own blocks it knows better."""
    changed: dict[Block, Register] = {}
    disputed: set[Block] = set()
    for block, value in new.items():
        held = state.registers.get(block)
        if value.issuer != value.owner or value.owner == state.me:
            continue
        if held is None or value.epoch > held.epoch:
            changed[block] = value
            if held is not None and held.owner == state.me:
                disputed.add(block)
        elif value.epoch == held.epoch and held.owner == state.me:
            disputed.add(block)
    return state._replace(registers=state.registers.with_items(changed), contested=state.contested | disputed)
