"""The store's one writing thread: what waits together is committed together, so that parallel requests share a sync.

Each piece of work is a savepoint of its own: one that fails is undone alone and its asker gets the error, the others
are committed. Nobody is answered before the commit; if that fails, all of them fail. Decides nothing about what is
written. Made by router.py.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, Final, TypeVar

from weave_router.store import BatchLostError, Store

T = TypeVar("T")
TOGETHER_MAX: Final = 256
"""Pieces of work in one commit: so many that no burst is split, so few that the first does not wait long."""

_Job = tuple[Callable[[], Any], "Future[Any]"]


class GroupWriter:
    """Submit work from any thread; it runs in the order it came."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="store")
        self._thread.start()
        self._ended = False

    def submit(self, work: Callable[[], T]) -> "Future[T]":
        """The future is done when what the work wrote is on disk."""
        future: Future[T] = Future()
        if self._ended:
            raise RuntimeError("the store's writer has ended")
        self._jobs.put((work, future))
        return future

    def shutdown(self) -> None:
        """Everything submitted before is carried out first. Idempotent."""
        if not self._ended:
            self._ended = True
            self._jobs.put(None)
            self._thread.join()

    def _run(self) -> None:
        while True:
            job = self._jobs.get()
            if job is None:
                return
            jobs = [job]
            while len(jobs) < TOGETHER_MAX and not self._jobs.empty():
                following = self._jobs.get()
                if following is None:
                    self._commit(jobs)
                    return
                jobs.append(following)
            self._commit(jobs)

    def _commit(self, jobs: list[_Job]) -> None:
        waiting = [job for job in jobs if job[1].set_running_or_notify_cancel()]
        if len(waiting) == 1:
            outcomes: list[tuple[Any, BaseException | None]] = [_outcome(waiting[0][0])]
        else:
            outcomes = []
            try:
                with self._store.batch():
                    outcomes = [_outcome(lambda work=work: self._store.apart(work)) for work, _ in waiting]  # type: ignore[misc]
            except Exception as error:  # the commit itself: nothing of it is on disk
                outcomes = [(None, error)] * len(waiting)
        for (_, future), (result, failure) in zip(waiting, outcomes, strict=True):
            if failure is not None:
                future.set_exception(failure)
            else:
                future.set_result(result)


def _outcome(work: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    try:
        return work(), None
    except BatchLostError:
        raise
    except Exception as error:
        return None, error
