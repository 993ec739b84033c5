"""What goes into and comes out of the mesh core, as frozen values: configuration, effects, events, status.

Effects are for driver.py to carry out; events are for router.py to hand on (routes, tunnel, API). Decides nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from weave_router import limits
from weave_router.mesh.record import Endpoint, SignedRecord
from weave_router.mesh.table import Delta
from weave_router.tunnel.wire import SuiteCode

NO_PROOF = "no proof from peer (wrong token, or not a weave-router)"


@dataclass(frozen=True, slots=True)
class Config:
    """``endpoints``: addresses that others shall dial first; those that links prove are added. ``flags``: as in the
    record. ``discovery`` off: exactly the targets are linked. ``nickname``: empty where it is the name.
    ``link_limit``: links to more nodes are refused as "full"."""

    name: str
    port: int
    endpoints: tuple[Endpoint, ...] = ()
    pod_mtu: int = 0
    flags: int = 0
    discovery: bool = True
    version: str = ""
    nickname: str = ""
    trusted: tuple[str, ...] = ()
    link_limit: int = limits.LINKS_MAX
    suite: SuiteCode = SuiteCode.AESGCM_SHA256


# -- effects ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Dial:
    """Resolve the host, connect to its address number ``attempt`` (modulo), then report ``dial_connected`` or
    ``dial_failed`` with this number. It becomes the number of the link."""

    link: int
    host: str
    port: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Send:
    link: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Hangup:
    """Close the stream after what was sent, or give up dialling. The core has forgotten this number."""

    link: int


Effect = Dial | Send | Hangup


# -- events ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class LinkUp:
    """``observed``: our own address as the peer sees it."""

    node_id: bytes
    remote: Endpoint
    local: Endpoint
    initiator: bool
    observed: Endpoint | None


@dataclass(frozen=True, slots=True)
class LinkDown:
    node_id: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class ReachChanged:
    gained: frozenset[bytes]
    lost: frozenset[bytes]


@dataclass(frozen=True, slots=True)
class FirstSync:
    """A neighbour has handed us its whole table for the first time in this run."""


@dataclass(frozen=True, slots=True)
class RestoredState:
    """Others hold a record of ours that is newer than our store, and we had not synced yet: an old copy of the state
    was put back. Raise the incarnation above this one on disk, then call ``set_incarnation``. At most once a run."""

    incarnation: int


@dataclass(frozen=True, slots=True)
class CloneSeen:
    """Another running node has our identity (a copied state directory): stop allocating, tell the operator."""

    record: SignedRecord


@dataclass(frozen=True, slots=True)
class IpamHeard:
    """A neighbour's words about addresses, as bytes."""

    node_id: bytes
    data: bytes


Event = Delta | LinkUp | LinkDown | ReachChanged | FirstSync | RestoredState | CloneSeen | IpamHeard


# -- status ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class LinkStatus:
    node_id: bytes
    name: str
    remote: Endpoint
    local: Endpoint
    initiator: bool
    since: float
    rtt: float | None
    bytes_in: int
    bytes_out: int
    token_id: int


@dataclass(frozen=True, slots=True)
class TargetStatus:
    """``state``: waiting, connecting, connected, retrying, self. Times are by the mesh's clock."""

    text: str
    state: str
    reason: str
    node_id: bytes | None
    retry_at: float | None


@dataclass(frozen=True, slots=True)
class StrangerStatus:
    """Openings that proved nothing, by kind: how many, and the last."""

    reason: str
    count: int
    last_remote: Endpoint
    last_at: float


@dataclass(frozen=True, slots=True)
class MeshStatus:
    own: SignedRecord
    records: int
    reachable: frozenset[bytes]
    links: list[LinkStatus]
    targets: list[TargetStatus]
    openings: int
    strangers: list[StrangerStatus]
    counters: Mapping[str, int]
    duplicate_names: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict)
    first_synced: bool = False
    clone: SignedRecord | None = None
