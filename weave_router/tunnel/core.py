"""All sessions of this node, without I/O: inputs are what was received, asked and counted; outputs are effects.

Every input takes ``now`` (seconds of CLOCK_BOOTTIME) and returns the effects to carry out, in their order. Must not
know sockets, clocks or the fast path; randomness and identity are arguments. Called by driver.py and by simulations.
What a stranger or a peer sends wrongly is counted in ``counts`` by reason and has no other effect.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping

from weave_router.errors import BadPacket
from weave_router.limits import PEERS_SEEN_MAX, STRANGERS_MAX
from weave_router.reasons import Reason
from weave_router.tunnel import handshake, wire
from weave_router.tunnel.agenda import Agenda
from weave_router.tunnel.connection import Connection
from weave_router.tunnel.control import parse_control_untrusted
from weave_router.tunnel.effects import Effect
from weave_router.tunnel.identity import Identity
from weave_router.tunnel.indices import IndexPool
from weave_router.tunnel.liveness import Figures
from weave_router.tunnel.shared import PeerInfo, Shared
from weave_router.tunnel.state import State
from weave_router.tunnel.status import ConnectionStatus, status_of
from weave_router.tunnel.timers import Timers
from weave_router.tunnel.token import TokenSet
from weave_router.tunnel.trust import Trust
from weave_router.tunnel.wire import Endpoint, Type

__all__ = ["ConnectionStatus", "PeerInfo", "Tunnel"]


class Tunnel:
    """``rng(n)``: n bytes fit for keys. ``counter_start``: the first handshake counter that is this start's;
    ``counter_reserved``: those below it are on disk already."""

    def __init__(self, identity: Identity, tokens: TokenSet, incarnation: int, *, rng: Callable[[int], bytes],
                 timers: Timers | None = None, plaintext: bool = False, aes: bool = True, counter_start: int = 0,
                 counter_reserved: int = 0, underlay_mtu: int = 1500, pod_mtu: int = 0, port: int = 6783,
                 local_addresses: frozenset[str] = frozenset(), trusted: Trust | None = None) -> None:
        timers = Timers() if timers is None else timers
        self._shared = Shared(identity, tokens, incarnation, rng, timers, plaintext, aes, pod_mtu, underlay_mtu, port,
                              local_addresses, IndexPool(timers.index_rest), counter_start,
                              max(counter_start, counter_reserved), trusted or Trust())
        self._agenda = Agenda()
        self._slots: dict[int, Connection] = {}
        self._nodes: dict[bytes, Connection] = {}
        self._statics: dict[bytes, Connection] = {}
        self._endpoints: dict[Endpoint, set[int]] = {}
        self._strangers: OrderedDict[Endpoint, Reason] = OrderedDict()
        self._gone: OrderedDict[bytes, tuple[int, int]] = OrderedDict()
        """Freshness of keys that were peers: finer than what is on disk."""

    # -- settings ------------------------------------------------------------------------------------------------

    def tokens_set(self, tokens: TokenSet, now: float) -> list[Effect]:
        """Another token file: new handshakes use its first; sessions of a token that is gone get a successor."""
        self._shared.tokens = tokens
        for connection in list(self._slots.values()):
            connection.retire_tokens(now)
            self._schedule(connection)
        return self._drain()

    def incarnation_set(self, incarnation: int) -> None:
        """Restored state was found out and jumped above: later handshakes say so. Peers who know of it start them."""
        self._shared.incarnation = incarnation

    def local_addresses_set(self, addresses: frozenset[str]) -> None:
        """Addresses of this host's interfaces: what a peer sees and is not here was translated."""
        self._shared.local_addresses = addresses

    def underlay_mtu_set(self, mtu: int) -> None:
        """For paths made from now on."""
        self._shared.underlay_mtu = mtu

    # -- peers ---------------------------------------------------------------------------------------------------

    def peer_set(self, info: PeerInfo, now: float, seen: tuple[int, int] | None = None) -> list[Effect]:
        """A peer's record, new or newer. ``seen``: from the store, looked at for a new peer only."""
        if info.node_id == self._shared.identity.node_id:
            raise ValueError("this node is no peer of itself")
        connection = self._nodes.get(info.node_id)
        if connection is not None and (connection.info.slot, connection.info.x25519_public) != (
                info.slot, info.x25519_public):
            self._remove(connection, now)
            connection = None
        if connection is None:
            known = [pair for pair in (seen, self._gone.pop(info.x25519_public, None)) if pair is not None]
            connection = Connection(self._shared, info, max(known, default=None))
            self._slots[info.slot] = self._nodes[info.node_id] = self._statics[info.x25519_public] = connection
            self._index_endpoints(info, True)
        else:
            self._index_endpoints(connection.info, False)
            self._index_endpoints(info, True)
            connection.update(info, now)
        return self._done(connection)

    def peer_remove(self, node_id: bytes, now: float) -> list[Effect]:
        connection = self._nodes.get(node_id)
        if connection is not None:
            self._remove(connection, now)
        return self._drain()

    def _remove(self, connection: Connection, now: float) -> None:
        info = connection.info
        connection.remove(now)
        self._gone[info.x25519_public] = connection.seen
        if len(self._gone) > PEERS_SEEN_MAX:
            self._gone.popitem(last=False)
        self._agenda.set(info.slot, None)
        self._index_endpoints(info, False)
        del self._slots[info.slot], self._nodes[info.node_id], self._statics[info.x25519_public]

    def _index_endpoints(self, info: PeerInfo, present: bool) -> None:
        for endpoint in info.endpoints:
            slots = self._endpoints.setdefault(endpoint, set())
            if present:
                slots.add(info.slot)
            else:
                slots.discard(info.slot)
                if not slots:
                    del self._endpoints[endpoint]

    def want_session(self, slot: int, now: float) -> list[Effect]:
        """A frame waits for this peer, or the mesh wants a session to be there."""
        connection = self._slots.get(slot)
        if connection is None:
            return []
        connection.want(now)
        return self._done(connection)

    def close(self) -> list[Effect]:
        """Say goodbye to every peer; the last input. Keys go with the process."""
        for connection in self._nodes.values():
            connection.say_goodbye()
        return self._drain()

    # -- datagrams -----------------------------------------------------------------------------------------------

    def receive_handshake(self, datagram: bytes, remote: Endpoint, local: str, now: float) -> list[Effect]:
        """A handshake datagram; its mac1 was checked by the worker and is checked again (2 us)."""
        try:
            head, token, body = wire.open_message_untrusted(datagram, self._shared.tokens)
            if head.type is Type.INITIATION:
                request = handshake.read_request_untrusted(
                    head, token, body, static=self._shared.identity.x25519_secret, ephemeral=self._shared.rng(32),
                    plaintext=self._shared.agrees(remote))
                connection = self._peer_of(request.remote_static, remote)
                connection.asked(request, remote, local, now)
            elif head.type is Type.RESPONSE:
                found = self._shared.attempts.get(head.receiver)
                if found is None:
                    raise BadPacket("answer to nothing")
                connection = found
                connection.answered(head, body, remote, local, now)
            else:
                raise BadPacket("no handshake type of a session")
        except BadPacket as error:
            self._shared.counts[error.reason] += 1
            return self._drain()
        return self._done(connection)

    def _peer_of(self, static: bytes, remote: Endpoint) -> Connection:
        connection = self._statics.get(static)
        if connection is not None:
            return connection
        if static == self._shared.identity.x25519_public:
            self._remember(remote, Reason.SELF)
            raise BadPacket("message of our own")
        raise BadPacket("unknown peer")  # its record has not come yet; it asks again

    def receive_control(self, session: int, remote: Endpoint, payload: bytes, wire_size: int,
                        now: float) -> list[Effect]:
        """A control message that was opened on one of our sessions. ``wire_size``: UDP payload of its datagram."""
        connection = self._shared.sessions.get(session)
        if connection is None:
            return []
        try:
            connection.receive_control(session, parse_control_untrusted(payload), remote, wire_size, now)
        except BadPacket as error:
            self._shared.counts[error.reason] += 1
        return self._done(connection)

    def version_seen(self, version: int, remote: Endpoint) -> list[Effect]:
        """A handshake of our shape and with a valid mac1, of another protocol version."""
        return self._explain(remote, Reason.WRONG_VERSION)

    def token_seen(self, token_id: int, remote: Endpoint) -> list[Effect]:
        """Something of a handshake's shape under a token id that is none of ours."""
        return self._explain(remote, Reason.UNKNOWN_TOKEN)

    def _explain(self, remote: Endpoint, reason: Reason) -> list[Effect]:
        self._remember(remote, reason)
        for slot in self._endpoints.get(remote, ()):
            self._slots[slot].evidence(reason)
        return self._drain()

    def _remember(self, remote: Endpoint, reason: Reason) -> None:
        self._strangers[remote] = reason
        self._strangers.move_to_end(remote)
        if len(self._strangers) > STRANGERS_MAX:
            self._strangers.popitem(last=False)

    # -- what the fast path saw ----------------------------------------------------------------------------------

    def confirmed(self, session: int, now: float) -> list[Effect]:
        """First authenticated datagram on this session."""
        connection = self._shared.sessions.get(session)
        if connection is None:
            return []
        connection.confirmed(session, now)
        return self._done(connection)

    def candidate(self, session: int, remote: Endpoint, local: str, now: float) -> list[Effect]:
        """Authenticated data on a path-speaking lane came from another address."""
        connection = self._shared.sessions.get(session)
        if connection is None:
            return []
        connection.candidate(session, remote, local, now)
        return self._done(connection)

    def rekey(self, session: int, now: float) -> list[Effect]:
        connection = self._shared.sessions.get(session)
        if connection is None:
            return []
        connection.rekey(session, now)
        return self._done(connection)

    def path_error(self, slot: int, errno: int, now: float) -> list[Effect]:
        connection = self._slots.get(slot)
        if connection is None:
            return []
        connection.path_error(errno, now)
        return self._done(connection)

    def send_error(self, remote: Endpoint, errno: int) -> list[Effect]:
        """A handshake datagram could not be sent."""
        for slot in self._endpoints.get(remote, ()):
            self._slots[slot].handshake_error(remote, errno)
        return self._drain()

    def gso_refused(self, slot: int) -> list[Effect]:
        if slot in self._slots:
            self._slots[slot].gso_refused()
        return self._drain()

    def activity(self, figures: Mapping[int, Figures], now: float) -> list[Effect]:
        """What ``ReadFigures`` asked for."""
        touched = {self._shared.sessions[index].info.slot: self._shared.sessions[index]
                   for index in figures if index in self._shared.sessions}
        for connection in touched.values():
            connection.activity(figures, now)
            self._schedule(connection)
        return self._drain()

    # -- time ----------------------------------------------------------------------------------------------------

    def get_timer(self) -> float | None:
        """When ``handle_timer`` wants to be called next."""
        return self._agenda.next_at()

    def handle_timer(self, now: float) -> list[Effect]:
        for slot in self._agenda.pop_due(now):
            connection = self._slots[slot]
            connection.handle_timer(now)
            self._schedule(connection)
        return self._drain()

    def _schedule(self, connection: Connection) -> None:
        self._agenda.set(connection.info.slot, connection.get_timer())

    def _done(self, connection: Connection) -> list[Effect]:
        self._schedule(connection)
        return self._drain()

    def _drain(self) -> list[Effect]:
        effects, self._shared.effects = self._shared.effects, []
        return effects

    # -- what there is to see ------------------------------------------------------------------------------------

    @property
    def counts(self) -> Counter[str]:
        """Refused input by reason."""
        return self._shared.counts

    @property
    def strangers(self) -> dict[Endpoint, Reason]:
        """Addresses that spoke another version or under another token, the latest last."""
        return dict(self._strangers)

    def status(self, now: float) -> list[ConnectionStatus]:
        """One value per peer, by slot."""
        return [status_of(connection, now) for _, connection in sorted(self._slots.items())]

    def state_of(self, node_id: bytes) -> State | None:
        connection = self._nodes.get(node_id)
        return None if connection is None else connection.state
