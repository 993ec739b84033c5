"""Between the ownership core's words and the wire: bodies to values with their runs checked, values to bodies.

Also the digest by which neighbours see that they know the same. Pure; the runs behind registers are handed in. Called
by service.py alone.
"""

from __future__ import annotations

import hashlib

from weave_router import limits
from weave_router.errors import BadPacket

from . import wire
from .registers import Run, Runs, newest
from .values import Ask, Block, Body, FrozenMap, Have, Hello, Knowledge, SyncAnswer, SyncAsk, Tell


class Speech:
    """``runs``: this node's."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        self._hash: tuple[Knowledge | None, bytes] = (None, b"")

    def heard_untrusted(self, body: wire.Body) -> tuple[Body, dict[Block, Run]]:
        """The core's word, and the run behind each register in it. BadPacket for what does not belong here."""
        match body:
            case wire.Tell():
                knowledge, runs = self._read_untrusted(body.facts)
                return Tell(knowledge), runs
            case wire.SyncAnswer():
                knowledge, runs = self._read_untrusted(body.facts)
                return SyncAnswer(body.nonce, body.open, knowledge), runs
            case wire.Have():
                runs = newest(self._runs.read_untrusted(data) for data in body.runs)
                return Have(FrozenMap({block: run.register for block, run in runs.items()})), {}
            case wire.Ask():
                return Ask(), {}
            case wire.SyncAsk():
                return SyncAsk(body.nonce), {}
        raise BadPacket("ipam kind out of place")

    def _read_untrusted(self, facts: wire.Facts) -> tuple[Knowledge, dict[Block, Run]]:
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
