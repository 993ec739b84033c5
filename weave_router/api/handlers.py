"""The HTTP side: a path, a method, and what the router is asked. Every answer that is no success is ``{"error": ...}``.

Decides nothing about the network and keeps no state. A request body is bounded, decoded into a struct of schema.py,
and refused with a sentence otherwise. Called by server.py, which owns the socket.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import msgspec
from aiohttp import web

from weave_router import limits
from weave_router.api import pcapng, schema, text
from weave_router.api.door import Door
from weave_router.api.metrics import CONTENT_TYPE, Metrics
from weave_router.api.router_api import Capture, RouterApi, status_report
from weave_router.errors import UsageError, UserError

_log = logging.getLogger(__name__)
_Request = TypeVar("_Request", bound=msgspec.Struct)
_Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

CAPTURE_PATH: Final = "/capture"


class Handlers:
    """One instance per router. ``stopping`` ends captures when the router goes down."""

    def __init__(self, router: RouterApi) -> None:
        self._router = router
        self._metrics = Metrics(router)
        self.stopping = asyncio.Event()
        self.door: Door | None = None
        self._routes: dict[str, tuple[str, _Handler]] = {
            "/status": ("GET", self._status),
            **{f"/status/{subject}": ("GET", self._subject) for subject in text.SUBJECTS},
            "/tokens": ("GET", self._tokens),
            "/metrics": ("GET", self._scrape),
            "/report": ("GET", self._report),
            CAPTURE_PATH: ("GET", self._capture),
            "/connect": ("POST", self._connect),
            "/forget": ("POST", self._forget),
            "/detach": ("POST", self._detach),
            "/status/addresses": ("GET", self._addresses),
            "/claim": ("POST", self._told(schema.ClaimRequest, lambda request: router.claim(request))),
            "/expose": ("POST", self._told(schema.ExposeRequest, lambda request: router.expose(request))),
            "/ipam/check": ("POST", self._told(schema.CheckRequest, lambda request: router.ipam_check(request))),
            "/ipam/ungate": ("POST", self._told(schema.UngateRequest, lambda request: router.ungate(request))),
            "/retire": ("POST", self._told(schema.RetireRequest, lambda request: router.retire(request))),
            "/retirement": ("GET", self._retirement),
        }

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """The person's errors become sentences, ours a logged traceback and a 500; the router goes on."""
        try:
            return await self._route(request)
        except UserError as error:
            return _error(400 if isinstance(error, UsageError) else 409, str(error), error.exit_status)
        except web.HTTPRequestEntityTooLarge:
            return _error(413, f"the body is larger than {limits.API_BODY_MAX} bytes", 2)
        except web.RequestPayloadError:
            return _error(400, f"the body of {request.path} broke off or is no HTTP", 2)
        except TimeoutError:
            return _error(504, f"the router did not answer within {limits.API_HANDLER_SECONDS:g} s; see its log")
        except ConnectionError:
            raise
        except Exception:
            _log.exception("request failed", extra={"method": request.method, "path": request.path})
            return _error(500, "the router failed to answer; its log says why")

    async def _route(self, request: web.BaseRequest) -> web.StreamResponse:
        method, handler = self._routes.get(request.path, ("", None))
        if handler is None:
            return _error(404, f"there is nothing at {request.path!a}; there are {', '.join(self._routes)}", 2)
        if request.method != method:
            return _error(405, f"{request.path} takes {method}", 2)
        if request.path == CAPTURE_PATH:
            return await handler(request)
        async with asyncio.timeout(limits.API_HANDLER_SECONDS):
            return await handler(request)

    # -- what is read --------------------------------------------------------------------------------------------

    async def _status(self, request: web.BaseRequest) -> web.Response:
        report = status_report(self._router)
        if _wants_text(request):
            return web.Response(text=text.render(report, "", time.time()) + "\n")
        return _json(report)

    async def _subject(self, request: web.BaseRequest) -> web.Response:
        subject = request.path.removeprefix("/status/")
        if _wants_text(request):
            return web.Response(text=text.render(status_report(self._router), subject, time.time()) + "\n")
        return _json(self._section(subject))

    def _section(self, subject: str) -> Any:
        if subject == "attachments":
            return self._router.ipam().attachments
        return getattr(self._router, subject)()

    async def _addresses(self, request: web.BaseRequest) -> web.Response:
        """Not part of the page: there may be ten thousand."""
        found = self._router.addresses()
        if _wants_text(request):
            return web.Response(text=text.addresses(found) + "\n")
        return _json(found)

    async def _retirement(self, request: web.BaseRequest) -> web.Response:
        return _json(self._router.retirement())

    async def _tokens(self, request: web.BaseRequest) -> web.Response:
        return _json(self._router.tokens())

    async def _scrape(self, request: web.BaseRequest) -> web.Response:
        return web.Response(body=self._metrics.scrape(), headers={"Content-Type": CONTENT_TYPE})

    async def _report(self, request: web.BaseRequest) -> web.Response:
        return _json(bounded_report(self._router, time.time()))

    # -- what is told --------------------------------------------------------------------------------------------

    async def _connect(self, request: web.BaseRequest) -> web.Response:
        return _json(await self._router.connect(await _body_untrusted(request, schema.ConnectRequest)))

    async def _forget(self, request: web.BaseRequest) -> web.Response:
        return _json(await self._router.forget(await _body_untrusted(request, schema.ForgetRequest)))

    async def _detach(self, request: web.BaseRequest) -> web.Response:
        return _json(await self._router.detach(await _body_untrusted(request, schema.DetachRequest)))

    def _told(self, kind: type[_Request], carry_out: Callable[[_Request], Awaitable[Any]]) -> _Handler:
        async def handler(request: web.BaseRequest) -> web.StreamResponse:
            return _json(await carry_out(await _body_untrusted(request, kind)))

        return handler

    # -- capture -------------------------------------------------------------------------------------------------

    async def _capture(self, request: web.BaseRequest) -> web.StreamResponse:
        wanted = _query_untrusted(request)
        service = self._router.service()
        capture = await self._router.capture(wanted)
        stream = _Stream(capture, wanted, request)
        if self.door is not None:
            self.door.stay(request.transport)
        try:
            try:
                await stream.open(service)
                await stream.copy(self.stopping)
            finally:
                lost = await capture.stop()
            await stream.close(lost)
        except Exception as error:
            stream.give_up(error)
        return stream.response


class _Stream:
    """One capture on its way to one asker, until the count, the time, the asker's hang-up or the router's end."""

    def __init__(self, capture: Capture, wanted: schema.CaptureRequest, request: web.BaseRequest) -> None:
        self._capture = capture
        self._wanted = wanted
        self._request = request
        self._sent = 0
        self.response = web.StreamResponse(headers={"Content-Type": "application/x-pcapng"})

    async def open(self, service: schema.Service) -> None:
        await self.response.prepare(self._request)
        await self._write(pcapng.header(
            interface=service.bridge,
            application=f"weave-router {service.version}",
            snap=self._wanted.snap,
            comment=f"inner frames of node {service.id} ({service.nickname})",
        ))

    async def copy(self, stopping: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + (self._wanted.seconds or float("inf"))
        while not self._done() and not stopping.is_set() and loop.time() < ends_at:
            frames = await self._capture.read()
            if self._wanted.count:
                frames = frames[: self._wanted.count - self._sent]
            self._sent += len(frames)
            if frames:
                await self._write(b"".join(pcapng.packet(*self._cut(frame)) for frame in frames))

    def _cut(self, frame: tuple[int, int, int, bytes]) -> tuple[int, int, int, bytes]:
        ns, direction, length, data = frame
        return ns, direction, length, data[: self._wanted.snap]

    def _done(self) -> bool:
        """Enough frames, or nobody is there any more."""
        transport = self._request.transport
        return (0 < self._wanted.count <= self._sent) or transport is None or transport.is_closing()

    async def close(self, lost: int) -> None:
        transport = self._request.transport
        if transport is not None and not transport.is_closing():
            await self._write(pcapng.statistics(time.time_ns(), received=self._sent + lost, dropped=lost))
            await self.response.write_eof()

    def give_up(self, error: Exception) -> None:
        """An error page in the middle of a stream would be read as frames, so the only word left is to hang up."""
        if not isinstance(error, ConnectionError | TimeoutError):
            _log.error("capture failed", exc_info=error)
        if self._request.transport is not None:
            self._request.transport.abort()

    async def _write(self, data: bytes) -> None:
        """A reader that takes nothing for so long has gone; waiting on would hold the only capture."""
        async with asyncio.timeout(limits.API_HANDLER_SECONDS):
            await self.response.write(data)


# --- helpers ----------------------------------------------------------------------------------------------------


def bounded_report(router: RouterApi, now: float) -> schema.Report:
    """Status, trace (the newest rows), tables (the first rows), each at most REPORT_ROWS_MAX, and what was cut."""
    most = limits.REPORT_ROWS_MAX
    trace, tables = router.trace(), router.tables()
    rows = {name: len(table) for name, table in tables.items()} | {"trace": len(trace)}
    return schema.Report(
        created_at=now,
        status=status_report(router),
        trace=tuple(trace[-most:]),
        tables={name: tuple(table[:most]) for name, table in tables.items()},
        truncated={name: count - most for name, count in rows.items() if count > most},
    )


def _wants_text(request: web.BaseRequest) -> bool:
    wanted = request.query.get("format")
    return wanted == "text" or (wanted is None and "text/plain" in request.headers.get("Accept", ""))


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value) + b"\n", status=status, content_type="application/json")


async def _body_untrusted(request: web.BaseRequest, kind: type[_Request]) -> _Request:
    data = await request.read()
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"the body of {request.path} cannot be used: {error}") from None


def _query_untrusted(request: web.BaseRequest) -> schema.CaptureRequest:
    try:
        return msgspec.convert(dict(request.query), schema.CaptureRequest, strict=False)
    except msgspec.ValidationError as error:
        raise UsageError(f"the query of {CAPTURE_PATH} cannot be used: {error}") from None


def _error(status: int, sentence: str, exit_status: int = 1) -> web.Response:
    """A sentence may quote what was asked, whatever that was made of."""
    clean = sentence.encode(errors="backslashreplace").decode()
    return _json(schema.ErrorReply(error=clean, exit_status=exit_status), status)
