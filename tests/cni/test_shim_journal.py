"""The DEL journal, from the executable's side: what it holds, when it is taken back, and a kill before every step."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from cni.shim import BOOT, FakeRouter, Shim, build, framed, installed

WRAPPED = ("open", "write", "fsync", "rename", "unlink", "mkdir", "connect")


@pytest.fixture
def shim(tmp_path: Path) -> Shim:
    return Shim(installed(), tmp_path / "attach.sock", tmp_path / "journal")


@pytest.fixture(scope="module")
def crashing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    flags = [f"-Wl,--wrap={name}" for name in WRAPPED]
    wrappers = str(Path(__file__).with_name("crash_shim.c"))
    return build(tmp_path_factory.mktemp("crash") / "weave-router-cni", "-static", wrappers, *flags)


def content(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_bytes())["cni"])


def test_del_without_a_router_is_journalled(shim: Shim) -> None:
    done = shim.run("DEL", CNI_NETNS="/nowhere")
    assert (done.status, done.stdout, done.stderr) == (0, "", "")
    (entry,) = shim.entries()
    assert entry.stat().st_mode & 0o777 == 0o600
    written = content(entry)
    assert json.loads(written.pop("config")) == shim.config()
    assert written == {"command": "DEL", "container": "c1", "ifname": "eth0", "netns": "/nowhere", "args": "",
                       "boot_id": BOOT, "netns_inode": 0}  # fmt: skip


def test_entries_are_in_the_order_of_their_dels(shim: Shim) -> None:
    for number in range(3):
        assert shim.run("DEL", CNI_CONTAINERID=f"c{number}").status == 0
    assert [content(entry)["container"] for entry in shim.entries()] == ["c0", "c1", "c2"]


def test_del_that_is_answered_leaves_nothing(shim: Shim) -> None:
    with FakeRouter(shim.socket, framed(b"{}")):
        assert shim.run("DEL").status == 0
    assert not shim.journal.exists()


@pytest.mark.parametrize(
    "first", [b"", framed({"code": 5, "msg": "disk"}), framed({"code": 103, "msg": "x"}), framed(b"?")]
)
def test_second_try_takes_the_entry_back(shim: Shim, first: bytes) -> None:
    seen: list[int] = []

    def second(request: dict[str, Any], fds: list[int]) -> bytes:
        seen.append(len(shim.entries()))
        return framed(b"{}")

    with FakeRouter(shim.socket, first, second):
        done = shim.run("DEL")
    assert (done.status, done.stdout, seen, shim.entries()) == (0, "", [1], [])


@pytest.mark.parametrize("code", [1, 4, 6, 7])
def test_fault_of_the_request_is_told_and_not_kept(shim: Shim, code: int) -> None:
    with FakeRouter(shim.socket, framed({"cniVersion": "1.0.0", "code": code, "msg": "wrong"})):
        assert shim.run("DEL").code == code
    assert shim.entries() == []


def test_journal_that_cannot_be_written_fails_the_del(shim: Shim, tmp_path: Path) -> None:
    (tmp_path / "journal").write_text("a file")
    done = shim.run("DEL")
    assert done.code == 5 and "journal" in done.value["msg"]
    done = shim.run("DEL", shim.config(journal="/proc/nowhere/journal"))
    assert done.code == 5


def test_kill_before_every_step(crashing: Path, tmp_path: Path) -> None:
    """Whatever the moment, an entry is whole or not there; a second try of the runtime gets through."""
    for step in range(1, 100):
        folder = tmp_path / str(step)
        folder.mkdir()
        shim = Shim(crashing, folder / "attach.sock", folder / "journal")
        done = shim.run("DEL", CRASH_AT=str(step))
        for entry in shim.entries():
            assert content(entry)["container"] == "c1", step
        if done.status == 0:
            break
        assert done.status == 42, (step, done)
        again = shim.run("DEL")
        assert again.status == 0 and len(shim.entries()) in (1, 2), step
    assert step > 15, "the steps were not counted"
    assert len(shim.entries()) == 1 and set(os.listdir(shim.journal)) == {shim.entries()[0].name}
