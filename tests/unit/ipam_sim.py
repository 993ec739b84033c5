"""Nodes with addresses in virtual time: real service cores, real signatures, disks in memory, ordered links.

    service --Step(rows)--> disk    service --Step(words)--> link (a queue per direction) --> service.receive

Words are put on a link only when their rows are on the disk. A link loses what is under way when it is cut. Used by
test_ipam_service.py and the fuzz; the invariants of tests/model are asked after every step that matters.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from random import Random

from model.invariants import KILLED, UP, violations
from model.invariants import Node as Seen

from weave_router.ipam import durable
from weave_router.ipam.allocator import Holder
from weave_router.ipam.knowledge import knowledge_of
from weave_router.ipam.service import Service, Settings, Step
from weave_router.store_ipam import IpamRows, LeaseRow, MemberRow, RegisterRow
from weave_router.tunnel.identity import Identity, verify

DOMAIN = b"sim-doma"
RANGE = IPv4Network("10.32.0.0/24")
NAMES = ("n1", "n2", "n3")
EPOCH = 1000.0


class Disk:
    """What a store would hold."""

    def __init__(self) -> None:
        self.head: bytes | None = None
        self.registers: dict[int, RegisterRow] = {}
        self.members: dict[bytes, MemberRow] = {}
        self.leases: dict[int, LeaseRow] = {}

    def put(self, rows: IpamRows) -> None:
        self.head = rows.head if rows.head is not None else self.head
        self.registers |= {row.block: row for row in rows.registers}
        self.members |= {row.node: row for row in rows.members}
        for number in rows.freed:
            self.leases.pop(number, None)
        self.leases |= {row.number: row for row in rows.leases}

    def load(self) -> IpamRows:
        return IpamRows(self.head, tuple(self.registers[b] for b in sorted(self.registers)),
                        tuple(self.members.values()), tuple(self.leases[n] for n in sorted(self.leases)))


@dataclass
class Node:
    name: str
    identity: Identity
    disk: Disk = field(default_factory=Disk)
    boot: int = 1
    incarnation: int = 0
    service: Service | None = None
    pods: dict[Holder, tuple[int, int]] = field(default_factory=dict)
    """Living pods: number, and the incarnation that answered it."""
    owners: dict[int, bytes] = field(default_factory=dict)

    @property
    def id(self) -> bytes:
        return self.identity.node_id

    @property
    def core(self) -> Service:
        assert self.service is not None, f"{self.name} does not run"
        return self.service


class Net:
    def __init__(self, seed: int = 1, network: IPv4Network = RANGE, names: tuple[str, ...] = NAMES) -> None:
        self.rng = Random(seed)
        self.now = EPOCH
        self.network = network
        self.names = names
        self.nodes: dict[bytes, Node] = {}
        self.links: dict[tuple[bytes, bytes], deque[bytes]] = {}
        self.sent = 0

    # -- nodes -------------------------------------------------------------------------------------------------------
    def add(self, name: str, *, seed: bool = True, network: IPv4Network | None = None, **settings: object) -> Node:
        node = Node(name, Identity.generate(self.rng.randbytes))
        self.nodes[node.id] = node
        self.start(node, seed=seed, network=network, **settings)
        return node

    def start(self, node: Node, *, seed: bool = True, older: bool = False, network: IPv4Network | None = None,
              bridge: bool = True, **settings: object) -> None:
        node.incarnation += 1
        words = Settings(node.name, DOMAIN, network or self.network, self.names if seed else (), **settings)  # type: ignore[arg-type]
        service = node.service = Service(
            node.id, node.identity.ed25519_public, words, sign=node.identity.sign, verify=verify,
            nonce=lambda: self.rng.getrandbits(62), name_of=self._name_of)
        service.load(node.disk.load(), self.now)
        live = {number: holder for holder, (number, _) in node.pods.items()}
        service.boot(str(node.boot), node.incarnation, live, older, self.now)
        if not service.on and seed:
            service.found_seed(self.now)
        elif not service.on:
            service.found_new(self.rng.randbytes(16), self.now)
        if bridge:
            service.choose_bridge(None, self.now)
        self.carry(node)
        for holder in [h for h in service.allocator.leases().values() if h.container and h not in node.pods]:
            service.release(holder, self.now)  # as attachments.restore does
        service.reconcile(live, self.now)
        self.carry(node)
        node.owners |= service.owners()

    def _name_of(self, node_id: bytes) -> str:
        return self.nodes[node_id].name if node_id in self.nodes else node_id.hex()

    def kill(self, node: Node, *, power: bool = False) -> None:
        """kill -9: pods live on; with ``power`` they do not, and the next boot has another id."""
        for other in self.nodes.values():
            self.cut(node, other)
        node.service = None
        if power:
            node.boot += 1
            node.pods.clear()

    # -- links -------------------------------------------------------------------------------------------------------
    def link(self, one: Node, other: Node) -> None:
        if (one.id, other.id) in self.links or one.service is None or other.service is None:
            return
        self.links[one.id, other.id] = deque()
        self.links[other.id, one.id] = deque()
        one.core.link_up(other.id, self.now)
        other.core.link_up(one.id, self.now)
        self.carry(one)
        self.carry(other)

    def cut(self, one: Node, other: Node) -> None:
        if self.links.pop((one.id, other.id), None) is None:
            return
        del self.links[other.id, one.id]
        for node, gone in ((one, other), (other, one)):
            if node.service is not None:
                node.core.link_down(gone.id, self.now)
                self.carry(node)

    def mesh(self, *nodes: Node) -> None:
        """All with all, without names: everybody."""
        members = nodes or tuple(self.nodes.values())
        for one in members:
            for other in members:
                if one is not other:
                    self.link(one, other)

    # -- steps -------------------------------------------------------------------------------------------------------
    def carry(self, node: Node) -> list[Step]:
        """Rows first, words afterwards."""
        steps = node.core.take_steps()
        for step in steps:
            node.disk.put(step.rows)
            node.owners |= step.owners
            for to, data in step.words:
                if (node.id, to) in self.links:
                    self.links[node.id, to].append(data)
                    self.sent += len(data)
        return steps

    def deliver(self, link: tuple[bytes, bytes]) -> None:
        data = self.links[link].popleft()
        receiver = self.nodes[link[1]]
        receiver.core.receive(link[0], data, self.now)
        self.carry(receiver)

    def settle(self) -> None:
        """Until nothing is under way, in random order between links."""
        while busy := [link for link, queue in self.links.items() if queue]:
            self.deliver(self.rng.choice(busy))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            self.settle()
            due = [(at, n.id) for n in self.nodes.values() if n.service and (at := n.core.get_timer()) is not None]
            if not due or min(due)[0] > end:
                break
            self.now = max(self.now, min(due)[0])
            node = self.nodes[min(due)[1]]
            node.core.handle_timer(self.now)
            self.carry(node)
        self.now = end

    # -- pods --------------------------------------------------------------------------------------------------------
    def attach(self, node: Node, name: str) -> int:
        """What the CNI would do; raises what it would be told."""
        holder = Holder(name, "eth0")
        (number,) = node.core.allocate(holder, self.now)
        self.carry(node)
        node.pods[holder] = (number, node.incarnation)
        return number

    def detach(self, node: Node, name: str) -> None:
        holder = Holder(name, "eth0")
        node.core.release(holder, self.now)
        self.carry(node)
        node.pods.pop(holder, None)

    # -- what must hold ----------------------------------------------------------------------------------------------
    def check(self) -> None:
        """The invariants of the checker, and that no number lives twice."""
        assert list(violations([self._seen(node) for node in self.nodes.values()])) == []
        numbers = [number for node in self.nodes.values() for number, _ in node.pods.values()]
        assert len(set(numbers)) == len(numbers)

    def _seen(self, node: Node) -> Seen:
        rows = node.disk.load()
        any_service = node.service or Service(
            node.id, node.identity.ed25519_public, Settings(node.name, DOMAIN, self.network), sign=node.identity.sign,
            verify=verify, nonce=lambda: 1, name_of=bytes.hex)
        block_of = any_service.allocator.block_of
        used = {block_of(row.number) for row in rows.leases if not row.resting}
        cooling = {block_of(row.number) for row in rows.leases if row.resting} - used
        disk = durable.state_of(node.id, rows, used, cooling)
        memory = node.core.state if node.service else disk
        # The gate of a booted node keeps a block of living pods as cooling until it opens; both hold it back.
        memory = memory._replace(used=memory.used | {block_of(n) for n, _ in node.pods.values()})
        pods = frozenset((block_of(number), incarnation) for number, incarnation in node.pods.values())
        numbers = frozenset(number for number, _ in node.pods.values())
        book = node.service.allocator if node.service else None
        return Seen(UP if node.service else KILLED, memory, disk, pods, book=book, numbers=numbers)

    def agree(self) -> bool:
        hashes = {n.core.speech.hash_of(knowledge_of(n.core.state)) for n in self.nodes.values() if n.service}
        return len(hashes) == 1
