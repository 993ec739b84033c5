"""Path MTU discovery by padded, acknowledged probes (RFC 8899). All sizes are UDP payload in bytes.

    VERIFY   the size in use is probed; three losses: a black hole, fall to the base at once
    HELD     the size in use was acknowledged; probed again when data flows and the acknowledgement is older than 1 s
    BASE     after a fall: is the base good? three losses: the floor
    SEARCH   sizes between what is known to pass and what failed, until they meet

A path starts optimistic, at the underlay interface's MTU. Must not know sessions or sockets. Called by connection.py.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from weave_router.limits import DATAGRAM_BASE, DATAGRAM_FLOOR
from weave_router.tunnel.timers import Timers

LOSSES: Final = 3
"""Probes lost in a row that count as "this size does not pass" (RFC 8899 MAX_PROBES)."""

RESOLUTION: Final = 8
"""A search ends when it cannot win more."""

LIKELY: Final = (8972, 8952, 1472, 1452)
"""UDP payload of Ethernet with and without jumbo frames under IPv4 and IPv6: tried before halving a wide range."""

WIDE: Final = 512

DATA_BYTES: Final = DATAGRAM_BASE - 100
"""Bytes of data below which hardly a datagram above the base can have been sent."""


class Phase(StrEnum):
    VERIFY = "verify"
    HELD = "held"
    BASE = "base"
    SEARCH = "search"


@dataclass(frozen=True, slots=True)
class SizeProbe:
    id: int
    size: int


class PathMtu:
    """Discovery on one path. ``ceiling``: what the underlay interface takes."""

    def __init__(self, ceiling: int, timers: Timers, now: float, first_id: int = 0) -> None:
        self._timers = timers
        self.ceiling = max(ceiling, DATAGRAM_FLOOR)
        self.base = min(DATAGRAM_BASE, self.ceiling)
        self.size = self.ceiling
        self.phase = Phase.VERIFY
        self.confirmed_at: float | None = None
        self._next_id = first_id
        self._low, self._high = DATAGRAM_FLOOR, self.ceiling + 1
        self._unconfirmed_bytes = 0
        self._raise_at: float | None = None
        self._aim(self.size, now)

    def _aim(self, target: int, now: float) -> None:
        self._target = target
        self._lost = 0
        self._sent: dict[int, float] = {}
        self._probe_at: float | None = now

    def get_timer(self) -> float | None:
        return self._raise_at if self._probe_at is None else self._probe_at

    def confirmed(self, now: float) -> bool:
        return self.confirmed_at is not None and now < self.confirmed_at + self._timers.mtu_confirmed

    def data_sent(self, size: int, now: float) -> None:
        """Bytes of data sent since the last call. Starts a probe when data above the base may be unconfirmed."""
        if self.phase is not Phase.HELD or self.size <= self.base or self.confirmed(now):
            return
        self._unconfirmed_bytes += size
        if self._unconfirmed_bytes >= DATA_BYTES:
            self.phase = Phase.VERIFY
            self._aim(self.size, now)

    def handle_timer(self, now: float, interval: float) -> SizeProbe | None:
        """The probe to send now. ``interval``: max(3 RTT, 200 ms), after which an unanswered one is lost."""
        if self._probe_at is None:
            if self._raise_at is not None and now >= self._raise_at:
                self._search(now, self.size, self.ceiling + 1)
            else:
                return None
        if self._probe_at is None or now < self._probe_at:
            return None
        if self._lost >= LOSSES:
            self._failed(now)
            if self._probe_at is None:
                return None
        self._lost += 1  # lost unless its acknowledgement comes
        probe = SizeProbe(self._next_id, self._target)
        self._next_id = (self._next_id + 1) & 0xFFFFFFFF
        self._sent[probe.id] = now
        self._probe_at = now + interval
        return probe

    def acknowledged(self, probe_id: int, size: int, now: float) -> float | None:
        """The round-trip time, or None where the acknowledgement is of no probe of ours."""
        sent_at = self._sent.pop(probe_id, None)
        if sent_at is None or size != self._target or self._probe_at is None:
            return None
        self.confirmed_at = now
        self._unconfirmed_bytes = 0
        if self.phase is Phase.SEARCH:
            self.size = self._target
            self._search(now, self._target, self._high)
        elif self.phase is Phase.BASE:
            self._search(now, self.base, self._high)
        else:
            self._hold(now)
        return now - sent_at

    def local_limit(self, now: float) -> None:
        """The kernel refused a datagram as too long (EMSGSIZE): no need to wait for losses."""
        if self.phase is Phase.HELD:
            if self.size <= self.base:
                return
            self.phase = Phase.VERIFY
            self._aim(self.size, now)
        self._failed(now)

    def restart(self, now: float) -> None:
        """The path was dead and lives: what was lost meanwhile says nothing about sizes."""
        self.size = self.base
        self._search(now, self.base, self.ceiling + 1)

    def _hold(self, now: float) -> None:
        self.phase = Phase.HELD
        self._probe_at = None
        if self.size >= self.ceiling:
            self._raise_at = None
        elif self._raise_at is None:  # confirming again and again must not put it off for ever
            self._raise_at = now + self._timers.mtu_raise

    def _failed(self, now: float) -> None:
        if self.phase is Phase.SEARCH:
            self._search(now, self._low, self._target)
        elif self.phase is Phase.BASE or self.size <= self.base:
            self.size = DATAGRAM_FLOOR
            self._search(now, DATAGRAM_FLOOR, self._target)
        else:
            self._high = self.size
            self.size = self.base
            self.phase = Phase.BASE
            self._aim(self.base, now)

    def _search(self, now: float, low: int, high: int) -> None:
        """Look between ``low``, which passes, and ``high``, which does not (or was never tried)."""
        self._low, self._high = low, high
        self._raise_at = None
        if (high - low <= RESOLUTION and high != self.ceiling + 1) or low >= self.ceiling:
            self._hold(now)
            return
        self.phase = Phase.SEARCH
        self._aim(self._next_target(), now)

    def _next_target(self) -> int:
        if self._high == self.ceiling + 1:
            return self.ceiling
        if self._high - self._low > WIDE:
            for size in LIKELY:
                if self._low < size < self._high:
                    return size
        return (self._low + self._high) // 2
