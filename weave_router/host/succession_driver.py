"""One router follows another without a gap: the old one forwards until the new one has everything loaded.

    old                          connection to the lock's socket                       heir
    forwards, serves                                                    connects, waits: its probe says ready
    told to end: stops serving,
    closes the store             -- u32 length | estate ------------->  opens the store, loads all tables
    goes on forwarding
    stops reading, lets go       <------------------------- GO byte --
    of TAP, port, lock           -- end ------------------------------> takes them, reads

Whichever of the two ends in between, the other one goes on without it: the old one ends as it was told to, the heir
starts as after a crash. An estate is opaque here (mesh/estate.py). Made by router.py.
"""

import asyncio
import contextlib
import os
import select
import socket
import struct
import time
from pathlib import Path
from typing import Final

from weave_router.errors import BadPacket
from weave_router.host import handover, lock_driver
from weave_router.host.faults import Fault, HostError
from weave_router.host.lock_driver import TapLock
from weave_router.limits import ESTATE_BYTES_MAX, LOCK_RETRY_SECONDS, LOCK_WAITERS, SUCCESSION_SECONDS

STANDBY_SOCKET: Final = "standby.sock"
_GO: Final = b"g"
_HEAD: Final = struct.Struct(">I")
_PEERCRED: Final = struct.Struct("3i")
_PROBE_SECONDS: Final = 0.5


# -- the heir ----------------------------------------------------------------------------------------------------------


class Turn:
    """A router's place behind the one that holds the lock; or, without ``estate``, the lock itself."""

    def __init__(self, run_dir: Path, tap: str, lock: TapLock | None, link: socket.socket | None = None,
                 estate: bytes = b"") -> None:
        self.estate = estate
        self._run_dir, self._tap = run_dir, tap
        self._lock = lock
        self._link = link

    def take(self) -> TapLock:
        """From now on nobody else reads TAP and port. Blocks while the predecessor lets go."""
        if self._link is not None:
            with self._link, contextlib.suppress(OSError):
                self._link.settimeout(SUCCESSION_SECONDS)
                self._link.sendall(_GO)
                self._link.recv(1)
            self._link = None
        if self._lock is None:
            self._lock = lock_driver.take(self._run_dir, self._tap, wait=SUCCESSION_SECONDS)
        return self._lock

    def release(self) -> None:
        """Idempotent."""
        if self._link is not None:
            self._link.close()
            self._link = None
        if self._lock is not None:
            self._lock.release()


def await_turn(run_dir: Path, tap: str, *, wait: float = 0.0) -> Turn:
    """The lock, or its holder's estate once it ends. ``wait``: seconds; 0: whoever holds it is named at once."""
    end = time.monotonic() + wait
    with _Standby(run_dir / STANDBY_SOCKET) as standby:
        while True:
            try:
                return Turn(run_dir, tap, lock_driver.take_once(run_dir, tap))
            except HostError as error:
                left = end - time.monotonic()
                if error.fault is not Fault.TAP_HELD or left <= 0:
                    raise
            turn = _queue(run_dir, tap, standby, end)
            if turn is not None:
                return turn


def _queue(run_dir: Path, tap: str, standby: "_Standby", end: float) -> Turn | None:
    """None: the holder went without a word, or is in another namespace; try again."""
    link = lock_driver.connect(tap)
    if link is None:
        standby.wait(None, LOCK_RETRY_SECONDS)
        return None
    try:
        if _is_trusted(link) and standby.wait(link, end - time.monotonic()):
            link.settimeout(SUCCESSION_SECONDS)
            return Turn(run_dir, tap, None, link, _read_estate(link))
    except (OSError, BadPacket):
        pass
    link.close()
    return None


def _read_estate(link: socket.socket) -> bytes:
    (length,) = _HEAD.unpack(_exactly(link, _HEAD.size))
    if length > ESTATE_BYTES_MAX:
        raise BadPacket("estate: length out of bounds")
    return _exactly(link, length)


def _exactly(link: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        piece = link.recv(min(length - len(data), 1 << 20))
        if not piece:
            raise BadPacket("estate: hung up")
        data += piece
    return bytes(data)


class _Standby:
    """Answers probes while the heir waits, which is all that it is to do; made with the first wait."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._listener: socket.socket | None = None

    def __enter__(self) -> "_Standby":
        return self

    def __exit__(self, *_: object) -> None:
        if self._listener is not None:
            self._listener.close()
            self._path.unlink(missing_ok=True)

    def wait(self, link: socket.socket | None, seconds: float) -> bool:
        """Until ``link`` says something or ends; False when the time is over."""
        listener = self._listener = self._listener or self._listen()
        end = time.monotonic() + seconds
        poller = select.poll()
        for watched in (listener, link):
            if watched is not None:
                poller.register(watched, select.POLLIN)
        while (left := end - time.monotonic()) > 0:
            ready = {fd for fd, _ in poller.poll(max(1, int(left * 1000)))}
            if listener.fileno() in ready:
                self._answer(listener)
            if link is not None and link.fileno() in ready:
                return True
        return False

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._path.unlink(missing_ok=True)
        listener.bind(str(self._path))
        self._path.chmod(0o600)
        listener.listen(LOCK_WAITERS)
        return listener

    def _answer(self, listener: socket.socket) -> None:
        """Whatever is asked: this router lives, and waits for its turn."""
        with contextlib.suppress(OSError, BadPacket):
            client, _ = listener.accept()
            with client:
                client.settimeout(_PROBE_SECONDS)
                _exactly(client, handover.length_untrusted(_exactly(client, handover.HEAD_BYTES)))
                client.sendall(handover.frame({}))


# -- the old one -------------------------------------------------------------------------------------------------------


class Heirs:
    """Who waits for the lock. ``accept`` is called when its socket is readable; all methods from the loop's thread."""

    def __init__(self, lock: TapLock) -> None:
        self._lock = lock
        self._links: list[socket.socket] = []

    def accept(self) -> None:
        """Takes in who waits; who only asked for the holder's name has gone again."""
        with contextlib.suppress(OSError):
            while True:
                link, _ = self._lock.listener.accept()
                link.setblocking(False)
                if _is_trusted(link):
                    self._links.append(link)
                else:
                    link.close()
        for link in self._links.copy():
            if _has_gone(link):
                self._drop(link)

    async def bequeath(self, estate: bytes) -> bool:
        """Returns when the heir has loaded everything and waits for TAP and port. False: there is none."""
        self.accept()
        while self._links:
            link = self._links[-1]
            try:
                async with asyncio.timeout(SUCCESSION_SECONDS):
                    loop = asyncio.get_running_loop()
                    await loop.sock_sendall(link, _HEAD.pack(len(estate)) + estate)
                    if await loop.sock_recv(link, 1) == _GO:
                        return True
            except (OSError, TimeoutError):
                pass
            self._drop(link)
        return False

    @property
    def waiting(self) -> bool:
        self.accept()
        return bool(self._links)

    def close(self) -> None:
        """After the lock's release: its end is what the heir waits for."""
        for link in self._links.copy():
            self._drop(link)

    def _drop(self, link: socket.socket) -> None:
        self._links.remove(link)
        link.close()


def _has_gone(link: socket.socket) -> bool:
    try:
        return link.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _is_trusted(link: socket.socket) -> bool:
    _, uid, _ = _PEERCRED.unpack(link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))
    return uid in (0, os.geteuid())
