"""What other nodes announce, as the fast path's tables and the tunnel's peers have it.

Records of the mesh and owners of blocks become routes, never more than what changed; whoever is gone for long is not
answered for. Decides what a delta means for both; made by router.py, knows neither disk nor clock.
"""

import logging
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from typing import Final

from weave_router import limits
from weave_router.cni.attachments import Rival
from weave_router.fastpath import engine as fastpath
from weave_router.ipam.founding import block_prefix
from weave_router.ipam.number import Universe
from weave_router.mesh import routes as mesh_routes
from weave_router.mesh.core import Mesh
from weave_router.mesh.record import FLAG_NO_AES, FLAG_PLAINTEXT, Endpoint, Record
from weave_router.mesh.table import Delta
from weave_router.tunnel.core import PeerInfo
from weave_router.tunnel.driver import TunnelDriver
from weave_router.tunnel.state import State
from weave_router.tunnel.trust import Trust

_log = logging.getLogger(__name__)
SILENT_SECONDS: Final = 10.0
"""A node that is unreachable and whose session was silent so long is not answered for any more."""


class Peers:
    """``routes`` and ``engine`` from the start; ``join`` before the mesh speaks."""

    def __init__(self, node_id: bytes, universe: Universe, engine: fastpath.Engine, routes: mesh_routes.Routes) -> None:
        self._me = node_id
        self._universe = universe
        self._engine = engine
        self._routes = routes
        self._link_addresses: dict[bytes, str] = {}
        self._quiet_since: dict[bytes, float] = {}

    def join(self, mesh: Mesh, tunnel: TunnelDriver, *, endpoints: Callable[[], tuple[Endpoint, ...]],
             name_of: Callable[[bytes], str]) -> None:
        """``endpoints``: this node's own."""
        self._mesh, self._tunnel, self._endpoints, self._name_of = mesh, tunnel, endpoints, name_of

    # -- what the mesh says --------------------------------------------------------------------------------------------

    def record_changed(self, delta: Delta) -> None:
        """Routes before peers: a session that comes up finds its slot in the tables."""
        seen = self._routes.mac_conflicts_seen
        operations = self._routes.apply(delta)
        if self._routes.mac_conflicts_seen > seen:
            _log.warning("pods of two nodes have one MAC", extra={"peer": delta.node_id.hex()})
        if delta.new is None:
            self._tunnel.peer_remove(delta.node_id)
        for operation in operations:
            self._carry_out(operation)
        if delta.new is not None and delta.node_id != self._me:
            self._set(delta.node_id, delta.new.record)

    def link_up(self, node_id: bytes, address: str) -> None:
        """``address``: the one that the link proved."""
        self._link_addresses[node_id] = address
        self.again(node_id)

    def again(self, node_id: bytes) -> None:
        signed = self._mesh.table.get(node_id)
        if signed is not None and self._routes.slots.of(node_id) > fastpath.SLOT_LOCAL:
            self._set(node_id, signed.record)

    def all_again(self) -> None:
        """This node's addresses changed: whether the others trust us may be different now."""
        for signed in list(self._mesh.table):
            self.again(signed.node_id)

    def blocks_changed(self, owners: Mapping[int, bytes]) -> None:
        """Deltas of ownership become routes of the fast path."""
        length = block_prefix(self._universe.range_v4)
        first = int(self._universe.range_v4.network_address)
        keys = {(first + (block << (32 - length)), length): owner for block, owner in owners.items()}
        for operation in self._routes.set_blocks(keys):
            self._carry_out(operation)

    def answer_or_not(self, now: float) -> None:
        """ARP and ND are not answered for a node that is unreachable and whose session has been silent."""
        reachable = self._mesh.status().reachable
        for status in self._tunnel.status():
            alive = status.node_id in reachable or status.state in (State.ESTABLISHED, State.SUSPECT)
            since = self._quiet_since.setdefault(status.node_id, now)
            if alive:
                self._quiet_since.pop(status.node_id)
            for operation in self._routes.answer(status.node_id, alive or now - since < SILENT_SECONDS):
                self._carry_out(operation)

    # -- what is known -------------------------------------------------------------------------------------------------

    def other_owner(self, number: int) -> str | None:
        """The name of the other node that answers for this number."""
        owner = self._routes.owner_of(number)
        return None if owner in (None, self._me) else self._name_of(owner or b"")

    def other_owner_of_mac(self, mac: bytes) -> str | None:
        """The name of the other node that announces an address with this MAC."""
        owner = self._routes.announcer_of(mac)
        return None if owner is None else self._name_of(owner)

    def rival_for_mac(self, mac: bytes) -> Rival | None:
        """As for an address that two announce: the smaller node id goes first."""
        owner = self._routes.announcer_of(mac)
        return None if owner is None else Rival(self._name_of(owner), owner < self._me)

    def inside(self, address: str) -> bool:
        """Whether the overlay itself would carry it."""
        return self._universe.number_of(ip_address(address)) is not None

    # -- the tables ----------------------------------------------------------------------------------------------------

    def _carry_out(self, operation: mesh_routes.Operation) -> None:
        engine = self._engine
        match operation:
            case mesh_routes.NodeSet():
                flags = fastpath.NODE_ANSWER * operation.answer | fastpath.NODE_FLOOD * operation.flood
                engine.node_set(operation.slot, flags=flags, pod_mtu=max(operation.pod_mtu, limits.POD_MTU_MIN))
            case mesh_routes.NodeDel():
                engine.node_del(operation.slot)
            case mesh_routes.RouteSet():
                engine.route_set(operation.number, operation.prefix_len, operation.slot, operation.mac)
            case mesh_routes.RouteDel():
                engine.route_del(operation.number, operation.prefix_len)
            case mesh_routes.GroupsSet() if operation.slot > fastpath.SLOT_LOCAL:
                engine.groups_set(operation.slot, operation.macs)
            case _:
                pass

    def _set(self, node_id: bytes, record: Record) -> None:
        self._tunnel.peer_set(PeerInfo(
            node_id, self._routes.slots.of(node_id), record.x25519_public, self._ways_to(node_id, record),
            record.incarnation, record.pod_mtu,
            plaintext=bool(record.flags & FLAG_PLAINTEXT) or Trust(record.trusted).all_of(self._endpoints()),
            aes=not record.flags & FLAG_NO_AES))

    def _ways_to(self, node_id: bytes, record: Record) -> tuple[Endpoint, ...]:
        """The address its link proved comes first; one inside the overlay would send the overlay through itself."""
        proven = self._link_addresses.get(node_id)
        ways = [endpoint for endpoint in record.endpoints if not self.inside(endpoint[0])]
        return tuple(sorted(ways, key=lambda endpoint: endpoint[0] != proven))
