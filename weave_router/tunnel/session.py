"""One session of one peer, and the rule which of several is sent on. Keys are not kept here: the fast path has them.

Previous, current and next sessions of a peer are all received on; the current one is sent on. Must not know packets.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from weave_router.tunnel.liveness import NO_FIGURES, Figures
from weave_router.tunnel.wire import Endpoint, SuiteCode


@dataclass(slots=True)
class Session:
    """``index``: our receiver index. ``serial``: number of the path in force when it was made."""

    index: int
    initiator: bool
    suite: SuiteCode
    plaintext: bool
    token_id: int
    created_at: float
    remote_incarnation: int
    serial: int
    handshake_remote: Endpoint
    handshake_local: str
    may_send: bool
    heard: bool = False
    stale: bool = False
    """The peer has restarted since: its keys are gone."""
    confirms: list[float] = field(default_factory=list)
    """When the initiator's keepalive is repeated, earliest first."""
    figures: Figures = NO_FIGURES
    control_bytes: int = 0
    """UDP payload of the control messages sent on it: what is left of ``figures.tx_bytes`` is data."""
    data_bytes: int = 0

    def count_data(self, figures: Figures) -> int:
        """Bytes of data sent since the last call. A control message may still wait in the fast path: never negative."""
        before, self.data_bytes = self.data_bytes, max(self.data_bytes, figures.tx_bytes - self.control_bytes)
        return self.data_bytes - before


def best_session(sessions: Iterable[Session], *, local_is_smaller: bool, crossing: float) -> Session | None:
    """Which of the usable sessions both ends send on.

    The newest; but of crossing initiations (made within ``crossing`` seconds of it, by different ends) the one whose
    initiator has the smaller node id, so that both ends choose the same.
    """
    usable = sorted(sessions, key=lambda session: (session.created_at, session.index))
    if not usable:
        return None
    newest = usable[-1]
    rivals = [s for s in usable if newest.created_at - s.created_at <= crossing and s.initiator == local_is_smaller]
    return rivals[-1] if rivals else newest
