"""Our own record: what goes into it, and when a new one is issued.

Rules (design-control 3): a change is issued after 50 ms and at least 1 s after the last; what an attach waits for
(prefixes) goes at once while the burst lasts, groups
after the same 50 ms, since a host joins several together; round-trip times alone at most once a minute. The burst is
below what receivers take. Knows no link, no table; time and the signer are arguments. Called by core.py.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from weave_router import limits
from weave_router.mesh.record import Link, Record, SignedRecord, sign_record
from weave_router.mesh.table import Bucket

SETTLE_SECONDS: Final = 0.05
SPACING_SECONDS: Final = 1.0
RTT_SPACING_SECONDS: Final = 60.0


class OwnRecord:
    """``draft`` is the record as it should be; ``signed`` the one last issued."""

    def __init__(self, draft: Record, sign: Callable[[bytes], bytes], now: float) -> None:
        self.draft = draft
        self._sign = sign
        self._bucket = Bucket(limits.RECORD_OWN_BURST, limits.RECORD_OWN_BURST, now)
        self._due_at: float | None = None
        self._rtt_due_at: float | None = None
        self._issued_at = now
        self._bucket.take(now)
        self.signed: SignedRecord = sign_record(draft, sign)

    def change(self, now: float, *, urgent: bool = False, soon: bool = False, **fields: Any) -> None:
        """Set fields of the record. ``urgent``: at once; ``soon``: with what comes within 50 ms. Raises ValueError, and
        changes nothing, if a bound would be broken."""
        draft = msgspec.structs.replace(self.draft, **fields)
        if draft == self.draft:
            return
        sign_record(draft, lambda _: bytes(64))  # bounds, before anything depends on it
        self.draft = draft
        settled_at = now + SETTLE_SECONDS
        self._want(now if urgent else settled_at if soon else max(settled_at, self._issued_at + SPACING_SECONDS))

    def set_links(self, links: Mapping[bytes, int], now: float) -> None:
        """``links``: node id -> RTT code. A change of codes alone waits up to a minute."""
        ordered = tuple(Link(node_id, links[node_id]) for node_id in sorted(links))
        same = {link.node_id for link in ordered} == {link.node_id for link in self.draft.links}
        if not same:
            self.change(now, links=ordered)
        elif ordered != self.draft.links:
            self.draft = msgspec.structs.replace(self.draft, links=ordered)
            if self._rtt_due_at is None:
                self._rtt_due_at = max(now + SETTLE_SECONDS, self._issued_at + RTT_SPACING_SECONDS)

    def jump(self, incarnation: int, now: float, seq: int = 0) -> None:
        """Rise above a record of ours that others hold."""
        self.draft = msgspec.structs.replace(self.draft, incarnation=incarnation, seq=seq)
        self._want(now)

    def _want(self, at: float) -> None:
        self._due_at = at if self._due_at is None else min(self._due_at, at)

    def get_timer(self) -> float | None:
        return min((at for at in (self._due_at, self._rtt_due_at) if at is not None), default=None)

    def handle_timer(self, now: float) -> bool:
        """True if a new record was issued."""
        due_at = self.get_timer()
        if due_at is None or due_at > now:
            return False
        if not self._bucket.take(now):
            self._due_at, self._rtt_due_at = self._bucket.ready_at(now), None
            return False
        self._due_at = self._rtt_due_at = None
        self._issued_at = now
        self.draft = msgspec.structs.replace(self.draft, seq=self.draft.seq + 1)
        self.signed = sign_record(self.draft, self._sign)
        return True
