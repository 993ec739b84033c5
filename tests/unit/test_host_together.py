"""host/driver.py's Together: what waits for a busy thread is carried out by one call, each asker gets its own end. And
Soon: what can wait goes when nobody is in its way, or when it has waited long enough."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from weave_router.host import driver
from weave_router.host.driver import Soon, Together


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as made:
        yield made


Work = Callable[[list[int]], list[int | Exception]]


async def ask(thread: ThreadPoolExecutor, work: Work, count: int) -> list[object]:
    """All while the thread is busy with something else."""
    busy = threading.Event()
    thread.submit(busy.wait)
    together: Together[int, int] = Together(thread, work)
    asked = [asyncio.ensure_future(together(number)) for number in range(count)]
    asyncio.get_running_loop().call_soon(busy.set)  # behind their first steps
    return await asyncio.gather(*asked, return_exceptions=True)


async def test_what_waits_goes_in_one_call_and_each_gets_its_own_answer(thread: ThreadPoolExecutor) -> None:
    calls: list[list[int]] = []
    wrong = ValueError("three")

    def work(numbers: list[int]) -> list[int | Exception]:
        calls.append(numbers)
        return [wrong if number == 3 else 10 * number for number in numbers]

    assert await ask(thread, work, 5) == [0, 10, 20, wrong, 40]
    assert calls == [[0, 1, 2, 3, 4]]
    together: Together[int, int] = Together(thread, work)
    assert [await together(number) for number in (6, 7)] == [60, 70] and calls[1:] == [[6], [7]]


async def test_a_call_that_breaks_off_fails_those_that_had_no_answer(thread: ThreadPoolExecutor) -> None:
    broken = RuntimeError("off")

    def work(numbers: list[int]) -> Iterator[int]:
        yield numbers[0]
        raise broken

    assert await ask(thread, work, 3) == [0, broken, broken]  # type: ignore[arg-type]


async def test_who_went_away_harms_nobody(thread: ThreadPoolExecutor) -> None:
    busy = threading.Event()
    thread.submit(busy.wait)
    together: Together[int, int] = Together(thread, lambda numbers: numbers)
    gone, stays = (asyncio.ensure_future(together(number)) for number in (1, 2))
    for step in (gone.cancel, busy.set):  # behind their first steps
        asyncio.get_running_loop().call_soon(step)
    assert await stays == 2 and gone.cancelled()


@pytest.mark.parametrize("ends", [True, False])
async def test_what_can_wait_goes_when_it_is_quiet_or_has_waited_long_enough(
    monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    monkeypatch.setattr(driver, "SOON_SECONDS", 0.001)
    monkeypatch.setattr(driver, "PUT_OFF_SECONDS", 10.0 if ends else 0.01)
    asked, done = 0, asyncio.Event()

    def busy() -> bool:
        nonlocal asked
        asked += 1
        return not (ends and asked > 4)

    async def work() -> None:
        done.set()

    soon = Soon(work, busy)
    soon.ask()
    soon.ask()
    assert not done.is_set()
    await asyncio.wait_for(done.wait(), 5)
    assert soon.task is None and asked >= 2 and (asked == 5 or not ends)


async def test_what_the_loop_has_at_hand_goes_in_one_call(
    thread: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread has nothing to do and would take the first at once."""
    together: Together[int, int] = Together(thread, lambda numbers: numbers)
    real, waiting = thread.submit, []

    def submit(*words: Any) -> Any:
        waiting.append(len(together._waiting))
        return real(*words)

    monkeypatch.setattr(thread, "submit", submit)
    assert await asyncio.gather(*(together(number) for number in range(5))) == list(range(5))
    assert waiting == [5]


async def test_a_thread_that_was_shut_down_answers_nobody_and_keeps_nobody(thread: ThreadPoolExecutor) -> None:
    thread.shutdown()
    together: Together[int, int] = Together(thread, lambda numbers: numbers)
    for error in await asyncio.gather(together(1), together(2), return_exceptions=True):
        assert isinstance(error, RuntimeError)
