"""What a node must still know after a crash: one SQLite file in the state directory.

Identity, incarnation and run nonce, handshake counters (own blocks, greatest seen per peer key), targets, attachments,
settings, and the tables of addresses (store_ipam.py). A method that changes something returns when the change is on
disk, so call it before sending what depends on it. One writer, by flock on ``store.lock``; a successor may read
meanwhile and becomes the writer with the lock. A file that is damaged, foreign or newer is refused with one sentence
and left as it is.

Synchronous, and called from a writer thread; calls may come from any thread, one runs at a time. The store keeps
values and decides nothing: it must not know sessions, records or netlink. Called by router.py and the drivers.
"""

import hashlib
import ipaddress
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from weave_router import limits, store_file
from weave_router.errors import UserError
from weave_router.store_file import StoreBusyError, StoreError, explained
from weave_router.store_ipam import IpamTables

T = TypeVar("T")

__all__ = ["AddressInUseError", "Attachment", "Store", "StoreBusyError", "StoreError"]


class AddressInUseError(UserError):
    """An attachment asks for a number that another attachment has."""


class BatchLostError(StoreError):
    """A piece of work failed so that SQLite undid the whole batch."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """One pod's port, keyed by (container, ifname). ``numbers``: host numbers, the first is the primary one."""

    container: str
    ifname: str
    numbers: tuple[int, ...]
    prefix_len: int
    netns_inode: int
    boot_id: str
    host_ifname: str
    mac: bytes
    network: str = ""
    """Name of the CNI network it was made for; empty: by `attach`."""
    pod: str = ""
    """``NAMESPACE/NAME`` where the runtime said so: Kubernetes' name of it."""


class Store:
    """The open store. Make one with ``Store.open``; ``close`` gives the lock back."""

    def __init__(self, directory: Path, boot_id: str, random_bytes: Callable[[int], bytes]) -> None:
        self._directory = directory
        self._path = directory / "store.db"
        self._boot_id = boot_id
        self._random_bytes = random_bytes
        self._lock_fd = -1
        self._connection: sqlite3.Connection | None = None
        self._serial = threading.RLock()
        self._run: bytes | None = None
        self.commits = 0
        self.ipam = IpamTables(self._transaction, self._rows)

    # -- open and close ------------------------------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        state_dir: str | os.PathLike[str],
        *,
        boot_id: str,
        writer: bool = True,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> Self:
        """Open the store of ``state_dir``; a writer makes directory, file and identity where there are none.

        ``boot_id``: this boot's, kept by ``raise_incarnation``. Raises StoreBusyError (another writer) or StoreError.
        """
        store = cls(Path(state_dir), boot_id, random_bytes)
        if writer:
            store.become_writer()
        else:
            store._adopt(store_file.open_to_read(store._path))
        return store

    def become_writer(self) -> None:
        """Take the lock and open for writing; a reader that becomes the writer sees all that its predecessor wrote."""
        with self._serial:
            if self.writer:
                return
            self._lock_fd = store_file.take_lock(self._directory)
            try:
                self._adopt(store_file.open_to_write(self._path, self._first_content))
            except BaseException:
                self._release_lock()
                raise

    def _adopt(self, connection: sqlite3.Connection) -> None:
        former, self._connection = self._connection, connection
        try:
            with explained(self._path, "open", damage=True):
                self._check_content()
        except BaseException:
            self._connection = former
            connection.close()
            raise
        if former is not None:
            former.close()

    def _first_content(self, connection: sqlite3.Connection) -> None:
        secrets = self._random_bytes(32), self._random_bytes(32)
        connection.execute("INSERT INTO identity VALUES (1, ?, ?, ?)", (*secrets, _digest(*secrets)))
        connection.execute("INSERT INTO start VALUES (1, 0, ?, '', 0)", (b"",))

    def _check_content(self) -> None:
        """Everything is there and can be read. Keys that rotted would silently make another node of this one."""
        identity = self._rows("SELECT ed25519, x25519, digest FROM identity")
        if not identity or _digest(*identity[0][:2]) != identity[0][2]:
            raise store_file.damaged(self._path, "its identity does not match its digest")
        if not self._rows("SELECT incarnation, run, boot_id, counter FROM start"):
            raise store_file.damaged(self._path, "its incarnation is gone")
        _ = self.peers_seen(), self.targets(), self.attachments(), self.setting(""), self.ipam.load()

    @property
    def writer(self) -> bool:
        """Whether this process holds the lock."""
        return self._lock_fd >= 0

    def close(self) -> None:
        """Close the file, then give the lock back. Idempotent."""
        with self._serial:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            self._release_lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _release_lock(self) -> None:
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    # -- who we are ----------------------------------------------------------------------------------------------

    def identity(self) -> tuple[bytes, bytes]:
        """(Ed25519 secret, X25519 secret), 32 bytes each, made at the first start and never changed."""
        ed25519, x25519 = self._row("SELECT ed25519, x25519 FROM identity")
        return ed25519, x25519

    def incarnation(self) -> int:
        """The incarnation on disk: of the present start once it was raised, else of the one before; 0 = never."""
        return int(self._row("SELECT incarnation FROM start")[0])

    def raise_incarnation(self, above: int = 0) -> int:
        """Begin a start: greater incarnation, new run nonce, this boot's id, on disk when this returns.

        Call it before anything is sent. Called again (``above``: what a restored node met in the mesh) it keeps the
        run.
        """
        with self._transaction() as connection:
            incarnation = max(self.incarnation(), above) + 1
            run = self._run or self._random_bytes(16)
            connection.execute(
                "UPDATE start SET incarnation = ?, run = ?, boot_id = ?", (incarnation, run, self._boot_id)
            )
        self._run = run
        return incarnation

    @property
    def run_nonce(self) -> bytes:
        """16 random bytes of the start that raised the incarnation last; empty before the first."""
        return bytes(self._row("SELECT run FROM start")[0])

    @property
    def last_boot_id(self) -> str:
        """Boot id under which the incarnation was raised last; empty before the first. Read it before raising."""
        return str(self._row("SELECT boot_id FROM start")[0])

    # -- freshness of handshakes ---------------------------------------------------------------------------------

    def counter_start(self) -> int:
        """The first handshake counter that no block on disk has reserved: where a start begins to count."""
        return int(self._row("SELECT counter FROM start")[0])

    def counter_block(self, upto: int) -> None:
        """Reserve own handshake counters below ``upto``; they may be sent once this returns. Never goes back.

        Callers ask for ``limits.COUNTER_BLOCK`` at a time.
        """
        with self._transaction() as connection:
            connection.execute("UPDATE start SET counter = ? WHERE counter < ?", (upto, upto))

    def peer_seen(self, x25519_public: bytes) -> tuple[int, int] | None:
        """Greatest (incarnation, counter) that was accepted from this static key; None: never heard."""
        rows = self._rows("SELECT seen FROM peer WHERE x25519 = ?", (x25519_public,))
        return _seen_from(rows[0][0]) if rows else None

    def peers_seen(self) -> dict[bytes, tuple[int, int]]:
        """All of them, for the start."""
        return {key: _seen_from(seen) for key, seen in self._rows("SELECT x25519, seen FROM peer")}

    def set_peer_seen(self, x25519_public: bytes, incarnation: int, counter: int) -> None:
        """Remember what was accepted from this key (two u64); a smaller pair than the one on disk changes nothing."""
        seen = incarnation.to_bytes(8, "big") + counter.to_bytes(8, "big")
        with self._transaction() as connection:
            connection.execute(
                "INSERT INTO peer (x25519, seen, touched)"
                " SELECT ?, ?, coalesce(max(touched), 0) + 1 FROM peer WHERE true ON CONFLICT DO UPDATE"
                " SET seen = excluded.seen, touched = excluded.touched WHERE excluded.seen > seen",
                (x25519_public, seen),
            )
            self._forget_oldest_peers(connection)

    def _forget_oldest_peers(self, connection: sqlite3.Connection) -> None:
        excess = self._row("SELECT count(*) FROM peer")[0] - limits.PEERS_SEEN_MAX
        if excess > 0:
            connection.execute(
                "DELETE FROM peer WHERE touched IN (SELECT touched FROM peer ORDER BY touched LIMIT ?)", (excess,)
            )

    # -- targets, settings ---------------------------------------------------------------------------------------

    def targets(self) -> tuple[str, ...]:
        """Addresses to link with, as the operator wrote them (``launch``, ``connect``), in order."""
        return tuple(row[0] for row in self._rows("SELECT address FROM target ORDER BY position"))

    def set_targets(self, targets: Sequence[str]) -> None:
        """Replace all targets; a name that comes twice is kept once."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM target")
            connection.executemany("INSERT INTO target (address) VALUES (?)", ((t,) for t in dict.fromkeys(targets)))

    def setting(self, key: str) -> str | None:
        """A value that outlives the start (``pod_mtu``, ``bridge_number``, ``universe``); None: never set."""
        rows = self._rows("SELECT value FROM setting WHERE key = ?", (key,))
        return str(rows[0][0]) if rows else None

    def set_setting(self, key: str, value: str | None) -> None:
        """Set it; None removes it."""
        with self._transaction() as connection:
            if value is None:
                connection.execute("DELETE FROM setting WHERE key = ?", (key,))
            else:
                connection.execute("INSERT OR REPLACE INTO setting (key, value) VALUES (?, ?)", (key, value))

    # -- attachments ---------------------------------------------------------------------------------------------

    def attachments(self) -> tuple[Attachment, ...]:
        """All attachments, in the order of their keys."""
        with self._serial:
            numbers: dict[tuple[str, str], list[int]] = {}
            for container, ifname, number in self._rows(
                "SELECT container, ifname, number FROM address ORDER BY position"
            ):
                numbers.setdefault((container, ifname), []).append(number)
            rows = self._rows(
                "SELECT container, ifname, prefix_len, netns_inode, boot_id, host_ifname, mac, network, pod"
                " FROM attachment ORDER BY container, ifname"
            )
        return tuple(
            Attachment(container, ifname, tuple(numbers.get((container, ifname), ())), *rest)
            for container, ifname, *rest in rows
        )

    def attachment(self, container: str, ifname: str) -> Attachment | None:
        """The attachment with this key, or None."""
        return next((a for a in self.attachments() if (a.container, a.ifname) == (container, ifname)), None)

    def attachment_put(self, attachment: Attachment) -> None:
        """Enter it, in place of one with the same key. Raises AddressInUseError when another one has a number of it."""
        a = attachment
        key = (a.container, a.ifname)
        with self._transaction() as connection:
            self._refuse_taken(a)
            connection.execute("DELETE FROM attachment WHERE container = ? AND ifname = ?", key)
            connection.execute(
                "INSERT INTO attachment"
                " (container, ifname, prefix_len, netns_inode, boot_id, host_ifname, mac, network, pod)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*key, a.prefix_len, a.netns_inode, a.boot_id, a.host_ifname, a.mac, a.network, a.pod),
            )
            connection.executemany(
                "INSERT INTO address (number, container, ifname, position) VALUES (?, ?, ?, ?)",
                [(number, *key, position) for position, number in enumerate(a.numbers)],
            )

    def _refuse_taken(self, attachment: Attachment) -> None:
        for number in attachment.numbers:
            for owner in self._rows("SELECT container, ifname FROM address WHERE number = ?", (number,)):
                if owner != (attachment.container, attachment.ifname):
                    raise AddressInUseError(
                        f"address {ipaddress.IPv4Address(number)} is in use by {owner[0]} {owner[1]}: "
                        f"choose another one or detach that first"
                    )

    def attachment_delete(self, container: str, ifname: str) -> None:
        """Remove it and free its numbers; nothing happens where there is none."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM attachment WHERE container = ? AND ifname = ?", (container, ifname))

    # -- one gate for reading, one for writing -------------------------------------------------------------------

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Many changes, one commit: all are on disk when the block ends, or none (an exception undoes them)."""
        with self._transaction():
            yield

    def apart(self, work: Callable[[], T]) -> T:
        """Within a batch: work that is undone alone if it raises. BatchLostError: the disk was full, all is undone."""
        with self._transaction() as connection, explained(self._path, "write"):
            connection.execute("SAVEPOINT apart")
            try:
                result = work()
            except BaseException as error:
                if not connection.in_transaction:
                    raise BatchLostError(f"cannot write {self._path} ({error}): look at the disk's space") from error
                connection.execute("ROLLBACK TO apart")
                connection.execute("RELEASE apart")
                raise
            connection.execute("RELEASE apart")
            return result

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._serial:
            connection = self._connection
            if connection is None or not self.writer:
                raise RuntimeError("a store that is closed, or was opened to read, cannot write")
            if connection.in_transaction:  # within a batch
                yield connection
                return
            with explained(self._path, "write"):
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield connection
                    connection.execute("COMMIT")
                    self.commits += 1
                except BaseException:
                    if connection.in_transaction:  # a full disk has rolled back already
                        connection.execute("ROLLBACK")
                    raise

    def _rows(self, query: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        with self._serial, explained(self._path, "read"):
            if self._connection is None:
                raise RuntimeError("the store is closed")
            return self._connection.execute(query, values).fetchall()

    def _row(self, query: str) -> tuple[Any, ...]:
        return self._rows(query)[0]


def _digest(ed25519: bytes, x25519: bytes) -> bytes:
    return hashlib.sha256(b"weave-router identity" + ed25519 + x25519).digest()[:16]


def _seen_from(seen: bytes) -> tuple[int, int]:
    return int.from_bytes(seen[:8], "big"), int.from_bytes(seen[8:], "big")
