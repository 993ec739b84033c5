"""The store: what it keeps, who may write, which files it refuses and with which sentence.

Crashes and power loss at every write are in test_store_crash.py.
"""

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from weave_router import limits, store_file
from weave_router.store import AddressInUseError, Attachment, Store, StoreBusyError, StoreError

BOOT = "3b6d4a7e-0000-4000-8000-000000000001"
OTHER_BOOT = "3b6d4a7e-0000-4000-8000-000000000002"
POD = Attachment("c1", "eth0", (0x0A200001, 0x0A200009), 12, 4026531999, BOOT, "vethwe1", bytes.fromhex("0a580a200001"))


def reopened(state: Path, boot_id: str = BOOT) -> Store:
    return Store.open(state, boot_id=boot_id)


def contents(store: Store) -> tuple[object, ...]:
    return (
        store.identity(),
        store.incarnation(),
        store.run_nonce,
        store.counter_start(),
        store.peers_seen(),
        store.targets(),
        store.attachments(),
        store.setting("pod_mtu"),
    )


def filled(state: Path) -> tuple[object, ...]:
    """Write something into every table; returns what is to be read back."""
    with reopened(state) as store:
        store.raise_incarnation()
        store.counter_block(limits.COUNTER_BLOCK)
        store.set_peer_seen(b"p" * 32, 3, 7)
        store.set_targets(["192.0.2.1", "node-b:7000"])
        store.attachment_put(POD)
        store.set_setting("pod_mtu", "1368")
        return contents(store)


# -- what is kept ------------------------------------------------------------------------------------------------


def test_identity_is_made_once(tmp_path: Path) -> None:
    with reopened(tmp_path / "s") as store:
        first = store.identity()
    with reopened(tmp_path / "s") as store:
        assert store.identity() == first
    assert [len(secret) for secret in first] == [32, 32]
    assert first[0] != first[1]
    with reopened(tmp_path / "t") as store:
        assert store.identity() != first


def test_everything_survives_the_process(tmp_path: Path) -> None:
    before = filled(tmp_path)
    with reopened(tmp_path) as store:
        assert contents(store) == before


def test_incarnation_rises_and_the_run_changes_with_every_start(tmp_path: Path) -> None:
    seen = []
    for expected in (1, 2, 3):
        with reopened(tmp_path) as store:
            assert store.incarnation() == expected - 1
            assert store.raise_incarnation() == expected
            assert store.incarnation() == expected
            seen.append(store.run_nonce)
    assert len(set(seen)) == 3
    assert all(len(run) == 16 for run in seen)


def test_a_restored_node_jumps_above_and_keeps_its_run(tmp_path: Path) -> None:
    with reopened(tmp_path) as store:
        store.raise_incarnation()
        run = store.run_nonce
        assert store.raise_incarnation(above=40) == 41
        assert store.raise_incarnation(above=5) == 42
        assert store.run_nonce == run


def test_boot_id_of_the_last_start(tmp_path: Path) -> None:
    with reopened(tmp_path) as store:
        assert store.last_boot_id == ""
        store.raise_incarnation()
    with reopened(tmp_path, OTHER_BOOT) as store:
        assert store.last_boot_id == BOOT
        store.raise_incarnation()
        assert store.last_boot_id == OTHER_BOOT


def test_counter_blocks_never_go_back(tmp_path: Path) -> None:
    with reopened(tmp_path) as store:
        assert store.counter_start() == 0
        store.counter_block(limits.COUNTER_BLOCK)
        store.counter_block(5)
        assert store.counter_start() == limits.COUNTER_BLOCK


@pytest.mark.parametrize(
    ("offered", "kept"),
    [
        ((2, 9), (2, 9)),
        ((2, 4), (2, 5)),
        ((1, 99), (2, 5)),
        ((3, 0), (3, 0)),
        ((2**64 - 1, 2**64 - 1), (2**64 - 1, 2**64 - 1)),
    ],
)
def test_peer_seen_keeps_the_greater_pair(tmp_path: Path, offered: tuple[int, int], kept: tuple[int, int]) -> None:
    with reopened(tmp_path) as store:
        assert store.peer_seen(b"k" * 32) is None
        store.set_peer_seen(b"k" * 32, 2, 5)
        store.set_peer_seen(b"k" * 32, *offered)
        assert store.peer_seen(b"k" * 32) == kept


def test_the_peer_heard_longest_ago_is_forgotten_first(tmp_path: Path) -> None:
    keys = [number.to_bytes(32, "big") for number in range(limits.PEERS_SEEN_MAX)]
    with reopened(tmp_path) as store:
        with sqlite3.connect(tmp_path / "store.db") as other:  # one by one it would count the table 16,384 times
            other.executemany("INSERT INTO peer VALUES (?, ?, ?)", [(k, bytes(16), n) for n, k in enumerate(keys)])
        other.close()
        store.set_peer_seen(keys[0], 1, 1)  # heard again: no longer the oldest
        assert len(store.peers_seen()) == limits.PEERS_SEEN_MAX
        store.set_peer_seen(b"n" * 32, 1, 1)
        assert len(store.peers_seen()) == limits.PEERS_SEEN_MAX
        assert store.peer_seen(keys[1]) is None
        assert store.peer_seen(keys[0]) == (1, 1)
        assert store.peer_seen(b"n" * 32) == (1, 1)


def test_targets_keep_their_order_and_come_once(tmp_path: Path) -> None:
    with reopened(tmp_path) as store:
        store.set_targets(["z", "a", "z"])
        assert store.targets() == ("z", "a")
        store.set_targets([])
        assert store.targets() == ()


def test_settings(tmp_path: Path) -> None:
    with reopened(tmp_path) as store:
        assert store.setting("bridge_number") is None
        store.set_setting("bridge_number", "1")
        store.set_setting("bridge_number", "2")
        assert store.setting("bridge_number") == "2"
        store.set_setting("bridge_number", None)
        assert store.setting("bridge_number") is None


def test_attachment_is_replaced_and_deleted_with_its_addresses(tmp_path: Path) -> None:
    moved = Attachment("c1", "eth0", (0x0A200009, 0x0A200003), 12, 1, BOOT, "vethwe2", b"\x02" * 6)
    with reopened(tmp_path) as store:
        store.attachment_put(POD)
        store.attachment_put(moved)
        assert store.attachments() == (moved,)
        assert store.attachment("c1", "eth0") == moved
        store.attachment_delete("c1", "eth0")
        store.attachment_delete("c1", "eth0")
        assert store.attachments() == ()
        store.attachment_put(Attachment("c2", "eth0", moved.numbers, 12, 1, BOOT, "v", b"\x02" * 6))


def test_one_address_never_at_two_attachments(tmp_path: Path) -> None:
    with reopened(tmp_path) as store:
        store.attachment_put(POD)
        second = Attachment("c2", "eth0", (0x0A200005, POD.numbers[1]), 12, 1, BOOT, "v", b"\x02" * 6)
        with pytest.raises(AddressInUseError, match=r"10\.32\.0\.9 is in use by c1 eth0: choose another one or detach"):
            store.attachment_put(second)
        assert store.attachments() == (POD,)


def test_a_batch_is_one_commit_or_nothing(tmp_path: Path) -> None:
    with reopened(tmp_path) as store:
        with store.batch():
            store.set_setting("a", "1")
            store.set_targets(["x"])
            with sqlite3.connect(tmp_path / "store.db") as other:
                assert other.execute("SELECT count(*) FROM target").fetchone() == (0,)
            other.close()
        with pytest.raises(KeyError), store.batch():
            store.set_setting("a", "2")
            raise KeyError
        assert store.setting("a") == "1"
        assert store.targets() == ("x",)


def test_calls_from_several_threads(tmp_path: Path) -> None:
    with reopened(tmp_path) as store:

        def work(name: str) -> None:
            for number in range(20):
                store.set_peer_seen(name.encode() * 32, 1, number)
                store.peers_seen()

        threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert store.peers_seen() == {name * 32: (1, 19) for name in (b"a", b"b", b"c", b"d")}


def test_randomness_is_an_argument(tmp_path: Path) -> None:
    with Store.open(tmp_path, boot_id=BOOT, random_bytes=lambda size: bytes(size)) as store:
        assert store.identity() == (bytes(32), bytes(32))


# -- who may read and write --------------------------------------------------------------------------------------


def test_modes(tmp_path: Path) -> None:
    state = tmp_path / "a" / "b"
    os.umask(os.umask(0o000))
    with reopened(state) as store:
        store.set_setting("a", "1")
        modes = {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in [state, *state.iterdir()]}
    assert modes == {"b": 0o700, "store.db": 0o600, "store.db-wal": 0o600, "store.db-shm": 0o600, "store.lock": 0o600}


def test_loose_modes_are_tightened_where_the_directory_is_ours_alone(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir(mode=0o755)
    reopened(empty).close()
    (empty / "store.db").chmod(0o644)
    empty.chmod(0o755)
    reopened(empty).close()
    assert stat.S_IMODE(empty.stat().st_mode) == 0o700
    assert stat.S_IMODE((empty / "store.db").stat().st_mode) == 0o600
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    (shared / "theirs").touch()
    with pytest.raises(StoreError, match="is open to others and holds other files: choose"):
        reopened(shared)
    assert stat.S_IMODE(shared.stat().st_mode) == 0o755
    assert [entry.name for entry in shared.iterdir()] == ["theirs"]


def test_a_second_writer_is_told_who_holds_the_store(tmp_path: Path) -> None:
    with reopened(tmp_path):
        with pytest.raises(StoreBusyError, match=rf"another router \(pid {os.getpid()}\) uses {tmp_path}: stop it"):
            reopened(tmp_path)
        other = subprocess.run(
            [sys.executable, "-c", f"from weave_router.store import Store; Store.open({str(tmp_path)!r}, boot_id='')"],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        assert other.returncode == 1
        assert "StoreBusyError: another router" in other.stderr
    reopened(tmp_path).close()


def test_a_successor_reads_and_writes_only_with_the_lock(tmp_path: Path) -> None:
    predecessor = reopened(tmp_path)
    predecessor.raise_incarnation()
    with Store.open(tmp_path, boot_id=BOOT, writer=False) as successor:
        assert not successor.writer
        assert contents(successor) == contents(predecessor)
        predecessor.set_targets(["new"])
        assert successor.targets() == ("new",)
        with pytest.raises(RuntimeError, match="opened to read"):
            successor.raise_incarnation()
        with pytest.raises(StoreBusyError):
            successor.become_writer()
        predecessor.set_setting("still", "works")
        run = predecessor.run_nonce
        predecessor.close()
        successor.become_writer()
        successor.become_writer()
        assert successor.writer
        assert successor.targets() == ("new",)
        assert successor.raise_incarnation() == 2
        assert successor.run_nonce != run


def test_a_reader_without_a_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"there is no store in .*: a router makes one at its first start"):
        Store.open(tmp_path / "none", boot_id=BOOT, writer=False)
    assert not (tmp_path / "none").exists()


def test_a_closed_store_is_our_bug(tmp_path: Path) -> None:
    store = reopened(tmp_path)
    store.close()
    store.close()
    with pytest.raises(RuntimeError, match="closed"):
        store.targets()
    with pytest.raises(RuntimeError, match="closed"):
        store.set_targets([])


def test_settings_of_the_database(tmp_path: Path) -> None:
    with reopened(tmp_path) as store:
        pragma = {
            name: store._row(f"PRAGMA {name}")[0]
            for name in ("journal_mode", "synchronous", "locking_mode", "foreign_keys", "application_id")
        }
    assert pragma == {
        "journal_mode": "wal",
        "synchronous": 2,
        "locking_mode": "normal",
        "foreign_keys": 1,
        "application_id": store_file.APPLICATION_ID,
    }


def test_a_writer_in_the_way_is_waited_for_then_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert limits.STORE_BUSY_SECONDS >= 1
    monkeypatch.setattr(limits, "STORE_BUSY_SECONDS", 0.05)
    with reopened(tmp_path) as store:
        shell = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
        shell.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match=r"cannot write .*store\.db.*: end the program that has it open"):
            store.set_targets(["x"])
        shell.close()
        store.set_targets(["x"])


def test_a_full_disk_is_one_sentence_and_changes_nothing(tmp_path: Path) -> None:
    with reopened(tmp_path) as store:
        pages = store._row("PRAGMA page_count")[0]
        store._row(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StoreError, match=r"cannot write .*full.*: look at the disk's space"):
            store.set_targets([f"target-{number}" for number in range(2000)])
        assert store.targets() == ()
        store.set_targets(["x"])
        assert store.targets() == ("x",)


# -- files that are refused --------------------------------------------------------------------------------------


def refusal(state: Path, *, writer: bool = True) -> str:
    """The sentence; the file is left as it was."""
    path = state / "store.db"
    before = path.read_bytes()
    with pytest.raises(StoreError) as refused:
        Store.open(state, boot_id=BOOT, writer=writer)
    assert path.read_bytes() == before
    text = str(refused.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    return text


@pytest.mark.parametrize("writer", [True, False])
def test_truncated_at_each_step(tmp_path: Path, writer: bool) -> None:
    """Refused, also where only zeros of the last page are gone."""
    filled(tmp_path)
    path = tmp_path / "store.db"
    whole = path.read_bytes()
    for length in [0, 1, 15, 16, 99, 100, 101, *range(512, len(whole), 512), len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert "is damaged or no store" in refusal(tmp_path, writer=writer), length


def test_each_header_byte_flipped_is_refused_or_harmless(tmp_path: Path) -> None:
    before = filled(tmp_path)
    path = tmp_path / "store.db"
    whole = path.read_bytes()
    refused = set()
    for offset in range(100):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 0xFF]) + whole[offset + 1 :])
        try:
            with Store.open(tmp_path, boot_id=BOOT) as store:
                assert contents(store) == before, offset
                store.set_setting("still", "writable")
        except StoreError as error:
            assert str(path) in str(error)
            assert ": " in str(error)
            refused.add(offset)
        for journal in tmp_path.glob("store.db-*"):
            journal.unlink()
    # Magic, page size, versions, fractions; size, free list; formats, encoding, versions, application id.
    assert refused >= {*range(20), 21, 22, 23, 47, 59, 60, 61, *range(68, 72)}


def test_a_journal_cut_anywhere_yields_a_state_that_was(tmp_path: Path) -> None:
    live, copy = tmp_path / "live", tmp_path / "copy"
    with reopened(live) as store:
        states = [store.targets()]
        for number in range(4):
            store.set_targets([f"target-{number}", *store.targets()])
            states.append(store.targets())
        database, journal = (live / "store.db").read_bytes(), (live / "store.db-wal").read_bytes()
    seen = []
    for length in range(len(journal), -1, -509):
        copy.mkdir(mode=0o700)
        (copy / "store.db").write_bytes(database)
        (copy / "store.db-wal").write_bytes(journal[:length])
        with reopened(copy) as store:
            seen.append(states.index(store.targets()))
        shutil.rmtree(copy)
    assert seen == sorted(seen, reverse=True)
    assert set(seen) == set(range(5))


def test_rotten_keys_are_noticed(tmp_path: Path) -> None:
    with reopened(tmp_path) as store:
        secret = store.identity()[1]
    path = tmp_path / "store.db"
    whole = path.read_bytes()
    assert whole.count(secret) == 1
    path.write_bytes(whole.replace(secret, secret[:-1] + bytes([secret[-1] ^ 1])))
    assert "its identity does not match its digest" in refusal(tmp_path)


@pytest.mark.parametrize("table", ["identity", "start", "peer", "target", "attachment", "address", "setting"])
def test_a_lost_table_is_damage(tmp_path: Path, table: str) -> None:
    filled(tmp_path)
    tamper(tmp_path, "PRAGMA foreign_keys = OFF", f"DROP TABLE {table}")
    assert "is damaged or no store" in refusal(tmp_path)
    assert "is damaged or no store" in refusal(tmp_path, writer=False)


def test_a_lost_row_is_damage(tmp_path: Path) -> None:
    filled(tmp_path)
    tamper(tmp_path, "DELETE FROM start")
    assert "its incarnation is gone" in refusal(tmp_path)


def test_a_lost_reference_is_damage(tmp_path: Path) -> None:
    filled(tmp_path)
    tamper(tmp_path, "PRAGMA foreign_keys = OFF", "DELETE FROM attachment")
    assert "a reference between its tables is broken" in refusal(tmp_path)


def tamper(state: Path, *statements: str) -> None:
    connection = sqlite3.connect(state / "store.db", isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


def test_files_of_other_programs(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_text("not a database, but longer than the hundred bytes of a header, so that only the magic tells " * 2)
    assert "has no SQLite header" in refusal(tmp_path)
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA application_id = 4711")
    connection.execute("CREATE TABLE theirs (a)")
    connection.close()
    assert "belongs to another program (application id 0x1267): choose another --state-dir" in refusal(tmp_path)


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    os.mkfifo(path)
    with pytest.raises(StoreError, match="is not a regular file"):
        reopened(tmp_path)
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=r"cannot use .*symbolic links"):
        reopened(tmp_path)
    assert not (tmp_path / "elsewhere").exists()


def test_a_state_dir_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="is not a directory"):
        reopened(tmp_path / "file")
    with pytest.raises(StoreError, match="cannot use"):
        reopened(tmp_path / "file" / "below")


def test_a_journal_without_its_database_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "store.db-wal").write_bytes(b"last transactions")
    with pytest.raises(StoreError, match=r"is gone but its journal .* is there: put the file back"):
        reopened(tmp_path)
    assert (tmp_path / "store.db-wal").read_bytes() == b"last transactions"
    assert not (tmp_path / "store.db").exists()


# -- versions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("writer", [True, False])
def test_a_newer_epoch_is_refused(tmp_path: Path, writer: bool) -> None:
    filled(tmp_path)
    tamper(tmp_path, f"PRAGMA user_version = {(store_file.EPOCH + 1) * 1000 + 4}")
    assert "was written by a newer weave-router (schema 2.4, this one knows 1.x)" in refusal(tmp_path, writer=writer)


@pytest.mark.parametrize("version", [0, 1, 1000, -5])
def test_a_version_that_never_was(tmp_path: Path, version: int) -> None:
    filled(tmp_path)
    tamper(tmp_path, f"PRAGMA user_version = {version}")
    assert "which never was" in refusal(tmp_path)


def test_migration_forward_and_an_older_program_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = filled(tmp_path)
    older = store_file.MIGRATIONS
    newer = (*older, "ALTER TABLE attachment ADD COLUMN colour TEXT NOT NULL DEFAULT ''; CREATE TABLE more (a TEXT)")
    monkeypatch.setattr(store_file, "MIGRATIONS", newer)
    with Store.open(tmp_path, boot_id=BOOT, writer=False) as reader:  # on a copy: the file stays the predecessor's
        assert reader._rows("SELECT colour FROM attachment") == [("",)]
        assert contents(reader) == before
    assert version_of(tmp_path) == 1000 + len(older)
    with reopened(tmp_path) as store:
        assert store._rows("SELECT colour FROM attachment") == [("",)]
        assert contents(store) == before
    assert version_of(tmp_path) == 1000 + len(newer)
    monkeypatch.setattr(store_file, "MIGRATIONS", older)  # kubectl rollout undo
    with reopened(tmp_path) as store:
        assert contents(store) == before
        store.attachment_put(POD)
    assert version_of(tmp_path) == 1000 + len(newer)


BEFORE_POD_NAMES = (
    "INSERT INTO attachment (container, ifname, prefix_len, netns_inode, boot_id, host_ifname, mac, network)"
    " VALUES ('c9', 'eth0', 12, 7, 'b', 'v', x'0a580a200007', 'weave')"
)
"""What the program of step 3 wrote for a pod."""


def test_a_step_that_was_released_in_both_directions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pods got names with step 4: a file of step 3 is read by this program, a file of this program by that one."""
    newer = store_file.MIGRATIONS
    with monkeypatch.context() as as_before:
        as_before.setattr(store_file, "MIGRATIONS", newer[:3])
        connection = store_file.open_to_write(tmp_path / "store.db", lambda made: Store(
            tmp_path, BOOT, os.urandom)._first_content(made))
        connection.execute(BEFORE_POD_NAMES)
        connection.close()
    assert version_of(tmp_path) == 1003
    with reopened(tmp_path) as store:
        assert [(a.container, a.pod) for a in store.attachments()] == [("c9", "")]
        store.attachment_put(replace(POD, pod="default/web"))
    assert version_of(tmp_path) == 1000 + len(newer)
    connection = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    connection.execute("DELETE FROM attachment WHERE container = 'c9'")
    connection.execute(BEFORE_POD_NAMES)  # rolled back to the older program, which replaces a pod of its own
    connection.close()
    with reopened(tmp_path) as store:
        assert {a.container: a.pod for a in store.attachments()} == {"c9": "", "c1": "default/web"}


def test_released_migrations_only_add() -> None:
    for step in store_file.MIGRATIONS:
        for statement in step.split(";"):
            assert statement.split()[:2] in (["CREATE", "TABLE"], ["CREATE", "INDEX"], ["ALTER", "TABLE"]), statement
            assert " DROP " not in statement
            assert " RENAME " not in statement


def version_of(state: Path) -> int:
    connection = sqlite3.connect(state / "store.db")
    try:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])
    finally:
        connection.close()
