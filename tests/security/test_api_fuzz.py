"""Raw requests against the API's socket: it answers properly or hangs up, goes on, and keeps nothing.

Requests are mutations of good ones (seeded): bytes flipped, cut, repeated, joined, lengths lied about, bodies of
random JSON. A failing run prints the request; the seed is fixed, so it comes again. The router runs in a process of
its own on uvloop, so its memory and descriptors are its own.
"""

import contextlib
import json
import os
import random
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from security.inputs import INPUTS, SANITIZED, seeded

from weave_router.api import schema
from weave_router.api.client import ApiClient

ENTRY = 20_261_124
WARM_UP = 1_000
RSS_SLACK = 2 << 20
AT_A_TIME = 48
QUIET_SECONDS = 0.1

SERVER = """
import sys, threading
from pathlib import Path
from unit.api_router import serve
with serve(Path(sys.argv[1])):
    print("up", flush=True)
    sys.stdin.read()
"""
PATHS = [
    "/status", "/status/drops", "/status/connections", "/tokens", "/metrics", "/report", "/capture?count=1",
    "/capture?seconds=0.001&count=2", "/connect", "/forget", "/detach", "/status/%00", "/status/../report", "*", "//",
    "http://x/status", "/capture?count=-1", "/capture?snap=99999999999999999999", "/status?format=text",
    *["/forget"] * 6,  # the only one that says 409, and few bodies are what it reads
]  # fmt: skip
METHODS = ["GET", "POST", "PUT", "HEAD", "OPTIONS", "DELETE", "CONNECT", "TRACE", "get", "PRI"]
BODIES = [
    b'{"targets": ["192.0.2.13"]}', b'{"targets": ["192.0.2.12"], "replace": true}', b"{}", b"[[[[", b"null",
    b'{"netns": "/run/netns/x"}', b'{"netns": "/x", "netns_inode": 18446744073709551616}', b"\x00\xff",
    b'{"address": "\\ud800"}',
]  # fmt: skip
HEADERS = [
    b"Accept: text/plain", b"Content-Encoding: gzip", b"Transfer-Encoding: chunked", b"Expect: 100-continue",
    b"Connection: upgrade", b"Upgrade: websocket", b"Content-Length: 5", b"Content-Length: -1", b"Content-Length: 1e9",
    b"Content-Type: multipart/form-data; boundary=x", b"X: " + b"y" * 9_000, b"Host: a\x00b", b"Range: bytes=0-",
    b"Transfer-Encoding: chunked, identity", b" folded", b"Cookie: a=b; c",
]  # fmt: skip


def good(rng: random.Random) -> bytes:
    method, path, body = rng.choice(METHODS), rng.choice(PATHS), b""
    if rng.random() < 0.7:
        method = "POST" if path in ("/connect", "/forget", "/detach") else "GET"
    if method == "POST":
        body = rng.choice(BODIES) if rng.random() < 0.8 else json.dumps(random_value(rng, 3)).encode()
    headers = [b"Host: x", b"Connection: close", *rng.sample(HEADERS, rng.choice((0, 0, 1, 2)))]
    if body and rng.random() < 0.9:
        headers.append(b"Content-Length: %d" % len(body))
    version = rng.choice(("HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/9.9"))
    return f"{method} {path} {version}\r\n".encode() + b"\r\n".join(headers) + b"\r\n\r\n" + body


def random_value(rng: random.Random, depth: int) -> object:
    leaf = rng.choice([None, True, -1, 2**70, 1e308, "", "a" * 300, "\x00", "192.0.2.1", float("inf")])
    if depth == 0 or rng.random() < 0.3:
        return leaf
    inner = [random_value(rng, depth - 1) for _ in range(rng.randrange(4))]
    names = ["targets", "netns", "address", "x", "replace", "netns_inode"]
    return inner if rng.random() < 0.5 else {rng.choice(names): value for value in inner}


def mutated(rng: random.Random, data: bytes) -> bytes:
    kind = rng.randrange(7)
    at = rng.randrange(len(data))
    if kind == 0:
        return data
    if kind == 1:
        return data[:at]
    if kind == 2:
        return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
    if kind == 3:
        return data[:at] + rng.randbytes(rng.randrange(1, 40)) + data[at:]
    if kind == 4:
        return data + good(rng)
    if kind == 5:
        return data[:at] + data[at : at + 20] * rng.randrange(1, 50) + data[at:]
    return rng.randbytes(rng.randrange(1, 600))


class Asker:
    """Many connections at a time; each ends when the router hangs up, or by us when it has been quiet for a while."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._selector = selectors.DefaultSelector()
        self._open: dict[socket.socket, list] = {}  # socket -> [request, answer, hang up at]
        self.seen: dict[int, int] = {}

    def send(self, request: bytes) -> None:
        while len(self._open) >= AT_A_TIME:
            self._turn()
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(5)
        while True:
            try:
                connection.connect(self._path)
                break
            except BlockingIOError:  # a slow router (under sanitizers) has not accepted those that we gave up
                self._turn()
        self._open[connection] = [request, b"", time.monotonic() + QUIET_SECONDS]
        self._selector.register(connection, selectors.EVENT_READ)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(request)

    def __enter__(self) -> "Asker":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Wait for every answer; after a failure only hang up."""
        while self._open and kind is None:
            self._turn()
        for connection in self._open:
            connection.close()
        self._selector.close()

    def _turn(self) -> None:
        for key, _ in self._selector.select(QUIET_SECONDS):
            assert isinstance(key.fileobj, socket.socket)
            self._read(key.fileobj)
        now = time.monotonic()
        for connection in [connection for connection, entry in self._open.items() if entry[2] < now]:
            self._end(connection)

    def _read(self, connection: socket.socket) -> None:
        try:
            piece = connection.recv(1 << 20)
        except ConnectionResetError:
            piece = b""
        entry = self._open[connection]
        entry[1] += piece
        entry[2] = time.monotonic() + QUIET_SECONDS
        if not piece:
            self._end(connection)

    def _end(self, connection: socket.socket) -> None:
        request, answer, _ = self._open.pop(connection)
        self._selector.unregister(connection)
        connection.close()
        check(request, answer)
        status = int(answer.split(None, 2)[1]) if answer else 0
        self.seen[status] = self.seen.get(status, 0) + 1


class Process:
    """The router under test."""

    def __init__(self, run_dir: Path) -> None:
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        self.log = (run_dir / "log").open("w+b")
        self.popen = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(run_dir)], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self.log,
        )  # fmt: skip
        assert self.popen.stdout is not None
        assert self.popen.stdout.readline() == b"up\n"
        self.path = str(run_dir / "api.sock")

    def rss(self) -> int:
        return int(Path(f"/proc/{self.popen.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.popen.pid}/fd"))

    def close(self) -> bytes:
        """What it said on stderr."""
        self.popen.communicate(timeout=10)
        self.log.seek(0)
        said = self.log.read()
        self.log.close()
        return said


@pytest.fixture
def process(tmp_path) -> Iterator[Process]:
    process = Process(tmp_path)
    yield process
    if process.popen.poll() is None:
        process.close()


STATUSES = {200, 400, 404, 405, 408, 409, 411, 413, 414, 417, 431, 501, 505}


def check(request: bytes, answer: bytes) -> None:
    """Silence, or HTTP with a status that blames the asker: 500 would be a mistake of ours."""
    if not answer:
        return
    assert answer.startswith(b"HTTP/"), (request, answer[:200])
    status = int(answer.split(None, 2)[1])
    assert status in STATUSES or status == 100, (request, answer[:400])


def test_fuzz_raw_requests(process, tmp_path) -> None:
    rng = seeded(ENTRY)
    descriptors = process.descriptors()
    with Asker(process.path) as asker:
        for _ in range(WARM_UP):
            asker.send(mutated(rng, good(rng)))
    rss = process.rss()
    with Asker(process.path) as asker:
        for _ in range(INPUTS):
            asker.send(mutated(rng, good(rng)))
    report = ApiClient(str(tmp_path)).get("/status", schema.StatusReport)
    assert report.drops["bad_tag"] == 10
    assert SANITIZED or process.rss() - rss <= RSS_SLACK, f"RSS {rss} -> {process.rss()}"
    assert process.descriptors() <= descriptors + 1, "descriptors were left open"
    assert {200, 400, 404, 405, 409} <= set(asker.seen), f"the fuzzer does not reach these: {asker.seen}"
    said = process.close()
    assert b"Traceback" not in said, said[-4000:]
    assert process.popen.returncode == 0


@pytest.mark.parametrize("path", ["/status", "/report", "/metrics", "/capture?count=3", "/capture"])
def test_an_asker_that_hangs_up_without_reading_costs_nothing(process, tmp_path, path) -> None:
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    before = process.descriptors()
    for _ in range(100):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(process.path)
            connection.sendall(request)
    for _ in range(20):  # each answer is a turn of the loop: the hang-ups before it were seen
        ApiClient(str(tmp_path)).get("/status/drops", dict[str, int])
    assert process.descriptors() <= before + 1
    said = process.close()
    assert b"Traceback" not in said, said[-4000:]
