"""The CNI executable alone: every verb and refusal, an empty root, time-outs, and a router that misbehaves.

Runs the installed executable and, for all tables, the same source under the sanitizers.
"""

import asyncio
import json
import os
import shutil
import socket
import statistics
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cni.conftest import selected
from cni.shim import BOOT, SANITIZERS, SOURCE, VERSIONS, FakeRouter, Shim, alive, build, framed, installed
from lab.namespace import Namespace

from weave_router import limits
from weave_router.host.handover_driver import POD_SYSCTLS

NOTHING = b""
CONTAINER_ID_MAX = limits.CNI_CONTAINER_ID_MAX


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("asan") / "weave-router-cni", *SANITIZERS)


@pytest.fixture(params=["installed", "sanitized"])
def shim(request: pytest.FixtureRequest, tmp_path: Path) -> Shim:
    path = installed() if request.param == "installed" else request.getfixturevalue("sanitized")
    return Shim(path, tmp_path / "attach.sock", tmp_path / "journal")


@pytest.fixture
def pod() -> Iterator[Namespace]:
    made = Namespace(f"wrlab-{os.getpid()}-1-cnishim", "pod")
    made.create()
    yield made
    made.delete()


# -- VERSION -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("config", "version"), [
    *((json.dumps({"cniVersion": version}).encode(), version) for version in VERSIONS),
    (b'{"cniVersion":"2.0.0"}', "1.1.0"), (b"", "1.1.0"), (b"{", "1.1.0"), (b"\xff\x00", "1.1.0"),
])  # fmt: skip
def test_version(shim: Shim, config: bytes, version: str) -> None:
    done = shim.run("VERSION", config, CNI_CONTAINERID="unset", CNI_IFNAME="unset")
    assert (done.status, done.stderr) == (0, "")
    assert done.value == {"cniVersion": version, "supportedVersions": list(VERSIONS)}


# -- refusals ------------------------------------------------------------------------------------------------------

VALID = {"cniVersion": "1.0.0", "name": "weave"}
CONFIGS: list[tuple[bytes, int, str]] = [
    (b"", 6, "not one JSON object"),
    (b"{", 6, "not one JSON object"),
    (b'{"cniVersion":"1.0.0"', 6, "not one JSON object"),
    (b'{"cniVersion":"1.0.0', 6, "not one JSON object"),
    (b'{"cniVersion":"1.0.0\\', 6, "not one JSON object"),
    (b'{"cniVersion":"1.0.0"}}', 6, "not one JSON object"),
    (b'{"cniVersion":"1.0.0"}{}', 6, "not one JSON object"),
    (b'{"cniVersion":"1.0.0"} x', 6, "not one JSON object"),
    (b"[]", 6, "not one JSON object"),
    (b'"text"', 6, "not one JSON object"),
    (b"\0", 6, "not one JSON object"),
    (b"\xff\xfe", 6, "not one JSON object"),
    (b'{"cniVersion":"1.0.0","cniVersion":"1.0.0"}', 6, '"cniVersion" stands twice'),
    (b'{"cniVersion":"1.0.0","name":"a","name":"b"}', 6, '"name" stands twice'),
    (b" " * limits.HANDOVER_REQUEST_BYTES, 6, "larger than 1048576"),
    (b"{}", 1, "(none)"),
    (b'{"cniVersion":""}', 1, "none of 0.3.0"),
    (b'{"cniVersion":"0.2.0"}', 1, '"0.2.0"'),
    (b'{"cniVersion":"2.0.0"}', 1, '"2.0.0"'),
    (b'{"cniVersion":1}', 1, "cniVersion 1 "),
    (b'{"cniVersion":null}', 1, "cniVersion null"),
    (b'{"cniVersion":"' + b"9" * 5000 + b'"}', 1, "999"),
    (b'{"cniVersion":"1.0.0","socket":"relative"}', 7, '"socket"'),
    (b'{"cniVersion":"1.0.0","socket":""}', 7, '"socket"'),
    (b'{"cniVersion":"1.0.0","socket":7}', 7, '"socket"'),
    (b'{"cniVersion":"1.0.0","socket":"/' + b"s" * 200 + b'"}', 7, '"socket"'),
    (b'{"cniVersion":"1.0.0","journal":"/' + b"j" * 300 + b'"}', 7, '"journal"'),
    (b'{"cniVersion":"1.0.0","journal":"/a\\u0000b"}', 7, '"journal"'),
]


@pytest.mark.parametrize("verb", ["ADD", "DEL"])
@pytest.mark.parametrize(("config", "code", "words"), CONFIGS)
def test_configurations_that_are_refused(shim: Shim, verb: str, config: bytes, code: int, words: str) -> None:
    done = shim.run(verb, config)
    assert (done.code, words in done.value["msg"]) == (code, True), done
    assert shim.entries() == []


ENVIRONMENTS: list[tuple[str, dict[str, str], int, str]] = [
    ("unset", {}, 4, "CNI_COMMAND"),
    ("add", {}, 4, "CNI_COMMAND"),
    ("UPDATE", {}, 4, "CNI_COMMAND"),
    *((verb, {"CNI_CONTAINERID": value}, 4, "CNI_CONTAINERID") for verb in ("ADD", "DEL", "CHECK")
      for value in ("unset", "", ".x", "-x", "_x", "a/b", "a b", "a\nb", "\xe9", "x" * (CONTAINER_ID_MAX + 1))),
    *((verb, {"CNI_IFNAME": value}, 4, "CNI_IFNAME") for verb in ("ADD", "DEL", "CHECK")
      for value in ("unset", "", ".", "..", "a/b", "a:b", "a b", "a\tb", "\xe9", "x" * 16)),
    ("ADD", {"CNI_NETNS": "unset"}, 4, "CNI_NETNS"),
    ("CHECK", {"CNI_NETNS": ""}, 4, "CNI_NETNS"),
    ("ADD", {"CNI_NETNS": "/nowhere/at/all"}, 3, "CNI_NETNS /nowhere/at/all"),
    ("ADD", {"CNI_NETNS": "/etc/passwd"}, 4, "no network namespace"),
    ("ADD", {"CNI_NETNS": "/proc/self/ns/mnt"}, 4, "CNI_NETNS"),
    ("ADD", {"CNI_NETNS": "/dev/null"}, 4, "no network namespace"),
    ("ADD", {"CNI_NETNS": "/proc/self/ns/net"}, 4, "the host's own"),
    ("ADD", {"CNI_NETNS": "/" + "n" * 5000}, 4, "CNI_NETNS"),
]  # fmt: skip


@pytest.mark.parametrize(("verb", "variables", "code", "words"), ENVIRONMENTS)
def test_environments_that_are_refused(shim: Shim, verb: str, variables: dict[str, str], code: int, words: str) -> None:
    done = shim.run(verb, **variables)
    assert (done.code, words in done.value["msg"]) == (code, True), done
    assert shim.entries() == []


@pytest.mark.parametrize(("verb", "version"), [("CHECK", "0.3.1"), ("GC", "1.0.0"), ("STATUS", "1.0.0")])
def test_verbs_that_the_version_lacks(shim: Shim, verb: str, version: str) -> None:
    done = shim.run(verb, shim.config(version))
    assert done.code == 1 and done.value["cniVersion"] == version


def test_errors_carry_the_version_of_the_configuration(shim: Shim) -> None:
    for version in VERSIONS:
        done = shim.run("ADD", shim.config(version), CNI_IFNAME="")
        assert (done.code, done.value["cniVersion"]) == (4, version)


@pytest.mark.parametrize("words", [["probe"], ["probe", "well"], ["status"], ["--help"]])
def test_arguments_that_are_none(shim: Shim, words: list[str]) -> None:
    done = subprocess.run([shim.executable, *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "") and "usage" in done.stderr


# -- an empty root -------------------------------------------------------------------------------------------------


def test_an_empty_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    shutil.copy(installed(), root / "cni")
    shim = Shim(Path("/cni"), Path("/attach.sock"), Path("/journal"))
    prefix = [shutil.which("chroot") or "/usr/sbin/chroot", str(root)]
    assert shim.run("VERSION", prefix=prefix).value["supportedVersions"] == list(VERSIONS)
    assert shim.run("ADD", prefix=prefix, CNI_NETNS="/run/netns/x").code == 3
    assert shim.run("STATUS", shim.config("1.1.0"), prefix=prefix).code == 50
    assert shim.run("GC", shim.config("1.1.0"), prefix=prefix).code == 11
    assert shim.run("DEL", prefix=prefix).status == 0
    assert len(list((root / "journal").glob("*.json"))) == 1
    with FakeRouter(root / "attach.sock", framed(b"{}")) as router:
        assert shim.run("DEL", prefix=prefix).status == 0
    assert router.requests[0]["cni"]["command"] == "DEL"


# -- STATUS --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("boot", "age", "code"), [
    (BOOT, 0, 0), (BOOT, 58, 0), (BOOT, 62, 50), (BOOT[:-1] + "2", 0, 50), (BOOT + "0", 0, 50), ("", 0, 50),
])  # fmt: skip
def test_status_by_the_alive_file(shim: Shim, boot: str, age: int, code: int) -> None:
    alive(shim.socket.parent / "alive", boot, time.clock_gettime(time.CLOCK_BOOTTIME) - age)
    done = shim.run("STATUS", shim.config("1.1.0"))
    if code:
        assert done.code == code
    else:
        assert (done.status, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("content", [None, b"", b"\n", b"x" * 500, BOOT.encode()])
def test_status_without_a_router(shim: Shim, content: bytes | None) -> None:
    if content is not None:
        (shim.socket.parent / "alive").write_bytes(content)
    assert shim.run("STATUS", shim.config("1.1.0")).code == 50


# -- with a router that does as it is told -------------------------------------------------------------------------

RESULT = {"cniVersion": "1.0.0", "interfaces": [], "ips": [], "code_": "\u00e9 \" code"}


def test_add_hands_over_everything(shim: Shim, pod: Namespace) -> None:
    config = json.dumps(shim.config(odd="\u00e9\u0001\"\\ 😀"), ensure_ascii=False).encode()
    names: list[str] = []

    def answer(request: dict[str, Any], fds: list[int]) -> bytes:
        with socket.socket(fileno=os.dup(fds[0])) as netlink:
            names.append(f"{netlink.family.name} {netlink.type.name} {netlink.proto}")
        return framed(RESULT)

    with FakeRouter(shim.socket, answer) as router:
        done = shim.run("ADD", config, CNI_NETNS=str(pod.path), CNI_ARGS="IgnoreUnknown=1;K=\xfc;IP=10.32.0.5")
    assert (done.status, done.stderr, done.value) == (0, "", RESULT)
    sent = router.requests[0]["cni"]
    assert sent.pop("config").encode("latin-1") == config
    assert sent.pop("args").encode("latin-1").decode() == "IgnoreUnknown=1;K=\xfc;IP=10.32.0.5"
    inode = pod.path.stat().st_ino
    assert sent == {"command": "ADD", "container": "c1", "ifname": "eth0", "netns": str(pod.path), "boot_id": BOOT,
                    "netns_inode": inode}  # fmt: skip
    assert names == ["AF_NETLINK SOCK_DGRAM 0"] and router.inodes[0][1] == inode


def test_add_sets_the_sysctls_of_the_pod_and_no_others(shim: Shim, pod: Namespace) -> None:
    pod.sysctl({"net.ipv6.conf.default.accept_dad": 1, "net.ipv4.conf.default.arp_notify": 0,
                "net.ipv6.conf.default.disable_ipv6": 1})
    outside = {name: Path("/proc/sys", name).read_text() for name, _ in POD_SYSCTLS}
    with FakeRouter(shim.socket, framed(RESULT)):
        assert shim.run("ADD", CNI_NETNS=str(pod.path)).status == 0
    for name, value in POD_SYSCTLS:
        assert pod.run(["sysctl", "-n", name.replace("/", ".")]).stdout.strip() == value
    assert outside == {name: Path("/proc/sys", name).read_text() for name, _ in POD_SYSCTLS}


@pytest.mark.parametrize(("verb", "answer", "code"), [
    ("ADD", framed({"cniVersion": "1.0.0", "code": 101, "msg": "no"}), 101),
    ("ADD", framed({"cniVersion": "1.0.0", "code": 7, "msg": "no"}), 7),
    ("CHECK", framed({"cniVersion": "1.0.0", "code": 100, "msg": "no"}), 100),
    ("ADD", framed(b"{}"), 999),
    ("ADD", framed(b"{"), 999),
    ("ADD", framed({"error": "an older router", "exit_status": 2}), 999),
    ("CHECK", framed({"error": "an older router"}), 999),
    ("ADD", framed(b"\0\xff"), 999),
    ("ADD", (0).to_bytes(4, "big"), 999),
])  # fmt: skip
def test_answers_that_are_no_success(shim: Shim, pod: Namespace, verb: str, answer: bytes, code: int) -> None:
    with FakeRouter(shim.socket, answer):
        assert shim.run(verb, CNI_NETNS=str(pod.path)).code == code


def test_check_prints_nothing(shim: Shim, pod: Namespace) -> None:
    with FakeRouter(shim.socket, framed(b"{}")):
        done = shim.run("CHECK", CNI_NETNS=str(pod.path))
    assert (done.status, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("broken", [NOTHING, b"\0", framed(RESULT)[:20], b"\xff\xff\xff\xff{}"])
def test_add_survives_a_router_that_dies_in_mid_answer(shim: Shim, pod: Namespace, broken: bytes) -> None:
    with FakeRouter(shim.socket, broken, broken, framed(RESULT)) as router:
        done = shim.run("ADD", CNI_NETNS=str(pod.path))
    assert done.status == 0 and done.value == RESULT and len(router.requests) == 3


def test_the_largest_configuration_and_the_largest_answer(shim: Shim, pod: Namespace) -> None:
    config = json.dumps(shim.config(fill="x" * 1_000_000)).encode()
    answer = {**RESULT, "fill": "y" * 1_000_000}
    with FakeRouter(shim.socket, framed(answer)) as router:
        assert shim.run("ADD", config, CNI_NETNS=str(pod.path)).value == answer
    assert router.requests[0]["cni"]["config"].encode() == config


def test_what_does_not_fit_a_request_is_refused(shim: Shim, pod: Namespace) -> None:
    """Six bytes for one that is no ASCII."""
    raw = json.dumps(shim.config()).encode()[:-1] + b',"fill":"' + b"\xc3" * 500_000 + b'"}'
    assert shim.run("ADD", raw, CNI_NETNS=str(pod.path)).code == 4


def test_probe(shim: Shim) -> None:
    def probe(kind: str) -> int:
        words = [shim.executable, "probe", kind, shim.socket]
        return subprocess.run(words, capture_output=True, check=False).returncode

    assert probe("live") == 1
    with FakeRouter(shim.socket, framed(b"{}"), framed(b'{"error":"no"}')) as router:
        assert (probe("live"), probe("ready")) == (0, 1)
    assert router.requests == [{"probe": "live"}, {"probe": "ready"}]


# -- time-outs -----------------------------------------------------------------------------------------------------


async def started(shim: Shim, verb: str, pod: str, stdin: Any = None) -> tuple[float, int, bytes]:
    """(seconds, exit status, stdout)"""
    began = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        shim.executable, stdin=asyncio.subprocess.PIPE if stdin is None else stdin, stdout=asyncio.subprocess.PIPE,
        env=shim.environment(verb, CNI_NETNS=pod))
    stdout, _ = await process.communicate(json.dumps(shim.config()).encode() if stdin is None else None)
    return time.monotonic() - began, process.returncode or 0, stdout


async def waits(folder: Path, pod: Namespace) -> None:
    """All at once, each with a router that never answers, or with none."""
    (folder / "silent").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "silent" / "attach.sock"))
        listener.listen(8)
        silent = Shim(installed(), folder / "silent" / "attach.sock", folder / "silent" / "journal")
        away = Shim(installed(), folder / "attach.sock", folder / "journal")
        reading, writing = os.pipe()
        outcomes = await asyncio.gather(
            started(away, "ADD", str(pod.path)),
            started(away, "CHECK", str(pod.path)),
            started(away, "ADD", str(pod.path), reading),
            started(silent, "DEL", str(pod.path)),
        )
        os.close(reading)
        os.close(writing)
    codes = [json.loads(stdout)["code"] if stdout else 0 for _, _, stdout in outcomes]
    assert codes == [11, 11, 5, 0]
    assert [status for _, status, _ in outcomes] == [1, 1, 1, 0]
    assert all(9.5 < seconds < 14 for seconds, _, _ in outcomes), outcomes
    assert len(silent.entries()) == 1


@pytest.fixture(scope="module", autouse=True)
def waiting(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Future[None] | None]:
    """Beside the other tests, for it takes 12 s."""
    if not selected(request, "test_nothing_hangs"):
        yield None
        return
    pod = Namespace(f"wrlab-{os.getpid()}-1-cniwait", "waiting")
    pod.create()
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(lambda: asyncio.run(waits(tmp_path_factory.mktemp("waits"), pod)))
    pod.delete()


def test_add_waits_for_a_router_that_starts(shim: Shim, pod: Namespace) -> None:
    process = subprocess.Popen([shim.executable], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               env=shim.environment("ADD", CNI_NETNS=str(pod.path)))
    assert process.stdin and process.stdout
    process.stdin.write(json.dumps(shim.config()).encode())
    process.stdin.close()
    assert process.poll() is None
    with FakeRouter(shim.socket, framed(RESULT)):
        assert json.loads(process.stdout.read()) == RESULT
        assert process.wait(10) == 0
    process.stdout.close()


# -- size and speed ------------------------------------------------------------------------------------------------


def test_it_is_small_static_and_short() -> None:
    assert len(SOURCE.read_text().splitlines()) <= 500
    assert b"/ld-" not in installed().read_bytes(), "it names a loader: not static"
    assert installed().stat().st_mode & 0o777 == 0o755


def test_one_run_takes_at_most_a_millisecond_and_a_half(tmp_path: Path) -> None:
    shim = Shim(installed(), tmp_path / "attach.sock", tmp_path / "journal")
    config = tmp_path / "config"
    config.write_text(json.dumps(shim.config()))
    alive(tmp_path / "alive", BOOT, time.clock_gettime(time.CLOCK_BOOTTIME))
    environment = shim.environment("VERSION")

    def once() -> float:
        began = time.perf_counter()
        pid = os.posix_spawn(shim.executable, [str(shim.executable)], environment, file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, str(config), os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)])
        assert os.waitpid(pid, 0)[1] == 0
        return (time.perf_counter() - began) * 1000

    medians = [statistics.median(once() for _ in range(40)) for _ in range(5)]
    print(f"medians of 40 runs, ms: {medians}")
    assert min(medians) <= 1.5


# -- the end of what was begun first ---------------------------------------------------------------------------------


def test_nothing_hangs(waiting: Future[None]) -> None:
    waiting.result()
