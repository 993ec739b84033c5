"""The files that shim and router share: the DEL journal in the state dir, the `alive` file in the run dir.

Decides nothing but what is a file of ours. ``serve`` keeps both up to date as long as the router lives. Built by
router.py; service.py reads the journal through it.
"""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final

from weave_router.cni.attachments import Rival
from weave_router.errors import UserError
from weave_router.limits import (
    CNI_ALIVE_SECONDS,
    CNI_JOURNAL_ENTRIES_MAX,
    CNI_JOURNAL_TEMPORARY_SECONDS,
    EXCEPTION_CROSSING_SECONDS,
    EXCEPTION_SENT_SECONDS,
    HANDOVER_REQUEST_BYTES,
)

_log = logging.getLogger(__name__)
JOURNAL: Final = "cni-journal"
ALIVE: Final = "alive"
_SENT_POLL_SECONDS: Final = 0.02
_MTIME_NS: Final = 1_000_000_000
"""Times of files go by the kernel's tick: a directory that changed so long ago shows each further change."""


class Files:
    """``boot_id``: this boot's, as the shim reads it too."""

    def __init__(self, state_dir: Path, run_dir: Path, boot_id: str) -> None:
        self._journal = state_dir / JOURNAL
        self._alive = run_dir / ALIVE
        self._boot_id = boot_id
        self._empty_since = 0
        """When the journal last changed, if it was found empty then."""

    def prepare(self) -> None:
        make_journal(self._journal)

    # -- journal ---------------------------------------------------------------------------------------------------

    def entries(self) -> Iterator[tuple[str, bytes]]:
        """Oldest first. Files that a shim did not finish are removed when nobody can be writing them any more. Every
        ADD asks: an empty directory is not read again until its time changes."""
        try:
            changed = os.stat(self._journal).st_mtime_ns
            if changed == self._empty_since:
                return
            settled = time.time_ns() - changed > _MTIME_NS
            names = sorted(os.listdir(self._journal))
        except FileNotFoundError:
            return
        if settled and not names:
            self._empty_since = changed
        for name in names[:CNI_JOURNAL_ENTRIES_MAX]:
            if name.endswith(".json"):
                data = self._read(name)
                if data is not None:
                    yield name, data
            elif name.endswith(".tmp"):
                self._remove_old(name)

    def _read(self, name: str) -> bytes | None:
        try:
            with open(self._journal / name, "rb") as file:
                return file.read(HANDOVER_REQUEST_BYTES + 1)
        except FileNotFoundError:  # its shim got through and took it back
            return None

    def _remove_old(self, name: str) -> None:
        path = self._journal / name
        try:
            if time.time() - path.stat().st_mtime > CNI_JOURNAL_TEMPORARY_SECONDS:
                path.unlink()
        except FileNotFoundError:
            pass

    def remove(self, name: str) -> None:
        (self._journal / name).unlink(missing_ok=True)

    # -- alive -----------------------------------------------------------------------------------------------------

    def alive(self) -> None:
        """Boot id and CLOCK_BOOTTIME, whole or not at all: a shim may be reading it."""
        temporary = self._alive.with_suffix(".new")
        temporary.write_text(f"{self._boot_id} {int(time.clock_gettime(time.CLOCK_BOOTTIME))}\n")
        temporary.chmod(0o644)
        temporary.rename(self._alive)

    async def serve(self, drain: Callable[[], Awaitable[None]]) -> None:
        """Until cancelled. A full disk fails STATUS after a minute, not the router."""
        while True:
            try:
                self.alive()
                await drain()
            except (OSError, UserError) as error:
                _log.warning("alive file or journal", extra={"error": str(error)})
            await asyncio.sleep(CNI_ALIVE_SECONDS)


def make_journal(path: Path) -> None:
    """The shim relies on it: it is there and on disk."""
    if path.is_dir():
        return
    try:
        path.mkdir(mode=0o700)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise UserError(f"cannot make the journal {path}: {error.strerror}; is the state dir writable?") from None


async def until_sent(is_sent: Callable[[], bool]) -> None:
    """What an ADD waits for; not for ever: records go out in bursts, and a late one is no failure."""
    for _ in range(int(EXCEPTION_SENT_SECONDS / _SENT_POLL_SECONDS)):
        if is_sent():
            return
        await asyncio.sleep(_SENT_POLL_SECONDS)


async def keeper(rival: Callable[[], Rival | None]) -> str | None:
    """The name of the node that keeps a MAC which this one announces; None: this one does. A rival that does not go
    first is about to take its own back, if it had not been given it before."""
    await asyncio.sleep(EXCEPTION_CROSSING_SECONDS)
    await until_sent(lambda: (one := rival()) is None or one.goes_first)
    found = rival()
    return None if found is None else found.name


def inode_of(descriptor: int) -> int:
    return os.fstat(descriptor).st_ino
