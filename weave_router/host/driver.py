"""The door of this room for the event loop: one worker thread that holds the host's netlink and nft.

Decides nothing: it carries out plans, one after the other, in the order they were asked for. Called by the composition
root. What runs before there is a loop (locks, TAP, UDP port, doctor, reset) is called directly.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Network, IPv6Network
from typing import TypeVar

from weave_router.host import bridge_driver, look_driver, netfilter, pod_driver, tap_driver
from weave_router.host.bridge import BridgePlan
from weave_router.host.faults import HostError
from weave_router.host.look_driver import Seen
from weave_router.host.netfilter import PortGuard
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
        self, plan: BridgePlan, universe_v4: IPv4Network, universe_v6: IPv6Network | None, guards: Sequence[PortGuard]
    ) -> None:
        """Guards first, then the bridge: no moment without them. ``guards``: of the pods that still stand."""

        def work(ipr: Netlink, nft: Nft) -> None:
            nft.run(netfilter.tables(plan.name, universe_v4, universe_v6, guards), "load the rules")
            tap_driver.prepare_link(ipr, plan.tap)
            bridge_driver.ensure(ipr, plan)

        await self.call(work)

    async def attach(self, plan: PodPlan, bridge: BridgePlan, netlink: int, netns: int) -> tuple[Attached, list[str]]:
        """Wire a pod; both descriptors stay the caller's. Also what had been changed at the bridge, now put back."""

        def work(ipr: Netlink, nft: Nft) -> tuple[Attached, list[str]]:
            with Rtnl(netlink) as inside:
                attached = pod_driver.attach(self._rtnl, nft, plan, inside, netns)
            return attached, _mend(self._rtnl, ipr, bridge)

        return await self.call(work)

    async def mend(self, bridge: BridgePlan) -> list[str]:
        """What something changed at the bridge, in words; it is put back."""
        return await self.call(lambda ipr, nft: _mend(self._rtnl, ipr, bridge))

    async def detach(self, guard: PortGuard) -> bool:
        """Off the network when this returns; the pair is deleted with others a moment later."""
        stood = await self.call(lambda ipr, nft: pod_driver.detach(self._rtnl, nft, guard))
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


def _mend(rtnl: Rtnl, ipr: Netlink, bridge: BridgePlan) -> list[str]:
    problems = bridge_driver.verify(rtnl, bridge)
    if problems:
        bridge_driver.ensure(ipr, bridge)
    return problems
