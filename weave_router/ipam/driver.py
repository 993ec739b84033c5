"""Carries out what service.py decides: rows to the store's writer, words to the mesh, block owners to the fast path.

In order, and words never before their rows are on disk (R2). A write that fails is tried again with the rows as they
are then; what an asker waits for fails with the store's sentence and is taken back. Decides nothing. Made by router.py;
pods come by cni/attachments.py, which keeps an attachment and its address in one transaction.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Final, TypeVar

from weave_router.errors import UserError
from weave_router.store import Store
from weave_router.store_ipam import IpamRows

from .allocator import ExhaustedError, Holder
from .durable import merged
from .service import Service, Step
from .values import Block, NodeId

T = TypeVar("T")
_log = logging.getLogger(__name__)

WRITE_AGAIN_SECONDS: Final = 1.0
DRAIN_SECONDS: Final = 2.0
EXHAUSTED_WAIT_SECONDS: Final = 1.8
"""How long an asker waits for blocks that were asked for; the answer comes within 2 s."""
COMING_WAIT_SECONDS: Final = 5.0
"""The same where gifts have come and settle: a burst of pods may be faster than one after another."""
LOOK_AGAIN_SECONDS: Final = 0.05


def now() -> float:
    """Time that goes on while the machine sleeps: leases and rests are by it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class IpamDriver:
    """``submit``: to the store's writer. ``say``: (neighbour, bytes) in order. ``own``: blocks that changed hands.
    ``bury``: identities that were retired. ``cut``: pods whose addresses were taken; None: another room asks."""

    def __init__(self, service: Service, store: Store, *, submit: Callable[[Callable[[], object]], Future[object]],
                 say: Callable[[Iterable[tuple[NodeId, bytes]]], None],
                 own: Callable[[Mapping[Block, NodeId]], None],
                 bury: Callable[[frozenset[NodeId]], None] = lambda retired: None,
                 cut: Callable[[list[Holder]], None] | None = None) -> None:
        self.service = service
        self.trouble = ""
        """The store's last complaint, while words wait for it."""
        self._store = store
        self._submit = submit
        self._say = say
        self._own = own
        self._bury = bury
        self._cut = cut
        self._waiting: deque[tuple[Step, Future[object] | None]] = deque()
        self._came = asyncio.Event()
        self._idle = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    # -- life --------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled: what was written is said."""
        self.carry()
        while True:
            await self._came.wait()
            self._came.clear()
            while self._waiting:
                made, future = self._waiting[0]
                await self._written(made, future)
                self._waiting.popleft()
                if made.owners:
                    self._own(made.owners)
                if made.retired:
                    self._bury(made.retired)
                if made.words:
                    self._say(made.words)
            self._idle.set()

    async def close(self) -> None:
        """What waits for the disk gets a moment."""
        if self._timer is not None:
            self._timer.cancel()
        with contextlib.suppress(TimeoutError):
            if self._waiting:
                await asyncio.wait_for(self._idle.wait(), DRAIN_SECONDS)

    async def _written(self, made: Step, future: Future[object] | None) -> None:
        while future is not None:
            try:
                if future.done():  # in one commit with what was waited for before
                    future.result()
                else:
                    await asyncio.wrap_future(future)
                self.trouble = ""
                return
            except UserError as error:
                self.trouble = str(error)
                _log.error("addresses wait for the store", extra={"error": str(error)})
            await asyncio.sleep(WRITE_AGAIN_SECONDS)
            rows = self.service.present(made.rows)
            future = self._submit(lambda rows=rows: self._store.ipam.put(rows))  # type: ignore[misc]

    # -- inputs ------------------------------------------------------------------------------------------------------

    def do(self, action: Callable[[Service, float], T]) -> T:
        """Hand the core an input with the time; what follows is on its way when this returns."""
        try:
            return action(self.service, now())
        finally:
            self.carry()

    def carry(self, also: Callable[[], object] | None = None) -> Future[object] | None:
        """Submit the rows of all steps at hand in one transaction, with ``also``; their words wait for it."""
        steps = self.service.take_steps()
        rows = merged(made.rows for made in steps)
        future: Future[object] | None = None
        if also is not None or not rows.empty:
            future = self._submit(lambda: self._put(rows, also))
        if steps:
            words = tuple(word for made in steps for word in made.words)
            owners = {block: owner for made in steps for block, owner in made.owners.items()}
            retired = frozenset(node for made in steps for node in made.retired)
            self._waiting.append((Step(rows, words, owners, retired), None if rows.empty else future))
            self._idle.clear()
            self._came.set()
        if self._cut is not None and self.service.lost:
            lost, self.service.lost = self.service.lost, []
            self._cut(lost)
        self._set_timer()
        return future

    def _put(self, rows: IpamRows, also: Callable[[], object] | None) -> None:
        with self._store.batch():
            if not rows.empty:
                self._store.ipam.put(rows)
            if also is not None:
                also()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        at = self.service.get_timer()
        if at is not None:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, at - now()), self._due)

    def _due(self) -> None:
        self.do(lambda service, at: service.handle_timer(at))

    # -- pods --------------------------------------------------------------------------------------------------------

    async def pick(self, holder: Holder, wanted: int | None) -> int:
        """A number for the holder, in memory: ``keep`` makes it last. The wanted one is claimed."""
        if wanted is not None:
            self.service.claim(holder, wanted, now())
            return wanted
        began = now()
        while True:
            try:
                return self.service.allocate(holder, now())[0]
            except ExhaustedError:
                self.do(lambda service, at: service.want(at))
                longest = COMING_WAIT_SECONDS if self.service.gifts else EXHAUSTED_WAIT_SECONDS
                if now() - began > longest or not self.service.may_grow():
                    raise
            await asyncio.sleep(LOOK_AGAIN_SECONDS)

    def held(self, holder: Holder) -> tuple[int, ...]:
        return self.service.allocator.addresses_of(holder)

    async def keep(self, holder: Holder, work: Callable[[], object] | None = None, but: tuple[int, ...] = ()) -> None:
        """The holder's address and ``work`` are on disk, together, when this returns. If the disk refuses, the holder
        is left with ``but``: what it had before."""
        try:
            await self.written(work)
        except UserError:
            self._release(holder, but)
            self.carry()
            raise

    async def give_back(
        self, holder: Holder, work: Callable[[], object] | None = None, but: tuple[int, ...] = ()
    ) -> None:
        """Released ``but`` these, on disk with ``work``."""
        self._release(holder, but)
        await self.written(work)

    def _release(self, holder: Holder, but: tuple[int, ...]) -> None:
        for number in self.held(holder):
            if number not in but:
                self.service.release(holder, now(), number)

    async def written(self, work: Callable[[], object] | None = None) -> None:
        """All that the core has changed so far, and ``work``, are on disk when this returns."""
        future = self.carry(work)
        if future is not None:
            await asyncio.shield(asyncio.wrap_future(future))

    async def rewrite(self) -> None:
        """Every row again, as the router has it."""
        rows = self.service.all_rows(self._store.ipam.load())
        await asyncio.wrap_future(self._submit(lambda: self._store.ipam.put(rows)))


def written_at_once(service: Service, store: Store) -> None:
    """Before there is a loop: the rows of the start; words have nobody to go to yet."""
    rows = merged(made.rows for made in service.take_steps())
    if not rows.empty:
        store.ipam.put(rows)


__all__ = ["IpamDriver", "now", "written_at_once"]
