"""A network in virtual time for tunnel cores: hosts, loss, delay, path MTU, NAT, and a fast path made of dictionaries.

The fast path here keeps the promises of weave_router/fastpath/engine.pyi as far as the tunnel can see them: sessions,
paths, parked frames, figures, events. Keys are compared instead of used: a packet opens only under the right key;
handshake datagrams are the real bytes. One heap of events, one seeded generator: a run repeats exactly.

    net = Net(seed=1, delay=0.01, loss=0.1)
    a, b = net.node("a"), net.node("b")
    net.introduce(a, b)
    a.send(b, 100); net.run(2.0)
"""

import heapq
import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from weave_router.tunnel import effects, wire
from weave_router.tunnel.core import PeerInfo, Tunnel
from weave_router.tunnel.identity import Identity
from weave_router.tunnel.liveness import Figures
from weave_router.tunnel.timers import Timers
from weave_router.tunnel.token import Token, TokenSet

OVERHEAD = 40  # header, descriptor, tag
PORT = 6783
PARK_SECONDS = 3.0
START = 1000.0  # virtual CLOCK_BOOTTIME at which a net begins


@dataclass(frozen=True)
class Data:
    """A datagram of the data channel. ``frame``: number of the frame it is a piece of, 0 for control messages."""

    receiver: int
    key: bytes
    epoch: int
    counter: int
    size: int
    control: bytes | None = None
    frame: int = 0
    pieces: int = 1
    inner: int = 0


@dataclass
class FakeSession:
    add: effects.SessionAdd
    may_send: bool
    confirmed: bool = False
    counters: dict[int, int] = field(default_factory=dict)
    epoch: int = -1
    rx_epoch: int = -1
    received: set[tuple[int, int]] = field(default_factory=set)
    tx_packets: int = 0
    tx_bytes: int = 0
    rx_packets: int = 0
    rx_bytes: int = 0
    last_tx: float = 0.0
    last_rx: float = 0.0
    unanswered: float = 0.0
    unanswered_rx: float = 0.0

    def figures(self) -> Figures:
        return Figures(self.tx_packets, self.tx_bytes, self.rx_packets, self.rx_bytes, int(self.last_tx * 1e9),
                       int(self.last_rx * 1e9), int(self.unanswered * 1e9), 0, int(self.unanswered_rx * 1e9))


class Net:
    """``mtu``: of every path, changeable at any time; a larger datagram vanishes without a word."""

    def __init__(self, seed: int, *, delay: float = 0.01, jitter: float = 0.0, loss: float = 0.0,
                 mtu: int = 1500) -> None:
        self.random = random.Random(seed)
        self.now = START
        self.delay, self.jitter, self.loss, self.mtu = delay, jitter, loss, mtu
        self.nodes: dict[str, Node] = {}
        self.hosts: dict[wire.Endpoint, Node] = {}
        self.translations: dict[wire.Endpoint, wire.Endpoint] = {}  # inside -> outside
        self.blocked: set[str] = set()
        self.captured: list[tuple[float, wire.Endpoint, wire.Endpoint, bytes | Data]] = []
        self.drop: Callable[[bytes | Data, Node | None], bool] = lambda datagram, target: False
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._sequence = 0
        self._frames = 0
        self.frames_sent: dict[int, float] = {}
        self.domain = self.random.randbytes(8)
        self.token = Token(self.domain, self.random.randbytes(32))

    def at(self, when: float, what: Callable[..., None], *args: Any) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (when, self._sequence, what, args))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self._heap and self._heap[0][0] <= end:
            when, _, what, args = heapq.heappop(self._heap)
            self.now = max(self.now, when)
            what(*args)
        self.now = end

    def node(self, name: str, *, identity: Identity | None = None, address: str | None = None,
             **settings: Any) -> "Node":
        address = address or f"192.0.2.{len(self.nodes) + 1}"
        return Node(self, name, identity or Identity.generate(self.random.randbytes), address, settings)

    def introduce(self, *nodes: "Node") -> None:
        """Every node learns the record of every other."""
        for node in nodes:
            for other in nodes:
                if other is not node:
                    node.learn(other)

    def next_frame(self) -> int:
        self._frames += 1
        return self._frames

    def transmit(self, datagram: bytes | Data, source: wire.Endpoint, target: wire.Endpoint) -> None:
        source = self.translations.get(source, source)
        self.captured.append((self.now, source, target, datagram))
        size = len(datagram) if isinstance(datagram, bytes) else datagram.size
        inside = {outside: inner for inner, outside in self.translations.items()}
        host = self.hosts.get(inside.get(target, target))
        if inside.get(target) is None and target in self.translations:
            host = None  # behind a NAT: its inside address is not reachable
        if size + 28 > self.mtu or self.random.random() < self.loss or self.drop(datagram, host):
            return
        if host is None or source[0] in self.blocked or target[0] in self.blocked:
            return
        self.at(self.now + self.delay + self.random.random() * self.jitter, host.deliver, datagram, source)


class Node:
    """A host with a tunnel. ``persisted``: what its store holds, kept over restarts."""

    def __init__(self, net: Net, name: str, identity: Identity, address: str, settings: dict[str, Any]) -> None:
        self.net, self.name, self.identity, self.address = net, name, identity, address
        self.settings = settings
        self.incarnation = 0
        self.counter_upto = 0
        self.persisted_seen: dict[bytes, tuple[int, int]] = {}
        self.slots: dict[bytes, int] = {}
        self.peers: dict[int, PeerInfo] = {}
        self.delivered: dict[int, float] = {}
        self.drops: Counter[str] = Counter()
        self.effects: list[effects.Effect] = []
        self.changes: list[effects.Changed] = []
        self.alive = False
        net.nodes[name] = self
        self.start()

    # -- life ----------------------------------------------------------------------------------------------------

    @property
    def endpoint(self) -> wire.Endpoint:
        return (self.address, PORT)

    @property
    def public_endpoint(self) -> wire.Endpoint:
        return self.net.translations.get(self.endpoint, self.endpoint)

    def start(self) -> None:
        self.incarnation += 1
        settings = {"tokens": TokenSet([self.net.token]), "timers": Timers()} | self.settings
        self.tunnel = Tunnel(self.identity, incarnation=self.incarnation, rng=self.net.random.randbytes,
                             counter_start=self.counter_upto, local_addresses=frozenset({self.address}), **settings)
        self.sessions: dict[int, FakeSession] = {}
        self.use: dict[int, int] = {}
        self.paths: dict[int, effects.PathSet] = {}
        self.parked: dict[int, list[tuple[float, int, int]]] = defaultdict(list)
        self.partial: Counter[int] = Counter()
        self.alive = True
        self.net.hosts[self.endpoint] = self
        self._timer: float | None = None
        for info in list(self.peers.values()):
            self._apply(self.tunnel.peer_set(info, self.net.now, self.persisted_seen.get(info.x25519_public)))

    def kill(self) -> None:
        """kill -9: keys and tables are gone, the store is not."""
        self.alive = False
        self.net.hosts.pop(self.endpoint, None)

    def move(self, address: str) -> None:
        """The same process under another address."""
        self.net.hosts.pop(self.endpoint, None)
        self.address = address
        self.tunnel.local_addresses_set(frozenset({address}))
        self.net.hosts[self.endpoint] = self

    def info(self, slot: int, **changes: Any) -> PeerInfo:
        info = PeerInfo(self.identity.node_id, slot, self.identity.x25519_public, (self.public_endpoint,),
                        self.incarnation, 1368, self.settings.get("plaintext", False), self.settings.get("aes", True))
        return replace(info, **changes)

    def learn(self, other: "Node", **changes: Any) -> None:
        """The other's present record has come."""
        slot = self.slots.setdefault(other.identity.node_id, len(self.slots) + 2)
        self.peers[slot] = other.info(slot, **changes)
        seen = self.persisted_seen.get(other.identity.x25519_public)
        self._apply(self.tunnel.peer_set(self.peers[slot], self.net.now, seen))

    def slot_of(self, other: "Node") -> int:
        return self.slots[other.identity.node_id]

    # -- what the tunnel wants -----------------------------------------------------------------------------------

    def feed(self, call: Callable[..., list[effects.Effect]], *args: Any) -> None:
        self._apply(call(*args))

    def _apply(self, wanted: list[effects.Effect]) -> None:
        for effect in wanted:
            self.effects.append(effect)
            self._carry_out(effect)
        at = self.tunnel.get_timer()
        if at is not None and (self._timer is None or at < self._timer):
            self._timer = at
            self.net.at(max(at, self.net.now), self._tick, self.tunnel, at)

    def _tick(self, tunnel: Tunnel, at: float) -> None:
        if self.alive and tunnel is self.tunnel and self._timer == at:
            self._timer = None
            self._apply(tunnel.handle_timer(self.net.now))

    def _carry_out(self, effect: effects.Effect) -> None:
        now = self.net.now
        match effect:
            case effects.CounterBlock():
                self.counter_upto = effect.upto
            case effects.PeerCounterSeen():
                self.persisted_seen[effect.x25519_public] = effect.incarnation, effect.counter
            case effects.SendDatagram():
                self.net.transmit(effect.datagram, self.endpoint, effect.remote)
            case effects.SessionAdd():
                assert effect.session not in self.sessions
                self.sessions[effect.session] = FakeSession(effect, effect.may_send)
            case effects.SessionUse():
                self.use[effect.slot] = effect.session
                self._unpark(effect.slot)
            case effects.SessionMaySend():
                self.sessions[effect.session].may_send = True
            case effects.SessionDel():
                assert effect.session not in self.use.values(), "deleted while in use"
                del self.sessions[effect.session]
            case effects.PathSet():
                self.paths[effect.slot] = effect
                self._unpark(effect.slot)
            case effects.PathDel():
                self.paths.pop(effect.slot, None)
            case effects.ControlSend():
                self._send_control(effect)
            case effects.ReadFigures():
                figures = {index: self.sessions[index].figures() for index in effect.sessions}
                self._apply(self.tunnel.activity(figures, now))
            case effects.Changed():
                self.changes.append(effect)

    def _send_control(self, effect: effects.ControlSend) -> None:
        session = self.sessions[effect.session]
        path = self.paths.get(session.add.slot)
        assert session.may_send, "control message on a session that may not send"
        remote = effect.remote or (path.remote if path else None)
        if remote is not None:
            size = max(effect.size, OVERHEAD + len(effect.payload))
            assert effect.size or size <= 548
            self._seal(session, path.epoch if path else 0, remote, size, control=effect.payload)

    def _seal(self, session: FakeSession, epoch: int, remote: wire.Endpoint, size: int, **what: Any) -> None:
        if epoch != session.epoch:
            assert epoch not in session.counters, "a session saw an epoch twice"
            session.epoch, session.counters[epoch] = epoch, 0
        counter = session.counters[epoch]
        session.counters[epoch] += 1
        session.tx_packets += 1
        session.last_tx = self.net.now
        session.tx_bytes += size
        session.unanswered_rx = 0.0
        self.net.transmit(Data(session.add.remote_index, session.add.send_key, epoch, counter, size, **what),
                          self.endpoint, remote)

    # -- frames --------------------------------------------------------------------------------------------------

    def send(self, other: "Node", inner: int) -> int:
        """One frame of ``inner`` bytes; returns its number."""
        frame = self.net.next_frame()
        self.net.frames_sent[frame] = self.net.now
        if self.alive:
            self._send_frame(self.slot_of(other), frame, inner)
        return frame

    def _send_frame(self, slot: int, frame: int, inner: int) -> None:
        session = self.sessions.get(self.use.get(slot, 0))
        path = self.paths.get(slot)
        if session is None or path is None or not session.may_send:
            self.parked[slot].append((self.net.now, frame, inner))
            self.feed(self.tunnel.want_session, slot, self.net.now)
            return
        session.unanswered = session.unanswered or self.net.now
        room = path.payload_max - OVERHEAD
        pieces = -(-inner // room)
        for _ in range(pieces):
            piece = min(inner, room)
            inner -= piece
            self._seal(session, path.epoch, path.remote, OVERHEAD + piece, frame=frame, pieces=pieces, inner=piece)

    def _unpark(self, slot: int) -> None:
        session = self.sessions.get(self.use.get(slot, 0))
        if session is not None and session.may_send and slot in self.paths:
            frames, self.parked[slot] = self.parked[slot], []
            for at, frame, inner in frames:
                if self.net.now - at <= PARK_SECONDS:
                    self._send_frame(slot, frame, inner)
                else:
                    self.drops["parked too long"] += 1

    # -- what arrives --------------------------------------------------------------------------------------------

    def deliver(self, datagram: bytes | Data, source: wire.Endpoint) -> None:
        if not self.alive:
            return
        if isinstance(datagram, bytes):
            self._deliver_handshake(datagram, source)
        else:
            self._deliver_data(datagram, source)

    def _deliver_handshake(self, datagram: bytes, source: wire.Endpoint) -> None:
        """As the worker does: shape, token id, mac1, version; else silence."""
        tokens = {token.id: token for token in self.settings.get("tokens", [self.net.token])}
        token_id = int.from_bytes(datagram[4:8], "big")
        if token_id not in tokens:
            self.drops["token"] += 1
            self.feed(self.tunnel.token_seen, token_id, source)
        elif wire.mac1(tokens[token_id].mac1_key, datagram[:-16]) != datagram[-16:]:
            self.drops["stranger"] += 1
        elif datagram[1] != wire.VERSION:
            self.feed(self.tunnel.version_seen, datagram[1], source)
        else:
            self.feed(self.tunnel.receive_handshake, datagram, source, self.address, self.net.now)

    def _deliver_data(self, data: Data, source: wire.Endpoint) -> None:
        session = self.sessions.get(data.receiver)
        if session is None:
            self.drops["unknown session"] += 1
            return
        if session.add.recv_key != data.key:
            self.drops["bad tag"] += 1
            return
        if (data.epoch, data.counter) in session.received:
            self.drops["replay"] += 1
            return
        session.received.add((data.epoch, data.counter))
        session.rx_packets += 1
        session.rx_bytes += data.size
        if data.control is None:
            session.unanswered_rx = session.unanswered_rx or self.net.now
        session.last_rx, session.unanswered = self.net.now, 0.0
        if session.rx_epoch < 0 or (data.epoch - session.rx_epoch) % 16 in range(1, 8):
            session.rx_epoch = data.epoch
        self._report(session, data, source)

    def _report(self, session: FakeSession, data: Data, source: wire.Endpoint) -> None:
        index, now = session.add.session, self.net.now
        if not session.confirmed:
            session.confirmed = True
            self.feed(self.tunnel.confirmed, index, now)
        path = self.paths.get(session.add.slot)
        if data.epoch == session.rx_epoch and (path is None or path.remote != source):
            self.feed(self.tunnel.candidate, index, source, self.address, now)
        if data.control:
            self.feed(self.tunnel.receive_control, index, source, data.control, data.size, now)
        elif data.frame:
            self.partial[data.frame] += 1
            if self.partial[data.frame] == data.pieces:
                self.delivered[data.frame] = now

    # -- questions for tests -------------------------------------------------------------------------------------

    def status(self, other: "Node") -> Any:
        slot = self.slot_of(other)
        return next(value for value in self.tunnel.status(self.net.now) if value.slot == slot)

    def has_session(self, other: "Node") -> bool:
        session = self.sessions.get(self.use.get(self.slot_of(other), 0))
        return session is not None and session.may_send and self.slot_of(other) in self.paths

    def key_in_use(self, other: "Node") -> bytes:
        return self.sessions[self.use[self.slot_of(other)]].add.send_key


def pair(net: Net, **settings: object) -> tuple[Node, Node]:
    a, b = net.node("a", **settings), net.node("b", **settings)
    net.introduce(a, b)
    return a, b


def stream(net: Net, source: Node, target: Node, seconds: float, interval: float, size: int = 64) -> list[int]:
    """Frames at a fixed pace; their numbers are filled in while the network runs."""
    frames: list[int] = []
    for tick in range(int(seconds / interval)):
        net.at(net.now + tick * interval, lambda: frames.append(source.send(target, size)))
    return frames


def gaps(net: Net, target: Node, frames: list[int]) -> float:
    """The longest time between two arrivals, ends included."""
    times = sorted(target.delivered[frame] for frame in frames if frame in target.delivered)
    edges = [net.frames_sent[frames[0]], *times, net.frames_sent[frames[-1]]]
    return max(after - before for before, after in itertools.pairwise(edges))
