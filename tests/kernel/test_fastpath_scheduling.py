"""A worker is a real-time thread while it would have to wait for a CPU, and no longer than its share of one allows.

Topology: fastpath_world.py. The worker is bound to a CPU where another process comes first, so that it has to wait.
"""

import ctypes
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import pytest
from kernel.fastpath_pair import wait_for
from kernel.fastpath_world import B, World, plain, start_again

from weave_router.fastpath.probe import Lock

CPU = min(os.sched_getaffinity(0))
HOG = """
import os, time
while os.read(0, 1):
    end = time.thread_time() + 0.001
    while time.thread_time() < end:
        pass
    os.write(1, b".")
"""
"""1 ms of CPU time for each byte."""
Turn = Callable[[], AbstractContextManager[object]]
STAY = 1.0
"""Seconds until the ordinary class is tried again (REALTIME_NS)."""


def worker_thread() -> int:
    return next(thread.native_id for thread in threading.enumerate() if thread.name == "worker-0") or 0


@contextmanager
def busy_cpu() -> Iterator[Turn]:
    """Another process is ahead of every worker there for the first millisecond of each turn, which it ends."""
    hog = subprocess.Popen([sys.executable, "-c", HOG], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    assert hog.stdin and hog.stdout
    os.sched_setaffinity(hog.pid, {CPU})
    os.sched_setscheduler(hog.pid, os.SCHED_RR, os.sched_param(2))
    to_hog, from_hog = hog.stdin, hog.stdout

    @contextmanager
    def turn() -> Iterator[None]:
        to_hog.write(b".")
        yield
        assert from_hog.read(1)

    with hog:
        try:
            yield turn
        finally:
            hog.kill()


@contextmanager
def not_allowed() -> Iterator[None]:
    """This thread and those that it starts have no CAP_SYS_NICE."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
    words = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice 32 capabilities
    assert libc.capget(header, words) == 0
    words[0] ^= 1 << 23
    assert libc.capset(header, words) == 0
    try:
        yield
    finally:
        words[0] ^= 1 << 23
        assert libc.capset(header, words) == 0


def figures_open() -> int:
    """Workers that look how long they wait for a CPU."""
    entries = (entry for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink())
    return sum(os.readlink(entry).endswith("/schedstat") for entry in entries)


@pytest.fixture
def started(world: World) -> Callable[[float], int]:
    """Start the worker anew with this share, on CPU; its thread's number."""

    def start(share: float) -> int:
        world.engine.stop()
        start_again(world, realtime=share)
        thread = worker_thread()
        os.sched_setaffinity(thread, {CPU})
        return thread

    return start


def traffic(
    world: World, until: Callable[[], bool], turn: Turn = nullcontext, *, frames: int = 1, seconds: float = 10
) -> bool:
    """So many frames until this is so, and more when all have come and a millisecond nothing; False: it never was."""
    blast = [plain(B, 60)] * frames
    end = time.monotonic() + seconds
    while not until():
        if time.monotonic() > end:
            return False
        with turn():
            world.put(*blast)
        while world.peers[2].receive(0.001) is not None:
            pass
    return True


def test_who_has_to_wait_becomes_real_time_and_ordinary_again(world: World, started: Callable[[float], int]) -> None:
    thread = started(0.9)
    with busy_cpu() as turn:
        assert traffic(world, lambda: world.engine.worker_states()[0].realtime, turn)
        assert os.sched_getscheduler(thread) == os.SCHED_RR
    began = time.monotonic()
    assert traffic(world, lambda: os.sched_getscheduler(thread) == os.SCHED_OTHER)
    assert time.monotonic() - began < 2 * STAY
    assert not world.engine.worker_states()[0].realtime


def test_real_time_ends_with_the_share(world: World, started: Callable[[float], int]) -> None:
    """A frame a millisecond takes less than a twentieth of a CPU, hundreds of them take more."""
    thread = started(0.05)

    def realtime() -> bool:
        return world.engine.worker_states()[0].realtime

    with busy_cpu() as turn:
        assert traffic(world, realtime, turn)
        assert traffic(world, lambda: world.engine.counters()["realtime_spent"] > 0, turn, frames=300)
        assert os.sched_getscheduler(thread) == os.SCHED_OTHER
        assert not traffic(world, realtime, turn, frames=300, seconds=0.5)


def test_without_a_share_it_stays_ordinary(world: World, started: Callable[[float], int]) -> None:
    thread = started(0)
    with busy_cpu() as turn:
        assert not traffic(world, lambda: os.sched_getscheduler(thread) != os.SCHED_OTHER, turn, seconds=0.5)


def test_where_the_class_is_refused_nothing_is_looked_at(world: World, started: Callable[[float], int]) -> None:
    """From the start on: a router's descriptors do not depend on how busy its node has been."""
    started(0.9)
    wait_for(lambda: figures_open() == 1)
    with not_allowed():
        thread = started(0.9)
    before = world.engine.counters()["frames_in"]
    assert traffic(world, lambda: world.engine.counters()["frames_in"] > before)
    assert figures_open() == 0 and os.sched_getscheduler(thread) == os.SCHED_OTHER


def test_a_lock_s_holder_runs_while_a_real_time_thread_waits_for_it() -> None:
    """On one CPU: whoever waits lets the holder finish, instead of keeping it from the CPU."""
    lock = Lock()
    hold = 50_000_000
    took: list[float] = []

    def holder() -> None:
        os.sched_setaffinity(0, {CPU})
        lock.hold(hold)

    def waiter() -> None:
        os.sched_setaffinity(0, {CPU})
        wait_for(lock.held)
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
        began = time.monotonic()
        lock.hold(0)
        took.append(time.monotonic() - began)

    threads = [threading.Thread(target=holder), threading.Thread(target=waiter)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert took[0] < 10 * hold / 1e9, "without sleeps 1.9 s"
