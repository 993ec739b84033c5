"""Carries the core out: three watches, one call at a time, events, and the files in which a start finds what was so.

Decides nothing but when to read a socket. Made by router.py; ``act`` is the addresses' door (every input to the core
may change them), ``changed`` tells the router of new targets and tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from weave_router import limits
from weave_router.errors import BadPacket

from . import objects
from .core import Kube
from .values import Answer, Call, World, back_off
from .watch import Watch, WatchEnded

if TYPE_CHECKING:
    from .api_driver import Api

T = TypeVar("T")
_log = logging.getLogger(__name__)

TICK_SECONDS: Final = 1.0
EVENT_SECONDS: Final = 5.0
POLICY_SECONDS: Final = 600.0
POLICY: Final = ("there are NetworkPolicy objects and nothing enforces them: weave-router carries all traffic between "
                 "pods; install a policy engine, or remove them")


class KubeDriver:
    """``act(work)`` runs ``work(now)`` with the addresses behind it; ``world`` looks at the other rooms."""

    def __init__(self, core: Kube, api: Api, rng: Random, *, act: Callable[[Callable[[float], Any]], Any],
                 world: Callable[[], World], changed: Callable[[], None]) -> None:
        self.core = core
        self._api = api
        self._rng = rng
        self._act = act
        self._world = world
        self._changed = changed
        namespace = core.settings.namespace
        label = {"labelSelector": f"{objects.LABEL}={objects.NAME}"}
        self._watches = (
            (Watch("nodes", "api/v1/nodes"), self._nodes_listed, self._node),
            (Watch("leases", f"apis/coordination.k8s.io/v1/namespaces/{namespace}/leases", label),
             self._leases_listed, self._lease),
            (Watch("secrets", f"api/v1/namespaces/{namespace}/secrets",
                   {"fieldSelector": f"metadata.name={objects.NAME}"}), self._secrets_listed, self._secret),
        )
        self._poke = asyncio.Event()
        self._names: dict[str, str] = {}

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for watch, listed, seen in self._watches:
                tasks.create_task(self._follow(watch, listed, seen), name=f"watch {watch.kind}")
            tasks.create_task(self._tick(), name="kube tick")
            tasks.create_task(self._call(), name="kube calls")
            tasks.create_task(self._events(), name="kube events")
            tasks.create_task(self._policies(), name="kube policies")

    def poke(self) -> None:
        """Addresses changed: is a block to be claimed?"""
        self._poke.set()

    def input(self, work: Callable[[float], T]) -> T:
        result: T = self._act(work)
        self._changed()
        self._poke.set()
        return result

    # -- watches -------------------------------------------------------------------------------------------------------

    async def _follow(self, watch: Watch, listed: Callable[[list[Any]], None], seen: Callable[..., None]) -> None:
        found: list[Any] = []
        while True:
            began = time.monotonic()
            try:
                if not watch.version:
                    if watch.first_page:
                        found = []
                    await self._page(watch, listed, found)
                else:
                    await self._lines(watch, seen)
                watch.failures = 0
            except WatchEnded as ended:
                sentence = f"the watch of {watch.kind} is broken: {ended}"
                if ended.status == 403:
                    sentence += "; forbidden: compare the Role with docs/kubernetes.md"
                _log.warning("watch", extra={"kind": watch.kind, "error": str(ended)})
                self.core.unsynced(watch.kind, sentence)
                failures = watch.ended(time.monotonic() - began)
                await asyncio.sleep(max(ended.after, back_off(failures, self._rng)))

    async def _page(self, watch: Watch, listed: Callable[[list[Any]], None], found: list[Any]) -> None:
        answer = await self._api.request(watch.request(self._rng))
        for item in watch.read_page(answer):
            if len(found) < limits.KUBE_OBJECTS_MAX:
                with contextlib.suppress(BadPacket):
                    found.append(self._read(watch.kind, item))
        if watch.version:
            _log.debug("listed", extra={"kind": watch.kind, "objects": len(found)})
            listed(found)

    async def _lines(self, watch: Watch, seen: Callable[..., None]) -> None:
        async with self._api.watch(watch.request(self._rng)) as lines:
            if isinstance(lines, Answer):
                raise watch.refused(lines)
            self.core.resumed(watch.kind)
            async for line in lines:
                event = watch.read_line(line)
                if event is None:
                    continue
                with contextlib.suppress(BadPacket):
                    seen(self._read(watch.kind, event[1]), event[0] == "DELETED")

    def _read(self, kind: str, data: msgspec.Raw) -> Any:
        """What cannot be read is counted and named; a Lease without a readable one behind it is nobody's."""
        try:
            if kind == "nodes":
                return objects.node_untrusted(data)
            if kind == "leases":
                name = objects.read_untrusted(data, objects.RawLease).metadata.name
                if name == objects.UNIVERSE:
                    return objects.universe_untrusted(data)
                return objects.lease_untrusted(data, self.core.settings.range_v4)
            return objects.secret_text_untrusted(data)
        except BadPacket as error:
            self.core.counts[error.reason] = self.core.counts.get(error.reason, 0) + 1
            if kind == "secrets":
                self.core.secret_unusable(error.reason)
            elif kind == "leases":
                self.core.warn("a Lease", f"a Lease with our label is not ours: {error.reason}", "LeaseForeign")
            raise

    def _nodes_listed(self, found: list[Any]) -> None:
        self.input(lambda now: self.core.nodes_listed(found, now))

    def _node(self, node: objects.Node, deleted: bool) -> None:
        self.input(lambda now: self.core.node_changed(node, deleted, now))

    def _leases_listed(self, found: list[Any]) -> None:
        for each in found:
            if isinstance(each, objects.UniverseLease):
                self._lease(each, False)
        leases = [lease for lease in found if isinstance(lease, objects.Lease)]
        self.input(lambda now: self.core.leases_listed(leases, now))

    def _lease(self, lease: objects.Lease | objects.UniverseLease | None, deleted: bool) -> None:
        if isinstance(lease, objects.Lease):
            self.input(lambda now: self.core.lease_changed(lease, deleted, now))
        elif isinstance(lease, objects.UniverseLease) and not deleted:
            self.input(lambda now: self.core.universe_seen(lease, now))

    def _secrets_listed(self, found: list[Any]) -> None:
        self.input(lambda now: self.core.secret_seen(found[0] if found else None, now))

    def _secret(self, text: str, deleted: bool) -> None:
        self.input(lambda now: self.core.secret_seen(None if deleted else text, now))

    # -- calls and time ------------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        while True:
            self.input(lambda now: self.core.handle_timer(now, self._world()))
            await asyncio.sleep(TICK_SECONDS)

    async def _call(self) -> None:
        while True:
            call = self._act(self.core.next_call)
            if call is None:
                with contextlib.suppress(TimeoutError):  # not wait_for: until 3.12 it may swallow a cancellation
                    async with asyncio.timeout(TICK_SECONDS):
                        await self._poke.wait()
                self._poke.clear()
                continue
            answer = await self._api.request(call)
            _log.debug("call", extra={"method": call.method, "path": call.path, "status": answer.status})
            self.input(lambda now, answer=answer: self.core.answered(answer, now))  # type: ignore[misc]

    async def _events(self) -> None:
        """All that wait, a while apart; what found no API server is told when there is one."""
        while True:
            await asyncio.sleep(EVENT_SECONDS)
            while (event := self.core.events.next()) is not None:
                body = objects.event_body(event.node, event.uid, event.reason, event.message, event.kind, utc(),
                                          event.key or os.urandom(8).hex(), self.core.settings.node)
                answer = await self._api.request(Call("POST", "api/v1/namespaces/default/events", "event", body=body))
                if answer.may_change:
                    self.core.events.refused(event)
                    break

    async def _policies(self) -> None:
        """Nobody enforces them: said once they are there."""
        while True:
            answer = await self._api.request(Call("GET", "apis/networking.k8s.io/v1/networkpolicies", "policies",
                                                  params={"limit": "1"}))
            with contextlib.suppress(BadPacket):
                if answer.status == 200:
                    some = objects.read_untrusted(answer.body, objects.Page).items
                    self.core.warn("policies", POLICY if some else "", "NetworkPolicyIgnored")
            await asyncio.sleep(POLICY_SECONDS)


def utc() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
