"""Exhaustive search over the ownership core at message level: every interleaving of a small cluster.

A cluster state is one entry per node (what the daemon believes, what its disk holds, what runs), the set of all
messages ever sent, and what is left of the budgets. Each transition touches one node: a message is delivered (messages
stay in the set, so late, doubled, reordered and lost ones are all there), a pod comes or goes, a machine loses power or
boots, the daemon restarts, the operator speaks. A step may die between any two of its effects.

Speed: nodes, messages and sets of messages are interned; what one entry can do with one set of messages is computed
once by the product's own ``step``. Knows the core through the module handed in, so mutants are searched the same way.
"""

from __future__ import annotations

import resource
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import combinations
from types import ModuleType
from typing import Any, NamedTuple

from weave_router.ipam import ownership, values
from weave_router.ipam.values import FrozenMap, Gate, Message, Register, State, durable

from . import invariants
from .invariants import GONE, KILLED, OFF, UP, Node

NAMES = (b"a", b"b", b"c", b"d", b"e")
BUDGETS = ("boots", "restarts", "rounds", "wants", "aborts", "ungates", "joins", "leaves", "hellos")


@dataclass(frozen=True)
class Config:
    """A small world. Budgets are for the whole cluster; ``grants`` bounds the gifts ever sent."""

    name: str
    nodes: int = 3
    members: int = 0  # the first so many share a universe; 0: all
    owners: tuple[int, ...] = (0,)  # of each block
    boots: int = 0
    restarts: int = 0
    rounds: int = 0
    wants: int = 0
    grants: int = 2
    aborts: int = 0
    ungates: int = 0
    joins: int = 0
    leaves: int = 0
    hellos: int = 0
    apart: bool = False  # every node founded its own universe
    cooling: bool = False  # a released block rests until the search says otherwise
    older_store: bool = False  # a restart may find the store of the beginning
    off: frozenset[int] = frozenset()  # machines that are off at the beginning
    stay: frozenset[int] = frozenset()  # machines that never lose power
    idle: frozenset[int] = frozenset()  # nodes that start no pods (symmetric cases left out)
    retirers: frozenset[int] | None = None  # who may run rmpeer
    muted: frozenset[str] = frozenset()  # kinds of message that are always lost
    old_messages: bool = True  # False: answers that nobody waits for any more are forgotten by the search


@dataclass
class Result:
    config: str
    states: int = 0
    depth: int = 0
    seconds: float = 0.0
    mebibytes: int = 0
    complete: bool = False
    violation: str | None = None
    trace: list[str] = field(default_factory=list)
    fired: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        end = self.violation or ("exhaustive, none" if self.complete else "stopped, none so far")
        lines = [
            f"{self.config}: {self.states:,} states, depth {self.depth}, {self.seconds:.1f} s, {self.mebibytes} MiB: {end}"
        ]
        lines += [f"  {n:>10,}  {kind}" for kind, n in sorted(self.fired.items())]
        lines += [f"  {i + 1:>3}. {step}" for i, step in enumerate(self.trace)]
        return "\n".join(lines)


class Move(NamedTuple):
    kind: str
    detail: str
    budget: int  # index into BUDGETS, -1: free
    entry: int
    net: int
    wrong: str | None


class Violation(Exception):
    """Raised by a transition that is wrong in itself."""


class Search:
    def __init__(self, config: Config, core: ModuleType = ownership) -> None:
        self.config = config
        self.step: Callable[[State, Any], tuple[State, tuple[Any, ...]]] = core.step
        self.entries: list[Node] = []
        self.entry_ids: dict[Node, int] = {}
        self.messages: list[Message] = []
        self.message_ids: dict[Message, int] = {}
        self.nets: list[frozenset[int]] = []
        self.net_ids: dict[frozenset[int], int] = {}
        self.moves: dict[tuple[int, int], list[Move]] = {}
        self.local: dict[int, list[tuple[str, str, int, int, tuple[int, ...], str | None]]] = {}
        self.delivered: dict[tuple[int, int], list[tuple[str, str, int, int, tuple[int, ...], str | None]]] = {}
        self.told: dict[tuple[int, int, frozenset[bytes]], list[Move]] = {}
        self.single: dict[int, str | None] = {}
        self.pair: dict[tuple[int, int], str | None] = {}
        self.names = NAMES[: config.nodes]
        self.first_disk: dict[bytes, State] = {}

    # --- interning ---

    def entry(self, node: Node) -> int:
        found = self.entry_ids.get(node)
        if found is None:
            found = self.entry_ids[node] = len(self.entries)
            self.entries.append(node)
        return found

    def message(self, message: Message) -> int:
        found = self.message_ids.get(message)
        if found is None:
            found = self.message_ids[message] = len(self.messages)
            self.messages.append(message)
        return found

    def net(self, messages: frozenset[int]) -> int:
        found = self.net_ids.get(messages)
        if found is None:
            found = self.net_ids[messages] = len(self.nets)
            self.nets.append(messages)
        return found

    # --- the beginning ---

    def initial(self) -> tuple[tuple[int, ...], int, tuple[int, ...]]:
        config = self.config
        members = frozenset(self.names[: config.members or config.nodes])
        registers = FrozenMap({b: Register(0, 0, NAMES[o], NAMES[o]) for b, o in enumerate(config.owners)})
        entries = []
        for i, me in enumerate(self.names):
            state = State(me=me, boot_id=0, incarnations=FrozenMap({me: 0}))
            if config.apart:
                own = FrozenMap({b: Register(0, 0, me, me) for b in registers})
                state = state._replace(
                    universe=b"u" + me, gate=Gate.OPEN, registers=own, members=frozenset({me})
                )
            elif me in members:
                state = state._replace(
                    universe=b"u",
                    gate=Gate.OPEN,
                    registers=registers,
                    members=members,
                    incarnations=FrozenMap(dict.fromkeys(sorted(members), 0)),
                )
            self.first_disk[me] = durable(state)
            condition = OFF if i in config.off else UP
            entries.append(self.entry(Node(condition, state, durable(state))))
        return tuple(entries), self.net(frozenset()), tuple(getattr(config, b) for b in BUDGETS)

    # --- one step of one node ---

    def run(self, node: Node, event: Any) -> list[tuple[Node, tuple[int, ...], str | None]]:
        """Carry the effects out in order; a crash between two of them is one more outcome."""
        before = node.disk if isinstance(event, values.Boot) else node.memory
        after, effects = self.step(before, event)
        disk, pods, condition, wrong = node.disk, node.pods, UP, None
        sent: list[int] = []
        outcomes: list[tuple[Node, tuple[int, ...], str | None]] = []
        for effect in effects:
            match effect:
                case values.Persist():
                    if sent or pods != node.pods:  # something was seen outside before this: the daemon may die here
                        outcomes.append((Node(KILLED, disk, disk, pods, node.resting), tuple(sent), wrong))
                    disk = durable(after)
                case values.Send(message=message):
                    if type(message.body).__name__ not in self.config.muted:
                        sent.append(self.message(message))
                    view = Node(UP, after, disk, pods, node.resting)
                    wrong = wrong or next((w for rule in invariants.SENT if (w := rule(view, message))), None)
                case values.Granted(block=block):
                    pods = pods | {(block, after.incarnation)}
                case values.Evict(blocks=blocks):
                    lost = sorted(b for b, _ in pods if b in blocks)
                    if lost:
                        wrong = wrong or f"I2 {node.memory.me.decode()} had to evict live pods of blocks {lost}"
                case values.Wipe():
                    condition, disk = GONE, State(me=after.me, gate=Gate.LEFT)
        resting = node.resting & disk.registers.keys() if disk.gate != Gate.RETIRED else frozenset()
        memory = after if condition == UP else disk
        outcomes.append((Node(condition, memory, disk, pods, frozenset(resting)), tuple(sent), wrong))
        return outcomes

    def _cool_at_once(self, node: Node) -> Node:
        """Where cooling is not what is searched, a block is idle as soon as it is released."""
        if self.config.cooling or not node.lives:
            return node
        for block in sorted(node.memory.cooling):
            ((node, _, _),) = self.run(node, values.Cooled(block))
        return node._replace(resting=frozenset())

    def local_moves(self, at: int) -> list[tuple[str, str, int, int, tuple[int, ...], str | None]]:
        """What this node, its machine, its pods and its operator may do, whatever messages there are."""
        found = self.local.get(at)
        if found is None:
            found = self.local[at] = [
                (kind, detail, budget, self.entry(node), sent, wrong)
                for kind, detail, budget, outcomes in self._local(self.entries[at])
                for node, sent, wrong in outcomes
                if node != self.entries[at] or sent
            ]
        return found

    def _local(self, node: Node) -> Iterable[tuple[str, str, int, list[tuple[Node, tuple[int, ...], str | None]]]]:
        me = node.memory.me
        who = me.decode()
        if node.condition == GONE:
            return
        if self.names.index(me) not in self.config.stay and node.condition in (UP, KILLED):
            resting = node.resting | {b for b, _ in node.pods} if self.config.cooling else node.resting
            dark = Node(OFF, node.disk, node.disk, frozenset(), frozenset(resting))
            yield "power off", who, -1, [(dark, (), None)]
        inc = node.disk.incarnation + 1
        if node.condition == OFF:
            yield "boot", who, BUDGETS.index("boots"), self._booted(node, values.Boot(inc, inc, inc))
        else:
            again = values.Boot(node.disk.boot_id, inc, inc)
            yield "restart", who, BUDGETS.index("restarts"), self._booted(node, again)
            if self.config.older_store:
                older = node._replace(disk=self.first_disk[me])
                event = values.Boot(node.disk.boot_id, inc, inc, store_older=True)
                yield "restart with an older store", who, BUDGETS.index("restarts"), self._booted(older, event)
        if node.condition == UP:
            yield from self._running(node, who)

    def _booted(self, node: Node, event: Any) -> list[tuple[Node, tuple[int, ...], str | None]]:
        return [(self._cool_at_once(after), sent, wrong) for after, sent, wrong in self.run(node, event)]

    def _running(
        self, node: Node, who: str
    ) -> Iterable[tuple[str, str, int, list[tuple[Node, tuple[int, ...], str | None]]]]:
        state = node.memory
        live = {b: inc for b, inc in node.pods}
        for block in sorted(state.registers):
            if block in live:
                gone = node._replace(
                    pods=node.pods - {(block, live[block])},
                    resting=node.resting | {block} if self.config.cooling else node.resting,
                )
                freed = [(self._cool_at_once(n), s, w) for n, s, w in self.run(gone, values.Vacate(block))]
                yield "free", f"{who} block {block}", -1, freed
            elif self.names.index(state.me) not in self.config.idle:
                taken = node._replace(resting=node.resting - {block})
                outcomes = [o for o in self.run(taken, values.Occupy(block)) if o[0].pods != node.pods]
                yield "allocate", f"{who} block {block}", -1, outcomes
            if self.config.cooling and block in state.cooling:
                cold = node._replace(resting=node.resting - {block})
                yield "cooled", f"{who} block {block}", -1, self.run(cold, values.Cooled(block))
        for donor in self.names:
            if donor != state.me and state.universe is not None:
                yield "want", f"{who} of {donor.decode()}", BUDGETS.index("wants"), self.run(node, values.Want(donor))
                hello = self.run(node, values.Met(donor))
                yield "hello", f"{who} to {donor.decode()}", BUDGETS.index("hellos"), hello
            if donor != state.me and state.gate == Gate.CANDIDATE:
                join = self.run(node, values.Join(donor, state.incarnation + 1))
                yield "join", f"{who} by {donor.decode()}", BUDGETS.index("joins"), join
        if state.round is not None:
            yield "abort", who, BUDGETS.index("aborts"), self.run(node, values.Abort())
        if state.gate == Gate.OPEN and not state.leaving:
            yield "leave", who, BUDGETS.index("leaves"), self.run(node, values.Leave())

    def deliveries(self, at: int, what: int) -> list[tuple[str, str, int, int, tuple[int, ...], str | None]]:
        found = self.delivered.get((at, what))
        if found is None:
            node, message = self.entries[at], self.messages[what]
            me = node.memory.me
            found = self.delivered[at, what] = []
            if node.lives and message.sender != me and message.to in (None, me):
                kind = type(message.body).__name__
                for after, sent, wrong in self.run(node, values.Receive(message)):
                    after = self._cool_at_once(after)
                    if after != node or sent or wrong:
                        detail = f"{message.sender.decode()} to {me.decode()}: {message.body}"
                        found.append((f"deliver {kind}", detail, -1, self.entry(after), sent, wrong))
        return found

    # --- one node among all messages ---

    def moves_of(self, at: int, net: int) -> list[Move]:
        found = self.moves.get((at, net))
        if found is None:
            base = self.nets[net]
            raw = list(self.local_moves(at))
            for what in sorted(base):
                raw += self.deliveries(at, what)
            found = self.moves[at, net] = list(self._together(at, base, raw))
        return found

    def _together(
        self, at: int, base: frozenset[int], raw: list[tuple[str, str, int, int, tuple[int, ...], str | None]]
    ) -> Iterable[Move]:
        for kind, detail, budget, entry, sent, wrong in raw:
            messages = base.union(sent) if sent else base
            if not self.config.old_messages:
                messages = self._forget(messages, self.entries[entry])
            if (entry == at and messages == base and not wrong) or self._too_many_gifts(base, messages):
                continue
            yield Move(kind, detail, budget, entry, self.net(messages), wrong)

    def _forget(self, messages: frozenset[int], node: Node) -> frozenset[int]:
        """Answers to questions of an earlier life or to an open gate: the core drops them before it looks (the nonce)."""
        dead = {
            m
            for m in messages
            if self.messages[m].to == node.memory.me
            and isinstance(self.messages[m].body, values.SyncAnswer | values.Admitted)
            and self._answered(node, self.messages[m].body.nonce)  # type: ignore[union-attr]
        }
        return messages - dead if dead else messages

    @staticmethod
    def _answered(node: Node, nonce: int) -> bool:
        waiting = node.lives and node.memory.gate in (Gate.CLOSED, Gate.CANDIDATE) and node.memory.nonce <= nonce
        return not waiting and (node.disk.incarnation >= nonce)

    def _too_many_gifts(self, base: frozenset[int], messages: frozenset[int]) -> bool:
        if messages is base:
            return False
        gifts = 0
        for what in messages:
            body = self.messages[what].body
            if isinstance(body, values.Tell) and not body.knowledge.retired and not body.knowledge.left:
                gifts += any(r.owner != r.issuer for r in body.knowledge.registers.values())
        return gifts > self.config.grants

    # --- what the operator may do, seeing the whole cluster: promises must be true ---

    def operator(self, entries: tuple[int, ...], i: int, net: int) -> list[Move]:
        config = self.config
        state = self.entries[entries[i]].memory
        moves: list[Move] = []
        if config.rounds and (config.retirers is None or i in config.retirers):
            dark = [self.entries[e].memory.me for e in entries if self.entries[e].condition == OFF]
            for size in (1, 2):
                for victims in combinations([d for d in dark if d not in state.retired], size):
                    moves += self._told(entries[i], net, frozenset(victims))
        if config.ungates and state.gate == Gate.CLOSED:
            if not any(state.me in self.entries[e].disk.promised for e in entries):
                moves += self._told(entries[i], net, frozenset())
        return moves

    def _told(self, at: int, net: int, victims: frozenset[bytes]) -> list[Move]:
        key = (at, net, victims)
        found = self.told.get(key)
        if found is None:
            event = values.Retire(victims) if victims else values.Ungate()
            kind, budget = ("retire", "rounds") if victims else ("ungate", "ungates")
            who = f"{self.entries[at].memory.me.decode()} {invariants.ids(victims)}"
            raw = [
                (kind, who, BUDGETS.index(budget), self.entry(n), sent, wrong)
                for n, sent, wrong in self.run(self.entries[at], event)
            ]
            found = self.told[key] = list(self._together(at, self.nets[net], raw))
        return found

    # --- invariants, once per entry and pair ---

    def wrong_with(self, entries: tuple[int, ...], changed: int) -> str | None:
        new = entries[changed]
        if new not in self.single:
            node = self.entries[new]
            self.single[new] = next((w for rule in invariants.ONE if (w := rule(node))), None)
        if self.single[new]:
            return self.single[new]
        for i, other in enumerate(entries):
            if i == changed:
                continue
            for key in ((new, other), (other, new)):
                if key not in self.pair:
                    one, two = self.entries[key[0]], self.entries[key[1]]
                    self.pair[key] = next((w for rule in invariants.TWO if (w := rule(one, two))), None)
                if self.pair[key]:
                    return self.pair[key]
        if self.config.leaves:
            nodes = tuple(self.entries[e] for e in entries)
            return next((w for rule in invariants.ALL if (w := rule(nodes))), None)
        return None

    # --- the search ---

    def explore(self, states_max: int = 10**9, seconds_max: float = 1e9, mebibytes_max: int = 10**9,
                progress: Callable[[str], None] | None = None) -> Result:  # fmt: skip
        result = Result(self.config.name)
        started = time.monotonic()
        entries, net, budgets = self.initial()
        first = (*entries, net, budgets)
        budget_sets: dict[tuple[int, ...], tuple[int, ...]] = {budgets: budgets}
        parents: dict[tuple[Any, ...], tuple[Any, ...] | None] = {first: None}
        depths = deque([0])
        queue = deque([first])
        n = self.config.nodes
        while queue:
            at = queue.popleft()
            depth = depths.popleft()
            result.states += 1
            if result.states % 20_000 == 0:
                result.seconds = time.monotonic() - started
                result.mebibytes = resident()
                if progress and result.states % 200_000 == 0:
                    progress(f"{result.states:,} states, {len(queue):,} queued, depth {depth}, "
                             f"{result.seconds:.0f} s, {result.mebibytes} MiB")  # fmt: skip
                if result.seconds > seconds_max or result.mebibytes > mebibytes_max or result.states >= states_max:
                    break
            result.depth = depth
            entries, net, budgets = at[:n], at[n], at[n + 1]
            for i in range(n):
                moves = self.moves_of(entries[i], net)
                if self.entries[entries[i]].lives:
                    extra = self.operator(entries, i, net)
                    moves = moves + extra if extra else moves
                for move in moves:
                    left = budgets
                    if move.budget >= 0:
                        if not budgets[move.budget]:
                            continue
                        left = (*budgets[: move.budget], budgets[move.budget] - 1, *budgets[move.budget + 1 :])
                        left = budget_sets.setdefault(left, left)
                    result.fired[move.kind] += 1
                    child = (*entries[:i], move.entry, *entries[i + 1 :], move.net, left)
                    if child in parents:
                        continue
                    parents[child] = at
                    queue.append(child)
                    depths.append(depth + 1)
                    wrong = move.wrong or self.wrong_with(child[:n], i)
                    if wrong:
                        result.violation = wrong
                        result.trace = self._trace(parents, child)
                        result.depth = depth + 1
                        return self._finish(result, started)
        else:
            result.complete = True
        return self._finish(result, started)

    def _finish(self, result: Result, started: float) -> Result:
        result.seconds, result.mebibytes = time.monotonic() - started, resident()
        return result

    def _trace(self, parents: dict[tuple[Any, ...], tuple[Any, ...] | None], state: tuple[Any, ...]) -> list[str]:
        steps: list[str] = []
        n = self.config.nodes
        while (before := parents[state]) is not None:
            i = next((i for i in range(n) if before[i] != state[i]), None)
            candidates = range(n) if i is None else (i,)
            for j in candidates:
                moves = self.moves_of(before[j], before[n])
                if self.entries[before[j]].lives:
                    moves = moves + self.operator(before[:n], j, before[n])
                label = next((m for m in moves if m.entry == state[j] and m.net == state[n]), None)
                if label:
                    steps.append(f"{label.kind}: {label.detail}")
                    break
            state = before
        return steps[::-1]


def resident() -> int:
    """MiB of memory that this process has used at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def search(config: Config, core: ModuleType = ownership, **limits: Any) -> Result:
    return Search(config, core).explore(**limits)
