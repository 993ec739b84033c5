"""The fast path's face to Python: tables in, events out. Nothing here is called once per packet.

Addresses cross this border as ``Endpoint``: ``(text, port)``, IPv4 as dotted quad even on a dual-stack socket.
All methods are called from one thread (the event loop's); workers run on their own.
"""

import mmap
from collections.abc import Sequence
from typing import Final, NamedTuple

Endpoint = tuple[str, int]

# Suites of the data channel.
SUITE_AESGCM: Final[int]
SUITE_CHACHAPOLY: Final[int]

# Slots of the node table.
SLOT_NONE: Final[int]
SLOT_LOCAL: Final[int]

# node_set flags
NODE_ANSWER: Final[int]  # ARP and ND for this node's numbers are answered here
NODE_FLOOD: Final[int]  # wants every flooded frame (has an undeclared station)

# session_add flags
SESSION_PLAINTEXT: Final[int]  # payload of data datagrams is not sealed
SESSION_MAY_SEND: Final[int]  # initiator, or the responder has heard on it

# path_set flags
PATH_NO_GSO: Final[int]  # send one datagram at a time

# Event kinds: the first element of every tuple from events().
EV_HANDSHAKE: Final[int]  # (kind, datagram: bytes, remote: Endpoint, local: str, token_id: int); mac1 is valid
EV_VERSION: Final[int]  # (kind, version: int, remote: Endpoint); our shape and a valid mac1, another version
EV_TOKEN: Final[int]  # (kind, token_id: int, remote: Endpoint); handshake shape, token id is none of ours
EV_CONTROL: Final[int]  # (kind, session: int, lane: int, remote: Endpoint, local: str, payload: bytes, wire_size: int)
EV_NEED_SESSION: Final[int]  # (kind, slot: int); a frame waits, no session or path is in use
EV_CONFIRMED: Final[int]  # (kind, session: int); first authenticated datagram on this session
EV_CANDIDATE: Final[int]  # (kind, session: int, remote: Endpoint, local: str); path-speaking lane, other source
EV_REKEY: Final[int]  # (kind, session: int); packet or byte count says so
EV_PATH_ERROR: Final[int]  # (kind, slot: int, errno: int); a send to this path failed with errno
EV_GSO_OFF: Final[int]  # (kind, slot: int, errno: int); UDP_SEGMENT refused there, path sends one by one
EV_ANNOUNCE: Final[int]  # (kind, number: int, mac: bytes); gratuitous ARP or unsolicited NA of another MAC
EV_GROUP: Final[int]  # (kind, mac: bytes, joined: bool); IGMP or MLD report / leave heard locally

class WorkerState(NamedTuple):
    """queue_bytes: read from its TAP queue and not yet begun to be sealed; realtime: its class, see scheduling.pxd."""

    queue_bytes: int
    realtime: bool

class SessionFigures(NamedTuple):
    """tx_packets, tx_bytes, rx_packets, rx_bytes, last_tx_ns, last_rx_ns (CLOCK_BOOTTIME ns, 0 = never),
    first_unanswered_ns (data sent with nothing authenticated since, 0 = none), rx_failed (tag or replay failures),
    unanswered_rx_ns (data received with nothing sent since, 0 = none: the passive keepalive's clock)."""

    tx_packets: int
    tx_bytes: int
    rx_packets: int
    rx_bytes: int
    last_tx_ns: int
    last_rx_ns: int
    first_unanswered_ns: int
    rx_failed: int
    unanswered_rx_ns: int

class Engine:
    """One TAP (one queue per worker), one UDP port (one socket per worker), and the tables that join them."""

    def __init__(self, *, workers: int, mtu: int, refuse: frozenset[str] = ..., network: int = 0,
                 rekey_packets: int = ..., rekey_bytes: int = ..., station_seconds: float = ...,
                 station_hold_seconds: float = ...) -> None:
        """The last four are limits.py's; tests make them small."""

    event_fd: int
    """Readable when events() has something."""
    ciphers: dict[int, str]
    """Suite -> implementation in use."""

    # -- start and stop -----------------------------------------------------------------------------------------
    def start(self, tap_fds: Sequence[int], udp_fds: Sequence[int], *, vnet_hdr: int, tap_csum: bool, tap_tso: bool,
              tap_uso: bool, steered: bool = ..., credits: mmap.mmap | None = ..., realtime: float = ...) -> None:
        """Borrow the descriptors (one of each per worker) and start the workers. ``vnet_hdr``: 10 or 12.
        ``steered``: a program keeps flows on their TAP queue; else they are written through the one they come from.
        ``credits``: the map of the program that bounds flows (host/steering.py); None: there is none.
        ``realtime``: part of a CPU that each worker may take ahead of ordinary threads; 0: none."""
    def stop(self) -> None:
        """Stop and join the workers; descriptors stay open and are the caller's. Idempotent."""
    def events(self, limit: int = ...) -> list[tuple[object, ...]]: ...

    # -- who we are ---------------------------------------------------------------------------------------------
    def tokens_set(self, keys: Sequence[tuple[int, bytes]]) -> None:
        """Accepted tokens as (token id, 32-byte mac1 key); at most 4."""
    def universe_set(self, number: int, prefix_len: int, ipv6_prefix: bytes) -> None:
        """IPv4 range as number/prefix length, IPv6 /96 as its 12 bytes (empty: no IPv6)."""
    def mtu_set(self, mtu: int) -> None: ...

    # -- nodes and addresses ------------------------------------------------------------------------------------
    def node_set(self, slot: int, *, flags: int, pod_mtu: int) -> None: ...
    def node_del(self, slot: int) -> None:
        """Forget the slot: its path, its parked frames. Its routes and sessions were removed before."""
    def route_set(self, number: int, prefix_len: int, slot: int, mac: bytes = ...) -> None:
        """Longest prefix wins. ``mac`` (32-bit prefixes only): the real MAC behind this address (an exception)."""
    def route_del(self, number: int, prefix_len: int) -> None: ...
    def groups_set(self, slot: int, macs: Sequence[bytes]) -> None:
        """Multicast MACs that this node's record asks for; replaces the former set."""
    def lookup(self, number: int) -> tuple[int, int]:
        """(slot, prefix length) of the longest match, (SLOT_NONE, 0) when there is none."""

    # -- sessions and paths -------------------------------------------------------------------------------------
    def session_add(self, session: int, slot: int, *, suite: int, send_key: bytes, recv_key: bytes,
                    remote_index: int, flags: int) -> None:
        """``session`` is our receiver index (20-bit slot, 12-bit generation)."""
    def session_use(self, slot: int, session: int) -> None:
        """Send to this node on this session from now on (0: on none); parked frames go out."""
    def session_may_send(self, session: int) -> None: ...
    def session_del(self, session: int) -> None: ...
    def session_figures(self, session: int) -> SessionFigures: ...
    def path_set(self, slot: int, *, remote: Endpoint, local: str, epoch: int, payload_max: int, flags: int) -> None:
        """Where datagrams for this node go. ``payload_max``: confirmed UDP payload in bytes. A change of ``epoch``
        (0..15) starts fresh nonce lanes; a session never sees an epoch twice."""
    def path_del(self, slot: int) -> None: ...
    def control_send(self, session: int, payload: bytes, *, remote: Endpoint | None = None, local: str = ...,
                     size: int = ...) -> None:
        """Seal a control message on this session (always sealed, also in plaintext mode) and send it from worker 0
        on the path, or to ``remote``. ``size``: pad to this UDP payload length (path MTU probes); never fragmented.
        An empty payload is a keepalive: it produces no event on the other side."""
    def datagram_send(self, datagram: bytes, remote: Endpoint, local: str = ...) -> int:
        """Send as is from worker 0's socket (handshakes). Returns 0 or errno."""

    # -- figures ------------------------------------------------------------------------------------------------
    def counters(self) -> dict[str, int]:
        """Sums over all workers: frames_in, frames_out, ... (names in fastpath/counters.pxd)."""
    def worker_counters(self) -> list[dict[str, int]]: ...
    def worker_states(self) -> list[WorkerState]: ...
    def drops(self) -> dict[str, int]:
        """Counted drops by reason, sums over all workers."""
    def stations(self) -> list[tuple[bytes, int, int]]:
        """Learned stations outside the universe: (mac, slot, age in ms)."""
    def trace(self) -> list[tuple[int, int, int, int, int]]:
        """The last events of every worker: (ns, worker, what, a, b)."""
    def capture_start(self, *, slot: int | None = ..., number: int | None = ..., snap: int = ...) -> None:
        """Copy inner frames (of one node, or of one host number) to the capture ring; one capture at a time."""
    def capture_read(self) -> list[tuple[int, int, int, bytes]]:
        """(ns CLOCK_REALTIME, direction 0 to peer / 1 from peer, original length, frame)."""
    def capture_stop(self) -> int:
        """Stop; returns how many frames the ring had no room for."""

DROP_REASONS: Final[tuple[str, ...]]
COUNTERS: Final[tuple[str, ...]]
CIPHERS: Final[dict[int, str]]
"""Suite -> the fastest implementation here, proven by known answers at import; ``Engine.ciphers`` says what serves."""
