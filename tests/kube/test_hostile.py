"""An API server that answers what it should not: no address twice, memory bounded, status says so, all well again."""

from __future__ import annotations

import asyncio
import contextlib
import resource
from collections import Counter
from random import Random

import pytest
from kube.hostile import FAIR, KINDS, Hostile
from kube.server import Server
from kube.test_api_server import Member, until

BLOCKS = 340
"""Of each of three: nearly all 1,024 of the range, so that they draw the same one often."""
MEMORY_BYTES = 64 << 20


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weave_router.kube.api_driver.CALL_SECONDS", 0.5)
    monkeypatch.setattr("weave_router.kube.values.BACKOFF_FIRST", 0.05)
    monkeypatch.setattr("weave_router.kube.values.BACKOFF_MOST", 0.2)
    monkeypatch.setattr("weave_router.kube.driver.EVENT_SECONDS", 0.2)


async def test_three_race_for_a_thousand_blocks_while_every_second_answer_is_wrong(
    server: Server, impatient: None
) -> None:
    for name in "abc":
        server.add_node(name, "192.0.2.1")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    async with Hostile(server, Random(7)) as relay, contextlib.AsyncExitStack() as stack:
        relay.kinds = (*[FAIR] * len(KINDS), *KINDS)
        made = [Member(server, name, BLOCKS, relay.port) for name in "abc"]
        members = [await stack.enter_async_context(each.running()) for each in made]
        await until(lambda: all(relay.served[kind] >= 5 for kind in KINDS), 60)
        await until(lambda: sum(len(m.blocks.owned()) for m in members) > 20, 60)
        relay.kinds = (FAIR,)
        relay.drop_all()
        await until(lambda: all(len(m.blocks.owned()) == BLOCKS for m in members), 90)
        holders = await asyncio.to_thread(server.leases)
        assert Counter(filter(None, holders.values())) == {m.core.holder: BLOCKS for m in members}
        owned = [block for m in members for block in m.blocks.owned()]
        assert len(owned) == len(set(owned)) == 3 * BLOCKS
        await until(lambda: not any(m.core.troubles for m in members), 20)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - before < MEMORY_BYTES


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"after", "half"}))
async def test_an_answer_that_stays_wrong_is_said_waited_for_and_survived(
    server: Server, impatient: None, kind: str
) -> None:
    """Status names it; what the router had it keeps, and it claims again once the server is well."""
    server.add_node("a", "192.0.2.1")
    async with Hostile(server, Random(kind)) as relay:
        async with Member(server, "a", 2, relay.port).running() as member:
            await until(lambda: len(member.blocks.owned()) == 2)
            relay.kinds = (kind,)
            relay.drop_all()
            await until(lambda: {"watch of nodes", "watch of leases", "watch of secrets"} <= set(member.core.troubles))
            assert all("is broken: " in sentence for sentence in member.core.troubles.values())
            member.blocks.appetite = 3
            served = relay.served[kind]
            await until(lambda: relay.served[kind] >= served + 12)
            assert len(member.blocks.owned()) == 2
            relay.kinds = (FAIR,)
            relay.drop_all()
            await until(lambda: len(member.blocks.owned()) == 3 and not member.core.troubles, 20)
        assert Counter(filter(None, server.leases().values())) == {member.core.holder: 3}
