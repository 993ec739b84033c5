"""Attempts to reach one peer: when the next message 1 goes, which answers are still taken, when it is given up.

Every attempt has its own index and ephemeral key, so that a late answer to an early attempt is as good as any. Must not
know sessions, paths or states. Called by connection.py.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from weave_router.limits import ATTEMPTS_OPEN_MAX
from weave_router.tunnel import handshake
from weave_router.tunnel.handshake import Attempt
from weave_router.tunnel.shared import PeerInfo, Shared
from weave_router.tunnel.wire import Endpoint, SuiteCode

if TYPE_CHECKING:
    from weave_router.tunnel.connection import Connection


class Initiator:
    def __init__(self, shared: Shared, owner: "Connection") -> None:
        self._shared = shared
        self._timers = shared.timers
        self._owner = owner
        self._attempts: list[Attempt] = []
        self._started_at = 0.0
        self._next_at: float | None = None
        self.running = False
        """An answer would still be taken."""
        self.tries = 0

    @property
    def retrying(self) -> bool:
        return self._next_at is not None

    def start(self, now: float) -> None:
        self.running = True
        self.tries = 0
        self._started_at = self._next_at = now

    def due(self, now: float) -> bool:
        return self._next_at is not None and now >= self._next_at

    def given_up(self, now: float) -> bool:
        return now - self._started_at >= self._timers.give_up

    def attempt(self, info: PeerInfo, targets: tuple[Endpoint, ...], now: float) -> bytes | None:
        """One more message 1; None where no index is free (then the next pause is waited for)."""
        self._next_at = now + self._pause()
        self.tries += 1
        index = self._shared.indices.take(now)
        if index is None:
            self._shared.counts["no free index"] += 1
            return None
        shared = self._shared
        suite = SuiteCode.AESGCM_SHA256 if shared.aes and info.aes else SuiteCode.CHACHAPOLY_BLAKE2S
        # Each third one is sealed in any case: a peer may see an address of ours that it does not trust.
        plaintext = info.plaintext and shared.agrees(*targets) and self.tries % 3 != 0
        attempt, datagram = handshake.write_request(
            token=shared.tokens.first, suite=suite, index=index, plaintext=plaintext,
            static=shared.identity.x25519_secret, remote_static=info.x25519_public, ephemeral=shared.rng(32),
            freshness=shared.freshness(), now=now, endpoints=targets)
        shared.attempts[index] = self._owner
        self._attempts.append(attempt)
        if len(self._attempts) > ATTEMPTS_OPEN_MAX:
            self._forget(self._attempts.pop(0), now)
        return datagram

    def _pause(self) -> float:
        if self.tries < len(self._timers.retry):
            return self._timers.retry[self.tries]
        return self._timers.retry_tail + self._timers.retry_jitter * self._shared.chance()

    def find(self, index: int) -> Attempt | None:
        return next((attempt for attempt in self._attempts if attempt.index == index), None)

    def succeed(self, attempt: Attempt, now: float) -> None:
        """This one was answered: its index is a session's now, the others are forgotten."""
        self._attempts.remove(attempt)
        del self._shared.attempts[attempt.index]
        self.cancel(now)

    def stop_retrying(self) -> None:
        """Another session came first; answers to what was sent are still taken (crossing initiations)."""
        self._next_at = None

    def cancel(self, now: float) -> None:
        for attempt in self._attempts:
            self._forget(attempt, now)
        self._attempts.clear()
        self._next_at = None
        self.running = False

    def age(self, now: float) -> None:
        """Forget attempts that are not answered any more."""
        while self._attempts and now >= self._attempts[0].sent_at + self._timers.answer_wait:
            self._forget(self._attempts.pop(0), now)
        self.running = self.retrying or bool(self._attempts)

    def _forget(self, attempt: Attempt, now: float) -> None:
        del self._shared.attempts[attempt.index]
        self._shared.indices.free(attempt.index, now)

    def deadlines(self) -> Iterator[float]:
        if self._next_at is not None:
            yield self._next_at
        if self._attempts:
            yield self._attempts[0].sent_at + self._timers.answer_wait
