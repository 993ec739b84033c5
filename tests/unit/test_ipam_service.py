"""Addresses in service without a socket: several service cores, ordered links that can be cut, disks in memory."""

from __future__ import annotations

from ipaddress import IPv4Network
from random import Random

import pytest
from unit.ipam_sim import DOMAIN, NAMES, Net, Node

from weave_router import limits
from weave_router.errors import UserError
from weave_router.ipam import founding, wire
from weave_router.ipam.allocator import AddressTakenError, ExhaustedError, Holder, NotNowError
from weave_router.ipam.registers import Runs, newest
from weave_router.ipam.service import ASK_SECONDS, FIRST_BLOCK_SECONDS, GIFT_SETTLE_SECONDS
from weave_router.ipam.values import Gate, Register, durable
from weave_router.tunnel.identity import Identity, verify


@pytest.fixture
def net() -> Net:
    return Net()


def seeded(net: Net, **settings: object) -> list[Node]:
    """Three in a chain, settled."""
    nodes = [net.add(name, **settings) for name in NAMES]
    net.link(nodes[0], nodes[1])
    net.link(nodes[1], nodes[2])
    net.settle()
    return nodes


# -- beginning -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("network", "prefix", "count"), [
    ("10.0.0.0/8", 26, 1 << 18), ("10.32.0.0/12", 26, 1 << 14), ("10.32.0.0/24", 30, 64), ("10.32.0.0/28", 30, 4),
])  # fmt: skip
def test_size_of_blocks(network: str, prefix: int, count: int) -> None:
    assert founding.block_prefix(IPv4Network(network)) == prefix
    assert founding.block_count(IPv4Network(network)) == count
    assert founding.network_of(IPv4Network(network), count - 1).broadcast_address == IPv4Network(network)[-1]


def test_every_node_of_a_seed_computes_the_same_universe() -> None:
    network = IPv4Network("10.32.0.0/24")
    one, two = (founding.seeded(network, names, "b", DOMAIN) for names in (("a", "b", "c"), ("c", "a", "b")))
    assert one == two
    shares = [sum(r.owner == founding.slot_of(one.universe, name) for r in one.registers.values()) for name in "abc"]
    assert sum(shares) == 64 and max(shares) - min(shares) <= 1
    others = [(network, "ab"), (IPv4Network("10.33.0.0/24"), "abc")]
    assert one.universe not in {founding.seed_universe(n, tuple(names), DOMAIN) for n, names in others}
    assert one.universe != founding.seed_universe(network, ("a", "b", "c"), b"another.")


def test_new_owns_all_and_its_bridge_is_the_first(net: Net) -> None:
    node = net.add("n1", seed=False)
    assert node.core.bridge_number() == int(net.network[1]) and len(node.core.state.used) == 1
    assert net.attach(node, "a") == int(net.network[2]) and node.core.refusal() is None
    assert len(node.disk.registers) == 64 and {row.proof for row in node.disk.registers.values()} != {None}
    net.check()


def test_a_seed_without_this_nodes_name_and_another_range_than_the_stores(net: Net) -> None:
    with pytest.raises(UserError, match="n9 is not among the seed's n1, n2, n3"):
        net.add("n9")
    node = net.add("n1")
    net.kill(node)
    with pytest.raises(UserError, match=r"are of 10.32.0.0/24, --ipalloc-range says 10.40.0.0/24: give"):
        net.start(node, network=IPv4Network("10.40.0.0/24"))


def test_a_head_of_no_version_is_refused(net: Net) -> None:
    node = net.add("n1")
    net.kill(node)
    for head in (b"", b"\x80", node.disk.head[:-5] if node.disk.head else b""):
        node.disk.head = head
        with pytest.raises(UserError, match="cannot be read"):
            net.start(node)


def test_a_wanted_bridge_address_takes_the_former_ones_place(net: Net) -> None:
    node = net.add("n1", seed=False)
    former = node.core.bridge_number()
    assert node.core.choose_bridge(former, net.now) == former
    assert node.core.choose_bridge(int(net.network[9]), net.now) == int(net.network[9])
    assert former in node.core.allocator.resting()
    net.carry(node)
    with pytest.raises(AddressTakenError):
        node.core.choose_bridge(int(net.network[0]), net.now)


# -- together ------------------------------------------------------------------------------------------------------


def test_claims_of_slots_reach_everybody_through_a_chain(net: Net) -> None:
    nodes = seeded(net)
    assert net.agree()
    for node in nodes:
        assert {r.owner for r in node.core.state.registers.values()} == {n.id for n in nodes}
        assert node.owners == node.core.owners()  # what the fast path was told
        assert node.core.state.members - node.core.state.left == {n.id for n in nodes}
    net.check()
    with pytest.raises(AddressTakenError, match="lies in a block of node n3"):
        nodes[0].core.claim(Holder("x", "eth0"), int(net.network[250]), net.now)
    assert nodes[0].core.owner_of(int(net.network[250])) == nodes[2].id and nodes[2].core.covers(int(net.network[250]))


def test_a_slot_that_was_not_started_is_called_by_its_name(net: Net) -> None:
    node = net.add("n1")
    with pytest.raises(AddressTakenError, match=r"lies in a block of node n3 \(not started yet\)"):
        node.core.claim(Holder("x", "eth0"), int(net.network[250]), net.now)
    assert node.core.slots() == {founding.slot_of(node.core.state.universe or b"", name) for name in NAMES}


def test_what_a_link_lost_is_brought_by_the_next_digest(net: Net) -> None:
    nodes = [net.add(name) for name in NAMES]
    net.mesh()
    for queue in net.links.values():
        queue.clear()
    assert not net.agree()
    net.run(20)
    assert net.agree()
    before = net.sent
    net.run(60)
    assert net.sent - before < 20_000  # digests alone: who knows the same says no more
    assert all(node.core.state.contested == frozenset() for node in nodes)


def test_two_identities_of_one_name_stop_and_name_each_other(net: Net) -> None:
    one, two = net.add("n1"), net.add("n1")
    third = net.add("n3")
    net.mesh()
    net.run(12)
    for node, other in ((one, two), (two, one)):
        with pytest.raises(NotNowError, match="not ready yet"):
            node.core.claim(Holder("x", "eth0"), int(net.network[20]), net.now)
        [sentence] = node.core.conflicts()
        assert other.id.hex()[:12] in sentence and "n1 is claimed by this node" in sentence
    assert net.attach(third, "y") and third.core.conflicts() == []
    # Blocks that another member gave them are not contested.
    numbers = [net.attach(node, "x") for node in (one, two)]
    assert not {one.core.allocator.block_of(number) for number in numbers} & one.core.state.contested
    net.kill(one)
    net.start(one, bridge=False)  # remembered over a restart
    with pytest.raises(NotNowError, match="not ready yet"):
        one.core.claim(Holder("x", "eth0"), int(net.network[20]), net.now)


def test_another_universe_is_named_and_nothing_merges(net: Net) -> None:
    one = net.add("n1", seed=False)
    two = net.add("n2", seed=False, network=IPv4Network("10.64.0.0/24"))
    net.mesh()
    net.run(12)
    for node, other in ((one, two), (two, one)):
        assert node.core.strangers[other.id].network == other.core.settings.range_v4
        assert node.core.strangers[other.id].universe == other.core.state.universe
        assert {r.owner for r in node.core.state.registers.values()} == {node.id}
        assert [f"that node is in another universe: {other.name}"] == node.core.refused
    net.cut(one, two)
    assert one.core.strangers == {}
    one.core.neighbours |= {bytes([n] * 16): False for n in range(limits.IPAM_STRANGERS_MAX + 5)}
    for n in range(limits.IPAM_STRANGERS_MAX + 5):
        one.core.receive(bytes([n] * 16), wire.encode_message(1, b"u" * 16, (0, 0), None, wire.Hello(False)), net.now)
    assert len(one.core.strangers) == limits.IPAM_STRANGERS_MAX


# -- restart, boot, gate -------------------------------------------------------------------------------------------


def test_a_restart_finds_everything_as_it_was(net: Net) -> None:
    nodes = seeded(net)
    for number in range(5):
        net.attach(nodes[0], f"p{number}")
    net.detach(nodes[0], "p3")
    memory, leases = nodes[0].core.state, nodes[0].core.allocator.leases()
    resting = nodes[0].core.allocator.resting()
    net.kill(nodes[0])
    net.start(nodes[0])
    after = nodes[0].core.state
    assert durable(after)._replace(incarnation=1, incarnations=memory.incarnations) == durable(memory)
    assert (nodes[0].core.allocator.leases(), nodes[0].core.allocator.resting()) == (leases, resting)
    assert nodes[0].core.refusal() is None
    net.run(59)
    assert nodes[0].core.allocator.resting() == resting
    net.run(2)
    assert nodes[0].core.allocator.resting() == {} and not any(row.resting for row in nodes[0].disk.leases.values())


def test_a_booted_node_gives_nothing_before_an_open_neighbour_answered(net: Net) -> None:
    nodes = seeded(net)
    net.attach(nodes[1], "a")
    net.kill(nodes[1], power=True)
    net.start(nodes[1])
    with pytest.raises(NotNowError, match=r"this host was booted and no other member has answered yet \(n1, n3\)"):
        net.attach(nodes[1], "b")
    net.run(10)
    assert nodes[1].core.state.gate == Gate.CLOSED
    net.link(nodes[1], nodes[2])
    net.settle()
    assert nodes[1].core.state.gate == Gate.OPEN and net.attach(nodes[1], "b")
    home = nodes[1].core.allocator.block_of(nodes[1].core.bridge_number() or 0)
    assert home in nodes[1].core.state.used  # its bridge counts again
    net.check()


def test_after_all_were_off_a_majority_opens(net: Net) -> None:
    nodes = seeded(net)
    for node in nodes:
        net.kill(node, power=True)
    for node in nodes[:2]:
        net.start(node)
    assert {node.core.state.gate for node in nodes[:2]} == {Gate.CLOSED}
    net.mesh(*nodes[:2])
    net.run(5)
    assert {node.core.state.gate for node in nodes[:2]} == {Gate.OPEN}
    net.check()


def test_the_operator_opens_what_nobody_answers(net: Net) -> None:
    nodes = seeded(net)
    net.kill(nodes[0], power=True)
    net.start(nodes[0])
    nodes[0].core.ungate(net.now)
    net.carry(nodes[0])
    assert nodes[0].core.state.gate == Gate.OWN and net.attach(nodes[0], "a")
    with pytest.raises(UserError, match="there is nothing to open"):
        nodes[0].core.ungate(net.now)


def test_an_older_store_stays_shut_and_a_clone_stops(net: Net) -> None:
    node = net.add("n1", seed=False)
    net.kill(node)
    net.start(node, older=True)
    with pytest.raises(NotNowError, match="a copy put back"):
        net.attach(node, "a")
    node.core.ungate(net.now)
    assert net.attach(node, "a")
    node.core.halt("another runs")
    with pytest.raises(NotNowError, match="another runs"):
        net.attach(node, "b")


def test_an_address_on_a_living_port_is_entered_or_reported(net: Net) -> None:
    node = net.add("n1")
    mine, foreign = int(net.network[40]), int(net.network[250])
    findings = node.core.reconcile({mine: Holder("c", "eth0"), foreign: Holder("d", "eth0")}, net.now)
    assert [(f.number, "belongs to node n3" in f.problem) for f in findings] == [(foreign, True)]
    net.carry(node)
    assert node.disk.leases[mine].container == "c"


# -- gifts ---------------------------------------------------------------------------------------------------------


def filled(net: Net, node: Node) -> int:
    """Attach until nothing is free."""
    count = 0
    while True:
        try:
            net.attach(node, f"fill{count}")
        except ExhaustedError:
            return count
        count += 1


def given_but_one_does_not_know(net: Net) -> tuple[list[Node], Node]:
    """The first is full and was given blocks; the one of the two others that did not give has heard nothing of it."""
    nodes = seeded(net)
    net.link(nodes[0], nodes[2])
    net.settle()
    donor = nodes[0].core._donor()
    (third,) = (node for node in nodes[1:] if node.id != donor)
    filled(net, nodes[0])
    while busy := [link for link, queue in net.links.items() if queue and link[1] != third.id]:
        net.deliver(busy[0])
    assert sum(owner == nodes[0].id for owner in nodes[0].core.owners().values()) > 22
    return nodes, third


def test_a_received_block_is_used_when_all_neighbours_know_it_and_a_second_has_passed(net: Net) -> None:
    nodes, _ = given_but_one_does_not_know(net)
    with pytest.raises(ExhaustedError, match="blocks not ready yet"):
        net.attach(nodes[0], "early")
    net.settle()
    with pytest.raises(ExhaustedError):
        net.attach(nodes[0], "early")
    net.run(GIFT_SETTLE_SECONDS - 0.1)
    with pytest.raises(ExhaustedError):
        net.attach(nodes[0], "early")
    net.run(0.2)
    number = net.attach(nodes[0], "late")
    for node in nodes:
        assert node.core.owner_of(number) == nodes[0].id
    net.check()


def test_a_neighbour_that_goes_is_not_waited_for(net: Net) -> None:
    nodes, third = given_but_one_does_not_know(net)
    net.cut(nodes[0], third)
    net.run(GIFT_SETTLE_SECONDS + 0.1)
    assert net.attach(nodes[0], "late")


def test_the_first_blocks_ever_wait_two_seconds_at_most(net: Net) -> None:
    nodes, _ = given_but_one_does_not_know(net)
    net.now += 10 * FIRST_BLOCK_SECONDS
    nodes[0].core.handle_timer(net.now)
    with pytest.raises(ExhaustedError):  # these are not its first: it waits for the third, however long
        net.attach(nodes[0], "early")
    nodes[0].core.gifts.clear()
    nodes[0].core._gift({0}, True, net.now)
    nodes[0].core._after_flood = None
    (gift,) = nodes[0].core.gifts.values()
    assert gift.waiting and gift.give_up_at == net.now + FIRST_BLOCK_SECONDS
    nodes[0].core.handle_timer(gift.give_up_at)
    assert gift not in nodes[0].core.gifts.values()


def test_one_question_one_gift_of_at_most_so_many_blocks() -> None:
    net = Net(2, IPv4Network("10.32.0.0/12"), ("n1", "n2"))
    nodes = [net.add(name) for name in ("n1", "n2")]
    net.mesh()
    net.settle()
    before = len(nodes[0].core.allocator._blocks)
    nodes[0].core.allocator.wants_blocks = lambda: True  # type: ignore[method-assign]
    for _ in range(3):
        nodes[0].core.want(net.now)
        net.carry(nodes[0])
    net.settle()
    assert len(nodes[0].core.allocator._blocks) - before == limits.GIFT_BLOCKS_MAX
    assert net.agree()


def test_who_has_nothing_to_give_is_not_asked_twice_in_a_row(net: Net) -> None:
    nodes = seeded(net)
    net.link(nodes[0], nodes[2])
    net.settle()
    first = nodes[0].core._donor()
    nodes[0].core.allocator.wants_blocks = lambda: True  # type: ignore[method-assign]
    nodes[0].core.want(net.now)
    second = nodes[0].core._donor()
    assert {first, second} == {nodes[1].id, nodes[2].id}
    nodes[0].core.want(net.now)  # too soon: the question may be answered yet
    assert nodes[0].core._donor() == second
    nodes[0].core.want(net.now + ASK_SECONDS)
    assert nodes[0].core._donor() in {first, second}  # both were asked: all over again


def test_all_that_others_can_spare_is_to_be_had(net: Net) -> None:
    nodes = seeded(net)
    net.link(nodes[0], nodes[2])
    net.settle()
    held = 0
    for _ in range(600):
        try:
            net.attach(nodes[0], f"p{held}")
            held += 1
        except ExhaustedError:
            nodes[0].core.want(net.now)
            net.carry(nodes[0])
            net.run(0.3)
    assert held > 22 * 4 + 20 * 4 + 15 * 4  # of 64 blocks of 4 the others keep little more than their homes
    net.check()


# -- runs ----------------------------------------------------------------------------------------------------------


def runs_of(seed: int, blocks: int = 64) -> tuple[Runs, Identity]:
    identity = Identity.generate(Random(seed).randbytes)
    made = Runs(blocks, identity.ed25519_public, identity.sign, verify)
    made.universe = b"u" * 16
    return made, identity


def test_runs_are_few_and_stay_true_when_a_part_changes_hands() -> None:
    runs, me = runs_of(1)
    all_mine = {block: Register(0, 0, me.node_id, me.node_id) for block in range(64)}
    runs.issue(all_mine)
    assert len(runs.proofs_of(all_mine)) == 1
    gift = {block: Register(0, 1, b"o" * 16, me.node_id) for block in (3, 4, 9)}
    runs.issue(gift)
    proofs = runs.proofs_of({**all_mine, **gift})
    assert len(proofs) == 3 and all(len(proof) <= limits.IPAM_RUN_BYTES_MAX for proof in proofs)
    reader, _ = runs_of(2)
    read = {block: run.register for block, run in newest(reader.read_untrusted(proof) for proof in proofs).items()}
    assert read == {**all_mine, **gift}
    runs.forget_all()
    assert runs.proofs_of(all_mine) == []


@pytest.mark.parametrize("what", ["signature", "issuer", "universe", "range", "size", "encoding"])
def test_a_run_that_is_forged_damaged_or_outside_is_counted_and_changes_nothing(net: Net, what: str) -> None:
    nodes = seeded(net)
    node, peer = nodes[0], nodes[1]
    writer, thief = runs_of(7)
    writer.universe = node.core.state.universe or b""
    value = Register(5, 5, thief.node_id, thief.node_id)
    if what == "universe":
        writer.universe = b"x" * 16
    if what == "range":
        writer.issue({64: value})
        data = writer.proof_of(64, value) or b""
    else:
        writer.issue({1: value})
        data = writer.proof_of(1, value) or b""
    if what == "signature":
        data = bytes([data[0] ^ 1]) + data[1:]
    if what == "issuer":
        data = data[:64] + peer.identity.ed25519_public + data[96:]
    if what == "size":
        data += bytes(limits.IPAM_RUN_BYTES_MAX)
    if what == "encoding":
        data = data[:96] + b"\xc1" + data[97:]
    before = node.core.state
    told = wire.Tell(wire.Facts(runs=(data,)))
    words = wire.encode_message(1, before.universe, (0, 0), None, told)
    node.core.receive(peer.id, words, net.now)
    assert node.core.state == before and sum(node.core.counters.values()) == 1
    stranger = wire.encode_message(1, before.universe, (0, 0), None, wire.Ask())
    node.core.receive(b"s" * 16, stranger, net.now)  # who is on no link is not heard
    assert node.core.state == before


def test_a_signed_takeover_by_a_member_names_who_did_it(net: Net) -> None:
    """v1 trusts members not to lie; a lie carries its author's signature, and the robbed node stops."""
    nodes = seeded(net)
    writer = Runs(64, nodes[2].identity.ed25519_public, nodes[2].identity.sign, verify)
    writer.universe = nodes[2].core.state.universe or b""
    net.attach(nodes[0], "a")
    writer.issue({0: Register(9, 9, nodes[2].id, nodes[2].id)})
    data = writer.proof_of(0, Register(9, 9, nodes[2].id, nodes[2].id)) or b""
    words = wire.encode_message(1, writer.universe, (0, 0), None, wire.Tell(wire.Facts(runs=(data,))))
    nodes[0].core.receive(nodes[1].id, words, net.now)
    net.carry(nodes[0])
    assert nodes[0].core.state.gate == Gate.RESTORED
    assert any("container a (eth0) lost its address" in sentence and "node n3" in sentence
               for sentence in nodes[0].core.evicted)


def test_much_knowledge_goes_in_pieces_that_fit(net: Net) -> None:
    runs = [bytes([n & 255, n >> 8]) * 60 for n in range(limits.IPAM_FRAME_RUNS_MAX * 2 + 5)]
    people = [wire.Person(n.to_bytes(16, "big"), 1, n) for n in range(limits.IPAM_FRAME_PEOPLE_MAX + 3)]
    pieces = wire.facts_in_pieces(runs, people)
    assert [run for piece in pieces for run in piece.runs] == runs
    assert [person for piece in pieces for person in piece.people] == people
    assert len(wire.facts_in_pieces(runs[:3], people[:3])) == 1 and wire.facts_in_pieces([], []) == [wire.Facts()]
    for piece in pieces:
        body = wire.SyncAnswer(1, True, piece)
        assert len(wire.encode_message(1, bytes(16), (0, 0), bytes(16), body)) < limits.LINK_FRAME_MAX
    full = wire.Facts(runs=(bytes(limits.IPAM_RUN_BYTES_MAX),) * limits.IPAM_FRAME_RUNS_MAX)
    assert len(wire.encode_message(1, bytes(16), (0, 0), bytes(16), wire.Tell(full))) < limits.LINK_FRAME_MAX


# -- anything ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_random_lives_keep_the_invariants(seed: int) -> None:
    """Attach, detach, kill, boot, cut, time, one after the other: nothing lives twice, nothing is forgotten."""
    net, rng = Net(seed), Random(seed)
    nodes = [net.add(name) for name in NAMES]
    net.mesh()
    count = 0
    for _ in range(250):
        node, other = rng.sample(nodes, 2)
        match rng.randrange(10):
            case 0 | 1 | 2 if node.service:
                count += 1
                try:
                    net.attach(node, f"p{count}")
                except UserError:
                    net.carry(node)
            case 3 | 4 if node.service and node.pods:
                net.detach(node, rng.choice(sorted(node.pods)).container)
            case 5:
                net.kill(node, power=rng.random() < 0.3)
            case 6 if node.service is None:
                net.start(node)
                net.mesh(*[n for n in nodes if n.service])
            case 7:
                net.cut(node, other)
            case 8:
                net.link(node, other)
            case _:
                net.run(rng.choice((0.01, 0.5, 3, 70)))
        for _ in range(rng.randrange(6)):
            busy = [link for link, queue in net.links.items() if queue]
            if busy:
                net.deliver(rng.choice(busy))
        net.check()
    for node in nodes:
        if node.service is None:
            net.start(node)
    net.mesh()
    net.run(20)
    assert net.agree()
    for node in nodes:
        assert {h for h in node.core.allocator.leases().values() if h.container} == set(node.pods)
        assert {(n, h) for n, h in node.core.allocator.leases().items() if h.container} == {
            (number, holder) for holder, (number, _) in node.pods.items()}
        disk = {row.number for row in node.disk.leases.values() if not row.resting}
        assert disk == set(node.core.allocator.leases())
    net.check()
