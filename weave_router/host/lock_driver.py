"""One router per network namespace and TAP: a file lock in the run dir and an abstract unix socket named after the TAP.

A multi-queue TAP can be opened by a second process without an error, so both are taken before the first open: the
file holds off routers that share a run dir, the socket (abstract names belong to the network namespace) those that
share the device. Whoever connects to the socket learns by SO_PEERCRED who holds it, and by its end that it is free.
A roll-out's second router waits on that connection; what the two say over it stands in succession_driver.py.
"""

import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
import time
from pathlib import Path

from weave_router.host.faults import Fault, HostError
from weave_router.limits import LOCK_RETRY_SECONDS, LOCK_WAITERS

_PEERCRED = struct.Struct("3i")  # pid, uid, gid


class TapLock:
    """Held until ``release`` or the end of the process."""

    def __init__(self, file: int, listener: socket.socket) -> None:
        self._file = file
        self._listener = listener

    @property
    def listener(self) -> socket.socket:
        """Whoever waits connects here."""
        return self._listener

    def release(self) -> None:
        """Idempotent. The file stays: removing it would let two processes lock two files of one name."""
        self._listener.close()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def take(run_dir: Path, tap: str, *, wait: float = 0.0) -> TapLock:
    """Take both, or say who holds them. ``wait``: seconds to wait for their release."""
    end = time.monotonic() + wait
    while True:
        try:
            return take_once(run_dir, tap)
        except HostError as error:
            left = end - time.monotonic()
            if error.fault is not Fault.TAP_HELD or left <= 0:
                raise
        _await_release(tap, left)


def take_once(run_dir: Path, tap: str) -> TapLock:
    file = _lock_file(run_dir, tap)
    try:
        return TapLock(file, _listen(tap))
    except BaseException:
        os.close(file)
        raise


def _lock_file(run_dir: Path, tap: str) -> int:
    path = run_dir / f"tap-{tap}.lock"
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise HostError(Fault.LOCK_FILE, path=path, link=tap, errno=error.errno or 0) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        written = os.pread(file, 32, 0)
        os.close(file)
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise HostError(Fault.LOCK_FILE, path=path, link=tap, errno=error.errno or 0) from error
        raise _held(tap, _holder(tap) or _pid_of_untrusted(written)) from error
    return file


def _listen(tap: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.bind(_abstract(tap))
        listener.listen(LOCK_WAITERS)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise _held(tap, _holder(tap)) from error
    return listener


def _abstract(tap: str) -> str:
    return f"\0weave-router/{tap}"


def connect(tap: str) -> socket.socket | None:
    """To the holder; None where nobody listens in this namespace, or too many wait. Not blocking."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        link.connect(_abstract(tap))
    except OSError:
        link.close()
        return None
    return link


def _holder(tap: str) -> int:
    """Process id of who listens, 0 when nobody does or the backlog is full of other waiters."""
    link = connect(tap)
    if link is None:
        return 0
    with link:
        return int(_PEERCRED.unpack(link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))[0])


def _pid_of_untrusted(text: bytes) -> int:
    digits = text.strip()
    return int(digits) if digits.isdigit() and len(digits) <= 10 else 0


def _held(tap: str, pid: int) -> HostError:
    return HostError(Fault.TAP_HELD, link=tap, pid=pid or "unknown", command=_command(pid))


def _command(pid: int) -> str:
    """Its command line; it may run in another pid namespace, where we cannot see it."""
    try:
        text = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return "in another pid namespace or gone"
    return "".join(c if c.isprintable() else "?" for c in text.strip())[:200] or "no command line"


def _await_release(tap: str, seconds: float) -> None:
    """Returns when the holder lets go (our connection ends with its socket), or after a short while without one."""
    link = connect(tap)
    if link is None:
        time.sleep(min(seconds, LOCK_RETRY_SECONDS))
        return
    with link, contextlib.suppress(OSError):
        poller = select.poll()
        poller.register(link, select.POLLIN)
        poller.poll(max(1, int(seconds * 1000)))
