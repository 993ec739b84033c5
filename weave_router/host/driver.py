"""The door of this room for the event loop: one worker thread that holds the host's netlink and nft, one that deletes.

Decides nothing: it carries out plans, one after the other, in the order they were asked for. Deleting a pair takes 10
to 20 ms, in which the kernel lets everybody else go on; so it has a thread and a netlink of its own. Called by the
composition root. What runs before there is a loop (locks, TAP, UDP port, doctor, reset) is called directly.
"""

import asyncio
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import IPv6Network
from typing import Any, Generic, TypeVar

from weave_router.config import LaunchConfig
from weave_router.host import bridge_driver, look_driver, netfilter, pod_driver, tap_driver
from weave_router.host.bridge import BridgePlan, wants_hairpin
from weave_router.host.faults import Fault, HostError
from weave_router.host.forwarding import Firewall
from weave_router.host.look_driver import Seen
from weave_router.host.netfilter import TABLE, TABLES, PortGuard, TablesPlan
from weave_router.host.netlink_driver import Netlink, open_netlink
from weave_router.host.nft_driver import Nft
from weave_router.host.pod import Attached, PodPlan
from weave_router.host.pod_driver import Leaving
from weave_router.host.rtnl_driver import Rtnl
from weave_router.limits import MENDED_SHOWN, PUT_OFF_SECONDS, SOON_SECONDS

A = TypeVar("A")
T = TypeVar("T")
_log = logging.getLogger(__name__)


class Soon:
    """``work`` once, a moment after it was first asked for, however often that was; while it is ``busy`` later, if that
    is not for long. What fails is logged: the next pod asks again."""

    def __init__(self, work: Callable[[], Awaitable[None]], busy: Callable[[], bool] = bool) -> None:
        self._work = work
        self._busy = busy
        self.task: asyncio.Task[None] | None = None

    def ask(self) -> None:
        if self.task is None:
            self.task = asyncio.create_task(self._run())

    def cancel(self) -> None:
        if self.task is not None:
            self.task.cancel()

    async def _run(self) -> None:
        last = time.monotonic() + PUT_OFF_SECONDS
        waits = True
        while waits:
            await asyncio.sleep(SOON_SECONDS)
            waits = self._busy() and time.monotonic() < last
        self.task = None  # who asks from now on is not sure to be in this
        try:
            await self._work()
        except HostError as error:
            _log.warning("%s", error)


class Together(Generic[A, T]):
    """What is asked for while the thread is busy, and what the loop has at hand when the first asks, is carried out by
    one call of ``work``, which gives an answer or an error for each, in order: a list all at once, an iterator one by
    one. Asked and answered in the loop's thread."""

    def __init__(self, thread: ThreadPoolExecutor, work: Callable[[list[A]], Iterable[T | Exception]]) -> None:
        self._thread = thread
        self._work = work
        self._waiting: list[tuple[A, asyncio.Future[T]]] = []
        self._lock = threading.Lock()

    async def __call__(self, item: A) -> T:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        with self._lock:
            self._waiting.append((item, future))
            if len(self._waiting) == 1:
                loop.call_soon(self._start, loop)
        return await future

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            self._thread.submit(self._run, loop)
        except RuntimeError as error:  # it was shut down
            waiting = self._take()
            _answer_all([future for _, future in waiting], [error] * len(waiting))

    def _take(self) -> "list[tuple[A, asyncio.Future[T]]]":
        with self._lock:
            waiting, self._waiting = self._waiting, []
        return waiting

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        waiting = self._take()
        futures = [future for _, future in waiting]
        try:
            answers = self._work([item for item, _ in waiting])
            if isinstance(answers, list):
                loop.call_soon_threadsafe(_answer_all, futures, answers)
                return
            for answer in answers:
                loop.call_soon_threadsafe(_answer, futures.pop(0), answer)
        except Exception as error:
            loop.call_soon_threadsafe(_answer_all, futures, [error] * len(futures))


def _answer_all(futures: "list[asyncio.Future[T]]", answers: Sequence[T | Exception]) -> None:
    for future, answer in zip(futures, answers, strict=True):
        _answer(future, answer)


def _answer(future: "asyncio.Future[T]", answer: T | Exception) -> None:
    if future.cancelled():
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)


class Host:
    """``open`` first, ``close`` last; in between any method, from the loop's thread."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="host")
        self._reaper = ThreadPoolExecutor(1, thread_name_prefix="reaper")
        self._ipr: Netlink = None
        self._rtnl: Rtnl
        self._reaper_rtnl: Rtnl
        self._nft: Nft | None = None
        self._beginning = Together(self._thread, self._begin_all)
        self._detaching = Together(self._thread, self._detach_all)
        self._asked_at = 0.0
        """When a pod came or went last."""
        self._closed: deque[int] = deque()
        self._reap = Soon(self._delete_detached, lambda: time.monotonic() < self._asked_at + SOON_SECONDS)
        self._look = Soon(self._look_at_bridge)
        self._bridge: BridgePlan
        self.mended: list[str] = []
        """What was found changed at the bridge and put back, the latest last."""
        # Of the room's thread alone: what our tables must hold, to make them anew when something flushed them.
        self._tables: TablesPlan | None = None
        self._rules: frozenset[str] = frozenset()
        self._guards: dict[str, PortGuard] = {}
        self._reloads = 0

    async def open(self) -> None:
        await self._run(self._open)

    async def close(self) -> None:
        """Pairs that wait for their deletion are deleted first."""
        self._reap.cancel()
        self._look.cancel()
        if self._ipr is not None:
            await self._delete_detached()  # also waits for a deletion under way
        await self._run(self._close)
        self._thread.shutdown()  # both have nothing more to do
        self._reaper.shutdown()

    async def call(self, work: Callable[[Netlink, Nft], T]) -> T:
        """Run it on the room's thread, with its netlink and nft."""
        return await self._run(lambda: work(self._ipr, self._opened_nft()))

    async def ask(self, work: Callable[[Rtnl], T]) -> T:
        """Likewise, with its bare netlink."""
        return await self._run(lambda: work(self._rtnl))

    async def build(
        self, plan: BridgePlan, config: LaunchConfig, universe_v6: IPv6Network | None, guards: Sequence[PortGuard]
    ) -> None:
        """Guards first, then the bridge: no moment without them. ``guards``: of the pods that still stand."""

        def work(ipr: Netlink, nft: Nft) -> None:
            self._tables = TablesPlan(plan.name, config.range_v4, universe_v6, config.no_masq_local, plan.mac)
            self._guards = {guard.port: guard for guard in guards}
            self._load(nft)
            tap_driver.prepare_link(ipr, plan.tap)
            bridge_driver.ensure(ipr, plan)

        await self.call(work)

    async def attach(
        self, plan: PodPlan, bridge: BridgePlan, netlink: int, netns: int, keep: Coroutine[Any, Any, None]
    ) -> Attached:
        """Wire a pod while its record is kept, and open it when that is on disk; whatever fails, nothing stays.
        Both descriptors are the caller's. The bridge is looked at a moment later."""
        self._asked_at = time.monotonic()
        inside = Rtnl(netlink)
        try:
            kept = asyncio.ensure_future(keep)
            wired = asyncio.ensure_future(self._beginning((plan, inside, netns)))
            both: tuple[asyncio.Future[Any], ...] = (wired, kept)
            await asyncio.wait(both)
            failure, half = kept.exception(), wired.result()
            if failure is None:
                return await self.call(lambda ipr, nft: self._finish(nft, half))
            await self.call(lambda ipr, nft: self._abandon(nft, half))
            raise failure
        finally:
            self._thread.submit(inside.close)  # behind whatever still uses it
            self._bridge = bridge
            self._look.ask()

    def _begin_all(self, wanted: list[tuple[PodPlan, Rtnl, int]]) -> Iterator[pod_driver.Half | Exception]:
        """One after the other, behind one transaction with the guards of all; if that fails, each by itself."""
        nft = self._opened_nft()
        try:
            plans = pod_driver.enter(self._rtnl, nft, [plan for plan, _, _ in wanted])
        except HostError as error:
            yield from [error] if len(wanted) == 1 else (
                answer for one in wanted for answer in self._begin_all([one]))  # fmt: skip
            return
        for plan, (_, inside, netns) in zip(plans, wanted, strict=True):
            try:
                half = pod_driver.begin(self._rtnl, nft, plan, inside, netns)
                self._guards[plan.port] = plan.guard
                yield half
            except (HostError, OSError) as error:
                yield error

    def _finish(self, nft: Nft, half: pod_driver.Half) -> Attached:
        try:
            return pod_driver.finish(self._rtnl, nft, half)
        except BaseException:
            self._guards.pop(half.plan.port, None)
            raise

    def _abandon(self, nft: Nft, half: pod_driver.Half) -> None:
        self._guards.pop(half.plan.port, None)
        pod_driver.abandon(self._rtnl, nft, half)

    async def detach(self, guard: PortGuard, index: int = 0) -> None:
        """Off the network when this returns; the pair is deleted with others a moment later. ``index``: of the port's
        link, 0 where it is not known."""
        self._asked_at = time.monotonic()
        try:
            await self._detaching(Leaving(guard, index))
        finally:
            self._reap.ask()

    def _detach_all(self, leaving: list[Leaving]) -> Iterable[int | Exception]:
        for one in leaving:
            self._guards.pop(one.guard.port, None)
        done = pod_driver.detach(self._rtnl, self._opened_nft(), leaving)
        self._closed.extend(index for index in done if isinstance(index, int) and index)
        return done

    async def cut_off(self, port: str) -> None:
        """Down for good: its pod lost its address."""
        await self.call(lambda ipr, nft: pod_driver.cut_off(ipr, port))

    async def look(self, plan: PodPlan, netlink: int) -> Seen:
        """What of the plan stands, at both ends; the descriptor stays the caller's."""

        def work(ipr: Netlink, nft: Nft) -> Seen:
            inside = open_netlink(os.dup(netlink))
            try:
                return look_driver.look(ipr, inside, plan)
            finally:
                inside.close()

        return await self.call(work)

    async def gone(self, names: Sequence[str]) -> set[str]:
        """Those of these pod ports that stand no more: the kernel takes a port away with its pod's namespace."""

        def work(ipr: Netlink, nft: Nft) -> set[str]:
            missing = set(names) - {link.name for link in pod_driver.ports(self._rtnl)}
            return {name for name in missing if not pod_driver.stands(self._rtnl, name)}

        return await self.call(work)

    async def reattach(self, plans: Sequence[PodPlan], bridge: str) -> list[PodPlan]:
        """Those that stand. What a router that was killed had half wired, or detached and not deleted, goes soon."""
        self._reap.ask()
        return await self.call(lambda ipr, nft: pod_driver.reattach(ipr, plans, bridge))

    async def tend(self, seen: Firewall, config: LaunchConfig) -> Firewall:
        """Our own tables, the bridge's switches and the ports' hairpin as they should be; ``seen`` completed."""
        bridge = config.bridge

        def work(ipr: Netlink, nft: Nft) -> Firewall:
            self._restore(nft)
            unready = _switch_netfilter(ipr, bridge, config.bridge_netfilter)
            passes = bridge_driver.has_netfilter(ipr, bridge)
            hairpin = wants_hairpin(config.hairpin, passes)
            pod_driver.set_hairpin(self._rtnl, ipr, hairpin)
            return replace(seen, bridge_netfilter=passes, hairpin=hairpin, unready=unready,
                           healed=seen.healed + self._reloads)  # fmt: skip

        try:
            return await self.call(work)
        except HostError as error:  # somebody took the bridge; the next look puts it back
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
            return netfilter.standing(
                [nft.listing(f"list table {family} {name}", elements=name == TABLE) for family, name in TABLES]
            )
        except HostError:
            return frozenset(), frozenset()

    async def _delete_detached(self) -> None:
        closed = [self._closed.popleft() for _ in range(len(self._closed))]
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._reaper, pod_driver.reap, self._reaper_rtnl, closed)

    async def _look_at_bridge(self) -> None:
        found = await self.call(lambda ipr, nft: _mend(self._rtnl, ipr, self._bridge))
        self.mended = (self.mended + found)[-MENDED_SHOWN:]

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _open(self) -> None:
        self._nft = Nft()
        self._ipr = open_netlink()
        self._rtnl, self._reaper_rtnl = Rtnl(), Rtnl()

    def _close(self) -> None:
        if self._nft is not None:
            self._nft.close()
        if self._ipr is not None:
            self._ipr.close()
            self._rtnl.close()
            self._reaper_rtnl.close()

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
