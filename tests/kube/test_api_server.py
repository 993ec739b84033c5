"""The room's drivers against a real API server, with the documented permissions, behind a relay that misbehaves."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from kube.server import Relay, Server
from unit.kube_api import UNIVERSE, Greedy

from weave_router import config
from weave_router.errors import UserError
from weave_router.ipam.driver import now
from weave_router.ipam.service import Service
from weave_router.ipam.service import Settings as IpamSettings
from weave_router.kube import objects
from weave_router.kube.api_driver import Api
from weave_router.kube.core import Kube
from weave_router.kube.driver import KubeDriver, utc
from weave_router.kube.start_driver import Beginning, Start, on_disk
from weave_router.kube.values import Call, Settings, World
from weave_router.tunnel.identity import Identity
from weave_router.tunnel.token import Token, TokenSet

SECRETS = "api/v1/namespaces/kube-system/secrets"


class Member:
    """A router's room without the router."""

    def __init__(self, server: Server, name: str, appetite: int, port: int = 0, held: TokenSet | None = None) -> None:
        identity = Identity.generate(os.urandom)
        range_v4 = objects.IPv4Network(UNIVERSE.range_v4)
        self.service = Service(
            identity.node_id, identity.ed25519_public, IpamSettings(name, b"sim-doma", range_v4, arbiter=True),
            sign=identity.sign, verify=lambda *_: True, nonce=lambda: int.from_bytes(os.urandom(7), "big"),
            name_of=lambda node: node.hex())
        self.service.found_by_arbiter(UNIVERSE.universe, now())
        self.blocks = Greedy(self.service)
        self.blocks.appetite = appetite
        rng = Random(name)
        self.core = Kube(Settings(name, "kube-system", range_v4), identity.node_id, self.blocks, rng,
                         universe=UNIVERSE, held=held)
        self.api = Api(f"https://127.0.0.1:{port or server.port}", str(server.account))
        self.world = World(utc=utc())
        self.driver = KubeDriver(self.core, self.api, rng, act=lambda work: work(now()), world=lambda: self.world,
                                 changed=lambda: None)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Member]:
        task = asyncio.create_task(self.driver.run())
        try:
            yield self
            assert not task.done(), task.exception()
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await self.api.close()


async def until(what: Callable[[], Any], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not what():  # noqa: ASYNC110  # of a server that tells nobody
            await asyncio.sleep(0.05)


def asked(server: Server, method: str, path: str) -> Any:
    return asyncio.to_thread(server.ask, method, path)


async def test_three_race_through_a_relay_that_cuts_and_hangs(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weave_router.kube.api_driver.CALL_SECONDS", 1.0)
    monkeypatch.setattr("weave_router.kube.api_driver.IDLE_SECONDS", 2.0)
    for name in "abc":
        server.add_node(name, "192.0.2.1")
    async with Relay(("127.0.0.1", server.port), Random(5)) as relay, contextlib.AsyncExitStack() as stack:
        relay.mood = "cut"
        members = [await stack.enter_async_context(Member(server, name, 40, relay.port).running()) for name in "abc"]
        await until(lambda: sum(len(m.blocks.owned()) for m in members) > 60)
        relay.mood = "hang"
        await until(lambda: all(m.core.troubles for m in members))
        # A fair server says nothing for a minute; with the short time a silent watch would count as hanging for ever.
        monkeypatch.setattr("weave_router.kube.api_driver.IDLE_SECONDS", 90.0)
        relay.mood = "fair"
        await until(lambda: all(len(m.blocks.owned()) == 40 for m in members), 90)
        await until(lambda: not any(m.core.troubles for m in members), 20)
        assert all(m.core.leases_synced and m.core.nodes_synced for m in members)
        assert relay.connections > 10
        holders = await asyncio.to_thread(server.leases)
        assert Counter(holders.values()) == {m.core.holder: 40 for m in members}
        owned = [block for m in members for block in m.blocks.owned()]
        assert len(owned) == len(set(owned)) == 120


async def test_the_server_away_and_back(server: Server) -> None:
    """Nothing is lost, status says so, and a watch that goes on counts as one that never ended."""
    server.add_node("a", "192.0.2.1")
    async with Relay(("127.0.0.1", server.port), Random(5)) as relay:
        async with Member(server, "a", 2, relay.port).running() as member:
            await until(lambda: len(member.blocks.owned()) == 2)
            target, relay.target = relay.target, ("127.0.0.1", 1)
            relay.mood = "cut"
            for writer in list(relay.open):
                writer.transport.abort()
            await until(lambda: not member.core.nodes_synced and not member.core.leases_synced)
            assert "the watch of nodes is broken" in member.core.troubles["watch of nodes"]
            member.blocks.appetite = 3
            relay.target, relay.mood = target, "fair"
            await until(lambda: len(member.blocks.owned()) == 3 and not member.core.troubles, 12)


async def test_a_claim_is_one_write(server: Server) -> None:
    """What an idle node asks is counted in virtual time: tests/unit/test_kube_driver.py."""
    server.add_node("a", "192.0.2.1")
    async with Member(server, "a", 30).running() as member:
        writes: list[str] = []
        request = member.api.request

        async def counted(call: Call) -> Any:
            writes.extend([call.path] if call.method != "GET" and "/leases" in call.path else [])
            return await request(call)

        member.api.request = counted  # type: ignore[method-assign]
        await until(lambda: len(member.blocks.owned()) == 30)
        await until(member.core.free)
        assert len(writes) == member.core.counts.get("leases claim") == 30


async def test_leases_edited_by_hand(server: Server) -> None:
    server.add_node("a", "192.0.2.1")
    async with Member(server, "a", 2).running() as member:
        await until(lambda: len(member.blocks.owned()) == 2)
        first, second = sorted(server.leases())
        path = "apis/coordination.k8s.io/v1/namespaces/kube-system/leases"
        await asked(server, "DELETE", f"{path}/{first}")
        await until(lambda: server.leases().get(first) == member.core.holder)
        lease = server.ask("GET", f"{path}/{second}")
        lease["spec"]["holderIdentity"] = "other-uid.00"
        server.ask("PUT", f"{path}/{second}", lease)
        await until(lambda: any("is lost" in sentence for sentence in member.core.troubles.values()))
        await until(lambda: len(member.blocks.owned()) == 3, 20)
        await until(lambda: any(e["reason"] == "BlockLost" and e["involvedObject"]["name"] == "a" for e in
                                server.ask("GET", "api/v1/namespaces/default/events")["items"]), 30)


async def test_the_nodes_condition_and_a_token_that_is_read_again(server: Server) -> None:
    server.add_node("a", "192.0.2.1")
    async with Member(server, "a", 1).running() as member:
        await until(lambda: member.core.own)
        member.world = World(serving=True, utc=utc())
        await until(lambda: member.core.own and member.core.own.available)
        (server.account / "token").write_text("wrong")
        member.api._connected()
        await member.api.close()
        answer = await member.api.request(Call("GET", "api/v1/nodes/a", "start"))
        assert answer.status == 401
        (server.account / "token").write_text("router-token")
        assert (await member.api.request(Call("GET", "api/v1/nodes/a", "start"))).status == 200
        fresh = server.account / "ca.new"
        shutil.copy(server.account / "ca.crt", fresh)
        os.replace(fresh, server.account / "ca.crt")
        assert (await member.api.request(Call("GET", "api/v1/nodes/a", "start"))).status == 200


def launch(server: Server, state: Path, **flags: object) -> config.LaunchConfig:
    state.mkdir(exist_ok=True)
    return config.load({
        "kubernetes": True, "node_name": state.name, "state_dir": str(state), "service_account": str(server.account),
        "kubernetes_api": f"127.0.0.1:{server.port}", **flags}, [], {})


async def begun(settings: config.LaunchConfig, server: Server) -> Start:
    api = Api(settings.kubernetes_api, str(server.account))
    try:
        return await Beginning(settings, api, Random(settings.node_name)).run()
    finally:
        await api.close()


async def test_first_starts_at_once_agree_on_universe_and_token(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = [launch(server, tmp_path / name) for name in "abcde"]
    starts = await asyncio.gather(*(begun(each, server) for each in settings))
    assert len({start.universe.universe for start in starts}) == 1
    assert len({start.tokens.first.secret for start in starts}) == 1
    assert starts[0].universe.range_v4 == "10.32.0.0/12"
    assert starts[0].universe.token_id == f"{starts[0].tokens.first.id:08x}"
    kept = on_disk(settings[0])
    assert kept is not None and kept.tokens.first == starts[0].tokens.first
    assert (tmp_path / "a" / "token").stat().st_mode & 0o777 == 0o600
    other = launch(server, tmp_path / "f", ipalloc_range="10.50.0.0/16")
    with pytest.raises(UserError, match=r"says 10\.50\.0\.0/16, the cluster's Lease .* says 10\.32\.0\.0/12"):
        await begun(other, server)
    await asked(server, "DELETE", f"{SECRETS}/weave-router")
    late = asyncio.create_task(begun(launch(server, tmp_path / "g"), server))
    waits = "Secret weave-router is gone"
    await until(lambda: sum(waits in str(getattr(record, "for", "")) for record in caplog.records) >= 2)
    assert not late.done()  # it waits, look after look: a second token would split the cluster
    assert not (await asked(server, "GET", SECRETS))["items"]
    text = f"{starts[0].tokens.first}\n"
    body = {"metadata": {"name": "weave-router"}, "data": {"token": base64.b64encode(text.encode()).decode()}}
    await asyncio.to_thread(server.ask, "POST", SECRETS, body)
    assert (await asyncio.wait_for(late, 40)).tokens.first == starts[0].tokens.first


async def test_range_of_k3s_and_a_range_over_the_services(server: Server, tmp_path: Path) -> None:
    server.ask("POST", "api/v1/nodes", {"metadata": {"name": "k"}, "spec": {"podCIDR": "10.42.0.0/24",
                                                                          "podCIDRs": ["10.42.0.0/24"]}})
    with pytest.raises(UserError, match=r"overlaps 10\.96\.0\.0/16"):
        await begun(launch(server, tmp_path / "a", ipalloc_range="10.96.64.0/18"), server)
    assert (await begun(launch(server, tmp_path / "b"), server)).universe.range_v4 == "10.42.0.0/16"


async def test_a_deleted_secret_is_written_back(server: Server) -> None:
    held = TokenSet([Token.new(os.urandom)])
    server.add_node("a", "192.0.2.1")
    async with Member(server, "a", 1, held=held).running():
        await until(lambda: server.ask("GET", SECRETS)["items"], 20)
        await asked(server, "DELETE", f"{SECRETS}/weave-router")
        await until(lambda: server.ask("GET", SECRETS)["items"], 20)
        found = server.ask("GET", f"{SECRETS}/weave-router")["data"]["token"]
        assert base64.b64decode(found).decode() == f"{held.first}\n"
