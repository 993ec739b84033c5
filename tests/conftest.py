"""What holds at the end of every room: the fast path has given back each buffer that it ever took.

Not after each test: pytest itself keeps a test's arguments, and so an engine that a file shares, until the next one.
"""

import gc
import signal
import sys

import pytest


def pytest_configure() -> None:
    """A shell starts what it runs in the background with SIGINT ignored, and children inherit that: tests send it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """What was collected lives to the end: looking for cycles in it again and again is a twentieth of a room."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    pool = sys.modules.get("weave_router.fastpath.pool")
    if pool is None:
        return
    gc.collect()
    if pool.live():
        print(f"\nthe fast path kept {pool.live()} buffers: something that owns them was not given up")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
