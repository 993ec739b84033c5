"""The door of this room for the event loop: one worker thread that holds the host's netlink and nft.

Decides nothing: it carries out plans, one after the other, in the order they were asked for. Called by the composition
root. What runs before there is a loop (locks, TAP, UDP port, doctor, reset) is called directly.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import IPv6Network
from typing import TypeVar

from weave_router.config import LaunchConfig
from weave_router.host import bridge_driver, look_driver, netfilter, pod_driver, tap_driver
from weave_router.host.bridge import BridgePlan, wants_hairpin
from weave_router.host.faults import Fault, HostError
from weave_router.host.forwarding import Firewall
from weave_router.host.look_driver import Seen
from weave_router.host.netfilter import FAMILIES, TABLE, PortGuard, TablesPlan
from weave_router.host.netlink_driver import Netlink, open_netlink
from weave_router.host.nft_driver import Nft
from weave_router.host.pod import Attached, PodPlan
from weave_router.host.rtnl_driver import Rtnl
from weave_router.limits import REAP_SECONDS

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Host:
    """``open`` first, ``close`` last; in between any method, from the loop's thread."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="host")
        self._ipr: Netlink = None
        self._rtnl: Rtnl
        self._nft: Nft | None = None
        self._reap: asyncio.Task[None] | None = None
        # Of the room's thread alone: what our tables must hold, to make them anew when something flushed them.
        self._tables: TablesPlan | None = None
        self._rules: frozenset[str] = frozenset()
        self._guards: dict[str, PortGuard] = {}
        self._reloads = 0

    async def open(self) -> None:
        await self._run(self._open)

    async def close(self) -> None:
        """Pairs that wait for their deletion are deleted first."""
        if self._reap is not None:
            self._reap.cancel()
            await self.call(lambda ipr, nft: pod_driver.reap(self._rtnl))
        await self._run(self._close)
        self._thread.shutdown(wait=False)

    async def call(self, work: Callable[[Netlink, Nft], T]) -> T:
        """Run it on the room's thread, with its netlink and nft."""
        return await self._run(lambda: work(self._ipr, self._opened_nft()))

    async def build(
        self, plan: BridgePlan, config: LaunchConfig, universe_v6: IPv6Network | None, guards: Sequence[PortGuard]
    ) -> None:
        """Guards first, then the bridge: no moment without them. ``guards``: of the pods that still stand."""

        def work(ipr: Netlink, nft: Nft) -> None:
            self._tables = TablesPlan(plan.name, config.range_v4, universe_v6, config.no_masq_local)
            self._guards = {guard.port: guard for guard in guards}
            self._load(nft)
            tap_driver.prepare_link(ipr, plan.tap)
            bridge_driver.ensure(ipr, plan)

        await self.call(work)

    async def attach(self, plan: PodPlan, bridge: BridgePlan, netlink: int, netns: int) -> tuple[Attached, list[str]]:
        """Wire a pod; both descriptors stay the caller's. Also what had been changed at the bridge, now put back."""

        def work(ipr: Netlink, nft: Nft) -> tuple[Attached, list[str]]:
            with Rtnl(netlink) as inside:
                attached = pod_driver.attach(self._rtnl, nft, plan, inside, netns)
            self._guards[attached.port] = replace(plan, port=attached.port).guard
            return attached, _mend(self._rtnl, ipr, bridge)

        return await self.call(work)

    async def mend(self, bridge: BridgePlan) -> list[str]:
        """What something changed at the bridge, in words; it is put back."""
        return await self.call(lambda ipr, nft: _mend(self._rtnl, ipr, bridge))

    async def detach(self, guard: PortGuard) -> bool:
        """Off the network when this returns; the pair is deleted with others a moment later."""

        def work(ipr: Netlink, nft: Nft) -> bool:
            self._guards.pop(guard.port, None)
            return pod_driver.detach(self._rtnl, nft, guard)

        stood = await self.call(work)
        self._reap_soon()
        return stood

    def _reap_soon(self) -> None:
        if self._reap is None:
            self._reap = asyncio.create_task(self._reap_later())

    async def reap(self) -> None:
        """Pairs that wait for their deletion are gone when this returns."""
        await self.call(lambda ipr, nft: pod_driver.reap(self._rtnl))

    async def look(self, plan: PodPlan, netlink: int) -> Seen:
        """What of the plan stands, at both ends; the descriptor stays the caller's."""

        def work(ipr: Netlink, nft: Nft) -> Seen:
            inside = open_netlink(os.dup(netlink))
            try:
                return look_driver.look(ipr, inside, plan)
            finally:
                inside.close()

        return await self.call(work)

    async def ports(self) -> set[str]:
        """Pod ports that stand: the kernel takes a port away with its pod's namespace."""
        return await self.call(lambda ipr, nft: {link.name for link in pod_driver.ports(ipr)})

    async def reattach(self, plans: Sequence[PodPlan]) -> list[PodPlan]:
        """Those that stand. What a router that was killed had detached and not deleted yet goes soon."""
        self._reap_soon()
        return await self.call(lambda ipr, nft: pod_driver.reattach(ipr, plans))

    async def tend(self, seen: Firewall, config: LaunchConfig) -> Firewall:
        """Our own tables, the bridge's switches and the ports' hairpin as they should be; ``seen`` completed."""
        bridge = config.bridge

        def work(ipr: Netlink, nft: Nft) -> Firewall:
            self._restore(nft)
            unready = _switch_netfilter(ipr, bridge, config.bridge_netfilter)
            passes = bridge_driver.has_netfilter(ipr, bridge)
            hairpin = wants_hairpin(config.hairpin, passes)
            pod_driver.set_hairpin(ipr, hairpin)
            return replace(seen, bridge_netfilter=passes, hairpin=hairpin, unready=unready,
                           healed=seen.healed + self._reloads)  # fmt: skip

        try:
            return await self.call(work)
        except HostError as error:  # somebody took the bridge; `mend` says so and puts it back
            return replace(seen, problem=str(error))

    def _load(self, nft: Nft) -> None:
        assert self._tables is not None
        nft.run(netfilter.tables(self._tables, self._guards.values()), "load the rules")
        self._rules, _ = self._standing(nft)

    def _restore(self, nft: Nft) -> None:
        if self._standing(nft) != (self._rules, frozenset(self._guards)):
            self._reloads += 1
            self._load(nft)

    def _standing(self, nft: Nft) -> tuple[frozenset[str], frozenset[str]]:
        try:
            return netfilter.standing([nft.listing(f"list table {family} {TABLE}") for family in FAMILIES])
        except HostError:
            return frozenset(), frozenset()

    async def _reap_later(self) -> None:
        await asyncio.sleep(REAP_SECONDS)
        self._reap = None
        try:
            await self.call(lambda ipr, nft: pod_driver.reap(self._rtnl))
        except HostError as error:  # they are off the network; the next detach tries again
            _log.warning("%s", error)

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _open(self) -> None:
        self._nft = Nft()
        self._ipr = open_netlink()
        self._rtnl = Rtnl()

    def _close(self) -> None:
        if self._nft is not None:
            self._nft.close()
        if self._ipr is not None:
            self._ipr.close()
            self._rtnl.close()

    def _opened_nft(self) -> Nft:
        assert self._nft is not None, "open() first"
        return self._nft


def _switch_netfilter(ipr: Netlink, bridge: str, option: str) -> str:
    """Why the bridge cannot be what was asked for; ``auto`` leaves it as it is."""
    if option == "auto":
        return ""
    try:
        bridge_driver.set_netfilter(ipr, bridge, option == "on")
    except HostError as error:
        if error.fault is not Fault.BRIDGE_NETFILTER:
            raise
        return str(error)
    return ""


def _mend(rtnl: Rtnl, ipr: Netlink, bridge: BridgePlan) -> list[str]:
    problems = bridge_driver.verify(rtnl, bridge)
    if problems:
        bridge_driver.ensure(ipr, bridge)
    return problems
