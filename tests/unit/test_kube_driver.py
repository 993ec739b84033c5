"""The Kubernetes driver for twenty minutes of virtual time on the API server of kube_api.py: what it asks in quiet."""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from ipaddress import IPv4Network
from random import Random
from typing import Any

from unit import virtual_loop
from unit.kube_api import ApiModel, Router, Sim

from weave_router.kube.driver import KubeDriver
from weave_router.kube.events import lost_event
from weave_router.kube.values import Answer, Call, World
from weave_router.tunnel.token import Token, TokenSet

SECONDS = 1200.0
REQUESTS_A_MINUTE = 1
BOOKMARK_SECONDS = 60.0


class Api:
    """What api_driver.py gives, without a network: a watch shows bookmarks and ends when its time is over."""

    def __init__(self, model: ApiModel) -> None:
        self.model = model
        self.asked: Counter[str] = Counter()

    async def request(self, call: Call) -> Answer:
        self.asked[f"{call.method} {call.purpose}"] += 1
        await asyncio.sleep(0.01)
        return self.model.request(call)

    @contextlib.asynccontextmanager
    async def watch(self, call: Call) -> AsyncIterator[AsyncIterator[bytes]]:
        self.asked["watch"] += 1
        yield self._lines(call)

    async def _lines(self, call: Call) -> AsyncIterator[bytes]:
        end = asyncio.get_running_loop().time() + float(call.params["timeoutSeconds"])
        seen = int(call.params["resourceVersion"])
        while (left := end - asyncio.get_running_loop().time()) > 0:
            for version, path, kind, each in self.model.log:
                if version > seen and path.startswith(call.path):
                    seen = version
                    yield json.dumps({"type": kind, "object": each}).encode()
            await asyncio.sleep(min(1.0, left))
        yield json.dumps({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(seen)}}}).encode()


async def quiet_time(router: Router, api: Api, held: TokenSet) -> Counter[str]:
    """What is asked in it, after everything was found and claimed."""
    clock = asyncio.get_running_loop().time
    router.core.held = held

    def act(work: Any) -> Any:
        return work(clock())

    world = World(serving=True, utc="2026-01-01T00:00:00Z")
    driver = KubeDriver(router.core, api, Random(1), act=act, world=lambda: world, changed=lambda: None)
    task = asyncio.create_task(driver.run())
    while not (len(router.blocks.owned()) == 2 and router.core.own and router.core.own.available):
        await asyncio.sleep(1)
        assert clock() < 60
    await asyncio.sleep(30)
    api.asked.clear()
    await asyncio.sleep(SECONDS)
    assert not task.done()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return api.asked


def test_an_idle_node_asks_once_a_minute_at_most_beside_its_watches() -> None:
    sim = Sim()
    router = sim.add("a", appetite=2)
    held = TokenSet([Token.new(Random(1).randbytes)])
    asked = virtual_loop.run(quiet_time(router, Api(sim.api), held))
    watches = asked.pop("watch")
    assert 0 < sum(asked.values()) <= REQUESTS_A_MINUTE * SECONDS / 60, asked
    assert watches <= 3 * SECONDS / 300
    assert not [what for what in asked if not what.startswith("GET")], asked


class Reluctant(Api):
    """Answers events by these statuses, then takes them. ``names``: of those that it took."""

    def __init__(self, model: ApiModel, statuses: list[int]) -> None:
        super().__init__(model)
        self.statuses = statuses
        self.taken: list[str] = []
        self.names: list[str] = []
        self.done = asyncio.Event()

    async def request(self, call: Call) -> Answer:
        if self.statuses:
            return Answer(self.statuses.pop(0))
        body = json.loads(call.body)
        self.taken.append(body["message"])
        self.names.append(body["metadata"]["name"])
        self.done.set()
        return Answer(201)


async def told(router: Router, api: Reluctant) -> list[str]:
    driver = KubeDriver(router.core, api, Random(1), act=lambda work: None, world=World, changed=lambda: None)
    task = asyncio.create_task(driver._events())
    async with asyncio.timeout(600):
        await api.done.wait()
    task.cancel()
    return api.taken


def test_an_event_waits_for_an_api_server_that_takes_it() -> None:
    """Away, a token that was replaced, too much to do, a fault; but not one that is forbidden, nor those behind it."""
    router = Sim().add("a")
    for sentence in ("forbidden", "kept"):
        router.core.warn(sentence, sentence, "Reason")
    assert virtual_loop.run(told(router, Reluctant(Sim().api, [403, 0, 401, 429, 500, 503]))) == ["kept"]


def test_an_event_that_several_may_tell_has_one_name() -> None:
    """409 to whoever comes second, and it is done."""
    names = set()
    for name in "ab":
        router, api = Sim().add(name), Reluctant(Sim().api, [409])
        network = IPv4Network("10.32.0.64/26")
        router.core.events.add(lost_event("c", "", network, 7, f"it belongs to node {name}"))
        router.core.events.add(lost_event("c", "", network, 8, f"it belongs to node {name}"))
        virtual_loop.run(told(router, api))
        names.update(api.names)
    assert names == {"c.weave-router-block-10-32-0-64-26-lost-8"}
