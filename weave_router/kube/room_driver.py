"""This room's door for the composition root: agree with the cluster, own a block, then run beside the other rooms.

Imported by router.py in Kubernetes mode alone.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from random import Random
from typing import Any

import msgspec

from weave_router.cni.attachments import Attachments
from weave_router.config import LaunchConfig
from weave_router.ipam.allocator import Holder
from weave_router.ipam.arbitrated import ArbitratedBlocks
from weave_router.ipam.donation import owned
from weave_router.ipam.driver import IpamDriver, now
from weave_router.ipam.service import Service
from weave_router.mesh.driver import MeshDriver
from weave_router.tunnel.token import TokenSet
from weave_router.tunnel.token_driver import load_tokens

from . import core as kube
from . import start_driver, values
from .driver import KubeDriver, utc
from .events import Lost

__all__ = ["Room"]
_log = logging.getLogger(__name__)


class Room:
    """``agree``, then ``open``, then ``run``: in the order in which a start needs them."""

    start: start_driver.Start
    core: kube.Kube
    _cutting: asyncio.Future[None]

    def __init__(self, config: LaunchConfig, node_id: bytes) -> None:
        self.config = config
        self._node_id = node_id
        self._rng = Random(os.urandom(16))
        self._said_lost: dict[int, int] = {}
        self._cut: set[Holder] = set()
        """Whose ports were taken down."""

    def agree(self) -> LaunchConfig:
        """What the cluster runs with; from disk if this node knows, else the API server is waited for."""
        start_driver.server_of(self.config)
        held = load_tokens(self.config.token_file) if self.config.token_file else None
        found = start_driver.on_disk(self.config)
        if found is None:
            found = asyncio.run(self._ask(held))
        self.start = start_driver.Start(found.universe, held or found.tokens, found.families)
        auto = "on" if "6" in found.families else "off"
        self.config = msgspec.structs.replace(
            self.config, ipalloc_range=found.universe.range_v4, ipv6_first=found.families.startswith("6"),
            ipv6=auto if self.config.ipv6 == "auto" else self.config.ipv6)
        return self.config

    async def _ask(self, held: TokenSet | None) -> start_driver.Start:
        api = start_driver.make_api(self.config)
        try:
            return await start_driver.Beginning(self.config, api, self._rng, held).run()
        finally:
            await api.close()

    def open(self, service: Service) -> None:
        """The core; a node without a block waits for its first."""
        config, debug = self.config, self.config.debug_timers
        settings = values.Settings(
            config.node_name, config.namespace, config.range_v4, debug.get("fence", values.FENCE_SECONDS),
            debug.get("fence_jitter", values.FENCE_JITTER), debug.get("idle", values.IDLE_SECONDS),
            leaving=config.uninstall)
        held = None if config.token_file else self.start.tokens
        self._kept_targets = start_driver.kept_targets(config)
        self.core = kube.Kube(settings, self._node_id, ArbitratedBlocks(service), self._rng,
                              universe=self.start.universe, held=held, targets=self._kept_targets)
        if not owned(service.state):
            asyncio.run(self._first_block(service))

    async def _first_block(self, service: Service) -> None:
        api = start_driver.make_api(self.config)
        try:
            await start_driver.first_block(self.core, api, lambda: bool(owned(service.state)), now, self._rng)
        finally:
            await api.close()

    def join(self, ipam: IpamDriver, mesh: MeshDriver, attachments: Attachments, *,
             use_targets: Callable[[Iterable[str]], None], use_tokens: Callable[[TokenSet], None],
             submit: Callable[[Callable[[], object]], object]) -> None:
        """The rooms beside this one. ``use_...``: from now on; ``submit``: to the thread that writes to disk."""
        self._ipam, self._mesh, self._attachments = ipam, mesh, attachments
        self._use_targets, self._use_tokens, self._submit = use_targets, use_tokens, submit

    async def run(self) -> None:
        """The client is loaded here, beside the loop: pods are served without it."""
        await asyncio.to_thread(importlib.import_module, "weave_router.kube.api_driver")
        driver = KubeDriver(self.core, start_driver.make_api(self.config), self._rng, act=self._act,
                            world=self._world, changed=self._changed)
        await driver.run()

    def call_nodes(self) -> None:
        """Those of the core. The first time before the API server is asked: it may be away."""
        wanted = sorted(self.core.targets())
        self._use_targets(wanted)
        if wanted and wanted != sorted(self._kept_targets):
            kept = self._kept_targets = wanted
            self._submit(lambda: start_driver.keep_targets(self.config, kept))

    def _act(self, work: Callable[[float], Any]) -> Any:
        return self._ipam.do(lambda service, at: work(at))

    def _world(self) -> values.World:
        mesh = self._mesh.mesh
        reachable = mesh.status().reachable
        heard = [signed.record for signed in mesh.table if signed.node_id in reachable]
        sent = frozenset(record.token_sent for record in heard)
        accepted = {record.name: frozenset(record.tokens_accepted) for record in heard}
        names = {signed.node_id: signed.record.name for signed in mesh.table}
        lost = frozenset(Lost(signed.record.name, signed.node_id, each.block, each.gen)
                         for signed in mesh.table if signed.node_id != self._node_id for each in signed.record.lost)
        return values.World(reachable, sent, accepted, names, self._ipam.service.refusal() is None, utc(), lost,
                          frozenset(self._cut_blocks()))

    def _cut_blocks(self) -> Iterator[int]:
        for holder in list(self._cut):
            held = self._attachments.get(holder.container, holder.ifname)
            if held is None:
                self._cut.discard(holder)
            else:
                yield self._ipam.service.allocator.block_of(held.numbers[0])

    def _changed(self) -> None:
        """Nodes became targets, an edit of the Secret tokens, and pods of lost blocks are cut off."""
        self.call_nodes()
        held = self.core.take_tokens()
        if held is not None:
            self._use_tokens(held)
            self._submit(lambda: self.keep(held))
        buried, self.core.buried = self.core.buried, []
        for node_id in buried:
            self._mesh.do(lambda mesh, at, node_id=node_id: mesh.bury(node_id, at))  # type: ignore[misc]
        if self.core.lost != self._said_lost:
            gens = self._said_lost = dict(self.core.lost)
            self._mesh.do(lambda mesh, at: mesh.set_lost(gens, at))
        lost, self._ipam.service.lost = self._ipam.service.lost, []
        if lost:
            self._cut.update(lost)
            self._cutting = asyncio.ensure_future(self._attachments.cut_off(lost))

    def keep(self, held: TokenSet) -> None:
        """New tokens, on disk; in the store's writer thread."""
        assert self.core.universe is not None
        start_driver.keep(self.config, self.core.universe, held, self.start.families)
