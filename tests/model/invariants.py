"""Invariants of address ownership as functions over the nodes of a whole cluster.

One vocabulary for unit tests, hypothesis machines, the checker and cluster runs: make a ``Node`` of what each node
holds in memory, has on disk and runs, and ask ``violations(nodes)``. Names I1 to I18 are those of the design's list;
each function says in one line what it holds. Knows the core's values, nothing of how a state was reached.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import pairwise, permutations
from typing import NamedTuple

from weave_router.ipam.allocator import Allocator, ExhaustedError, Holder
from weave_router.ipam.donation import idle
from weave_router.ipam.knowledge import knowledge_of, merge, voters
from weave_router.ipam.ownership import step
from weave_router.ipam.values import (
    Ask,
    Block,
    Effect,
    Gate,
    Granted,
    Message,
    Occupy,
    Promise,
    Receive,
    Register,
    Send,
    State,
    SyncAnswer,
    Tell,
    Want,
)

UP, KILLED, OFF, GONE = "up", "killed", "off", "gone"
"""The daemon runs; it does not but the pods do; the machine is off; the store is wiped."""


class Node(NamedTuple):
    condition: str
    memory: State  # what the daemon believes; the disk's when it does not run
    disk: State
    pods: frozenset[tuple[Block, int]] = frozenset()  # block and incarnation in which the pod got its address
    resting: frozenset[Block] = frozenset()  # released and not 60 s ago
    book: Allocator | None = None  # single addresses, where the asker has them
    numbers: frozenset[int] = frozenset()  # of the pods, where the asker has a book

    @property
    def lives(self) -> bool:
        return self.condition == UP


OPEN_GATES = (Gate.OPEN, Gate.OWN)


# --- one node -----------------------------------------------------------------------------------------------------


def i2_a_pod_lives_in_a_block_of_its_node(node: Node) -> str | None:
    for block, _ in node.pods:
        register = node.memory.registers.get(block)
        if register is None or register.owner != node.memory.me:
            return f"I2 {name(node)} runs a pod in block {block} which it does not own: {register}"
    return None


def i6_a_pod_is_on_disk(node: Node) -> str | None:
    for block, _ in node.pods:
        if block not in node.disk.used:
            return f"I6 {name(node)} answered an address of block {block} that is not on its disk"
    return None


def i8_what_rests_is_kept(node: Node) -> str | None:
    for block in node.resting:
        if block not in node.disk.cooling | node.disk.used:
            return f"I8 block {block} of {name(node)} rests and its disk has forgotten that"
    return None


def i9_no_allocation_before_the_gate(node: Node) -> str | None:
    if node.lives and node.memory.gate not in OPEN_GATES:
        for block, incarnation in node.pods:
            if incarnation == node.memory.incarnation:
                return f"I9 {name(node)} answered an address of block {block} behind its gate"
    return None


def i11_the_retired_own_nothing(node: Node) -> str | None:
    if node.memory.me in node.memory.retired and (node.pods or node.memory.registers):
        return f"I11 {name(node)} knows that it is retired and still owns or runs something"
    return None


def i18_a_node_without_universe_owns_nothing(node: Node) -> str | None:
    if node.memory.universe is None and (node.pods or node.memory.registers or node.resting):
        return f"I18 {name(node)} has no universe and yet pods or registers"
    return None


# --- one node's single addresses: a copy of its allocator is asked what it would do ---------------------------------

PROBES = 64
"""So many addresses of a node are drawn to see which it would answer next."""
PROBE, NOBODY = Holder("probe", "eth0"), Holder("never seen", "eth0")


def i12_a_second_add_changes_nothing(book: Allocator, numbers: frozenset[int]) -> str | None:
    """Nor does a delete of the unknown; and a pod's address is somebody's."""
    copied = copy_of(book)
    for holder in sorted(set(book.leases().values())):
        held = book.addresses_of(holder)
        again, change = copied.allocate(holder, 0.0, len(held))
        if again != held or change.leased:
            return f"I12 {holder} has {held} and is given {again} when it asks again"
    if copied.release(NOBODY, 0.0).resting or copied.leases() != book.leases():
        return "I12 the delete of an unknown container released something"
    homeless = numbers - book.leases().keys()
    return f"I12 pods live at {sorted(homeless)}, which nobody holds" if homeless else None


def i13_a_release_frees_only_its_own(book: Allocator, numbers: frozenset[int]) -> str | None:
    copied, left = copy_of(book), book.leases()
    holders = sorted(set(left.values()))
    for holder, other in pairwise([*holders, NOBODY]):
        for number in book.addresses_of(holder):
            if copied.release(other, 0.0, number).resting:
                return f"I13 {other} released {number} of {holder}"
        left = {n: h for n, h in left.items() if h != holder}
        gone = {n for n, _ in copied.release(holder, 0.0).resting}
        if copied.leases() != left or gone != set(book.addresses_of(holder)):
            return f"I13 the release of {holder} freed {sorted(gone)} and left {copied.leases()}"
    return None


def i14_nothing_reserved_is_given(book: Allocator, numbers: frozenset[int]) -> str | None:
    """Neither the range's ends nor what is excluded, in use (the bridge's is), at rest or in another's block."""
    wanted = min(book.free_count(), PROBES)
    drawn, _ = copy_of(book).allocate(PROBE, 0.0, wanted)
    taken = numbers | book.leases().keys() | book.resting().keys()
    taken |= {int(book._range.network_address), int(book._range.broadcast_address)}
    excluded = [range(int(net.network_address), int(net.broadcast_address) + 1) for net in book._excluded]
    for number in drawn:
        if number in taken or any(number in net for net in excluded) or not book._blocks.get(book.block_of(number)):
            return f"I14 {number} would be answered and is reserved, in use, at rest or not this node's"
    return None


def i15_exhaustion_is_said_and_ends(book: Allocator, numbers: frozenset[int]) -> str | None:
    """In one block: never a number twice, an error at its end, one more when one has rested. That it is said within
    2 s is for the driver's test."""
    usable = [block for block, so in book._blocks.items() if so]
    if not usable:
        return None
    copied, within = copy_of(book), book._network_of(min(usable))

    def draw(probe: int, at: float) -> int | None:
        try:
            return copied.allocate(Holder(f"probe {probe}", "eth0"), at, 1, within)[0][0]
        except ExhaustedError:
            return None

    now = max((until for until, _ in book._resting.values()), default=0.0)
    seen = set(book.leases())
    drawn = [n for at in range(book._size + 1) if (n := draw(at, now)) is not None]
    if len(drawn) > book._size or seen & set(drawn) or len(set(drawn)) != len(drawn):
        return f"I15 {within} gave {drawn} beside {sorted(seen)}"
    if drawn:
        copied.release(Holder("probe 0", "eth0"), now)
        if draw(-1, now) is not None:
            return f"I15 {within} gave an address that rests"
        if draw(-2, now + book._cooldown) is None:
            return f"I15 {within} stays full although {drawn[0]} has rested"
    return None


def copy_of(book: Allocator) -> Allocator:
    """Changes nothing of the original; knows no other node's name."""
    copied = copy.copy(book)
    kept = {"_owner_of", "_range", "_excluded"}
    vars(copied).update({k: v if k in kept else copy.deepcopy(v) for k, v in vars(book).items()})
    return copied


# --- two nodes ----------------------------------------------------------------------------------------------------


def i5_merge_is_a_join(one: Node, other: Node) -> str | None:
    """Commutative, associative, idempotent and monotone, between nodes whose gate is open (others' values may be ones
    that nobody accepts) and for who knows the same promises (R7)."""
    a, b = one.memory, other.memory
    if a.universe != b.universe or a.arbiter or not (opened(one) and opened(other)):
        return None
    observer = State(me=b"observer", universe=a.universe, promised=a.promised | b.promised)

    def learned(*told: State) -> State:
        state = observer
        for each in told:
            state = merge(state, knowledge_of(each), [])
        return state

    both = learned(a, b)
    if not both == learned(b, a) == learned(a, b, a) == learned(both):
        return f"I5 what {name(one)} and {name(other)} know depends on the order in which it is heard"
    lower = [k for s in (a, b) for k, r in s.registers.items()
             if r.issuer not in observer.promised and both.registers[k][:2] < r[:2]]  # fmt: skip
    return f"I5 blocks {lower} went back by a merge of {name(one)} and {name(other)}" if lower else None


def i17_who_has_spare_blocks_gives(one: Node, other: Node) -> str | None:
    """An open member that asks an open one with an idle block can answer an address of it: question, gift and first
    use by the very core. That it takes no more than 2 s is for the tests in virtual time."""
    asker, donor = one.memory, other.memory
    spare = [block for block in idle(donor) if block not in asker.contested]
    if not (spare and _reach(one, other) and _reach(other, one)):
        return None
    _, asked = step(asker, Want(donor.me))
    for question in _sent(asked, Ask):
        _, answers = step(donor, Receive(question))
        for gift in _sent(answers, Tell):
            state, _ = step(asker, Receive(gift))
            before = {b for b, r in asker.registers.items() if r.owner == asker.me}
            fresh = [b for b, r in state.registers.items() if r.owner == asker.me and b not in before]
            if fresh and Granted(fresh[0]) in step(state, Occupy(fresh[0]))[1]:
                return None
    return f"I17 {name(one)} gets no block of {name(other)}, which has {len(spare)} to spare"


def _reach(one: Node, other: Node) -> bool:
    """Open, of one universe, and the other knows this life of it as a member that nobody was promised to refuse."""
    mine, theirs = one.memory, other.memory
    member = mine.me in voters(theirs) - theirs.promised and mine.incarnation >= theirs.incarnations.get(mine.me, 0)
    ready = one.lives and mine.gate == Gate.OPEN and not mine.leaving and not mine.arbiter
    return member and ready and mine.universe == theirs.universe and mine.universe is not None


def _sent(effects: Iterable[Effect], kind: type) -> list[Message]:
    return [e.message for e in effects if isinstance(e, Send) and isinstance(e.message.body, kind)]


def i1_no_address_twice(one: Node, other: Node) -> str | None:
    if not one.pods or not other.pods or one.memory.universe != other.memory.universe:
        return None
    shared = {b for b, _ in one.pods} & {b for b, _ in other.pods}
    return f"I1 {name(one)} and {name(other)} both have live pods in blocks {sorted(shared)}" if shared else None


def i2_nobody_overrides_a_live_owner(one: Node, other: Node) -> str | None:
    if one.memory.universe != other.memory.universe or not ready(other):
        return None
    for block, _ in one.pods:
        mine, theirs = one.memory.registers.get(block), other.memory.registers.get(block)
        if mine and theirs and theirs[:2] > mine[:2]:
            return f"I2 {name(other)} overrides block {block} of {name(one)}: {show(theirs)} over {show(mine)}"
    return None


def i3_one_epoch_one_owner(one: Node, other: Node) -> str | None:
    """Between nodes whose gate is open: a retired machine's disk may hold what nobody will ever accept."""
    if one.memory.universe != other.memory.universe or not (opened(one) and opened(other)):
        return None
    for block, mine in one.memory.registers.items():
        theirs = other.memory.registers.get(block)
        if theirs and mine is not theirs and theirs[:2] == mine[:2] and theirs.owner != mine.owner:
            return f"I3 block {block}: {name(one)} has {show(mine)}, {name(other)} has {show(theirs)}"
    return None


def i10_a_promise_counts_once(one: Node, other: Node) -> str | None:
    """R6: no member stands as having promised in two open rounds about one victim, unless one retires the other."""
    if one.disk.round is None or other.disk.round is None:
        return None
    shared = frozenset(one.disk.round.victims) & frozenset(other.disk.round.victims)
    acks = one.disk.round.acks & other.disk.round.acks
    apart = one.memory.me in other.disk.round.victims or other.memory.me in one.disk.round.victims
    if shared and acks and not apart:
        return f"I10 {ids(acks)} promised to the rounds of {name(one)} and {name(other)} about {ids(shared)}"
    return None


def i10_a_retirement_has_every_promise(one: Node, other: Node) -> str | None:
    """Whoever is open and not retired itself has promised what is complete anywhere (or was told at admission)."""
    if one.memory.universe != other.memory.universe or not opened(other):
        return None
    done = one.disk.retired - {other.memory.me}
    if done and other.memory.me not in one.disk.retired and not done <= other.disk.promised:
        return f"I10 {name(one)} retired {ids(done)} without the promise of {name(other)}"
    return None


def i11_the_retired_are_not_open(one: Node, other: Node) -> str | None:
    if other.memory.me in one.disk.retired and opened(other) and one.memory.universe == other.memory.universe:
        return f"I11 {name(other)} is open although {name(one)} knows it as retired"
    return None


# --- all nodes ----------------------------------------------------------------------------------------------------


def i4_no_block_is_lost(nodes: tuple[Node, ...]) -> str | None:
    """The newest register on the disk of any member that is left never names one that left and was wiped or one that
    was retired. A gift that its giver still waits to see confirmed is not lost: it takes it back at the good-bye."""
    wiped = {n.memory.me for n in nodes if n.condition == GONE}
    wiped |= {x for n in nodes for x in n.disk.retired}
    if not wiped:
        return None
    newest: dict[Block, Register] = {}
    for node in nodes:
        if node.memory.me not in wiped:
            for block, register in node.disk.registers.items():
                if block not in newest or register[:2] > newest[block][:2]:
                    newest[block] = register
    owed = {(b, r) for n in nodes if n.memory.me not in wiped for b, r in n.disk.owed.items()}
    for block, register in newest.items():
        if register.owner in wiped and (block, register) not in owed:
            return f"I4 block {block} is lost with {ids([register.owner])}: {show(register)}"
    return None


# --- a message at the moment when it is sent ------------------------------------------------------------------------


def i7_a_grant_is_on_disk_before_it_is_sent(sender: Node, message: Message) -> str | None:
    if isinstance(message.body, Tell):
        for block, register in message.body.knowledge.registers.items():
            if register.issuer == sender.memory.me:
                stored = sender.disk.registers.get(block)
                if stored is None or stored[:2] < register[:2]:
                    return f"I7 {name(sender)} sent {show(register)} of block {block} before it was on disk"
    return None


def i8_only_an_empty_block_is_given(sender: Node, message: Message) -> str | None:
    if isinstance(message.body, Tell):
        for block, register in message.body.knowledge.registers.items():
            if register.issuer == sender.memory.me != register.owner and block in sender.resting:
                return f"I8 {name(sender)} gave block {block} away while an address of it rested"
    return None


def i10_a_promise_is_whole(sender: Node, message: Message) -> str | None:
    """R5 and R7: the ack is on disk and carries all that the acker knows."""
    if isinstance(message.body, Promise):
        told, disk = message.body.knowledge, sender.disk
        for field in ("registers", "members", "proposed", "incarnations", "retired", "promised", "left"):
            if getattr(told, field) != getattr(disk, field):
                return f"I10 the ack of {name(sender)} withholds its {field} or they are not on disk"
    return None


def i9_only_the_open_open_others(sender: Node, message: Message) -> str | None:
    if isinstance(message.body, SyncAnswer) and message.body.open and sender.memory.gate != Gate.OPEN:
        return f"I9 {name(sender)} opens a gate for another behind its own ({sender.memory.gate.name})"
    return None


def r9_a_taken_block_counts_the_retired(sender: Node, message: Message) -> str | None:
    if isinstance(message.body, Tell) and message.body.knowledge.retired and sender.memory.gate in OPEN_GATES:
        for block, register in message.body.knowledge.registers.items():
            if register.issuer == sender.memory.me and register.gen < len(sender.memory.retired):
                return f"R9 {name(sender)} took block {block} at {show(register)} with more retired than that"
    return None


def r9_nobody_is_retired_twice(before: State, event: object, victims: frozenset[bytes]) -> str | None:
    """At the moment when a round completes."""
    known = before.retired
    if isinstance(event, Receive) and isinstance(event.message.body, Promise):
        known |= event.message.body.knowledge.retired
    again = victims & known
    return f"R9 {ids([before.me])} retired {ids(again)} again" if again else None


def r3_gifts_go_to_members(sender: Node, message: Message) -> str | None:
    """From an open gate, to somebody admitted (or a slot's owner); R3, R7 and R11."""
    if isinstance(message.body, Tell):
        for block, register in message.body.knowledge.registers.items():
            if register.issuer != sender.memory.me or register.owner == sender.memory.me:
                continue
            if register.owner in sender.memory.promised and sender.memory.gate != Gate.LEFT:
                return f"R7 {name(sender)} gave block {block} to a victim: {show(register)}"
            if register.owner not in sender.memory.members or sender.memory.gate not in (Gate.OPEN, Gate.LEFT):
                return f"R3 {name(sender)} ({sender.memory.gate.name}) gave block {block} to {show(register)}"
    return None


def r12_nothing_is_said_after_the_wipe(sender: Node, message: Message) -> str | None:
    return f"R12 {name(sender)} wiped its store before its last word" if sender.condition == GONE else None


def r10_a_message_names_the_life_it_comes_from(sender: Node, message: Message) -> str | None:
    if message.incarnation != sender.memory.incarnation or sender.disk.incarnation < message.incarnation:
        return f"R10 {name(sender)} sent as incarnation {message.incarnation}, is {sender.memory.incarnation}"
    return None


ONE: tuple[Callable[[Node], str | None], ...] = (
    i2_a_pod_lives_in_a_block_of_its_node,
    i6_a_pod_is_on_disk,
    i8_what_rests_is_kept,
    i9_no_allocation_before_the_gate,
    i11_the_retired_own_nothing,
    i18_a_node_without_universe_owns_nothing,
)
TWO: tuple[Callable[[Node, Node], str | None], ...] = (
    i1_no_address_twice,
    i2_nobody_overrides_a_live_owner,
    i3_one_epoch_one_owner,
    i10_a_promise_counts_once,
    i10_a_retirement_has_every_promise,
    i11_the_retired_are_not_open,
)
ALL: tuple[Callable[[tuple[Node, ...]], str | None], ...] = (i4_no_block_is_lost,)
BOOK: tuple[Callable[[Allocator, frozenset[int]], str | None], ...] = (
    i12_a_second_add_changes_nothing,
    i13_a_release_frees_only_its_own,
    i14_nothing_reserved_is_given,
    i15_exhaustion_is_said_and_ends,
)
"""For nodes whose single addresses are known; the checker knows blocks alone."""
ASKED: tuple[Callable[[Node, Node], str | None], ...] = (i5_merge_is_a_join, i17_who_has_spare_blocks_gives)
"""They run the core; the checker runs it anyway and would run it for nothing else."""
SENT: tuple[Callable[[Node, Message], str | None], ...] = (
    i7_a_grant_is_on_disk_before_it_is_sent,
    i8_only_an_empty_block_is_given,
    i9_only_the_open_open_others,
    i10_a_promise_is_whole,
    r3_gifts_go_to_members,
    r9_a_taken_block_counts_the_retired,
    r12_nothing_is_said_after_the_wipe,
    r10_a_message_names_the_life_it_comes_from,
)


def violations(nodes: Iterable[Node], right: Collection[Node] = ()) -> Iterator[str]:
    """Everything that is wrong in this cluster, in words. ``right``: nodes, as they are now, that were found right
    among each other."""
    everybody = tuple(nodes)
    known = {id(node) for node in right}
    yield from (found for node in everybody for rule in ONE if (found := rule(node)))
    for a, b in permutations(everybody, 2):
        if not {id(a), id(b)} <= known:
            yield from (found for rule in (*TWO, *ASKED) if (found := rule(a, b)))
    for node in everybody:
        if node.book is not None:
            yield from (f"{name(node)}: {wrong}" for rule in BOOK if (wrong := rule(node.book, node.numbers)))
    yield from (found for rule in ALL if (found := rule(everybody)))


def opened(node: Node) -> bool:
    return node.lives and node.memory.gate in OPEN_GATES


def ready(node: Node) -> bool:
    """Open, or would be after a restart of the daemon alone."""
    return node.condition in (UP, KILLED) and node.memory.gate in OPEN_GATES


def name(node: Node) -> str:
    return ids([node.memory.me])


def ids(nodes: Iterable[bytes]) -> str:
    return ",".join(n.decode() if n.isascii() else n.hex()[:8] for n in sorted(nodes))


def show(register: Register) -> str:
    return f"({register.gen}.{register.seq} {ids([register.owner])} by {ids([register.issuer])})"
