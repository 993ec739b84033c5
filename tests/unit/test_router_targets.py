"""Addresses to call, of three sources: one goes only when the last that names it does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from weave_router.errors import UsageError
from weave_router.router_targets import Targets


class Mesh:
    """The driver, and the mesh behind it: what it calls, and what it was told."""

    def __init__(self) -> None:
        self.called: list[str] = []
        self.told: list[str] = []

    def do(self, action: Callable[[Any, float], object]) -> None:
        action(self, 0.0)

    def target_add(self, text: str, now: float) -> None:
        self.called.append(text)
        self.told.append(f"+{text}")

    def target_remove(self, text: str, now: float) -> None:
        self.called.remove(text)
        self.told.append(f"-{text}")


@pytest.fixture
def mesh() -> Mesh:
    return Mesh()


@pytest.fixture
def targets(mesh: Mesh) -> Targets:
    return Targets(mesh, 7000)  # type: ignore[arg-type]


def test_an_address_is_called_as_long_as_one_source_names_it(mesh: Mesh, targets: Targets) -> None:
    targets.set_given(["192.0.2.1"], ["192.0.2.2"])
    targets.set_nodes(["192.0.2.1", "192.0.2.3"])
    assert mesh.called == ["192.0.2.1", "192.0.2.2", "192.0.2.3"]
    targets.set_given([], ["192.0.2.2"])
    assert mesh.called == ["192.0.2.1", "192.0.2.2", "192.0.2.3"], "the Node is there"
    targets.set_given(["192.0.2.3"], [])
    targets.set_nodes(["192.0.2.1"])
    assert mesh.called == ["192.0.2.1", "192.0.2.3"], "somebody named it"
    targets.set_nodes([])
    assert mesh.called == ["192.0.2.3"] and targets.all() == ("192.0.2.3",)


def test_two_spellings_are_one_target_and_the_mesh_is_told_once(mesh: Mesh, targets: Targets) -> None:
    targets.set_given(["2001:DB8::1", "[2001:db8::1]:7000"], [])
    targets.set_nodes(["2001:db8::1"])
    targets.set_nodes(["2001:db8::1"])
    targets.set_given(["[2001:db8::1]:6783"], [])
    assert mesh.told == ["+2001:DB8::1", "+[2001:db8::1]:6783"]


def test_what_is_no_target_changes_nothing(mesh: Mesh, targets: Targets) -> None:
    targets.set_given(["192.0.2.1"], [])
    with pytest.raises(UsageError, match="write HOST"):
        targets.set_given(["192.0.2.2", "a b"], [])
    assert mesh.called == ["192.0.2.1"] and targets.stored == ("192.0.2.1",)
