"""Invariants of address ownership as functions over the nodes of a whole cluster.

One vocabulary for unit tests, hypothesis machines, the checker and cluster runs: make a ``Node`` of what each node
holds in memory, has on disk and runs, and ask ``violations(nodes)``. Names I1 to I18 are those of the design's list;
each function says in one line what it holds. Knows the core's values, nothing of how a state was reached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import permutations
from typing import NamedTuple

from weave_router.ipam.values import Block, Gate, Message, Promise, Receive, Register, State, SyncAnswer, Tell

UP, KILLED, OFF, GONE = "up", "killed", "off", "gone"
"""The daemon runs; it does not but the pods do; the machine is off; the store is wiped."""


class Node(NamedTuple):
    condition: str
    memory: State  # what the daemon believes; the disk's when it does not run
    disk: State
    pods: frozenset[tuple[Block, int]] = frozenset()  # block and incarnation in which the pod got its address
    resting: frozenset[Block] = frozenset()  # released and not 60 s ago

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


# --- two nodes ----------------------------------------------------------------------------------------------------


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


def violations(nodes: Iterable[Node]) -> Iterator[str]:
    """Everything that is wrong in this cluster, in words."""
    everybody = tuple(nodes)
    yield from (found for node in everybody for rule in ONE if (found := rule(node)))
    yield from (found for a, b in permutations(everybody, 2) for rule in TWO if (found := rule(a, b)))
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
