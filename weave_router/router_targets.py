"""Whom the mesh calls: what people named for good, what this start was given, and the Nodes of a cluster.

One address may come from several of the three; it is called for as long as one of them names it, whatever the spelling.
Made by router.py; people change it through router_commands.py, a cluster through kube/room_driver.py.
"""

from collections.abc import Iterable

from weave_router.mesh.driver import MeshDriver
from weave_router.mesh.record import Endpoint
from weave_router.mesh.targets import parse_target


class Targets:
    """``stored``: for good; ``configured``: of this start alone, the next has a configuration of its own; ``nodes``: a
    cluster's."""

    def __init__(self, mesh: MeshDriver, port: int) -> None:
        """``port``: of a target that names none."""
        self._mesh = mesh
        self._port = port
        self.stored: tuple[str, ...] = ()
        self.configured: tuple[str, ...] = ()
        self.nodes: tuple[str, ...] = ()

    def all(self) -> tuple[str, ...]:
        return tuple(self.keyed((*self.stored, *self.configured, *self.nodes)).values())

    def keyed(self, targets: Iterable[str]) -> dict[Endpoint, str]:
        """By host and port; of two spellings the first. UsageError for what is no target."""
        found: dict[Endpoint, str] = {}
        for target in targets:
            found.setdefault(parse_target(target, self._port), target)
        return found

    def set_given(self, stored: Iterable[str], configured: Iterable[str]) -> None:
        """UsageError, and nothing changed, where one is no target."""
        stored, configured = tuple(self.keyed(stored).values()), tuple(self.keyed(configured).values())
        before = self.all()
        self.stored, self.configured = stored, configured
        self._tell(before)

    def set_nodes(self, nodes: Iterable[str]) -> None:
        """Called at every change of the cluster's objects."""
        nodes = tuple(nodes)
        if nodes != self.nodes:
            before, self.nodes = self.all(), nodes
            self._tell(before)

    def _tell(self, before: Iterable[str]) -> None:
        old, new = self.keyed(before), self.keyed(self.all())
        for key, target in old.items():
            if key not in new:
                self._mesh.do(lambda mesh, now, target=target: mesh.target_remove(target, now))  # type: ignore[misc]
        for key, target in new.items():
            if key not in old:
                self._mesh.do(lambda mesh, now, target=target: mesh.target_add(target, now))  # type: ignore[misc]
