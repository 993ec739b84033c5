"""The ownership core by hand: one node at a time, and clusters of honest nodes driven by hypothesis.

The exhaustive search is in ``tests/model``; here stands what a person wants to read, what the search cannot say
(order of effects, words for the operator), and the same invariants on greater clusters.
"""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from model.invariants import OFF, UP, Node, violations

from weave_router.ipam import values as v
from weave_router.ipam.knowledge import merge
from weave_router.ipam.ownership import fresh, step
from weave_router.ipam.values import FrozenMap, Gate, Knowledge, Register, State, durable
from weave_router.limits import GIFT_BLOCKS_MAX

A, B, C, D = (b"a", b"b", b"c", b"d")
UNIVERSE = b"u" * 16


def member(me: bytes, members: bytes = b"abc", owner: bytes = A, blocks: int = 1, **more: object) -> State:
    everybody = frozenset(bytes([x]) for x in members)
    state = State(
        me=me,
        boot_id="boot",
        universe=UNIVERSE,
        gate=Gate.OPEN,
        registers=FrozenMap({b: Register(0, 0, owner, owner) for b in range(blocks)}),
        members=everybody,
        incarnations=FrozenMap(dict.fromkeys(sorted(everybody), 1)),
        incarnation=1,
    )
    return state._replace(**more)  # type: ignore[arg-type]


def sent(effects: tuple[v.Effect, ...], kind: type) -> list[v.Message]:
    return [e.message for e in effects if isinstance(e, v.Send) and isinstance(e.message.body, kind)]


def message(sender: State | bytes, body: v.Body, to: bytes | None = None, incarnation: int = 1) -> v.Receive:
    name = sender if isinstance(sender, bytes) else sender.me
    return v.Receive(v.Message(name, incarnation, UNIVERSE, to, body))


def refused(effects: tuple[v.Effect, ...]) -> list[str]:
    return [e.reason for e in effects if isinstance(e, v.Refused)]


# --- values ---


def test_a_frozen_map_is_a_value() -> None:
    one = FrozenMap({1: "x"})
    assert hash(one) == hash(FrozenMap({1: "x"})) and one.with_items({2: "y"}) == {1: "x", 2: "y"} and one == {1: "x"}
    for change in (
        lambda: one.__setitem__(1, "z"),
        lambda: one.update({1: "z"}),
        lambda: one.pop(1),
        lambda: one.clear(),
        lambda: one.setdefault(3, "z"),
    ):
        with pytest.raises(TypeError):
            change()


registers = st.builds(
    Register, st.integers(0, 3), st.integers(0, 3), st.sampled_from([A, B, C]), st.sampled_from([A, B, C])
)
knowledge = st.builds(
    Knowledge,
    registers=st.dictionaries(st.integers(0, 4), registers).map(FrozenMap),
    members=st.frozensets(st.sampled_from([A, B, C, D])),
    incarnations=st.dictionaries(st.sampled_from([A, B, C]), st.integers(0, 5)).map(FrozenMap),
)


def one_owner_per_epoch(parts: list[Knowledge]) -> bool:
    """I3 holds in every cluster that the search has seen: the law of merging is about those."""
    seen: dict[tuple[int, int, int], Register] = {}
    for part in parts:
        for block, r in part.registers.items():
            if seen.setdefault((block, r.gen, r.seq), r) != r:
                return False
    return True


@given(st.lists(knowledge, min_size=1, max_size=3).filter(one_owner_per_epoch))
def test_i5_merge_is_commutative_idempotent_and_monotone(parts: list[Knowledge]) -> None:
    start = State(me=D, incarnation=9, universe=UNIVERSE, gate=Gate.OPEN)
    results = []
    for order in itertools.permutations(parts):
        state = start
        for part in (*order, order[0]):
            before = state
            state = merge(state, part, [])
            assert before.members <= state.members
            assert all(state.registers[b][:2] >= r[:2] for b, r in before.registers.items())
        results.append(state)
    assert all(r == results[0] for r in results)


# --- one node ---


def test_persist_stands_before_everything() -> None:
    _, effects = step(member(A), message(B, v.Ask(), to=A))
    assert isinstance(effects[0], v.Persist) and sent(effects, v.Tell)
    _, effects = step(member(A), v.Occupy(0))
    assert effects == (v.Persist(), v.Granted(0))


def test_half_of_what_is_idle_is_given_and_never_the_used() -> None:
    state = member(A, blocks=6, used=frozenset({0}), cooling=frozenset({1}))
    after, effects = step(state, message(B, v.Ask(), to=A))
    given_away = {b for b, r in after.registers.items() if r.owner == B}
    assert given_away == {2, 3} == set(after.owed)
    assert sent(effects, v.Tell)[0].body.knowledge.registers.keys() == {2, 3}


def test_a_gift_has_at_most_256_blocks() -> None:
    after, _ = step(member(A, blocks=1000), message(B, v.Ask(), to=A))
    assert sum(r.owner == B for r in after.registers.values()) == GIFT_BLOCKS_MAX


def test_a_receipt_frees_the_giver() -> None:
    after, _ = step(member(A), message(B, v.Ask(), to=A))
    receiver, effects = step(member(B), message(A, v.Tell(Knowledge(registers=after.owed))))
    (receipt,) = sent(effects, v.Have)
    assert receiver.registers[0].owner == B and isinstance(effects[0], v.Persist)
    assert step(after, v.Receive(receipt))[0].owed == {}


@pytest.mark.parametrize(
    ("boot_id", "older", "members", "gate"),
    [
        ("boot", False, b"abc", Gate.OPEN),
        ("other", False, b"abc", Gate.CLOSED),
        ("boot", True, b"abc", Gate.RESTORED),
        ("other", False, b"a", Gate.OPEN),
    ],
)
def test_the_gate_after_a_start(boot_id: str, older: bool, members: bytes, gate: Gate) -> None:
    state, effects = step(member(A, members), v.Boot(boot_id, 2, nonce=77, store_older=older))
    assert state.gate == gate and state.incarnation == 2
    assert isinstance(effects[0], v.Persist)
    assert bool(sent(effects, v.SyncAsk)) == (gate == Gate.CLOSED)


def test_pods_go_on_behind_the_gate_and_new_ones_wait() -> None:
    gated, _ = step(member(A, used=frozenset({0})), v.Boot("boot", 2, nonce=1))
    assert gated.used == {0}  # same boot: they live
    gated, _ = step(member(A, used=frozenset({0})), v.Boot("other", 2, nonce=1))
    assert gated.used == frozenset() and gated.cooling == {0}
    assert refused(step(gated, v.Occupy(0))[1]) == ["new addresses wait for the gate"]
    assert step(gated, v.Cooled(0))[0].cooling == frozenset()


def test_a_live_address_that_the_store_does_not_know_makes_its_block_used() -> None:
    state, _ = step(member(A, blocks=2), v.Boot("boot", 2, nonce=1, live=frozenset({1, 9})))
    assert state.used == {1}


def test_who_was_retired_hears_it_first_and_owns_nothing_then() -> None:
    helper = member(B, retired=frozenset({A}), promised=frozenset({A}))
    gated, effects = step(member(A, used=frozenset({0})), v.Boot("other", 2, nonce=1))
    (question,) = sent(effects, v.SyncAsk)
    _, effects = step(helper, v.Receive(question))
    (answer,) = sent(effects, v.Tell)
    after, effects = step(gated, v.Receive(answer))
    assert after.gate == Gate.RETIRED and not after.registers
    assert v.Evict(frozenset({0})) in effects
    assert step(after, message(B, v.Ask(), to=A)) == (after, ())


def test_amnesia_a_later_life_known_elsewhere_closes_the_gate() -> None:
    gated, _ = step(member(A), v.Boot("other", 2, nonce=5))
    seen = Knowledge(incarnations=FrozenMap({A: 7}))
    after, _ = step(gated, message(B, v.SyncAnswer(5, True, seen), to=A))
    assert after.gate == Gate.RESTORED
    assert step(after, v.Ungate())[0].gate == Gate.OWN


def test_a_round_waits_names_who_is_missing_and_completes() -> None:
    state, effects = step(member(A, b"abcd", owner=D), v.Retire(frozenset({D})))
    (ask,) = sent(effects, v.RetireAsk)
    assert v.Waiting(frozenset({B, C})) in effects
    for peer in (B, C):
        acker, effects = step(member(peer, b"abcd", owner=D), v.Receive(ask))
        assert acker.promised == {D}
        (promise,) = sent(effects, v.Promise)
        assert state.round is not None
        state, effects = step(state, v.Receive(promise))
    assert v.Retired(frozenset({D})) in effects
    assert state.registers[0] == Register(1, 0, A, A) and state.round is None
    assert refused(step(state, v.Retire(frozenset({D})))[1]) == ["already retired"]


@pytest.mark.parametrize(
    ("victims", "reason"),
    [
        (frozenset({B, C}), "more than half of the members cannot be retired"),
        (frozenset({A}), "not a member that can be retired from here"),
        (frozenset({b"z"}), "not a member that can be retired from here"),
        (frozenset(), "already retired"),
    ],
)
def test_rounds_that_do_not_start(victims: frozenset[bytes], reason: str) -> None:
    state = member(A)
    after, effects = step(state, v.Retire(victims))
    assert after == state and refused(effects) == [reason]


def test_a_second_coordinator_is_told_of_the_first() -> None:
    first, effects = step(member(A, b"abcd"), v.Retire(frozenset({D})))
    (ask,) = sent(effects, v.RetireAsk)
    promised, _ = step(member(C, b"abcd"), v.Receive(ask))
    second, effects = step(member(B, b"abcd"), v.Retire(frozenset({D})))
    (other,) = sent(effects, v.RetireAsk)
    _, effects = step(promised, v.Receive(other))
    (nack,) = sent(effects, v.Nack)
    after, effects = step(second, v.Receive(nack))
    assert v.Refused("another round is open", frozenset({A})) in effects and after.round is None
    assert refused(step(promised, v.Retire(frozenset({D})))[1]) == ["another round is open"]
    _, closing = step(first, v.Abort())
    freed, _ = step(promised, v.Receive(sent(closing, v.Aborted)[0]))
    assert freed.locks == {} and freed.promised == {D}  # the lock goes, the promise stays


def test_a_lost_coordinator_is_superseded_by_a_round_that_retires_it_too() -> None:
    _, effects = step(member(A, b"abcd"), v.Retire(frozenset({D})))
    promised, _ = step(member(C, b"abcd"), v.Receive(sent(effects, v.RetireAsk)[0]))
    _, effects = step(member(B, b"abcd"), v.Retire(frozenset({A, D})))
    _, effects = step(promised, v.Receive(sent(effects, v.RetireAsk)[0]))
    assert sent(effects, v.Promise)


def test_leaving_gives_waits_says_and_wipes_in_that_order() -> None:
    state = member(A, b"ab", blocks=2)
    assert refused(step(state._replace(used=frozenset({0})), v.Leave())[1])
    leaving, effects = step(state, v.Leave())
    assert all(r.owner == B for r in leaving.registers.values())
    assert v.Waiting(frozenset({B})) in effects and v.Wipe() not in effects
    _, effects = step(member(B, b"ab", blocks=2), v.Receive(sent(effects, v.Tell)[0]))
    (receipt,) = sent(effects, v.Have)
    gone, effects = step(leaving, v.Receive(receipt))
    assert gone.gate == Gate.LEFT
    assert [type(e) for e in effects] == [v.Persist, v.Send, v.Wipe]
    assert [type(e) for e in step(gone, v.Retry(1))[1]] == [v.Send, v.Wipe]  # it died before it could say so


def test_seed_slots_are_bound_by_name_and_two_claims_contest() -> None:
    deal = FrozenMap({0: Register(0, 0, b"slot-1", b"slot-1"), 1: Register(0, 0, b"slot-2", b"slot-2")})
    slots = frozenset({b"slot-1", b"slot-2"})
    one, told_one = step(fresh(A), v.Found(UNIVERSE, deal, slots, b"slot-1"))
    two, told_two = step(fresh(B), v.Found(UNIVERSE, deal, slots, b"slot-2"))
    assert one.registers[0].owner == A and one.registers[1].owner == b"slot-2"
    one, _ = step(one, v.Receive(sent(told_two, v.Tell)[0]))
    two, _ = step(two, v.Receive(sent(told_one, v.Tell)[0]))
    assert one.registers == two.registers and one.members - one.left == two.members - two.left == {A, B}
    thief, told = step(fresh(C), v.Found(UNIVERSE, deal, slots, b"slot-1"))
    one, _ = step(one, v.Receive(sent(told, v.Tell)[0]))
    thief, _ = step(thief, v.Receive(sent(told_one, v.Tell)[0]))
    for state in (one, thief):
        assert state.contested == {0}
        assert refused(step(state, v.Occupy(0))[1])


def test_of_two_universes_the_spare_one_gives_itself_up() -> None:
    def alone(me: bytes, **more: object) -> State:
        return member(me, me, owner=me, universe=b"universe of " + me, **more)

    def meet(one: State, other: State) -> tuple[State, tuple[v.Effect, ...]]:
        _, effects = step(other, v.Met(one.me))
        return step(one, v.Receive(sent(effects, v.Hello)[0]))

    used = {"used": frozenset({0})}
    assert meet(alone(A), alone(B))[0].universe is not None  # both spare: the greater id goes
    assert meet(alone(B), alone(A))[0].universe is None
    assert meet(alone(A), alone(B, **used))[0].universe is None
    kept, effects = meet(alone(A, **used), alone(B, **used))
    assert kept.registers and refused(effects) == ["that node is in another universe"]


def test_words_of_another_universe_change_nothing() -> None:
    state = member(A)
    alien = v.Message(B, 1, b"other", None, v.Tell(Knowledge(registers=FrozenMap({0: Register(9, 0, B, B)}))))
    after, effects = step(state, v.Receive(alien))
    assert after == state and refused(effects) == ["that node is in another universe"]


# --- a cluster of five under hypothesis: the same invariants, greater than a search can be ---


class Cluster(RuleBasedStateMachine):
    """Four members and a candidate, six blocks. Messages are delivered in any order, many times or never."""

    names = (A, B, C, D, b"e")
    someone = st.integers(0, 4)

    @initialize()
    def begin(self) -> None:
        registers = FrozenMap({b: Register(0, 0, self.names[b % 4], self.names[b % 4]) for b in range(6)})
        self.nodes = [
            Node(UP, s, durable(s)) for s in (member(n, b"abcd", registers=registers) for n in self.names[:4])
        ]
        candidate = State(me=b"e", boot_id="boot", incarnation=1, incarnations=FrozenMap({b"e": 1}))
        self.nodes.append(Node(UP, candidate, durable(candidate)))
        self.messages: list[v.Message] = []
        self.right: tuple[Node, ...] = ()

    def run_event(self, i: int, event: v.Event) -> None:
        node = self.nodes[i]
        after, effects = step(node.disk if isinstance(event, v.Boot) else node.memory, event)
        disk, pods = node.disk, node.pods
        for effect in effects:
            if isinstance(effect, v.Persist):
                disk = durable(after)
            elif isinstance(effect, v.Send) and effect.message not in self.messages:
                self.messages.append(effect.message)
            elif isinstance(effect, v.Granted):
                pods |= {(effect.block, after.incarnation)}
            elif isinstance(effect, v.Evict):
                assert not {b for b, _ in pods} & effect.blocks
        for block in sorted(after.cooling):
            after, _ = step(after, v.Cooled(block))
            disk = durable(after)
        if (became := Node(UP, after, disk, pods)) != node:
            self.nodes[i] = became

    @rule(i=someone, which=st.integers(0, 10_000), last=st.booleans())
    def deliver(self, i: int, which: int, last: bool) -> None:
        if self.messages and self.nodes[i].lives:
            recent = self.messages[-6:] if last else self.messages
            self.run_event(i, v.Receive(recent[which % len(recent)]))

    @rule(newest=st.integers(1, 12), deaf=st.frozensets(someone, max_size=2))
    def flood(self, newest: int, deaf: frozenset[int]) -> None:
        """The newest messages, and what they bring about, reach all that live but a few."""
        start = max(0, len(self.messages) - newest)
        for sent_message in itertools.islice(self.messages, start, start + 40):
            for i in range(5):
                if i not in deaf and self.nodes[i].lives:
                    self.run_event(i, v.Receive(sent_message))

    @rule(i=someone, which=st.integers(0, 5))
    def allocate(self, i: int, which: int) -> None:
        node = self.nodes[i]
        mine = [b for b, r in node.memory.registers.items() if r.owner == node.memory.me]
        idle = sorted(set(mine) - {b for b, _ in node.pods})
        if node.lives and idle:
            self.run_event(i, v.Occupy(idle[which % len(idle)]))

    @rule(i=someone)
    def free(self, i: int) -> None:
        node = self.nodes[i]
        if node.lives and node.pods:
            block, life = min(node.pods)
            self.nodes[i] = node._replace(pods=node.pods - {(block, life)})
            self.run_event(i, v.Vacate(block))

    @rule(i=someone, donor=someone)
    def want(self, i: int, donor: int) -> None:
        if self.nodes[i].lives and i != donor:
            self.run_event(i, v.Want(self.names[donor]))

    @rule(i=someone)
    def join(self, i: int) -> None:
        node = self.nodes[4]
        if node.lives and node.memory.gate == Gate.CANDIDATE and i != 4:
            self.run_event(4, v.Join(self.names[i], 2 * node.memory.incarnation + 1))

    @rule(i=someone)
    def power_off(self, i: int) -> None:
        disk = self.nodes[i].disk
        self.nodes[i] = Node(OFF, disk, disk)

    @rule(i=someone)
    def start(self, i: int) -> None:
        node = self.nodes[i]
        life = node.disk.incarnation + 1
        boot_id = life if node.condition == OFF else node.disk.boot_id
        self.run_event(i, v.Boot(boot_id, life, 2 * life, live=frozenset(b for b, _ in node.pods)))

    @rule(i=someone, data=st.data())
    def retire(self, i: int, data: st.DataObject) -> None:
        dark = [n.memory.me for n in self.nodes if n.condition == OFF]
        if self.nodes[i].lives and dark:
            victims = data.draw(st.frozensets(st.sampled_from(dark), min_size=1, max_size=2))
            self.run_event(i, v.Retire(victims))

    @invariant()
    def nothing_is_wrong(self) -> None:
        if hasattr(self, "nodes"):
            assert not list(violations(self.nodes, self.right))
            self.right = tuple(self.nodes)


TestCluster = Cluster.TestCase
TestCluster.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)


def test_the_invariants_bear_a_member_that_was_told_of_a_retirement_before_the_registers() -> None:
    """Block 1 is the victim's, whose word it takes no more: to this member it is nobody's. (A draw of TestCluster.)"""
    cluster = Cluster()
    cluster.begin()
    for step_of in (
        lambda: cluster.join(i=0),
        lambda: cluster.power_off(i=1),
        lambda: cluster.deliver(i=0, which=0, last=False),
        lambda: cluster.retire(i=0, data=SimpleNamespace(draw=lambda _: frozenset({B}))),
        lambda: cluster.join(i=0),
        lambda: cluster.flood(newest=2, deaf=frozenset()),
        lambda: cluster.flood(newest=7, deaf=frozenset({0})),
        lambda: cluster.flood(newest=1, deaf=frozenset({4})),
    ):
        step_of()
        cluster.nothing_is_wrong()
    newcomer = cluster.nodes[4].memory
    assert newcomer.gate == Gate.OPEN and 1 not in newcomer.registers
