# ruff: noqa: E501
"""The ownership core with one line wrong: one mutant for each clause of R1 to R12, and the small world that finds it.

A mutant is a replacement in the source of one file of the core, loaded as modules of their own: the core itself has no
hooks for tests. Used by ``test_mutants.py`` and ``search.py``.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from weave_router.ipam import ownership

from .checker import Config

FILES = ("knowledge", "gate", "admission", "donation", "retirement", "ownership")
PACKAGE = "weave_router.ipam"


@dataclass(frozen=True)
class Mutant:
    clause: str
    file: str
    old: str
    new: str
    world: Config

    @property
    def name(self) -> str:
        return self.clause.replace(" ", "-").replace(",", "")


def load(mutant: Mutant) -> ModuleType:
    """The core with the mutant's line in it; ``values`` is shared, so that states compare."""
    folder = Path(ownership.__file__).parent
    kept = {name: sys.modules[f"{PACKAGE}.{name}"] for name in FILES}
    package = importlib.import_module(PACKAGE)
    try:
        for name in FILES:
            source = (folder / f"{name}.py").read_text()
            if name == mutant.file:
                assert source.count(mutant.old) == 1, f"{mutant.clause}: not exactly once in {name}.py"
                source = source.replace(mutant.old, mutant.new)
            module = ModuleType(f"{PACKAGE}.{name}")
            module.__package__ = PACKAGE
            sys.modules[module.__name__] = module
            setattr(package, name, module)
            exec(compile(source, f"<{mutant.name}: {name}>", "exec"), module.__dict__)
        return sys.modules[f"{PACKAGE}.ownership"]
    finally:
        for name, module in kept.items():
            sys.modules[f"{PACKAGE}.{name}"] = module
            setattr(package, name, module)


NO_HAVE = frozenset({"Have"})
WHOLE_ACK = frozenset({"i10_a_promise_is_whole"})


def _world(name: str, **more: object) -> Config:
    return Config(name, **{"muted": NO_HAVE, **more})  # type: ignore[arg-type]


GIFT = _world("2 nodes, 2 gifts", nodes=2, wants=2)
COLD = _world("2 nodes, a gift, a boot, blocks rest", nodes=2, wants=1, boots=1, cooling=True)
CRASH = _world("2 nodes, a gift, a restart", nodes=2, wants=1, restarts=1)
ROUND = _world("3 nodes, a gift, a retirement, a boot", wants=1, grants=1, rounds=1, boots=1)
ROUNDS = _world("3 nodes, 2 gifts, 2 retirements", wants=2, rounds=2)
ROUNDS_BOOT = _world("3 nodes, a gift, 2 retirements, a boot", wants=1, grants=1, rounds=2, boots=1)
NO_BOOT = _world("4 nodes, a gift, a retirement", nodes=4, wants=1, grants=1, rounds=1)
JOIN = _world("2 members and a joiner, a gift, a retirement", members=2, joins=1, wants=1, rounds=1)
JOIN_BOOT = _world(
    "2 members and a joiner, a gift, a retirement, a boot", members=2, joins=1, wants=1, rounds=1, boots=1
)
HALF = _world("3 nodes, a retirement, 2 boots", rounds=1, boots=2)
OLDER = _world("2 nodes, a gift, a restart with an older store", nodes=2, wants=1, restarts=1, older_store=True)
LEAVE = Config("3 nodes, 2 blocks, a gift, one leaves", owners=(0, 1), wants=1, leaves=1)
LEAVE_RETIRE = Config("3 nodes, one leaves, a retirement", wants=1, leaves=1, rounds=1, grants=3)
LEAVE_BOOT = Config("3 nodes, one leaves, a retirement, a boot", leaves=1, rounds=1, boots=1)
UNGATE = _world("3 nodes, a gift, a boot, the operator opens", wants=1, boots=1, ungates=1)
APART = _world("2 universes", nodes=2, apart=True, hellos=2, joins=1)

FOUR = _world("4 nodes, a gift, a retirement", nodes=4, wants=1, grants=1, rounds=1, without=WHOLE_ACK)
FIVE = _world("5 nodes, a gift, a retirement, one machine may fail", nodes=5, wants=1, grants=1, rounds=1,
              stay=frozenset({1, 2, 3, 4}), retirers=frozenset({1}))  # fmt: skip
PAIR = _world("4 nodes, a retirement of two, 2 boots", nodes=4, rounds=1, boots=2, retirers=frozenset({1}),
              stay=frozenset({1, 2}))  # fmt: skip
TWO_OPERATORS = _world("4 nodes, 3 retirements by two operators", nodes=4, rounds=3, aborts=1, idle=frozenset({0, 3}),
                       stay=frozenset({1, 2, 3}))  # fmt: skip
LATE_JOIN = _world("3 members and a joiner, a gift, a retirement, acks may be partial", nodes=4, members=3, joins=1, wants=1,
                   rounds=1, stay=frozenset({1, 2, 3}), retirers=frozenset({2}), without=WHOLE_ACK)  # fmt: skip
NEIGHBOURS = _world("2 nodes of one universe, one of another", members=2, apart=True, wants=1)
LATER_GEN = _world("3 nodes, a retirement, a history", rounds=1, first_gen=3)
HALF_ACK = _world(
    "2 members and a joiner, acks may be partial", members=2, joins=1, wants=1, rounds=1, without=WHOLE_ACK
)
PARTIAL = _world(
    "3 nodes, 2 retirements, a boot, acks may be partial", rounds=2, boots=1, wants=1, grants=1, without=WHOLE_ACK
)

ACK = "Promise(body.round, knowledge_of(state))"

MUTANTS = tuple(
    Mutant(*row)
    for row in (
        ("R1 only the owner gives", "donation", "if r.owner == state.me)", "if r.owner)", GIFT),
        ("R1 nothing in use is given", "donation", "if b not in state.used and", "if", GIFT),
        ("R1 nothing resting is given", "donation", "and b not in state.cooling]", "]", COLD),
        ("R1 release starts the rest", "donation", "cooling=state.cooling | {event.block})", "cooling=state.cooling)", COLD),
        ("R1 rest survives a boot", "gate", "cooling=state.cooling | state.used)", "cooling=frozenset())", COLD),
        ("R2 persist before send", "ownership", "return (Persist(), *out)", "return (*out, Persist())", GIFT),
        ("R2 persist at all", "ownership", "return (Persist(), *out)", "return tuple(out)", CRASH),
        ("R2 persist before the reply", "ownership", "return (Persist(), *out)",
         "return (*[e for e in out if 'Granted' in repr(e)], Persist(), *out)", CRASH),
        ("R3 a majority holds the joiner", "admission", "if 2 * len(holders & voters(state)) <=", "if 9 <", JOIN),
        ("R3 held on disk", "admission", "proposed=state.proposed | {body.candidate})", "proposed=state.proposed)", JOIN),
        ("R3 nothing given before", "donation", "receivers = voters(state)", "receivers = voters(state) | state.proposed", JOIN),
        ("R4 every member", "retirement", "if missing or", "if", ROUND),
        ("R4 all, not a majority", "retirement", "if missing or", "if 2 * len(current.acks) <= len(electorate(state)) or", FIVE),
        ("R4 members only ackers know", "retirement", "merge(state, body.knowledge, out)",
         "merge(state, body.knowledge, out)._replace(members=state.members, proposed=state.proposed)", LATE_JOIN),
        ("R4 the promise is durable", "retirement", "    state = _promise(state, body.round, victims, out)\n    send(", "    send(", ROUND),
        ("R5 registers", "retirement", ACK, "Promise(body.round, knowledge_of(state._replace(registers=FrozenMap())))", FOUR),
        ("R5 members", "retirement", ACK,
         "Promise(body.round, knowledge_of(state._replace(members=frozenset(), proposed=frozenset())))", LATE_JOIN),
        ("R5 incarnations", "retirement", ACK, "Promise(body.round, knowledge_of(state._replace(incarnations=FrozenMap())))", ROUND),
        ("R5 retirements", "retirement", ACK, "Promise(body.round, knowledge_of(state._replace(retired=frozenset())))", TWO_OPERATORS),
        ("R6 one open round", "retirement", "if lock is None or", "if True or", ROUNDS_BOOT),
        ("R6 the coordinator too", "retirement", "    if holder is not None:\n        return Refused", "    if False:\n        return Refused", TWO_OPERATORS),
        ("R6 superseded with its coordinator", "retirement", "lock.coordinator in victims:", "lock.coordinator != state.me:", TWO_OPERATORS),
        ("R6 an old good-bye frees no new round", "retirement", "and lock.number <= closed.number]", "]", TWO_OPERATORS),
        ("R7 no value by the victim", "knowledge", "or value.issuer in state.promised:", "or False:", ROUND),
        ("R7 no gate for the victim", "gate", "if m.sender in state.promised or", "if", ROUND),
        ("R7 no gift to the victim", "donation", "voters(state) - state.promised\n    if", "voters(state)\n    if",
         _world("3 nodes, a gift asked for by the victim", owners=(1,), wants=1, rounds=1, retirers=frozenset({2}),
                forget=False)),
        ("R7 NACK if seen since", "retirement", "if state.incarnations.get(v, 0) > named or v", "if v", ROUND),
        ("R8 at most half", "retirement", "return 2 * len(victims) <= len(voters(state))", "return True", HALF),
        ("R9 gen exceeds all merged", "retirement", "gen = max(1 + max((r.gen for r in view.values()), default=0), len(gone))", "gen = len(gone)", LATER_GEN),
        ("R9 gen counts the retired", "retirement", "default=0), len(gone))", "default=0), 0)", PAIR),
        ("R9 twice is once", "retirement", "return frozenset(victims) - state.retired", "return frozenset(victims)",
         _world("3 nodes, 2 retirements, a good-bye doubled", rounds=2, aborts=1)),
        ("R10 every message", "ownership", "state = heard_of(state, m.sender, m.incarnation)", "pass", ROUND),
        ("R10 a question too", "ownership", "state = heard_of(state, m.sender, m.incarnation)",
         "state = state if isinstance(m.body, SyncAsk) else heard_of(state, m.sender, m.incarnation)", ROUND),
        ("R10 the highest", "knowledge", "if state.incarnations.get(node, -1) >= incarnation:", "if False:", ROUND),
        ("R10 the nonce", "ownership", "or m.body.nonce != state.nonce\n    if isinstance(m.body, Admitted)",
         "\n    if isinstance(m.body, Admitted)", _world("3 nodes, 2 boots", rounds=1, boots=2, forget=False)),
        ("R11 gated after a boot", "gate", "else Gate.CLOSED", "else Gate.OPEN", ROUND),
        ("R11 an older store", "gate", "    if store_older:\n        return Gate.RESTORED\n", "", OLDER),
        ("R11 gated stays gated", "gate", "        return state.gate\n    return Gate.OPEN", "        return Gate.OPEN\n    return Gate.OPEN",
         _world("3 nodes, a retirement, a boot, a restart", rounds=1, boots=1, restarts=1)),
        ("R11 only the open open", "gate", "if body.open:", "if True:", PAIR),
        ("R11 a majority meets", "gate", "if 2 * len(present) > len(electorate(state)):", "if present:", PAIR),
        ("R11 alone is alone", "gate", "if electorate(state) == {state.me} else", "if len(electorate(state)) < 3 else",
         _world("2 nodes, a retirement, a boot", nodes=2, rounds=1, boots=1)),
        ("R11 gated allocates nothing", "donation", "elif not issuing(state):", "elif False:", ROUND),
        ("R11 ungate lets nobody in", "gate", "opener = state.gate == Gate.OPEN", "opener = state.gate != Gate.CLOSED", _world("3 nodes, 2 boots, the operator opens", boots=2, ungates=1)),
        ("R11 ungate gives nothing", "donation", "if state.gate != Gate.OPEN or m.sender", "if not issuing(state) or m.sender", UNGATE),
        ("R12 every block", "donation", "mine = owned(state)", "mine = owned(state)[1:]", LEAVE),
        ("R12 wait for the receivers", "donation", "        if state.owed:", "        if False:", LEAVE),
        ("R12 the last word tells all", "donation", "Tell(knowledge_of(state))", "Tell(Knowledge(left=state.left))",
         Config("3 nodes, a gift to one that leaves", owners=(1,), wants=1, leaves=1, grants=3)),
        ("R12 the last word tells who booted", "donation", "Tell(knowledge_of(state))",
         "Tell(knowledge_of(state._replace(incarnations=FrozenMap())))", LEAVE_BOOT),
        ("R12 word before wipe", "donation", "    out.append(Wipe())\n    return state", "    out.insert(0, Wipe())\n    return state", LEAVE),
        ("R12 not with pods", "donation", "or state.used or state.cooling:\n        out.append(Refused(\"leaving", "or False:\n        out.append(Refused(\"leaving", LEAVE),
        ("universes do not merge", "ownership", "if m.universe != state.universe:", "if m.universe is None:", NEIGHBOURS),
        ("a used universe stays", "admission", "and not (state.used or", "and not (", APART),
    )
)  # fmt: skip
