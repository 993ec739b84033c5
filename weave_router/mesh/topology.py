"""Who can be reached over control links: a graph from the links that records name, and a walk over it.

A link counts only if both ends name it. Pure: table deltas in, sets out; no keys, no time. Called by core.py.
Reachability decides retries, flood sets and relays; it never removes a forwarding entry.
"""

from collections.abc import Mapping

from weave_router.mesh.table import Delta


class Topology:
    def __init__(self, own_id: bytes) -> None:
        self._own_id = own_id
        self._links: dict[bytes, frozenset[bytes]] = {}
        self.reachable: frozenset[bytes] = frozenset({own_id})
        self.stale = False
        """A delta changed a link since the last ``update``."""

    @property
    def links(self) -> Mapping[bytes, frozenset[bytes]]:
        return self._links

    def apply(self, delta: Delta) -> None:
        before = self._links.get(delta.node_id)
        if delta.new is None:
            self._links.pop(delta.node_id, None)
        else:
            self._links[delta.node_id] = frozenset(link.node_id for link in delta.new.record.links)
        self.stale |= before != self._links.get(delta.node_id)

    def update(self) -> tuple[frozenset[bytes], frozenset[bytes]]:
        """Walk again; returns (came into reach, went out of reach)."""
        before, self.reachable = self.reachable, self._walk()
        self.stale = False
        return self.reachable - before, before - self.reachable

    def _walk(self) -> frozenset[bytes]:
        seen = {self._own_id}
        frontier = [self._own_id]
        while frontier:
            node_id = frontier.pop()
            for other in self._links.get(node_id, ()):
                if other not in seen and node_id in self._links.get(other, ()):
                    seen.add(other)
                    frontier.append(other)
        return frozenset(seen)
