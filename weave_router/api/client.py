"""Asks a running router over its unix socket: the command line's only way in. Synchronous, standard library only.

Must not import aiohttp, asyncio or pyroute2: every command pays for what is imported here. Errors are UserErrors
with the sentence to print: NotRunningError where nothing answers, and whatever the router itself said.
"""

import http.client
import socket
from collections.abc import Generator, Mapping
from typing import Any, Final, TypeVar
from urllib.parse import urlencode

import msgspec

from weave_router import limits
from weave_router.api import schema
from weave_router.errors import NotRunningError, UsageError, UserError

_T = TypeVar("_T")
SOCKET_NAME: Final = "api.sock"
_ANSWER_MAX: Final = 256 << 20
"""A report of a full cluster stays far below; a socket that is no router's ends here."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


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
        connection, response = self._open("GET", f"{path}?{urlencode(query)}", None)
        try:
            assert connection.sock is not None
            connection.sock.settimeout(None)
            while piece := response.read1(1 << 16):
                yield piece
        except (OSError, http.client.HTTPException):
            raise UserError("the router hung up in the middle; see its log") from None
        finally:
            connection.close()

    def _read(self, method: str, path: str, body: bytes | None) -> bytes:
        connection, response = self._open(method, path, body)
        try:
            data = response.read(_ANSWER_MAX)
        except (OSError, http.client.HTTPException):
            raise UserError(f"the router's answer on {self.path} broke off; try again, and see its log") from None
        finally:
            connection.close()
        return data

    def _open(self, method: str, path: str, body: bytes | None) -> tuple[_UnixConnection, http.client.HTTPResponse]:
        connection = _UnixConnection(self.path, self._timeout)
        try:
            connection.request(method, path, body, {"Connection": "close", "Accept": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                raise _refusal(response.status, response.read(limits.API_BODY_MAX))
        except UserError:
            connection.close()
            raise
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._no_answer(error) from None
        return connection, response

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
        except msgspec.DecodeError as error:
            raise UserError(
                f"cannot read the router's answer ({error}); are this command and the router of one version?"
            ) from None


def _refusal(status: int, body: bytes) -> UserError:
    """What the router said, with its exit status."""
    try:
        reply: Any = msgspec.json.decode(body, type=schema.ErrorReply)
    except msgspec.DecodeError:
        return UserError(f"the router refused with HTTP status {status}")
    return UsageError(reply.error) if reply.exit_status == 2 else UserError(reply.error)
