"""One timer for many owners: the earliest deadline in a heap; a changed one leaves its old entry behind to be skipped.

Must not know what the deadlines mean. Called by the tunnel alone.
"""

import heapq


class Agenda:
    def __init__(self) -> None:
        self._heap: list[tuple[float, int]] = []
        self._due: dict[int, float] = {}

    def set(self, key: int, at: float | None) -> None:
        """The key's only deadline from now on; None: none."""
        if at is None:
            self._due.pop(key, None)
        elif self._due.get(key) != at:
            self._due[key] = at
            heapq.heappush(self._heap, (at, key))

    def next_at(self) -> float | None:
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now: float) -> list[int]:
        """Keys whose deadline has come, earliest first; they have none until ``set`` again."""
        due = []
        while (at := self.next_at()) is not None and at <= now:
            key = heapq.heappop(self._heap)[1]
            del self._due[key]
            due.append(key)
        return due
