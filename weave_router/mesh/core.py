"""The mesh of one node: which links there are, what goes over them, whom to call next.

Sans-I/O: the driver reports connections, bytes and time, and carries out the effects; router.py reads the events.
Knows no socket, no clock, no file; identity, tokens, incarnation, run, randomness are arguments. What a record means
for forwarding is routes.py's business.

A call and the link that it becomes share one number. Of two links with one node one stays, the same at both ends.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from random import Random
from typing import Any, Final

from weave_router import limits
from weave_router.mesh import status
from weave_router.mesh.admission import Admission
from weave_router.mesh.calls import Calls
from weave_router.mesh.events import (
    NO_PROOF,
    Config,
    Effect,
    Event,
    FirstSync,
    Hangup,
    IpamHeard,
    LinkDown,
    LinkUp,
    MeshStatus,
    Send,
)
from weave_router.mesh.frames import Digest, Ipam, Records, Synced, versions_of
from weave_router.mesh.link import DEAD_SECONDS, Ended, Link, State, Up
from weave_router.mesh.link import Event as LinkEvent
from weave_router.mesh.opening import Entropy, Opening
from weave_router.mesh.own import OwnRecord
from weave_router.mesh.record import (
    FLAG_FLOOD,
    FLAG_NAT,
    FLAG_NO_DISCOVERY,
    Endpoint,
    Lost,
    Prefix,
    Record,
    SignedRecord,
    Verify,
    rtt_code,
)
from weave_router.mesh.replica import Replica
from weave_router.mesh.table import Table
from weave_router.mesh.targets import Target, Targets, literal
from weave_router.tunnel.identity import Identity, verify
from weave_router.tunnel.token import TokenSet

TICK_SECONDS: Final = 0.25
HEARTBEAT_TICKS: Final = 2
DISCOVERY_TICKS: Final = 20
SYNC_SECONDS: Final = 30.0
LINKS_KEPT: Final = 4
"""A full node that lets another in ends no link of a node that would have fewer then."""
DUPLICATES_MAX: Final = 4  # calls that cross make one; a node that calls on and on is not waited for


@dataclass(slots=True)
class Place:
    """A link in the core: the stream's near end, how long its opening may take, when to exchange tables.

    ``duplicates``: other links with the same node, to be closed once the far end knows of this one; closed before, they
    would leave it without any for a moment, and it would tell everybody so.
    """

    link: Link
    local: Endpoint
    deadline: float
    sync_at: float = 0.0
    observed: Endpoint | None = None
    writable: bool = True
    duplicates: list[int] = field(default_factory=list)


class Mesh:
    def __init__(self, config: Config, *, identity: Identity, tokens: TokenSet, incarnation: int, run: bytes,
                 rng: Random, entropy: Entropy, now: float, verify: Verify = verify) -> None:
        self.config = config
        self.node_id = identity.node_id
        self._identity = identity
        self._tokens = tokens
        self._rng = rng
        self._entropy = entropy
        self._verify = verify
        self._own_flags = config.flags | (0 if config.discovery else FLAG_NO_DISCOVERY)
        self._learned: list[Endpoint] = []
        self._many_groups = False
        draft = Record(
            domain=tokens.domain, ed25519_public=identity.ed25519_public, x25519_public=identity.x25519_public,
            incarnation=incarnation, seq=1, run=run, name=config.name, endpoints=config.endpoints,
            pod_mtu=config.pod_mtu, flags=self._own_flags, token_sent=tokens.first.id, tokens_accepted=tokens.ids,
            version=config.version, nickname=config.nickname, trusted=config.trusted)
        self.replica = Replica(OwnRecord(draft, identity.sign, now), verify=verify, now=now)
        self.targets = Targets(self.node_id, rng, config.port)
        self.admission = Admission()
        self._places: dict[int, Place] = {}
        self._up: dict[bytes, int] = {}
        self._numbers = count(1)
        self._tick_at = now + TICK_SECONDS
        self._ticks = 0
        self._effects: list[Effect] = []
        self.calls = Calls(self.targets, self.replica, self._up, discovery=config.discovery, rng=rng,
                           link_limit=config.link_limit,
                           numbers=self._numbers, emit=self._emit)
        self.closed = False

    # -- outputs ----------------------------------------------------------------------------------------------------
    @property
    def table(self) -> Table:
        return self.replica.table

    @property
    def own(self) -> SignedRecord:
        return self.replica.own.signed

    def take_effects(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects

    def take_events(self) -> list[Event]:
        events, self.replica.events = self.replica.events, []
        return events

    def linked(self, node_id: bytes) -> bool:
        return node_id in self._up

    def is_opening(self, number: int) -> bool:
        """Bytes of this link cost Diffie-Hellman: the driver holds them back when handshakes have had their share."""
        place = self._places.get(number)
        return place is not None and place.link.state is State.OPENING

    def status(self) -> MeshStatus:
        places = (self._places[number] for number in self._up.values())
        return status.of_mesh(self.replica, self.targets, self.admission,
                              [(place.link, place.local) for place in places])

    # -- what the operator and other rooms say ----------------------------------------------------------------------
    def target_add(self, text: str, now: float) -> Target:
        target = self.targets.add(text, now)
        self._settle(now)
        return target

    def target_remove(self, text: str, now: float) -> bool:
        """The link that it made stays up unless nothing else wants it: with discovery off it is closed."""
        target = self.targets.remove(text)
        if target is None:
            return False
        call = self.calls.abandon(target)
        if call is not None:
            self._drop(call, "forgotten", now)
        number = self._up.get(target.node_id or b"")
        if number is not None and not self.config.discovery:
            self._drop(number, "forgotten", now)
        self._settle(now)
        return True

    def set_prefixes(self, prefixes: Iterable[Prefix], now: float) -> None:
        """All prefixes of this node. Raises ValueError if the record would break a bound. Issued at once, as long as
        the burst lasts."""
        ordered = tuple(sorted(prefixes, key=lambda prefix: (prefix.number, prefix.prefix_len)))
        self._change(now, urgent=True, prefixes=ordered)

    def announces(self, number: int, mac: bytes) -> bool:
        """Whether the record that was sent last says so of this one number."""
        return Prefix(number, 32, mac) in self.replica.own.signed.record.prefixes

    def set_groups(self, macs: Iterable[bytes], now: float) -> None:
        """Joined multicast groups; more than a record holds makes this node ask for every flooded frame."""
        groups = tuple(sorted(set(macs)))
        self._many_groups = len(groups) > limits.RECORD_GROUPS_MAX
        self._change(now, soon=True, groups=() if self._many_groups else groups, flags=self._flags())

    def set_flags(self, flags: int, now: float) -> None:
        self._own_flags = flags | (0 if self.config.discovery else FLAG_NO_DISCOVERY)
        self._change(now, urgent=True, flags=self._flags())

    def set_pod_mtu(self, pod_mtu: int, now: float) -> None:
        self._change(now, pod_mtu=pod_mtu)

    def set_lost(self, gens: Mapping[int, int], now: float) -> None:
        """Block -> generation of the register that took it; of more than a record holds the lowest are said."""
        lost = tuple(Lost(block, gens[block]) for block in sorted(gens))
        self._change(now, urgent=True, lost=lost[:limits.RECORD_LOST_MAX])

    def set_endpoints(self, endpoints: Iterable[Endpoint], now: float) -> None:
        """This host's addresses are others now: what links taught is kept only where it is still one of them."""
        self.config = replace(self.config, endpoints=tuple(endpoints)[:limits.RECORD_ENDPOINTS_MAX])
        self._learned = [endpoint for endpoint in self._learned if endpoint in self.config.endpoints]
        self._change(now, urgent=True, endpoints=self._endpoints())

    def set_incarnation(self, incarnation: int, now: float) -> None:
        """The answer to RestoredState; on disk already."""
        self.replica.own.jump(incarnation, now)
        self._settle(now)

    def bury(self, node_id: bytes, now: float) -> None:
        """An unreachable node whose machine is gone for good, as another room knows: its record goes."""
        self.replica.bury(node_id)
        self.targets.drop(node_id)
        self._settle(now)

    def remember(self, records: Iterable[bytes], now: float) -> None:
        """Records that the router before this one left. Nobody is called before the driver's next step."""
        self.replica.remember_untrusted(records, now)
        self._settle(now)

    def say_ipam(self, words: Iterable[tuple[bytes, bytes]], now: float) -> None:
        """(neighbour, bytes) in order; to who is no neighbour any more, or takes nothing, nothing is said."""
        for node_id, data in words:
            number = self._up.get(node_id)
            if number is None or not self._places[number].link.queue_ipam(data, now):
                self.replica.counters["ipam words dropped"] += 1
        self._send_all()

    def tokens_set(self, tokens: TokenSet, now: float) -> None:
        """Tokens were reread. Links opened under one that is no longer accepted end here: that is expulsion."""
        self._tokens = tokens
        accepted = set(tokens.ids)
        for number, place in list(self._places.items()):
            if place.link.opening.token.id not in accepted:
                self._drop(number, "token removed", now)
        self._change(now, token_sent=tokens.first.id, tokens_accepted=tokens.ids)

    def _change(self, now: float, *, urgent: bool = False, soon: bool = False, **fields: Any) -> None:
        self.replica.own.change(now, urgent=urgent, soon=soon, **fields)
        issued = self.replica.issue(now)
        self._settle(now)
        if issued:
            for place in self._up_places():
                place.link.flush(now)
            self._send_all()

    def _flags(self) -> int:
        natted = any(is_natted(place) for place in self._up_places())
        return self._own_flags | (FLAG_FLOOD if self._many_groups else 0) | (FLAG_NAT if natted else 0)

    def close(self, now: float) -> None:
        """Say goodbye on every link. The core takes no input after this."""
        self.closed = True
        for number in [*self.calls.dials, *self._places]:
            self._drop(number, "shutdown", now)

    # -- what the driver reports ------------------------------------------------------------------------------------
    def accept(self, local: Endpoint, remote: Endpoint, now: float) -> int:
        """A connection from outside; returns the link's number. Nothing is sent before it has proven itself."""
        number = next(self._numbers)
        oldest = self.admission.add(number, remote[0])
        if oldest is not None:
            self.replica.counters["opening dropped for a newer one"] += 1
            self._forget(oldest)
        self._place(number, initiator=False, local=local, remote=remote, now=now)
        return number

    def dial_connected(self, number: int, local: Endpoint, remote: Endpoint, now: float) -> bool:
        """False: this call was given up meanwhile."""
        deadline = self.calls.connected(number)
        if deadline is None:
            return False
        self._place(number, initiator=True, local=local, remote=remote, now=now).deadline = deadline
        self._settle(now)
        return True

    def dial_failed(self, number: int, reason: str, now: float) -> None:
        if self.calls.connected(number) is not None:
            self._call_failed(number, reason, now)
            self._settle(now)

    def receive_data(self, number: int, data: bytes, now: float) -> None:
        place = self._places.get(number)
        if place is None or self.closed:
            return
        for event in place.link.receive_data(data, now):
            self._receive_event(number, place, event, now)
        self._close_duplicates(place, now)
        self._settle(now)

    def connection_lost(self, number: int, reason: str, now: float) -> None:
        """The stream ended under us."""
        if number in self._places:
            self._ended(number, Ended("", reason), now)
            self._settle(now)

    def set_writable(self, number: int, writable: bool, now: float) -> None:
        """The socket's buffer is full, or has room again."""
        place = self._places.get(number)
        if place is not None:
            place.writable = writable
            self._settle(now)

    def _place(self, number: int, *, initiator: bool, local: Endpoint, remote: Endpoint, now: float) -> Place:
        # Indices count up, so that both ends know the newer of two links that one node opened (Opening.serial).
        opening = Opening(initiator=initiator, identity=self._identity, tokens=self._tokens,
                          suite=self.config.suite, index=number & 0xFFFFFFFF, entropy=self._entropy)
        link = Link(opening, own=self.own, remote=remote, verify=self._verify, now=now)
        place = self._places[number] = Place(link, local, now + limits.OPENING_SECONDS)
        return place

    # -- what comes over a link -------------------------------------------------------------------------------------
    def _receive_event(self, number: int, place: Place, event: LinkEvent, now: float) -> None:
        match event:
            case Up():
                self._link_up(number, place, event, now)
            case Records():
                for data in event.records:
                    self.replica.receive_untrusted(data, number, place.link, now)
            case Digest():
                missing = self.table.missing_from(event.low, event.high, versions_of(event))
                place.link.answer_digest(missing, event, now)
            case Synced():
                if self.replica.synced():
                    self.replica.events.append(FirstSync())
            case Ipam():
                assert place.link.peer is not None
                self.replica.events.append(IpamHeard(place.link.peer.node_id, event.data))
            case Ended():
                self._ended(number, event, now)

    def _link_up(self, number: int, place: Place, up: Up, now: float) -> None:
        self.admission.remove(number)
        peer = up.peer
        if peer.node_id == self.node_id:
            self._link_to_self(number, peer, now)
            return
        other = self._up.get(peer.node_id)
        refusal = self._refusal(place.link, other)
        if refusal == "full" and self._make_room(peer.node_id, now):
            refusal = ""
        if refusal:
            self._show_newer(place, peer, now)
            self.calls.linked(number, peer.node_id, now, settled=other is not None)
            if other is None:
                self._drop(number, refusal, now)
            else:
                self._places[other].duplicates.append(number)
                self._close_duplicates(self._places[other], now)
            return
        self._up[peer.node_id] = number
        if other is not None:
            older = self._places[other]
            place.duplicates, older.duplicates = [*older.duplicates, other], []
            self._close_duplicates(place, now)
        self.calls.linked(number, peer.node_id, now)
        self.targets.reached(peer.node_id, peer.record.endpoints)
        place.observed = up.observed
        self._learn_endpoint(place)
        self.replica.merge(peer, number, now)
        self._begin_exchange(place, now)
        if other is None:
            self.replica.events.append(
                LinkUp(peer.node_id, place.link.remote, place.local, place.link.initiator, up.observed))
        self._links_changed(now)

    def _refusal(self, link: Link, other: int | None) -> str:
        """Why this new link does not stay; empty if it does."""
        if other is not None:
            return "" if self._is_better(link, self._places[other].link) else "duplicate"
        return "full" if len(self._up) >= self.config.link_limit else ""

    def _make_room(self, node_id: bytes, now: float) -> bool:
        """For a node that nobody is linked with: else all that list one address would be as many as that one takes."""
        topology = self.replica.topology
        if not self.config.discovery or node_id in topology.reachable:
            return False
        spare = [number for other, number in self._up.items() if len(topology.links.get(other, ())) > LINKS_KEPT]
        if spare:
            self._drop(self._rng.choice(spare), "full", now)
        return bool(spare)

    def _is_better(self, new: Link, old: Link) -> bool:
        """The same answer at both ends: a later start of the peer, then the smaller id's call, then the later one."""
        assert new.peer is not None and old.peer is not None
        ours, theirs = new.peer.record.incarnation, old.peer.record.incarnation
        if ours != theirs:
            return ours > theirs
        if new.initiator != old.initiator:
            return new.initiator == (self.node_id < new.peer.node_id)
        return new.opening.serial > old.opening.serial

    def _close_duplicates(self, place: Place, now: float) -> None:
        if place.duplicates and (place.link.confirmed or len(place.duplicates) > DUPLICATES_MAX):
            numbers, place.duplicates = place.duplicates, []
            for number in numbers:
                self._drop(number, "duplicate", now)

    def _show_newer(self, place: Place, peer: SignedRecord, now: float) -> None:
        """Whoever comes second under one identity learns of the other one, though its link does not stay."""
        held = self.table.get(peer.node_id)
        if held is not None and held.record.run != peer.record.run:
            place.link.queue(held, now)
            place.link.flush(now)

    def _link_to_self(self, number: int, peer: SignedRecord, now: float) -> None:
        if peer.record.run == self.own.record.run:
            self.calls.reached_self(number, now)
        else:
            self.replica.clone_seen(peer)
            self.calls.failed(number, "another node runs with our identity (a copied state directory)", now)
        self._drop(number, "self", now)

    def _begin_exchange(self, place: Place, now: float) -> None:
        place.link.send_heartbeat(now)
        if place.link.own.hash != self.own.hash:
            place.link.queue(self.own, now)
        self._exchange(place, now)

    def _exchange(self, place: Place, now: float) -> None:
        place.sync_at = now + SYNC_SECONDS * self._rng.uniform(0.9, 1.1)
        place.link.send_digest(self.table.versions(), self._rng.getrandbits(62))

    def _links_changed(self, now: float) -> None:
        codes = {node_id: rtt_code(self._places[number].link.rtt or 0.0) for node_id, number in self._up.items()}
        self.replica.own.set_links(codes, now)
        self.replica.own.change(now, flags=self._flags(), endpoints=self._endpoints())

    # -- where we are -----------------------------------------------------------------------------------------------
    def _learn_endpoint(self, place: Place) -> None:
        """The near end of a link that came in, or of one whose far end sees it as it is, is an address of ours."""
        host = place.local[0]
        address = literal(host)
        if is_natted(place) or address is None or address.is_loopback or address.is_link_local:
            return
        endpoint = (str(address), self.config.port)
        if endpoint not in self._learned:
            self._learned = [*self._learned, endpoint][-limits.RECORD_ENDPOINTS_MAX:]

    def _endpoints(self) -> tuple[Endpoint, ...]:
        merged = dict.fromkeys((*self.config.endpoints, *self._learned))
        return tuple(merged)[:limits.RECORD_ENDPOINTS_MAX]

    # -- the end of a link ------------------------------------------------------------------------------------------
    def _drop(self, number: int, code: str, now: float) -> None:
        """We end it."""
        place = self._places.get(number)
        if place is not None:
            place.link.close(code)
            self._send(number, place, force=True)
        self.calls.connected(number)
        self._ended(number, Ended(code, code), now)

    def _ended(self, number: int, ended: Ended, now: float) -> None:
        place = self._places.get(number)
        self._forget(number)
        reason = status.REASONS.get(ended.code) or ended.text or ended.code
        if place is None:
            self._call_failed(number, reason, now)
            return
        for duplicate in place.duplicates:
            self._drop(duplicate, "duplicate", now)
        peer = place.link.peer
        if peer is not None and self._up.get(peer.node_id) == number:
            self._link_down(peer.node_id, reason, now, refused=ended.code == "full")
            return
        if place.link.initiator:
            self._call_failed(number, reason if place.link.opening.proven else NO_PROOF, now)
        elif not place.link.opening.proven:
            self.admission.refused(ended.text, place.link.remote, now)

    def _forget(self, number: int) -> None:
        self.admission.remove(number)
        self._places.pop(number, None)
        self._effects.append(Hangup(number))

    def _link_down(self, node_id: bytes, reason: str, now: float, *, refused: bool) -> None:
        """``refused``: one of the two has no room for it."""
        del self._up[node_id]
        self.replica.events.append(LinkDown(node_id, reason))
        if self.closed:
            return
        elsewhere = refused and self.config.discovery and bool(self._up)
        self.targets.unlinked(node_id, reason, len(self.table), now, patient=elsewhere)
        if not elsewhere:
            self.calls.lost(node_id, now)
        self.calls.discover(now)
        self._links_changed(now)

    def _call_failed(self, number: int, reason: str, now: float) -> None:
        if not self.closed:
            self.calls.failed(number, reason, now)

    # -- time -------------------------------------------------------------------------------------------------------
    def get_timer(self) -> float:
        flushes = [place.link.flush_at for place in self._up_places() if place.link.flush_at is not None]
        calls = self.calls.get_timer()
        return min(self._tick_at, self.replica.get_timer(), *flushes, *([] if calls is None else [calls]))

    def handle_timer(self, now: float) -> None:
        if self.closed:
            return
        if now >= self._tick_at:
            self._tick(now)
        change = self.replica.handle_timer(now)
        if change is not None:
            for node_id in sorted(change.lost):
                self.calls.lost(node_id, now)
        self._settle(now)
        for place in self._up_places():
            if place.link.flush_at is not None and place.link.flush_at <= now:
                place.link.flush(now)
        self._send_all()

    def _tick(self, now: float) -> None:
        """One tick for all links. A late tick is our own loop's fault: everybody gets that much more time, at most
        twice in all."""
        lag = min(DEAD_SECONDS, now - self._tick_at)
        self._tick_at = now + TICK_SECONDS
        self._ticks += 1
        for number in [number for number, deadline in self.calls.dials.items() if deadline <= now]:
            self.calls.connected(number)
            self._ended(number, Ended("", status.NO_ANSWER), now)
        for number, place in list(self._places.items()):
            self._tick_link(number, place, lag, now)
        if self._ticks % HEARTBEAT_TICKS == 0:
            self._links_changed(now)
        if self._ticks % DISCOVERY_TICKS == 0:
            self.calls.discover_if_few(now)

    def _tick_link(self, number: int, place: Place, lag: float, now: float) -> None:
        link = place.link
        if link.state is not State.UP:
            if place.deadline <= now:
                self._ended(number, Ended("", "opening took too long"), now)
        elif link.heard_at + DEAD_SECONDS + lag <= now:
            self._drop(number, "silent", now)
        elif self._ticks % HEARTBEAT_TICKS == 0:
            link.send_heartbeat(now)
            if place.sync_at <= now:
                self._exchange(place, now)

    # -- after every input ------------------------------------------------------------------------------------------
    def _settle(self, now: float) -> None:
        links = {number: self._places[number].link for number in self._up.values()}
        for delta in self.replica.flood(links, now):
            self.calls.follow(delta, now)
        if not self.closed:
            self.calls.make(now)
        self._send_all()

    def _emit(self, effect: Effect) -> None:
        self._effects.append(effect)

    def _up_places(self) -> list[Place]:
        return [self._places[number] for number in self._up.values()]

    def _send_all(self) -> None:
        for number, place in self._places.items():
            self._send(number, place)

    def _send(self, number: int, place: Place, force: bool = False) -> None:
        if place.link.unsent and (place.writable or force):
            self._effects.append(Send(number, place.link.data_to_send()))


def is_natted(place: Place) -> bool:
    """The far end sees our call from another address than the one it left from."""
    seen = literal(place.observed[0]) if place.observed else None
    return place.link.initiator and seen is not None and str(seen) != place.local[0]
