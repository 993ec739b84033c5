"""What the record says of multicast groups: many that come together are told together, and one that lapses is told."""

from collections.abc import Callable, Iterable
from typing import Any, cast

from weave_router.fastpath.engine import EV_GROUP
from weave_router.mesh.driver import MeshDriver
from weave_router.router_record import GROUP_SECONDS, TOGETHER_SECONDS, OwnRecord


class Mesh:
    def __init__(self) -> None:
        self.told: list[list[bytes]] = []

    def do(self, action: Callable[[Any, float], None]) -> None:
        action(self, 0.0)

    def set_groups(self, groups: Iterable[bytes], now: float) -> None:
        self.told.append(sorted(groups))


def test_groups_that_come_together_are_told_together() -> None:
    mesh, waiting = Mesh(), list[tuple[float, Callable[[], None]]]()
    own = OwnRecord(None, lambda number: None, lambda seconds, work: waiting.append((seconds, work)))
    own.join(cast(MeshDriver, mesh), cast(Any, None), None, None)
    groups = [bytes([1, 0, 0x5E, 0, 0, number]) for number in range(20)]
    for group in groups * 2:
        own.engine_event((EV_GROUP, group, True), 1.0)
    (asked,) = waiting
    assert asked[0] == TOGETHER_SECONDS and mesh.told == []
    asked[1]()
    assert mesh.told == [groups]
    own.engine_event((EV_GROUP, b"\1\0\x5e\0\1\0", True), 2.0)
    assert len(waiting) == 2
    own.expire_groups(1.0 + GROUP_SECONDS + 0.5)
    assert mesh.told[-1] == [b"\1\0\x5e\0\1\0"]
