"""What the API says, as frozen values: one struct per section of the status page, and the requests.

The shape of the JSON is the shape of these structs; ``router.py`` fills them, ``text.py`` prints them, ``client.py``
reads them. Imports of the product only limits: every command loads this file. Times are Unix
seconds, durations seconds, MTUs and sizes bytes; ids are lower-case hexadecimal; an empty text or None is unknown.
"""

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from weave_router import limits

PLAINTEXT: Final = "plaintext"
"""What ``Connection.encryption`` says where the payload is not sealed."""

ConnectionState = Literal["connecting", "retrying", "failed", "pending", "established", "self"]
Direction = Literal["outbound", "inbound"]


class _Struct(msgspec.Struct, frozen=True, kw_only=True):
    """Fields beyond those known are ignored when read: an older command line works with a newer router."""


# --- sections of the status page --------------------------------------------------------------------------------


class Service(_Struct, frozen=True, kw_only=True):
    """The router itself."""

    version: str
    id: str
    name: str
    nickname: str
    incarnation: int
    started_at: float
    uptime: float
    status: str = "ready"
    protocol_min: int = 1
    protocol_max: int = 1
    host: str = ""
    port: int = 6783
    encryption: str = ""
    """Suites this node seals with and their implementation, the preferred first; ``plaintext`` with --plaintext."""
    discovery: bool = True
    trusted_subnets: tuple[str, ...] = ()
    pod_mtu: int = 0
    bridge: str = "weave"
    domain: str = ""
    refused: tuple[str, ...] = ()
    """Kernel features that WEAVE_ROUTER_REFUSE turned off."""


class Connection(_Struct, frozen=True, kw_only=True):
    """One peer or one target that is no peer yet. The control link and the data path are told apart on purpose."""

    encryption: str
    """Suite of the data path, ``plaintext``, or empty where there is no session."""
    state: ConnectionState
    address: str
    direction: Direction
    peer: str = ""
    nickname: str = ""
    link: str = ""
    """The control link by TCP: ``up``, ``down`` or a word for what it waits for."""
    data: str = ""
    """The session by UDP, likewise."""
    path: str = ""
    """``direct``; ``relay`` when relays come."""
    path_mtu: int | None = None
    """Confirmed size of an outer IP packet on this path."""
    pod_mtu: int | None = None
    """The other side's pod MTU."""
    rtt: float | None = None
    tx_packets: int = 0
    tx_bytes: int = 0
    rx_packets: int = 0
    rx_bytes: int = 0
    since: float | None = None
    reason: str = ""
    """Code of reasons.py: why there is no session, or why the path is not what it could be."""
    detail: str = ""
    """The same as a sentence."""
    retry_at: float | None = None


class Target(_Struct, frozen=True, kw_only=True):
    """An address given by hand."""

    address: str
    state: ConnectionState = "connecting"
    resolved: tuple[str, ...] = ()
    peer: str = ""
    detail: str = ""


class PeerLink(_Struct, frozen=True, kw_only=True):
    """A connection as the peer's own record tells it."""

    peer: str
    nickname: str = ""
    address: str = ""
    direction: Direction = "outbound"
    state: Literal["pending", "established"] = "established"
    rtt: float | None = None


class Peer(_Struct, frozen=True, kw_only=True):
    """A node's record."""

    id: str
    nickname: str
    incarnation: int = 0
    seq: int = 0
    version: str = ""
    addresses: tuple[str, ...] = ()
    reachable: bool = True
    pod_mtu: int = 0
    plaintext: bool = False
    behind_nat: bool = False
    prefixes: tuple[str, ...] = ()
    token_sending: str = ""
    tokens_accepted: tuple[str, ...] = ()
    links: tuple[PeerLink, ...] = ()


class Attachment(_Struct, frozen=True, kw_only=True):
    """A pod on this node."""

    container_id: str
    ifname: str
    address: str
    """With the prefix length that the pod sees."""
    pod: str = ""
    """NAMESPACE/NAME, where the runtime named it."""
    ipv6: str = ""
    mac: str = ""
    netns: str = ""
    port: str = ""
    since: float | None = None


class FirewallAnswer(_Struct, frozen=True, kw_only=True):
    """A chain of somebody else that can drop what pods send and get. ``place``: where our accept pair stands; empty,
    with ``reason``: it could not be put there."""

    chain: str
    place: str = ""
    reason: str = ""


class Firewall(_Struct, frozen=True, kw_only=True):
    """What the host's packet filters mean for pods. ``healed``: how often something of ours was gone and put back."""

    chains: tuple[FirewallAnswer, ...] = ()
    legacy: tuple[str, ...] = ()
    """``ip``, ``ip6``: legacy iptables has a filter table, which nft does not show."""
    bridge_netfilter: bool = False
    hairpin: bool = False
    healed: int = 0


class AddressConflict(_Struct, frozen=True, kw_only=True):
    """One address announced by several nodes: every table gives it to ``owner``."""

    address: str
    owner: str
    others: tuple[str, ...]


class MacConflict(_Struct, frozen=True, kw_only=True):
    """One MAC that pods of several nodes were given while the nodes were parted: it is ``owner``'s."""

    mac: str
    owner: str
    others: tuple[str, ...]
    addresses: tuple[str, ...]


class Block(_Struct, frozen=True, kw_only=True):
    """Addresses that a node answers for."""

    peer: str
    nickname: str = ""
    prefixes: tuple[str, ...] = ()
    addresses: int = 0
    reachable: bool = True


class Member(_Struct, frozen=True, kw_only=True):
    """An identity of this node's universe. ``standing``: member, proposed, slot (of a seed, not started), left,
    retired, or retiring (named in a retirement that is not complete)."""

    peer: str
    nickname: str = ""
    standing: str = "member"
    blocks: int = 0
    addresses: int = 0
    reachable: bool = True
    incarnation: int = 0


class Retirement(_Struct, frozen=True, kw_only=True):
    """Of machines that are off for ever, by names. ``state``: none, open, done, failed (``reason``), or promised:
    another node's, which this node has promised to. ``blocks``, ``addresses``: what came back."""

    state: str = "none"
    coordinator: str = ""
    victims: tuple[str, ...] = ()
    promised: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    reason: str = ""
    blocks: int = 0
    addresses: int = 0


class OtherUniverse(_Struct, frozen=True, kw_only=True):
    """A neighbour whose addresses are of another universe; its traffic is carried all the same."""

    peer: str
    nickname: str = ""
    universe: str = ""
    range: str = ""


class Address(_Struct, frozen=True, kw_only=True):
    """One address of this node. ``state``: used, claimed (no pod has it yet), resting."""

    address: str
    state: str
    ipv6: str = ""
    holder: str = ""
    container_id: str = ""
    ifname: str = ""


class Ipam(_Struct, frozen=True, kw_only=True):
    """Who has which address. ``status``: ``ready``, ``waiting`` (see ``reason``), or ``manual`` while addresses are
    given by hand."""

    status: str = "manual"
    reason: str = ""
    universe: str = ""
    gate: str = ""
    used: int = 0
    resting: int = 0
    free: int = 0
    cold_start: str = ""
    """What must come together after all hosts were off, as a sentence."""
    members: tuple[Member, ...] = ()
    other_universes: tuple[OtherUniverse, ...] = ()
    retirements: tuple[Retirement, ...] = ()
    """That are open."""
    range: str = ""
    range_ipv6: str = ""
    default_subnet: str = ""
    bridge_address: str = ""
    attachments: tuple[Attachment, ...] = ()
    blocks: tuple[Block, ...] = ()
    conflicts: tuple[AddressConflict, ...] = ()
    mac_conflicts: tuple[MacConflict, ...] = ()


class Worker(_Struct, frozen=True, kw_only=True):
    """One thread of the fast path. The three figures that explain a complaint about speed, then its counters."""

    index: int
    bundle_fill: float | None = None
    """Small frames per bundle; None: none was sent yet (likewise below)."""
    segments_per_send: float | None = None
    segments_per_receive: float | None = None
    segments_per_write: float | None = None
    queue_depth: int = 0
    """Bytes read ahead and parked."""
    realtime: bool = False
    """Whether it is ahead of ordinary threads now, which it asks for when it has to wait for a CPU."""
    counters: dict[str, int] = {}


class TokenUse(_Struct, frozen=True, kw_only=True):
    """Which tokens (ids, never secrets) a node's record names."""

    peer: str
    nickname: str
    sending: str
    accepted: tuple[str, ...] = ()


class Tokens(_Struct, frozen=True, kw_only=True):
    """State of a rotation."""

    sending: str = ""
    accepted: tuple[str, ...] = ()
    nodes: tuple[TokenUse, ...] = ()
    next_edit: Literal["safe", "wait"] = "safe"
    """Whether every reachable node has what this one has: the last edit has been read everywhere."""
    waits_for: tuple[str, ...] = ()
    """Names of the reachable nodes that have not."""
    away: tuple[str, ...] = ()
    """Names of unreachable nodes that had other tokens: without this node's file they may not come back."""


class Kubernetes(_Struct, frozen=True, kw_only=True):
    """The cluster as this router sees it. ``status``: empty outside Kubernetes, ``ready``, or ``waiting`` while some
    watch is broken; ``troubles``: sentences."""

    status: str = ""
    node: str = ""
    namespace: str = ""
    nodes: int = 0
    targets: tuple[str, ...] = ()
    blocks: int = 0
    """Leases that have a holder, of the whole cluster."""
    own_blocks: int = 0
    token: str = ""
    """Id that the universe's Lease names."""
    troubles: tuple[str, ...] = ()
    counters: dict[str, int] = {}


class StatusReport(_Struct, frozen=True, kw_only=True):
    """The whole page."""

    service: Service
    connections: tuple[Connection, ...] = ()
    targets: tuple[Target, ...] = ()
    peers: tuple[Peer, ...] = ()
    ipam: Ipam = Ipam()
    workers: tuple[Worker, ...] = ()
    drops: dict[str, int] = {}
    """Reason -> count, the fast path's and the kernel's alike; zeros may be left out."""
    counters: dict[str, int] = {}
    """Whatever else is counted: sums over the workers, handshakes, links, terminations."""
    tokens: Tokens = Tokens()
    firewall: Firewall = Firewall()
    warnings: tuple[str, ...] = ()
    kubernetes: Kubernetes = Kubernetes()


class Report(_Struct, frozen=True, kw_only=True):
    """For a bug report: the page, the fast path's trace and its tables, each cut to ``REPORT_ROWS_MAX`` rows."""

    created_at: float
    status: StatusReport
    trace: tuple[tuple[int, ...], ...] = ()
    """(CLOCK_BOOTTIME ns, worker, what, a, b)"""
    tables: dict[str, tuple[Any, ...]] = {}
    truncated: dict[str, int] = {}
    """Name of a table that was cut -> rows left out."""


# --- requests and answers ---------------------------------------------------------------------------------------

Text = Annotated[str, Meta(max_length=1024)]
_TextOfSomething = Annotated[str, Meta(min_length=1, max_length=255)]


class _Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request with a field we do not know would be carried out by half, so it is refused."""


class ConnectRequest(_Request, frozen=True, kw_only=True):
    targets: Annotated[tuple[_TextOfSomething, ...], Meta(max_length=limits.TARGETS_MAX)]
    replace: bool = False
    """Forget all targets but these."""


class ForgetRequest(_Request, frozen=True, kw_only=True):
    targets: Annotated[tuple[_TextOfSomething, ...], Meta(min_length=1, max_length=limits.TARGETS_MAX)]


class TargetsReply(_Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All targets after the change, addresses of a cluster's Nodes with them."""

    targets: tuple[str, ...]
    of_nodes: tuple[str, ...] = ()
    """Of those to be forgotten: still called, since they are addresses of Nodes too."""


class AttachRequest(_Request, frozen=True, kw_only=True):
    """What `attach` puts beside the descriptors on ``attach.sock``. Answered by an Attachment or an ErrorReply."""

    command: Literal["attach"] = "attach"
    address: Text = ""
    """With the range's prefix length; empty: any."""
    netns: Text
    ifname: Annotated[str, Meta(min_length=1, max_length=15)] = "eth0"
    container_id: Annotated[str, Meta(max_length=255)] = ""


class DetachRequest(_Request, frozen=True, kw_only=True):
    """Whatever is given must fit: the namespace (by inode where it still exists), the address, the container."""

    netns: Text = ""
    netns_inode: int | None = None
    address: Text = ""
    ifname: Annotated[str, Meta(max_length=15)] = ""
    container_id: Annotated[str, Meta(max_length=255)] = ""


class DetachReply(_Struct, frozen=True, kw_only=True):
    detached: tuple[Attachment, ...]


class ClaimRequest(_Request, frozen=True, kw_only=True):
    """Keep this address for a container's interface, or give it back."""

    address: _TextOfSomething
    container_id: Annotated[str, Meta(max_length=255)] = ""
    ifname: Annotated[str, Meta(min_length=1, max_length=15)] = "eth0"
    release: bool = False


class ExposeRequest(_Request, frozen=True, kw_only=True):
    """An address for the host itself beside the bridge's; empty: any. With ``hide`` all exposed, or this one, go."""

    address: Text = ""
    hide: bool = False


class AddressesReply(_Struct, frozen=True, kw_only=True):
    addresses: tuple[str, ...] = ()


class CheckRequest(_Request, frozen=True, kw_only=True):
    repair: bool = False


class CheckReply(_Struct, frozen=True, kw_only=True):
    """Sentences; what was ``repaired`` is among the ``findings``."""

    findings: tuple[str, ...] = ()
    repaired: tuple[str, ...] = ()


class UngateRequest(_Request, frozen=True, kw_only=True):
    """The operator's promise that this node was not retired and its store is the newest."""


class RetireRequest(_Request, frozen=True, kw_only=True):
    """The operator's promise that these machines (names, or beginnings of ids) are off for ever; ``lost_majority``:
    that no more than the others are left. With ``give_up`` the open retirement ends instead."""

    peers: Annotated[tuple[_TextOfSomething, ...], Meta(max_length=limits.IPAM_FRAME_PEOPLE_MAX)] = ()
    lost_majority: bool = False
    give_up: bool = False


class CaptureRequest(_Request, frozen=True, kw_only=True):
    """Inner frames of one peer (id prefix or name) or one pod (address or container id); neither: all."""

    peer: Text = ""
    pod: Text = ""
    snap: Annotated[int, Meta(ge=14, le=limits.CAPTURE_SNAP_MAX)] = limits.CAPTURE_SNAP_MAX
    count: Annotated[int, Meta(ge=0)] = 0
    """Stop after so many frames; 0: go on."""
    seconds: Annotated[float, Meta(ge=0, le=86_400)] = 0
    """Stop after so long; 0: go on."""


class ErrorReply(_Struct, frozen=True, kw_only=True):
    """Every answer that is no success. ``exit_status`` is what the command line ends with."""

    error: str
    exit_status: int = 1
