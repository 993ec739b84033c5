"""Nodes of a mesh in virtual time: real cores, real keys, simulated streams. One seed, one run.

    node --Dial/Send/Hangup--> Network --heap of (time, order, action)--> node.accept / receive_data / connection_lost

A stream keeps its order; each direction has a latency drawn once. A host that is cut off loses everything silently, a
killed process resets its streams (as a kernel does). Used by test_mesh_core.py; imports no product module but cores.
"""

import hashlib
import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random

from weave_router.mesh.core import Mesh
from weave_router.mesh.events import Config, Dial, Effect, Event, Hangup, RestoredState, Send
from weave_router.mesh.routes import Routes
from weave_router.mesh.table import Delta
from weave_router.tunnel.identity import Identity, verify
from weave_router.tunnel.token import Token, TokenSet

PORT = 6783
DOMAIN = b"sim-doma"


def tokens(*names: str) -> TokenSet:
    return TokenSet(Token(DOMAIN, hashlib.sha256(name.encode()).digest()) for name in names or ("first",))


@lru_cache(1 << 16)
def remembered_verify(public: bytes, signature: bytes, data: bytes) -> bool:
    return verify(public, signature, data)


@dataclass
class Node:
    """One host: its process may be ended and started again."""

    host: str
    identity: Identity
    targets: list[str]
    config: Config
    tokens: TokenSet
    incarnation: int = 0
    runs: int = 0
    prefixes: tuple[object, ...] = ()
    mesh: Mesh | None = None
    routes: Routes | None = None
    events: list[tuple[float, Event]] = field(default_factory=list)
    installed: dict[tuple[int, int], tuple[int, bytes]] = field(default_factory=dict)

    @property
    def core(self) -> Mesh:
        assert self.mesh is not None, f"{self.host} does not run"
        return self.mesh

    def times_of(self, kind: type) -> list[float]:
        return [at for at, event in self.events if isinstance(event, kind)]


@dataclass
class End:
    """One end of a stream."""

    node: Node
    mesh: Mesh
    number: int
    other: "End | None" = None
    ready_at: float = 0.0
    closed: bool = False


class Network:
    def __init__(self, seed: int, start: float = 1000.0) -> None:
        self.rng = Random(seed)
        self.now = start
        self.nodes: dict[str, Node] = {}
        self.cut: set[frozenset[str]] = set()
        self.names: dict[str, str] = {}
        self.refusing: set[str] = set()
        self.nat: dict[str, str] = {}
        self.bytes_sent = 0
        self.dials: list[tuple[float, str, str]] = []
        """(time, who calls, whom)"""
        self.trace = hashlib.sha256()
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._ends: dict[tuple[int, int], End] = {}
        self._timers: dict[str, float] = {}

    # -- nodes ------------------------------------------------------------------------------------------------------
    def add(self, index: int, *targets: int | str, run: bool = True, token: str = "first", identity: int | None = None,
            **config: object) -> Node:
        host = f"10.0.{index >> 8}.{index & 255}"
        seed = Random(index if identity is None else identity)
        texts = [f"10.0.{target >> 8}.{target & 255}" if isinstance(target, int) else target for target in targets]
        settings = Config(name=f"host{index}", port=PORT, **config)  # type: ignore[arg-type]
        node = Node(host, Identity.generate(seed.randbytes), texts, settings, tokens(token))
        self.nodes[host] = node
        if run:
            self.start(node)
        return node

    def start(self, node: Node, incarnation: int | None = None) -> None:
        node.runs += 1
        node.incarnation = node.incarnation + 1 if incarnation is None else incarnation
        rng = Random(self.rng.getrandbits(64))
        node.mesh = Mesh(node.config, identity=node.identity, tokens=node.tokens, incarnation=node.incarnation,
                         run=rng.randbytes(16), rng=rng, entropy=rng.randbytes, now=self.now, verify=remembered_verify)
        node.routes = Routes(node.core.node_id)
        node.installed = {}
        if node.prefixes:
            node.core.set_prefixes(node.prefixes, self.now)  # type: ignore[arg-type]
        for target in node.targets:
            node.core.target_add(target, self.now)
        self.after(node)

    def kill(self, node: Node) -> None:
        """kill -9: the kernel resets what was open."""
        mesh, node.mesh = node.mesh, None
        for end in [end for end in self._ends.values() if end.mesh is mesh]:
            self._close(end)

    def stop(self, node: Node) -> None:
        mesh = node.core
        mesh.close(self.now)
        self.after(node)
        node.mesh = None

    def do(self, node: Node, action: Callable[[Mesh, float], object]) -> None:
        action(node.core, self.now)
        self.after(node)

    def split(self, *groups: list[Node]) -> None:
        """No byte passes between the groups, in silence."""
        for index, group in enumerate(groups):
            for other in groups[index + 1:]:
                self.cut |= {frozenset((one.host, two.host)) for one in group for two in other}

    def heal(self) -> None:
        self.cut.clear()

    # -- time -------------------------------------------------------------------------------------------------------
    def at(self, time: float, action: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._heap, (max(time, self.now), self._order, action))

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> float:
        """Run for so long, or until the condition holds (looked at after each event); returns the time taken."""
        begun = self.now
        while self._heap and self._heap[0][0] <= begun + seconds:
            if until is not None and until():
                return self.now - begun
            self.now, _, action = heapq.heappop(self._heap)
            action()
        assert until is None or until(), f"not within {seconds} s"
        if until is None:
            self.now = begun + seconds
        return self.now - begun

    def after(self, node: Node) -> None:
        """Carry out effects, keep events, set the timer."""
        mesh = node.core
        while effects := mesh.take_effects():
            for effect in effects:
                self._carry_out(node, mesh, effect)
        for event in mesh.take_events():
            self._keep(node, event)
        if not mesh.closed:
            self._set_timer(node, mesh)

    def _keep(self, node: Node, event: Event) -> None:
        node.events.append((self.now, event))
        self.trace.update(f"{self.now:.6f} {node.host} {type(event).__name__}".encode())
        if isinstance(event, Delta):
            assert node.routes is not None
            for operation in node.routes.apply(event):
                match type(operation).__name__:
                    case "RouteSet":
                        node.installed[operation.number, operation.prefix_len] = (operation.slot, operation.mac)
                    case "RouteDel":
                        del node.installed[operation.number, operation.prefix_len]
        if isinstance(event, RestoredState):
            node.incarnation = event.incarnation + 1
            node.core.set_incarnation(node.incarnation, self.now)
            self.after(node)

    def _set_timer(self, node: Node, mesh: Mesh) -> None:
        at = max(self.now, mesh.get_timer())
        due = self._timers.get(node.host)
        if due is not None and self.now <= due <= at:
            return
        self._timers[node.host] = at
        self.at(at, lambda: self._timer(node, mesh, at))

    def _timer(self, node: Node, mesh: Mesh, at: float) -> None:
        if node.mesh is not mesh or self._timers.get(node.host) != at:
            return
        del self._timers[node.host]
        if mesh.get_timer() <= self.now:
            mesh.handle_timer(self.now)
        self.after(node)

    # -- streams ----------------------------------------------------------------------------------------------------
    def _latency(self) -> float:
        return self.rng.uniform(0.0005, 0.010)

    def _reaches(self, one: str, two: str) -> bool:
        return frozenset((one, two)) not in self.cut

    def _carry_out(self, node: Node, mesh: Mesh, effect: Effect) -> None:
        match effect:
            case Dial():
                self.dials.append((self.now, node.host, effect.host))
                self.at(self.now + self._latency(), lambda: self._connect(node, mesh, effect))
            case Send():
                self._send(self._ends[id(mesh), effect.link], effect.data)
            case Hangup():
                end = self._ends.get((id(mesh), effect.link))
                if end is not None:
                    self._close(end)

    def _connect(self, node: Node, mesh: Mesh, dial: Dial) -> None:
        if node.mesh is not mesh:
            return
        host = self.names.get(dial.host, dial.host)
        other = self.nodes.get(host)
        if other is None or not self._reaches(node.host, host):
            return  # silence: the core's own deadline ends the call
        if other.mesh is None or host in self.refusing or host in self.nat:
            mesh.dial_failed(dial.link, "connection refused", self.now)
            self.after(node)
            return
        near = self._ends[id(mesh), dial.link] = End(node, mesh, dial.link)
        if not mesh.dial_connected(dial.link, (node.host, 40000), (host, PORT), self.now):
            near.closed = True
            return
        number = other.mesh.accept((host, PORT), (self.nat.get(node.host, node.host), 40000), self.now)
        far = self._ends[id(other.mesh), number] = End(other, other.mesh, number, near)
        near.other = far
        self.after(other)
        if node is not other:
            self.after(node)

    def _send(self, end: End, data: bytes) -> None:
        self.bytes_sent += len(data)
        other = end.other
        if other is None or end.closed or not self._reaches(end.node.host, other.node.host):
            return
        other.ready_at = max(other.ready_at, self.now + self._latency())
        self.at(other.ready_at, lambda: self._deliver(other, data))

    def _deliver(self, end: End, data: bytes) -> None:
        if end.closed or end.node.mesh is not end.mesh:
            return
        self.trace.update(f"{self.now:.6f} {end.node.host} {len(data)}".encode())
        end.mesh.receive_data(end.number, data, self.now)
        self.after(end.node)

    def _close(self, end: End) -> None:
        if end.closed:
            return
        end.closed = True
        self._ends.pop((id(end.mesh), end.number), None)
        other = end.other
        if other is not None and self._reaches(end.node.host, other.node.host):
            other.ready_at = max(other.ready_at, self.now + self._latency())
            self.at(other.ready_at, lambda: self._lost(other))

    def _lost(self, end: End) -> None:
        if end.closed or end.node.mesh is not end.mesh:
            return
        end.closed = True
        self._ends.pop((id(end.mesh), end.number), None)
        end.mesh.connection_lost(end.number, "connection closed", self.now)
        self.after(end.node)

    # -- questions --------------------------------------------------------------------------------------------------
    def running(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.mesh is not None]

    def agree(self) -> bool:
        """Every running node holds the same bytes for every node, and reaches all running ones."""
        first, *rest = [node.core.table for node in self.running()]
        hashes = {signed.node_id: signed.hash for signed in first}
        same = all({signed.node_id: signed.hash for signed in table} == hashes for table in rest)
        return same and self.all_reachable()

    def all_reachable(self) -> bool:
        ids = {node.core.node_id for node in self.running()}
        return all(node.core.replica.topology.reachable >= ids for node in self.running())
