"""One router follows another: the lock's holder and those who wait for it, as threads that stand for processes."""

import asyncio
import socket
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from weave_router import limits
from weave_router.host import handover, lock_driver
from weave_router.host.faults import Fault, HostError
from weave_router.host.lock_driver import TapLock
from weave_router.host.succession_driver import STANDBY_SOCKET, Heirs, Turn, await_turn

WAIT = 20.0


@pytest.fixture
def tap(tmp_path: Path) -> str:
    """Abstract names belong to the network namespace, which other tests use, too."""
    return f"t-{abs(hash(tmp_path)):x}"


def probe(run_dir: Path) -> bytes:
    """The answer of the one that waits; empty when nobody does."""
    with socket.socket(socket.AF_UNIX) as link:
        try:
            link.connect(str(run_dir / STANDBY_SOCKET))
        except OSError:
            return b""
        link.sendall(handover.frame({"probe": "ready"}))
        return link.recv(16)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT):
        while not await asyncio.to_thread(condition):
            pass


async def test_an_heir_gets_the_estate_and_then_the_lock(tmp_path: Path, tap: str) -> None:
    lock = lock_driver.take(tmp_path, tap)
    heirs = Heirs(lock)
    estate = bytes(3 << 20)
    with ThreadPoolExecutor(2) as threads:
        waiting: Future[Turn] = threads.submit(await_turn, tmp_path, tap, wait=WAIT)
        await until(lambda: heirs.waiting and probe(tmp_path) == handover.frame({}))  # it connects, then it answers
        left = asyncio.create_task(heirs.bequeath(estate))
        turn = await asyncio.wrap_future(waiting)
        assert turn.estate == estate and not left.done()  # it forwards until the heir says so
        taking = threads.submit(turn.take)
        assert await left and not taking.done()
        lock.release()
        heirs.close()
        assert isinstance(await asyncio.wrap_future(taking), TapLock)
    assert probe(tmp_path) == b""
    turn.release()
    lock_driver.take(tmp_path, tap).release()


async def test_without_an_heir(tmp_path: Path, tap: str) -> None:
    """Who only asks for the holder's name is none; nor is one that went."""
    lock = lock_driver.take(tmp_path, tap)
    heirs = Heirs(lock)
    with pytest.raises(HostError) as caught:
        await_turn(tmp_path, tap)
    assert caught.value.fault is Fault.TAP_HELD
    gone = lock_driver.connect(tap)
    assert gone is not None and heirs.waiting
    gone.close()
    assert not heirs.waiting and not await heirs.bequeath(b"")
    lock.release()


async def test_an_heir_without_an_estate_starts_as_after_a_crash(tmp_path: Path, tap: str) -> None:
    lock = lock_driver.take(tmp_path, tap)
    heirs = Heirs(lock)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(await_turn, tmp_path, tap, wait=WAIT)
        await until(lambda: heirs.waiting)
        lock.release()
        heirs.close()
        turn = await asyncio.wrap_future(waiting)
    assert turn.estate == b""
    turn.take()
    turn.release()


async def test_an_estate_past_its_bound_is_not_read(
    tmp_path: Path, tap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound holds all records that there can be; here it is small."""
    assert limits.ESTATE_BYTES_MAX > limits.RECORDS_MAX * (limits.RECORD_BYTES_MAX + 18)
    monkeypatch.setattr("weave_router.host.succession_driver.ESTATE_BYTES_MAX", 10)
    lock = lock_driver.take(tmp_path, tap)
    heirs = Heirs(lock)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(await_turn, tmp_path, tap, wait=WAIT)
        await until(lambda: heirs.waiting)
        assert not await heirs.bequeath(bytes(11))
        lock.release()
        turn = await asyncio.wrap_future(waiting)
        heirs.close()
    assert turn.estate == b""
    turn.release()


async def test_an_heir_that_is_stuck_is_not_waited_for(
    tmp_path: Path, tap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weave_router.host.succession_driver.SUCCESSION_SECONDS", 0.1)
    assert limits.SUCCESSION_SECONDS < 15  # a pod's end
    lock = lock_driver.take(tmp_path, tap)
    heirs = Heirs(lock)
    stuck = lock_driver.connect(tap)
    assert stuck is not None
    with stuck:
        assert not await heirs.bequeath(b"estate")
    lock.release()


def test_more_than_the_backlog_are_told_to_try_again(tmp_path: Path, tap: str) -> None:
    lock = lock_driver.take(tmp_path, tap)
    waiting = [lock_driver.connect(tap) for _ in range(limits.LOCK_WAITERS + 1)]
    assert None not in waiting
    assert lock_driver.connect(tap) is None
    heirs = Heirs(lock)
    assert heirs.waiting  # which takes them in
    again = lock_driver.connect(tap)
    assert again is not None
    for link in (*waiting, again):
        assert link is not None
        link.close()
    lock.release()
    heirs.close()
