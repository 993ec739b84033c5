"""Hands a pod's network namespace to the router: both ends of attach.sock. Decides nothing.

Client (the ``attach`` command; the CNI shim does the same in C): enters the namespace in a throw-away thread, opens a
netlink socket there, sets the pod's sysctls and sends both descriptors. Server (the daemon): takes the request with
its descriptors and calls a handler; a client that hangs up in mid-request is reported, so that the work is undone.
"""

import array
import asyncio
import contextlib
import ctypes
import os
import socket
import struct
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from errno import EINVAL, EPERM
from pathlib import Path
from typing import Any, Final

from weave_router.errors import BadPacket
from weave_router.host import handover, sysctl_driver
from weave_router.host.faults import Fault, HostError
from weave_router.limits import (
    HANDOVER_CLIENTS,
    HANDOVER_DESCRIPTORS,
    HANDOVER_READ_SECONDS,
    HANDOVER_RETRY_SECONDS,
)

_CLONE_NEWNET: Final = 0x40000000
_NETLINK_ROUTE: Final = 0
_DESCRIPTOR: Final = array.array("i").itemsize
_READ_BYTES: Final = 64 * 1024
_PEERCRED = struct.Struct("3i")

POD_SYSCTLS: Final = (
    # "default", because the pod's interface is still to come.
    ("net/ipv6/conf/default/disable_ipv6", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    # The kernel announces a pod's addresses by itself: the daemon needs no packet socket inside.
    ("net/ipv4/conf/default/arp_notify", "1"),
    ("net/ipv6/conf/default/ndisc_notify", "1"),
)


# -- client --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PodHandle:
    """A namespace, opened. Both descriptors are the holder's to close."""

    netlink: int
    netns: int

    def close(self) -> None:
        os.close(self.netlink)
        os.close(self.netns)


def open_pod(path: str) -> PodHandle:
    """Needs CAP_SYS_ADMIN. The calling thread stays where it is."""
    try:
        netns = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(Fault.NETNS_OPEN, path=path, errno=error.errno or 0) from error
    try:
        if os.path.samestat(os.fstat(netns), os.stat("/proc/thread-self/ns/net")):
            raise HostError(Fault.NETNS_OWN, path=path)
        return PodHandle(_in_thread(lambda: _enter(netns, path)), netns)
    except BaseException:
        os.close(netns)
        raise


def _in_thread(work: Callable[[], int]) -> int:
    """A thread that entered a namespace is never used again."""
    results: list[int] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=body, name="netns")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _enter(netns: int, path: str) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(netns, _CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise HostError({EPERM: Fault.NETNS_ENTER}.get(code, Fault.NETNS_KIND), path=path, errno=code)
    for name, value in POD_SYSCTLS:
        sysctl_driver.write(name, value, link=path)
    # SOCK_DGRAM: what pyroute2's IPRoute(fileno=...) takes.
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_ROUTE) as netlink:
        return netlink.detach()


def hand_over(path: Path, request: dict[str, Any], pod: PodHandle, *, timeout: float) -> dict[str, Any]:
    """Send a request with the pod's two descriptors, wait for the answer. Blocking."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    with client:
        client.settimeout(timeout)
        try:
            client.connect(str(path))
        except OSError as error:
            raise HostError(Fault.HANDOVER_AWAY, path=path, errno=error.errno or EINVAL) from error
        try:
            message = handover.frame(request)
            sent = socket.send_fds(client, [message], [pod.netlink, pod.netns])
            if sent < len(message):  # no empty send: a router that has answered and gone already would fail it
                client.sendall(message[sent:])
            length = handover.length_untrusted(_read(client, handover.HEAD_BYTES))
            return handover.body_untrusted(_read(client, length))
        except (OSError, BadPacket) as error:
            raise HostError(Fault.HANDOVER_SILENT, path=path, seconds=timeout) from error


def _read(client: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        piece = client.recv(length - len(data))
        if not piece:
            raise BadPacket("handover: hung up")
        data += piece
    return bytes(data)


# -- server --------------------------------------------------------------------------------------------------------


@dataclass
class Request:
    """One request. The descriptors are closed by the server when the handler is done; -1 where none came (a CNI DEL
    needs no namespace)."""

    body: dict[str, Any]
    netlink: int
    netns: int
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the client went away: whatever the handler still does will be undone."""
    undo: Callable[[], Awaitable[None]] | None = None
    """Left by a handler that can say what takes back its work, should the client not take the answer."""


Handler = Callable[[Request], Awaitable[dict[str, Any]]]
Abandoned = Callable[[Request, dict[str, Any]], Awaitable[None]]


class HandoverServer:
    """attach.sock. ``handler`` answers a request; ``abandoned`` undoes what it did for a client that did not wait."""

    def __init__(self, path: Path, handler: Handler, abandoned: Abandoned) -> None:
        self._path = path
        self._handler = handler
        self._abandoned = abandoned
        self._room = asyncio.Semaphore(HANDOVER_CLIENTS)
        self._clients: set[asyncio.Task[None]] = set()
        self.refused = 0
        """Requests that were no requests."""

    async def serve(self) -> None:
        """Until cancelled; requests under way are finished first."""
        listener = self._listen()
        try:
            await self._accept(listener)
        finally:
            listener.close()
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()
            if self._clients:
                await asyncio.wait(self._clients)

    def _listen(self) -> socket.socket:
        """The run dir's lock is held, so a socket file that is there belongs to nobody."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            self._path.unlink(missing_ok=True)
            listener.bind(str(self._path))
            self._path.chmod(0o600)
            listener.listen(HANDOVER_CLIENTS)
        except OSError as error:
            listener.close()
            raise HostError(Fault.HANDOVER_LISTEN, path=self._path, errno=error.errno or EINVAL) from error
        return listener

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            await self._room.acquire()
            try:
                client = await _accept_one(listener)
            except BaseException:
                self._room.release()
                raise
            task = asyncio.create_task(self._client(client))
            self._clients.add(task)
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._clients.discard(task)
        self._room.release()
        if not task.cancelled():
            task.result()

    async def _client(self, client: socket.socket) -> None:
        client.setblocking(False)
        fds: list[int] = []
        try:
            body = await _receive_untrusted(client, fds)
            if not _is_trusted(client):
                raise BadPacket("handover: neither root nor our own user")
            if len(fds) not in (0, HANDOVER_DESCRIPTORS):
                raise BadPacket("handover: neither two descriptors nor none")
            await self._answer(client, Request(body, *(fds or (-1, -1))))
        except (BadPacket, TimeoutError, OSError):
            self.refused += 1
        finally:
            for fd in fds:
                os.close(fd)
            client.close()

    async def _answer(self, client: socket.socket, request: Request) -> None:
        loop = asyncio.get_running_loop()

        def hang_up() -> None:
            """A client says nothing after its request: whatever comes is its end."""
            loop.remove_reader(client.fileno())
            request.hung_up.set()

        loop.add_reader(client.fileno(), hang_up)
        try:
            reply = await self._handler(request)
        finally:
            loop.remove_reader(client.fileno())
        delivered = not request.hung_up.is_set() and await _reply(client, reply)
        if not delivered:
            request.hung_up.set()
            await self._abandoned(request, reply)


async def _accept_one(listener: socket.socket) -> socket.socket:
    """By hand: asyncio's own sock_accept, cancelled as a connection comes, accepts it and raises in the loop (3.11)."""
    while True:
        try:
            client, _ = listener.accept()
        except BlockingIOError:
            await _readable(listener)
            continue
        except OSError:  # out of descriptors, or the client went: the others wait in the backlog
            await asyncio.sleep(HANDOVER_RETRY_SECONDS)
            continue
        return client


def _is_trusted(client: socket.socket) -> bool:
    _, uid, _ = _PEERCRED.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))
    return uid in (0, os.geteuid())


async def _reply(client: socket.socket, reply: dict[str, Any]) -> bool:
    """True once the kernel has it for the client."""
    message = memoryview(handover.frame(reply))
    try:
        sent = _send(client, message)
        if sent < len(message):
            async with asyncio.timeout(HANDOVER_READ_SECONDS):
                await asyncio.get_running_loop().sock_sendall(client, message[sent:])
    except (OSError, TimeoutError):
        return False
    return True


def _send(client: socket.socket, message: memoryview) -> int:
    try:
        return client.send(message)
    except BlockingIOError:
        return 0


async def _readable(client: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(client.fileno(), wake)
    try:
        await ready
    finally:
        loop.remove_reader(client.fileno())


async def _receive_untrusted(client: socket.socket, fds: list[int]) -> dict[str, Any]:
    """One whole request, as a rule there already. Descriptors go to ``fds`` as they come, so that the caller closes
    them whatever happens."""
    data = bytearray()
    length: int | None = None
    end = asyncio.get_running_loop().time() + HANDOVER_READ_SECONDS
    while length is None or len(data) < handover.HEAD_BYTES + length:
        try:
            piece = _recvmsg_untrusted(client, fds)
        except BlockingIOError:
            async with asyncio.timeout_at(end):
                await _readable(client)
            continue
        if not piece:
            raise BadPacket("handover: hung up")
        data += piece
        if length is None and len(data) >= handover.HEAD_BYTES:
            length = handover.length_untrusted(bytes(data[: handover.HEAD_BYTES]))
    if len(data) > handover.HEAD_BYTES + length:
        raise BadPacket("handover: bytes after the request")
    return handover.body_untrusted(bytes(data[handover.HEAD_BYTES :]))


def _recvmsg_untrusted(client: socket.socket, fds: list[int]) -> bytes:
    room = socket.CMSG_SPACE(HANDOVER_DESCRIPTORS * _DESCRIPTOR)
    piece, ancillary, flags, _ = client.recvmsg(_READ_BYTES, room, socket.MSG_CMSG_CLOEXEC)
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            whole = len(content) - len(content) % _DESCRIPTOR
            fds.extend(array.array("i", content[:whole]))
    if flags & socket.MSG_CTRUNC or len(fds) > HANDOVER_DESCRIPTORS:
        raise BadPacket("handover: too many descriptors")
    return piece
