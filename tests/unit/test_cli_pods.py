"""attach and reset on the real kernel: a namespace is handed over as it is, and reset leaves nothing.

    test process ── attach.sock (this test answers) <── weave-router attach ── enters ── namespace of `unshare`
    reset runs in a network namespace of its own: what it finds there is only what the test made
"""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result
from unit.api_router import POD

from weave_router.cli.main import cli
from weave_router.store import Attachment, Store

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: CAP_SYS_ADMIN to make and enter namespaces")


@pytest.fixture
def pod() -> Iterator[str]:
    """Process id of a sleeper in a new network namespace."""
    command = ["unshare", "--net", "sh", "-c", "echo up; exec sleep 60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as sleeper:
        assert sleeper.stdout is not None
        sleeper.stdout.readline()
        yield str(sleeper.pid)
        sleeper.kill()


class Router:
    """The other end of attach.sock, once: reads one request with its descriptors, sends one reply."""

    def __init__(self, run_dir: Path, reply: dict[str, Any]) -> None:
        self.reply = reply
        self.request: dict[str, Any] = {}
        self.namespaces: list[int] = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(run_dir / "attach.sock"))
        self.listener.listen(1)

    def serve(self) -> None:
        with self.listener, self.listener.accept()[0] as connection:
            data, descriptors, _, _ = socket.recv_fds(connection, 65_536, 4)
            while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "big"):
                data += connection.recv(65_536)
            self.request = json.loads(data[4:])
            self.namespaces = [os.fstat(descriptor).st_ino for descriptor in descriptors]
            for descriptor in descriptors:
                os.close(descriptor)
            body = json.dumps(self.reply).encode()
            connection.sendall(len(body).to_bytes(4, "big") + body)


async def attach(tmp_path: Path, reply: dict[str, Any], *words: str) -> tuple[Router, Result]:
    router = Router(tmp_path, reply)
    serving = asyncio.create_task(asyncio.to_thread(router.serve))
    env = {"WEAVE_ROUTER_RUN_DIR": str(tmp_path)}
    result = await asyncio.to_thread(CliRunner().invoke, cli, ["attach", *words], env=env)
    await serving
    return router, result


async def test_attach_hands_the_namespace_over(tmp_path, pod) -> None:
    words = (pod, "10.32.0.5/12", "--container-id", "blue")
    router, result = await attach(tmp_path, msgspec.to_builtins(POD), *words)
    assert (result.exit_code, result.stdout) == (
        0, "attached eth0 10.32.0.5/12 fd00::a20:5/96 mac 0a:58:0a:20:00:05\n",
    )  # fmt: skip
    assert router.request == {
        "command": "attach", "address": "10.32.0.5/12", "netns": f"/proc/{pod}/ns/net", "ifname": "eth0",
        "container_id": "blue",
    }  # fmt: skip
    assert os.stat(f"/proc/{pod}/ns/net").st_ino in router.namespaces
    assert len(router.namespaces) == 2


async def test_attach_prints_json(tmp_path, pod) -> None:
    _, result = await attach(tmp_path, msgspec.to_builtins(POD), pod, "10.32.0.5/12", "--json")
    assert json.loads(result.stdout) == msgspec.to_builtins(POD)


@pytest.mark.parametrize(
    ("reply", "status", "sentence"),
    [
        ({"error": "10.32.0.5 is taken", "exit_status": 1}, 1, "10.32.0.5 is taken"),
        ({"error": "not in the range", "exit_status": 2}, 2, "not in the range"),
        ({"ifname": 5}, 1, "cannot read the router's answer (Expected `str`, got `int` - at `$.ifname`); "
                           "are both of one version?"),
    ],
)  # fmt: skip
async def test_what_the_router_refuses(tmp_path, pod, reply, status, sentence) -> None:
    _, result = await attach(tmp_path, reply, pod, "10.32.0.5/12")
    assert (result.exit_code, result.stderr) == (status, f"weave-router: {sentence}\n")


def test_attach_without_a_router_ends_with_3(tmp_path, pod) -> None:
    result = CliRunner().invoke(cli, ["attach", pod, "10.32.0.5/12"], env={"WEAVE_ROUTER_RUN_DIR": str(tmp_path)})
    assert result.exit_code == 3
    assert result.stderr.startswith(f"weave-router: cannot reach the router at {tmp_path}/attach.sock: ENOENT")


# --- reset ------------------------------------------------------------------------------------------------------


def reset(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """In a network namespace of its own, which ends with the command."""
    env = {
        **os.environ, "PYTHONPATH": os.pathsep.join(sys.path),
        "WEAVE_ROUTER_BIN_DIR": str(tmp_path / "bin"), "WEAVE_ROUTER_CONF_DIR": str(tmp_path / "conf"),
        "WEAVE_ROUTER_RUN_DIR": str(tmp_path / "run"), "WEAVE_ROUTER_STATE_DIR": str(tmp_path / "state"),
    }  # fmt: skip
    command = ["unshare", "--net", sys.executable, "-m", "weave_router", "reset", *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=30)


@pytest.fixture
def state(tmp_path) -> Path:
    """A store with one attachment."""
    with Store.open(tmp_path / "state", boot_id="b") as store:
        store.attachment_put(Attachment(
            container="blue", ifname="eth0", numbers=(0x0A200005,), prefix_len=12, netns_inode=1, boot_id="b",
            host_ifname="vethwr012345678", mac=bytes.fromhex("0a580a200005"),
        ))  # fmt: skip
    return tmp_path / "state"


def test_reset_refuses_while_pods_are_attached(tmp_path, state) -> None:
    refused = reset(tmp_path)
    assert (refused.returncode, refused.stderr) == (
        1, "weave-router: 1 pod is attached, first blue eth0; detach them first, or force it "
           "(`weave-router reset --force`): they lose their network at once\n",
    )  # fmt: skip
    assert (state / "store.db").exists()


def test_forced_it_leaves_the_lock_file_alone_and_can_be_repeated(tmp_path, state) -> None:
    (state / "cni-journal").mkdir()
    (state / "cni-journal" / "1.json").write_bytes(b"{}")
    first = reset(tmp_path, "--force", "--json")
    assert (first.returncode, first.stderr) == (0, "")
    assert f"file {state}/store.db" in json.loads(first.stdout)["removed"]
    assert os.listdir(state) == ["store.lock"]
    again = reset(tmp_path)
    assert (again.returncode, again.stderr) == (0, "")


def test_reset_takes_the_plugin_its_list_and_what_a_cluster_left(tmp_path, state) -> None:
    files = [tmp_path / "bin" / "weave-router-cni", tmp_path / "conf" / "10-weave-router.conflist", state / "token",
             tmp_path / "conf" / ".10-weave-router.conflist.weave-router-new", state / "kubernetes.json"]
    kept = tmp_path / "conf" / "20-other.conflist"
    for path in (*files, kept):
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    done = reset(tmp_path, "--force", "--json")
    assert [path for path in files if path.exists()] == [] and kept.exists()
    said = json.loads(done.stdout)
    assert "give --kubernetes-api" in said["left"], "it was in a cluster, and there is none here"
    lists = [line for line in said["removed"] if "/conf/" in line or "/bin/" in line]
    assert lists[0].endswith("10-weave-router.conflist"), "what calls for the plugin goes first"


def test_reset_refuses_while_a_router_has_the_store(tmp_path, state) -> None:
    with Store.open(state, boot_id="b"):
        refused = reset(tmp_path, "--force")
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1, refused.stderr
    assert (state / "store.db").exists()


def test_a_damaged_store_is_no_reason_to_keep_it_when_forced(tmp_path, state) -> None:
    (state / "store.db").write_bytes(b"not a database")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(state / "store.db-wal")
    assert reset(tmp_path).returncode == 1
    assert reset(tmp_path, "--force").returncode == 0
    assert os.listdir(state) == ["store.lock"]


def test_reset_where_there_is_nothing(tmp_path) -> None:
    nothing = reset(tmp_path)
    assert (nothing.returncode, nothing.stdout, nothing.stderr) == (0, "nothing to remove\n", "")
    assert os.listdir(tmp_path) == []
