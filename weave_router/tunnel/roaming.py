"""Challenges to addresses that a peer's data came from: 8 random bytes that must come back from there, authenticated.

At most one move in 2 s, so that two addresses that both work (or a replayer) cannot make a path flap. Must not know
paths or sessions. Called by connection.py.
"""

from collections.abc import Callable
from dataclasses import dataclass

from weave_router.limits import CHALLENGES_OPEN_MAX
from weave_router.tunnel.control import NONCE_SIZE
from weave_router.tunnel.timers import Timers
from weave_router.tunnel.wire import Endpoint


@dataclass(slots=True)
class _Open:
    nonce: bytes
    remote: Endpoint
    local: str
    begun_at: float
    sent_at: float


class Roaming:
    def __init__(self, timers: Timers, rng: Callable[[int], bytes]) -> None:
        self._timers = timers
        self._rng = rng
        self._moved_at = float("-inf")
        self._open: list[_Open] = []

    def challenge(self, remote: Endpoint, local: str, now: float) -> bytes | None:
        """The nonce to send there now; None: not now."""
        if now < self._moved_at + self._timers.roam:
            return None
        self._open = [c for c in self._open if now < c.begun_at + self._timers.challenge]
        known = next((c for c in self._open if (c.remote, c.local) == (remote, local)), None)
        if known is None:
            if len(self._open) >= CHALLENGES_OPEN_MAX:
                return None
            known = _Open(self._rng(NONCE_SIZE), remote, local, now, float("-inf"))
            self._open.append(known)
        if now < known.sent_at + self._timers.challenge_repeat:
            return None
        known.sent_at = now
        return known.nonce

    def answered(self, nonce: bytes, remote: Endpoint, now: float) -> str | None:
        """The local address of the challenge that this answers from the right place; None: of none."""
        for challenge in self._open:
            if challenge.nonce == nonce and challenge.remote == remote \
                    and now < challenge.begun_at + self._timers.challenge:
                return challenge.local
        return None

    def moved(self, now: float) -> None:
        self._moved_at = now
        self._open.clear()

    def forget(self) -> None:
        """The path was set by other means: what was asked before means nothing."""
        self._open.clear()
