"""A share of the loop's time: work of one kind may take a fraction of it, with a small allowance at once.

Pure: the driver measures, this says whether there is still something left, or when. Called by driver.py.
"""

from typing import Final

ALLOWANCE_SECONDS: Final = 0.05


class LoopShare:
    def __init__(self, share: float, now: float) -> None:
        self._share = share
        self._left = ALLOWANCE_SECONDS
        self._at = now

    def _refill(self, now: float) -> None:
        self._left = min(ALLOWANCE_SECONDS, self._left + max(0.0, now - self._at) * self._share)
        self._at = now

    def ready_at(self, now: float) -> float:
        """``now`` while something is left."""
        self._refill(now)
        return now if self._left > 0 else now - self._left / self._share + 1e-6

    def spent(self, seconds: float, now: float) -> None:
        """May go below zero: the rest is paid by waiting."""
        self._refill(now)
        self._left -= seconds
