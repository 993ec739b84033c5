"""Claims, the fence and lost blocks: cores of several routers against one API server in virtual time."""

from __future__ import annotations

import json
from ipaddress import IPv4Address

import pytest
from unit.kube_api import LEASES, UNIVERSE, Faults, Router, Sim

from weave_router import limits
from weave_router.ipam.allocator import Holder
from weave_router.ipam.arbitrated import ArbitratedBlocks
from weave_router.ipam.values import Gate
from weave_router.kube import objects
from weave_router.kube.core import Kube
from weave_router.kube.events import Event, Lost
from weave_router.kube.values import Answer, World, back_off

HARSH = Faults(lost_before=0.05, lost_after=0.1, refused=0.1, late=0.3, breaks=0.01)


def settled(*names: str, appetite: int = 2, **settings: object) -> tuple[Sim, list[Router]]:
    sim = Sim()
    routers = [sim.add(name, appetite=appetite, **settings) for name in names]
    sim.run(10)
    assert all(len(router.usable()) == appetite for router in routers)
    return sim, routers


@pytest.mark.parametrize("faults", [Faults(), HARSH], ids=["calm", "harsh"])
def test_three_routers_race_for_a_thousand_blocks(faults: Faults) -> None:
    sim = Sim(7, faults)
    routers = [sim.add(name, appetite=2000) for name in "abc"]
    for _ in range(120):
        sim.run(10)
        sim.each_block_once()
        if sum(len(router.usable()) for router in routers) == 1024:
            break
    holders = sim.api.holders()
    assert len(holders) == 1024 and all(holders.values())
    for router in routers:
        mine = {block for block, holder in holders.items() if holder == router.core.holder}
        assert router.usable() == mine and len(mine) > 100
    if faults.lost_after == 0:
        assert sim.api.writes == 1024, "a claim costs one write"


def test_the_full_range_is_said_and_looked_at_again() -> None:
    sim = Sim()
    router = sim.add("a", appetite=2000)
    sim.run(400)
    assert len(router.usable()) == 1024
    assert "no block of 10.32.0.0/16 is free" in router.core.troubles["range"]
    assert router.service.growing is False


def test_nothing_is_written_when_nothing_happens() -> None:
    sim, _ = settled("a", "b")
    before = sim.api.writes, len(sim.api.log)
    sim.run(600)
    assert (sim.api.writes, len(sim.api.log)) == before


def test_a_node_that_is_gone_loses_its_blocks_after_the_rules_time() -> None:
    sim, (a, b) = settled("a", "b")
    lost = set(b.usable())
    b.alive = False
    sim.api.delete("api/v1/nodes/b")
    sim.run(890)
    assert {block for block, holder in sim.api.holders().items() if holder.startswith(b.core.holder[:8])} >= lost
    sim.run(100)
    assert {sim.api.holders()[block] for block in lost} == {""}
    assert all(sim.api.lease(block)["spec"]["leaseTransitions"] == 0 for block in lost)  # type: ignore[index]
    a.blocks.appetite = 1024
    sim.run(400)
    assert lost <= a.usable()
    assert all(a.blocks.known_gen(block) == 1 for block in lost)


@pytest.mark.parametrize("reason", ["heard", "pod", "api", "back"])
def test_a_node_that_may_live_keeps_its_blocks(reason: str) -> None:
    sim, (a, b) = settled("a", "b")
    lost = set(b.usable())
    b.alive = False
    sim.api.delete("api/v1/nodes/b")
    if reason == "heard":
        a.world = World(reachable=frozenset({b.identity.node_id}))
    if reason == "pod":
        sim.api.put("api/v1/pods/p", {"metadata": {"name": "p"}, "spec": {"nodeName": "b"}})
    if reason == "api":
        sim.run(500)
        a.cut = True
        sim.run(60)
        a.cut = False
        sim.run(700)
    elif reason == "back":
        sim.run(800)
        sim.api.put("api/v1/nodes/b", {"metadata": {"name": "b", "uid": b.core.own.uid if b.core.own else ""}})
        sim.run(800)
    else:
        sim.run(2000)
    assert {sim.api.holders()[block] for block in lost} == {b.core.holder}


def test_pods_of_a_new_node_under_the_old_name_do_not_count() -> None:
    sim, (_, b) = settled("a", "b", fence=100.0, jitter=1.0)
    lost = set(b.usable())
    b.alive = False
    sim.api.delete("api/v1/nodes/b")
    sim.api.put("api/v1/nodes/b", {"metadata": {"name": "b", "creationTimestamp": "2026-02-01T00:00:00Z"}})
    sim.api.put("api/v1/pods/p", {"metadata": {"name": "p", "creationTimestamp": "2026-02-01T00:00:01Z"},
                                  "spec": {"nodeName": "b"}})
    sim.run(200)
    assert {sim.api.holders()[block] for block in lost} == {""}


def test_a_new_node_object_for_the_same_router_is_written_into_its_leases() -> None:
    sim, (_, b) = settled("a", "b")
    blocks = set(b.usable())
    sim.api.delete("api/v1/nodes/b")
    sim.api.add_node("b")
    sim.run(10)
    assert b.usable() == blocks and b.core.own is not None
    assert {sim.api.holders()[block] for block in blocks} == {f"{b.core.own.uid}.{b.core.me}"}
    assert not b.service.lost


def test_a_machine_set_up_anew_takes_the_blocks_of_its_node_over() -> None:
    sim, (_, b) = settled("a", "b")
    blocks = set(b.usable())
    b.alive = False
    anew = sim.add("b", node=False, appetite=2)
    sim.run(10)
    assert anew.usable() == blocks
    assert all(anew.blocks.known_gen(block) == 1 for block in blocks)


def test_cut_off_and_back_after_its_blocks_were_given_away() -> None:
    sim, (a, b) = settled("a", "b", fence=50.0, jitter=1.0)
    holder = Holder("pod", "eth0")
    number = b.service.allocate(holder, sim.now)[0]
    lost = set(b.usable())
    b.cut = True
    sim.api.delete("api/v1/nodes/b")
    sim.run(100)
    a.blocks.appetite = 1024
    sim.run(400)
    assert lost <= a.usable() and b.usable() == lost  # the API's word did not reach it yet
    b.cut = False
    sim.run(5)
    assert not b.usable() & lost and b.service.lost == [holder]
    assert b.service.allocator.holder_of(number) is None
    assert any("is lost: it belongs to node a" in sentence for sentence in b.core.troubles.values())
    sim.each_block_once()


def test_a_register_of_a_higher_generation_ends_a_block_while_the_api_is_away() -> None:
    sim, (a, b) = settled("a", "b")
    block = min(b.usable())
    holder = Holder("pod", "eth0")
    first = next(iter(b.service.allocator.numbers_of(block)))
    b.service.claim(holder, first, sim.now)
    b.cut = True
    sim.run(1)
    a.blocks.grant({block: 5}, sim.now)
    run = a.service.runs.proof_of(block, a.service.state.registers[block])
    hear(b, a, run, sim.now)
    assert block not in b.usable()
    sim.run(2)
    assert holder in b.service.lost


def told(router: Router) -> list[Event]:
    """What it would tell of lost blocks."""
    found = iter(router.core.events.next, None)
    return [event for event in found if event is not None and event.reason == "BlockLost"]


def test_what_a_node_without_the_api_lost_is_told_by_the_new_holder() -> None:
    """Once, under the name that the loser itself gives it; and for as long as pods of the block are there."""
    sim, (a, b, other) = settled("a", "b", "c", fence=50.0, jitter=1.0)
    block = min(b.usable())
    b.service.claim(Holder("pod", "eth0"), next(iter(b.service.allocator.numbers_of(block))), sim.now)
    b.cut = True
    sim.api.delete("api/v1/nodes/b")
    sim.run(100)
    a.blocks.appetite = 1024
    sim.run(500)
    assert block in a.usable()
    hear(b, a, a.service.runs.proof_of(block, a.service.state.registers[block]), sim.now)
    sim.run(20)
    gen = a.blocks.known_gen(block)
    assert b.core.lost == {block: gen}
    (event,), (own,), nobodys = told(a), told(b), told(other)
    assert event.node == "b" and "it belongs to node a" in event.message
    assert (own.node, own.key) == (event.node, event.key) and str(gen) in event.key and not nobodys
    assert any("is lost" in sentence for sentence in b.core.troubles.values())
    sim.run(20)
    assert not told(a)
    b.service.lost.clear()  # their ports are gone with them
    sim.run(3)
    assert not b.core.lost and not any("is lost" in sentence for sentence in b.core.troubles.values())


def test_a_record_that_lies_about_lost_blocks_is_not_told() -> None:
    sim, (a, b) = settled("a", "b")
    block, foreign = min(a.usable()), min(b.usable())
    world = World(lost=frozenset({Lost("b", bytes(16), block, 1000), Lost("b", bytes(16), foreign, 0)}))
    a.core.handle_timer(sim.now, world)
    assert not told(a)


def test_an_owner_whose_lease_counts_lower_than_a_register_counts_on_once() -> None:
    sim, (a, b) = settled("a", "b")
    block = min(b.usable())
    a.blocks.grant({block: 5}, sim.now)  # what a heard long ago of somebody else
    hear(b, a, a.service.runs.proof_of(block, a.service.state.registers[block]), sim.now)
    assert block not in b.usable()
    writes = sim.api.writes
    sim.run(5)
    assert block in b.usable() and b.blocks.known_gen(block) == 6 and sim.api.writes == writes + 1
    assert not b.service.lost


def hear(router: Router, other: Router, run: bytes | None, now: float) -> None:
    """A word of the mesh."""
    from weave_router.ipam import wire

    assert run is not None
    router.service.neighbours[other.identity.node_id] = True
    data = wire.encode_message(1, UNIVERSE.universe, router.service._key, None, wire.Tell(wire.Facts((run,), ())))
    router.service.receive(other.identity.node_id, data, now)
    router.service.neighbours.clear()


@pytest.mark.parametrize("edit", ["deleted", "emptied", "lower"])
def test_a_lease_edited_under_our_feet_is_put_right(edit: str) -> None:
    sim, (a, b) = settled("a", "b")
    block = min(b.usable())
    path = f"{LEASES}/{objects.lease_name(objects.network_of(b.core.settings.range_v4, block))}"
    b.blocks.grant({block: 3}, sim.now)
    if edit == "deleted":
        sim.api.delete(path)
    else:
        lease = json.loads(json.dumps(sim.api.objects[path]))
        lease["spec"] = {"leaseTransitions": 0} | ({"holderIdentity": b.core.holder} if edit == "lower" else {})
        sim.api.put(path, lease)
    sim.run(5)
    lease = sim.api.objects[path]
    assert lease["spec"]["holderIdentity"] == b.core.holder
    assert lease["spec"]["leaseTransitions"] == b.blocks.known_gen(block) == (3 if edit == "lower" else 4)
    assert block in b.usable() and not b.service.lost and not a.usable() & b.usable()


def test_foreign_leases_are_left_alone_and_named() -> None:
    sim = Sim()
    router = sim.add("a", appetite=1)
    for block in range(1020):
        body = json.loads(objects.lease_body(block, router.core.settings.range_v4, "", 0, ""))
        body["metadata"]["annotations"]["weave-router.io/cidr"] = "10.99.0.0/26"
        sim.api.put(f"{LEASES}/{body['metadata']['name']}", body)
    sim.run(5)
    assert router.usable() <= {1020, 1021, 1022, 1023} and len(router.usable()) == 1
    assert "its annotation says '10.99.0.0/26'" in router.core.troubles["leases"]


def test_after_a_reboot_the_first_read_opens_the_gate() -> None:
    sim = Sim()
    router = sim.add("a", appetite=1)
    sim.run(5)
    router.service.boot("another boot", 2, {}, False, sim.now)
    router.service.boot("yet another", 3, {}, False, sim.now)
    assert router.service.state.gate == Gate.CLOSED and router.service.refusal()
    router.cut = True
    sim.run(20)
    assert router.service.state.gate == Gate.CLOSED
    router.cut = False
    sim.run(2)
    assert router.service.refusal() is None


def test_records_of_machines_that_are_gone_are_dropped_by_the_same_rule() -> None:
    sim, (a, b) = settled("a", "b", fence=100.0, jitter=1.0)
    former = b"f" * 16
    here = frozenset({a.identity.node_id, b.identity.node_id})
    a.world = World(reachable=here, names={b.identity.node_id: "b", former: "b", b"x" * 16: "x"})
    sim.run(90)
    assert a.core.buried == []
    sim.run(15)
    assert sorted(a.core.buried) == [former, b"x" * 16]  # of the machine that b was, and of one without a Node
    a.core.buried.clear()
    a.world = World(names={b.identity.node_id: "b"})
    sim.run(300)
    assert a.core.buried == []  # silent, but its Node stands


def test_retirement_is_the_apis() -> None:
    from weave_router.ipam.ownership import step
    from weave_router.ipam.values import Refused, Retire

    _, (a, b) = settled("a", "b")
    _, effects = step(a.service.state, Retire(frozenset({b.identity.node_id})))
    assert any(isinstance(e, Refused) and "delete the Node" in e.reason for e in effects)


def test_condition_is_patched_once_and_only_when_it_serves() -> None:
    sim, (a, _) = settled("a", "b")
    writes = sim.api.writes
    a.world = World(serving=True, utc="2026-01-01T00:00:00Z")
    sim.run(100)
    assert sim.api.writes == writes + 1
    conditions = sim.api.objects["api/v1/nodes/a"]["status"]["conditions"]
    assert [(c["type"], c["status"]) for c in conditions] == [("NetworkUnavailable", "False")]


def test_a_node_of_a_thousand_calls_few_and_the_next_by_name() -> None:
    sim = Sim()
    router = sim.add("n500", appetite=0)
    for number in range(1000):
        sim.api.add_node(f"n{number:03}", str(IPv4Address(0x0A000000 + number)), f"fd00::{number:x}")
    sim.run(1)
    targets = router.core.targets()
    assert 2 * limits.KUBE_TARGETS >= len(targets) > limits.KUBE_TARGETS and "10.0.1.245" in targets
    assert targets == router.core.targets()


def test_until_the_nodes_are_known_those_of_the_last_start_are_called() -> None:
    sim = Sim()
    sim.api.add_node("b", "192.0.2.2")
    router = sim.add("a")
    router.core = Kube(router.core.settings, router.identity.node_id, router.blocks, sim.rng, universe=UNIVERSE,
                       targets=["192.0.2.7"])
    router.cut = True
    sim.run(5)
    assert router.core.targets() == ["192.0.2.7"]
    router.cut = False
    sim.run(5)
    assert router.core.targets() == ["192.0.2.2"]


def test_forbidden_says_so_and_backs_off() -> None:
    sim = Sim()
    router = sim.add("a", appetite=0)
    sim.run(2)
    router.blocks.appetite = 1
    router.alive = False
    router.core.handle_timer(sim.now, World())
    assert router.core.next_call(sim.now) is not None
    router.core.answered(Answer(403), sim.now)
    assert "compare the Role" in router.core.troubles["api"] and router.core.next_call(sim.now) is None
    event = router.core.events.next()
    assert event == Event("Warning", "ApiServer", router.core.troubles["api"], "a", router.core.nodes["a"].uid)
    for failures in range(20):
        assert 0.5 <= back_off(failures, sim.rng) <= 8.0


def test_events_that_nobody_takes_are_bounded() -> None:
    sim = Sim()
    router = sim.add("a")
    for number in range(limits.KUBE_EVENTS_PENDING + 5):
        router.core.warn("x", f"sentence {number}", "Reason")
    events = router.core.events
    first = events.next()
    assert first is not None and first.message == "sentence 5"
    events.refused(first)
    assert events.next() == first
    router.core.warn("x", "one more", "Reason")
    events.refused(first)  # its room is another's
    second = events.next()
    assert second is not None and second.message == "sentence 6"


# -- blocks too many -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("faults", [Faults(), HARSH], ids=["calm", "harsh"])
def test_idle_blocks_go_back_and_are_claimed_by_others(faults: Faults) -> None:
    """Three routers whose needs change at random: no block is used twice, and in the end each holds what it needs."""
    sim = Sim(11, faults)
    routers = [sim.add(name, appetite=5, idle=5.0) for name in "abc"]
    for _ in range(15):
        sim.run(20)
        sim.each_block_once()
        router = sim.rng.choice(routers)
        router.blocks.appetite = sim.rng.randrange(1, 60)
    for router in routers:
        router.blocks.appetite = 3
    for _ in range(20):
        sim.run(30)
        sim.each_block_once()
        if all(len(router.usable()) == 3 for router in routers):
            break
    sim.run(30)
    for router in routers:
        assert {block for block, holder in sim.api.holders().items() if holder == router.core.holder} == router.usable()
        assert len(router.usable()) == 3
    assert sum(holder == "" for holder in sim.api.holders().values()) > 20, "their Leases stay, without a holder"
    assert not any(router.service.lost for router in routers)


def test_a_block_with_an_address_stays_and_one_stays_ahead() -> None:
    sim, (router,) = settled("a", appetite=4, idle=10.0)
    number = router.service.allocate(Holder("pod", "eth0"), sim.now)[0]
    router.blocks.__class__ = ArbitratedBlocks
    sim.run(60)
    first = int(objects.IPv4Network(UNIVERSE.range_v4).network_address)
    home = (number - first) >> 6
    assert home in router.usable() and len(router.usable()) == 2, "its own block, and one ahead"
    router.service.release(Holder("pod", "eth0"), sim.now)
    sim.run(30)
    assert home in router.usable(), "it rests"
    assert router.blocks.spare() is None


def test_a_block_given_back_is_taken_again_by_a_claim() -> None:
    sim, (router,) = settled("a", appetite=3, idle=5.0)
    had = router.usable()
    router.blocks.appetite = 1
    sim.run(60)
    assert len(router.usable()) == 1 and len(router.core.given) == 2
    given = set(router.core.given)
    router.blocks.appetite = 1024
    sim.run(400)
    assert had <= router.usable() and not router.core.given
    assert all(router.blocks.known_gen(block) == 1 for block in given)
    sim.each_block_once()
