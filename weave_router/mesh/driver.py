"""The mesh's sockets: TCP server, calls, bytes and timers between asyncio and mesh/core.py. Decides nothing.

Made by router.py, which reads the events by a callback and speaks to the core through ``do``. One driver, one loop.
"""

import asyncio
import contextlib
import errno
import socket
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar, cast

from weave_router import limits
from weave_router.errors import UserError
from weave_router.mesh.core import Mesh
from weave_router.mesh.events import Dial, Effect, Event, Hangup, Send
from weave_router.mesh.record import Endpoint
from weave_router.mesh.share import LoopShare
from weave_router.mesh.status import dial_reason
from weave_router.mesh.targets import literal

T = TypeVar("T")

USER_TIMEOUT_MS: Final = 5000  # the kernel gives a dead stream up soon after we did
LINGER_SECONDS: Final = 1.0  # for the last frame of a link that we end
BACKLOG: Final = 256
NO_NAME: Final = "the name does not resolve"
NO_FAMILY: Final = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


class Stream(asyncio.Protocol):
    """One TCP connection. ``number`` is the core's; 0 once the core has forgotten it."""

    def __init__(self, driver: "MeshDriver", number: int = 0) -> None:
        self.number = number
        self.sent = False
        self.transport: asyncio.Transport | None = None
        self._driver = driver

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        set_options(transport)
        self._driver.connected(self, endpoint_of(transport, "sockname"), endpoint_of(transport, "peername"))

    def data_received(self, data: bytes) -> None:
        self._driver.received(self, data)

    def connection_lost(self, error: Exception | None) -> None:
        self._driver.lost(self, "connection reset" if error else "connection closed")

    def pause_writing(self) -> None:
        self._driver.writable(self, False)

    def resume_writing(self) -> None:
        self._driver.writable(self, True)


def set_options(transport: asyncio.BaseTransport) -> None:
    sock = transport.get_extra_info("socket")
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)


def endpoint_of(transport: asyncio.BaseTransport, name: str) -> Endpoint:
    """("", 0) when the other end is gone already."""
    address = transport.get_extra_info(name)
    return (address[0], address[1]) if address else ("", 0)


class MeshDriver:
    """``host``: bind to this address alone; None: all, both families. ``on_events`` is called in the loop."""

    def __init__(self, mesh: Mesh, *, host: str | None, port: int, on_events: Callable[[list[Event]], None]) -> None:
        self.mesh = mesh
        self.port = port
        self._host = host
        self._on_events = on_events
        self._loop = asyncio.get_running_loop()
        self._servers: list[asyncio.Server] = []
        self._streams: dict[int, Stream] = {}
        self._closing: set[Stream] = set()
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._held: deque[tuple[Stream, bytes]] = deque()
        self._share = LoopShare(limits.OPENING_LOOP_SHARE, self._loop.time())
        self._timer: asyncio.Handle | None = None
        self._timer_at = 0.0
        self._held_timer: asyncio.TimerHandle | None = None
        self._resolver = ThreadPoolExecutor(4, "resolve")
        self._closed = False
        self._drained = asyncio.Event()

    # -- start and stop ---------------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Listen. UserError if the port is taken."""
        for sock in self._listeners():
            server = await self._loop.create_server(lambda: Stream(self), sock=sock, backlog=BACKLOG)
            self._servers.append(server)
        self._step()

    def _listeners(self) -> list[socket.socket]:
        sockets: list[socket.socket] = []
        try:
            for host in [self._host] if self._host else ["0.0.0.0", "::"]:
                try:
                    sockets.append(listener(host, self.port))
                except OSError as error:
                    if self._host or error.errno not in NO_FAMILY:
                        raise
                    continue  # a kernel without IPv6, or without IPv4
                self.port = sockets[-1].getsockname()[1]
        except OSError as error:
            for sock in sockets:
                sock.close()
            raise UserError(listen_sentence(error, self._host, self.port)) from error
        return sockets

    async def close(self) -> None:
        """Say goodbye on every link, then let go of every socket. Idempotent."""
        if self._closed:
            return
        self.do(lambda mesh, now: mesh.close(now))
        self._closed = True
        for server in self._servers:
            server.close()
        for timer in (self._timer, self._held_timer):
            if timer is not None:
                timer.cancel()
        calls = list(self._calls.values())
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await self._linger()
        self._resolver.shutdown(wait=False, cancel_futures=True)

    async def _linger(self) -> None:
        if self._closing:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._drained.wait(), LINGER_SECONDS)
        for stream in list(self._closing):
            abort(stream)
        await asyncio.sleep(0)

    # -- the core ---------------------------------------------------------------------------------------------------
    def do(self, action: Callable[[Mesh, float], T]) -> T:
        """Hand the core an input, with the time; what follows from it is carried out before this returns."""
        result = action(self.mesh, self._loop.time())
        self._step()
        return result

    def _step(self) -> None:
        while effects := self.mesh.take_effects():
            for effect in effects:
                self._carry_out(effect)
        events = self.mesh.take_events()
        if events:
            self._on_events(events)
        if not self.mesh.closed:
            self._set_timer()

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Dial():
                self._calls[effect.link] = self._loop.create_task(self._call(effect))
            case Send():
                stream = self._streams.get(effect.link)
                if stream is not None and stream.transport is not None:
                    stream.sent = True
                    stream.transport.write(effect.data)
            case Hangup():
                self._hang_up(effect.link)

    def _set_timer(self) -> None:
        """uvloop makes a plain handle of a timer that is due, so the handle is not asked for its time."""
        at = self.mesh.get_timer()
        if self._timer is not None:
            if self._timer_at == at:
                return
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_at(at, self._timer_due)

    def _timer_due(self) -> None:
        self._timer = None
        self.do(lambda mesh, now: mesh.handle_timer(now))

    # -- streams ----------------------------------------------------------------------------------------------------
    def connected(self, stream: Stream, local: Endpoint, remote: Endpoint) -> None:
        if self._closed:
            abort(stream)
            return
        number = stream.number
        if number == 0:
            stream.number = self.mesh.accept(local, remote, self._loop.time())
            self._streams[stream.number] = stream
            self._step()
            return
        self._streams[number] = stream
        if not self.do(lambda mesh, now: mesh.dial_connected(number, local, remote, now)):
            self._streams.pop(number, None)
            abort(stream)

    def received(self, stream: Stream, data: bytes) -> None:
        if not self.mesh.is_opening(stream.number):
            self._receive(stream, data)
            return
        self._held.append((stream, data))
        if stream.transport is not None:
            stream.transport.pause_reading()
        self._work_off()

    def _receive(self, stream: Stream, data: bytes) -> None:
        self.do(lambda mesh, now: mesh.receive_data(stream.number, data, now))

    def _work_off(self) -> None:
        """Handshake messages, first come, first served, as far as their share of the loop's time goes."""
        if self._held_timer is not None:
            return
        while self._held:
            now = self._loop.time()
            ready_at = self._share.ready_at(now)
            if ready_at > now:
                self._held_timer = self._loop.call_at(ready_at, self._held_due)
                return
            stream, data = self._held.popleft()
            before = time.perf_counter()
            self._receive(stream, data)
            self._share.spent(time.perf_counter() - before, now)
            if stream.transport is not None and not stream.transport.is_closing():
                stream.transport.resume_reading()

    def _held_due(self) -> None:
        self._held_timer = None
        self._work_off()

    def writable(self, stream: Stream, writable: bool) -> None:
        self.do(lambda mesh, now: mesh.set_writable(stream.number, writable, now))

    def lost(self, stream: Stream, reason: str) -> None:
        stream.transport = None
        self._closing.discard(stream)
        if not self._closing:
            self._drained.set()
        number, stream.number = stream.number, 0
        if self._streams.pop(number, None) is not None and not self._closed:
            self.do(lambda mesh, now: mesh.connection_lost(number, reason, now))

    def _hang_up(self, number: int) -> None:
        call = self._calls.pop(number, None)
        if call is not None:
            call.cancel()
        stream = self._streams.pop(number, None)
        if stream is None or stream.transport is None:
            return
        stream.number = 0
        if not stream.sent:
            abort(stream)  # a stranger: no goodbye, nothing left waiting in the kernel
            return
        self._closing.add(stream)
        self._drained.clear()
        stream.transport.close()
        self._loop.call_later(LINGER_SECONDS, abort, stream)

    # -- calls ------------------------------------------------------------------------------------------------------
    async def _call(self, dial: Dial) -> None:
        try:
            address = await self._resolve(dial)
            local = (self._host, 0) if self._host and same_family(self._host, address[0]) else None
            await self._loop.create_connection(lambda: Stream(self, dial.link), *address, local_addr=local)
        except OSError as error:
            reason = NO_NAME if isinstance(error, socket.gaierror) else dial_reason(error.errno)
            self.do(lambda mesh, now: mesh.dial_failed(dial.link, reason, now))
        finally:
            if self._calls.get(dial.link) is asyncio.current_task():
                del self._calls[dial.link]

    async def _resolve(self, dial: Dial) -> Endpoint:
        """Asked anew each time, for names; one address after the other, as the core counts attempts."""
        if literal(dial.host) is not None:
            return dial.host, dial.port
        found = await self._loop.run_in_executor(
            self._resolver, lambda: socket.getaddrinfo(dial.host, dial.port, type=socket.SOCK_STREAM))
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        return addresses[dial.attempt % len(addresses)], dial.port


def abort(stream: Stream) -> None:
    if stream.transport is not None:
        stream.transport.abort()


def listener(host: str, port: int) -> socket.socket:
    address = literal(host)
    family = socket.AF_INET6 if address is not None and address.version == 6 else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


def listen_sentence(error: OSError, host: str | None, port: int) -> str:
    where = f"TCP port {port}" + (f" on {host}" if host else "")
    if error.errno == errno.EADDRINUSE:
        return f"{where} is in use: another router runs here (see `ss -ltnp`), or choose another with --port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{where} cannot be opened: no interface has this address, name one of this host's with --host"
    return f"{where} cannot be opened: {error.strerror}"


def same_family(one: str, other: str) -> bool:
    first, second = literal(one), literal(other)
    return first is not None and second is not None and first.version == second.version
