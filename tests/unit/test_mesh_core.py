"""mesh/core.py in virtual time: whole meshes of 2 to 50 nodes over simulated streams; one seed, one run."""

from random import Random

import pytest
from unit.mesh_helpers import identity, signed
from unit.mesh_sim import PORT, Network, Node, remembered_verify, tokens

from weave_router import limits
from weave_router.mesh.calls import LINKS_SOUGHT
from weave_router.mesh.core import LINKS_KEPT, Mesh
from weave_router.mesh.events import (
    NO_PROOF,
    CloneSeen,
    Config,
    Dial,
    FirstSync,
    Hangup,
    LinkDown,
    LinkUp,
    ReachChanged,
    RestoredState,
    Send,
)
from weave_router.mesh.own import OwnRecord
from weave_router.mesh.record import FLAG_FLOOD, FLAG_NAT, Prefix
from weave_router.mesh.replica import Replica
from weave_router.mesh.routes import SLOT_LOCAL
from weave_router.tunnel.identity import Identity

A, B = 0x0A200001, 0x0A200002


def links(node: Node) -> set[str]:
    return {link.name for link in node.core.status().links}


def target(node: Node, text: str) -> tuple[str, str]:
    [found] = [one for one in node.core.status().targets if one.text == text]
    return found.state, found.reason


def chain(net: Network, count: int, **config: object) -> list[Node]:
    return [net.add(index, *([index - 1] if index > 1 else []), **config) for index in range(1, count + 1)]


def lone(**config: object) -> Mesh:
    rng = Random(4)
    return Mesh(Config("lone", PORT, **config), identity=identity(1), tokens=tokens(), incarnation=1,  # type: ignore
                run=bytes(16), rng=rng, entropy=rng.randbytes, now=0.0, verify=remembered_verify)


# -- who reaches whom --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(5))
def test_chain_of_three_that_list_one_address_each_reaches_all(seed: int) -> None:
    net = Network(seed)
    one, _, three = chain(net, 3)
    assert net.run(2.0, net.agree) < 2.0
    assert links(one) == {"host2"} or links(one) == {"host2", "host3"}
    net.run(3.0)
    assert links(one) == {"host2", "host3"}, "discovery closes the triangle"
    assert target(three, "10.0.0.2") == ("connected", "")
    assert all(len(node.times_of(FirstSync)) == 1 and not node.times_of(LinkDown) for node in net.running())
    net.run(60.0)
    assert net.agree() and all(not node.times_of(LinkDown) for node in net.running())


@pytest.mark.parametrize("seed", range(3))
def test_without_discovery_exactly_the_targets_are_linked(seed: int) -> None:
    net = Network(seed)
    one, two, three = chain(net, 3, discovery=False)
    net.run(2.0, net.agree)
    net.run(20.0)
    assert (links(one), links(two), links(three)) == ({"host2"}, {"host1", "host3"}, {"host2"})
    assert net.agree()


def test_fifty_nodes_converge_with_few_links_and_little_traffic() -> None:
    net = Network(7)
    for index in range(1, 51):
        net.add(index, max(1, index // 2))
    assert net.run(6.0, net.agree) < 6.0
    net.run(8.0)
    assert net.agree()
    counts = [len(node.core.status().links) for node in net.running()]
    assert min(counts) >= LINKS_SOUGHT and max(counts) <= 24 and sum(counts) <= 50 * 12, counts
    before = net.bytes_sent
    net.run(10.0)
    total_links = sum(counts)
    assert (net.bytes_sent - before) / 10 / total_links < 512, "bytes a second and link, as the idle bar has it"


def test_same_seed_same_run_other_seed_other_run() -> None:
    def trace(seed: int) -> str:
        net = Network(seed)
        chain(net, 5)
        net.run(5.0)
        return net.trace.hexdigest()

    assert trace(1) == trace(1) != trace(2)


@pytest.mark.parametrize("seed", range(12))
def test_crosswise_calls_end_in_one_link_that_the_smaller_id_opened(seed: int) -> None:
    net = Network(seed)
    one, two = net.add(1, 2), net.add(2, 1)
    net.run(3.0)
    small = min(one, two, key=lambda node: node.core.node_id)
    for node in (one, two):
        [link] = node.core.status().links
        assert link.initiator == (node is small)
        assert target(node, node.targets[0])[0] == "connected"
        assert len(node.times_of(LinkUp)) == 1 and not node.times_of(LinkDown)
    before = net.bytes_sent
    net.run(10.0)
    assert net.bytes_sent - before < 10 * 2 * 150 + 400, "no calls any more"


@pytest.mark.parametrize("seed", range(12))
def test_two_addresses_of_one_node_are_one_link(seed: int) -> None:
    net = Network(seed)
    net.names["other-name"] = "10.0.0.1"
    one = net.add(1, discovery=False)
    two = net.add(2, 1, "other-name", discovery=False)
    net.run(5.0)
    assert len(two.core.status().links) == 1
    assert not one.times_of(LinkDown) and not two.times_of(LinkDown), "both ends keep the same one"
    assert target(two, "10.0.0.1")[0] == target(two, "other-name")[0] == "connected"


# -- loss and return ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(4))
def test_silent_loss_is_noticed_in_two_seconds_and_healed(seed: int) -> None:
    net = Network(seed)
    one, two = net.add(1), net.add(2, 1)
    net.run(5.0)
    cut_at = net.now
    net.split([one], [two])
    net.run(4.0)
    for node in (one, two):
        [down_at] = node.times_of(LinkDown)
        assert 1.5 <= down_at - cut_at <= 2.6
        lost = [event for at, event in node.events if isinstance(event, ReachChanged) and at > cut_at]
        assert lost and lost[0].lost
        assert len(node.core.table) == 2, "a record outlives its reach"
    assert target(two, "10.0.0.1")[0] in ("retrying", "connecting")
    net.run(10.0)
    net.heal()
    assert net.run(8.0, net.agree) < 8.0
    net.run(limits.OPENING_SECONDS)  # a call that was lost on the way
    assert target(two, "10.0.0.1") == ("connected", "")


@pytest.mark.parametrize("seed", range(4))
def test_restart_replaces_the_record_and_the_link(seed: int) -> None:
    net = Network(seed)
    nodes = chain(net, 4)
    nodes[1].prefixes = (Prefix(A, 32),)
    net.do(nodes[1], lambda mesh, now: mesh.set_prefixes(nodes[1].prefixes, now))
    net.run(5.0)
    killed_at = net.now
    net.kill(nodes[1])
    net.run(0.1)
    nodes[1].prefixes = (Prefix(B, 32),)
    net.start(nodes[1])
    assert net.run(4.0, net.agree) < 4.0, net.now - killed_at
    for node in nodes:
        held = node.core.table.get(nodes[1].core.node_id)
        assert held is not None and held.record.incarnation == 2
        assert (A, 32) not in node.installed and (B, 32) in node.installed


def test_restart_without_a_word_replaces_the_old_link() -> None:
    """The host loses its power: the old stream just hangs at the other end."""
    net = Network(2)
    one, two = net.add(1), net.add(2, 1)
    net.run(3.0)
    net.split([one], [two])
    net.kill(two)
    net.heal()
    net.start(two)
    assert net.run(1.0, lambda: bool(two.core.status().links)) < 0.5
    net.run(0.2)
    [link] = one.core.status().links
    assert not link.initiator and not one.times_of(LinkDown)
    held = one.core.table.get(two.core.node_id)
    assert held is not None and held.record.incarnation == 2


def test_goodbye_is_no_silence() -> None:
    net = Network(2)
    one, two = net.add(1), net.add(2, 1)
    net.run(3.0)
    net.stop(two)
    net.run(0.1)
    [event] = [event for _, event in one.events if isinstance(event, LinkDown)]
    assert event.reason == "the router there ends"


@pytest.mark.parametrize("seed", range(3))
def test_two_halves_that_share_no_target_find_each_other_again(seed: int) -> None:
    net, half = Network(seed), 5
    nodes = chain(net, 2 * half)
    net.run(6.0)
    net.split(nodes[:half], nodes[half:])
    net.do(nodes[half], lambda mesh, now: mesh.target_remove(f"10.0.0.{half}", now))
    net.run(20.0)
    assert not net.all_reachable()
    net.heal()
    assert net.run(12.0, net.agree) < 12.0


@pytest.mark.parametrize("seed", range(4))
def test_after_any_faults_all_tables_agree(seed: int) -> None:
    net, rng = Network(seed), Random(seed)
    nodes = [net.add(index, max(1, index - 1)) for index in range(1, 9)]
    for step in range(25):
        net.run(rng.uniform(0.1, 1.5))
        victim = rng.choice(nodes)
        match rng.randrange(5):
            case 0 if victim.mesh:
                net.kill(victim)
            case 1 if victim.mesh:
                net.stop(victim)
            case 2:
                net.split([victim], [node for node in nodes if node is not victim])
            case 3:
                net.heal()
            case _ if victim.mesh:
                victim.prefixes = (Prefix(A + step, 32),)
                net.do(victim, lambda mesh, now, fixed=victim.prefixes: mesh.set_prefixes(fixed, now))
        if victim.mesh is None and rng.random() < 0.7:
            net.start(victim)
    net.heal()
    for node in nodes:
        if node.mesh is None:
            net.start(node)
    assert net.run(20.0, net.agree) < 20.0
    installed = [{key: node.routes.slots.node(slot) for key, (slot, _) in node.installed.items()}  # type: ignore
                 for node in nodes]
    assert all(one == installed[0] for one in installed)
    assert all(node.core.status().clone is None for node in nodes)


def test_a_late_tick_of_our_own_cuts_no_link() -> None:
    """Twice the time at most: what came meanwhile waits in the kernel and is read next."""
    net = Network(1)
    one, two = net.add(1), net.add(2, 1)
    net.run(3.0)
    net.do(one, lambda mesh, now: mesh.handle_timer(now + 3.0))
    net.do(two, lambda mesh, now: mesh.handle_timer(now + 5.0))
    assert not one.times_of(LinkDown) and two.times_of(LinkDown)


def test_a_record_is_not_sent_back_to_whom_it_came_from() -> None:
    net = Network(1)
    one, two = net.add(1), net.add(2, 1)
    net.run(5.0)
    net.do(one, lambda mesh, now: mesh.set_prefixes([Prefix(A, 32)], now))
    net.run(1.0, lambda: (A, 32) in two.installed)
    [place] = two.core._up_places()
    assert place.link.flush_at is None


def test_a_link_that_came_in_answers_the_target_that_leads_there() -> None:
    net = Network(1)
    two = net.add(2, 1, run=False, endpoints=(("10.0.0.2", PORT),))
    one = net.add(1, 2)
    net.run(1.0)
    assert target(one, "10.0.0.2")[0] == "retrying"
    net.start(two)
    net.run(1.0, lambda: bool(links(one)))
    assert target(one, "10.0.0.2") == ("connected", "")


# -- addresses ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(3))
def test_conflict_has_one_winner_in_every_table_and_all_report_it(seed: int) -> None:
    net = Network(seed)
    nodes = chain(net, 4)
    for node in (nodes[3], nodes[0], nodes[2]):
        node.prefixes = (Prefix(A, 32),)
        net.do(node, lambda mesh, now: mesh.set_prefixes([Prefix(A, 32)], now))
    net.run(5.0, net.agree)
    winner, *others = sorted(node.core.node_id for node in (nodes[0], nodes[2], nodes[3]))
    for node in nodes:
        assert node.routes is not None
        slot, _ = node.installed[A, 32]
        assert node.routes.slots.node(slot) == winner
        assert (slot == SLOT_LOCAL) == (node.core.node_id == winner)
        [conflict] = node.routes.conflicts()
        assert (conflict.holder, conflict.others) == (winner, tuple(others))
    loser = next(node for node in nodes if node.core.node_id == winner)
    net.do(loser, lambda mesh, now: mesh.set_prefixes([], now))
    net.run(1.0)
    for node in nodes:
        assert node.routes is not None
        assert node.routes.slots.node(node.installed[A, 32][0]) == others[0]


def test_attached_address_is_known_everywhere_at_once() -> None:
    net = Network(5)
    nodes = chain(net, 4, discovery=False)
    net.run(5.0)
    before = net.bytes_sent
    net.do(nodes[0], lambda mesh, now: mesh.set_prefixes([Prefix(A, 32)], now))
    assert net.bytes_sent > before, "an ADD waits for it: it is with the sockets when the call returns"
    assert net.run(1.0, lambda: all((A, 32) in node.installed for node in nodes)) < 0.15


def test_forty_attaches_in_a_second_all_arrive() -> None:
    net = Network(5)
    nodes = chain(net, 3)
    net.run(5.0)
    held: list[Prefix] = []
    for number in range(40):
        held.append(Prefix(A + number, 32))
        net.do(nodes[0], lambda mesh, now: mesh.set_prefixes(held, now))
        net.run(0.025)
    assert net.run(3.0, lambda: all(len(node.installed) == 40 for node in nodes)) < 3.0


def test_lost_blocks_are_said_at_once_as_many_as_fit() -> None:
    mesh = lone()
    mesh.set_lost({block: 1 for block in range(limits.RECORD_LOST_MAX + 1)}, 1.0)
    assert [each.block for each in mesh.own.record.lost] == list(range(limits.RECORD_LOST_MAX))
    mesh.set_lost({}, 2.0)
    assert mesh.own.record.lost == ()


def test_too_many_groups_become_the_wish_for_all_floods() -> None:
    mesh = lone()
    groups = [bytes([1, 0, 0x5E, 0, 0, number]) for number in range(limits.RECORD_GROUPS_MAX + 1)]
    mesh.set_groups(groups[:-1], 1.0)
    mesh.handle_timer(1.1)
    assert mesh.own.record.groups == tuple(groups[:-1]) and not mesh.own.record.flags & FLAG_FLOOD
    mesh.set_groups(groups, 2.0)
    mesh.handle_timer(2.1)
    assert mesh.own.record.groups == () and mesh.own.record.flags & FLAG_FLOOD
    mesh.set_groups([], 3.0)
    mesh.handle_timer(3.1)
    assert not mesh.own.record.flags & FLAG_FLOOD


def test_a_prefix_too_many_is_an_error_of_the_caller_and_changes_nothing() -> None:
    mesh = lone()
    with pytest.raises(ValueError):
        mesh.set_prefixes([Prefix(A + n, 32) for n in range(limits.RECORD_PREFIXES_MAX + 1)], 1.0)
    assert mesh.own.record.prefixes == ()


# -- strangers, tokens, oneself ----------------------------------------------------------------------------------------
def test_wrong_token_is_named_at_the_caller_and_told_apart_at_the_other_end() -> None:
    net = Network(1)
    one, two = net.add(1), net.add(2, 1, token="other")
    net.run(4.0)
    state, reason = target(two, "10.0.0.1")
    assert state in ("retrying", "connecting") and reason == NO_PROOF
    [stranger] = one.core.status().strangers
    assert stranger.reason == "unknown token id" and stranger.count >= 2
    assert stranger.last_remote == ("10.0.0.2", 40000)
    assert not one.times_of(LinkUp) and len(one.core.table) == 1


def test_an_address_where_nobody_answers_is_retried_with_the_reason() -> None:
    net = Network(1)
    net.add(1, run=False)
    two = net.add(2, 1, "10.9.9.9")
    net.run(20.0)
    assert target(two, "10.0.0.1")[1] == "connection refused"
    assert target(two, "10.9.9.9")[1] == "no answer (host down, or TCP to this port blocked)"


def test_a_listener_that_says_nothing_is_given_up_after_five_seconds() -> None:
    mesh = lone()
    mesh.target_add("10.0.0.9", 0.0)
    [dial] = mesh.take_effects()
    assert dial == Dial(1, "10.0.0.9", PORT, 0)
    assert mesh.dial_connected(1, ("10.0.0.1", 1), ("10.0.0.9", PORT), 1.0)
    now = 1.0
    while mesh.status().targets[0].state == "connecting":
        now = mesh.get_timer()
        mesh.handle_timer(now)
    assert limits.OPENING_SECONDS <= now <= limits.OPENING_SECONDS + 0.5
    assert mesh.status().targets[0].reason == NO_PROOF and Hangup(1) in mesh.take_effects()


def test_own_address_is_marked_self_and_left_alone() -> None:
    net = Network(1)
    one = net.add(1, 1)
    net.run(3.0)
    assert target(one, "10.0.0.1") == ("self", "this is our own address")
    assert not one.times_of(LinkUp) and one.core.status().clone is None
    before = net.bytes_sent
    net.run(50.0)
    assert net.bytes_sent == before


def test_container_bridge_addresses_that_all_hosts_share_are_not_called() -> None:
    net = Network(1)
    shared = ("172.17.0.1", PORT)
    net.names["172.17.0.1"] = "10.0.0.3"
    one = net.add(1, endpoints=(shared,))
    net.add(2, 1, endpoints=(shared,))
    three = net.add(3, 1, endpoints=(shared,))
    net.run(5.0)
    assert net.agree() and links(one) == {"host2", "host3"}
    assert not [dial for dial in net.dials if dial[2] == "172.17.0.1"]
    assert all(not node.core.admission.strangers for node in net.running()) and three.times_of(LinkUp)


def test_rotation_of_tokens_loses_no_link_and_removal_expels() -> None:
    net = Network(1)
    nodes = chain(net, 3)
    net.run(5.0)
    for names in (("first", "second"), ("second", "first")):
        for node in nodes:
            net.do(node, lambda mesh, now: mesh.tokens_set(tokens(*names), now))  # noqa: B023
            net.run(2.0)
    assert not any(node.times_of(LinkDown) for node in nodes)
    for node in nodes[:2]:
        net.do(node, lambda mesh, now: mesh.tokens_set(tokens("second"), now))
    net.run(10.0)
    assert links(nodes[0]) == {"host2", "host3"}, "links open again under the new token"
    held = nodes[2].core.table.get(nodes[0].core.node_id)
    assert held is not None and held.record.tokens_accepted == tokens("second").ids
    net.do(nodes[1], lambda mesh, now: mesh.tokens_set(tokens("third"), now))
    net.run(5.0)
    assert links(nodes[1]) == set()


def test_restored_state_jumps_above_once() -> None:
    net = Network(1)
    net.add(1)
    two = net.add(2, 1)
    for _ in range(4):
        net.run(3.0)
        net.kill(two)
        net.start(two)
    net.run(3.0)
    net.kill(two)
    net.start(two, incarnation=2)  # from a backup: others hold 5
    net.run(5.0)
    assert len(two.times_of(RestoredState)) == 1 and not two.times_of(CloneSeen)
    assert two.core.own.record.incarnation == 6 and net.agree()


def test_a_clone_is_noticed_by_the_one_that_has_synced_and_does_not_jump() -> None:
    net = Network(1)
    net.add(1)
    two = net.add(2, 1)
    net.run(5.0)
    copy = net.add(3, 1, identity=2, run=False)
    net.start(copy, incarnation=two.incarnation)
    net.run(5.0)
    assert len(two.times_of(CloneSeen)) == 1 and two.core.own.record.incarnation == 1
    clone = two.core.status().clone
    assert clone is not None and clone.record.run == copy.core.own.record.run


def test_two_nodes_of_one_name_both_work_and_are_reported() -> None:
    net = Network(1)
    one = net.add(1)
    two = net.add(2, 1)
    net.run(1.0)
    net.do(two, lambda mesh, now: mesh.replica.own.change(now, name="host1"))
    net.run(3.0)
    assert one.core.status().duplicate_names == {
        "host1": tuple(sorted(node.core.node_id for node in (one, two)))} and net.agree()


def test_forget_ends_the_calls_and_without_discovery_the_link() -> None:
    net = Network(1)
    one = net.add(1)
    two = net.add(2, 1, "10.9.9.9", discovery=False)
    net.run(3.0)
    net.do(two, lambda mesh, now: mesh.target_remove("10.9.9.9", now))
    assert [status.text for status in two.core.status().targets] == ["10.0.0.1"]
    net.do(two, lambda mesh, now: mesh.target_remove("10.0.0.1", now))
    assert not two.core.target_remove("10.0.0.1", net.now)
    net.run(10.0)
    assert links(two) == set() == links(one) or links(one) == {"host2"}, "host1 may call by itself"
    assert two.core.status().targets == []


def test_behind_nat_is_said_in_the_record_and_nobody_calls() -> None:
    net = Network(1)
    one = net.add(1)
    two = net.add(2, 1, endpoints=(("10.0.0.2", PORT),))
    net.nat["10.0.0.2"] = "198.51.100.7"
    net.run(2.0)
    three = net.add(3, 1)
    net.run(6.0)
    assert net.agree() and two.core.own.record.flags & FLAG_NAT
    assert not one.core.own.record.flags & FLAG_NAT and not three.core.own.record.flags & FLAG_NAT
    assert links(three) == {"host1", "host2"}, "the one behind NAT calls out itself"
    assert all(link.initiator for link in two.core.status().links)
    assert not [dial for dial in net.dials if dial[2] == "10.0.0.2"]
    net.split([two], [one, three])
    net.run(20.0)
    assert not [dial for dial in net.dials if dial[2] == "10.0.0.2"], "out of reach, and still not to be called"


# -- bounds ------------------------------------------------------------------------------------------------------------
def test_half_open_links_are_bounded_and_end_after_five_seconds() -> None:
    mesh = lone()
    numbers = [mesh.accept(("10.0.0.1", PORT), (f"10.1.{n % 250}.1", n + 1), 0.0)
               for n in range(limits.OPENINGS_MAX + 10)]
    assert [effect for effect in mesh.take_effects() if isinstance(effect, Hangup)] == list(map(Hangup, numbers[:10]))
    assert mesh.status().openings == limits.OPENINGS_MAX
    mesh.handle_timer(4.9)
    assert mesh.status().openings == limits.OPENINGS_MAX
    mesh.handle_timer(limits.OPENING_SECONDS + 0.25)
    assert mesh.status().openings == 0
    assert not any(isinstance(effect, Send) for effect in mesh.take_effects()), "not one byte"


def test_calls_under_way_are_bounded_and_the_rest_follows() -> None:
    mesh = lone()
    for number in range(40):
        mesh.target_add(f"10.9.0.{number}", 0.0)
    dials = [effect for effect in mesh.take_effects() if isinstance(effect, Dial)]
    assert len(dials) == limits.DIALS_MAX
    mesh.dial_failed(dials[0].link, "refused", 0.5)
    assert [type(effect) for effect in mesh.take_effects()] == [Dial]
    mesh.dial_failed(dials[0].link, "refused", 0.5)
    assert mesh.take_effects() == [], "a call fails once"


def test_links_are_bounded_and_the_one_too_many_is_told() -> None:
    net = Network(1)
    hub = net.add(200, discovery=False)
    for index in range(1, limits.LINKS_MAX + 3):
        net.add(index, 200, discovery=False)
    net.run(8.0)
    assert len(hub.core.status().links) == limits.LINKS_MAX
    left = [node for node in net.running() if node is not hub and not node.core.status().links]
    assert len(left) == 2
    assert target(left[0], "10.0.0.200")[1] == "the peer has as many links as it may"
    assert len(hub.core.own.record.links) == limits.RECORD_LINKS_MAX


def test_the_operators_limit_of_links_holds_for_calls_and_callers() -> None:
    net = Network(1)
    hub = net.add(200, link_limit=2)
    for index in range(1, 4):
        net.add(index, 200, discovery=False)
    net.run(8.0)
    assert len(hub.core.status().links) == 2
    left = [node for node in net.running() if node is not hub and not node.core.status().links]
    assert [target(node, "10.0.0.200")[1] for node in left] == ["the peer has as many links as it may"]


def test_more_nodes_list_one_address_than_that_one_links_with() -> None:
    """Each gets in: the full one ends the link of another that has enough. Who was sent away so is linked with others
    and calls it again once in some minutes, not all the time."""
    net = Network(2)
    hub = net.add(200, link_limit=8)
    for index in range(1, 17):
        net.add(index, 200)
    assert net.run(20.0, net.agree) < 20.0
    net.run(10.0)
    assert len(hub.core.status().links) <= 8
    assert all(len(node.core.status().links) >= LINKS_KEPT for node in net.running())
    calm = net.now
    net.run(30.0)
    assert len([at for at, _, whom in net.dials if whom == hub.host and at > calm]) <= 8


def test_a_node_with_enough_links_of_its_own_looks_for_no_more() -> None:
    net = Network(3)
    first = net.add(1)
    for index in range(2, 31):
        net.add(index, 1)
    net.run(15.0)
    called = sum(1 for link in first.core.status().links if link.initiator)
    assert called <= limits.LINKS_DISCOVERED_MAX
    assert all(len(node.core.status().links) >= LINKS_SOUGHT for node in net.running())


def test_records_of_the_long_gone_without_addresses_are_forgotten() -> None:
    own = OwnRecord(signed(1).record, identity(1).sign, 0.0)
    replica = Replica(own, verify=remembered_verify, now=0.0)
    replica.merge(signed(2), 0, 0.0)
    replica.merge(signed(3, prefixes=(Prefix(A, 32),)), 0, 0.0)
    for minute in range(1, limits.RECORD_EXPIRE_SECONDS // 60 + 3):
        if minute * 60 < limits.RECORD_EXPIRE_SECONDS:
            assert len(replica.table) == 3
        replica.handle_timer(minute * 60.0)
    assert identity(2).node_id not in replica.table
    assert identity(3).node_id in replica.table, "its address may still be in use"


def test_a_socket_that_takes_nothing_gets_nothing_until_it_does() -> None:
    net = Network(1)
    one, two = net.add(1), net.add(2, 1)
    net.run(3.0)
    [number] = one.core._up.values()
    net.do(one, lambda mesh, now: mesh.set_writable(number, False, now))
    before = len(two.events)
    net.do(one, lambda mesh, now: mesh.set_prefixes([Prefix(A, 32)], now))
    net.run(0.5)
    assert len(two.events) == before
    net.do(one, lambda mesh, now: mesh.set_writable(number, True, now))
    net.run(0.1)
    assert (A, 32) in two.installed


def test_a_bad_record_is_counted_and_costs_the_messenger_nothing() -> None:
    net = Network(1)
    one, two = net.add(1), net.add(2, 1)
    net.run(3.0)
    [place] = one.core._up_places()
    bad = signed(9)
    object.__setattr__(bad, "data", bytes(64) + bad.data[64:])
    place.link.queue(bad, net.now)
    net.do(one, lambda mesh, now: mesh.handle_timer(now + 0.03))
    net.run(0.5)
    assert two.core.status().counters == {"record signature": 1}
    assert links(two) == {"host1"} and identity(9).node_id not in two.core.table


def test_a_neighbour_may_not_change_its_handshake_key_in_its_record() -> None:
    net = Network(1)
    one, two = net.add(1), net.add(2, 1)
    net.run(3.0)
    keys = Identity(one.identity.ed25519_secret, bytes(range(32)))
    net.do(one, lambda mesh, now: mesh.replica.own.change(now, x25519_public=keys.x25519_public))
    net.run(3.0)
    assert two.core.status().counters["record of another key"] >= 1
    held = two.core.table.get(one.core.node_id)
    assert held is not None and held.record.x25519_public == one.identity.x25519_public


def test_after_close_nothing_is_taken_any_more() -> None:
    mesh = lone()
    number = mesh.accept(("10.0.0.1", PORT), ("10.0.0.2", 5), 0.0)
    mesh.target_add("10.0.0.9", 0.0)
    mesh.take_effects()
    mesh.close(1.0)
    assert set(mesh.take_effects()) == {Hangup(1), Hangup(2)}
    mesh.receive_data(number, b"x" * 100, 1.0)
    mesh.dial_failed(2, "late", 1.0)
    mesh.handle_timer(5.0)
    assert mesh.take_effects() == []


def test_other_addresses_of_the_host_replace_the_old_ones_in_its_record() -> None:
    mesh = lone()
    mesh.set_endpoints([("192.0.2.7", PORT), ("2001:db8::7", PORT)], 10.0)
    assert mesh.own.record.endpoints == (("192.0.2.7", PORT), ("2001:db8::7", PORT))
    mesh.set_endpoints([("2001:db8::7", PORT)], 20.0)
    assert mesh.own.record.endpoints == (("2001:db8::7", PORT),)
