"""Between the ownership core's words and the wire: bodies to values with their runs checked, values to bodies.

Also the digest by which neighbours see that they know the same. Pure; the runs behind registers are handed in. Called
by service.py alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from weave_router import limits
from weave_router.errors import BadPacket

from . import letters, values, wire
from .registers import Run, Runs, newest
from .values import (
    NO_REGISTERS,
    Ask,
    Block,
    Body,
    FrozenMap,
    Have,
    Hello,
    Knowledge,
    Register,
    RoundId,
    State,
    SyncAnswer,
    SyncAsk,
    Tell,
)


class Speech:
    """``runs``: this node's."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        self._hash: tuple[Knowledge | None, bytes] = (None, b"")

    def heard_untrusted(self, body: wire.Body) -> tuple[Body, dict[Block, Run]]:
        """The core's word, and the run behind each register in it. BadPacket for what does not belong here."""
        match body:
            case wire.Tell():
                knowledge, runs = self.read_untrusted(body.facts)
                return Tell(knowledge), runs
            case wire.SyncAnswer():
                knowledge, runs = self.read_untrusted(body.facts)
                return SyncAnswer(body.nonce, body.open, knowledge), runs
            case wire.Have():
                runs = newest(self._runs.read_untrusted(data) for data in body.runs)
                return Have(FrozenMap({block: run.register for block, run in runs.items()})), {}
            case wire.Ask():
                return Ask(), {}
            case wire.SyncAsk():
                return SyncAsk(body.nonce), {}
        raise BadPacket("ipam kind out of place")

    def read_untrusted(self, facts: wire.Facts) -> tuple[Knowledge, dict[Block, Run]]:
        runs = newest(self._runs.read_untrusted(data) for data in facts.runs)
        people = wire.knowledge_of_people(facts.people)
        registers = FrozenMap({block: run.register for block, run in runs.items()})
        return Knowledge(registers, people.members, people.proposed, people.incarnations, people.retired,
                         people.promised, people.left), runs

    def said(self, body: Body) -> list[wire.Body]:
        """In order on one link. A kind that is not in service yet is not sent."""
        match body:
            case Tell():
                return [wire.Tell(facts) for facts in self.facts(body.knowledge)]
            case SyncAnswer():
                *before, last = self.facts(body.knowledge)
                return [*(wire.Tell(facts) for facts in before), wire.SyncAnswer(body.nonce, body.open, last)]
            case Have():
                runs = self._runs.proofs_of(body.registers)
                size = limits.IPAM_FRAME_RUNS_MAX
                return [wire.Have(tuple(runs[at : at + size])) for at in range(0, len(runs), size)]
            case Ask():
                return [wire.Ask()]
            case SyncAsk():
                return [wire.SyncAsk(body.nonce)]
            case Hello():
                return [wire.Hello(body.spare)]
        return []

    def facts(self, knowledge: Knowledge) -> list[wire.Facts]:
        return wire.facts_in_pieces(self._runs.proofs_of(knowledge.registers), wire.people_of(knowledge))

    # -- letters -------------------------------------------------------------------------------------------------------

    def letter(self, body: Body, state: State, asked: tuple[int, ...]) -> list[letters.Body]:
        """In parts. ``asked``: the sums of who asked. Of a promise that is too long for a letter there is none:
        neighbours tell each other first."""
        match body:
            case values.RetireAsk():
                victims = tuple(letters.Victim(node, named) for node, named in sorted(body.victims.items()))
                acks = frozenset() if state.round is None else state.round.acks
                heard = tuple(sorted(acks))[: limits.IPAM_FRAME_PEOPLE_MAX]
                sums = sums_of(state.registers, self._runs.blocks)
                return [letters.RetireAsk(letters.Round(*body.round), victims, heard, sums)]
            case values.Promise():
                told = differing(body.knowledge.registers, self._runs.blocks, asked)
                pieces = wire.facts_in_pieces(self._runs.proofs_of(told), wire.people_of(body.knowledge))
                fit = len(pieces) <= limits.IPAM_LETTER_PARTS_MAX
                return [letters.Promise(letters.Round(*body.round), facts) for facts in pieces] if fit else []
            case values.Nack():
                holder = None if body.holder is None else letters.Round(*body.holder)
                return [letters.Nack(letters.Round(*body.round), holder, body.returned)]
            case values.Aborted():
                return [letters.Aborted(letters.Round(*body.round))]
        raise TypeError(f"{type(body).__name__} goes by no letter")

    @staticmethod
    def heard_letter(body: letters.RetireAsk | letters.Nack | letters.Aborted) -> Body:
        about = RoundId(body.round.coordinator, body.round.number)
        match body:
            case letters.RetireAsk():
                return values.RetireAsk(about, FrozenMap({each.node: each.incarnation for each in body.victims}))
            case letters.Nack():
                holder = None if body.holder is None else RoundId(body.holder.coordinator, body.holder.number)
                return values.Nack(about, holder, body.returned)
        return values.Aborted(about)

    def hash_of(self, known: Knowledge) -> bytes:
        """Equal hashes mean that there is nothing to tell."""
        if self._hash[0] is None or not _same(self._hash[0], known):
            digest = hashlib.sha256()
            for block, register in sorted(known.registers.items()):
                digest.update(b"%d %d %d %b %b" % (block, register.gen, register.seq, register.owner, register.issuer))
            for person in wire.people_of(known):
                digest.update(b"%b %d %d" % (person.node, person.standing, person.incarnation))
            self._hash = (known, digest.digest()[:16])
        return self._hash[1]


def _same(one: Knowledge, other: Knowledge) -> bool:
    return all(getattr(one, name) == getattr(other, name) for name in Knowledge.__slots__)


# --- parts of the range -------------------------------------------------------------------------------------------


def sums_of(registers: Mapping[Block, Register], blocks: int) -> tuple[int, ...]:
    """One number of 63 bits for each IPAM_SUMS-th of the range's ``blocks``: equal where the registers are."""
    digests = [hashlib.blake2b(digest_size=8) for _ in range(min(limits.IPAM_SUMS, blocks))]
    for block, r in sorted(registers.items()):
        digests[_part_of(block, blocks)].update(b"%d %d %d %b %b" % (block, r.gen, r.seq, r.owner, r.issuer))
    return tuple(int.from_bytes(digest.digest(), "big") >> 1 for digest in digests)


def differing(registers: Mapping[Block, Register], blocks: int, asked: tuple[int, ...]) -> FrozenMap[Block, Register]:
    """What the asker does not know: registers only grow newer, so what was equal when it asked teaches nothing (R5)."""
    mine = sums_of(registers, blocks)
    if len(mine) != len(asked):
        return FrozenMap(registers)
    parts = {part for part, (one, other) in enumerate(zip(mine, asked, strict=True)) if one != other}
    return FrozenMap({b: r for b, r in registers.items() if _part_of(b, blocks) in parts}) if parts else NO_REGISTERS


def _part_of(block: Block, blocks: int) -> int:
    return block * min(limits.IPAM_SUMS, blocks) // blocks
