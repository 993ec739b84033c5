"""Is the other side there, and does it know that we are? Decided from figures of the fast path alone.

``silence``: seconds of sending data with nothing authenticated back. ``keepalive_due``: data came and nothing of ours
went out since, so the peer would take us for dead. Keepalives and other control messages are never answered by a
keepalive. Must not know packets or paths. Called by connection.py at every poll.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from weave_router.tunnel.timers import Timers


class Figures(NamedTuple):
    """What ``Engine.session_figures`` returns, in its order; times in ns of CLOCK_BOOTTIME, 0 = never.

    Packets and bytes (of UDP payload) count data and control messages; the two "unanswered" times look at data only.
    """

    tx_packets: int = 0
    tx_bytes: int = 0
    rx_packets: int = 0
    rx_bytes: int = 0
    last_tx_ns: int = 0
    last_rx_ns: int = 0
    first_unanswered_ns: int = 0
    rx_failed: int = 0
    unanswered_rx_ns: int = 0


@dataclass(frozen=True, slots=True)
class Delta:
    """What happened on all sessions of one peer between two polls."""

    tx_bytes: int
    rx_bytes: int
    tx_packets: int
    rx_packets: int


def difference(pairs: Iterable[tuple[Figures, Figures]]) -> Delta:
    """Sum of (before, after)."""
    tx_bytes = rx_bytes = tx_packets = rx_packets = 0
    for before, after in pairs:
        tx_bytes += after.tx_bytes - before.tx_bytes
        rx_bytes += after.rx_bytes - before.rx_bytes
        tx_packets += after.tx_packets - before.tx_packets
        rx_packets += after.rx_packets - before.rx_packets
    return Delta(tx_bytes, rx_bytes, tx_packets, rx_packets)


NO_FIGURES = Figures()


class Liveness:
    def __init__(self, timers: Timers) -> None:
        self._timers = timers
        self.silence = 0.0
        self.data_sent_at = float("-inf")
        self.data_received_at = float("-inf")
        self.last_tx_at = float("-inf")
        self._owed_since: float | None = None

    @property
    def data_at(self) -> float:
        return max(self.data_sent_at, self.data_received_at)

    @property
    def keepalive_owed(self) -> bool:
        return self._owed_since is not None

    def observe(self, sending: Figures, all_sessions: Iterable[Figures], data_sent: int, now: float) -> None:
        """``sending``: figures of the session in use; ``all_sessions``: of all that the peer may send on.

        Crossing initiations may leave the two sides on different sessions: what comes on any of them is life.
        """
        figures = list(all_sessions)
        last_rx = max(f.last_rx_ns for f in figures)
        last_tx = max(f.last_tx_ns for f in figures)
        unanswered_rx = max(f.unanswered_rx_ns for f in figures)
        self.last_tx_at = max(self.last_tx_at, last_tx / 1e9)
        if data_sent:
            self.data_sent_at = now
        if unanswered_rx:
            self.data_received_at = max(self.data_received_at, unanswered_rx / 1e9)
        start = max(sending.first_unanswered_ns, last_rx)
        self.silence = max(0.0, now - start / 1e9) if sending.first_unanswered_ns else 0.0
        owed = unanswered_rx and last_rx > last_tx
        self._owed_since = max(unanswered_rx, last_tx) / 1e9 if owed else None

    def keepalive_due(self, now: float) -> bool:
        return self._owed_since is not None and now >= self._owed_since + self._timers.keepalive

    def keepalive_sent(self, now: float) -> None:
        self._owed_since = None
        self.last_tx_at = now
