"""Retirements in service without a socket: letters over several hops, coordinators that die, and who says no.

The rules themselves (R4 to R9) are the checker's (tests/model); here is what the wire, the store and people add.
"""

from __future__ import annotations

from itertools import pairwise
from random import Random

import msgpack
import msgspec
import pytest
from unit.ipam_sim import Net, Node

from weave_router import limits
from weave_router.errors import BadPacket, UserError
from weave_router.ipam import durable, founding, letters, values, wire
from weave_router.ipam.letters import Letters
from weave_router.ipam.registers import owners
from weave_router.ipam.rounds import ASK_SECONDS_MAX, CLOSED_SECONDS_MAX
from weave_router.ipam.speech import differing, sums_of
from weave_router.ipam.values import FrozenMap, Gate, Knowledge, Register, RoundId
from weave_router.tunnel.identity import Identity, verify

FIVE = ("n1", "n2", "n3", "n4", "n5")


def chain(count: int = 4, **options: object) -> tuple[Net, list[Node]]:
    """n1 - n2 - ... : letters have to be handed on."""
    net = Net(names=FIVE[:count])
    nodes = [net.add(name, **options) for name in FIVE[:count]]
    for one, other in pairwise(nodes):
        net.link(one, other)
    net.run(1)
    return net, nodes


def meshed() -> tuple[Net, list[Node]]:
    """Five, all linked with all."""
    net = Net(names=FIVE)
    nodes = [net.add(name) for name in FIVE]
    net.mesh()
    net.run(1)
    return net, nodes


def retire(net: Net, node: Node, *victims: Node, lost_majority: bool = False) -> None:
    node.core.rounds.begin(frozenset(v.id for v in victims), lost_majority, net.now)
    net.carry(node)


def blocks_of(node: Node, owner: Node) -> int:
    return len(owners(node.core.state.registers).get(owner.id, ()))


def test_the_blocks_of_a_dead_node_come_back_over_several_hops() -> None:
    net, (one, *others, last) = chain()
    taken = blocks_of(one, last)
    net.attach(last, "pod")
    net.kill(last, power=True)
    retire(net, one, last)
    assert one.core.rounds.progress().state == "open"
    assert one.core.rounds.progress().missing == {node.id for node in others}
    net.run(1)
    done = one.core.rounds.progress()
    assert (done.state, done.blocks, done.victims) == ("done", taken, {last.id})
    for node in (one, *others):
        assert blocks_of(node, last) == 0 and last.id in node.core.state.retired
        assert node.core.person(last.id) == "n4"
        assert durable.decode_head(node.disk.head or b"").retired_names == ((last.id, "n4"),)
    net.run(3)
    count = len(one.core.allocator.leases()) + one.core.allocator.free_count()
    assert count == 4 * blocks_of(one, one) - 2  # all can be given but the range's first and last
    net.check()
    assert net.agree()
    retire(net, one, last)
    assert one.core.rounds.progress().state == "done" and one.core.state.round is None
def test_it_waits_for_every_member_and_ends_when_the_last_comes_back() -> None:
    net, (one, two, three, four) = chain()
    net.kill(four, power=True)
    net.cut(two, three)
    retire(net, one, four)
    net.run(600)
    assert one.core.rounds.progress().missing == {three.id}
    assert one.core.state.round is not None and blocks_of(one, four) > 0
    sent = net.sent
    net.run(600)
    assert net.sent - sent < 100_000  # patience: the question every 16 s, not every 2
    net.link(two, three)
    net.run(ASK_SECONDS_MAX)
    assert one.core.rounds.progress().state == "done"
    net.check()


@pytest.mark.parametrize("boots", [False, True])
def test_a_coordinator_that_was_killed_goes_on_with_its_round(boots: bool) -> None:
    net, (one, two, three, four) = chain()
    net.kill(four, power=True)
    net.cut(two, three)
    retire(net, one, four)
    net.run(2)
    net.kill(one, power=boots)
    net.start(one)
    net.link(one, two)
    net.link(two, three)
    net.run(2 * ASK_SECONDS_MAX)
    assert one.core.rounds.progress().state == "done" and four.id in three.core.state.retired
    net.check()


def test_a_second_coordinator_hears_who_the_first_is_and_takes_over_with_it() -> None:
    net, (one, two, three, four, five) = meshed()
    net.kill(five, power=True)
    net.cut(one, four)
    for other in (two, three):
        net.cut(four, other)
    retire(net, one, five)
    net.run(1)
    assert one.core.rounds.progress().missing == {four.id}
    with pytest.raises(UserError, match="n1 has a retirement of the same machine open: wait"):
        retire(net, two, five)
    net.kill(one, power=True)
    net.link(two, four)
    net.link(three, four)
    net.run(1)
    retire(net, four, five)  # it has not heard of the first round
    net.run(1)
    failed = four.core.rounds.progress()
    assert failed.state == "failed" and "n1 has a retirement of the same machine open" in failed.reason
    retire(net, two, one, five)
    net.run(1)
    assert two.core.rounds.progress().state == "done" and {one.id, five.id} <= three.core.state.retired
    net.check()


def test_a_round_that_was_given_up_frees_those_that_did_not_hear_it_then() -> None:
    net, (one, two, three, four) = chain()
    net.kill(four, power=True)
    net.cut(two, three)
    retire(net, one, four)
    net.run(1)
    assert two.core.rounds.others() == {one.id: {four.id}}
    net.cut(one, two)
    assert one.core.rounds.give_up(net.now) == {four.id} and one.core.rounds.give_up(net.now) == frozenset()
    net.carry(one)
    assert one.core.rounds.progress().state == "failed" and one.core.rounds.unfinished() == {four.id}
    net.link(one, two)
    net.link(two, three)
    net.run(CLOSED_SECONDS_MAX + 3)
    assert two.core.rounds.others() == {}
    retire(net, two, four)
    net.run(1)
    assert two.core.rounds.progress().state == "done"
    net.check()


def test_a_promise_that_comes_after_the_end_is_not_read() -> None:
    net, (one, two, three) = chain(3)
    net.kill(three, power=True)
    retire(net, one, three)
    net.deliver((one.id, two.id))  # it promises
    one.core.rounds.give_up(net.now)
    net.carry(one)
    net.settle()
    assert one.core.rounds.progress().state == "failed" and not one.core.state.retired
    assert two.core.rounds.others() == {} and two.core.rounds.unfinished() == {three.id}


def test_what_is_repeated_for_another_reason_repeats_no_question() -> None:
    net, (one, two, three) = chain(3)
    net.kill(three, power=True)
    retire(net, one, three)
    one.core.take_in(values.Retry(7), net.now)
    assert not any(step.words for step in net.carry(one))
    assert one.core.rounds.progress().missing == {two.id}


def test_a_machine_that_is_linked_somewhere_is_not_retired() -> None:
    net, (one, _, three, four) = chain()
    retire(net, one, four)  # the router's own look at the mesh was passed by
    net.run(1)
    failed = one.core.rounds.progress()
    assert failed.state == "failed" and "n4 was seen alive: nothing was retired" in failed.reason
    assert not one.core.state.retired and blocks_of(three, four) > 0


def test_a_victim_that_is_met_in_the_middle_ends_the_round() -> None:
    """It was only cut off, so that no new incarnation tells of it; whoever links with it says so."""
    net, (one, two, three, four) = chain()
    net.cut(three, four)
    net.cut(one, two)
    retire(net, one, four)
    net.link(four, one)
    assert one.core.state.round is None and "n4 was seen alive" in one.core.rounds.progress().reason
    net.cut(four, one)
    net.link(one, two)
    net.cut(two, three)
    retire(net, one, four)
    net.run(3)
    assert two.core.rounds.others() == {one.id: {four.id}}
    net.link(four, two)  # who has promised tells the coordinator
    net.settle()
    assert one.core.rounds.progress().state == "failed" and "n4 was seen alive" in one.core.rounds.progress().reason
    assert not one.core.state.retired


def test_the_retired_comes_back_owns_nothing_and_names_the_way_out() -> None:
    net, (one, two, three) = chain(3)
    number = net.attach(three, "pod")
    net.kill(three)
    retire(net, one, three)
    net.run(5)
    net.start(three)
    net.link(three, two)
    net.settle()
    assert three.core.state.gate is Gate.RETIRED and not three.core.state.registers
    assert "this node was retired" in (three.core.refusal() or "")
    assert [holder.container for holder in three.core.lost if holder.container] == ["pod"]  # its port goes down
    three.pods.clear()
    while net.attach(one, f"p{net.now}-{len(one.pods)}") != number:
        pass  # until the dead pod's very address is given
    net.kill(three)
    with pytest.raises(UserError, match="this node was retired"):
        net.start(three)
    three.service = None
    net.check()


def test_more_than_half_only_by_the_word() -> None:
    net, (one, two, three) = chain(3)
    net.kill(two, power=True)
    net.kill(three, power=True)
    with pytest.raises(UserError, match="n2, n3: more than half of the members cannot be retired at once; if"):
        retire(net, one, two, three)
    retire(net, one, two, three, lost_majority=True)
    net.run(1)
    assert one.core.rounds.progress().state == "done" and blocks_of(one, one) == 64
    net.check()


def test_the_word_survives_a_restart() -> None:
    net, (one, two, *dead) = meshed()
    for node in dead:
        net.kill(node, power=True)
    net.cut(one, two)
    retire(net, one, *dead, lost_majority=True)
    net.kill(one)
    net.start(one)
    net.link(one, two)
    net.run(2 * ASK_SECONDS_MAX)
    assert one.core.rounds.progress().state == "done" and blocks_of(two, one) > 48


def test_a_slot_that_nobody_will_start_can_be_retired() -> None:
    net = Net(names=("n1", "n2", "n3"))
    one, two = net.add("n1"), net.add("n2")
    net.link(one, two)
    net.run(1)
    slot = founding.slot_of(one.core.state.universe or b"", "n3")
    one.core.rounds.begin(frozenset({slot}), False, net.now)
    net.carry(one)
    net.run(1)
    assert one.core.rounds.progress().state == "done" and slot not in owners(two.core.state.registers)
    net.check()


def test_who_may_not_begin() -> None:
    net, (one, two, three) = chain(3)
    with pytest.raises(UserError, match="this node cannot retire itself: ask another one"):
        retire(net, one, one)
    net.kill(three, power=True)
    net.cut(one, two)
    retire(net, one, three)
    retire(net, one, three)  # the same again is the same round
    assert one.core.state.rounds_started == 1
    net.kill(two)
    with pytest.raises(UserError, match="this node is retiring n3 already: wait"):
        retire(net, one, two)
    net.start(three)
    with pytest.raises(UserError, match="this node may retire nobody now: new addresses wait: this host was booted"):
        retire(net, three, two)
    many = frozenset(net.rng.randbytes(16) for _ in range(limits.IPAM_FRAME_PEOPLE_MAX + 1))
    with pytest.raises(UserError, match="at most 1024 members can be retired at once"):
        two_of = net.add("n1", seed=False)
        two_of.core.rounds.begin(many, False, net.now)


# -- what a promise carries ----------------------------------------------------------------------------------------


def random_registers(rng: Random, blocks: int) -> FrozenMap[int, Register]:
    people = [rng.randbytes(16) for _ in range(3)]
    return FrozenMap({b: Register(0, rng.randrange(3), rng.choice(people), people[0]) for b in range(blocks)})


@pytest.mark.parametrize("seed", range(20))
def test_what_differs_teaches_the_asker_all_that_the_whole_would(seed: int) -> None:
    """R5 by parts of the range: the merge of what is sent equals the merge of everything, newer or not."""
    rng = Random(seed)
    blocks = rng.choice([4, 64, 1024])
    known = random_registers(rng, blocks)
    changed = {b: known[b]._replace(seq=known[b].seq + rng.choice([-1, 1])) for b in rng.sample(range(blocks), 3)}
    other = known.with_items({b: r for b, r in changed.items() if r.seq >= 0})
    sent = differing(other, blocks, sums_of(known, blocks))
    assert all(sent.get(b) == r for b, r in other.items() if r != known[b])
    assert len(sent) <= 3 * -(-blocks // limits.IPAM_SUMS)
    newer = {b: r for b, r in other.items() if r[:2] > known[b][:2]}
    assert {b: r for b, r in sent.items() if r[:2] > known[b][:2]} == newer
    assert differing(known, blocks, sums_of(known, blocks)) == {} and differing(other, blocks, ()) == other


def letters_only(net: Net, one: Node, other: Node) -> None:
    """Deliver between these two what is a letter, or a digest that makes them neighbours; all else is lost."""
    while queues := [link for link in ((one.id, other.id), (other.id, one.id)) if net.links[link]]:
        for link in queues:
            body = wire.decode_body_untrusted(wire.decode_envelope_untrusted(net.links[link][0]))
            if isinstance(body, wire.Letter | wire.Digest):
                net.deliver(link)
            else:
                net.links[link].popleft()


def test_a_promise_carries_what_the_victim_gave_away() -> None:
    """The coordinator never heard of the gift, and hears of it by the promise alone (R5)."""
    net, (one, two, three) = chain(3)
    net.cut(one, two)
    before = blocks_of(two, two)
    two.core.take_in(values.Want(three.id), net.now)
    net.carry(two)
    net.run(3)
    given = blocks_of(two, two) - before
    assert given > 0 and blocks_of(one, two) == before
    net.kill(three, power=True)
    net.link(one, two)
    retire(net, one, three)
    one.core.rounds.link_up(two.id, net.now)
    letters_only(net, one, two)
    net.now += 2 * ASK_SECONDS_MAX
    one.core.handle_timer(net.now)
    net.carry(one)
    letters_only(net, one, two)
    assert one.core.rounds.progress().state == "done" and blocks_of(one, two) == before + given
    net.check()


def test_a_promise_in_parts_counts_when_all_are_there() -> None:
    """More people than one frame holds; the parts come in any order and twice."""
    net, (one, two, three) = chain(3)
    net.kill(three, power=True)
    net.cut(one, two)
    retire(net, one, three)
    people = {net.rng.randbytes(16): 1 for _ in range(limits.IPAM_FRAME_PEOPLE_MAX + 1)}
    told = values.Tell(Knowledge(incarnations=FrozenMap(people)))
    two.core.take_in(values.Receive(values.Message(two.id[::-1], 1, two.core.state.universe, None, told)), net.now)
    net.carry(two)
    net.link(one, two)
    for node in (one, two):
        node.core.neighbours = dict.fromkeys(node.core.neighbours, True)

    def answer() -> list[bytes]:
        net.now += 2 * ASK_SECONDS_MAX
        one.core.handle_timer(net.now)
        net.carry(one)
        net.links[two.id, one.id].clear()
        while net.links[one.id, two.id]:
            net.deliver((one.id, two.id))
        return [data for data in net.links[two.id, one.id]
                if isinstance(wire.decode_body_untrusted(wire.decode_envelope_untrusted(data)), wire.Letter)]

    (old, _), (new, rest) = answer(), answer()
    for part in (old, rest, rest):  # of two answers, and one twice
        one.core.receive(two.id, part, net.now)
        assert one.core.rounds.progress().state == "open"
    one.core.receive(two.id, new, net.now)
    assert one.core.rounds.progress().state == "done"
    assert people.keys() <= one.core.state.incarnations.keys()


def test_a_promise_beyond_its_parts_waits_for_the_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    net, (one, two, three) = chain(3)
    net.kill(three, power=True)
    monkeypatch.setattr(limits, "IPAM_LETTER_PARTS_MAX", 0)
    retire(net, one, three)
    net.run(1)
    assert two.core.counters["promise too long, neighbours first"] > 0
    assert one.core.rounds.progress().missing == {two.id}
    monkeypatch.undo()
    net.run(2 * ASK_SECONDS_MAX)
    assert one.core.rounds.progress().state == "done"


# -- letters -------------------------------------------------------------------------------------------------------


def letter(serial: int = 1, universe: bytes = bytes(16), to: bytes | None = None) -> tuple[Identity, bytes]:
    who = Identity.generate(Random(9).randbytes)
    writer = Letters(who.ed25519_public, who.sign, verify, lambda: serial)
    (data,) = writer.write(universe, 3, to, [letters.Aborted(letters.Round(who.node_id, 1))])
    return who, data


def reader() -> Letters:
    who = Identity.generate(Random(8).randbytes)
    return Letters(who.ed25519_public, who.sign, verify, lambda: 1)


def test_a_letter_is_read_once_and_only_as_it_was_signed() -> None:
    who, data = letter()
    near, post = b"n" * 16, reader()
    opened = post.open_untrusted(bytes(16), data, near)
    assert opened is not None and opened[0] == who.node_id and opened[1].incarnation == 3
    assert post.open_untrusted(bytes(16), data, near) is None
    for at in range(0, len(data), 7):
        wrong = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        with pytest.raises(BadPacket):
            reader().open_untrusted(bytes(16), wrong, near)
    with pytest.raises(BadPacket, match="letter signature"):
        reader().open_untrusted(b"u" * 16, data, near)
    with pytest.raises(BadPacket, match="letter size"):
        reader().open_untrusted(bytes(16), data[:96], near)


@pytest.mark.parametrize("fields", [
    [3, b"short", 1, 0, 1, 4, b""], [3, b"", 1, 1, 1, 4, b""], [3, b"", 1, 0, 65, 4, b""], ["3", b"", 1, 0, 1, 4, b""],
    [],
])  # fmt: skip
def test_a_letter_that_is_signed_and_makes_no_sense(fields: list[object]) -> None:
    who = Identity.generate(Random(9).randbytes)
    body = msgpack.packb(fields)
    data = who.sign(letters.CONTEXT + bytes(16) + who.ed25519_public + body) + who.ed25519_public + body
    with pytest.raises(BadPacket, match="letter encoding"):
        reader().open_untrusted(bytes(16), data, b"n" * 16)


def test_a_kind_of_a_later_version_is_handed_on_unread() -> None:
    later = letters.Letter(1, b"", 1, 0, 1, 99, b"\xc1")
    assert letters.decode_body_untrusted(later) is None
    with pytest.raises(BadPacket, match="letter body"):
        letters.decode_body_untrusted(msgspec.structs.replace(later, kind=1))


def test_letters_remembered_are_bounded_and_ways_lead_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "IPAM_LETTERS_SEEN_MAX", 2)
    post, near, other = reader(), b"n" * 16, b"o" * 16
    first = letter(1)[1]
    assert post.open_untrusted(bytes(16), first, near)
    for serial in (2, 3):
        assert post.open_untrusted(bytes(16), letter(serial)[1], other)
    assert post.open_untrusted(bytes(16), first, near)  # two newer ones pushed it out
    who = letter(1)[0].node_id
    assert post.ways(who, [near, other]) == [near]
    assert post.ways(who, [near, other], source=near) == [other]  # not back where it came from
    assert post.ways(who, [who, near]) == [who]
    assert post.ways(None, [near, other], source=near) == [other]
    monkeypatch.setattr(limits, "RECORDS_MAX", 1)
    stranger = Identity.generate(Random(4).randbytes)
    writer = Letters(stranger.ed25519_public, stranger.sign, verify, lambda: 1)
    (data,) = writer.write(bytes(16), 1, None, [letters.Aborted(letters.Round(stranger.node_id, 1))])
    assert post.open_untrusted(bytes(16), data, other)
    assert post.ways(who, [near, other]) == [near, other]  # the older way is forgotten


def test_words_about_another_coordinators_round_are_refused() -> None:
    net, (one, two, three) = chain(3)
    ask = letters.RetireAsk(letters.Round(three.id, 1), (letters.Victim(one.id, 1),), (), ())
    forged = Letters(two.identity.ed25519_public, two.identity.sign, verify, lambda: 77)
    (data,) = forged.write(one.core.state.universe or b"", two.incarnation, None, [ask])
    words = wire.encode_message(1, one.core.state.universe, (0, 0), None, wire.Letter(data))
    one.core.receive(two.id, words, net.now)
    assert one.core.counters["letter about another's round"] == 1
    assert RoundId(three.id, 1) not in one.core.state.locks.values()
