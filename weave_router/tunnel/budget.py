"""Keeps handshakes to their share of the loop's time: a bucket of seconds that fills at ``share``.

Must not know the clock. Called by driver.py, and by whoever serves TCP openings.
"""

from typing import Final

BURST: Final = 0.02
"""Seconds of work that may be done at once: about ten handshakes, less than a frame of video."""


class Budget:
    def __init__(self, share: float, now: float, burst: float = BURST) -> None:
        self._share = share
        self._burst = burst
        self._credit = burst
        self._at = now

    def wait(self, now: float) -> float:
        """Seconds until work may be done; 0: now."""
        self._credit = min(self._burst, self._credit + (now - self._at) * self._share)
        self._at = now
        return 0.0 if self._credit > 0 else (1e-4 - self._credit) / self._share

    def spend(self, seconds: float) -> None:
        self._credit -= seconds
