"""The invariants that run a copy of the core see a broken core: each is broken once here, and named."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from model import invariants
from model.invariants import violations
from unit.ipam_sim import NAMES, Net

from weave_router.ipam import donation
from weave_router.ipam.allocator import Allocator, Change, Holder
from weave_router.ipam.values import Effect, Knowledge, Register, State

Patch = pytest.MonkeyPatch


def last_heard_wins(net: Net, patch: Patch) -> None:
    def merge(state: State, new: Knowledge, out: list[Effect]) -> State:
        return state._replace(registers=state.registers.with_items(new.registers))

    patch.setattr(invariants, "merge", merge)
    node = next(iter(net.nodes.values()))
    newer = Register(0, 9, node.id, node.id)
    node.core.state = node.core.state._replace(registers=node.core.state.registers.with_items({0: newer}))


def every_add_is_new(net: Net, patch: Patch) -> None:
    def allocate(self: Allocator, holder: Holder, *words: object) -> object:
        return real(self, Holder(f"{holder.container} again", holder.ifname), *words)  # type: ignore[arg-type]

    real = Allocator.allocate
    patch.setattr(Allocator, "allocate", allocate)


def a_number_is_not_looked_at(net: Net, patch: Patch) -> None:
    def release(self: Allocator, holder: Holder, now: float, number: int | None = None) -> Change:
        return real(self, holder, now)

    real = Allocator.release
    patch.setattr(Allocator, "release", release)


def the_first_of_the_range_is_free(net: Net, patch: Patch) -> None:
    free = next(iter(net.nodes.values())).core.allocator._free
    free[int(net.network[0])] = None
    free.move_to_end(int(net.network[0]), last=False)


def nothing_rests(net: Net, patch: Patch) -> None:
    def rest(self: Allocator, number: int, holder: Holder, now: float) -> None:
        self._free[number] = None

    patch.setattr(Allocator, "_rest", rest)


def nobody_gives(net: Net, patch: Patch) -> None:
    patch.setattr(donation, "give", lambda state, *_: state)


@pytest.mark.parametrize(("name", "spoil"), [
    ("I5", last_heard_wins), ("I12", every_add_is_new), ("I13", a_number_is_not_looked_at),
    ("I14", the_first_of_the_range_is_free), ("I15", nothing_rests), ("I17", nobody_gives),
])  # fmt: skip
def test_a_broken_core_is_named(name: str, spoil: Callable[[Net, Patch], None], monkeypatch: Patch) -> None:
    net = Net()
    nodes = [net.add(each) for each in NAMES]
    net.mesh()
    net.run(10)
    for number in range(3):
        net.attach(nodes[0], f"p{number}")
    net.check()
    spoil(net, monkeypatch)
    found = list(violations(net._seen(node) for node in nodes))
    assert any(name in sentence.split(":")[0].split() or f": {name} " in sentence for sentence in found), found
