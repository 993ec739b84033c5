"""The store's file: its directory and lock, header and schema, migrations, and the sentences for all that is wrong.

A file that is damaged, foreign or newer is refused and left as it is; a file named store.db is never half made.
It must not know what the tables mean: the first content comes as a function. Called by store.py alone.
"""

import fcntl
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from weave_router import limits
from weave_router.errors import UserError
from weave_router.store_ipam import SCHEMA as IPAM_SCHEMA

APPLICATION_ID: Final = 0x77727374
"""``wrst`` in the SQLite header: tells our file from any other program's."""

EPOCH: Final = 1
"""Raised by a change that older programs cannot live with. Within an epoch, migrations only add."""

KEPT: Final = ("store.db", "store.db-wal", "store.db-shm", "store.db-journal", "kubernetes.json",
               "kubernetes-nodes", "token")
"""All that a node keeps: the store, and what it agreed on with its cluster."""
JOURNAL: Final = "cni-journal"
"""Folder of DELs that shims could not hand over."""

_CREATE = """
CREATE TABLE identity (one INTEGER PRIMARY KEY CHECK (one = 1), ed25519 BLOB NOT NULL, x25519 BLOB NOT NULL,
    digest BLOB NOT NULL) STRICT;
CREATE TABLE start (one INTEGER PRIMARY KEY CHECK (one = 1), incarnation INTEGER NOT NULL, run BLOB NOT NULL,
    boot_id TEXT NOT NULL, counter INTEGER NOT NULL) STRICT;
CREATE TABLE peer (x25519 BLOB PRIMARY KEY, seen BLOB NOT NULL, touched INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE INDEX peer_touched ON peer (touched);
CREATE TABLE target (position INTEGER PRIMARY KEY, address TEXT NOT NULL UNIQUE) STRICT;
CREATE TABLE attachment (container TEXT NOT NULL, ifname TEXT NOT NULL, prefix_len INTEGER NOT NULL,
    netns_inode INTEGER NOT NULL, boot_id TEXT NOT NULL, host_ifname TEXT NOT NULL, mac BLOB NOT NULL,
    PRIMARY KEY (container, ifname)) STRICT;
CREATE TABLE address (number INTEGER PRIMARY KEY, container TEXT NOT NULL, ifname TEXT NOT NULL,
    position INTEGER NOT NULL,
    FOREIGN KEY (container, ifname) REFERENCES attachment ON DELETE CASCADE) STRICT;
CREATE INDEX address_owner ON address (container, ifname);
CREATE TABLE setting (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT
"""

_NETWORK = "ALTER TABLE attachment ADD COLUMN network TEXT NOT NULL DEFAULT ''"
_POD = "ALTER TABLE attachment ADD COLUMN pod TEXT NOT NULL DEFAULT ''"

MIGRATIONS: tuple[str, ...] = (_CREATE, _NETWORK, IPAM_SCHEMA, _POD)
"""Step n leads to schema EPOCH.n. A later step may only add tables, indices and columns with defaults, so that an
older program of the same epoch goes on with the file (``kubectl rollout undo``). Never edit one that was released."""


class StoreError(UserError):
    """The state directory or its store cannot be used; the text says why and what to do. Nothing was overwritten."""


class StoreBusyError(StoreError):
    """Another router holds the store's lock."""


# -- the directory and its lock ----------------------------------------------------------------------------------


def _make_private_directory(directory: Path) -> None:
    """Make it with mode 0700, or tighten one that is ours alone; never change the mode of somebody else's."""
    with suppress(FileExistsError):
        directory.parent.mkdir(parents=True, exist_ok=True)
        directory.mkdir(mode=0o700)
        _fsync(directory.parent)
    found = directory.stat()
    if not stat.S_ISDIR(found.st_mode):
        raise StoreError(f"{directory} is not a directory: remove it or choose another --state-dir")
    if found.st_uid != os.geteuid():
        raise StoreError(f"{directory} belongs to uid {found.st_uid}: choose a --state-dir of this user's own")
    if found.st_mode & 0o077:
        if any(directory.iterdir()) and not (directory / "store.db").exists():
            raise StoreError(f"{directory} is open to others and holds other files: choose a --state-dir of its own")
        directory.chmod(0o700)


def take_lock(directory: Path) -> int:
    """The writer's lock, as a descriptor whose end gives it back; makes the directory where there is none."""
    with _explained_files(directory):
        _make_private_directory(directory)
        return _lock(directory / "store.lock")


def wipe(directory: Path) -> list[str]:
    """Remove what a node keeps in its state directory; hold the lock before. What was removed, for people. The lock's
    file stays: without it two processes could lock two files of one name."""
    journal = directory / JOURNAL
    with _explained_files(directory):
        entries = sorted(journal.iterdir()) if journal.is_dir() else []
        removed = [f"file {path}" for path in (*(directory / name for name in KEPT), *entries) if _unlink(path)]
        if journal.is_dir():
            journal.rmdir()
            removed.append(f"folder {journal}")
    return removed


def _unlink(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def _lock(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 20, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(fd)
        raise StoreBusyError(
            f"another router (pid {holder}) uses {path.parent}: stop it or choose another --state-dir"
        ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# -- open --------------------------------------------------------------------------------------------------------


def open_to_write(path: Path, first_content: Callable[[sqlite3.Connection], None]) -> sqlite3.Connection:
    """Open the file, made by ``first_content`` where there is none, at the newest schema. Hold the lock before."""
    with _explained_files(path.parent):
        if not path.exists() and not path.is_symlink():
            _create(path, first_content)
        _check_header(path)
        path.chmod(0o600)
    connection = _connect(path, "rw")
    try:
        with explained(path, "open", damage=True):
            step = _check_schema(connection, path)
            _use_wal(connection, path)
            _migrate(connection, step)
            _check_content(connection, path)
            connection.execute("BEGIN IMMEDIATE")  # say now, not at the first attachment, that it cannot be written
            connection.execute("ROLLBACK")
    except BaseException:
        connection.close()
        raise
    return connection


def open_to_read(path: Path) -> sqlite3.Connection:
    """Open the file beside its writer and change nothing."""
    with _explained_files(path.parent):
        if not path.exists():
            raise StoreError(f"there is no store in {path.parent}: a router makes one at its first start")
        _check_header(path)
    connection = _connect(path, "ro")
    try:
        with explained(path, "open", damage=True):
            step = _check_schema(connection, path)
            if step < len(MIGRATIONS):
                connection = _migrated_copy(connection, step)
            _check_content(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _create(path: Path, first_content: Callable[[sqlite3.Connection], None]) -> None:
    """Build it complete under another name, then rename it."""
    journal = path.with_name(path.name + "-wal")
    if journal.exists():
        raise StoreError(
            f"{path} is gone but its journal {journal} is there: put the file back, "
            f"or remove the journal to start with a new identity"
        )
    new = path.with_name(path.name + ".new")
    for leftover in path.parent.glob(new.name + "*"):
        leftover.unlink()
    os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    connection = _connect(new, "rw")
    try:
        with explained(new, "write"):
            _use_wal(connection, new)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            _migrate(connection, 0)
            first_content(connection)
    finally:
        connection.close()
    _fsync(new)
    new.rename(path)
    _fsync(path.parent)


# -- connect, check, migrate -------------------------------------------------------------------------------------


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    with explained(path, "open"):
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=limits.STORE_BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
    try:
        with explained(path, "open", damage=True):
            for pragma in _PRAGMAS:
                connection.execute(f"PRAGMA {pragma}")
    except BaseException:
        connection.close()
        raise
    return connection


def _use_wal(connection: sqlite3.Connection, path: Path) -> None:
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise StoreError(f"{path} lies on a file system without shared memory (network?): choose another --state-dir")


def _check_header(path: Path) -> None:
    """Refuse what is not our file before SQLite touches it: it would recover, or fill, another program's."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise StoreError(f"{path} is not a regular file: remove it or choose another --state-dir")
        header, size = os.read(fd, 100), os.fstat(fd).st_size
    finally:
        os.close(fd)
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        raise damaged(path, "it has no SQLite header")
    application = int.from_bytes(header[68:72], "big")
    if application != APPLICATION_ID:
        raise StoreError(
            f"{path} belongs to another program (application id {application:#x}): choose another --state-dir"
        )
    page, pages = int.from_bytes(header[16:18], "big"), int.from_bytes(header[28:32], "big")
    if size < page * pages and not _has_journal(path):  # zeros that were cut off SQLite would fill in again
        raise damaged(path, f"{page * pages - size} bytes are missing at its end")


def _has_journal(path: Path) -> bool:
    """What it holds may be newer than the file, its length included: a checkpoint was under way."""
    journal = path.with_name(path.name + "-wal")
    return journal.exists() and journal.stat().st_size > 0


def _check_schema(connection: sqlite3.Connection, path: Path) -> int:
    """The step of the file's schema; refuses another epoch."""
    epoch, step = divmod(connection.execute("PRAGMA user_version").fetchone()[0], 1000)
    if epoch > EPOCH:
        raise StoreError(
            f"{path} was written by a newer weave-router (schema {epoch}.{step}, this one knows {EPOCH}.x): "
            f"start that version again or choose another --state-dir"
        )
    if epoch < EPOCH or step < 1:
        raise damaged(path, f"it has schema version {epoch}.{step}, which never was")
    return int(step)


def _check_content(connection: sqlite3.Connection, path: Path) -> None:
    """Every page readable, every reference kept."""
    for (problem,) in connection.execute("PRAGMA integrity_check(1)"):
        if problem != "ok":
            raise damaged(path, " ".join(problem.split()))
    if connection.execute("PRAGMA foreign_key_check").fetchone():
        raise damaged(path, "a reference between its tables is broken")


def _migrate(connection: sqlite3.Connection, step: int) -> None:
    """Carry out the steps that are missing, each in a transaction of its own. Begins nothing where none is."""
    for number in range(step, len(MIGRATIONS)):
        connection.execute("BEGIN IMMEDIATE")
        for statement in MIGRATIONS[number].split(";"):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {EPOCH * 1000 + number + 1}")
        connection.execute("COMMIT")


def _migrated_copy(connection: sqlite3.Connection, step: int) -> sqlite3.Connection:
    """A reader may not migrate the file: it migrates a copy in memory, as of now."""
    copy = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    connection.backup(copy)
    connection.close()
    _migrate(copy, step)
    return copy


# -- errors ------------------------------------------------------------------------------------------------------


def damaged(path: Path, why: str) -> StoreError:
    """The error for a file that cannot be trusted."""
    return StoreError(
        f"{path} is damaged or no store ({why}): put an undamaged copy back, or move it away "
        f"(with {path.name}-wal) and this node starts with a new identity"
    )


@contextmanager
def explained(path: Path, verb: str, *, damage: bool = False) -> Iterator[None]:
    """Turn what SQLite says into the operator's sentence. Our own mistakes in SQL stay as they are, except while
    opening (``damage``), when a table that is not there was lost."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if code in _DAMAGE or (damage and code == sqlite3.SQLITE_ERROR):
            raise damaged(path, str(error)) from error
        if code in _HELD:
            raise StoreError(f"cannot {verb} {path} ({error}): end the program that has it open") from error
        if code in _DISK:
            raise StoreError(f"cannot {verb} {path} ({error}): look at the disk's space, mode and log") from error
        raise


@contextmanager
def _explained_files(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"cannot use {error.filename or directory} ({error.strerror}): mend that or choose another --state-dir"
        ) from error


_PRAGMAS: Final = ("synchronous = FULL", "foreign_keys = ON", "cell_size_check = ON", "trusted_schema = OFF")
_DAMAGE: Final = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}
_HELD: Final = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_DISK: Final = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN}
