"""Between the ownership state and the store's rows: what is on disk, and which rows a step changed.

Registers and members are rows, so that a step writes what it changed; all else is the head, one value. Which blocks
are used or rest is not stored a second time: it follows from the leases. Pure. Called by service.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

import msgspec

from weave_router.store_ipam import IpamRows, LeaseRow, MemberRow, RegisterRow

from .registers import Runs
from .values import Block, FrozenMap, Gate, NodeId, Register, Round, RoundId, State
from .wire import LEFT, MEMBER, PROMISED, PROPOSED, RETIRED

FORMAT: Final = 1
WireRegister = tuple[int, int, int, bytes, bytes]


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """Maps are lists of pairs. New fields come with defaults: an older program leaves them out when it writes."""

    format: int = FORMAT
    range: str
    names: tuple[str, ...] = ()
    universe: bytes | None
    gate: int
    boot_id: str
    incarnation: int
    rounds_started: int = 0
    leaving: bool = False
    arbiter: bool = False
    contested: tuple[int, ...] = ()
    owed: tuple[WireRegister, ...] = ()
    locks: tuple[tuple[bytes, bytes, int], ...] = ()
    round: tuple[tuple[bytes, int], tuple[tuple[bytes, int], ...], tuple[bytes, ...], tuple[WireRegister, ...]] | None
    admissions: tuple[tuple[bytes, int, tuple[bytes, ...]], ...] = ()
    lost_majority: bool = False  # of the round
    retired_names: tuple[tuple[bytes, str], ...] = ()


_decoder = msgspec.msgpack.Decoder(Head)


def decode_head(data: bytes) -> Head:
    """Raises ValueError for what no version of this program wrote."""
    head = _decoder.decode(data)
    if head.format != FORMAT:
        raise ValueError(f"format {head.format}")
    return head


def encode_head(
    state: State, range_text: str, names: tuple[str, ...], retired_names: Mapping[NodeId, str] = MappingProxyType({})
) -> bytes:
    """``retired_names``: how those were called whom nobody announces any more."""
    r = state.round
    return msgspec.msgpack.encode(Head(
        range=range_text, names=names, universe=state.universe, gate=int(state.gate), boot_id=str(state.boot_id),
        incarnation=state.incarnation, rounds_started=state.rounds_started, leaving=state.leaving,
        arbiter=state.arbiter, contested=tuple(sorted(state.contested)), owed=_flat(state.owed),
        locks=tuple((victim, lock.coordinator, lock.number) for victim, lock in sorted(state.locks.items())),
        round=None if r is None else (
            (r.id.coordinator, r.id.number), tuple(sorted(r.victims.items())), tuple(sorted(r.acks)),
            _flat(r.reported)),
        admissions=tuple((who, nonce, tuple(sorted(holders)))
                         for who, (nonce, holders) in sorted(state.admissions.items())),
        lost_majority=r is not None and r.lost_majority, retired_names=tuple(sorted(retired_names.items())),
    ))  # fmt: skip


def state_of(me: NodeId, rows: IpamRows, used: Collection[Block], cooling: Collection[Block]) -> State:
    """What the store holds, before ``Boot``."""
    if rows.head is None:
        return State(me=me)
    head = decode_head(rows.head)
    registers = () if head.gate == Gate.RETIRED else rows.registers  # the rows of a life that is over are left there
    standing = {row.node: row.standing for row in rows.members}

    def having(bit: int) -> frozenset[NodeId]:
        return frozenset(node for node, bits in standing.items() if bits & bit)

    return State(
        me=me, incarnation=head.incarnation, boot_id=head.boot_id, universe=head.universe, gate=Gate(head.gate),
        registers=FrozenMap({row.block: Register(row.gen, row.seq, row.owner, row.issuer) for row in registers}),
        members=having(MEMBER), proposed=having(PROPOSED), retired=having(RETIRED), promised=having(PROMISED),
        left=having(LEFT),
        incarnations=FrozenMap({row.node: row.incarnation for row in rows.members if row.incarnation}),
        used=frozenset(used), cooling=frozenset(cooling), contested=frozenset(head.contested), owed=_unflat(head.owed),
        locks=FrozenMap({victim: RoundId(node, number) for victim, node, number in head.locks}),
        round=None if head.round is None else Round(
            RoundId(*head.round[0]), FrozenMap(dict(head.round[1])), frozenset(head.round[2]), _unflat(head.round[3]),
            head.lost_majority),
        rounds_started=head.rounds_started, leaving=head.leaving, arbiter=head.arbiter,
        admissions=FrozenMap({who: (nonce, frozenset(holders)) for who, nonce, holders in head.admissions}),
    )  # fmt: skip


def _flat(registers: FrozenMap[Block, Register]) -> tuple[WireRegister, ...]:
    return tuple((block, *register) for block, register in sorted(registers.items()))


def _unflat(rows: tuple[WireRegister, ...]) -> FrozenMap[Block, Register]:
    return FrozenMap({block: Register(gen, seq, owner, issuer) for block, gen, seq, owner, issuer in rows})


def changed_registers(before: State, after: State) -> dict[Block, Register]:
    if before.registers is after.registers:
        return {}
    return {block: r for block, r in after.registers.items() if before.registers.get(block) != r}


def changed_people(before: State, after: State) -> frozenset[NodeId]:
    changed: set[NodeId] = set()
    for field in ("members", "proposed", "retired", "promised", "left"):
        one, other = getattr(before, field), getattr(after, field)
        if one is not other:
            changed |= one ^ other
    if before.incarnations is not after.incarnations:
        old, new = before.incarnations, after.incarnations
        changed |= {node for node in old.keys() | new.keys() if old.get(node) != new.get(node)}
    return frozenset(changed)


def register_rows(state: State, blocks: Collection[Block], runs: Runs) -> tuple[RegisterRow, ...]:
    found = ((block, state.registers[block]) for block in sorted(blocks))
    return tuple(RegisterRow(block, *register, runs.proof_of(block, register)) for block, register in found)


def member_rows(state: State, nodes: Collection[NodeId]) -> tuple[MemberRow, ...]:
    return tuple(MemberRow(node, standing_of(state, node), state.incarnations.get(node, 0)) for node in sorted(nodes))


def standing_of(state: State, node: NodeId) -> int:
    sets = {MEMBER: state.members, PROPOSED: state.proposed, RETIRED: state.retired, PROMISED: state.promised,
            LEFT: state.left}  # fmt: skip
    return sum(bit for bit, nodes in sets.items() if node in nodes)


HEAD_FIELDS: Final = (
    "universe", "gate", "boot_id", "incarnation", "rounds_started", "leaving", "arbiter", "contested", "owed", "locks",
    "round", "admissions",
)  # fmt: skip


def head_changed(before: State, after: State) -> bool:
    return any(_differs(getattr(before, field), getattr(after, field)) for field in HEAD_FIELDS)


def _differs(one: Any, other: Any) -> bool:
    return one is not other and one != other


def merged(parts: Iterable[IpamRows]) -> IpamRows:
    """Of one row the last word counts."""
    head: bytes | None = None
    registers: dict[Block, RegisterRow] = {}
    members: dict[NodeId, MemberRow] = {}
    leases: dict[int, LeaseRow] = {}
    freed: set[int] = set()
    for part in parts:
        head = part.head if part.head is not None else head
        registers |= {row.block: row for row in part.registers}
        members |= {row.node: row for row in part.members}
        for number in part.freed:
            leases.pop(number, None)
            freed.add(number)
        for row in part.leases:
            freed.discard(row.number)
            leases[row.number] = row
    return IpamRows(head, tuple(registers.values()), tuple(members.values()), tuple(leases.values()), tuple(freed))
