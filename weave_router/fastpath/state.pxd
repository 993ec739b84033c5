# What the workers share: tables, sessions, paths, counters, rings. Owned by engine.Engine, which allocates and frees;
# the workers read (and write only what is marked worker-owned). A pointer that the control plane replaces is read with
# acquire_ptr and freed after every worker passed a quiescent point (engine.pyx, _retire).
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp

from weave_router.fastpath.aead cimport Cipher
from weave_router.fastpath.counters cimport C_COUNT, D_COUNT
from weave_router.fastpath.includes.linux cimport iovec, mmsghdr, sockaddr_in6
from weave_router.fastpath.includes.native cimport acquire64
from weave_router.fastpath.includes.openssl cimport EVP_MAC_CTX, OSSL_PARAM
from weave_router.fastpath.queues cimport Queues
from weave_router.fastpath.replay cimport Window
from weave_router.fastpath.scheduling cimport Scheduling

cdef enum:
    WORKERS_MAX = 15
    NODES = 8194  # slots 0 (none), 1 (this node), 2..
    SLOT_NONE_ = 0
    SLOT_LOCAL_ = 1
    SESSION_SLOTS = 1048576  # low 20 bits of an index

    NODE_ANSWER_ = 1
    NODE_FLOOD_ = 2
    SESSION_PLAINTEXT_ = 1
    SESSION_MAY_SEND_ = 2
    PATH_NO_GSO_ = 1

    GROUPS_PER_NODE = 32
    FLOOD_SOURCES = 256  # token buckets of flood sources, the top byte of a hash
    STATIONS = 4096  # open addressing, a power of two
    FLOW_QUEUES = 16384  # lanes.pxd, a power of two
    MAC_OWNERS = 131072  # the same; pages that no exception needs are never touched
    TRIE_NODES_MAX = 16384  # 2 KB each
    TOKENS_MAX = 4

    TRAIN_BYTES = 65507  # largest UDP payload over IPv4
    TRAIN_SEGMENTS = 64  # UDP_MAX_SEGMENTS before Linux 6.9
    TRAINS = 8
    RX_MESSAGES = 8
    RX_BYTES = 65536
    JOINS = 8
    JOIN_SEGMENTS = 64
    PARTIALS = 32
    FRAME_MAX = 65600
    EVENTS = 256
    EVENT_BYTES = 1536
    COMMANDS = 256
    TRACE = 1024
    CAPTURE = 1024

# ---- tables ------------------------------------------------------------------------------------------------------

# A trie of 8-bit strides over the 32-bit host number. An entry is one 64-bit word, replaced atomically:
# child (32 bits, index of a TrieNode, 0 none) | prefix length + 1 (8 bits, 0 none) | slot (16 bits) | has_mac (1 bit).
# Nodes are never freed: the universe bounds them.
cdef struct TrieNode:
    uint64_t entry[256]

cdef struct Exception_:  # a /32 with another MAC than the derived one
    uint32_t number
    uint8_t mac[6]

cdef struct Exceptions:  # sorted by number, replaced whole
    int count
    Exception_ item[1]

cdef struct Station:  # MAC outside the universe, learned from a peer's frame
    uint64_t mac  # 0: empty
    uint32_t slot
    uint64_t seen_ns
    uint64_t moved_ns

cdef struct MacOwner:  # a node that has an exception with this MAC; several nodes may
    uint64_t mac  # 0: empty
    uint32_t slot
    uint32_t addresses  # its exceptions that name it

cdef struct Path:  # immutable but for gso_off and told_ns
    sockaddr_in6 remote  # also holds a sockaddr_in
    uint32_t remote_size
    uint8_t control[64]  # a pktinfo cmsg for the local address
    uint32_t control_size
    int family
    int outer_family  # 4 or 6, also when IPv4 is mapped
    int epoch
    int payload_max
    uint32_t flags
    uint32_t gso_off
    uint64_t told_ns  # when an error of this path was last told

cdef struct TxLane:  # worker-owned: the nonce space of (epoch, worker)
    uint32_t lock  # of counter, epoch, used and live, where workers share lanes (lanes.pxd)
    uint64_t counter
    uint16_t used  # bitmap of epochs
    uint8_t epoch
    uint8_t live
    uint64_t packets
    uint64_t bytes
    uint64_t rx_packets
    uint64_t rx_bytes
    uint64_t rx_failed

cdef struct Run:  # consecutive counters taken for the pieces of one frame
    TxLane *lane
    int epoch
    uint64_t next

cdef struct Session:
    uint32_t index
    uint32_t remote_index
    int32_t slot
    uint32_t flags
    uint32_t confirmed
    uint32_t rekey_asked
    uint32_t rx_epoch
    uint64_t last_tx_ns
    uint64_t last_rx_ns
    uint64_t first_unanswered_ns  # first data sent since anything authenticated came; 0: none
    uint64_t unanswered_rx_ns  # first data received since anything was sent; 0: none
    uint64_t candidate_ns
    Cipher seal[WORKERS_MAX]
    Cipher open[WORKERS_MAX]
    TxLane tx[WORKERS_MAX]
    Window *lanes[256]  # made when the lane is first heard on

cdef struct Node:
    uint32_t flags
    uint32_t holder  # counts node_del: frames parked for the slot's former holder are not for the next
    uint32_t pod_mtu
    Session *session  # used for sending; NULL: none
    Path *path
    uint64_t asked_ns  # when a session was last asked for
    uint64_t too_big_ns
    uint32_t groups
    uint8_t group[GROUPS_PER_NODE][6]

# ---- rings -------------------------------------------------------------------------------------------------------

cdef struct Event:  # worker -> Python
    uint32_t kind
    uint32_t a
    uint32_t b
    uint32_t size
    uint32_t wire_size
    sockaddr_in6 remote
    uint8_t local[16]
    uint8_t local_family
    uint8_t data[EVENT_BYTES]

cdef struct Command:  # Python -> worker 0: a control message to seal and send
    uint32_t session
    uint32_t size
    uint32_t pad_to
    Path *path  # owned by the command; NULL: the node's own
    uint8_t data[EVENT_BYTES]

cdef struct TraceEntry:
    uint64_t ns
    uint32_t what
    uint32_t a
    uint64_t b

cdef struct Captured:
    uint64_t ns
    uint32_t direction
    uint32_t size
    uint32_t kept
    uint8_t data[2048]

cdef struct Capture:
    uint32_t on
    uint32_t lock
    int32_t slot  # -1: any
    int64_t number  # -1: any
    uint32_t snap
    uint64_t head
    uint64_t tail
    uint64_t lost
    Captured ring[CAPTURE]

# ---- per worker --------------------------------------------------------------------------------------------------

# A train: datagrams of one size for one path, sealed one behind the other, sent by one sendmsg with UDP_SEGMENT.
# The last may be shorter and closes it. A bundle is an open datagram at the tail: not yet sealed.
cdef struct Train:
    int32_t slot  # 0: unused
    Session *session
    Path *path
    int used
    int segment
    int count
    int closed
    int tos
    int lane
    int bundle  # offset of the open bundle's header; -1: none
    int bundle_frames
    uint8_t data[TRAIN_BYTES + 64]

# Consecutive segments of one flow, to be written to the TAP as one superframe. borrowed: all pointers are into the
# receive buffers of the present burst.
cdef struct Join:
    int state  # 0 unused
    int family
    int protocol
    int l3
    int l4
    int header  # bytes of all headers
    int gso
    int count
    int total  # payload bytes
    int closed
    uint32_t next_seq
    uint8_t *first
    int end
    uint8_t *part[JOIN_SEGMENTS]
    int part_size[JOIN_SEGMENTS]

cdef struct Partial:  # a frame whose fragments are arriving
    uint32_t session
    int lane  # -1: unused
    uint64_t next_counter
    int next_index
    int size
    uint64_t ns
    uint8_t *data

cdef struct Parked:
    Parked *next
    uint64_t ns
    int32_t slot
    uint32_t holder  # Node.holder when it was parked
    int size  # of the frame
    uint8_t data[1]

cdef struct ParkedCount:
    uint32_t frames
    uint32_t bytes

cdef struct Worker:
    int id
    int workers
    Shared *shared
    int tap_fd
    int udp_fd
    int wake_fd
    int epoll_fd
    int vnet_hdr
    int lane  # of the frame that is being forwarded: whose nonces seal it
    uint64_t rekey_packets  # our share of what one key may seal
    uint64_t rekey_bytes
    uint32_t stop
    Scheduling scheduling
    uint64_t seen  # quiescence: the shared generation last passed; GONE while asleep
    uint64_t now  # CLOCK_BOOTTIME ns, taken once per burst
    uint64_t flood_tokens_ns
    uint64_t flood_source_ns[FLOOD_SOURCES]  # the same for each source MAC, by hash
    uint64_t told_ns  # rate limit of stranger events
    uint64_t counters[C_COUNT]
    uint64_t drops[D_COUNT]
    # events: single producer (this worker), single consumer (Python)
    uint64_t event_head
    uint64_t event_tail
    Event *events
    # commands: single producer (Python), single consumer (worker 0)
    uint64_t command_head
    uint64_t command_tail
    Command *commands
    EVP_MAC_CTX *mac[TOKENS_MAX]
    Train *trains
    int next_train
    Join joins[JOINS]
    Partial partials[PARTIALS]
    Parked *parked_first
    Parked *parked_last
    ParkedCount *parked_of  # by slot
    bint parked_leaving
    int parked_bytes
    uint64_t parked_checked
    Queues *queues  # what was read from the TAP and waits its turn
    uint8_t *scratch  # FRAME_MAX + headroom, for frames made here
    uint8_t *flood_buffer  # the same, for the copy that one peer of a flood gets
    uint8_t *rx_buffer
    mmsghdr rx[RX_MESSAGES]
    iovec rx_iov[RX_MESSAGES]
    sockaddr_in6 rx_name[RX_MESSAGES]
    uint8_t rx_control[RX_MESSAGES][256]
    uint64_t trace_head
    TraceEntry trace[TRACE]

cdef struct Token:
    uint32_t id
    uint8_t key[32]

cdef struct Tokens:
    int count
    Token item[TOKENS_MAX]

cdef struct Shared:
    uint32_t universe
    uint32_t universe_mask
    uint8_t ipv6_prefix[12]
    int has_ipv6
    int mtu
    uint16_t network
    int workers
    int tap_csum
    int tap_tso
    int tap_uso
    int realtime_share  # of a CPU, per 1,024, that each worker may take in the real-time class
    uint32_t *credits  # the map of the TAP's filter, see credits.pxd; NULL: it has none
    int steer_by_write  # no steering program: lanes.pxd keeps each flow on its queue and lane
    int event_fd
    uint32_t event_armed
    uint64_t generation
    uint64_t sessions_changed  # counts session_use and path_set, so that parked frames are looked at
    Tokens *tokens
    TrieNode *trie
    uint32_t trie_used
    Exceptions *exceptions
    Node *nodes
    int slot_top
    Session **sessions
    uint64_t station_ns  # a station that was not heard for so long is unknown
    uint64_t station_hold_ns  # one that moved stays where it is for so long
    uint32_t stations_lock  # of stations and mac_owners
    Station *stations
    MacOwner *mac_owners
    Capture *capture
    OSSL_PARAM mac_params[2]
    size_t mac_size
    int tap_fds[WORKERS_MAX]
    int udp_fds[WORKERS_MAX]
    uint32_t flow_queue[FLOW_QUEUES]  # by flow hash: its 24 bits | worker + 1, 0: never seen


cdef inline uint64_t trie_find(const Shared *s, uint32_t number) noexcept nogil:
    """The entry of the longest match, 0 when there is none."""
    cdef uint64_t entry, best = 0
    cdef uint32_t node = 0
    cdef int shift = 24
    while True:
        entry = acquire64(&s.trie[node].entry[(number >> shift) & 255])
        if entry & <uint64_t>0xFF00000000ULL:
            best = entry
        node = <uint32_t>(entry & 0xFFFFFFFFU)
        if node == 0 or shift == 0:
            return best
        shift -= 8


cdef inline int entry_slot(uint64_t entry) noexcept nogil:
    return <int>((entry >> 40) & 0xFFFF)


cdef inline int entry_prefix(uint64_t entry) noexcept nogil:
    return <int>((entry >> 32) & 0xFF) - 1


cdef inline bint entry_has_mac(uint64_t entry) noexcept nogil:
    return (entry >> 56) & 1


cdef inline int owner_of(const Shared *s, uint32_t number) noexcept nogil:
    return entry_slot(trie_find(s, number))


cdef inline uint32_t mac_place(uint64_t key) noexcept nogil:
    return <uint32_t>((key * <uint64_t>0x9E3779B97F4A7C15ULL) >> 47)


cdef inline bint in_universe(const Shared *s, uint32_t number) noexcept nogil:
    return (number & s.universe_mask) == s.universe


cdef inline bint in_ipv6_universe(const Shared *s, const uint8_t *address) noexcept nogil:
    return s.has_ipv6 and memcmp(address, s.ipv6_prefix, 12) == 0
