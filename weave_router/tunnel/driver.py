"""Joins the tunnel core with the fast path, the store and the clock. Decides nothing.

Events of the engine become inputs of the core, effects of the core become calls of the engine, in their order; what has
to be on disk first is written by the store's writer thread, in groups, while later effects wait. Handshakes wait in a
bounded queue and take at most a fifth of the loop's time. Built by router.py, which runs ``run()`` as one task; all
methods are called from the loop's thread.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol

from weave_router.fastpath import engine as fastpath
from weave_router.limits import HANDSHAKE_LOOP_SHARE
from weave_router.reasons import Reason
from weave_router.tunnel import effects
from weave_router.tunnel.budget import Budget
from weave_router.tunnel.core import Tunnel
from weave_router.tunnel.effects import Effect
from weave_router.tunnel.liveness import Figures
from weave_router.tunnel.shared import PeerInfo
from weave_router.tunnel.status import ConnectionStatus
from weave_router.tunnel.token import TokenSet
from weave_router.tunnel.waiting import HandshakeQueue
from weave_router.tunnel.wire import Endpoint, SuiteCode

EVENTS_AT_ONCE: Final = 256
"""Events taken between two looks at the timer and at the rest of the loop."""

GOODBYE_SECONDS: Final = 0.05
"""What the workers get to send goodbyes before the engine is stopped."""

_SUITES: Final = {SuiteCode.AESGCM_SHA256: fastpath.SUITE_AESGCM,
                  SuiteCode.CHACHAPOLY_BLAKE2S: fastpath.SUITE_CHACHAPOLY}


class FreshnessStore(Protocol):
    """The part of ``Store`` that handshakes need; called in the writer thread only."""

    def counter_block(self, upto: int) -> None: ...
    def set_peer_seen(self, x25519_public: bytes, incarnation: int, counter: int) -> None: ...
    def batch(self) -> AbstractContextManager[None]: ...


def boottime() -> float:
    """Seconds of CLOCK_BOOTTIME: keys age while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class TunnelDriver:
    """``run_in_writer(function)``: awaitable that ends when the store's writer thread has run it.

    ``seen``: freshness of peer keys from the store at start. ``on_event`` gets the engine's events that are no business
    of the tunnel.
    """

    def __init__(self, engine: fastpath.Engine, tunnel: Tunnel, *, store: FreshnessStore,
                 run_in_writer: Callable[[Callable[[], None]], Awaitable[object]],
                 seen: Mapping[bytes, tuple[int, int]], on_changed: Callable[[effects.Changed], None],
                 on_pod_mtu: Callable[[int, int], None], on_event: Callable[[tuple[object, ...]], None],
                 clock: Callable[[], float] = boottime) -> None:
        self._engine = engine
        self._tunnel = tunnel
        self._store = store
        self._run_in_writer = run_in_writer
        self._seen = seen
        self._on_changed = on_changed
        self._on_pod_mtu = on_pod_mtu
        self._on_event = on_event
        self._clock = clock
        self._wake = asyncio.Event()
        self._to_write = asyncio.Event()
        self._waiting: list[Effect] = []
        self._writing = False
        self._handshakes = HandshakeQueue()
        self._budget = Budget(HANDSHAKE_LOOP_SHARE, clock())

    # -- what other rooms ask ------------------------------------------------------------------------------------

    def peer_set(self, info: PeerInfo) -> None:
        self._apply(self._tunnel.peer_set(info, self._clock(), self._seen.get(info.x25519_public)))

    def peer_remove(self, node_id: bytes) -> None:
        self._apply(self._tunnel.peer_remove(node_id, self._clock()))

    def want_session(self, slot: int) -> None:
        self._apply(self._tunnel.want_session(slot, self._clock()))

    def tokens_set(self, tokens: TokenSet) -> None:
        """Engine first: an answer under the new token must not find it unknown."""
        self._engine.tokens_set([(token.id, token.mac1_key) for token in tokens])
        self._apply(self._tunnel.tokens_set(tokens, self._clock()))

    def incarnation_set(self, incarnation: int) -> None:
        self._tunnel.incarnation_set(incarnation)

    def local_addresses_set(self, addresses: frozenset[str]) -> None:
        self._tunnel.local_addresses_set(addresses)

    def underlay_mtu_set(self, mtu: int) -> None:
        self._tunnel.underlay_mtu_set(mtu)

    def status(self) -> list[ConnectionStatus]:
        return self._tunnel.status(self._clock())

    @property
    def handshakes_dropped(self) -> int:
        """For want of room in the queue."""
        return self._handshakes.dropped

    @property
    def strangers(self) -> dict[Endpoint, Reason]:
        """Addresses that spoke another version or under a token that is none of ours, the latest last."""
        return self._tunnel.strangers

    async def close(self) -> None:
        """Say goodbye to all peers. ``run`` was cancelled before, the engine is stopped after."""
        for effect in self._tunnel.close():
            self._carry_out(effect)
        await asyncio.sleep(GOODBYE_SECONDS)

    # -- the loop ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled. An error of the store or of ours ends it loudly."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._engine.event_fd, self._wake.set)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._write(), name="tunnel writer")
                tasks.create_task(self._serve(loop), name="tunnel")
        finally:
            loop.remove_reader(self._engine.event_fd)

    async def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        while True:
            self._wake.clear()
            events = self._engine.events(EVENTS_AT_ONCE)
            for event in events:
                self._dispatch(event)
            pause = min(self._run_handshakes(), self._run_timer())
            if events or pause <= 0:
                await asyncio.sleep(0)
                continue
            alarm = loop.call_later(pause, self._wake.set)
            try:
                await self._wake.wait()
            finally:
                alarm.cancel()

    def _run_timer(self) -> float:
        """Seconds until the core wants to be called again."""
        at = self._tunnel.get_timer()
        now = self._clock()
        if at is not None and at <= now:
            self._apply(self._tunnel.handle_timer(now))
            at = self._tunnel.get_timer()
        return 3600.0 if at is None else max(0.0, at - now)

    def _run_handshakes(self) -> float:
        """Work on the queue within the budget; seconds until there is more to do."""
        while self._handshakes:
            begun = self._clock()
            pause = self._budget.wait(begun)
            if pause > 0:
                return pause
            datagram, remote, local = self._handshakes.pop()
            self._apply(self._tunnel.receive_handshake(datagram, remote, local, begun))
            self._budget.spend(self._clock() - begun)
        return 3600.0

    def _dispatch(self, event: tuple[Any, ...]) -> None:
        now = self._clock()
        tunnel = self._tunnel
        match event:
            case (fastpath.EV_HANDSHAKE, bytes(datagram), (str(), int()) as remote, str(local), int()):
                self._handshakes.put(datagram, remote, local)
            case (fastpath.EV_CONTROL, int(session), int(), (str(), int()) as remote, str(), bytes(payload),
                  int(wire_size)):
                self._apply(tunnel.receive_control(session, remote, payload, wire_size, now))
            case (fastpath.EV_NEED_SESSION, int(slot)):
                self._apply(tunnel.want_session(slot, now))
            case (fastpath.EV_CONFIRMED, int(session)):
                self._apply(tunnel.confirmed(session, now))
            case (fastpath.EV_CANDIDATE, int(session), (str(), int()) as remote, str(local)):
                self._apply(tunnel.candidate(session, remote, local, now))
            case (fastpath.EV_REKEY, int(session)):
                self._apply(tunnel.rekey(session, now))
            case (fastpath.EV_PATH_ERROR, int(slot), int(errno)):
                self._apply(tunnel.path_error(slot, errno, now))
            case (fastpath.EV_GSO_OFF, int(slot), int()):
                self._apply(tunnel.gso_refused(slot))
                self._on_event(event)
            case (fastpath.EV_VERSION, int(version), (str(), int()) as remote):
                self._apply(tunnel.version_seen(version, remote))
            case (fastpath.EV_TOKEN, int(token_id), (str(), int()) as remote):
                self._apply(tunnel.token_seen(token_id, remote))
            case _:
                self._on_event(event)

    # -- effects -------------------------------------------------------------------------------------------------

    def _apply(self, wanted: list[Effect]) -> None:
        """Carry out now, or behind what must be on disk first. Wakes the loop: the timer may be another."""
        self._wake.set()
        if self._writing or any(isinstance(e, effects.CounterBlock | effects.PeerCounterSeen) for e in wanted):
            self._writing = True
            self._waiting.extend(wanted)
            self._to_write.set()
            return
        for effect in wanted:
            self._carry_out(effect)

    async def _write(self) -> None:
        """Write what waits to disk as one transaction, then carry out everything that waited with it."""
        while True:
            await self._to_write.wait()
            self._to_write.clear()
            while self._waiting:
                group, self._waiting = self._waiting, []
                await self._persist(group)
                for effect in group:
                    self._carry_out(effect)
            self._writing = False

    async def _persist(self, group: list[Effect]) -> None:
        def write() -> None:
            with self._store.batch():
                for effect in group:
                    if isinstance(effect, effects.CounterBlock):
                        self._store.counter_block(effect.upto)
                    elif isinstance(effect, effects.PeerCounterSeen):
                        self._store.set_peer_seen(effect.x25519_public, effect.incarnation, effect.counter)

        if any(isinstance(effect, effects.CounterBlock | effects.PeerCounterSeen) for effect in group):
            await self._run_in_writer(write)

    def _carry_out(self, effect: Effect) -> None:
        engine = self._engine
        match effect:
            case effects.SendDatagram():
                errno = engine.datagram_send(effect.datagram, effect.remote, effect.local)
                if errno:
                    self._apply(self._tunnel.send_error(effect.remote, errno))
            case effects.ControlSend():
                engine.control_send(effect.session, effect.payload, remote=effect.remote, local=effect.local,
                                    size=effect.size)
            case effects.ReadFigures():
                figures = {index: Figures(*engine.session_figures(index)) for index in effect.sessions}
                self._apply(self._tunnel.activity(figures, self._clock()))
            case effects.SessionAdd():
                engine.session_add(effect.session, effect.slot, suite=_SUITES[effect.suite], send_key=effect.send_key,
                                   recv_key=effect.recv_key, remote_index=effect.remote_index, flags=_flags(effect))
            case effects.SessionUse():
                engine.session_use(effect.slot, effect.session)
            case effects.SessionMaySend():
                engine.session_may_send(effect.session)
            case effects.SessionDel():
                engine.session_del(effect.session)
            case effects.PathSet():
                flags = fastpath.PATH_NO_GSO * effect.no_gso
                engine.path_set(effect.slot, remote=effect.remote, local=effect.local, epoch=effect.epoch,
                                payload_max=effect.payload_max, flags=flags)
            case effects.PathDel():
                engine.path_del(effect.slot)
            case effects.PodMtuHeard():
                self._on_pod_mtu(effect.slot, effect.mtu)
            case effects.Changed():
                self._on_changed(effect)


def _flags(effect: effects.SessionAdd) -> int:
    return fastpath.SESSION_PLAINTEXT * effect.plaintext | fastpath.SESSION_MAY_SEND * effect.may_send
