"""Whose frame is sealed next: the compiled queues against the discipline in plain Python, and what it promises.

The plain one has a list per flow and no arena. Costs, turns and victims are RFC 8290's with a cost per frame; see
`weave_router/fastpath/queues.pyx`.
"""

import random
from array import array
from collections import Counter, deque
from dataclasses import dataclass, field

from security.inputs import few, seeded

from weave_router.fastpath.probe import (
    FRAME_COST,
    QUANTUM,
    QUANTUM_LEAST,
    QUEUE_FLOWS,
    QUEUE_WEIGHT,
    VICTIM_FRAMES,
    Queues,
)
from weave_router.host.steering import CREDITS, SPENT

SMALL, SUPER = 64, 60_000
CREDIT_FRAMES = 256
FRAME_WEIGHT = 1536
DEEP = 600  # more than a flow in company may have waiting
NOW = 1_000_000_000
LATER = NOW + 200_000_000  # bounds have ended


@dataclass
class Flow:
    source: int
    frames: deque[tuple[int, int]] = field(default_factory=deque)  # (number, size)
    deficit: int = 0
    cost: int = 0


@dataclass
class Plain:
    """The discipline: flows by their key, in the order of their turns."""

    flows: dict[int, Flow] = field(default_factory=dict)
    sparse: list[int] = field(default_factory=list)
    others: list[int] = field(default_factory=list)
    victim: int = -1
    victim_frames: int = 0
    victim_cost: int = 0
    bytes: int = 0
    weight: int = 0

    def count(self, flow: Flow, size: int, sign: int) -> None:
        span = (128 + size + 63) & ~63
        flow.cost += sign * (size + FRAME_COST)
        self.bytes += sign * span
        self.weight += sign * (span + FRAME_WEIGHT)

    def pop(self, flow: Flow) -> tuple[int, int]:
        number, size = flow.frames.popleft()
        self.count(flow, size, -1)
        return number, size

    def quantum(self, source: int) -> int:
        return max(QUANTUM // sum(flow.source == source for flow in self.flows.values()), QUANTUM_LEAST)

    def put(self, number: int, size: int, key: int, source: int) -> list[int]:
        if key not in self.flows:
            self.flows[key] = Flow(source)
            self.flows[key].deficit = self.quantum(source)
            self.sparse.append(key)
        self.flows[key].frames.append((number, size))
        self.count(self.flows[key], size, 1)
        gone = []
        while self.weight > QUEUE_WEIGHT:
            if self.victim_frames and self.victim in self.flows and self.flows[self.victim].cost > self.victim_cost:
                self.victim_frames -= 1
            else:
                self.victim, self.victim_frames = self.longest(), VICTIM_FRAMES - 1
                self.victim_cost = self.flows[self.victim].cost // 2
            gone.append(self.pop(self.flows[self.victim])[0])
        return gone

    def longest(self) -> int:
        """Key of the longest flow of the source with most."""
        most: dict[int, int] = {}
        for flow in self.flows.values():
            most[flow.source] = most.get(flow.source, 0) + flow.cost
        source = max(most, key=most.__getitem__)
        known = {key: flow.cost for key, flow in self.flows.items() if flow.source == source}
        return max(known, key=known.__getitem__)

    def take(self) -> int | None:
        while turns := self.sparse or self.others:
            key, was_sparse = turns[0], turns is self.sparse
            flow = self.flows[key]
            if not flow.frames:
                turns.pop(0)
                if was_sparse and self.others:
                    self.others.append(key)
                else:
                    del self.flows[key]
            elif flow.deficit <= 0:
                turns.pop(0)
                flow.deficit += self.quantum(flow.source)
                self.others.append(key)
            else:
                number, size = self.pop(flow)
                flow.deficit -= size + FRAME_COST
                return number
        return None


def test_the_compiled_queues_do_what_the_plain_ones_do() -> None:
    """Flows whose queues do not collide, sizes of all kinds, filled and drained in waves."""
    rng = random.Random(4)
    for _ in range(20):
        queues, plain = Queues(), Plain()
        number = dropped = 0
        for step in range(3000):
            if rng.random() < (0.9 if step % 1000 < 600 else 0.2):
                flow = rng.randrange(24)
                size = rng.choice((60 + flow, 1300 + flow, rng.randrange(14, 65_000)))
                gone = queues.put(number, size, flow * 8, flow % 5)
                if gone is None:  # the arena gives space back in order; what is in the way is served first
                    assert queues.take() == plain.take()
                    continue
                assert gone == plain.put(number, size, flow, flow % 5)
                number += 1
                dropped += len(gone)
            else:
                assert queues.take() == plain.take()
            assert queues.waiting[1:] == (plain.bytes, plain.weight)
            assert plain.weight <= QUEUE_WEIGHT
        while plain.bytes:
            assert queues.take() == plain.take()
        assert queues.waiting == (0, 0, 0)
        assert queues.take() is None
    assert dropped


def test_a_sparse_flow_goes_first() -> None:
    queues = Queues()
    for number in range(100):
        assert queues.put(number, 1300, flow=1, source=1) == []
    for number in range(5):  # what one flow may spend before it is like any other
        assert queues.take() == number
    assert queues.put(1000, SMALL, flow=2, source=2) == []
    assert queues.take() == 1000


def test_the_longest_gives_way_and_the_oldest_of_it() -> None:
    queues, gone = Queues(), []
    for number in range(100):
        size, flow = (SMALL, 1) if number == 10 else (SUPER, 2)
        fallen = queues.put(number, size, flow, source=flow)
        assert fallen is not None
        gone += fallen
        if number == 10:
            assert queues.take() == 0  # it was at its turn already
            assert queues.take() == 10
    assert gone == [number for number in range(1, len(gone) + 2) if number != 10]
    assert len(gone) > 20
    frames, _, weight = queues.waiting
    assert frames == 98 - len(gone)
    assert QUEUE_WEIGHT - 2 * SUPER < weight <= QUEUE_WEIGHT


def test_many_flows_of_one_pod_buy_no_more_than_one() -> None:
    """A pod with 24 flows of small frames beside a pod with one of superframes: each has half of the service."""
    queues, kinds = Queues(), dict[int, tuple[int, int]]()
    spent, waiting = {1: 0, 2: 0}, {1: 0, 2: 0}
    for number in range(20_000):
        source = 1 if waiting[1] < 24 * 3 else 2
        if waiting[source] < (24 * 3 if source == 1 else 5):
            flow, size = (number % 24, SMALL) if source == 1 else (100, SUPER)
            assert queues.put(number, size, flow * 8, source) == []
            kinds[number] = source, size
            waiting[source] += 1
        elif (taken := queues.take()) is not None:
            source, size = kinds[taken]
            spent[source] += size + FRAME_COST
            waiting[source] -= 1
    assert 0.45 < spent[1] / (spent[1] + spent[2]) < 0.55, spent


class Bounds:
    """Queues whose flows are bound by ``words``; whoever takes credit is played by the test."""

    def __init__(self) -> None:
        self.words = array("I", bytes(4 * CREDITS))
        self.queues = Queues()
        self.queues.use_credits(self.words, now=NOW)

    def put(self, flow: int, frames: int = 1, source: int = 1) -> None:
        for _ in range(frames):
            assert self.queues.put(0, SMALL, flow, source) == []

    def take(self, frames: int = 1 << 30) -> None:
        for _ in range(frames):
            if self.queues.take() is None:
                return

    def bind(self, flow: int, other: int) -> None:
        """Both have frames waiting afterwards."""
        self.put(other, source=2)
        self.put(flow, DEEP)
        assert self.words[flow % CREDITS] == SPENT


def test_a_flow_in_company_is_bound_and_each_frame_that_leaves_lets_one_come() -> None:
    bounds, flow = Bounds(), 8
    words = bounds.words
    bounds.put(flow, DEEP)
    assert words[flow] == 0, "alone it may fill the queue"
    bounds.put(16, source=2)
    bounds.put(flow)
    assert words[flow] == SPENT and words[16] == 0
    bounds.take(590)
    waiting = bounds.queues.waiting[0]
    assert words[flow] == SPENT + CREDIT_FRAMES - waiting, "none for those that were here when it was bound"
    words[flow] = SPENT + 20  # frames that fell from a full queue took credit and left none
    bounds.take()
    assert words[flow] == SPENT + CREDIT_FRAMES, "nothing waits, so all of it is there"
    assert words[16] == 0


def test_flows_of_one_pod_are_no_company() -> None:
    """Fragments go by their addresses, whole packets by their ports: one stream of datagrams of all sizes is two."""
    bounds, flow = Bounds(), 8
    bounds.put(16)
    bounds.put(flow, DEEP)
    assert not any(bounds.words)
    bounds.put(24, source=2)
    bounds.put(flow)
    assert bounds.words[flow] == SPENT


def test_what_cpus_took_at_the_same_time_is_owed() -> None:
    """Each saw the last credit. Less than none is no licence: as much has to leave before one more may come."""
    bounds, flow = Bounds(), 8
    bounds.bind(flow, other=16)
    bounds.take(DEEP - CREDIT_FRAMES + 2)
    given = bounds.words[flow] - SPENT
    bounds.words[flow] = SPENT - 3
    bounds.take(10)
    assert given == 1 and bounds.words[flow] == SPENT + 7


def test_credit_that_was_taken_as_the_bound_ended_binds_nobody() -> None:
    """The program had seen the bound: its credit then is taken from a word that is free."""
    bounds, flow = Bounds(), 8
    bounds.bind(flow, other=16)
    bounds.take()
    bounds.queues.burst(LATER)
    assert bounds.words[flow] == 0
    bounds.words[flow] = 2**32 - 2
    bounds.bind(flow, other=16)


def test_two_flows_of_one_word_share_its_bound() -> None:
    bounds, flow, twin = Bounds(), 8, 8 + CREDITS
    bounds.put(twin, DEEP - 100, source=3)
    bounds.bind(flow, other=16)
    bounds.take(900)
    before = bounds.words[flow]
    bounds.put(twin, DEEP, source=3)
    assert bounds.words[flow] >= before > SPENT, "bound twice, it loses what was given"
    bounds.take(bounds.queues.waiting[0] - 10)
    assert bounds.words[flow] > SPENT + CREDIT_FRAMES, "the twin's frames give back too"
    bounds.take()
    bounds.queues.burst(LATER)
    assert bounds.words[flow] == 0


def test_a_word_that_another_worker_bound_is_its_business() -> None:
    bounds, flow = Bounds(), 8
    bounds.words[flow] = SPENT + 5
    bounds.put(16, source=2)
    bounds.put(flow, DEEP)
    bounds.take()
    bounds.queues.burst(LATER)
    assert bounds.words[flow] == SPENT + 5


def test_flows_that_have_to_share_a_queue_are_not_bound_for_each_other() -> None:
    """The ninth flow of a neighbourhood of eight queues waits in that of one of them, which has done nothing."""
    bounds = Bounds()
    bounds.put(17, source=2)
    place = [(flow * 0x9E3779B1 ^ 1 << 26) % 2**32 % QUEUE_FLOWS for flow in range(20_000)]
    near = [flow for flow in range(20_000) if place[flow] < 8]
    first, last = near[:8], near[8]
    for flow in first:
        bounds.put(flow)
    bounds.put(last, DEEP)
    assert not any(bounds.words), "it is another's queue"
    bounds.take()
    quiet = next(flow for flow in first if place[flow] == place[last])
    bounds.put(first[0] if first[0] != quiet else first[1])
    bounds.put(quiet, DEEP)
    assert bounds.words[quiet] == SPENT, "in a queue of its own again"


def test_fuzz_credit_of_flows_that_come_as_they_like() -> None:
    """The kernel's part played whole: its queue of 1,000, its program, readers on several CPUs. No word ever lets more
    than a bound and the kernel's queue come, whoever is quiet for a while is free, and so is all in the end."""
    rng = seeded(8)
    flows = [*range(8, 8 * 40, 8), 8 + CREDITS, 16 + CREDITS]
    words, kernel, now, rates = array("I", bytes(4 * CREDITS)), deque[int](), NOW, dict[int, int]()
    queues = Queues()
    queues.use_credits(words, now)
    refused, read = Counter[int](), 0
    for _ in range(few(40)):
        now += rng.choice((20_000, 100_000, 1_000_000, 60_000_000))
        queues.burst(now)
        if rng.random() < 0.1:
            rates = {rng.choice(flows): rng.choice((1, 3, 40, 400)) for _ in range(rng.randrange(5))}
        for flow, rate in rates.items():
            for _ in range(rng.randrange(2 * rate)):
                word = words[flow % CREDITS]
                if 0 < word <= SPENT:
                    refused[flow] += 1
                    continue
                if SPENT < word < 2**31:
                    words[flow % CREDITS] -= rng.choice((1,) * 50 + (2,))  # two CPUs saw the same
                if len(kernel) < 1000:
                    kernel.append(flow)
        for _ in range(rng.choice((0, 10, 1024))):
            if kernel and queues.put(0, SMALL, kernel[0], kernel[0] % 5) is not None:
                kernel.popleft()
                read += 1
        for _ in range(rng.choice((0, 64, 64, 1000))):
            queues.take()
        assert all(0 <= word <= SPENT + CREDIT_FRAMES + 1000 for word in (words[flow % CREDITS] for flow in flows))
    assert refused and read > refused.total() // 50
    for flow in kernel:
        assert queues.put(0, SMALL, flow, flow % 5) == []
    while queues.take() is not None:
        pass
    queues.burst(now + 200_000_000)
    assert not any(words)
