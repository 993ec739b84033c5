"""The API's unix socket: made, guarded, served, removed. What is served stands in handlers.py.

The socket is the router's own user's alone (mode 0600 from its first moment) and takes its name in one step, so
nobody ever meets a half-made one. Called by router.py, on the event loop.
"""

import asyncio
import contextlib
import logging
import os
import socket
from typing import Final

from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import RawRequestMessage

from weave_router import limits
from weave_router.api.door import Door
from weave_router.api.handlers import Handlers
from weave_router.api.router_api import Capture, CapturedFrame, RouterApi
from weave_router.errors import UserError

__all__ = ["ApiServer", "Capture", "CapturedFrame", "RouterApi"]

SOCKET_NAME: Final = "api.sock"
_BACKLOG: Final = 64
_http_log = logging.getLogger("weave_router.api.http")
_http_log.setLevel(logging.CRITICAL)
"""aiohttp tells of every malformed request, with a traceback; mistakes of ours are logged by handlers.py."""


class ApiServer:
    """``async with ApiServer(router, run_dir)``, or start() and stop()."""

    def __init__(self, router: RouterApi, run_dir: str) -> None:
        self.path = f"{run_dir}/{SOCKET_NAME}"
        self._router = router
        self._runner: web.ServerRunner | None = None
        self._server: asyncio.AbstractServer | None = None
        self._handlers: Handlers | None = None
        self._inode = 0

    async def start(self) -> None:
        """Serve. UserError if the socket cannot be made or another router answers on it."""
        listener = _listen(self.path)
        self._inode = os.stat(self.path).st_ino
        loop = asyncio.get_running_loop()
        self._handlers = Handlers(self._router)
        served = web.Server(
            self._handlers.answer, request_factory=_bounded_request, access_log=None, tcp_keepalive=False,
            keepalive_timeout=limits.API_CONNECTION_SECONDS, auto_decompress=False,
            logger=_http_log,
        )  # fmt: skip
        self._runner = web.ServerRunner(served, handle_signals=False, shutdown_timeout=1.0)
        await self._runner.setup()
        self._handlers.door = Door(served, loop)
        self._server = await loop.create_unix_server(self._handlers.door, sock=listener, backlog=_BACKLOG)

    async def stop(self) -> None:
        """End captures, let answers finish for a second, hang up, remove the socket. Idempotent."""
        if self._server is None or self._runner is None or self._handlers is None:
            return
        self._handlers.stopping.set()
        self._server.close()
        self._server = None
        await self._runner.cleanup()
        with contextlib.suppress(FileNotFoundError):
            if os.stat(self.path).st_ino == self._inode:
                os.unlink(self.path)

    async def __aenter__(self) -> "ApiServer":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


def _bounded_request(
    message: RawRequestMessage, payload: StreamReader, protocol: web.RequestHandler,
    writer: AbstractStreamWriter, task: "asyncio.Task[None]",
) -> web.BaseRequest:  # fmt: skip
    """aiohttp's own requests take a megabyte."""
    loop = asyncio.get_running_loop()
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=limits.API_BODY_MAX)


def _listen(path: str) -> socket.socket:
    """A bound socket under ``path``. Linux takes the mode of the file from the socket's own, set before the bind."""
    if _answers(path):
        raise UserError(f"another router answers on {path}; stop it, or give this one another --run-dir")
    temporary = f"{path}.new"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        os.fchmod(listener.fileno(), 0o600)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        listener.bind(temporary)
        listener.listen(_BACKLOG)
        os.rename(temporary, path)
    except OSError as error:
        listener.close()
        raise UserError(f"cannot listen on {path}: {error.strerror}; is --run-dir a writable directory?") from None
    return listener


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except (BlockingIOError, TimeoutError):  # its backlog is full: busy, not gone
            return True
        except OSError:
            return False
        return True
