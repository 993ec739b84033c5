"""Requests to the API server, by lightkube's client: its configuration, its TLS, its re-reading of the account's token.

What comes back is bounded here and read elsewhere: whole answers up to KUBE_BODY_MAX, watches line by line. The CA file
is loaded anew when it changed. Nothing is retried here. Imported in Kubernetes mode alone; where a node was a member
before, only when frames pass: it costs 6 MB and 50 ms.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from typing import Any, Final

import httpx2
import msgspec
from lightkube.config.client_adapter import ConnectionParams
from lightkube.config.kubeconfig import KubeConfig
from lightkube.config.models import Cluster, User
from lightkube.core.exceptions import ConfigError
from lightkube.core.generic_client import BasicRequest, GenericAsyncClient

from weave_router import limits

from .values import Answer, Call
from .watch import TOO_LARGE, WatchEnded

CALL_SECONDS: Final = 10.0
IDLE_SECONDS: Final = 90.0
"""A watch shows a bookmark about every minute; silence for longer means that it hangs."""
CHUNK: Final = 64 * 1024
PATCH: Final = "application/strategic-merge-patch+json"


class Api:
    """``server``: https://HOST:PORT. ``account``: the directory with token and ca.crt."""

    def __init__(self, server: str, account: str) -> None:
        self.server = server
        self._token, self._ca = os.path.join(account, "token"), os.path.join(account, "ca.crt")
        self._client: GenericAsyncClient | None = None
        self._ca_seen: tuple[float, int] = (0.0, 0)
        self._old: list[GenericAsyncClient] = []

    async def close(self) -> None:
        for client in [*self._old, *([self._client] if self._client else [])]:
            await client.close()  # type: ignore[no-untyped-call]
        self._old, self._client = [], None

    def _connected(self) -> GenericAsyncClient:
        """The client; a new one when the CA file is another. Watches under way keep theirs."""
        found = os.stat(self._ca)
        seen = (found.st_mtime, found.st_ino)
        if self._client is None or seen != self._ca_seen:
            if self._client is not None:
                self._old = [*self._old[-1:], self._client]
            cluster = Cluster(server=self.server, certificate_auth=self._ca)
            config = KubeConfig.from_one(cluster=cluster, user=User(token_file=self._token)).get()
            timeout = httpx2.Timeout(CALL_SECONDS)
            self._client = GenericAsyncClient(ConnectionParams(timeout=timeout, trust_env=False), config)
            self._ca_seen = seen
        return self._client

    async def _send(self, call: Call) -> Any:
        client = self._connected()
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if call.body:
            headers["Content-Type"] = PATCH if call.method == "PATCH" else "application/json"
        request = client.build_adapter_request(BasicRequest(
            call.method, call.path, params=dict(call.params), headers=headers,
            data=msgspec.Raw(call.body) if call.body else None,
            timeout=httpx2.Timeout(CALL_SECONDS, read=IDLE_SECONDS) if call.purpose == "watch" else None))
        return await client.send(request, stream=True)  # type: ignore[no-untyped-call]

    async def request(self, call: Call) -> Answer:
        """One answer; status 0 where there was none."""
        try:
            async with asyncio.timeout(CALL_SECONDS):
                response = await self._send(call)
                try:
                    return await _whole(response)
                finally:
                    await response.aclose()
        except TimeoutError:
            return Answer(0, detail=f"no answer within {CALL_SECONDS:.0f} s")
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, ConfigError, OSError) as error:
            return Answer(0, detail=_sentence(error))

    @contextlib.asynccontextmanager
    async def watch(self, call: Call) -> AsyncIterator[Answer | AsyncIterator[bytes]]:
        """Its lines, or the answer by which it was refused."""
        try:
            async with asyncio.timeout(2 * CALL_SECONDS):
                response = await self._send(call)
        except (TimeoutError, httpx2.HTTPError, httpx2.StreamError, ConfigError, OSError) as error:
            yield Answer(0, detail=_sentence(error))
            return
        try:
            if response.status_code != 200:
                async with asyncio.timeout(CALL_SECONDS):
                    refused = await _whole(response)
                yield refused
            else:
                yield _lines(response)
        except (httpx2.HTTPError, httpx2.StreamError, OSError, TimeoutError) as error:
            raise WatchEnded(_sentence(error)) from None
        finally:
            await response.aclose()


async def _whole(response: Any) -> Answer:
    after = response.headers.get("Retry-After", "")
    parts: list[bytes] = []
    size = 0
    async for part in response.aiter_raw(CHUNK):
        size += len(part)
        if size > limits.KUBE_BODY_MAX:
            return Answer(TOO_LARGE, detail=f"an answer larger than {limits.KUBE_BODY_MAX >> 20} MB")
        parts.append(part)
    seconds = float(after) if after.isascii() and after.isdecimal() and len(after) < 5 else 0.0
    return Answer(response.status_code, b"".join(parts), after=seconds)


async def _lines(response: Any) -> AsyncIterator[bytes]:
    """Whole lines; half of one at the end is dropped."""
    rest = bytearray()
    async for part in response.aiter_raw():
        rest += part
        if b"\n" in part:
            *whole, last = bytes(rest).split(b"\n")
            rest = bytearray(last)
            for line in whole:
                if line:
                    yield line
        if len(rest) > limits.KUBE_BODY_MAX:
            raise WatchEnded(f"a line larger than {limits.KUBE_BODY_MAX >> 20} MB")


def _sentence(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return "no answer in time" if isinstance(error, httpx2.TimeoutException) else text[:300]
