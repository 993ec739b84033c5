"""The store's tables of addresses: registers, members, leases, and the head (whatever else ownership must remember).

Values and deltas only: what a register means is ipam's business. Rows of one ``IpamRows`` are written in one
transaction, and together with an attachment when both stand within one ``Store.batch``. Called by store.py, which
hands in its two gates.
"""

import hashlib
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

SCHEMA: Final = """
CREATE TABLE ipam_head (one INTEGER PRIMARY KEY CHECK (one = 1), data BLOB NOT NULL) STRICT;
CREATE TABLE ipam_proof (id INTEGER PRIMARY KEY, data BLOB NOT NULL) STRICT;
CREATE TABLE ipam_register (block INTEGER PRIMARY KEY, gen INTEGER NOT NULL, seq INTEGER NOT NULL,
    owner BLOB NOT NULL, issuer BLOB NOT NULL, proof INTEGER REFERENCES ipam_proof) STRICT;
CREATE INDEX ipam_register_proof ON ipam_register (proof);
CREATE TABLE ipam_member (node BLOB PRIMARY KEY, standing INTEGER NOT NULL, incarnation INTEGER NOT NULL) STRICT,
    WITHOUT ROWID;
CREATE TABLE ipam_lease (number INTEGER PRIMARY KEY, container TEXT NOT NULL, ifname TEXT NOT NULL,
    resting INTEGER NOT NULL) STRICT
"""
"""A step of store_file.MIGRATIONS; it only adds. ``proof``: the signed run of registers this one stands in."""


class RegisterRow(NamedTuple):
    """``proof``: the bytes that its issuer signed; None for what all nodes of a seed agreed on without words."""

    block: int
    gen: int
    seq: int
    owner: bytes
    issuer: bytes
    proof: bytes | None


class MemberRow(NamedTuple):
    """``standing``: bits; ``incarnation``: the highest seen, 0 for none."""

    node: bytes
    standing: int
    incarnation: int


class LeaseRow(NamedTuple):
    """An address in use, or one that rests and who had it last."""

    number: int
    container: str
    ifname: str
    resting: bool


@dataclass(frozen=True, slots=True)
class IpamRows:
    """A delta, or all there is. ``head`` None: unchanged; ``freed``: numbers whose row goes."""

    head: bytes | None = None
    registers: tuple[RegisterRow, ...] = ()
    members: tuple[MemberRow, ...] = ()
    leases: tuple[LeaseRow, ...] = ()
    freed: tuple[int, ...] = ()

    @property
    def empty(self) -> bool:
        return self.head is None and not (self.registers or self.members or self.leases or self.freed)


class IpamTables:
    """``transaction`` and ``rows`` are the store's."""

    def __init__(
        self,
        transaction: Callable[[], AbstractContextManager[sqlite3.Connection]],
        rows: Callable[[str], list[tuple[Any, ...]]],
    ) -> None:
        self._transaction = transaction
        self._rows = rows

    def load(self) -> IpamRows:
        """Everything; ``head`` None where this node never had a universe."""
        head = self._rows("SELECT data FROM ipam_head")
        return IpamRows(
            bytes(head[0][0]) if head else None,
            tuple(
                RegisterRow(*row)
                for row in self._rows(
                    "SELECT block, gen, seq, owner, issuer, data FROM ipam_register"
                    " LEFT JOIN ipam_proof ON proof = id ORDER BY block"
                )
            ),
            tuple(MemberRow(*row) for row in self._rows("SELECT node, standing, incarnation FROM ipam_member")),
            tuple(
                LeaseRow(number, container, ifname, bool(resting))
                for number, container, ifname, resting in self._rows(
                    "SELECT number, container, ifname, resting FROM ipam_lease ORDER BY number"
                )
            ),
        )

    def put(self, delta: IpamRows) -> None:
        """On disk as a whole when this returns (or when the batch around it ends)."""
        with self._transaction() as connection:
            if delta.head is not None:
                connection.execute("INSERT OR REPLACE INTO ipam_head VALUES (1, ?)", (delta.head,))
            _put_registers(connection, delta.registers)
            connection.executemany("INSERT OR REPLACE INTO ipam_member VALUES (?, ?, ?)", delta.members)
            connection.executemany("DELETE FROM ipam_lease WHERE number = ?", ((n,) for n in delta.freed))
            connection.executemany("INSERT OR REPLACE INTO ipam_lease VALUES (?, ?, ?, ?)", delta.leases)


def _put_registers(connection: sqlite3.Connection, registers: Iterable[RegisterRow]) -> None:
    rows = tuple(registers)
    if not rows:
        return
    proofs = {row.proof: _proof_id(row.proof) for row in rows if row.proof is not None}
    connection.executemany(
        "INSERT OR IGNORE INTO ipam_proof VALUES (?, ?)", ((number, data) for data, number in proofs.items())
    )
    connection.executemany(
        "INSERT OR REPLACE INTO ipam_register VALUES (?, ?, ?, ?, ?, ?)",
        ((*row[:5], None if row.proof is None else proofs[row.proof]) for row in rows),
    )
    connection.execute("DELETE FROM ipam_proof WHERE id NOT IN (SELECT proof FROM ipam_register WHERE proof NOT NULL)")


def _proof_id(data: bytes) -> int:
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big") >> 1
