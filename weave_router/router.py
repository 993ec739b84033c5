"""The composition root: builds the cores and drivers of one router, owns the tasks, closes in order.

What is decided here is only who gets to know what: events of the mesh become routes, peers and warnings, requests of
people become calls of the room that can carry them out. ``run`` is the whole life of a router.
"""

import asyncio
import contextlib
import importlib
import logging
import os
import signal
import time
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv4Interface, IPv6Interface, ip_address
from pathlib import Path
from random import Random
from socket import AF_INET6
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
import uvloop

from weave_router import __version__, limits, router_leave_driver
from weave_router.api.addresses import AddressBook
from weave_router.api.view import Parts
from weave_router.cni import cni_driver
from weave_router.cni.attachments import Attachments, PodSettings
from weave_router.cni.service import CniService
from weave_router.config import LaunchConfig, literals
from weave_router.errors import BadPacket, UsageError, UserError
from weave_router.fastpath import engine as fastpath
from weave_router.host import (
    bridge_driver,
    install_driver,
    kernel_driver,
    netlink_driver,
    overlap,
    pod_driver,
    succession_driver,
    tap_driver,
    udp_driver,
    underlay_driver,
)
from weave_router.host.bridge import BridgePlan
from weave_router.host.driver import Host
from weave_router.host.forwarding_driver import Watch
from weave_router.host.handover_driver import HandoverServer
from weave_router.host.rtnl_driver import Rtnl
from weave_router.ipam import start_driver
from weave_router.ipam.allocator import Holder
from weave_router.ipam.driver import IpamDriver
from weave_router.ipam.number import Universe, mac_of, mac_text, prefix_v6_of
from weave_router.mesh import events as mesh_events
from weave_router.mesh import routes as mesh_routes
from weave_router.mesh.core import Mesh
from weave_router.mesh.driver import MeshDriver
from weave_router.mesh.estate import Estate, decode_estate_untrusted, encode_estate
from weave_router.mesh.record import FLAG_NO_AES, FLAG_PLAINTEXT, Endpoint
from weave_router.mesh.table import Delta
from weave_router.router_commands import Commands
from weave_router.router_peers import Peers
from weave_router.router_record import OwnRecord
from weave_router.router_targets import Targets
from weave_router.store import Store
from weave_router.store_group import GroupWriter
from weave_router.tunnel import effects
from weave_router.tunnel.core import Tunnel
from weave_router.tunnel.driver import TunnelDriver
from weave_router.tunnel.identity import Identity
from weave_router.tunnel.state import State
from weave_router.tunnel.timers import timers_from_environment
from weave_router.tunnel.token import TokenSet
from weave_router.tunnel.token_driver import load_tokens
from weave_router.tunnel.trust import Trust

if TYPE_CHECKING:
    from weave_router.kube.room_driver import Room

T = TypeVar("T")
_log = logging.getLogger(__name__)

ATTACH_SOCKET: Final = "attach.sock"
LOOK_SECONDS: Final = 2.0
"""How often slow facts are looked at: own addresses, peers whose numbers are to be answered, the bridge."""
TURN_SECONDS: Final = 60.0
"""How long a roll-out's router waits for the one before it, which its pod's end gives 15 s; then it starts anew."""
UNINSTALL_LOOK_SECONDS: Final = 0.5
CLONE: Final = "another running node has this node's identity: no new addresses until one of the two is stopped"


def run(config: LaunchConfig) -> int:
    """Run until SIGTERM or SIGINT. UserError if it cannot start."""
    if config.uninstall and not router_leave_driver.standing(config):
        return router_leave_driver.run(config)
    router = Router(config)
    try:
        with contextlib.ExitStack() as undo:
            router.prepare(undo)
            uvloop.run(router.main())
    except BaseExceptionGroup as group:
        raise _sentence_of(group) from group
    return router_leave_driver.run(config) if router.last_pod_gone else 0


def _sentence_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """A UserError that a task ended with is the operator's; everything else is ours and stays a traceback."""
    users, _ = group.split(UserError)
    while users is not None:
        first = users.exceptions[0]
        if not isinstance(first, BaseExceptionGroup):
            return first
        users = first
    return group


def realtime_share(config: LaunchConfig, workers: int, cpus: int) -> float:
    """Of one CPU, that each worker may take ahead of ordinary threads: half of it where they could take all CPUs."""
    return 0 if config.no_realtime or "realtime" in config.refuse else 0.9 if workers < cpus else 0.5


def worker_count(wanted: int, cpus: int) -> int:
    """One up to four CPUs, then a quarter of them, four at most: one thread serves both directions."""
    return wanted or min(4, max(1, cpus // 4 if cpus > 4 else 1))


class Router:
    """Everything one daemon is made of. ``prepare`` takes what must be had before there is a loop."""

    def __init__(self, config: LaunchConfig) -> None:
        self.config = config
        self.boot_id = config.debug_boot_id or kernel_driver.boot_id()
        self.kube: Room | None = None
        if not config.kubernetes:
            self.tokens = load_tokens(config.token_file)
            self.universe = Universe(config.range_v4, prefix_v6_of(self.tokens.domain))
        self.started_at = time.time()
        self.aes = kernel_driver.has_aes()
        self._warnings: list[str] = []
        self._jumping: asyncio.Future[None] | None = None
        self._terminations: dict[str, int] = {}
        self._stop = asyncio.Event()
        self._bequeathed = False
        self.last_pod_gone = False
        """It was started to be uninstalled, and may be now."""
        self.view: Commands
        self._known_name: Callable[[bytes], str] = lambda node_id: node_id.hex()[:12]

    # -- before the loop ---------------------------------------------------------------------------------------------

    def prepare(self, undo: contextlib.ExitStack) -> None:
        """The lock or a place behind it, then the store: in the order in which a second router is to fail."""
        config = self.config
        run_dir = run_directory(config.run_dir)
        self._turn = succession_driver.await_turn(
            run_dir, config.tap, wait=TURN_SECONDS if config.kubernetes else 0.0)
        undo.callback(self._turn.release)
        self.store = undo.enter_context(Store.open(config.state_dir, boot_id=self.boot_id))
        self._writer = GroupWriter(self.store)
        undo.callback(self._writer.shutdown)
        self.identity = Identity(*self.store.identity())
        if config.kubernetes:
            config = self._agree()
        self._survey()
        older = start_driver.is_older(run_dir, self.boot_id, self.identity.node_id, self.store.incarnation())
        with self.store.batch():
            self.incarnation = self.store.raise_incarnation()
            self._counter_start = self.store.counter_start()  # reserved now: the first handshakes wait for no disk
            self.store.counter_block(self._counter_start + limits.COUNTER_BLOCK)
        start_driver.remember(run_dir, self.boot_id, self.identity.node_id, self.incarnation)
        self.ipam = start_driver.open_service(
            config, self.store, self.identity, self.tokens.domain, boot_id=self.boot_id, incarnation=self.incarnation,
            live=self._live, store_older=older, name_of=lambda node_id: self._known_name(node_id),
            arbiter=self.kube.start.universe.universe if self.kube else b"")
        if self.kube is not None and self.ipam is not None:
            self.kube.open(self.ipam)
        self.bridge_address = self._bridge_address()
        self.workers = worker_count(config.workers, os.cpu_count() or 1)

    def _agree(self) -> LaunchConfig:
        """Token, range and universe are the cluster's. The room is loaded in Kubernetes mode alone."""
        from weave_router.kube.room_driver import Room

        self.kube = Room(self.config, self.identity.node_id)
        self.config = self.kube.agree()
        self.tokens = self.kube.start.tokens
        self.universe = Universe(self.config.range_v4, self.kube.start.prefix_v6)
        return self.config

    def _survey(self) -> None:
        """What is below us: refuse a range that would cut the host off; choose the pod MTU once."""
        config = self.config
        own_links = (config.bridge, config.tap)
        ipr = netlink_driver.open_netlink()
        try:
            sentence = overlap.overlap(
                (self.universe.range_v4, self.universe.network_v6), underlay_driver.host_routes(ipr),
                underlay_driver.nameservers(), own_links=own_links)
            if sentence is not None:
                raise UserError(sentence)
            below = underlay_driver.underlay(ipr, literals(config.targets), own_links=own_links)
            self.default_ipv6 = underlay_driver.has_default_route(ipr, AF_INET6)
            with Rtnl() as rtnl:
                self.addresses = self._own_addresses(rtnl)
            self._live = pod_driver.live(ipr, config.bridge)
        finally:
            ipr.close()
        self.underlay_mtu = below.mtu
        stored = self.store.setting("pod_mtu")
        self.pod_mtu = config.mtu or (int(stored) if stored else below.pod_mtu)
        self.store.set_setting("pod_mtu", str(self.pod_mtu))

    def _bridge_address(self) -> IPv4Address | None:
        """IPAM's, and kept; else the operator's, kept too."""
        if self.ipam is not None:
            number = start_driver.choose_bridge(self.ipam, self.store, self.config.bridge_address)
            return None if number is None else IPv4Address(number)
        stored = self.store.setting("bridge_number")
        if self.config.bridge_address:
            address = IPv4Address(self.config.bridge_address)
            self.store.set_setting("bridge_number", str(int(address)))
            return address
        if stored is not None and IPv4Address(int(stored)) in self.universe.range_v4:
            return IPv4Address(int(stored))
        return None

    def _own_addresses(self, rtnl: Rtnl) -> list[str]:
        if self.config.host:
            return [self.config.host]
        return [address for address in kernel_driver.host_addresses(
            rtnl, own_links=(self.config.bridge, self.config.tap)) if not self._inside(address)]

    def _inside(self, address: str) -> bool:
        return self.universe.number_of(ip_address(address)) is not None

    # -- life --------------------------------------------------------------------------------------------------------

    async def main(self) -> None:
        """Everything is loaded, then the fast path begins; it ends last."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        async with contextlib.AsyncExitStack() as forwarding:
            async with contextlib.AsyncExitStack() as closing:
                await self._load(closing)
                self._begin_forwarding(forwarding)
                loop.add_signal_handler(signal.SIGHUP, self._reread_tokens)
                await self._serve(closing)
            await self._hand_on()

    async def _serve(self, closing: contextlib.AsyncExitStack) -> None:
        """Until told to end."""
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(self.tunnel.run(), name="tunnel")]
            for node_id in self._estate.sessions:
                self.tunnel.want_session(self.routes.slots.of(node_id))
            await self._join(closing)
            running += [
                tasks.create_task(self._handover.serve(), name="attach.sock"),
                tasks.create_task(self._look(), name="look"),
                tasks.create_task(self.firewall.run(), name="firewall"),
                tasks.create_task(self._cni_files.serve(self.cni.drain), name="cni files"),
            ]
            if self.config.uninstall:
                running.append(tasks.create_task(self._until_the_last_pod(), name="uninstall"))
            elif self.config.install_cni and self.bridge_address is not None:  # the list calls for pods
                follow = install_driver.follow(Path(self.config.run_dir), Path(self.config.state_dir))
                running.append(tasks.create_task(follow, name="install cni"))
            if self.ipam_driver is not None:
                running.append(tasks.create_task(self.ipam_driver.run(), name="ipam"))
            if self.kube is not None:
                running.append(tasks.create_task(self.kube.run(), name="kubernetes"))
            _log.info("ready", extra={"node": self.identity.node_id.hex(), "incarnation": self.incarnation,
                                      "pod_mtu": self.pod_mtu, "workers": self.workers})
            await self._stop.wait()
            _log.info("stopping")
            for task in reversed(running):
                task.cancel()

    async def _load(self, closing: contextlib.AsyncExitStack) -> None:
        """All that can stand before the first frame is read; a router before this one forwards meanwhile."""
        config = self.config
        self.host = Host()
        await self.host.open()
        closing.push_async_callback(self.host.close)
        self.firewall = Watch(config.bridge, lambda seen: self.host.tend(seen, config))
        self._make_cores()
        self._inherit()
        tap_driver.make_tap(config.tap)
        standing = await self.host.reattach(self.attachments.standing_plans(), config.bridge)
        await self.host.build(self.bridge, config, self.universe.network_v6, [plan.guard for plan in standing])
        await closing.enter_async_context(self.firewall)
        await self.attachments.restore(standing)
        await self._restore_addresses()
        if self.ipam_driver is not None:
            closing.push_async_callback(self.ipam_driver.close)
        self._cni_files.prepare()

    def _inherit(self) -> None:
        """What the router before this one knew of the others."""
        self._estate = Estate()
        if self._turn.estate:
            try:
                self._estate = decode_estate_untrusted(self._turn.estate)
            except BadPacket as error:
                _log.warning("the router before this one left what cannot be read", extra={"error": error.reason})
        self.mesh.remember(self._estate.records, asyncio.get_running_loop().time())
        self._mesh_events(self.mesh.take_events())

    def _begin_forwarding(self, forwarding: contextlib.AsyncExitStack) -> None:
        """The moment of the hand-over: from the other's last frame to our first. Undone in reverse."""
        lock = self._turn.take()
        self._heirs = succession_driver.Heirs(lock)
        forwarding.callback(self._heirs.close)
        forwarding.callback(lock.release)
        udp = udp_driver.open_udp(self.config.host, self.config.port, self.workers, self.config.refuse)
        forwarding.callback(udp_driver.close_udp, udp)
        tap = tap_driver.open_tap(self.config.tap, self.workers, self.config.refuse)
        forwarding.callback(tap_driver.close_tap, tap)
        self.engine.start(tap.fds, udp.fds, vnet_hdr=tap.vnet_hdr, tap_csum=tap.csum, tap_tso=tap.tso,
                          tap_uso=tap.uso, steered=tap.steering, credits=tap.credits,
                          realtime=realtime_share(self.config, self.workers, os.cpu_count() or 1))
        forwarding.callback(self.engine.stop)
        forwarding.push_async_callback(self._farewell)
        tap_driver.set_carrier(tap, True)
        forwarding.callback(tap_driver.set_carrier, tap, False)
        asyncio.get_running_loop().add_reader(lock.listener, self._heirs.accept)
        forwarding.callback(asyncio.get_running_loop().remove_reader, lock.listener)

    async def _hand_on(self) -> None:
        """Nothing but the fast path runs. To an heir, if one waits; returns when that one has all else loaded."""
        self._writer.shutdown()
        self.store.close()
        if self._heirs.waiting:
            sessions = [one.node_id for one in self.tunnel.status() if one.state is State.ESTABLISHED]
            self._bequeathed = await self._heirs.bequeath(encode_estate(self.mesh.table, sessions))

    async def _farewell(self) -> None:
        """To the peers; an heir's first word to them says more."""
        if not self._bequeathed:
            await self.tunnel.close()

    async def _join(self, closing: contextlib.AsyncExitStack) -> None:
        """Others hear of this node, and people and runtimes find it. The API's server is loaded only here: a third of
        what a start costs, and frames pass without it."""
        config = self.config
        await self.mesh_driver.start()
        closing.push_async_callback(self.mesh_driver.close)
        self.record.announce()
        await self.cni.drain()
        self.targets.set_given(self.store.targets(), config.targets)
        if self.kube is not None:
            self.kube.call_nodes()
        self._handover = HandoverServer(Path(config.run_dir) / ATTACH_SOCKET, self.view.attach, self.view.abandoned)
        server = await asyncio.to_thread(importlib.import_module, "weave_router.api.server")
        await closing.enter_async_context(server.ApiServer(self.view, config.run_dir))

    def _make_cores(self) -> None:
        config = self.config
        mac = None if self.bridge_address is None else mac_text(mac_of(int(self.bridge_address)))
        interfaces = () if self.bridge_address is None else (
            IPv4Interface((self.bridge_address, self.universe.range_v4.prefixlen)),
            IPv6Interface((self.universe.ipv6_of(int(self.bridge_address)), 96)))
        self.bridge = BridgePlan(config.bridge, config.tap, self.pod_mtu, mac, interfaces[: config.families],
                                 config.refuse)
        self.engine = fastpath.Engine(workers=self.workers, mtu=self.pod_mtu, refuse=config.refuse)
        network = self.universe.range_v4
        self.engine.universe_set(int(network.network_address), network.prefixlen, self.universe.prefix_v6)
        self.engine.tokens_set([(token.id, token.mac1_key) for token in self.tokens])
        self.routes = mesh_routes.Routes(self.identity.node_id, (int(network.network_address), network.prefixlen))
        self.peers = Peers(self.identity.node_id, self.universe, self.engine, self.routes)
        self.record = OwnRecord(self.bridge_address, self.peers.other_owner, asyncio.get_running_loop().call_later)
        self.ipam_driver = None
        if self.ipam is not None:
            self.ipam_driver = IpamDriver(self.ipam, self.store, submit=self._writer.submit, say=self._say_ipam,
                                          own=self.peers.blocks_changed, bury=self._bury,
                                          cut=self._cut_off if self.kube is None else None)
            self.peers.blocks_changed(self.ipam.owners())
        subnet = config.default_subnet or network
        settings = PodSettings(network, config.of_pods(self.universe.network_v6), self.bridge, self.bridge_address,
                               self.pod_mtu, self.boot_id, self.default_ipv6, config.refuse, subnet.prefixlen,
                               lambda: self.firewall.state.hairpin, config.ipv6_first)
        self.attachments = Attachments(settings, host=self.host, store=self.store, in_writer=self.in_writer,
                                       announce=self.record.announce_of, owner_of=self.peers.other_owner,
                                       owner_of_mac=self.peers.other_owner_of_mac, addresses=self.ipam_driver,
                                       until_sent=lambda *of: cni_driver.until_sent(lambda: self.mesh.announces(*of)),
                                       keeper=lambda mac: cni_driver.keeper(lambda: self.peers.rival_for_mac(mac)))
        self._make_book()
        self._cni_files = cni_driver.Files(Path(config.state_dir), Path(config.run_dir), self.boot_id)
        self.cni = CniService(settings, self.attachments, self.host, self._cni_files, cni_driver.inode_of,
                              self.universe.number_of, lambda: self.firewall.state.unready, self.refusal)
        self._make_mesh()
        self._make_tunnel()
        self.view = Commands(Parts(
            config=self._shown_config(), node_id=self.identity.node_id, incarnation=self.incarnation,
            started_at=self.started_at, universe=self.universe, pod_mtu=self.pod_mtu, engine=self.engine,
            tunnel=self.tunnel, mesh=self.mesh, routes=self.routes, attachments=self.attachments, tokens=self.tokens,
            terminations=self._terminations, counts=lambda: self._tunnel_core.counts, warnings=self._warnings,
            firewall=self.firewall.now, book=self.book, kube=self.kube, refusal=self.refusal), self)
        self._known_name = self.view.name_of
        self.peers.join(self.mesh, self.tunnel, endpoints=self._endpoints, name_of=self.view.name_of)
        self.record.join(self.mesh_driver, self.attachments, self.ipam, self.book)
        if self.kube is not None and self.ipam_driver is not None:
            self.kube.join(self.ipam_driver, self.mesh_driver, self.attachments,
                           use_targets=self.targets.set_nodes, use_tokens=self._use_tokens, submit=self._writer.submit)

    def _shown_config(self) -> LaunchConfig:
        address = "" if self.bridge_address is None else str(self.bridge_address)
        return msgspec.structs.replace(self.config, bridge_address=address)

    def _make_mesh(self) -> None:
        config = self.config
        self.mesh = Mesh(
            mesh_events.Config(name=config.name, port=config.port, endpoints=self._endpoints(), pod_mtu=self.pod_mtu,
                               flags=FLAG_PLAINTEXT * config.plaintext | FLAG_NO_AES * (not self.aes),
                               discovery=not config.no_discovery,
                               version=__version__, trusted=config.trusted_subnets,
                               nickname=config.nickname if config.nickname != config.name else "",
                               link_limit=config.conn_limit or limits.LINKS_MAX),
            identity=self.identity, tokens=self.tokens, incarnation=self.incarnation, run=self.store.run_nonce,
            rng=Random(os.urandom(16)), entropy=os.urandom, now=asyncio.get_running_loop().time())
        self.mesh_driver = MeshDriver(self.mesh, host=config.host or None, port=config.port,
                                      on_events=self._mesh_events)
        self.targets = Targets(self.mesh_driver, config.port)

    def _endpoints(self) -> tuple[Endpoint, ...]:
        return tuple((address, self.config.port) for address in self.addresses)[: limits.RECORD_ENDPOINTS_MAX]

    def _make_tunnel(self) -> None:
        config = self.config
        self._tunnel_core = Tunnel(
            self.identity, self.tokens, self.incarnation, rng=os.urandom, timers=timers_from_environment(os.environ),
            plaintext=config.plaintext, aes=self.aes, counter_start=self._counter_start,
            counter_reserved=self._counter_start + limits.COUNTER_BLOCK, underlay_mtu=self.underlay_mtu,
            pod_mtu=self.pod_mtu, port=config.port,
            local_addresses=frozenset(self.addresses), trusted=Trust(config.trusted_subnets))
        self.tunnel = TunnelDriver(
            self.engine, self._tunnel_core, store=self.store, run_in_writer=self.in_writer,
            seen=self.store.peers_seen(), on_changed=self._connection_changed, on_pod_mtu=self._pod_mtu_heard,
            on_event=lambda event: self.record.engine_event(event, time.monotonic()))

    async def in_writer(self, work: Callable[[], T]) -> T:
        """On the store's one thread."""
        return await asyncio.wrap_future(self._writer.submit(work))

    async def _until_the_last_pod(self) -> None:
        """Then the router ends; what follows is router_leave_driver.py's."""
        said = ""
        while attached := self.attachments.all():
            waits = router_leave_driver.waits_for(attached)
            if waits != said:
                _log.info("uninstall", extra={"waits": waits})
            said = waits
            await asyncio.sleep(UNINSTALL_LOOK_SECONDS)
        self.last_pod_gone = True
        self._stop.set()

    def refusal(self) -> str:
        """Why no pod is let in any more; empty: all are."""
        return router_leave_driver.waits_for(self.attachments.all()) if self.config.uninstall else ""

    # -- the mesh speaks -----------------------------------------------------------------------------------------------

    def _mesh_events(self, events: list[mesh_events.Event]) -> None:
        for event in events:
            match event:
                case Delta():
                    self.peers.record_changed(event)
                case mesh_events.LinkUp():
                    self.peers.link_up(event.node_id, event.remote[0])
                    self._tell_ipam(lambda ipam, now, node=event.node_id: ipam.link_up(node, now))
                case mesh_events.IpamHeard():
                    self._tell_ipam(lambda ipam, now, e=event: ipam.receive(e.node_id, e.data, now))
                case mesh_events.LinkDown():
                    self._tell_ipam(lambda ipam, now, node=event.node_id: ipam.link_down(node, now))
                    self._terminations[event.reason] = self._terminations.get(event.reason, 0) + 1
                    _log.info("link down", extra={"peer": event.node_id.hex(), "reason": event.reason})
                case mesh_events.RestoredState():
                    self._jumping = asyncio.ensure_future(self._jump(event.incarnation))
                case mesh_events.CloneSeen():
                    _log.error("another running node has our identity: a copied state directory")
                    self._tell_ipam(lambda ipam, now: ipam.halt(CLONE))
                case _:
                    pass

    async def _jump(self, incarnation: int) -> None:
        self.incarnation = await self.in_writer(lambda: self.store.raise_incarnation(above=incarnation))
        self.tunnel.incarnation_set(self.incarnation)
        self.mesh_driver.do(lambda mesh, now: mesh.set_incarnation(self.incarnation, now))
        self._tell_ipam(lambda ipam, now: ipam.boot(self.boot_id, self.incarnation, {}, True, now))

    # -- addresses -----------------------------------------------------------------------------------------------------

    def _tell_ipam(self, action: Callable[..., Any]) -> None:
        if self.ipam_driver is not None:
            self.ipam_driver.do(action)

    def _say_ipam(self, words: Iterable[tuple[bytes, bytes]]) -> None:
        self.mesh_driver.do(lambda mesh, now: mesh.say_ipam(words, now))

    def _bury(self, retired: frozenset[bytes]) -> None:
        """Of machines that are off for ever no record is kept."""
        for node_id in retired:
            self.mesh_driver.do(lambda mesh, now, node_id=node_id: mesh.bury(node_id, now))  # type: ignore[misc]

    def _cut_off(self, holders: list[Holder]) -> None:
        self._cutting = asyncio.ensure_future(self.attachments.cut_off(holders))

    def _make_book(self) -> None:
        """People's way to the addresses."""
        self.book = None
        if self.ipam_driver is not None:
            self.book = AddressBook(
                self.ipam_driver, self.universe, self.bridge, self.attachments,
                add=lambda plan, all_: self.host.call(lambda ipr, nft: bridge_driver.add_addresses(ipr, plan, all_)),
                remove=lambda plan, all_: self.host.call(
                    lambda ipr, nft: bridge_driver.remove_addresses(ipr, plan, all_)),
                live=lambda: self.host.call(lambda ipr, nft: pod_driver.live(ipr, self.bridge.name)),
                announce=self.record.announce,
                stored=lambda: self.in_writer(self.store.ipam.load))

    async def _restore_addresses(self) -> None:
        """What `expose` gave the host before, and pods that stand although the store does not know them."""
        if self.ipam_driver is None or self.book is None:
            return
        live = start_driver.holders(self._live)
        findings = self.ipam_driver.do(lambda ipam, now: ipam.reconcile(live, now))
        self._warnings += [f"{IPv4Address(f.number)} is in use by {f.holder}, but {f.problem}" for f in findings]
        if self.kube is not None:  # what was taken from us stays off
            await self.attachments.cut_off([f.holder for f in findings])
        await self.book.show(self.book.exposed())

    # -- the fast path and the tunnel speak ----------------------------------------------------------------------------

    def _connection_changed(self, change: effects.Changed) -> None:
        _log.info("connection", extra={"peer": change.node_id.hex(), "state": str(change.state),
                                       "reason": change.reason.value if change.reason else "-"})

    def _pod_mtu_heard(self, slot: int, mtu: int) -> None:
        node_id = self.routes.slots.node(slot)
        _log.info("pod MTU", extra={"peer": node_id.hex() if node_id else slot, "mtu": mtu})

    # -- slow facts ----------------------------------------------------------------------------------------------------

    async def _look(self) -> None:
        with kernel_driver.AddressChanges() as changes:
            while True:
                await asyncio.sleep(LOOK_SECONDS)
                self.peers.answer_or_not(time.monotonic())
                self.record.expire_groups(time.monotonic())
                if changes.heard():
                    await self._look_at_addresses()

    async def _look_at_addresses(self) -> None:
        addresses = await self.host.ask(self._own_addresses)
        if addresses != self.addresses:
            self.addresses = addresses
            self.tunnel.local_addresses_set(frozenset(addresses))
            self.mesh_driver.do(lambda mesh, now: mesh.set_endpoints(self._endpoints(), now))
            self.peers.all_again()

    def _reread_tokens(self) -> None:
        if not self.config.token_file:
            return  # the Secret is watched
        try:
            tokens = load_tokens(self.config.token_file)
            if tokens.domain != self.tokens.domain:
                raise UsageError(f"token file {self.config.token_file} is of another domain: restart the router to "
                                 "move it to another cluster")
        except UserError as error:
            _log.error("tokens stay as they are", extra={"error": str(error)})
            return
        self._use_tokens(tokens)

    def _use_tokens(self, tokens: TokenSet) -> None:
        self.tokens = tokens
        self.engine.tokens_set([(token.id, token.mac1_key) for token in tokens])
        self.view.set_tokens(tokens)
        self.tunnel.tokens_set(tokens)
        self.mesh_driver.do(lambda mesh, now: mesh.tokens_set(tokens, now))
        _log.info("tokens reread", extra={"sending": f"{tokens.first.id:08x}", "accepted": len(tokens.ids)})

def run_directory(path: str) -> Path:
    directory = Path(path)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--run-dir {path} cannot be made: {error.strerror}; choose another one") from None
    return directory
