"""Replication of records: what a neighbour sends is checked and merged, what changed is handed on.

Holds the table, the topology and our own record together; knows no socket and no retry. Time and verification are
arguments. Called by core.py alone, which hands in the links that are up.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

from weave_router import limits
from weave_router.errors import BadPacket
from weave_router.mesh.events import CloneSeen, Event, ReachChanged, RestoredState
from weave_router.mesh.link import Link
from weave_router.mesh.own import OwnRecord
from weave_router.mesh.record import SignedRecord, Verify, check_signature, parse_record_untrusted
from weave_router.mesh.table import Delta, Table, Verdict
from weave_router.mesh.topology import Topology

REACH_SETTLE_SECONDS = 0.02
EXPIRE_CHECK_SECONDS = 60.0


class Replica:
    def __init__(self, own: OwnRecord, *, verify: Verify, now: float) -> None:
        self.own = own
        self.own_id = own.signed.node_id
        self.table = Table()
        self.topology = Topology(self.own_id)
        self.counters: Counter[str] = Counter()
        self.events: list[Event] = []
        self.first_synced = False
        self.clone: SignedRecord | None = None
        self._jumped = False
        self._verify = verify
        self._reach_at: float | None = None
        self._walked_at = now
        self._expire_at = now + EXPIRE_CHECK_SECONDS
        self._unreachable_since: dict[bytes, float] = {}
        self._buried: dict[bytes, int] = {}
        """Nodes somebody said are gone for good: their last incarnation, for who still hands their records on."""
        self.table.put_own(own.signed)

    # -- what a neighbour sends -------------------------------------------------------------------------------------
    def receive_untrusted(self, data: bytes, number: int, link: Link, now: float) -> None:
        """One record over one link. What cannot be used is counted; the neighbour only handed it on, so its link
        stays."""
        try:
            signed = parse_record_untrusted(data, domain=self.own.draft.domain)
            link.heard(signed)
            if signed.node_id == self.own_id:
                self._check_new(signed, link)
                self.own_seen(signed, now)
            elif signed.record.incarnation <= self._buried.get(signed.node_id, -1):
                pass
            elif self.table.verdict(signed) is Verdict.NEWER:
                self._check_new(signed, link)
                self.merge(signed, number, now)
        except BadPacket as error:
            self.counters[error.reason] += 1

    def remember_untrusted(self, records: Iterable[bytes], now: float) -> None:
        """What the router before this one had heard: as good as a neighbour's word, and checked like it."""
        for data in records:
            try:
                signed = parse_record_untrusted(data, domain=self.own.draft.domain)
                if signed.node_id != self.own_id and self.table.verdict(signed) is Verdict.NEWER:
                    check_signature(signed, self._verify)
                    self.table.merge(signed, now)
            except BadPacket as error:
                self.counters[error.reason] += 1

    def _check_new(self, signed: SignedRecord, link: Link) -> None:
        if signed.hash == self.own.signed.hash:
            return
        check_signature(signed, self._verify)
        assert link.peer is not None
        neighbour = signed.node_id == link.peer.node_id
        if neighbour and signed.record.x25519_public != link.opening.remote_static:
            raise BadPacket("record of another key")

    def merge(self, signed: SignedRecord, number: int, now: float) -> None:
        """A verified record of another node."""
        verdict = self.table.merge(signed, now, number)
        if verdict in (Verdict.FULL, Verdict.DEFERRED):
            self.counters[f"record {verdict}"] += 1

    def own_seen(self, signed: SignedRecord, now: float) -> None:
        """Others hold a record of ours that we may not have issued."""
        mine, other = self.own.signed.record, signed.record
        if signed.hash == self.own.signed.hash or other.incarnation < mine.incarnation:
            return
        if other.run == mine.run:
            if other.incarnation == mine.incarnation and other.seq > self.own.draft.seq:
                self.own.jump(mine.incarnation, now, other.seq)
        elif self.first_synced or self._jumped:
            self.clone_seen(signed)
        else:
            self._jumped = True
            self.events.append(RestoredState(other.incarnation))

    def clone_seen(self, signed: SignedRecord) -> None:
        """Our identity runs elsewhere, too. Nothing to outbid: the operator has to end one of the two."""
        if self.clone is None or self.clone.record.run != signed.record.run:
            self.events.append(CloneSeen(signed))
        self.clone = signed

    def synced(self) -> bool:
        """True the first time."""
        first, self.first_synced = not self.first_synced, True
        return first

    # -- handing on -------------------------------------------------------------------------------------------------
    def flood(self, links: Mapping[int, Link], now: float) -> list[Delta]:
        """Deltas since the last call, queued to every link but the one they came from."""
        deltas = self.table.take_deltas()
        for delta in deltas:
            self.topology.apply(delta)
            self.events.append(delta)
            if delta.new is None:
                continue
            for number, link in links.items():
                if number != delta.source:
                    link.queue(delta.new, now)
        if self.topology.stale and self._reach_at is None:
            # A walk costs about 4 us a node: in a large cluster under churn at most once a second.
            self._reach_at = max(now + REACH_SETTLE_SECONDS, self._walked_at + min(1.0, len(self.table) / 4000))
        return deltas

    # -- time -------------------------------------------------------------------------------------------------------
    def get_timer(self) -> float:
        times = (self.own.get_timer(), self.table.get_timer(), self._reach_at)
        return min((at for at in times if at is not None), default=self._expire_at)

    def handle_timer(self, now: float) -> ReachChanged | None:
        self.table.handle_timer(now)
        self.issue(now)
        if now >= self._expire_at:
            self._expire_at = now + EXPIRE_CHECK_SECONDS
            self._expire(now)
        if self._reach_at is not None and self._reach_at <= now:
            return self._walk(now)
        return None

    def issue(self, now: float) -> bool:
        if not self.own.handle_timer(now):
            return False
        self.table.put_own(self.own.signed)
        return True

    def _walk(self, now: float) -> ReachChanged | None:
        self._reach_at, self._walked_at = None, now
        gained, lost = self.topology.update()
        if not gained and not lost:
            return None
        change = ReachChanged(gained, lost)
        self.events.append(change)
        return change

    def bury(self, node_id: bytes) -> None:
        """The machine is gone for good. Whoever comes back under this identity has a greater incarnation."""
        signed = self.table.get(node_id)
        if signed is None or node_id == self.own_id or node_id in self.topology.reachable:
            return
        if len(self._buried) >= limits.RECORDS_MAX:
            self._buried.pop(next(iter(self._buried)))
        self._buried[node_id] = signed.record.incarnation
        self.table.remove(node_id)

    def _expire(self, now: float) -> None:
        """Forget nodes that were unreachable for a day and hold no address."""
        reachable = self.topology.reachable
        gone = [signed for signed in self.table if signed.node_id not in reachable]
        since = {signed.node_id: self._unreachable_since.get(signed.node_id, now) for signed in gone}
        self._unreachable_since = since
        for signed in gone:
            if not signed.record.prefixes and now - since[signed.node_id] >= limits.RECORD_EXPIRE_SECONDS:
                self.table.remove(signed.node_id)
