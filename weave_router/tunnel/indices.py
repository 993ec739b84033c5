"""Receiver indices: low 20 bits slot, high 12 bits generation. A freed slot rests, then has a new generation.

Must not know what an index is used for. Called by the tunnel alone.
"""

from collections import deque
from typing import Final

from weave_router.limits import INDEX_SLOTS

_SLOT_BITS: Final = 20
_GENERATIONS: Final = 1 << 12


class IndexPool:
    """``rest``: seconds that a freed slot rests. ``slots``: smaller in tests."""

    def __init__(self, rest: float, slots: int = INDEX_SLOTS) -> None:
        self._rest = rest
        self._slots = slots
        self._fresh = 1  # slot 0 would make index 0, which means none
        self._generations: dict[int, int] = {}
        self._resting: deque[tuple[float, int]] = deque()
        self._used: set[int] = set()

    def take(self, now: float) -> int | None:
        """An index, or None when all are in use or resting. Rested slots first: tables stay small."""
        if self._resting and self._resting[0][0] <= now:
            slot = self._resting.popleft()[1]
        elif self._fresh < self._slots:
            slot, self._fresh = self._fresh, self._fresh + 1
        else:
            return None
        index = self._generations.get(slot, 0) << _SLOT_BITS | slot
        self._used.add(index)
        return index

    def free(self, index: int, now: float) -> None:
        self._used.remove(index)
        slot = index & ((1 << _SLOT_BITS) - 1)
        self._generations[slot] = ((index >> _SLOT_BITS) + 1) % _GENERATIONS
        self._resting.append((now + self._rest, slot))

    def __len__(self) -> int:
        return len(self._used)
