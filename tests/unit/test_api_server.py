"""The API over its real socket: every path, every refusal, captures, deadlines, and how the socket comes and goes."""

import asyncio
import gzip
import io
import json
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from unit.api_router import FRAMES, ID_A, POD, MemoryRouter, Served, serve

from weave_router import limits
from weave_router.api import pcapng, schema, text
from weave_router.api.client import ApiClient
from weave_router.api.handlers import bounded_report
from weave_router.api.server import ApiServer
from weave_router.errors import NotRunningError, UsageError, UserError


@pytest.fixture
def served(tmp_path) -> Iterator[Served]:
    with serve(tmp_path) as served:
        yield served


@pytest.fixture
def client(served) -> ApiClient:
    return ApiClient(str(served.run_dir))


def raw(run_dir: Path, request: bytes, timeout: float = 10) -> bytes:
    """Everything that comes back until the router hangs up."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout)
        connection.connect(str(run_dir / "api.sock"))
        connection.sendall(request)
        answer = b""
        while piece := connection.recv(65_536):
            answer += piece
    return answer


def ask(run_dir: Path, method: str, path: str, body: bytes = b"", headers: str = "") -> tuple[int, Any]:
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    answer = raw(run_dir, head.encode() + body)
    status, content = int(answer.split()[1]), answer.partition(b"\r\n\r\n")[2]
    return status, json.loads(content)


# --- what is read -----------------------------------------------------------------------------------------------


def test_the_whole_page_and_each_subject(served, client) -> None:
    report = client.get("/status", schema.StatusReport)
    assert report == msgspec.convert(msgspec.to_builtins(report), schema.StatusReport)
    assert (report.service.id, len(report.connections), report.ipam.attachments) == (ID_A, 5, (POD,))
    whole = client.get("/status", dict[str, Any])
    for subject in text.SUBJECTS:
        part = client.get(f"/status/{subject}", Any)
        assert part == (whole["ipam"]["attachments"] if subject == "attachments" else whole[subject])


def test_the_same_page_as_text(served) -> None:
    request = b"GET /status%b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%b\r\n"
    by_header = raw(served.run_dir, request % (b"", b"Accept: text/plain\r\n")).partition(b"\r\n\r\n")[2]
    by_query = raw(served.run_dir, request % (b"?format=text", b"")).partition(b"\r\n\r\n")[2]
    assert by_header == by_query
    assert b"           Name: 0a1b2c3d4e5f(node-a)\n" in by_header
    drops = raw(served.run_dir, request % (b"/drops", b"Accept: text/plain\r\n")).partition(b"\r\n\r\n")[2]
    assert drops.split() == [b"REASON", b"FRAMES", b"bad_tag", b"10", b"replay", b"2"]


def test_metrics_and_tokens(client) -> None:
    assert b"weave_connections{" in client.get_bytes("/metrics")
    assert client.get("/tokens", schema.Tokens).sending == "1a2b3c4d"


def test_the_report_is_bounded(client) -> None:
    report = client.get("/report", schema.Report)
    assert report.tables["routes"] == (["10.32.0.1/32", 1],)
    assert report.truncated == {}
    router = MemoryRouter()
    router.trace_rows = [(number,) for number in range(limits.REPORT_ROWS_MAX + 3)]
    router.tables = lambda: {"routes": range(limits.REPORT_ROWS_MAX + 1)}  # type: ignore[method-assign, assignment]
    cut = bounded_report(router, 0.0)
    assert cut.truncated == {"trace": 3, "routes": 1}
    assert cut.trace[0] == (3,)
    assert len(cut.trace) == len(cut.tables["routes"]) == limits.REPORT_ROWS_MAX


# --- what is told -----------------------------------------------------------------------------------------------


def test_connect_forget_detach(served, client) -> None:
    asked = schema.ConnectRequest(targets=("192.0.2.13",))
    assert client.post("/connect", asked, schema.TargetsReply).targets == ("192.0.2.12", "192.0.2.14", "192.0.2.13")
    client.post("/forget", schema.ForgetRequest(targets=("192.0.2.12",)), schema.TargetsReply)
    assert served.router.known_targets == ("192.0.2.14", "192.0.2.13")
    only = schema.ConnectRequest(targets=("192.0.2.1",), replace=True)
    assert client.post("/connect", only, schema.TargetsReply).targets == ("192.0.2.1",)
    gone = client.post("/detach", schema.DetachRequest(netns=POD.netns), schema.DetachReply)
    assert gone.detached == (POD,) and served.router.pods == ()


# --- refusals: every sentence of this room ----------------------------------------------------------------------

MANY = json.dumps({"targets": ["a"] * (limits.TARGETS_MAX + 1)}).encode()
PATHS = ", ".join([
    "/status", *(f"/status/{subject}" for subject in text.SUBJECTS), "/tokens", "/metrics", "/report", "/capture",
    "/connect", "/forget", "/detach", "/status/addresses", "/claim", "/expose", "/ipam/check", "/ipam/ungate",
    "/retire", "/retirement",
])  # fmt: skip
REFUSALS = [
    ("GET", "/nothing", b"", 404, f"there is nothing at '/nothing'; there are {PATHS}"),
    ("GET", "/status/nothing", b"", 404, f"there is nothing at '/status/nothing'; there are {PATHS}"),
    ("POST", "/", b"", 404, f"there is nothing at '/'; there are {PATHS}"),
    ("DELETE", "/status", b"", 405, "/status takes GET"),
    ("PUT", "/capture", b"", 405, "/capture takes GET"),
    ("GET", "/connect", b"", 405, "/connect takes POST"),
    ("POST", "/connect", b"", 400, "the body of /connect cannot be used: Input data was truncated"),
    ("POST", "/connect", b"{}", 400, "the body of /connect cannot be used: Object missing required field `targets`"),
    ("POST", "/connect", b'{"targets": "a"}', 400,
     "the body of /connect cannot be used: Expected `array`, got `str` - at `$.targets`"),
    ("POST", "/connect", b'{"targets": [""]}', 400,
     "the body of /connect cannot be used: Expected `str` of length >= 1 - at `$.targets[0]`"),
    ("POST", "/connect", MANY, 400,
     f"the body of /connect cannot be used: Expected `array` of length <= {limits.TARGETS_MAX} - at `$.targets`"),
    ("POST", "/connect", b'{"targets": [], "force": true}', 400,
     "the body of /connect cannot be used: Object contains unknown field `force`"),
    ("POST", "/forget", b'{"targets": []}', 400,
     "the body of /forget cannot be used: Expected `array` of length >= 1 - at `$.targets`"),
    ("POST", "/forget", b'{"targets": ["a"]}', 409, "a is no target; `weave-router status targets` lists them"),
    ("POST", "/detach", b"{}", 400, "say which attachment"),
    ("POST", "/detach", b"\xff", 400,
     "the body of /detach cannot be used: JSON is malformed: invalid character (byte 0)"),
    ("POST", "/detach", b"[" * 60_000, 400, "the body of /detach cannot be used: Expected `object`, got `array`"),
    ("POST", "/detach", b'{"x": ' * 10_000, 400,
     "the body of /detach cannot be used: Object contains unknown field `x`"),
    ("POST", "/detach", b" " * (limits.API_BODY_MAX + 1), 413, f"the body is larger than {limits.API_BODY_MAX} bytes"),
    ("GET", "/capture?peer=node-z", b"", 409, "no peer is called node-z"),
    ("GET", "/capture?snap=1", b"", 400, "the query of /capture cannot be used: Expected `int` >= 14 - at `$.snap`"),
    ("GET", "/capture?snap=262145", b"", 400,
     "the query of /capture cannot be used: Expected `int` <= 262144 - at `$.snap`"),
    ("GET", "/capture?count=x", b"", 400,
     "the query of /capture cannot be used: Expected `int`, got `str` - at `$.count`"),
    ("GET", "/capture?seconds=nan", b"", 400,
     "the query of /capture cannot be used: Expected `float` >= 0.0 - at `$.seconds`"),
    ("GET", "/capture?pods=x", b"", 400, "the query of /capture cannot be used: Object contains unknown field `pods`"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "body", "status", "sentence"), REFUSALS)
def test_a_refusal_is_a_sentence(served, method, path, body, status, sentence) -> None:
    got, answer = ask(served.run_dir, method, path, body)
    assert (got, answer["error"]) == (status, sentence)
    assert answer["exit_status"] == (1 if status == 409 else 2)


def test_a_compressed_body_is_not_unpacked(served) -> None:
    body = gzip.compress(b'{"targets": ["a"]}')
    status, answer = ask(served.run_dir, "POST", "/connect", body, "Content-Encoding: gzip\r\n")
    assert (status, answer["error"][:36]) == (400, "the body of /connect cannot be used:")
    assert "a" not in served.router.known_targets


def test_a_mistake_of_ours_is_a_500_and_the_router_goes_on(served, caplog) -> None:
    served.router.broken = True
    assert ask(served.run_dir, "GET", "/status")[:2] == (
        500, {"error": "the router failed to answer; its log says why", "exit_status": 1},
    )  # fmt: skip
    assert "broken on purpose" in caplog.text
    served.router.broken = False
    assert ask(served.run_dir, "GET", "/status/drops")[0] == 200


def test_an_answer_that_does_not_come_is_a_504(served, monkeypatch) -> None:
    monkeypatch.setattr(limits, "API_HANDLER_SECONDS", 0.05)
    served.router.hangs = True
    status, answer = ask(served.run_dir, "POST", "/connect", b'{"targets": ["a"]}')
    assert (status, answer["error"]) == (504, "the router did not answer within 0.05 s; see its log")


# --- capture ----------------------------------------------------------------------------------------------------


def captured(data: bytes) -> list[tuple[int, bytes, int, int]]:
    from scapy.utils import RawPcapNgReader

    return [
        ((meta.tshigh << 32) + meta.tslow, frame, meta.wirelen, meta.direction)
        for frame, meta in RawPcapNgReader(io.BytesIO(data))
    ]


def test_a_capture_ends_after_its_count(served, client) -> None:
    data = b"".join(client.stream("/capture", {"count": 2, "peer": "node-b"}))
    assert captured(data) == [(ns, frame, length, 2 - direction) for ns, direction, length, frame in FRAMES[:2]]
    assert_ends_with_statistics(data)
    assert served.router.capturing is None


def assert_ends_with_statistics(data: bytes) -> None:
    """That block closes a file; its own length stands in its last four bytes."""
    length = int.from_bytes(data[-4:], "little")
    assert int.from_bytes(data[-length:][:4], "little") == pcapng.INTERFACE_STATISTICS


def test_a_capture_ends_after_its_time_and_is_cut_to_snap(client) -> None:
    data = b"".join(client.stream("/capture", {"seconds": 0.1, "snap": 14}))
    assert [(len(frame), length) for _, frame, length, _ in captured(data)] == [(14, 60), (14, 1500), (14, 65_000)]


def test_hanging_up_ends_a_capture_and_there_is_one_at_a_time(served, client) -> None:
    with closing(client.stream("/capture", {})) as pieces:
        next(pieces)
        with pytest.raises(UserError, match="another capture is under way"):
            next(client.stream("/capture", {}))
        assert served.router.capturing is not None
    served.ask(_until(lambda: served.router.capturing is None))


def test_stopping_the_router_ends_a_capture_properly(tmp_path) -> None:
    with serve(tmp_path) as served:
        pieces = ApiClient(str(tmp_path)).stream("/capture", {})
        data = next(pieces)
        served.ask(_start(served.server.stop()))
        data += b"".join(pieces)
    assert len(captured(data)) == len(FRAMES)
    assert_ends_with_statistics(data)


async def _start(coroutine: Any) -> None:
    tasks.add(asyncio.ensure_future(coroutine))


tasks: set[Any] = set()


async def _until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 (the condition is another thread's, or the kernel's)
            await asyncio.sleep(0.005)


# --- the door ---------------------------------------------------------------------------------------------------


def test_half_a_request_does_not_stay(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(limits, "API_CONNECTION_SECONDS", 0.1)
    with serve(tmp_path) as served:
        for half in (b"", b"GET /status HT", b"POST /connect HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"):
            with pytest.raises(ConnectionError):
                assert raw(tmp_path, half) == b""
                raise ConnectionResetError
        assert served.server._handlers.door.timed_out == 3


def test_a_capture_outlives_the_deadline(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(limits, "API_CONNECTION_SECONDS", 0.1)
    with serve(tmp_path) as served:
        data = b"".join(ApiClient(str(tmp_path), timeout=10).stream("/capture", {"seconds": 0.4}))
        assert len(captured(data)) == len(FRAMES)
        assert served.server._handlers.door.timed_out == 0


def test_so_many_and_no_more(served) -> None:
    connections = []
    for _ in range(limits.API_CONNECTIONS_MAX):
        connections.append(socket.socket(socket.AF_UNIX))
        connections[-1].connect(str(served.run_dir / "api.sock"))
    door = served.server._handlers.door
    served.ask(_until(lambda: len(door._deadlines) == limits.API_CONNECTIONS_MAX))
    with pytest.raises(UserError, match=r"hung up; it may be stopping or have too many requests"):
        ApiClient(str(served.run_dir)).get("/status", Any)
    assert door.turned_away == 1
    for connection in connections:
        connection.close()
    served.ask(_until(lambda: not door._deadlines))
    assert ApiClient(str(served.run_dir)).get("/status/drops", Any)["bad_tag"] == 10


# --- the socket -------------------------------------------------------------------------------------------------


def test_the_socket_is_its_owners_alone_whatever_the_umask(tmp_path) -> None:
    former = os.umask(0)
    try:
        with serve(tmp_path):
            mode = os.stat(tmp_path / "api.sock").st_mode
            assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600
            assert os.listdir(tmp_path) == ["api.sock"]
    finally:
        os.umask(former)
    assert os.listdir(tmp_path) == []


async def test_a_socket_left_by_a_killed_router_is_replaced(tmp_path) -> None:
    for name in ("api.sock", "api.sock.new"):
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(tmp_path / name))
    async with ApiServer(MemoryRouter(), str(tmp_path)):
        answer = await asyncio.to_thread(ApiClient(str(tmp_path)).get, "/status/drops", Any)
    assert answer["replay"] == 2


async def test_a_second_router_is_refused_and_takes_nothing(tmp_path) -> None:
    async with ApiServer(MemoryRouter(), str(tmp_path)):
        with pytest.raises(UserError, match=r"another router answers on .*api.sock; stop it, or give this one another"):
            await ApiServer(MemoryRouter(), str(tmp_path)).start()
        assert await asyncio.to_thread(ApiClient(str(tmp_path)).get, "/status/drops", Any)


async def test_a_successors_socket_is_not_removed(tmp_path) -> None:
    first = ApiServer(MemoryRouter(), str(tmp_path))
    await first.start()
    os.unlink(tmp_path / "api.sock")
    async with ApiServer(MemoryRouter(), str(tmp_path)):
        await first.stop()
        await first.stop()
        assert (tmp_path / "api.sock").exists()


async def test_a_directory_that_is_not_there(tmp_path) -> None:
    with pytest.raises(UserError) as caught:
        await ApiServer(MemoryRouter(), str(tmp_path / "no")).start()
    path = tmp_path / "no" / "api.sock"
    why = "No such file or directory; is --run-dir a writable directory?"
    assert str(caught.value) == f"cannot listen on {path}: {why}"


# --- the client against what is no router -----------------------------------------------------------------------


def fake(tmp_path: Path, answer: bytes | None) -> Any:
    """One connection answered with these bytes; None: never."""
    import threading

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "api.sock"))
    listener.listen(1)
    done = threading.Event()

    def body() -> None:
        with listener, listener.accept()[0] as connection:
            if answer is None:
                done.wait(5)
                return
            connection.recv(65_536)
            connection.sendall(answer)

    thread = threading.Thread(target=body)
    thread.start()
    return thread, done


OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b"
ANSWERS = [
    (b"SSH-2.0-OpenSSH_9.2\r\n", UserError, "what answers on {path} is no weave-router"),
    (b"", UserError, "the router on {path} hung up; it may be stopping or have too many requests"),
    (b"HTTP/1.1 502 Bad\r\n\r\n<html>", UserError, "the router refused with HTTP status 502"),
    (OK % (2, b"[]"), UserError,
     "cannot read the router's answer (Expected `object`, got `array`); "
     "are this command and the router of one version?"),
    (OK % (9, b"{"), UserError, "the router's answer on {path} broke off; try again, and see its log"),
    (b"HTTP/1.1 400 Bad\r\n\r\n" + b'{"error": "no", "exit_status": 2}', UsageError, "no"),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "kind", "sentence"), ANSWERS)
def test_an_answer_that_is_none(tmp_path, answer, kind, sentence) -> None:
    thread, _ = fake(tmp_path, answer)
    with pytest.raises(kind) as caught:
        ApiClient(str(tmp_path)).get("/status", schema.StatusReport)
    assert str(caught.value) == sentence.format(path=tmp_path / "api.sock")
    thread.join()


def test_silence_is_not_waited_for_for_ever(tmp_path) -> None:
    thread, done = fake(tmp_path, None)
    with pytest.raises(UserError, match=r"did not answer within 0.05 s; see its log"):
        ApiClient(str(tmp_path), timeout=0.05).get("/status", schema.StatusReport)
    done.set()
    thread.join()


def test_nobody_there(tmp_path) -> None:
    (tmp_path / "stale").mkdir()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "stale" / "api.sock"))
    for run_dir in (tmp_path, tmp_path / "no", tmp_path / "stale"):
        with pytest.raises(NotRunningError) as caught:
            ApiClient(str(run_dir)).get("/status", schema.StatusReport)
        assert str(caught.value) == (
            f"no router answers on {run_dir}/api.sock; start one by `weave-router launch`, or name its --run-dir"
        )
    with pytest.raises(UsageError, match=r"^--run-dir: .* is too long for a unix socket$"):
        ApiClient("/" + "x" * limits.UNIX_PATH_MAX).get("/status", schema.StatusReport)
