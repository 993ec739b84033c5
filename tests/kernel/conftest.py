"""Network namespaces for the tests of host/ (each made by a test, entered by a thread, gone at its end), and the
fast path with its peers that the tests of fastpath/ begin with."""

import ctypes
import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from kernel.fastpath_world import World, build
from kernel.host_world import Node


class Netns:
    """A namespace and one thread that lives in it."""

    def __init__(self) -> None:
        self.name = f"t-host-{uuid.uuid4().hex[:8]}"
        self.path = f"/run/netns/{self.name}"
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        self._thread = ThreadPoolExecutor(1, initializer=self._enter)

    def _enter(self) -> None:
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        assert ctypes.CDLL(None, use_errno=True).setns(fd, 0) == 0
        os.close(fd)

    def call(self, function: Callable[..., Any], *args: Any, **words: Any) -> Any:
        """Run it in the namespace's thread."""
        return self._thread.submit(function, *args, **words).result(timeout=30)

    def run(self, *command: str, check: bool = True, text_input: str | None = None) -> str:
        done = subprocess.run(["ip", "netns", "exec", self.name, *command], capture_output=True, text=True, timeout=30,
                              input=text_input)  # fmt: skip
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def close(self) -> None:
        self._thread.shutdown()
        subprocess.run(["ip", "netns", "del", self.name], check=True)


@pytest.fixture
def make_netns() -> Iterator[Callable[[], Netns]]:
    made: list[Netns] = []

    def make() -> Netns:
        made.append(Netns())
        return made[-1]

    yield make
    for netns in reversed(made):
        netns.close()


@pytest.fixture
def host(make_netns: Callable[[], Netns]) -> Netns:
    """A host without anything on it."""
    return make_netns()


@pytest.fixture
def world() -> Iterator[World]:
    with ExitStack() as stack:
        yield build(stack)


@pytest.fixture
def without_sessions() -> Iterator[World]:
    with ExitStack() as stack:
        yield build(stack, sessions=False)


@pytest.fixture
def node(host: Netns) -> Iterator[Node]:
    node = Node(host)
    host.call(node.start)
    yield node
    host.call(node.stop)
