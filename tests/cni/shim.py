"""The CNI executable as a runtime starts it, builds of it for tests, and a router that answers as it is told.

The release build is the installed one; sanitizer, crash and fuzz builds are compiled from cni_shim/ here. Called by the
tests of this room.
"""

import array
import json
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import weave_router

ROOT: Final = Path(__file__).resolve().parents[2]
SOURCE: Final = ROOT / "cni_shim" / "weave_router_cni.c"
WARNINGS: Final = ("-std=gnu11", "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Werror")
SANITIZERS: Final = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
VERSIONS: Final = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
BOOT: Final = "0000000b-0000-4000-8000-00000000b001"
"""What the executable takes for the kernel's boot id."""


def installed() -> Path:
    path = Path(weave_router.__file__).parent / "_bin" / "weave-router-cni"
    assert path.exists(), f"{path} is missing: run `make setup`"
    return path


def build(output: Path, *flags: str, source: Path = SOURCE) -> Path:
    subprocess.run(["cc", *WARNINGS, *flags, "-o", str(output), str(source)], check=True)
    return output


@dataclass
class Done:
    status: int
    stdout: str
    stderr: str

    @property
    def value(self) -> Any:
        return json.loads(self.stdout)

    @property
    def code(self) -> int:
        """Of a refusal that is one as the specification wants it."""
        value = self.value
        assert self.status == 1 and value.keys() == {"cniVersion", "code", "msg"} and value["msg"], self
        assert value["cniVersion"] in VERSIONS and self.stdout.endswith("}\n") and not self.stderr, self
        return int(value["code"])


@dataclass
class Shim:
    """One executable and the paths that its configuration names."""

    executable: Path
    socket: Path
    journal: Path
    env: dict[str, str] = field(default_factory=dict)
    boot_id: str = BOOT

    def config(self, version: str = "1.0.0", **more: Any) -> dict[str, Any]:
        return {"cniVersion": version, "name": "weave", "type": "weave-router-cni", "socket": str(self.socket),
                "journal": str(self.journal), **more}

    def environment(self, verb: str, **variables: str) -> dict[str, str]:
        known = {"CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": "", "CNI_ARGS": ""}
        given = {"CNI_COMMAND": verb, **known, "WEAVE_ROUTER_DEBUG_BOOT_ID": self.boot_id, **self.env, **variables}
        return {name: value for name, value in given.items() if value != "unset"}

    def run(self, verb: str, config: Any = None, *, prefix: Iterable[str] = (), **variables: str) -> Done:
        data = config if isinstance(config, bytes) else json.dumps(self.config() if config is None else config).encode()
        done = subprocess.run([*prefix, str(self.executable)], input=data, env=self.environment(verb, **variables),
                              capture_output=True, timeout=60, check=False)
        return Done(done.returncode, done.stdout.decode(), done.stderr.decode())

    def entries(self) -> list[Path]:
        return sorted(self.journal.glob("*.json")) if self.journal.exists() else []


class FakeRouter:
    """Takes one connection after the other; ``answers`` get the request and give bytes (an empty one hangs up)."""

    def __init__(self, path: Path, *answers: Callable[[dict[str, Any], list[int]], bytes] | bytes) -> None:
        self.requests: list[dict[str, Any]] = []
        self.inodes: list[list[int]] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(8)
        self._answers = answers
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> "FakeRouter":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        for answer in self._answers:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client:
                client.settimeout(10)
                data, fds = _receive(client)
                self.requests.append(json.loads(data))
                self.inodes.append([os.fstat(fd).st_ino for fd in fds])
                reply = answer if isinstance(answer, bytes) else answer(self.requests[-1], fds)
                for fd in fds:
                    os.close(fd)
                client.sendall(reply)


def _receive(client: socket.socket) -> tuple[bytes, list[int]]:
    data, ancillary, _, _ = client.recvmsg(1 << 16, socket.CMSG_SPACE(64))
    fds = [fd for _, _, content in ancillary for fd in array.array("i", content)]
    while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "big"):
        piece = client.recv(1 << 16)
        assert piece
        data += piece
    return data[4:], fds


def framed(value: Any) -> bytes:
    body = value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode()
    return len(body).to_bytes(4, "big") + body


def alive(path: Path, boot_id: str, seconds: float) -> None:
    path.write_text(f"{boot_id} {int(seconds)}\n")
