"""Exhaustive search over the ownership core at message level: every interleaving of a small cluster.

A cluster state is one entry per node (what the daemon believes, what its disk holds, what runs), the set of all
messages ever sent, and what is left of the budgets. Each transition touches one node: a message is delivered (messages
stay in the set, so late, doubled, reordered and lost ones are all there), a pod comes or goes, a machine loses power or
boots, the daemon restarts, the operator speaks. A step may die between any two of its effects.

Speed: nodes, messages and sets of messages are interned; what one entry can do with one set of messages is computed
once by the product's own ``step``. Knows the core through the module handed in, so mutants are searched the same way.
"""

from __future__ import annotations

import gc
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

CACHED_MOVES = 300_000
"""What a node can do among some messages is forgotten beyond so many; it is made anew from what is kept of each."""
NAMES = (b"a", b"b", b"c", b"d", b"e")
BUDGETS = ("boots", "restarts", "rounds", "wants", "aborts", "ungates", "joins", "leaves", "hellos")


@dataclass(frozen=True)
class Config:
    """A small world. Budgets are for the whole cluster; ``grants`` bounds a gift's ``seq``."""

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
    apart: bool = False  # every other node founded its own universe
    first_gen: int = 0  # of all registers at the beginning: something happened before
    cooling: bool = False  # a released block rests until the search says otherwise
    older_store: bool = False  # a restart may find the store of the beginning
    off: frozenset[int] = frozenset()  # machines that are off at the beginning
    stay: frozenset[int] = frozenset()  # machines that never lose power
    idle: frozenset[int] = frozenset()  # nodes that start no pods (symmetric cases left out)
    retirers: frozenset[int] | None = None  # who may run rmpeer
    muted: frozenset[str] = frozenset()  # kinds of message that are always lost
    without: frozenset[str] = frozenset()  # invariants of messages left out, to see where breaking them leads
    forget: bool = True  # messages that can never matter again are taken out of the state


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
        size = f"{self.states:,} states, depth {self.depth}, {self.seconds:.1f} s, {self.mebibytes} MiB"
        lines = [f"{self.config}: {size}: {end}"]
        lines += [f"  {n:>10,}  {kind}" for kind, n in sorted(self.fired.items())]
        lines += [f"  {i + 1:>3}. {step}" for i, step in enumerate(self.trace)]
        return "\n".join(lines)


RawMove = tuple[str, str, int, int, tuple[int, ...], str | None]
"""A transition of one node whatever other messages there are: kind, detail, budget, entry, messages sent, fault."""


def bits(mask: int) -> Iterable[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


class Move(NamedTuple):
    kind: str
    detail: str
    budget: int  # index into BUDGETS, -1: free
    entry: int
    messages: int  # bit mask
    wrong: str | None


class Search:
    def __init__(self, config: Config, core: ModuleType = ownership) -> None:
        self.config = config
        self.step: Callable[[State, Any], tuple[State, tuple[Any, ...]]] = core.step
        self.entries: list[Node] = []
        self.entry_ids: dict[Node, int] = {}
        self.messages: list[Message] = []
        self.message_ids: dict[Message, int] = {}
        self.nets: list[int] = []
        self.net_ids: dict[int, int] = {}
        self.done: dict[int, int] = {}  # of an entry: messages that cannot matter to it any more
        self.judged: dict[int, int] = {}
        self.moves: dict[tuple[int, int], list[Move]] = {}
        self.local: dict[int, list[RawMove]] = {}
        self.delivered: dict[tuple[int, int], list[RawMove]] = {}
        self.told: dict[tuple[int, int, frozenset[bytes]], list[Move]] = {}
        self.heard: dict[tuple[int, frozenset[bytes]], list[RawMove]] = {}
        self.single: dict[int, str | None] = {}
        self.pair: dict[tuple[int, int], str | None] = {}
        self.parents: dict[tuple[Any, ...], tuple[Any, ...] | None] = {}
        self.names = NAMES[: config.nodes]
        self.sent = [rule for rule in invariants.SENT if rule.__name__ not in config.without]
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

    def net(self, messages: int) -> int:
        found = self.net_ids.get(messages)
        if found is None:
            found = self.net_ids[messages] = len(self.nets)
            self.nets.append(messages)
        return found

    # --- the beginning ---

    def initial(self) -> tuple[tuple[int, ...], int, tuple[int, ...]]:
        config = self.config
        members = frozenset(self.names[: config.members or config.nodes])
        registers = FrozenMap(
            {b: Register(config.first_gen, 0, NAMES[o], NAMES[o]) for b, o in enumerate(config.owners)}
        )
        entries = []
        for i, me in enumerate(self.names):
            state = State(me=me, boot_id=0, incarnations=FrozenMap({me: 0}))
            if config.apart and i >= config.members:
                own = FrozenMap({b: Register(0, 0, me, me) for b in registers})
                state = state._replace(universe=b"u" + me, gate=Gate.OPEN, registers=own, members=frozenset({me}))
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
        return tuple(entries), self.net(0), tuple(getattr(config, b) for b in BUDGETS)

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
                    view = Node(condition, after, disk, pods, node.resting)
                    wrong = wrong or next((w for rule in self.sent if (w := rule(view, message))), None)
                case values.Granted(block=block):
                    pods = pods | {(block, after.incarnation)}
                case values.Retired(victims=victims):
                    wrong = wrong or invariants.r9_nobody_is_retired_twice(before, event, victims)
                case values.Evict(blocks=blocks):
                    lost = sorted(b for b, _ in pods if b in blocks)
                    if lost:
                        wrong = wrong or f"I2 {node.memory.me.decode()} had to evict live pods of blocks {lost}"
                case values.Wipe():
                    condition = GONE  # the disk stands for what it knew; no transition reads it again
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

    def local_moves(self, at: int) -> list[RawMove]:
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
            yield "boot", who, BUDGETS.index("boots"), self._booted(node, values.Boot(inc, inc, 2 * inc))
        else:
            again = values.Boot(node.disk.boot_id, inc, 2 * inc, live=frozenset(b for b, _ in node.pods))
            yield "restart", who, BUDGETS.index("restarts"), self._booted(node, again)
            if self.config.older_store and not node.pods:
                older = node._replace(disk=self.first_disk[me])
                event = values.Boot(node.disk.boot_id, inc, 2 * inc, store_older=True)
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
                join = self.run(node, values.Join(donor, 2 * state.incarnation + 1))
                yield "join", f"{who} by {donor.decode()}", BUDGETS.index("joins"), join
        if state.round is not None or state.rounds_started:
            yield "abort", who, BUDGETS.index("aborts"), self.run(node, values.Abort())
        if state.gate == Gate.OPEN and not state.leaving:
            yield "leave", who, BUDGETS.index("leaves"), self.run(node, values.Leave())

    def deliveries(self, at: int, what: int) -> list[RawMove]:
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
            for what in bits(base):
                raw += self.deliveries(at, what)
            found = self.moves[at, net] = list(self._together(at, base, raw))
        return found

    def _together(self, at: int, base: int, raw: list[RawMove]) -> Iterable[Move]:
        for kind, detail, budget, entry, sent, wrong in raw:
            messages = base
            for what in sent:
                messages |= 1 << what
            if (entry == at and messages == base and not wrong) or self._too_many_gifts(messages & ~base):
                continue
            yield Move(kind, detail, budget, entry, messages, wrong)

    def _too_many_gifts(self, new: int) -> bool:
        """Counted by the epoch reached: a bound of the world, not of the core."""
        for what in bits(new):
            body = self.messages[what].body
            if isinstance(body, values.Tell) and not body.knowledge.left:
                for register in body.knowledge.registers.values():
                    if register.owner != register.issuer and register.seq > self.config.grants:
                        return True
        return False

    # --- messages that can never matter again (each claim is about the core, and holds for ever once it holds) ---

    def live(self, entries: tuple[int, ...], messages: int) -> int:
        """Without the messages that every node is done with."""
        done = messages
        for at in entries:
            unknown = done & ~self.judged.get(at, 0)
            if unknown:
                self._judge(at, unknown)
            done &= self.done.get(at, 0)
            if not done:
                return messages
        return messages & ~done

    def _judge(self, at: int, unknown: int) -> None:
        node = self.entries[at]
        done = self.done.get(at, 0)
        for what in bits(unknown):
            if self._is_done(node, self.messages[what], at, what):
                done |= 1 << what
        self.done[at] = done
        self.judged[at] = self.judged.get(at, 0) | unknown

    def _is_done(self, node: Node, m: Message, at: int, what: int) -> bool:
        if not self.config.forget:
            return False
        if m.sender == node.memory.me:
            return self._asked_enough(node, m.body)
        if m.to not in (None, node.memory.me) or node.condition == GONE:
            return True
        state = node.memory
        if state.gate in (Gate.RETIRED, Gate.LEFT):
            return True
        heard = state.incarnations.get(m.sender, -1)
        body = m.body
        match body:
            case values.SyncAnswer() | values.Admitted():
                return self._answered(node, body.nonce)
            case values.Promise() | values.Nack():
                return state.round is None or state.round.id != body.round
            case values.Tell():  # merging is monotone
                return state.universe == m.universe and self.step(state, values.Receive(m)) == (state, ())
        if heard < m.incarnation or state.universe != m.universe:
            return False
        if heard > m.incarnation:
            return True
        match body:
            case values.SyncAsk():
                return True
            case values.RetireAsk():
                return m.sender in state.promised or frozenset(body.victims) <= state.retired
            case values.Ask():
                return m.sender in state.promised
            case values.Propose():
                known = body.candidate in state.proposed | state.members
                return known and state.incarnations.get(body.candidate, -1) >= body.candidate_incarnation
            case values.Hold():
                return body.candidate in state.members and body.candidate not in state.admissions
            case values.Have():
                return not any(state.owed.get(b) == r for b, r in body.registers.items())
        return False

    def _asked_enough(self, node: Node, body: values.Body) -> bool:
        """The sender's part: it waits for no answer to this question."""
        state = node.memory
        match body:
            case values.SyncAsk() | values.JoinAsk():
                return self._answered(node, body.nonce)
            case values.RetireAsk():
                return state.round is None or state.round.id != body.round
            case values.Propose():
                return body.candidate in state.members and body.candidate not in state.admissions
        return True

    @staticmethod
    def _answered(node: Node, nonce: int) -> bool:
        """Nonces are 2 x incarnation for a gate and one more for an admission: each is asked in one life only."""
        asking = Gate.CANDIDATE if nonce % 2 else Gate.CLOSED
        return not (node.lives and node.memory.gate == asking and node.memory.incarnation == nonce // 2)

    # --- what the operator may do, seeing the whole cluster: promises must be true ---

    def operator(self, entries: tuple[int, ...], i: int, net: int) -> list[Move]:
        config = self.config
        state = self.entries[entries[i]].memory
        moves: list[Move] = []
        if config.rounds and (config.retirers is None or i in config.retirers):
            dark = [self.entries[e].memory.me for e in entries if self.entries[e].condition == OFF]
            for size in (1, 2):
                for victims in combinations(dark, size):
                    moves += self._told(entries[i], net, frozenset(victims))
        promised = any(state.me in self.entries[e].disk.promised for e in entries)
        if config.ungates and state.gate == Gate.CLOSED and not promised:
            moves += self._told(entries[i], net, frozenset())
        return moves

    def _told(self, at: int, net: int, victims: frozenset[bytes]) -> list[Move]:
        key = (at, net, victims)
        found = self.told.get(key)
        if found is None:
            raw = self.heard.get((at, victims))
            if raw is None:
                event = values.Retire(victims) if victims else values.Ungate()
                kind, budget = ("retire", "rounds") if victims else ("ungate", "ungates")
                who = f"{self.entries[at].memory.me.decode()} {invariants.ids(victims)}"
                raw = self.heard[at, victims] = [
                    (kind, who, BUDGETS.index(budget), self.entry(n), sent, wrong)
                    for n, sent, wrong in self.run(self.entries[at], event)
                    if n != self.entries[at] or sent
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
        if self.config.leaves or self.config.rounds:
            nodes = tuple(self.entries[e] for e in entries)
            return next((w for rule in invariants.ALL if (w := rule(nodes))), None)
        return None

    # --- the search ---

    def explore(self, states_max: int = 10**9, seconds_max: float = 1e9, mebibytes_max: int = 10**9,
                progress: Callable[[str], None] | None = None) -> Result:  # fmt: skip
        """Without the collector of cycles: there are none, and looking for them among all states took a quarter."""
        gc.disable()
        try:
            return self._explore(states_max, seconds_max, mebibytes_max, progress)
        finally:
            gc.enable()

    def _explore(self, states_max: int, seconds_max: float, mebibytes_max: int,
                 progress: Callable[[str], None] | None) -> Result:  # fmt: skip
        result = Result(self.config.name)
        started = time.process_time()
        entries, net, budgets = self.initial()
        first = (*entries, net, budgets)
        budget_sets: dict[tuple[int, ...], tuple[int, ...]] = {budgets: budgets}
        parents = self.parents = {first: None}
        depths = deque([0])
        queue = deque([first])
        n = self.config.nodes
        while queue:
            at = queue.popleft()
            depth = depths.popleft()
            result.states += 1
            if result.states % 20_000 == 0:
                if len(self.moves) > CACHED_MOVES:
                    self.moves.clear()
                result.seconds = time.process_time() - started
                result.mebibytes = resident()
                if progress and result.states % 200_000 == 0:
                    progress(f"{result.states:,} states, {len(queue):,} queued, depth {depth}, "
                             f"{result.seconds:.0f} s, {result.mebibytes} MiB")  # fmt: skip
                if result.seconds > seconds_max or result.mebibytes > mebibytes_max or result.states >= states_max:
                    break
            result.depth = depth
            entries, net, budgets = at[:n], at[n], at[n + 1]
            operator_may = budgets[2] or budgets[5]
            may_go_dark = budgets[0] or budgets[2]  # else a silent node whose pods live can do all that and more
            for i in range(n):
                moves = self.moves_of(entries[i], net)
                if operator_may and self.entries[entries[i]].lives:
                    extra = self.operator(entries, i, net)
                    moves = moves + extra if extra else moves
                for move in moves:
                    if move.kind == "power off" and not may_go_dark:
                        continue
                    left = budgets
                    if move.budget >= 0:
                        if not budgets[move.budget]:
                            continue
                        left = (*budgets[: move.budget], budgets[move.budget] - 1, *budgets[move.budget + 1 :])
                        left = budget_sets.setdefault(left, left)
                    result.fired[move.kind] += 1
                    after = (*entries[:i], move.entry, *entries[i + 1 :])
                    child = (*after, self.net(self.live(after, move.messages)), left)
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

    def visited_entries(self) -> set[tuple[int, ...]]:
        """The nodes' part of every state seen."""
        return {state[: self.config.nodes] for state in self.parents}

    def _finish(self, result: Result, started: float) -> Result:
        result.seconds, result.mebibytes = time.process_time() - started, resident()
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
                label = next((m for m in moves if self._leads(before, j, m, state)), None)
                if label:
                    steps.append(f"{label.kind}: {label.detail}")
                    break
            state = before
        return steps[::-1]

    def _leads(self, before: tuple[Any, ...], i: int, move: Move, state: tuple[Any, ...]) -> bool:
        n = self.config.nodes
        after = (*before[:i], move.entry, *before[i + 1 : n])
        return after == state[:n] and self.net(self.live(after, move.messages)) == state[n]


def resident() -> int:
    """MiB of memory that this process has used at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def search(config: Config, core: ModuleType = ownership, **limits: Any) -> Result:
    return Search(config, core).explore(**limits)
