"""Addresses in service: joins ownership, allocator and neighbours into one core that a driver can carry out.

Each input may leave ``Step``s: rows for the disk, then words for neighbours and block owners for the fast path, to be
carried out in this order and not before the rows are on disk (R2). Sans-I/O: time, nonces, signer and verifier are
arguments. Knows no socket, no store and no pod; who is on a link is told to it. Called by driver.py and the tests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from typing import Final

from weave_router import limits
from weave_router.errors import BadPacket, UserError
from weave_router.store_ipam import IpamRows, LeaseRow

from . import durable, founding, sentences, wire
from .allocator import BRIDGE, Allocator, Change, Finding, Holder, NotNowError
from .donation import owned
from .knowledge import issuing, knowledge_of, voters
from .letters import Letters
from .ownership import fresh, step
from .registers import Run, Runs, restored
from .rounds import ROUND_WORDS, Rounds
from .speech import Speech
from .values import (
    NO_REGISTERS,
    Block,
    Boot,
    Cooled,
    Event,
    Evict,
    Found,
    Gate,
    Grant,
    Hello,
    Message,
    Met,
    NodeId,
    Occupy,
    Receive,
    Refused,
    Register,
    Retry,
    Send,
    State,
    Tell,
    Ungate,
    Vacate,
    Want,
    Withdraw,
)

RETRY_SECONDS: Final = 2.0
"""What waits for an answer (gate, gift) is asked again so often."""
ASK_SECONDS: Final = 0.5
"""From one question for blocks to the next, while nobody gave any."""
DIGEST_SECONDS: Final = 5.0
"""Neighbours compare what they know so often: repairs what a full link dropped."""
GIFT_SETTLE_SECONDS: Final = 1.0
"""From the last neighbour's acknowledgement of a received block to its first use: time to reach nodes further on."""
FIRST_BLOCK_SECONDS: Final = 2.0
"""A node's first blocks do not wait longer than this for neighbours."""


@dataclass(frozen=True)
class Settings:
    """``domain``: of the token. ``subnet``: where pods get addresses that name none; None: the whole range."""

    name: str
    domain: bytes
    range_v4: IPv4Network
    names: tuple[str, ...] = ()
    subnet: IPv4Network | None = None
    excluded: tuple[IPv4Network, ...] = ()
    cooldown: float = limits.COOLDOWN_SECONDS
    arbiter: bool = False
    """The Kubernetes API says whose a block is."""


@dataclass(frozen=True, slots=True)
class Step:
    """``words``: (neighbour, bytes). ``owners``: block -> whose it is now. ``retired``: since the step before."""

    rows: IpamRows
    words: tuple[tuple[NodeId, bytes], ...] = ()
    owners: Mapping[Block, NodeId] = field(default_factory=dict)
    retired: frozenset[NodeId] = frozenset()

    @property
    def empty(self) -> bool:
        return self.rows.empty and not self.words and not self.owners


@dataclass(frozen=True, slots=True)
class Stranger:
    """A neighbour of another universe, or of another range."""

    universe: bytes
    network: IPv4Network


@dataclass(slots=True)
class Gift:
    """Received blocks that are not used yet."""

    blocks: set[Block]
    waiting: set[NodeId]
    ready_at: float | None
    give_up_at: float | None


class Service:
    """``nonce`` draws a fresh 62-bit number; ``name_of`` turns a node id into words."""

    def __init__(self, me: NodeId, public: bytes, settings: Settings, *, sign: Callable[[bytes], bytes],
                 verify: Callable[[bytes, bytes, bytes], bool], nonce: Callable[[], int],
                 name_of: Callable[[NodeId], str]) -> None:
        self.settings = settings
        self.state = fresh(me)
        self.runs = Runs(founding.block_count(settings.range_v4), public, sign, verify)
        self.speech = Speech(self.runs)
        self.rounds = Rounds(self, Letters(public, sign, verify, nonce))
        self.retired_names: dict[NodeId, str] = {}
        """Nobody announces them any more."""
        self.allocator = Allocator(settings.range_v4, founding.block_prefix(settings.range_v4), settings.excluded,
                                   self._owner_text, settings.cooldown)
        self.names = settings.names
        self.strangers: dict[NodeId, Stranger] = {}
        self.counters: Counter[str] = Counter()
        self.refused: list[str] = []
        self.evicted: list[str] = []
        self.halted = ""
        self.growing = False
        """The arbiter is being asked for a block."""
        self.lost: list[Holder] = []
        """Whose addresses were taken from them, until somebody takes their ports down."""
        self.neighbours: dict[NodeId, bool] = {}
        """On a link: whether it is known to be in this universe."""
        self._name_of = name_of
        self._nonce = nonce
        self._key = (int(settings.range_v4.network_address), settings.range_v4.prefixlen)
        self.gifts: dict[int, Gift] = {}
        self._steps: list[Step] = []
        self._words: list[tuple[NodeId, bytes]] = []
        self._asked: set[NodeId] = set()
        self._heard: dict[Block, Run] = {}
        self._told_people = False
        self._retry_at = self._digest_at = self._ask_at = 0.0

    # -- start -------------------------------------------------------------------------------------------------------

    def load(self, rows: IpamRows, now: float) -> None:
        """What the store holds. UserError if it was made for another range."""
        if rows.head is None:
            return
        head = self._head_of(rows.head)
        self.names = head.names or self.names
        self.retired_names = dict(head.retired_names)
        if head.universe is not None:
            self.runs.universe = head.universe
        leases = {row.number: Holder(row.container, row.ifname) for row in rows.leases}
        resting = {row.number for row in rows.leases if row.resting}
        block_of = self.allocator.block_of
        used = {block_of(n) for n in leases if n not in resting}
        self.state = durable.state_of(self.me, rows, used, {block_of(n) for n in resting} - used)
        for row in rows.registers if self.state.registers else ():
            if row.proof is not None:
                self.runs.keep(row.block, restored(row.block, self.state.registers[row.block], row.proof))
            if row.owner == self.me:
                self.allocator.add_block(row.block, row.block not in self.state.contested)
        self.allocator.load({n: h for n, h in leases.items() if n not in resting},
                            {n: h for n, h in leases.items() if n in resting}, now)

    def _head_of(self, data: bytes) -> durable.Head:
        try:
            head = durable.decode_head(data)
        except ValueError as error:
            raise UserError(f"the store's part about addresses cannot be read ({error}): put an undamaged copy "
                            "back, or start anew by `weave-router reset`") from None
        if head.universe is not None and head.arbiter != self.settings.arbiter:
            made = "in Kubernetes mode" if head.arbiter else "outside Kubernetes"
            raise UserError(f"the store's addresses were given {made}, and this start is of the other kind: start as "
                            "before, or start anew by `weave-router reset`")
        if head.universe is not None and head.range != str(self.settings.range_v4):
            raise UserError(f"the store's addresses are of {head.range}, --ipalloc-range says "
                            f"{self.settings.range_v4}: give --ipalloc-range {head.range}, or start anew "
                            "by `weave-router reset`")
        return head

    def boot(self, boot_id: str, incarnation: int, live: Mapping[int, Holder], store_older: bool, now: float) -> None:
        """After ``load``: the gate. ``live``: addresses on the ports of pods that stand."""
        blocks = frozenset(self.allocator.block_of(n) for n in live if n in self.settings_range)
        self.take_in(Boot(boot_id, incarnation, self._nonce(), store_older, blocks), now)
        if issuing(self.state):
            self._occupy_again(now)
        self._retry_at, self._digest_at = now + RETRY_SECONDS, now + DIGEST_SECONDS

    @property
    def settings_range(self) -> range:
        network = self.settings.range_v4
        return range(int(network.network_address), int(network.broadcast_address) + 1)

    def found_new(self, random: bytes, now: float) -> None:
        self._found(founding.new_universe(self.me, self.settings.range_v4, random), now)

    def found_seed(self, now: float) -> None:
        """UserError if this node has no slot."""
        s = self.settings
        if s.name not in s.names:
            raise UserError(f"this node's name {s.name} is not among the seed's {', '.join(sorted(s.names))}: start it "
                            "with one of them as --name, or add it to seed= on every node")
        self._found(founding.seeded(s.range_v4, s.names, s.name, s.domain), now)

    def found_by_arbiter(self, universe: bytes, now: float) -> None:
        self._found(Found(universe, NO_REGISTERS, arbiter=True), now)

    def _found(self, event: Found, now: float) -> None:
        self.runs.universe = event.universe
        self.take_in(event, now)

    def seed_differs(self) -> bool:
        """Does the universe on record differ from what ``seed=`` now says?"""
        s = self.settings
        return self.state.universe != founding.seed_universe(s.range_v4, s.names, s.domain)

    def bridge_number(self) -> int | None:
        return next(iter(self.allocator.addresses_of(BRIDGE)), None)

    def choose_bridge(self, wanted: int | None, now: float) -> int:
        """The first usable address of the home block, or the one that is wanted; kept for ever."""
        held = self.bridge_number()
        if held is not None and wanted in (None, held):
            return held
        if wanted is None:
            homes = owned(self.state)
            if not homes:
                raise UserError(self.refusal() or "this node owns no block of addresses yet, so its bridge has none")
            wanted = next((n for block in homes for n in self.allocator.numbers_of(block)), None)
            if wanted is None:
                raise UserError("--ipalloc-exclude leaves this node no address for its bridge: exclude less")
        self.claim(BRIDGE, wanted, now)
        if held is not None:
            self.release(BRIDGE, now, held)
        return wanted

    def reconcile(self, live: Mapping[int, Holder], now: float) -> tuple[Finding, ...]:
        change, findings = self.allocator.reconcile(live, now)
        self._changed(change, now)
        return findings

    # -- what is so --------------------------------------------------------------------------------------------------

    @property
    def me(self) -> NodeId:
        return self.state.me

    @property
    def on(self) -> bool:
        return self.state.universe is not None

    def covers(self, number: int) -> bool:
        """Whether a block of this node, known to others, speaks for the number."""
        register = self.state.registers.get(self.allocator.block_of(number))
        return number in self.settings_range and register is not None and register.owner == self.me

    def owner_of(self, number: int) -> NodeId | None:
        register = self.state.registers.get(self.allocator.block_of(number))
        return None if register is None or number not in self.settings_range else register.owner

    def owners(self) -> dict[Block, NodeId]:
        return {block: register.owner for block, register in self.state.registers.items()}

    def slots(self) -> frozenset[NodeId]:
        """Of the seed: they stand for nodes that were not started yet."""
        universe = self.state.universe
        return frozenset(founding.slot_of(universe, name) for name in self.names) if universe else frozenset()

    def person(self, node: NodeId) -> str:
        """A node's name; for a slot of the seed the name it waits for."""
        if self.state.universe is not None:
            for name in self.names:
                if founding.slot_of(self.state.universe, name) == node:
                    return f"{name} (not started yet)"
        return self.retired_names.get(node) or self._name_of(node)

    def _owner_text(self, block: Block) -> str | None:
        register = self.state.registers.get(block)
        return None if register is None else f"node {self.person(register.owner)}"

    def refusal(self) -> str | None:
        """Why new addresses have to wait; None: they need not."""
        return self.halted or sentences.refusal(self.state, self.person)

    def conflicts(self) -> list[str]:
        """Sentences about slots that two identities claim."""
        other = (self._contender, self._name_of(self._contender)) if self._contender else None
        return sentences.conflicts(self.state, self.settings.name, other)

    _contender: NodeId | None = None

    # -- addresses ---------------------------------------------------------------------------------------------------

    def allocate(
        self, holder: Holder, now: float, count: int = 1, within: IPv4Network | None = None
    ) -> tuple[int, ...]:
        """ExhaustedError, NotNowError with the reason. What it changed stands in ``take_steps``."""
        within = within or self.settings.subnet
        numbers, change = self.allocator.allocate(holder, now, count, within, self.refusal())
        self._granted(change, holder, now)
        self._prefetch(now)
        return numbers

    def claim(self, holder: Holder, number: int, now: float) -> None:
        change = self.allocator.claim(holder, number, now, self.refusal())
        self._granted(change, holder, now)

    def _granted(self, change: Change, holder: Holder, now: float) -> None:
        refusals = self._changed(change, now)
        if refusals and change.occupied:  # cannot be: what the core refuses was refused before
            for number, _ in change.leased:
                self.release(holder, now, number)
            raise NotNowError(refusals[0].reason)

    def release(self, holder: Holder, now: float, number: int | None = None) -> tuple[int, ...]:
        change = self.allocator.release(holder, now, number)
        self._changed(change, now)
        return tuple(n for n, _ in change.resting)

    def want(self, now: float) -> None:
        """Somebody waits for an address."""
        self._prefetch(now)

    def may_grow(self) -> bool:
        """Whether another member could give blocks: then exhaustion may end soon."""
        return self.growing or self._donor() is not None or bool(self.gifts)

    def ungate(self, now: float) -> None:
        refusals = self.take_in(Ungate(), now)
        if refusals:
            raise UserError(f"{refusals[0].reason}: there is nothing to open")

    def halt(self, reason: str) -> None:
        """A clone of this identity runs: nothing new until it is gone."""
        self.halted = reason

    def apply(self, event: Grant | Withdraw, now: float) -> bool:
        """The arbiter's word. A block that is new is used when the neighbours know of it; without any at once."""
        return not self.take_in(event, now, source=self.me if self.neighbours else None)

    # -- neighbours --------------------------------------------------------------------------------------------------

    def link_up(self, node: NodeId, now: float) -> None:
        """Greet it with a digest: same universe or not, and whether it knows the same."""
        if not self.on:
            return
        self.neighbours[node] = False
        self.say(node, wire.Digest(self.speech.hash_of(knowledge_of(self.state))))
        self.rounds.link_up(node, now)
        self._flush(self.state, now)

    def link_down(self, node: NodeId, now: float) -> None:
        self.neighbours.pop(node, None)
        self.strangers.pop(node, None)
        for gift in self.gifts.values():
            gift.waiting.discard(node)
        self._settle_gifts(now)

    def receive(self, node: NodeId, data: bytes, now: float) -> None:
        """One frame of a neighbour. What cannot be used is counted."""
        if node not in self.neighbours:
            return
        try:
            envelope = wire.decode_envelope_untrusted(data)
            body = wire.decode_body_untrusted(envelope)
            if body is None or envelope.to not in (b"", self.me):
                return
            self._receive(node, envelope, body, now)
        except BadPacket as error:
            self.counters[error.reason] += 1

    def _receive(self, node: NodeId, envelope: wire.Envelope, body: wire.Body, now: float) -> None:
        universe = envelope.universe or None
        if universe != self.state.universe:
            self._meet(node, envelope, body, now)
            return
        self.strangers.pop(node, None)
        first, self.neighbours[node] = not self.neighbours[node], True
        match body:
            case wire.Digest():
                if body.hash != self.speech.hash_of(knowledge_of(self.state)):
                    self._tell_all(node)
                if first and self.state.gate == Gate.CLOSED:
                    self.take_in(Retry(self._nonce()), now)
            case wire.Barrier():
                self.say(node, wire.Passed(body.nonce))
            case wire.Letter():
                self.rounds.hear_untrusted(node, body.data, now)
            case wire.Passed():
                gift = self.gifts.get(body.nonce)
                if gift is not None:
                    gift.waiting.discard(node)
                    self._settle_gifts(now)
            case _:
                told, runs = self.speech.heard_untrusted(body)
                message = Message(node, envelope.incarnation, universe, envelope.to or None, told)
                self._told_people = isinstance(body, wire.Tell | wire.SyncAnswer)
                with self.hearing(runs):
                    self.take_in(Receive(message), now, source=node)
                self._told_people = False
        self._flush(self.state, now)

    @contextmanager
    def hearing(self, runs: dict[Block, Run]) -> Iterator[None]:
        """The runs behind the registers in what is taken in meanwhile."""
        self._heard = runs
        yield
        self._heard = {}

    def _meet(self, node: NodeId, envelope: wire.Envelope, body: wire.Body, now: float) -> None:
        """Another universe: named in status, nothing merges, data go on."""
        network = IPv4Network((envelope.range_number, envelope.range_len), strict=False)
        if node not in self.strangers:
            if len(self.strangers) >= limits.IPAM_STRANGERS_MAX:
                self.strangers.pop(next(iter(self.strangers)))
            self.strangers[node] = Stranger(envelope.universe, network)
            self.say(node, wire.Digest(self.speech.hash_of(knowledge_of(self.state))))  # so that it knows us, too
            self.take_in(Met(node), now)
        if isinstance(body, wire.Hello):
            universe = envelope.universe or None
            self.take_in(Receive(Message(node, envelope.incarnation, universe, self.me, Hello(body.spare))), now)
        self._flush(self.state, now)

    # -- time --------------------------------------------------------------------------------------------------------

    def get_timer(self) -> float | None:
        if not self.on:
            return None
        gifts = [at for gift in self.gifts.values() for at in (gift.ready_at, gift.give_up_at) if at is not None]
        cooled = self.allocator.get_timer()
        return min([self._retry_at, self._digest_at, *gifts, *([] if cooled is None else [cooled])])

    def handle_timer(self, now: float) -> None:
        if not self.on:
            return
        cooled = self.allocator.get_timer()
        if cooled is not None and cooled <= now:
            self._changed(self.allocator.handle_timer(now), now)
        self._settle_gifts(now)
        if self._retry_at <= now:
            self._retry_at = now + RETRY_SECONDS
            if self.rounds.due(now) or self.state.gate == Gate.CLOSED or self.state.owed:
                self.take_in(Retry(self._nonce()), now)
            self._prefetch(now)
        if self._digest_at <= now:
            self._digest_at = now + DIGEST_SECONDS * (0.9 + self._nonce() % 1000 / 5000)
            for node in self.neighbours:
                self.say(node, wire.Digest(self.speech.hash_of(knowledge_of(self.state))))
        self._flush(self.state, now)

    def _prefetch(self, now: float) -> None:
        if self._ask_at > now or self.gifts or not issuing(self.state) or not self.allocator.wants_blocks():
            return
        donor = self._donor()
        if donor is not None:
            self._ask_at = now + ASK_SECONDS  # each question that arrives is answered with a gift
            self._asked.add(donor)
            self.take_in(Want(donor), now)

    def _donor(self) -> NodeId | None:
        """The neighbour that owns most of those that were not asked since the last gift; who has nothing is silent."""
        count: Counter[NodeId] = Counter(register.owner for register in self.state.registers.values())
        members = voters(self.state)
        near = [node for node, same in self.neighbours.items() if same and node in members and count[node] > 1]
        if self._asked.issuperset(near):
            self._asked.clear()
        return max(sorted(set(near) - self._asked), key=lambda node: count[node], default=None)

    # -- the ownership core ------------------------------------------------------------------------------------------

    def take_in(self, event: Event, now: float, source: NodeId | None = None) -> list[Refused]:
        """One event; what was refused. What others have to know goes to all neighbours but ``source``."""
        before = self.state
        self.state, effects = step(before, event)
        for node in self.state.retired - before.retired:
            if (called := self._name_of(node)) != node.hex()[:12]:
                self.retired_names[node] = called
        registers = durable.changed_registers(before, self.state)
        self._enter_runs(registers)
        self._enter_blocks(before, registers, now, source)
        refusals: list[Refused] = []
        for effect in effects:
            match effect:
                case Send():
                    self._send(effect.message, isinstance(event, Retry))
                case Refused():
                    refusals.append(effect)
                    self._note_refusal(effect)
                case Evict():
                    self._evict(effect.blocks)
        self.rounds.noted(before, effects, now)
        self._flood(before, registers, source)
        self._flush(before, now, registers)
        if before.gate != self.state.gate and issuing(self.state):
            self._occupy_again(now)
        return refusals

    def _enter_runs(self, registers: Mapping[Block, Register]) -> None:
        own: dict[Block, Register] = {}
        for block, register in registers.items():
            heard = self._heard.get(block)
            if heard is not None and heard.register == register:
                self.runs.keep(block, heard)
            elif register.issuer == self.me:
                own[block] = register
        self.runs.issue(own)

    def _enter_blocks(
        self, before: State, registers: Mapping[Block, Register], now: float, source: NodeId | None
    ) -> None:
        gained = {b for b, r in registers.items() if r.owner == self.me and not _owned_by(before, b, self.me)}
        lost = {b for b, r in registers.items() if r.owner != self.me and _owned_by(before, b, self.me)}
        for block in sorted(lost):
            if self.allocator.state_of(block) == "idle":
                self.allocator.remove_block(block)
            elif self.state.arbiter:
                self.allocator.add_block(block, False)
        if gained and source is not None:
            self._gift(gained, not owned(before), now)
        contested = self.state.contested
        for block in sorted(gained):
            self.allocator.add_block(block, source is None and block not in contested)
        for block in sorted(contested & self._heard.keys()):
            self._contender = self._contender_of(block) or self._contender
        for block in sorted((contested ^ before.contested) - gained):
            if _owned_by(self.state, block, self.me):
                self.allocator.add_block(block, block not in contested)

    def _contender_of(self, block: Block) -> NodeId | None:
        heard, held = self._heard.get(block), self.state.registers.get(block)
        seen = [r.owner for r in (heard.register if heard else None, held) if r is not None]
        return next((owner for owner in seen if owner != self.me), None)

    def _gift(self, blocks: set[Block], first: bool, now: float) -> None:
        nonce = self._nonce()
        near = {node for node, same in self.neighbours.items() if same}
        self.gifts[nonce] = Gift(set(blocks), near, None, now + FIRST_BLOCK_SECONDS if first else None)
        self._after_flood = nonce

    _after_flood: int | None = None

    def _settle_gifts(self, now: float) -> None:
        for nonce, gift in list(self.gifts.items()):
            if gift.ready_at is None and not gift.waiting:
                gift.ready_at = now + GIFT_SETTLE_SECONDS
            late = gift.give_up_at is not None and gift.give_up_at <= now
            if late or (gift.ready_at is not None and gift.ready_at <= now):
                del self.gifts[nonce]
                self._asked.clear()
                self._ask_at = now
                for block in gift.blocks:
                    if _owned_by(self.state, block, self.me):
                        self.allocator.add_block(block, block not in self.state.contested)

    def _evict(self, blocks: Collection[Block]) -> None:
        for block in sorted(blocks):
            numbers = [n for n in self.allocator.leases() if self.allocator.block_of(n) == block]
            gone = self.allocator.lose_block(block)
            self.lost += gone
            if numbers:
                self._steps.append(Step(IpamRows(freed=tuple(numbers))))
            self.evicted += [f"{holder} lost its address: block {founding.network_of(self.settings.range_v4, block)} "
                             f"belongs to {self._owner_text(block) or 'nobody'}" for holder in gone]
        del self.evicted[:-16]

    def _note_refusal(self, effect: Refused) -> None:
        """What concerns other nodes is shown; the others are the asker's."""
        nodes = ", ".join(sorted(self.person(node) for node in effect.nodes))
        sentence = f"{effect.reason}: {nodes}"
        if nodes and sentence not in self.refused:
            self.refused = [*self.refused[-15:], sentence]

    def _occupy_again(self, now: float) -> None:
        """The gate has opened: what is in use behind it (bridge, claims, pods found standing) counts as used."""
        for block in owned(self.state):
            if self.allocator.state_of(block) == "used" and block not in self.state.used:
                self.take_in(Occupy(block), now)

    def _changed(self, change: Change, now: float) -> list[Refused]:
        """A change of the allocator, in the words of ownership and of the store."""
        refusals: list[Refused] = []
        for block in sorted(change.occupied):
            refusals += self.take_in(Occupy(block), now)
        for block in sorted(change.vacated):
            self.take_in(Vacate(block), now)
        for block in sorted(change.idle):
            self.take_in(Cooled(block), now)
        leases = [LeaseRow(n, h.container, h.ifname, False) for n, h in change.leased]
        leases += [LeaseRow(n, h.container, h.ifname, True) for n, h in change.resting]
        if leases or change.cooled:
            self._steps.append(Step(IpamRows(leases=tuple(leases), freed=change.cooled)))
        return refusals

    # -- words -------------------------------------------------------------------------------------------------------

    def say(self, node: NodeId, body: wire.Body) -> None:
        data = wire.encode_message(self.state.incarnation, self.state.universe, self._key, None, body)
        self._words.append((node, data))

    def _send(self, message: Message, again: bool) -> None:
        """What the core says. Its ``Tell`` to everybody is what ``_flood`` spreads, unless it is repeated."""
        body, to = message.body, message.to
        if isinstance(body, Tell) and to is None and not again:
            return
        if isinstance(body, ROUND_WORDS):
            self.rounds.say(message, again)
            return
        targets = [to] if to is not None else list(self.neighbours)
        for node in targets:
            if node in self.neighbours:
                for words in self.speech.said(body):
                    self.say(node, words)

    def _tell_all(self, node: NodeId) -> None:
        for facts in self.speech.facts(knowledge_of(self.state)):
            self.say(node, wire.Tell(facts))

    def _flood(self, before: State, registers: Mapping[Block, Register], source: NodeId | None) -> None:
        """What this step taught goes on to the neighbours, to ``source`` only what it did not say itself; what a value
        says is true whoever hands it on."""
        people = durable.changed_people(before, self.state)
        wanted = [row for row in wire.people_of(knowledge_of(self.state)) if row.node in people] if people else []
        unheard = {block: r for block, r in registers.items()
                   if block not in self._heard or self._heard[block].register != r}
        for node, same in self.neighbours.items():
            runs = self.runs.proofs_of(unheard if node == source else registers)
            told = [] if node == source and self._told_people else wanted
            if same and (runs or told):
                for facts in wire.facts_in_pieces(runs, told):
                    self.say(node, wire.Tell(facts))
        nonce, self._after_flood = self._after_flood, None
        if nonce is not None:
            for node in self.gifts[nonce].waiting:
                self.say(node, wire.Barrier(nonce))

    # -- to the driver -----------------------------------------------------------------------------------------------

    def _flush(self, before: State, now: float, registers: Mapping[Block, Register] | None = None) -> None:
        """Close a step: the rows that this event changed, then the words."""
        state, registers = self.state, registers or {}
        people = durable.changed_people(before, state)
        rows = IpamRows(
            head=self._head() if durable.head_changed(before, state) or state.retired != before.retired else None,
            registers=durable.register_rows(state, registers, self.runs),
            members=durable.member_rows(state, people),
        )
        words, self._words = tuple(self._words), []
        made = Step(rows, words, {block: register.owner for block, register in registers.items()},
                    state.retired - before.retired)
        if not made.empty:
            self._steps.append(made)

    def _head(self) -> bytes:
        return durable.encode_head(self.state, str(self.settings.range_v4), self.names, self.retired_names)

    def take_steps(self) -> list[Step]:
        steps, self._steps = self._steps, []
        return steps

    def present(self, rows: IpamRows) -> IpamRows:
        """The same rows as they are now: for a write that failed and is tried again."""
        numbers = {row.number for row in rows.leases} | set(rows.freed)
        held, resting = self.allocator.leases(), self.allocator.resting()
        leases = [LeaseRow(n, *held[n], False) for n in sorted(numbers & held.keys())]
        leases += [LeaseRow(n, *resting[n], True) for n in sorted(numbers & resting.keys() - held.keys())]
        return IpamRows(
            head=None if rows.head is None else self._head(),
            registers=durable.register_rows(self.state, [row.block for row in rows.registers], self.runs),
            members=durable.member_rows(self.state, [row.node for row in rows.members]),
            leases=tuple(leases),
            freed=tuple(sorted(numbers - held.keys() - resting.keys())),
        )

    def all_rows(self, stored: IpamRows) -> IpamRows:
        """All there is, and what of the stored has to go."""
        state = self.state
        numbers = [*self.allocator.leases(), *self.allocator.resting(), *(row.number for row in stored.leases)]
        people = durable.changed_people(fresh(self.me), state)
        return self.present(IpamRows(
            head=b"", registers=durable.register_rows(state, state.registers, self.runs),
            members=durable.member_rows(state, people), freed=tuple(numbers)))


def _owned_by(state: State, block: Block, node: NodeId) -> bool:
    register = state.registers.get(block)
    return register is not None and register.owner == node
