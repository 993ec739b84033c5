"""The API server as far as this product knows it, in memory and in virtual time, and routers' cores that talk to it.

Faithful where it matters: one resourceVersion for all, 409 for a name that is there, for a version and for a uid that
are not; answers that get lost before or after the write; watches that are late, that break, that list anew.
Used by test_kube_*.py.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import IPv4Network
from itertools import count
from random import Random
from typing import Any

import msgspec

from weave_router.errors import BadPacket
from weave_router.ipam.arbitrated import ArbitratedBlocks
from weave_router.ipam.service import Service
from weave_router.ipam.service import Settings as IpamSettings
from weave_router.kube import objects
from weave_router.kube.core import Kube
from weave_router.kube.events import Lost
from weave_router.kube.objects import UniverseLease
from weave_router.kube.values import Answer, Call, Settings, World
from weave_router.tunnel.identity import Identity

NAMESPACE = "kube-system"
LEASES = f"apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"
UNIVERSE = UniverseLease(bytes(range(16)), "10.32.0.0/16", "fd00::/96", "0000000a")


class ApiModel:
    """``objects``: path -> object. ``log``: (version, path, type, object) of every change."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.log: list[tuple[int, str, str, dict[str, Any]]] = []
        self.version = 100
        self.writes = 0

    def request(self, call: Call) -> Answer:
        handler = {"GET": self._get, "POST": self._post, "PUT": self._put, "PATCH": self._patch}[call.method]
        return handler(call)

    def put(self, path: str, found: dict[str, Any]) -> dict[str, Any]:
        """Straight into the store, as an administrator would."""
        self.version += 1
        kind = "MODIFIED" if path in self.objects else "ADDED"
        found["metadata"].setdefault("uid", f"uid-{self.version}")
        found["metadata"]["resourceVersion"] = str(self.version)
        found["metadata"].setdefault("creationTimestamp", f"2026-01-01T00:00:{self.version % 60:02}Z")
        self.objects[path] = found
        self.log.append((self.version, path, kind, json.loads(json.dumps(found))))
        return found

    def delete(self, path: str) -> None:
        self.version += 1
        gone = self.objects.pop(path)
        gone["metadata"]["resourceVersion"] = str(self.version)
        self.log.append((self.version, path, "DELETED", gone))

    def _get(self, call: Call) -> Answer:
        if call.path in self.objects:
            return Answer(200, json.dumps(self.objects[call.path]).encode())
        found = [o for path, o in sorted(self.objects.items()) if path.rpartition("/")[0] == call.path]
        if not found and call.path.rpartition("/")[2] not in ("pods", "leases", "nodes", "secrets"):
            return Answer(404, b"{}")
        field = call.params.get("fieldSelector", "")
        if field.startswith("spec.nodeName="):
            found = [o for o in found if o["spec"]["nodeName"] == field.partition("=")[2]]
        return Answer(200, json.dumps({"metadata": {"resourceVersion": str(self.version)}, "items": found}).encode())

    def _post(self, call: Call) -> Answer:
        found = json.loads(call.body)
        path = f"{call.path}/{found['metadata']['name']}"
        if path in self.objects:
            return Answer(409, b"{}")
        self.writes += 1
        return Answer(201, json.dumps(self.put(path, found)).encode())

    def _put(self, call: Call) -> Answer:
        found, held = json.loads(call.body), self.objects.get(call.path)
        meta = found["metadata"]
        if held is None:
            return Answer(404, b"{}")
        if any(meta.get(key) not in (None, held["metadata"][key]) for key in ("uid", "resourceVersion")):
            return Answer(409, b"{}")
        self.writes += 1
        found["metadata"] = meta | {"uid": held["metadata"]["uid"]}
        return Answer(200, json.dumps(self.put(call.path, found)).encode())

    def _patch(self, call: Call) -> Answer:
        path = call.path.removesuffix("/status")
        if path not in self.objects:
            return Answer(404, b"{}")
        self.writes += 1
        changed = json.loads(json.dumps(self.objects[path]))
        changed.setdefault("status", {}).update(json.loads(call.body)["status"])
        return Answer(200, json.dumps(self.put(path, changed)).encode())

    # -- what an administrator does ----------------------------------------------------------------------------------

    def add_node(self, name: str, *addresses: str) -> str:
        found = self.put(f"api/v1/nodes/{name}", {
            "metadata": {"name": name}, "spec": {},
            "status": {"addresses": [{"type": "InternalIP", "address": a} for a in addresses or ("192.0.2.1",)]}})
        return str(found["metadata"]["uid"])

    def lease(self, block: int) -> dict[str, Any] | None:
        network = objects.network_of(IPv4Network(UNIVERSE.range_v4), block)
        return self.objects.get(f"{LEASES}/{objects.lease_name(network)}")

    def holders(self) -> dict[int, str]:
        found = {}
        for path, each in self.objects.items():
            if path.startswith(f"{LEASES}/weave-router-block-"):
                lease = objects.lease_untrusted(json.dumps(each).encode(), IPv4Network(UNIVERSE.range_v4))
                assert lease is not None
                found[lease.block] = lease.holder
        return found


class Greedy(ArbitratedBlocks):
    """The addresses' real service; it wants as many blocks as a test says."""

    appetite = 0

    def wants_block(self) -> bool:
        return len(self.owned()) - len(self.disputed()) < self.appetite

    def spare(self) -> int | None:
        idle = self._idle()
        return idle[-1] if idle and len(self.owned()) - len(self.disputed()) > self.appetite else None


@dataclass
class Faults:
    """Probabilities of a call; ``late``: seconds until a watch shows what was written."""

    lost_before: float = 0.0
    lost_after: float = 0.0
    refused: float = 0.0
    late: float = 0.05
    breaks: float = 0.0
    """Of a watch, per look: it lists anew."""


class Router:
    """One node's core on its addresses."""

    def __init__(self, sim: Sim, name: str, appetite: int = 0, identity: Identity | None = None,
                 fence: float = 900.0, jitter: float = 60.0, idle: float = 600.0) -> None:
        self.sim = sim
        self.name = name
        self.identity = identity or Identity.generate(sim.rng.randbytes)
        range_v4 = IPv4Network(UNIVERSE.range_v4)
        numbers = count(1)
        self.service = Service(
            self.identity.node_id, self.identity.ed25519_public,
            IpamSettings(name, b"sim-doma", range_v4, arbiter=True), sign=lambda data: bytes(64),
            verify=lambda *_: True, nonce=lambda: next(numbers), name_of=lambda node: node.hex())
        self.service.found_by_arbiter(UNIVERSE.universe, 0.0)
        self.blocks = Greedy(self.service)
        self.blocks.appetite = appetite
        self.core = Kube(Settings(name, NAMESPACE, range_v4, fence, jitter, idle), self.identity.node_id, self.blocks,
                         Random(sim.rng.random()), universe=UNIVERSE)
        self.world = World()
        self.seen = 0
        self.alive = True
        self.cut = False
        """From the API server."""
        sim.at(sim.rng.uniform(0, 0.5), self.look)
        sim.at(sim.rng.uniform(0.5, 1.0), self.tick)

    # -- the driver's part -----------------------------------------------------------------------------------------

    def look(self) -> None:
        """The watches: a list first, then changes in order, late."""
        sim, core = self.sim, self.core
        if not self.alive:
            return
        if self.cut:
            core.unsynced("nodes", "cut")
            core.unsynced("leases", "cut")
            self.seen = 0
        elif not self.seen or sim.rng.random() < sim.faults.breaks:
            self._list()
        else:
            for version, path, kind, each in sim.shown(self.seen):
                self._show(path, kind, each)
                self.seen = version
        sim.at(sim.rng.uniform(0.01, 0.1), self.look)

    def _list(self) -> None:
        api, now = self.sim.api, self.sim.now
        self.seen = api.version
        raw = {path: json.dumps(each).encode() for path, each in api.objects.items()}
        nodes = [objects.node_untrusted(data) for path, data in raw.items() if path.startswith("api/v1/nodes/")]
        leases = [self._lease(data) for path, data in raw.items() if path.startswith(LEASES)]
        self.core.nodes_listed(nodes, now)
        self.core.leases_listed([lease for lease in leases if lease], now)

    def _lease(self, data: bytes) -> objects.Lease | None:
        try:
            return objects.lease_untrusted(data, self.core.settings.range_v4)
        except BadPacket:
            return None

    def _show(self, path: str, kind: str, each: dict[str, Any]) -> None:
        data, gone, now = json.dumps(each).encode(), kind == "DELETED", self.sim.now
        if path.startswith("api/v1/nodes/"):
            self.core.node_changed(objects.node_untrusted(data), gone, now)
        elif path.startswith(LEASES):
            lease = self._lease(data)
            if lease is not None:
                self.core.lease_changed(lease, gone, now)

    def tick(self) -> None:
        if not self.alive:
            return
        lost = {Lost(other.name, other.identity.node_id, block, gen) for other in self.sim.routers
                if other is not self for block, gen in other.core.lost.items()}
        cut = self.core.lost if self.service.lost else ()
        self.core.handle_timer(self.sim.now, replace(self.world, lost=frozenset(lost), cut=frozenset(cut)))
        self.call()
        self.sim.at(1.0, self.tick)

    def call(self) -> None:
        """The next call goes out; its answer comes back a moment later, or never."""
        sim = self.sim
        if not self.alive:
            return
        call = self.core.next_call(sim.now)
        if call is None:
            if not self.core.free():
                return
            self._again()
            return
        rng, faults = sim.rng, sim.faults
        if self.cut or rng.random() < faults.lost_before:
            sim.at(rng.uniform(0.1, 10), lambda: self.answered(Answer(0, detail="lost")))
        elif rng.random() < faults.refused:
            sim.at(0.01, lambda: self.answered(Answer(rng.choice((429, 500, 503)), after=rng.choice((0.0, 1.0)))))
        else:
            sim.at(rng.uniform(0.001, 0.05), lambda: self.arrive(call))

    def _again(self) -> None:
        if not self._polling:
            self._polling = True
            self.sim.at(0.05, self._poll)

    _polling = False

    def _poll(self) -> None:
        self._polling = False
        self.call()

    def arrive(self, call: Call) -> None:
        sim = self.sim
        answer = sim.api.request(call)
        if sim.rng.random() < sim.faults.lost_after:
            answer = Answer(0, detail="lost")
        sim.at(sim.rng.uniform(0.001, 0.05), lambda: self.answered(answer))

    def answered(self, answer: Answer) -> None:
        if self.alive:
            self.core.answered(answer, self.sim.now)
            self.call()

    def usable(self) -> set[int]:
        """Blocks that pods get addresses from."""
        return {block for block in self.blocks.owned() if self.service.allocator.has_block(block)
                and block not in self.service.state.contested}


class Sim:
    def __init__(self, seed: int = 1, faults: Faults | None = None) -> None:
        self.rng = Random(seed)
        self.now = 0.0
        self.api = ApiModel()
        self.faults = faults or Faults()
        self.routers: list[Router] = []
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._written: dict[int, float] = {}

    def at(self, after: float, work: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self.now + after, next(self._numbers), work))

    def add(self, name: str, *, node: bool = True, **settings: Any) -> Router:
        if node:
            self.api.add_node(name)
        router = Router(self, name, **settings)
        self.routers.append(router)
        return router

    def shown(self, after: int) -> list[tuple[int, str, str, dict[str, Any]]]:
        """Changes a watch has got by now."""
        found = []
        for entry in reversed(self.api.log):
            if entry[0] <= after:
                break
            if self.now - self._written.setdefault(entry[0], self.now) >= self.faults.late:
                found.append(entry)
        found.reverse()
        keep = 0
        for keep, entry in enumerate(found):  # in order, without holes
            if entry[0] != after + keep + 1:
                return found[:keep]
        return found

    def run(self, seconds: float, check: Callable[[], None] | None = None) -> None:
        end = self.now + seconds
        while self._heap and self._heap[0][0] <= end:
            self.now, _, work = heapq.heappop(self._heap)
            work()
            if check is not None:
                check()
        self.now = end

    def each_block_once(self) -> None:
        """No block is used by two routers at one time."""
        owner: dict[int, str] = {}
        for router in self.routers:
            if router.alive:
                for block in router.usable():
                    first = owner.setdefault(block, router.name)
                    assert first == router.name, f"block {block}: {first} and {router.name}"


def raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(json.dumps(value).encode())
