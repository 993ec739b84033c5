"""The writing thread: what waits together shares a commit, who fails fails alone, the answer follows the disk."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from weave_router.store import Attachment, Store, StoreError
from weave_router.store_group import TOGETHER_MAX, GroupWriter
from weave_router.store_ipam import IpamRows, LeaseRow, MemberRow, RegisterRow


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path, boot_id="boot") as opened:
        yield opened


@pytest.fixture
def writer(store: Store) -> Iterator[GroupWriter]:
    made = GroupWriter(store)
    yield made
    made.shutdown()


def pod(number: int) -> Attachment:
    return Attachment(f"c{number}", "eth0", (number,), 12, 7, "boot", f"vethwr{number}", bytes(6))


def held(writer: GroupWriter) -> threading.Event:
    """The thread is busy until the event is set, so that what comes meanwhile waits together."""
    free = threading.Event()
    writer.submit(free.wait)
    return free


def test_twenty_that_wait_share_a_commit(store: Store, writer: GroupWriter) -> None:
    before = store.commits
    free = held(writer)
    futures = [writer.submit(lambda n=n: store.attachment_put(pod(n))) for n in range(1, 21)]  # type: ignore[misc]
    assert not any(future.done() for future in futures)
    free.set()
    assert all(future.result(5) is None for future in futures)
    assert len(store.attachments()) == 20
    assert store.commits - before <= 2


def test_one_that_fails_is_undone_alone(store: Store, writer: GroupWriter) -> None:
    def fails() -> None:
        store.attachment_put(pod(2))
        raise ValueError("no")

    free = held(writer)
    good, bad, last = writer.submit(lambda: store.attachment_put(pod(1))), writer.submit(fails), writer.submit(
        lambda: store.attachment_put(pod(3)))  # fmt: skip
    free.set()
    assert good.result(5) is None and last.result(5) is None
    with pytest.raises(ValueError, match="no"):
        bad.result(5)
    assert [a.container for a in store.attachments()] == ["c1", "c3"]


def test_a_commit_that_fails_fails_all(store: Store, writer: GroupWriter) -> None:
    free = held(writer)
    full = writer.submit(lambda: store._rows("PRAGMA max_page_count = 1"))
    futures = [writer.submit(lambda n=n: store.set_setting(f"k{n}", "x" * 20_000)) for n in range(3)]  # type: ignore[misc]
    free.set()
    full.exception(5)
    for future in futures:
        with pytest.raises(StoreError, match="space"):
            future.result(5)
    store._rows("PRAGMA max_page_count = 1000000")
    writer.submit(lambda: store.set_setting("after", "1")).result(5)
    assert (store.setting("k0"), store.setting("after")) == (None, "1")


def test_more_than_one_commit_takes(store: Store, writer: GroupWriter) -> None:
    free = held(writer)
    futures = [writer.submit(lambda n=n: store.set_setting(str(n), "1")) for n in range(TOGETHER_MAX + 5)]  # type: ignore[misc]
    free.set()
    assert [future.result(5) for future in futures] == [None] * (TOGETHER_MAX + 5)


def test_what_was_submitted_is_carried_out_before_the_end(store: Store) -> None:
    writer = GroupWriter(store)
    held(writer).set()
    last = writer.submit(lambda: store.set_setting("last", "1"))
    writer.shutdown()
    writer.shutdown()
    assert last.done() and store.setting("last") == "1"
    with pytest.raises(RuntimeError):
        writer.submit(lambda: None)


def test_rows_of_ipam_come_back(store: Store) -> None:
    rows = IpamRows(
        b"head", tuple(RegisterRow(b, 0, 1, b"o" * 16, b"i" * 16, b"run" if b else None) for b in range(3)),
        (MemberRow(b"m" * 16, 5, 9),), (LeaseRow(7, "c", "eth0", False), LeaseRow(8, "c", "eth1", True)))  # fmt: skip
    assert store.ipam.load() == IpamRows()
    store.ipam.put(rows)
    assert store.ipam.load() == rows
    store.ipam.put(IpamRows(registers=(RegisterRow(1, 1, 0, b"n" * 16, b"n" * 16, b"new"),), freed=(7,)))
    loaded = store.ipam.load()
    assert loaded.registers[1].proof == b"new" and loaded.registers[2].proof == b"run"
    assert loaded.leases == rows.leases[1:] and loaded.head == b"head"
    store.ipam.put(IpamRows(registers=(RegisterRow(2, 1, 0, b"n" * 16, b"n" * 16, b"new"),)))
    assert store._rows("SELECT count(*) FROM ipam_proof") == [(1,)]  # what no register stands in is forgotten
