"""Blocks in the fast path: registers before records, whichever comes first, and nothing for who is unknown."""

from unit.mesh_helpers import identity, signed

from weave_router.mesh.record import Prefix
from weave_router.mesh.routes import SLOT_LOCAL, NodeDel, Operation, RouteDel, Routes, RouteSet
from weave_router.mesh.table import Delta

ME, NEAR, FAR = (identity(seed).node_id for seed in (1, 2, 3))
BLOCK, OTHER = (0x0A200000, 26), (0x0A200040, 26)


def routes() -> Routes:
    return Routes(ME, (0x0A200000, 12))


def record(made: Routes, seed: int, *prefixes: Prefix) -> list[Operation]:
    return made.apply(Delta(identity(seed).node_id, None, signed(seed, prefixes=prefixes), None))


def test_own_blocks_are_local_and_anothers_wait_for_its_record() -> None:
    made = routes()
    assert made.set_blocks({BLOCK: ME}) == [RouteSet(*BLOCK, SLOT_LOCAL)]
    assert made.set_blocks({OTHER: NEAR}) == []
    operations = record(made, 2)
    slot = made.slots.of(NEAR)
    assert RouteSet(*OTHER, slot) in operations
    assert made.set_blocks({OTHER: NEAR}) == []  # a delta that changes nothing


def test_a_block_changes_hands_and_outlives_a_record() -> None:
    made = routes()
    record(made, 2)
    record(made, 3)
    made.set_blocks({BLOCK: NEAR})
    assert made.set_blocks({BLOCK: FAR}) == [RouteSet(*BLOCK, made.slots.of(FAR))]
    gone = made.apply(Delta(FAR, signed(3), None, None))
    assert gone[0] == RouteDel(*BLOCK) and isinstance(gone[-1], NodeDel)
    back = record(made, 3)
    assert RouteSet(*BLOCK, made.slots.of(FAR)) in back


def test_a_claim_inside_anothers_block_is_not_followed_and_named() -> None:
    made = routes()
    inside = Prefix(0x0A200005, 32)
    assert RouteSet(0x0A200005, 32, 2) in record(made, 2, inside)
    made.set_blocks({OTHER: FAR})
    assert made.refused() == []
    assert made.set_blocks({BLOCK: FAR}) == [RouteDel(0x0A200005, 32)]
    assert made.refused() == [((0x0A200005, 32), FAR, NEAR)]
    assert made.set_blocks({BLOCK: NEAR}) == [RouteSet(*BLOCK, 2), RouteSet(0x0A200005, 32, 2)]


def test_the_owners_own_exception_stands() -> None:
    made = routes()
    made.set_blocks({BLOCK: NEAR})
    mac = bytes.fromhex("020000000001")
    assert RouteSet(0x0A200007, 32, 2, mac) in record(made, 2, Prefix(0x0A200007, 32, mac))
