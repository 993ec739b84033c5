"""mesh/routes.py: deltas to operations, against a naive rebuild from the whole table."""

from random import Random

from unit.mesh_helpers import identity, signed

from weave_router import limits
from weave_router.mesh.record import FLAG_FLOOD, Prefix
from weave_router.mesh.routes import (
    SLOT_LOCAL,
    SLOT_NONE,
    Conflict,
    GroupsSet,
    MacConflict,
    NodeDel,
    NodeSet,
    RouteDel,
    Routes,
    RouteSet,
    Slots,
)
from weave_router.mesh.table import Delta, Table

OWN = identity(0).node_id
MAC = bytes([2, 0, 0, 0, 0, 9])
GROUP = bytes([1, 0, 0x5E, 0, 0, 1])
A, B, C = 0x0A200001, 0x0A200002, 0x0A200003


def apply(routes: Routes, table: Table) -> list[object]:
    return [operation for delta in table.take_deltas() for operation in routes.apply(delta)]


def prefixes(*numbers: int) -> tuple[Prefix, ...]:
    return tuple(Prefix(number, 32) for number in numbers)


def test_life_of_a_node_in_order() -> None:
    routes, table = Routes(OWN), Table()
    table.merge(signed(1, prefixes=prefixes(A), groups=(GROUP,), pod_mtu=1368, flags=FLAG_FLOOD), 0.0)
    one = identity(1).node_id
    assert apply(routes, table) == [
        NodeSet(2, one, answer=True, flood=True, pod_mtu=1368), RouteSet(A, 32, 2), GroupsSet(2, (GROUP,))]
    assert routes.slots.of(one) == 2 and routes.slots.node(2) == one
    table.merge(signed(1, seq=2, prefixes=(Prefix(A, 32, MAC), Prefix(B, 32)), pod_mtu=1368, flags=FLAG_FLOOD), 0.0)
    assert apply(routes, table) == [RouteSet(A, 32, 2, MAC), RouteSet(B, 32, 2), GroupsSet(2, ())]
    table.remove(one)
    assert apply(routes, table) == [RouteDel(A, 32), RouteDel(B, 32), NodeDel(2, one)]
    assert routes.slots.of(one) == SLOT_NONE and routes.slots.node(2) is None


def test_links_rtt_and_names_touch_nothing() -> None:
    routes, table = Routes(OWN), Table()
    table.merge(signed(1, prefixes=prefixes(A)), 0.0)
    apply(routes, table)
    table.merge(signed(1, seq=2, prefixes=prefixes(A), name="new", endpoints=(("10.0.0.1", 1),)), 0.0)
    assert apply(routes, table) == []


def test_own_prefixes_are_local_and_oneself_is_no_node() -> None:
    routes, table = Routes(OWN), Table()
    table.put_own(signed(0, prefixes=prefixes(A), pod_mtu=1368))
    assert apply(routes, table) == [RouteSet(A, 32, SLOT_LOCAL)]
    assert routes.owner_of(A) == OWN


def test_conflict_goes_to_the_smaller_id_in_every_order() -> None:
    ids = {identity(seed).node_id: seed for seed in (1, 2, 3)}
    small, middle, large = sorted(ids)
    for order in ([small, large, middle], [large, middle, small], [middle, small, large]):
        routes, table = Routes(OWN), Table()
        for node_id in order:
            table.merge(signed(ids[node_id], prefixes=prefixes(A)), 0.0)
        operations = apply(routes, table)
        last = [operation for operation in operations if isinstance(operation, RouteSet)][-1]
        assert last == RouteSet(A, 32, routes.slots.of(small))
        assert routes.conflicts() == [Conflict(A, 32, small, (middle, large))]
        assert routes.owner_of(A) == small
        table.remove(small)
        assert RouteSet(A, 32, routes.slots.of(middle)) in apply(routes, table)
        table.remove(middle)
        apply(routes, table)
        assert routes.conflicts() == []


def test_one_mac_at_two_nodes_is_the_smaller_ids_and_counted_once() -> None:
    small, large = sorted((1, 2), key=lambda seed: identity(seed).node_id)
    routes, table = Routes(OWN), Table()
    table.merge(signed(large, prefixes=(Prefix(A, 32, MAC), Prefix(C, 32, MAC))), 0.0)
    apply(routes, table)
    assert routes.mac_conflicts() == [] and routes.mac_conflicts_seen == 0  # two addresses of one pod
    table.merge(signed(small, prefixes=(Prefix(B, 32, MAC),)), 0.0)
    apply(routes, table)
    wanted = MacConflict(MAC, identity(small).node_id, (identity(large).node_id,), (A, B, C))
    assert routes.mac_conflicts() == [wanted] and routes.mac_conflicts_seen == 1
    table.merge(signed(large, seq=2, prefixes=(Prefix(C, 32, MAC),)), 1.0)
    apply(routes, table)
    assert routes.mac_conflicts_seen == 1 and routes.mac_conflicts()[0].numbers == (B, C)
    table.remove(identity(small).node_id)
    apply(routes, table)
    assert routes.mac_conflicts() == []


def test_conflict_with_ourselves_follows_the_same_rule() -> None:
    other = next(seed for seed in range(1, 50) if identity(seed).node_id < OWN)
    routes, table = Routes(OWN), Table()
    table.put_own(signed(0, prefixes=prefixes(A)))
    table.merge(signed(other, prefixes=prefixes(A)), 0.0)
    assert [op for op in apply(routes, table) if isinstance(op, RouteSet)][-1] == RouteSet(A, 32, 2)
    table.merge(signed(other, seq=2), 0.0)
    assert apply(routes, table) == [RouteSet(A, 32, SLOT_LOCAL)]


def test_prefixes_outside_our_range_are_reported_not_installed() -> None:
    routes, table = Routes(OWN, universe=(0x0A200000, 12)), Table()
    outside = (0x0B000001, 32)
    table.merge(signed(1, prefixes=(Prefix(A, 32), Prefix(*outside), Prefix(0x0A000000, 8))), 0.0)
    assert [op for op in apply(routes, table) if isinstance(op, RouteSet)] == [RouteSet(A, 32, 2)]
    assert routes.outside() == {identity(1).node_id: (outside, (0x0A000000, 8))}
    table.merge(signed(1, seq=2, prefixes=prefixes(A)), 0.0)
    assert apply(routes, table) == [] and routes.outside() == {}


def test_answer_is_withdrawn_and_given_back() -> None:
    routes, table = Routes(OWN), Table()
    table.merge(signed(1), 0.0)
    apply(routes, table)
    one = identity(1).node_id
    assert routes.answer(one, True) == []
    assert routes.answer(one, False) == [NodeSet(2, one, answer=False, flood=False, pod_mtu=0)]
    table.merge(signed(1, seq=2, pod_mtu=1400), 0.0)
    assert apply(routes, table) == [NodeSet(2, one, answer=False, flood=False, pod_mtu=1400)]
    assert routes.answer(one, True) == [NodeSet(2, one, answer=True, flood=False, pod_mtu=1400)]
    assert routes.answer(b"nobody", False) == []


def test_owner_by_longest_prefix() -> None:
    routes, table = Routes(OWN), Table()
    table.merge(signed(1, prefixes=(Prefix(0x0A200000, 26),)), 0.0)
    table.merge(signed(2, prefixes=prefixes(B)), 0.0)
    apply(routes, table)
    assert routes.owner_of(A) == identity(1).node_id
    assert routes.owner_of(B) == identity(2).node_id
    assert routes.owner_of(0x0A300000) is None


def test_slots_run_from_2_and_freed_ones_rest_longest() -> None:
    slots = Slots(OWN, limit=6)
    ids = [bytes([n]) * 16 for n in range(10)]
    assert [slots.take(node_id) for node_id in ids[:3]] == [2, 3, 4]
    slots.give_back(ids[0])
    slots.give_back(ids[1])
    assert [slots.take(node_id) for node_id in ids[3:6]] == [5, 2, 3]


def test_full_table_has_a_slot_for_everybody() -> None:
    slots = Slots(OWN)
    last = [slots.take(index.to_bytes(16, "big")) for index in range(limits.RECORDS_MAX - 1)][-1]
    assert last == limits.NODES_MAX - 1


def test_operations_by_delta_equal_a_rebuild() -> None:
    rng = Random(3)
    routes, table = Routes(OWN), Table()
    engine: dict[tuple[int, int], tuple[int, bytes]] = {}
    seqs = dict.fromkeys(range(6), 0)
    for step in range(600):
        seed = rng.randrange(6)
        if seed and rng.random() < 0.1:
            table.remove(identity(seed).node_id)
        else:
            seqs[seed] += 1
            chosen = rng.sample(range(A, A + 6), rng.randrange(4))
            macs = [MAC if rng.random() < 0.2 else b"" for _ in chosen]
            one = signed(seed, seq=seqs[seed], prefixes=tuple(map(Prefix, chosen, [32] * 4, macs)))
            (table.put_own(one) if seed == 0 else table.merge(one, float(step)))
        follow(engine, apply(routes, table))
        assert engine == rebuild(routes, table)
        assert routes._claims.keys() == engine.keys(), "nothing is left of what is gone"
        assert [(c.number, c.holder, c.others) for c in routes.conflicts()] == contested(table)
        having = sorted({node for by in claims(table).values() for node, mac in by.items() if mac == MAC})
        wanted = [(MAC, having[0], tuple(having[1:]))] if len(having) > 1 else []
        assert [(c.mac, c.holder, c.others) for c in routes.mac_conflicts()] == wanted
        assert routes.announcer_of(MAC) == min(set(having) - {OWN}, default=None)


def follow(engine: dict[tuple[int, int], tuple[int, bytes]], operations: list[object]) -> None:
    for operation in operations:
        match operation:
            case RouteSet():
                engine[operation.number, operation.prefix_len] = (operation.slot, operation.mac)
            case RouteDel():
                del engine[operation.number, operation.prefix_len]
            case NodeDel():
                assert all(slot != operation.slot for slot, _ in engine.values()), "routes go before their node"


def claims(table: Table) -> dict[int, dict[bytes, bytes]]:
    result: dict[int, dict[bytes, bytes]] = {}
    for one in table:
        for prefix in one.record.prefixes:
            result.setdefault(prefix.number, {})[one.node_id] = prefix.mac
    return result


def rebuild(routes: Routes, table: Table) -> dict[tuple[int, int], tuple[int, bytes]]:
    return {(number, 32): (routes.slots.of(min(by)), by[min(by)]) for number, by in claims(table).items()}


def contested(table: Table) -> list[tuple[int, bytes, tuple[bytes, ...]]]:
    return [(number, min(by), tuple(sorted(by)[1:])) for number, by in sorted(claims(table).items()) if len(by) > 1]


def test_removal_of_the_unknown_is_nothing() -> None:
    assert Routes(OWN).apply(Delta(b"x" * 16, None, None)) == []
