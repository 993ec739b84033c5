"""The driver between a true core and an engine that records: order of effects, disk first, events, the share."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from weave_router.fastpath import engine as fastpath
from weave_router.limits import HANDSHAKE_QUEUE_MAX
from weave_router.reasons import Reason
from weave_router.tunnel import control, effects, wire
from weave_router.tunnel.core import PeerInfo, Tunnel
from weave_router.tunnel.driver import TunnelDriver, boottime
from weave_router.tunnel.identity import Identity
from weave_router.tunnel.state import State
from weave_router.tunnel.token import Token, TokenSet

TOKEN = Token(bytes(8), bytes(32))
REMOTE = ("192.0.2.2", 6783)
A, B = (Identity(bytes([n]) * 32, bytes([n + 8]) * 32) for n in (1, 2))


class FakeEngine:
    """Records every call; events are put in by the test."""

    def __init__(self) -> None:
        self.event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.calls: list[tuple[Any, ...]] = []
        self.waiting: list[tuple[Any, ...]] = []
        self.errno = 0
        self.changed = asyncio.Event()

    def log(self, call: tuple[Any, ...]) -> None:
        self.calls.append(call)
        self.changed.set()

    def happen(self, *event: Any) -> None:
        self.waiting.append(event)
        os.eventfd_write(self.event_fd, 1)

    def events(self, limit: int) -> list[tuple[Any, ...]]:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.event_fd)
        taken, self.waiting = self.waiting[:limit], self.waiting[limit:]
        if self.waiting:
            os.eventfd_write(self.event_fd, 1)
        return taken

    def datagram_send(self, datagram: bytes, remote: wire.Endpoint, local: str) -> int:
        self.log(("datagram_send", datagram, remote, local))
        return self.errno

    def session_figures(self, session: int) -> fastpath.SessionFigures:
        self.log(("session_figures", session))
        return fastpath.SessionFigures(0, 0, 0, 0, 0, 0, 0, 0, 0)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **named: self.log((name, *args, *named.items()))

    def named(self, name: str) -> list[tuple[Any, ...]]:
        return [call for call in self.calls if call[0] == name]


class FakeStore:
    def __init__(self, log: Callable[[tuple[Any, ...]], None]) -> None:
        self.log = log

    def counter_block(self, upto: int) -> None:
        self.log(("counter_block", upto))

    def set_peer_seen(self, x25519_public: bytes, incarnation: int, counter: int) -> None:
        self.log(("set_peer_seen", x25519_public, incarnation, counter))

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        self.log(("begin",))
        yield
        self.log(("commit",))


class World:
    """One driver, its neighbours, and a second core (``peer``) that speaks to it by hand."""

    def __init__(self) -> None:
        self.engine = FakeEngine()
        self.changes: list[effects.Changed] = []
        self.others: list[tuple[object, ...]] = []
        self.mtus: list[tuple[int, int]] = []
        self.writer_open = asyncio.Event()
        self.writer_open.set()
        self.core = Tunnel(A, TokenSet([TOKEN]), 1, rng=os.urandom, local_addresses=frozenset({"192.0.2.1"}))
        self.peer = Tunnel(B, TokenSet([TOKEN]), 1, rng=os.urandom)
        self.driver = TunnelDriver(
            self.engine, self.core, store=FakeStore(self.engine.log),  # type: ignore[arg-type]
            run_in_writer=self.run_in_writer, seen={}, on_changed=self.changes.append,
            on_pod_mtu=lambda slot, mtu: self.mtus.append((slot, mtu)), on_event=self.other)
        self.info = PeerInfo(B.node_id, 2, B.x25519_public, (REMOTE,), 1, 1368)
        self.peer.peer_set(PeerInfo(A.node_id, 2, A.x25519_public, (("192.0.2.1", 6783),), 1, 1368), boottime())

    async def run_in_writer(self, work: Callable[[], None]) -> None:
        await self.writer_open.wait()
        work()

    def other(self, event: tuple[object, ...]) -> None:
        self.others.append(event)
        self.engine.changed.set()

    async def until(self, condition: Callable[[], object]) -> None:
        """Looks again after every call of the engine and every event that is passed on."""
        async with asyncio.timeout(5.0):
            while not condition():
                self.engine.changed.clear()
                await self.engine.changed.wait()

    def answer(self, message_1: bytes) -> bytes:
        wanted = self.peer.receive_handshake(message_1, ("192.0.2.1", 6783), "", boottime())
        return next(effect.datagram for effect in wanted if isinstance(effect, effects.SendDatagram))

    async def establish(self) -> int:
        self.driver.peer_set(self.info)
        self.engine.happen(fastpath.EV_NEED_SESSION, 2)
        await self.until(lambda: self.engine.named("datagram_send"))
        message_1 = self.engine.named("datagram_send")[0][1]
        self.engine.happen(fastpath.EV_HANDSHAKE, self.answer(message_1), REMOTE, "192.0.2.1", TOKEN.id)
        await self.until(lambda: self.engine.named("session_use"))
        return int(self.engine.named("session_use")[0][2])


@pytest.fixture
async def world() -> AsyncIterator[World]:
    it = World()
    task = asyncio.create_task(it.driver.run())
    yield it
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    os.close(it.engine.event_fd)


async def test_need_of_a_session_ends_in_a_session_with_calls_in_their_order(world: World) -> None:
    session = await world.establish()
    await world.until(lambda: world.engine.named("control_send"))
    names = [call[0] for call in world.engine.calls]
    assert names[:4] == ["begin", "counter_block", "commit", "datagram_send"], "on disk before it goes"
    assert names[4:8] == ["path_set", "session_add", "session_use", "control_send"]
    path = dict(pair for pair in world.engine.named("path_set")[0][2:])
    assert path == {"remote": REMOTE, "local": "192.0.2.1", "epoch": 0, "payload_max": 1472, "flags": 0}
    added = dict(pair for pair in world.engine.named("session_add")[0][3:])
    assert world.engine.named("session_add")[0][1:3] == (session, 2)
    assert added["suite"] == fastpath.SUITE_AESGCM
    assert added["flags"] == fastpath.SESSION_MAY_SEND
    assert world.changes[-1].state is State.ESTABLISHED
    assert world.driver.status()[0].state is State.ESTABLISHED


async def test_nothing_goes_out_while_the_disk_is_busy(world: World) -> None:
    world.writer_open.clear()
    world.driver.peer_set(world.info)
    world.driver.want_session(2)
    for number in range(3):  # the loop turns meanwhile
        world.engine.happen(fastpath.EV_ANNOUNCE, number, b"mac")
        await world.until(lambda number=number: len(world.others) > number)
    other = Identity(b"c" * 32, b"d" * 32)
    world.driver.peer_set(PeerInfo(other.node_id, 3, other.x25519_public, (("192.0.2.3", 1),), 1, 0))
    world.driver.want_session(3)  # its counter is of the block that is not on disk yet
    assert not world.engine.calls
    world.writer_open.set()
    await world.until(lambda: len(world.engine.named("datagram_send")) == 2)
    assert [call[0] for call in world.engine.calls] == [
        "begin", "counter_block", "commit", "datagram_send", "datagram_send"]


async def test_figures_are_read_when_the_core_asks(world: World) -> None:
    session = await world.establish()
    await world.until(lambda: world.engine.named("session_figures"))
    assert world.engine.named("session_figures")[0] == ("session_figures", session)


async def test_every_event_of_the_tunnel_reaches_the_core(world: World) -> None:
    session = await world.establish()
    world.engine.calls.clear()
    engine = world.engine
    engine.happen(fastpath.EV_CONFIRMED, session)
    engine.happen(fastpath.EV_CONTROL, session, 0, REMOTE, "192.0.2.1", control.PodMtu(1280).encode(), 44)
    engine.happen(fastpath.EV_CANDIDATE, session, ("192.0.2.3", 1), "192.0.2.1")
    engine.happen(fastpath.EV_PATH_ERROR, 2, 90)
    engine.happen(fastpath.EV_GSO_OFF, 2, 5)
    engine.happen(fastpath.EV_VERSION, 9, ("192.0.2.4", 1))
    engine.happen(fastpath.EV_TOKEN, 9, ("192.0.2.5", 1))
    engine.happen(fastpath.EV_REKEY, session)
    engine.happen(fastpath.EV_GROUP, b"mac", True)
    await world.until(lambda: engine.named("datagram_send"))
    await world.until(lambda: len(world.others) == 2)
    assert world.mtus == [(2, 1280)]
    challenge = next(call for call in engine.named("control_send") if ("remote", ("192.0.2.3", 1)) in call)
    assert challenge[2][:1] == bytes([control.Challenge.KIND])
    assert world.core.strangers == {("192.0.2.4", 1): Reason.WRONG_VERSION, ("192.0.2.5", 1): Reason.UNKNOWN_TOKEN}
    assert any(("payload_max", 1200) in call for call in engine.named("path_set"))
    assert [event[0] for event in world.others] == [fastpath.EV_GSO_OFF, fastpath.EV_GROUP]


async def test_errno_of_a_handshake_datagram_becomes_the_reason(world: World) -> None:
    world.engine.errno = 113
    world.driver.peer_set(world.info)
    world.driver.want_session(2)
    await world.until(lambda: world.engine.named("datagram_send"))
    assert world.driver.status()[0].reason is Reason.UNREACHABLE


async def test_timer_of_the_core_is_kept(world: World) -> None:
    world.driver.peer_set(world.info)
    world.driver.want_session(2)
    await world.until(lambda: len(world.engine.named("datagram_send")) == 2)  # the second after 0.25 s


async def test_handshakes_beyond_the_queue_are_dropped_and_counted() -> None:
    world = World()  # not running: nothing takes from the queue
    for port in range(HANDSHAKE_QUEUE_MAX + 3):
        world.driver._dispatch((fastpath.EV_HANDSHAKE, bytes(144), ("192.0.2.9", port), "", TOKEN.id))
    assert world.driver.handshakes_dropped == 3
    os.close(world.engine.event_fd)


async def test_a_question_that_is_asked_again_while_it_waits_is_worked_on_once() -> None:
    """In the place of the first, with the bytes of the last; another type or receiver index is another question."""
    world = World()
    first, again, answer = bytes([1]) + bytes(143), bytes([1]) + bytes(142) + b"x", bytes([2]) + bytes(11) + b"5" * 110
    for datagram in (first, answer, again):
        world.driver._dispatch((fastpath.EV_HANDSHAKE, datagram, REMOTE, "", TOKEN.id))
    queue = world.driver._handshakes
    assert [queue.pop()[0] for _ in range(len(queue))] == [again, answer]
    assert world.driver.handshakes_dropped == 0
    os.close(world.engine.event_fd)


async def test_flood_of_handshakes_leaves_the_loop_its_time() -> None:
    """A clock that each handshake moves by 10 ms: after the burst, one handshake each 50 ms."""
    world = World()
    now = [1000.0]
    world.driver._clock = lambda: now[0]
    world.driver._budget._at = now[0]

    def slow(*_: object) -> list[effects.Effect]:
        now[0] += 0.01
        return []

    world.core.receive_handshake = slow  # type: ignore[method-assign]
    for port in range(100):
        world.driver._dispatch((fastpath.EV_HANDSHAKE, bytes(144), ("192.0.2.9", port), "", TOKEN.id))
    while world.driver._handshakes:
        pause = world.driver._run_handshakes()
        now[0] += min(pause, 1.0)
    assert 100 * 0.01 / (now[0] - 1000.0) <= 0.21 + 0.03
    os.close(world.engine.event_fd)


async def test_tokens_reach_the_engine_before_the_core(world: World) -> None:
    fresh = Token(bytes(8), b"x" * 32)
    world.driver.tokens_set(TokenSet([fresh, TOKEN]))
    assert world.engine.named("tokens_set") == [
        ("tokens_set", [(fresh.id, fresh.mac1_key), (TOKEN.id, TOKEN.mac1_key)])]


async def test_removed_peer_is_gone_from_the_engine(world: World) -> None:
    session = await world.establish()
    world.driver.peer_remove(B.node_id)
    assert world.engine.calls[-3:] == [("session_use", 2, 0), ("session_del", session), ("path_del", 2)]


async def test_settings_are_passed_on(world: World) -> None:
    world.driver.local_addresses_set(frozenset({"192.0.2.9"}))
    world.driver.underlay_mtu_set(9000)
    world.driver.incarnation_set(5)
    shared = world.core._shared
    assert (shared.local_addresses, shared.underlay_mtu, shared.incarnation) == (frozenset({"192.0.2.9"}), 9000, 5)


async def test_close_says_goodbye(world: World) -> None:
    session = await world.establish()
    world.engine.calls.clear()
    await world.driver.close()
    assert any(call[:3] == ("control_send", session, control.Goodbye().encode()) for call in world.engine.calls)


async def test_error_of_the_store_ends_the_task_loudly() -> None:
    world = World()

    async def broken(work: Callable[[], None]) -> None:
        raise OSError("disk is full")

    world.driver._run_in_writer = broken
    task = asyncio.create_task(world.driver.run())
    world.driver.peer_set(world.info)
    world.driver.want_session(2)
    with pytest.raises(ExceptionGroup, match="unhandled errors"):
        await task
    os.close(world.engine.event_fd)
