"""The router's look at the DEL journal, at every ADD: an empty directory is read once, and no file is missed."""

import os
import time
from pathlib import Path

import pytest

from weave_router.cni import cni_driver
from weave_router.cni.cni_driver import JOURNAL, Files

OLD = time.time_ns() - 10**10


@pytest.fixture
def files(tmp_path: Path) -> Files:
    made = Files(tmp_path, tmp_path, "boot")
    made.prepare()
    return made


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Directories that were read."""
    seen: list[object] = []
    real = os.listdir
    monkeypatch.setattr(cni_driver.os, "listdir", lambda path: (seen.append(path), real(path))[1])
    return seen


def test_an_empty_journal_is_read_once(files: Files, tmp_path: Path, read: list[object]) -> None:
    os.utime(tmp_path / JOURNAL, ns=(OLD, OLD))
    assert [list(files.entries()) for _ in range(3)] == [[], [], []]
    assert len(read) == 1
    (tmp_path / JOURNAL / "1.json").write_bytes(b"{}")
    assert [list(files.entries()) for _ in range(2)] == [[("1.json", b"{}")]] * 2
    files.remove("1.json")
    assert list(files.entries()) == []


def test_a_file_of_the_same_tick_is_not_missed(files: Files, tmp_path: Path, read: list[object]) -> None:
    """The time of a directory goes by the kernel's tick, so one that just changed is read each time."""
    assert [list(files.entries()) for _ in range(3)] == [[], [], []]
    assert len(read) == 3
    stamp = os.stat(tmp_path / JOURNAL).st_mtime_ns
    (tmp_path / JOURNAL / "1.json").write_bytes(b"{}")
    os.utime(tmp_path / JOURNAL, ns=(stamp, stamp))
    assert len(list(files.entries())) == 1
