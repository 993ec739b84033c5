"""Every bad input about addresses: its sentence with the way out, and nothing overwritten.

One table of what a person gives or finds (state files, options, claims), judged by the bytes of the state directory
before and after; one of what a neighbour says (registers), judged by the rows of the disk. Words of the options alone
are in test_config_load.py, of the store's file alone in test_store.py.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from random import Random

import msgspec
import pytest
from unit.ipam_sim import DOMAIN, NAMES, Net, Node

from weave_router import limits, store_file
from weave_router.config import LaunchConfig, load
from weave_router.errors import UserError
from weave_router.host.overlap import HostRoute, overlap
from weave_router.ipam import durable, start_driver, wire
from weave_router.ipam.allocator import Holder
from weave_router.ipam.driver import written_at_once
from weave_router.ipam.registers import Runs, restored
from weave_router.ipam.service import Service
from weave_router.ipam.values import Gate, Register
from weave_router.store import Store
from weave_router.store_ipam import IpamRows
from weave_router.tunnel.identity import Identity, verify

RANGE = "10.32.0.0/16"
ME = Identity.generate(Random(1).randbytes)
BLUE, RED = Holder("blue", "eth0"), Holder("red", "eth0")


def config(**more: str) -> LaunchConfig:
    words = {"token_file": "/t", "name": "n1", "ipalloc_range": RANGE, "ipalloc_init": "seed=n1,n2"}
    return load({**words, **more}, (), {}, hostname="n1")


def opened(store: Store, launch: LaunchConfig, *, older: bool = False) -> Service:
    service = start_driver.open_service(
        launch, store, ME, DOMAIN, boot_id="boot", incarnation=store.incarnation(), live=(), store_older=older,
        name_of=bytes.hex)  # fmt: skip
    assert service is not None
    return service


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """The state directory of a node with a bridge, a pod, a claim and an address at rest."""
    with Store.open(tmp_path / "state", boot_id="boot") as store:
        store.raise_incarnation()
        service = opened(store, config())
        start_driver.choose_bridge(service, store, "")
        service.claim(BLUE, number("10.32.0.9"), 0.0)
        service.claim(RED, number("10.32.0.8"), 0.0)
        service.release(RED, 1e9)
        written_at_once(service, store)
    return tmp_path / "state"


def number(text: str) -> int:
    return int(IPv4Address(text))


def contents(state: Path) -> dict[str, bytes]:
    """The lock says who holds it and the shared memory dies with its users; all else is what a node knows."""
    return {p.name: p.read_bytes() for p in state.iterdir() if p.name not in ("store.lock", "store.db-shm")}


# -- how it is made wrong ------------------------------------------------------------------------------------------


def intact(state: Path) -> None:
    pass


def sql(*statements: str) -> Callable[[Path], None]:
    def spoil(state: Path) -> None:
        connection = sqlite3.connect(state / "store.db", isolation_level=None)
        for statement in statements:
            connection.execute(statement)
        connection.close()

    return spoil


def head(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def spoil(state: Path) -> None:
        with Store.open(state, boot_id="boot") as store:
            store.ipam.put(IpamRows(head=change(store.ipam.load().head or b"")))

    return spoil


def file(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def spoil(state: Path) -> None:
        (state / "store.db").write_bytes(change((state / "store.db").read_bytes()))

    return spoil


def page_lost(data: bytes) -> bytes:
    """Zeros where a page stood, as a disk gives back what it lost."""
    size = int.from_bytes(data[16:18], "big")
    return data[:size] + bytes(size) + data[2 * size :]


# -- what is asked of it -------------------------------------------------------------------------------------------


def start(older: bool = False, **options: str) -> Callable[[Path], None]:
    def ask(state: Path) -> None:
        with Store.open(state, boot_id="boot") as store:
            unchanged(state, lambda: opened(store, config(**options), older=older))

    return ask


def claim(text: str, *, older: bool = False) -> Callable[[Path], None]:
    """On a node that runs; what its start itself had to write stands before."""

    def ask(state: Path) -> None:
        with Store.open(state, boot_id="boot") as store:
            service = opened(store, config(), older=older)
            start_driver.choose_bridge(service, store, "")

            def refused() -> None:
                try:
                    service.claim(Holder("green", "eth0"), number(text), 1.0)
                finally:
                    written_at_once(service, store)

            unchanged(state, refused)

    return ask


def unchanged(state: Path, refused: Callable[[], object]) -> None:
    """The refusal goes on to the test, which wants one."""
    before = contents(state)
    try:
        refused()
    finally:
        assert contents(state) == before


def beside(route: str) -> Callable[[Path], None]:
    def ask(state: Path) -> None:
        sentence = overlap([IPv4Network(RANGE)], [HostRoute(IPv4Network(route), "eth0")], [], own_links=("weave",))
        raise UserError(sentence or "")

    return ask


@dataclass(frozen=True)
class Case:
    name: str
    spoil: Callable[[Path], None]
    ask: Callable[[Path], None]
    sentence: str
    way_out: str
    starts: bool = False
    """The node starts, which writes; the bytes around what is refused were compared by ``ask``."""


NEWER = (store_file.EPOCH + 1) * 1000 + 1
CASES = [
    # state files
    Case("of another program", sql("PRAGMA application_id = 7"), start(), "belongs to another program",
         "choose another --state-dir"),
    Case("no database", file(lambda data: b"#!/bin/sh\n" * 200), start(), "is damaged or no store",
         "put an undamaged copy back"),
    Case("cut off", file(lambda data: data[:-5000]), start(), "bytes are missing at its end",
         "put an undamaged copy back"),
    Case("a page lost", file(page_lost), start(), "is damaged or no store", "put an undamaged copy back"),
    Case("a table lost", sql("DROP TABLE ipam_lease"), start(), "is damaged or no store", "put an undamaged copy back"),
    Case("newer by more than columns", sql(f"PRAGMA user_version = {NEWER}"), start(),
         "was written by a newer weave-router", "start that version again"),
    Case("a head that is none", head(lambda data: b"\xc1" + data), start(), "cannot be read",
         "put an undamaged copy back, or start anew by `weave-router reset`"),
    Case("a head of a later format", head(lambda data: msgspec.msgpack.encode(
        {**msgspec.msgpack.decode(data), "format": durable.FORMAT + 1})), start(), "cannot be read (format 2)",
         "put an undamaged copy back, or start anew by `weave-router reset`"),
    Case("rolled back", intact, claim("10.32.0.20", older=True), "the store is older than what was seen of this node",
         "open it by `weave-router ipam ungate`", True),
    Case("of another range", intact, start(ipalloc_range="10.48.0.0/16"), "the store's addresses are of 10.32.0.0/16",
         "give --ipalloc-range 10.32.0.0/16"),
    Case("of another seed", intact, start(ipalloc_init="seed=n1,n3"), "which is not that of --ipalloc-init",
         "leave it out, give what the other nodes were given"),
    # claims of what is another's
    Case("a container's", intact, claim("10.32.0.9"), "belongs to container blue (eth0)", "detach that first", True),
    Case("the bridge's", intact, claim("10.32.0.1"), "belongs to this node's bridge", "give another one", True),
    Case("another node's", intact, claim("10.32.200.1"), "lies in a block of node n2", "claim it there", True),
    Case("at rest", intact, claim("10.32.0.8"), "was released by container red (eth0)", "try again then", True),
    Case("reserved", intact, claim("10.32.0.0"), "is reserved", "give another one", True),
    Case("out of the range", intact, claim("10.33.0.1"), "outside the range 10.32.0.0/16", "give one inside", True),
    # ranges
    Case("too small", intact, start(ipalloc_range="10.32.0.0/29"), "the prefix of 10.32.0.0/29", "from /8 to /28"),
    Case("too small for its seed", intact, start(ipalloc_range="10.32.0.0/28", ipalloc_init="seed=n1,a,b,c,d"),
         "has fewer blocks than seed= has names", "give a larger"),
    Case("not aligned", intact, start(ipalloc_range="10.33.0.0/12"), "has bits set beyond its prefix",
         "did you mean 10.32.0.0/12?"),
    Case("over a route", intact, beside("10.32.7.0/24"), "overlaps the route 10.32.7.0/24 of eth0",
         "take a free range with --ipalloc-range"),
    Case("under a route", intact, beside("10.0.0.0/8"), "overlaps the route 10.0.0.0/8 of eth0",
         "take a free range with --ipalloc-range"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_is_refused_with_the_way_out_and_nothing_is_overwritten(state: Path, case: Case) -> None:
    case.spoil(state)
    before = contents(state)
    with pytest.raises(UserError) as refusal:
        case.ask(state)
    assert case.sentence in str(refusal.value) and case.way_out in str(refusal.value), str(refusal.value)
    assert case.starts or contents(state) == before


def test_newer_by_columns_alone_is_used(state: Path) -> None:
    sql("ALTER TABLE ipam_lease ADD COLUMN colour TEXT NOT NULL DEFAULT ''",
        f"PRAGMA user_version = {store_file.EPOCH * 1000 + len(store_file.MIGRATIONS) + 1}")(state)  # fmt: skip
    with Store.open(state, boot_id="boot") as store:
        service = opened(store, config())
        assert service.allocator.addresses_of(BLUE) == (number("10.32.0.9"),)


# -- what a neighbour says -----------------------------------------------------------------------------------------


def run_of(identity: Identity, universe: bytes, block: int, register: Register) -> bytes:
    runs = Runs(1 << 10, identity.ed25519_public, identity.sign, verify)
    runs.universe = universe
    runs.issue({block: register})
    return runs.proof_of(block, register) or b""


@dataclass(frozen=True)
class Words:
    """``made``: of the nodes n1 (who reads), n2 (who speaks) and n1's universe."""

    name: str
    made: Callable[[Node, Node, bytes], bytes]
    counted: str


def theirs(peer: Node, universe: bytes, block: int = 1) -> bytes:
    return run_of(peer.identity, universe, block, Register(5, 5, peer.id, peer.id))


WORDS = [
    Words("forged", lambda me, peer, u: bytes([theirs(peer, u)[0] ^ 1]) + theirs(peer, u)[1:], "register signature"),
    Words("in another's name", lambda me, peer, u: theirs(peer, u)[:64] + me.identity.ed25519_public
          + theirs(peer, u)[96:], "register signature"),
    Words("of another universe", lambda me, peer, u: theirs(peer, b"x" * 16), "register signature"),
    Words("outside the range", lambda me, peer, u: theirs(peer, u, 64), "register outside the range"),
    Words("too long", lambda me, peer, u: theirs(peer, u) + bytes(limits.IPAM_RUN_BYTES_MAX), "ipam body"),
    Words("stale", lambda me, peer, u: run_of(
        peer.identity, u, min(me.core.state.used), Register(0, 0, peer.id, peer.id)), ""),
]  # fmt: skip


@pytest.mark.parametrize("words", WORDS, ids=lambda words: words.name.replace(" ", "-"))
def test_a_register_that_does_not_count_changes_no_row(words: Words) -> None:
    net = Net()
    me, peer, _ = (net.add(name) for name in NAMES)
    net.mesh()
    net.run(10)
    if words.name == "stale":  # the block is used by a later word than the one that is repeated
        retaken = min(me.core.state.used)
        value = Register(0, 1, me.id, me.id)
        me.core.state = me.core.state._replace(registers=me.core.state.registers.with_items({retaken: value}))
    state, rows, universe = me.core.state, me.disk.load(), me.core.state.universe or b""
    data = words.made(me, peer, universe)
    told = wire.Tell(wire.Facts(runs=(data,)))
    me.core.receive(peer.id, wire.encode_message(1, universe, (0, 0), None, told), net.now)
    steps = net.carry(me)
    assert me.core.state.registers == state.registers and me.core.state.gate == Gate.OPEN
    assert me.disk.load() == rows and all(step.rows.empty for step in steps) and me.core.evicted == []
    assert dict(me.core.counters) == ({words.counted: 1} if words.counted else {})


@pytest.mark.parametrize("proof", [b"", bytes(96), bytes(96) + b"\xc1"], ids=["empty", "zeros", "no-encoding"])
def test_a_damaged_proof_in_a_sound_store_is_a_sentence(proof: bytes) -> None:
    with pytest.raises(UserError, match=r"who owns block 7 .* undamaged copy"):
        restored(7, Register(0, 1, ME.node_id, ME.node_id), proof)
