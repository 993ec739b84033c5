"""A relay before the real API server that speaks HTTP: it lets a request pass, or answers something else.

    router ---TLS---> Hostile (409, garbage, half a line, ...) ---TLS---> kube-apiserver

It has the server's own certificate. One request per connection. ``kinds`` are what it draws from for each request; how
often each was served stands in ``served``. Called by test_hostile.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import Counter
from collections.abc import Sequence
from random import Random

from kube.server import Server

FAIR = "fair"
STATUSES = ("409", "410", "429", "500")
KINDS = (*STATUSES, "after", "garbage", "half", "hang", "endless", "no length")
"""``after``: carried out, but answered 500. ``half``: cut in the middle of an answer, or of a line of a watch."""
ENDLESS_BYTES = 8 << 20


class Hostile:
    def __init__(self, server: Server, rng: Random) -> None:
        self.kinds: Sequence[str] = (FAIR,)
        self.served: Counter[str] = Counter()
        self.port = 0
        self._target = (server.address, server.port)
        self._rng = rng
        self._inside = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._inside.load_cert_chain(server.directory / "api.crt", server.directory / "api.key")
        self._outside = ssl.create_default_context(cafile=str(server.directory / "api.crt"))
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Hostile:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._inside)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    def drop_all(self) -> None:
        """Watches that were let through before are no excuse."""
        for task in list(self._open):
            task.cancel()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._serve(reader, writer)
        finally:
            self._open.discard(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head, body = await _request(reader)
        kind = self._rng.choice(self.kinds)
        self.served[kind] += 1
        if kind in (FAIR, "after", "half"):
            far_reader, far_writer = await asyncio.open_connection(*self._target, ssl=self._outside)
            try:
                far_writer.write(head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + body)
                if kind == FAIR:
                    while data := await far_reader.read(1 << 16):
                        writer.write(data)
                        await writer.drain()
                elif kind == "half":
                    data = await far_reader.read(1 << 16)
                    data += await far_reader.read(1 << 16)
                    writer.write(data[: -max(1, self._rng.randrange(len(data) // 4 + 1))])
                    await writer.drain()
                else:
                    await far_reader.read(1 << 16)
                    await _answer(writer, "500", b"{}")
            finally:
                far_writer.transport.abort()
        elif kind in STATUSES:
            await _answer(writer, kind, b'{"kind":"Status","code":%s}' % kind.encode())
        elif kind == "garbage":
            await _answer(writer, "200", self._rng.randbytes(self._rng.randrange(1, 4000)))
        elif kind == "hang":
            await reader.read()  # until the client gives up
        elif kind == "no length":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Len")
            await writer.drain()
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
            for _ in range(ENDLESS_BYTES >> 16):
                writer.write(b"[" * (1 << 16))
                await writer.drain()
        await writer.drain()
        writer.close()
        await writer.wait_closed()


async def _request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """(request line and headers, body)."""
    head = await reader.readuntil(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")]
    return head, await reader.readexactly(int(lengths[0]) if lengths else 0)


async def _answer(writer: asyncio.StreamWriter, status: str, body: bytes) -> None:
    after = b"Retry-After: 1\r\n" if status == "429" else b""
    writer.write(b"HTTP/1.1 %s Said\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n"
                 % (status.encode(), len(body)) + after + b"\r\n" + body)
    await writer.drain()
