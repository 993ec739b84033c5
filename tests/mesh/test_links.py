"""mesh/driver.py over real sockets on loopback: each node has an address of 127/8 of its own, all one port.

    127.0.0.1  <--  127.0.0.2  <--  127.0.0.3      (targets; the rest is found)
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from random import Random
from typing import Any

import pytest
import uvloop
from unit.mesh_helpers import identity
from unit.mesh_sim import tokens

from weave_router import limits
from weave_router.errors import UserError
from weave_router.mesh.core import Mesh
from weave_router.mesh.driver import MeshDriver
from weave_router.mesh.events import NO_PROOF, Config, Event, LinkDown, LinkUp
from weave_router.mesh.record import Prefix

A = 0x0A200001
WAIT = 20.0  # never reached unless something is wrong


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Node:
    """One mesh with its driver; every event wakes those who wait in ``Cluster.until``."""

    def __init__(self, cluster: "Cluster", index: int, host: str | None, token: str, endpoints: bool) -> None:
        rng = Random(index)
        shown = ((host, cluster.port),) if host and endpoints else ()
        config = Config(f"host{index}", cluster.port, endpoints=shown)
        loop = asyncio.get_running_loop()
        self.mesh = Mesh(config, identity=identity(index), tokens=tokens(token), incarnation=1, run=rng.randbytes(16),
                         rng=rng, entropy=os.urandom, now=loop.time())
        self.events: list[Event] = []
        self._cluster = cluster
        self.driver = MeshDriver(self.mesh, host=host, port=cluster.port, on_events=self._heard)

    def _heard(self, events: list[Event]) -> None:
        self.events += events
        self._cluster.changed.set()

    def target(self, text: str) -> None:
        self.driver.do(lambda mesh, now: mesh.target_add(text, now))

    def linked(self) -> set[str]:
        return {link.name for link in self.mesh.status().links}

    def reason(self) -> str:
        return self.mesh.status().targets[0].reason


class Cluster:
    def __init__(self) -> None:
        self.port = free_port()
        self.changed = asyncio.Event()
        self.nodes: list[Node] = []

    async def add(self, index: int, *targets: str, host: str | None = "", token: str = "first",
                  endpoints: bool = True) -> Node:
        node = Node(self, index, f"127.0.0.{index}" if host == "" else host, token, endpoints)
        self.nodes.append(node)
        await node.driver.start()
        for text in targets:
            node.target(text)
        return node

    async def until(self, condition: Callable[[], bool]) -> float:
        """Wait for events until the condition holds; looks at it now and then also without one."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        async with asyncio.timeout(WAIT):
            while not condition():
                self.changed.clear()
                loop.call_later(0.05, self.changed.set)
                await self.changed.wait()
        return loop.time() - begun

    async def close(self) -> None:
        await asyncio.gather(*(node.driver.close() for node in self.nodes))


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    before = len(os.listdir("/proc/self/fd"))
    made = Cluster()
    yield made
    await made.close()
    await asyncio.sleep(0)
    assert len(os.listdir("/proc/self/fd")) <= before, "descriptors are left"


async def chain(cluster: Cluster) -> None:
    one = await cluster.add(1)
    two = await cluster.add(2, "127.0.0.1")
    three = await cluster.add(3, "127.0.0.2")
    nodes = (one, two, three)
    took = await cluster.until(lambda: all(len(node.mesh.replica.topology.reachable) == 3 for node in nodes))
    assert took < 5.0
    one.driver.do(lambda mesh, now: mesh.set_prefixes([Prefix(A, 32)], now))
    took = await cluster.until(lambda: all(
        node.mesh.table.get(one.mesh.node_id).record.prefixes for node in nodes))  # type: ignore[union-attr]
    assert took < 0.5
    await cluster.until(lambda: one.linked() == {"host2", "host3"})
    await cluster.until(lambda: bool(one.mesh.status().links[0].rtt))
    assert not any(isinstance(event, LinkDown) for node in nodes for event in node.events)


async def test_chain_of_three_that_list_one_address_each_reaches_all(cluster: Cluster) -> None:
    await chain(cluster)


def test_the_same_on_uvloop() -> None:
    async def run() -> None:
        cluster = Cluster()
        try:
            await chain(cluster)
        finally:
            await cluster.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


@pytest.mark.parametrize("text", ["127.0.0.1", "[::1]", "localhost"])
async def test_both_families_are_listened_on(cluster: Cluster, text: str) -> None:
    await cluster.add(1, host=None)
    port, cluster.port = cluster.port, free_port()
    two = await cluster.add(2, f"{text}:{port}", host=None)
    await cluster.until(lambda: two.linked() == {"host1"})
    [up] = [event for event in two.events if isinstance(event, LinkUp)]
    assert up.remote in (("127.0.0.1", port), ("::1", port)) and up.initiator
    assert text == "localhost" or up.remote[0] == text.strip("[]")
    assert up.observed == up.local, "the far end tells us how it sees us"


async def test_goodbye_is_heard_and_a_restart_is_linked_again(cluster: Cluster) -> None:
    one = await cluster.add(1)
    two = await cluster.add(2, "127.0.0.1")
    await cluster.until(lambda: two.linked() == {"host1"})
    await one.driver.close()
    await cluster.until(lambda: not two.linked())
    [down] = [event for event in two.events if isinstance(event, LinkDown)]
    assert down.reason == "the router there ends"
    await cluster.until(lambda: two.reason() == "connection refused (no router listens there)")
    await cluster.add(1)
    assert await cluster.until(lambda: two.linked() == {"host1"}) < 5.0


async def test_wrong_token_is_named_and_told_apart(cluster: Cluster) -> None:
    one = await cluster.add(1)
    two = await cluster.add(2, "127.0.0.1", token="other")
    await cluster.until(lambda: two.reason() == NO_PROOF)
    await cluster.until(lambda: bool(one.mesh.status().strangers))
    assert [one.reason for one in one.mesh.status().strangers] == ["unknown token id"]
    assert two.mesh.status().targets[0].state in ("retrying", "connecting")


async def test_own_address_is_marked_self(cluster: Cluster) -> None:
    one = await cluster.add(1, "127.0.0.1")
    await cluster.until(lambda: one.mesh.status().targets[0].state == "self")


async def test_reread_tokens_are_used(cluster: Cluster) -> None:
    one = await cluster.add(1)
    two = await cluster.add(2, "127.0.0.1", token="other")
    await cluster.until(lambda: two.reason() == NO_PROOF)
    one.driver.do(lambda mesh, now: mesh.tokens_set(tokens("first", "other"), now))
    await cluster.until(lambda: two.linked() == {"host1"})


async def test_a_taken_port_is_one_sentence(cluster: Cluster) -> None:
    await cluster.add(1)
    with pytest.raises(UserError, match="in use: another router runs here"):
        await cluster.add(1)
    cluster.port = 1
    with pytest.raises(UserError, match="no interface has this address"):
        await cluster.add(9, host="192.0.2.1")


async def test_names_are_resolved_anew_each_time(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[list[str]] = [[], ["127.0.0.9", "127.0.0.1"]]

    def resolve(host: str, port: int, **_: object) -> list[Any]:
        assert host == "peers.example"
        found = answers.pop(0) if len(answers) > 1 else answers[0]
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    await cluster.add(1)
    two = await cluster.add(2)
    two.target("peers.example")
    await cluster.until(lambda: two.reason() == "the name does not resolve")
    await cluster.until(lambda: two.linked() == {"host1"})
    assert two.mesh.targets.all()[0].attempts >= 2


# -- strangers ---------------------------------------------------------------------------------------------------------
async def stranger(port: int, data: bytes) -> bytes:
    """What a stranger is answered, until the other end hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = b""
    try:
        writer.write(data)
        async with asyncio.timeout(WAIT):
            answer = await reader.read()
    except ConnectionError:
        pass
    finally:
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)
    return answer


async def together(count: int, make: Callable[[int], Coroutine[Any, Any, bytes]]) -> list[bytes]:
    """Run ``count`` strangers, forty at a time."""
    gate = asyncio.Semaphore(40)

    async def one(index: int) -> bytes:
        async with gate:
            return await make(index)

    return await asyncio.gather(*map(one, range(count)))


async def test_strangers_get_not_one_byte_and_a_member_links_meanwhile(cluster: Cluster) -> None:
    one = await cluster.add(1)
    rng = Random(8)
    flood = asyncio.ensure_future(together(
        1500, lambda _: stranger(cluster.port, rng.randbytes(rng.randrange(18, 700)))))
    await cluster.until(lambda: bool(one.mesh.status().strangers))
    two = await cluster.add(2, "127.0.0.1")
    assert await cluster.until(lambda: two.linked() == {"host1"}) < 2.0
    assert not flood.done(), "the flood was over before: this shows nothing"
    assert set(await flood) == {b""}
    await cluster.until(lambda: one.mesh.status().openings == 0)
    assert sum(kind.count for kind in one.mesh.status().strangers) >= 1400
    assert one.linked() == {"host2"}


async def test_silent_strangers_are_bounded_and_hung_up_on(cluster: Cluster) -> None:
    one = await cluster.add(1)
    quiet = [asyncio.ensure_future(stranger(cluster.port, b"")) for _ in range(limits.OPENINGS_PER_ADDRESS_MAX + 20)]
    await cluster.until(lambda: one.mesh.replica.counters["opening dropped for a newer one"] == 20)
    assert one.mesh.status().openings == limits.OPENINGS_PER_ADDRESS_MAX
    assert set(await asyncio.gather(*quiet)) == {b""}
    assert one.mesh.status().openings == 0
    [kind] = one.mesh.status().strangers
    assert (kind.reason, kind.count) == ("opening took too long", limits.OPENINGS_PER_ADDRESS_MAX)


async def test_handshakes_wait_when_they_have_had_their_share(cluster: Cluster) -> None:
    one = await cluster.add(1)
    loop = asyncio.get_running_loop()
    one.driver._share.spent(0.15, loop.time())
    two = await cluster.add(2, "127.0.0.1")
    took = await cluster.until(lambda: two.linked() == {"host1"})
    assert took > 0.8 * (0.15 - 0.05) / limits.OPENING_LOOP_SHARE


async def test_close_in_the_middle_of_calls_leaves_nothing(cluster: Cluster) -> None:
    one = await cluster.add(1)
    for number in range(5):
        one.target(f"192.0.2.{number + 1}")
    await cluster.add(2, "127.0.0.1")
    await one.driver.close()
    await one.driver.close()
    assert not [task for task in asyncio.all_tasks() if "MeshDriver" in repr(task.get_coro()) and not task.done()
                and task.get_coro().cr_frame.f_locals.get("self") is one.driver]  # type: ignore[union-attr]


async def test_a_peer_that_vanishes_in_mid_stream_is_noticed(cluster: Cluster) -> None:
    one = await cluster.add(1)
    two = await cluster.add(2, "127.0.0.1")
    await cluster.until(lambda: one.linked() == {"host2"} and two.linked() == {"host1"})
    for stream in list(two.driver._streams.values()):
        stream.transport.abort()  # type: ignore[union-attr]
    await cluster.until(lambda: any(isinstance(event, LinkDown) for event in one.events))
    assert await cluster.until(lambda: one.linked() == {"host2"}) < 5.0


def test_a_timer_that_is_due_already_on_uvloop(monkeypatch: pytest.MonkeyPatch) -> None:
    """uvloop makes a plain handle of it, which knows no time; an input that comes before it runs must not ask."""

    async def main() -> None:
        cluster = Cluster()
        one = await cluster.add(1)
        with monkeypatch.context() as patch:
            patch.setattr(one.mesh, "get_timer", lambda: 0.0)
            for _ in range(2):
                one.driver.do(lambda mesh, now: None)
        await cluster.add(2, "127.0.0.1")
        await cluster.until(lambda: one.linked() == {"host2"})
        await cluster.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
