"""The table of records: one per node, the newest, with deltas for whoever follows it.

Takes verified records only (record.py made them so). Knows no link but a number it hands back (``source``), no key, no
socket; time is an argument. Called by core.py; its deltas feed routes.py, topology.py, the flood and the API.

One origin may change its record once a second, with a burst; what comes faster waits here, the newest alone, so that
nothing is lost and a node in a frenzy costs the others one record a second.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from weave_router import limits
from weave_router.mesh.record import Order, SignedRecord

Version = tuple[bytes, int, int, bytes]
"""What a digest says of one record: (node id, incarnation, seq, first 8 bytes of the hash)."""


class Verdict(StrEnum):
    NEWER = "newer"  # taken, a delta waits
    KNOWN = "known"  # the very bytes we hold
    OLDER = "older"  # ours is newer (or was, before we forgot it)
    DEFERRED = "deferred"  # too many of this origin; taken when its turn comes
    FULL = "full"  # no room for another node


@dataclass(frozen=True, slots=True)
class Delta:
    """``old`` is None: added; ``new`` is None: removed. ``source``: the link it came over, None for our own doing."""

    node_id: bytes
    old: SignedRecord | None
    new: SignedRecord | None
    source: int | None = None


@dataclass(slots=True)
class Bucket:
    """Token bucket: ``burst`` at once, one a second after that."""

    burst: float
    tokens: float
    at: float

    def refill(self, now: float) -> None:
        self.tokens = min(self.burst, self.tokens + max(0.0, now - self.at))
        self.at = now

    def take(self, now: float) -> bool:
        self.refill(now)
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True

    def ready_at(self, now: float) -> float:
        """When the next token is there. A hair late, so that rounding cannot make the caller come in vain."""
        self.refill(now)
        return now if self.tokens >= 1.0 else now + (1.0 - self.tokens) + 1e-6


@dataclass(slots=True)
class Deferred:
    signed: SignedRecord
    source: int | None
    due_at: float


class Table:
    def __init__(self, *, limit: int = limits.RECORDS_MAX) -> None:
        self._limit = limit
        self._records: dict[bytes, SignedRecord] = {}
        self._names: dict[str, set[bytes]] = {}
        self._buckets: dict[bytes, Bucket] = {}
        self._deferred: dict[bytes, Deferred] = {}
        self._forgotten: dict[bytes, Order] = {}
        self._deltas: list[Delta] = []

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[SignedRecord]:
        return iter(self._records.values())

    def __contains__(self, node_id: bytes) -> bool:
        return node_id in self._records

    def get(self, node_id: bytes) -> SignedRecord | None:
        return self._records.get(node_id)

    def duplicate_names(self) -> dict[str, tuple[bytes, ...]]:
        """Names that more than one node bears: a warning, nothing breaks."""
        return {name: tuple(sorted(ids)) for name, ids in self._names.items() if len(ids) > 1}

    # -- merge ------------------------------------------------------------------------------------------------------
    def verdict(self, signed: SignedRecord) -> Verdict:
        """What ``merge`` would say if rate were no matter; changes nothing, so it may be asked before the signature
        is verified."""
        node_id = signed.node_id
        held = self._records.get(node_id)
        waiting = self._deferred.get(node_id)
        if held is not None and held.hash == signed.hash:
            return Verdict.KNOWN
        newest = max((order for order in (
            held.order if held else None,
            waiting.signed.order if waiting else None,
            self._forgotten.get(node_id),
        ) if order is not None), default=None)
        if newest is not None and signed.order <= newest:
            return Verdict.OLDER
        if held is None and len(self._records) >= self._limit:
            return Verdict.FULL
        return Verdict.NEWER

    def merge(self, signed: SignedRecord, now: float, source: int | None = None) -> Verdict:
        verdict = self.verdict(signed)
        if verdict is not Verdict.NEWER:
            return verdict
        bucket = self._bucket(signed.node_id, now)
        if bucket.take(now):
            self._deferred.pop(signed.node_id, None)
            self._put(signed, source)
            return Verdict.NEWER
        self._deferred[signed.node_id] = Deferred(signed, source, bucket.ready_at(now))
        return Verdict.DEFERRED

    def put_own(self, signed: SignedRecord) -> None:
        """Our own record: its rate is own.py's concern."""
        self._put(signed, None)

    def _bucket(self, node_id: bytes, now: float) -> Bucket:
        bucket = self._buckets.get(node_id)
        if bucket is None:
            bucket = self._buckets[node_id] = Bucket(limits.RECORD_BURST, limits.RECORD_BURST, now)
        return bucket

    def _put(self, signed: SignedRecord, source: int | None) -> None:
        old = self._records.get(signed.node_id)
        self._records[signed.node_id] = signed
        self._forgotten.pop(signed.node_id, None)
        if old is not None:
            self._unname(old)
        self._names.setdefault(signed.name, set()).add(signed.node_id)
        self._deltas.append(Delta(signed.node_id, old, signed, source))

    def _unname(self, signed: SignedRecord) -> None:
        ids = self._names[signed.name]
        ids.discard(signed.node_id)
        if not ids:
            del self._names[signed.name]

    def remove(self, node_id: bytes) -> None:
        """Forget a node. The order is kept, so that a neighbour that still holds the record does not bring it back."""
        old = self._records.pop(node_id, None)
        if old is None:
            return
        self._unname(old)
        self._deferred.pop(node_id, None)
        self._buckets.pop(node_id, None)
        self._forgotten[node_id] = old.order
        while len(self._forgotten) > self._limit:
            del self._forgotten[next(iter(self._forgotten))]
        self._deltas.append(Delta(node_id, old, None))

    def take_deltas(self) -> list[Delta]:
        deltas, self._deltas = self._deltas, []
        return deltas

    # -- time -------------------------------------------------------------------------------------------------------
    def get_timer(self) -> float | None:
        return min((waiting.due_at for waiting in self._deferred.values()), default=None)

    def handle_timer(self, now: float) -> None:
        due = [node_id for node_id, waiting in self._deferred.items() if waiting.due_at <= now]
        for node_id in due:
            waiting = self._deferred.pop(node_id)
            self.merge(waiting.signed, now, waiting.source)

    # -- exchange of whole tables -----------------------------------------------------------------------------------
    def versions(self) -> list[Version]:
        """The digest of the table, sorted by node id."""
        return [version_of(self._records[node_id]) for node_id in sorted(self._records)]

    def missing_from(self, low: bytes, high: bytes, versions: Iterable[Version]) -> list[SignedRecord]:
        """Records with ids in [low, high] that the author of ``versions`` lacks or holds older."""
        theirs = {version[0]: version for version in versions}
        return [signed for node_id, signed in self._records.items()
                if low <= node_id <= high and is_newer(signed, theirs.get(node_id))]


def version_of(signed: SignedRecord) -> Version:
    return (signed.node_id, signed.record.incarnation, signed.record.seq, signed.hash[:8])


def is_newer(signed: SignedRecord, version: Version | None) -> bool:
    return version is None or version_of(signed)[1:] > version[1:]
