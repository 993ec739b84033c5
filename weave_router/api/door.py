"""Stands before aiohttp at the API's socket: how many may come in, and how long they may stay.

aiohttp puts no deadline on a request that is never finished; here every connection has one, which a handler lifts
for what may last (a capture). Knows nothing of HTTP. Called by server.py alone.
"""

import asyncio
from collections.abc import Callable
from typing import cast

from weave_router import limits


class Door:
    """Makes a guarded protocol for each connection; ``make`` makes the one behind it."""

    def __init__(self, make: Callable[[], asyncio.Protocol], loop: asyncio.AbstractEventLoop) -> None:
        self._make = make
        self._loop = loop
        self._deadlines: dict[asyncio.BaseTransport, asyncio.TimerHandle] = {}
        self.turned_away = 0
        self.timed_out = 0

    def __call__(self) -> asyncio.Protocol:
        return _Guarded(self, self._make())

    def enter(self, transport: asyncio.Transport) -> bool:
        """False: too many are inside."""
        if len(self._deadlines) >= limits.API_CONNECTIONS_MAX:
            self.turned_away += 1
            return False
        self._deadlines[transport] = self._loop.call_later(limits.API_CONNECTION_SECONDS, self._expire, transport)
        return True

    def stay(self, transport: asyncio.BaseTransport | None) -> None:
        """This connection may last; it still counts."""
        if transport in self._deadlines:
            self._deadlines[transport].cancel()

    def leave(self, transport: asyncio.BaseTransport) -> None:
        self._deadlines.pop(transport).cancel()

    def _expire(self, transport: asyncio.Transport) -> None:
        self.timed_out += 1
        transport.abort()


class _Guarded(asyncio.Protocol):
    """Passes every call on once the door has let the connection in."""

    def __init__(self, door: Door, inner: asyncio.Protocol) -> None:
        self._door = door
        self._inner = inner
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        if not self._door.enter(stream):
            stream.abort()
            return
        self._transport = stream
        self._inner.connection_made(stream)

    def data_received(self, data: bytes) -> None:
        if self._transport is not None:
            self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received() if self._transport is not None else None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._door.leave(self._transport)
            self._transport = None
            self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()
