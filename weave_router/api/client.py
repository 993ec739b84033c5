"""Asks a running router over its unix socket: the command line's only way in. Synchronous, standard library only.

Must not import aiohttp, asyncio or pyroute2: every command pays for what is imported here. Errors are UserErrors
with the sentence to print: NotRunningError where nothing answers, and whatever the router itself said.
"""

import http.client
import socket
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any, Final, TypeVar
from urllib.parse import urlencode

import msgspec

from weave_router import limits
from weave_router.api import schema
from weave_router.errors import NotRunningError, UsageError, UserError

_T = TypeVar("_T")
SOCKET_NAME: Final = "api.sock"
_BACKLOG_PAUSE: Final = 0.02


class _UnixConnection(http.client.HTTPConnection):
    """Keeps the socket: the base class lets go of it as soon as the answer begins (Connection: close)."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path
        self._patience = timeout
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(timeout)

    def connect(self) -> None:
        """A unix socket with a time-out does not wait for a place in the backlog, so this does."""
        ends_at = time.monotonic() + self._patience
        while True:
            try:
                self.socket.connect(self._path)
            except BlockingIOError:
                if time.monotonic() > ends_at:
                    raise TimeoutError from None
                time.sleep(_BACKLOG_PAUSE)
            else:
                break
        self.sock = self.socket

    def close(self) -> None:
        super().close()
        self.socket.close()


class ApiClient:
    """One request per call, one connection per request."""

    def __init__(self, run_dir: str, timeout: float = limits.API_CONNECTION_SECONDS) -> None:
        self.path = f"{run_dir.rstrip('/')}/{SOCKET_NAME}"
        self._timeout = timeout

    def get(self, path: str, kind: type[_T]) -> _T:
        """The answer to GET, as ``kind``."""
        return self._decode(self._read("GET", path, None), kind)

    def get_bytes(self, path: str) -> bytes:
        """The answer to GET as it came (metrics, text)."""
        return self._read("GET", path, None)

    def post(self, path: str, request: msgspec.Struct, kind: type[_T]) -> _T:
        """The answer to POST of ``request`` as JSON."""
        return self._decode(self._read("POST", path, msgspec.json.encode(request)), kind)

    def stream(self, path: str, query: Mapping[str, str | int | float]) -> Generator[bytes, None, None]:
        """Pieces of an answer that goes on; closing the generator hangs up."""
        with self._answer("GET", f"{path}?{urlencode(query)}", None) as (response, connection):
            connection.settimeout(None)
            try:
                while piece := response.read1(1 << 16):
                    yield piece
            except (OSError, http.client.HTTPException):
                raise UserError("the router hung up in the middle; see its log") from None

    def _read(self, method: str, path: str, body: bytes | None) -> bytes:
        with self._answer(method, path, body) as (response, _):
            try:
                return response.read()
            except (OSError, http.client.HTTPException):
                raise UserError(f"the router's answer on {self.path} broke off; try again, and see its log") from None

    @contextmanager
    def _answer(
        self, method: str, path: str, body: bytes | None
    ) -> Iterator[tuple[http.client.HTTPResponse, socket.socket]]:
        """An answer that has begun well, and its socket."""
        connection = _UnixConnection(self.path, self._timeout)
        with closing(connection):
            try:
                connection.request(method, path, body, {"Connection": "close", "Accept": "application/json"})
                response = connection.getresponse()
                refused = response.read(limits.API_BODY_MAX) if response.status != 200 else None
            except (OSError, http.client.HTTPException) as error:
                raise self._no_answer(error) from None
            with response:
                if refused is not None:
                    raise _refusal(response.status, refused)
                yield response, connection.socket

    def _no_answer(self, error: Exception) -> UserError:
        if isinstance(error, PermissionError):
            return UserError(f"may not open {self.path}; run this as root (sudo)")
        if isinstance(error, TimeoutError):
            return UserError(f"the router on {self.path} did not answer within {self._timeout:g} s; see its log")
        if isinstance(error, OSError) and "path too long" in str(error):
            return UsageError(f"--run-dir: {self.path} is too long for a unix socket")
        if isinstance(error, http.client.RemoteDisconnected | ConnectionResetError | BrokenPipeError):
            return UserError(f"the router on {self.path} hung up; it may be stopping or have too many requests")
        if isinstance(error, OSError):
            return NotRunningError(
                f"no router answers on {self.path}; start one by `weave-router launch`, or name its --run-dir"
            )
        return UserError(f"what answers on {self.path} is no weave-router")

    def _decode(self, data: bytes, kind: type[_T]) -> _T:
        try:
            return msgspec.json.decode(data, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UserError(
                f"cannot read the router's answer ({error}); are this command and the router of one version?"
            ) from None


def _refusal(status: int, body: bytes) -> UserError:
    """What the router said, with its exit status."""
    try:
        reply: Any = msgspec.json.decode(body, type=schema.ErrorReply)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return UserError(f"the router refused with HTTP status {status}")
    return UsageError(reply.error) if reply.exit_status == 2 else UserError(reply.error)
