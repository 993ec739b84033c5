# cython: language_level=3
"""The fast path's face to Python (types and meaning: engine.pyi). Tables in, events out, nothing per packet.

Called from one thread, the event loop's; knows nothing of the rooms above it. It owns all memory the workers share and
frees what they may still see only after each has passed a quiescent point.
"""
import threading

cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from weave_router.fastpath.addresses cimport endpoint_of, family_of, fill_path, local_of
from weave_router.fastpath.aead cimport cipher_init
from weave_router.fastpath.credits cimport CREDITS_BYTES
from weave_router.fastpath.figures cimport (
    capture_begin,
    capture_take,
    counters_of,
    counters_sum,
    drops_of,
    session_figures_of,
    state_of,
    stations_of,
    trace_of,
)
from weave_router.fastpath.includes.linux cimport (
    EFD_CLOEXEC,
    EFD_NONBLOCK,
    MSG_DONTWAIT,
    close,
    errno,
    eventfd,
    iovec,
    msghdr,
    read,
    sendmsg,
    write,
)
from weave_router.fastpath.includes.native cimport (
    acquire64,
    exchange32,
    full_fence,
    release32,
    release64,
    release_ptr,
    spin_lock,
    spin_unlock,
)
from weave_router.fastpath.includes.openssl cimport (
    OPENSSL_cleanse,
    OSSL_PARAM_construct_end,
    OSSL_PARAM_construct_size_t,
)
from weave_router.fastpath.pool cimport pool_free, pool_new
from weave_router.fastpath.report cimport (
    EV_ANNOUNCE_,
    EV_CANDIDATE_,
    EV_CONFIRMED_,
    EV_CONTROL_,
    EV_GROUP_,
    EV_GSO_OFF_,
    EV_HANDSHAKE_,
    EV_NEED_SESSION_,
    EV_PATH_ERROR_,
    EV_REKEY_,
    EV_TOKEN_,
    EV_VERSION_,
)
from weave_router.fastpath.routes cimport Routes
from weave_router.fastpath.state cimport (
    COMMANDS,
    EVENT_BYTES,
    EVENTS,
    GROUPS_PER_NODE,
    MAC_OWNERS,
    NODE_ANSWER_,
    NODE_FLOOD_,
    NODES,
    PATH_NO_GSO_,
    SESSION_MAY_SEND_,
    SESSION_PLAINTEXT_,
    SESSION_SLOTS,
    SLOT_LOCAL_,
    SLOT_NONE_,
    STATIONS,
    TOKENS_MAX,
    TRIE_NODES_MAX,
    WORKERS_MAX,
    Capture,
    Command,
    Event,
    Exceptions,
    MacOwner,
    Node,
    Path,
    Session,
    Shared,
    Station,
    Tokens,
    TrieNode,
    Worker,
    entry_prefix,
    entry_slot,
    mac_place,
    trie_find,
)
from weave_router.fastpath.worker cimport worker_free, worker_new, worker_run

from weave_router.fastpath.aead import CIPHERS as _CIPHERS
from weave_router.fastpath.aead import CIPHERS_OPENSSL
from weave_router.fastpath.counters import COUNTERS as _COUNTERS
from weave_router.fastpath.counters import DROP_REASONS as _DROP_REASONS
from weave_router.fastpath.figures import SessionFigures as _SessionFigures, WorkerState as _WorkerState
from weave_router.limits import REKEY_BYTES, REKEY_PACKETS, STATION_HOLD_SECONDS, STATION_SECONDS

SUITE_AESGCM, SUITE_CHACHAPOLY = 1, 2
SLOT_NONE, SLOT_LOCAL = SLOT_NONE_, SLOT_LOCAL_
NODE_ANSWER, NODE_FLOOD = NODE_ANSWER_, NODE_FLOOD_
SESSION_PLAINTEXT, SESSION_MAY_SEND = SESSION_PLAINTEXT_, SESSION_MAY_SEND_
PATH_NO_GSO = PATH_NO_GSO_
EV_HANDSHAKE, EV_VERSION, EV_TOKEN, EV_CONTROL = EV_HANDSHAKE_, EV_VERSION_, EV_TOKEN_, EV_CONTROL_
EV_NEED_SESSION, EV_CONFIRMED, EV_CANDIDATE = EV_NEED_SESSION_, EV_CONFIRMED_, EV_CANDIDATE_
EV_REKEY, EV_PATH_ERROR, EV_GSO_OFF, EV_ANNOUNCE, EV_GROUP = EV_REKEY_, EV_PATH_ERROR_, EV_GSO_OFF_, EV_ANNOUNCE_, EV_GROUP_
CIPHERS = dict(_CIPHERS)
COUNTERS, DROP_REASONS, SessionFigures, WorkerState = _COUNTERS, _DROP_REASONS, _SessionFigures, _WorkerState


cdef void session_free(Session *s) noexcept:
    cdef int i
    for i in range(WORKERS_MAX):
        if s.seal[i].context != NULL:
            s.seal[i].wipe(&s.seal[i])
        if s.open[i].context != NULL:
            s.open[i].wipe(&s.open[i])
    for i in range(256):
        pool_free(s.lanes[i])
    pool_free(s)


@cython.no_gc_clear
cdef class Engine:
    cdef Shared *s
    cdef Worker *w[WORKERS_MAX]
    cdef int workers
    cdef int family
    cdef bint running
    cdef object threads
    cdef object limbo
    cdef object credits  # the map that the workers point into
    cdef object local_macs
    cdef object macs
    cdef Routes routes
    cdef int commands_lost
    cdef readonly int event_fd
    cdef readonly object refuse
    cdef readonly object ciphers

    def __cinit__(self, *, int workers, int mtu, object refuse=frozenset(), int network=0,
                  uint64_t rekey_packets=REKEY_PACKETS, uint64_t rekey_bytes=REKEY_BYTES,
                  double station_seconds=STATION_SECONDS, double station_hold_seconds=STATION_HOLD_SECONDS):
        cdef int i
        if not 1 <= workers <= WORKERS_MAX:
            raise ValueError(f"workers must be 1 to {WORKERS_MAX}")
        self.workers = workers
        self.refuse = frozenset(refuse)
        self.ciphers = dict(CIPHERS_OPENSSL if "ipsec_mb" in self.refuse else CIPHERS)
        self.threads = []
        self.limbo = []
        self.local_macs = {}
        self.macs = {}
        self.event_fd = -1
        self.s = <Shared *>pool_new(sizeof(Shared))
        if self.s == NULL:
            raise MemoryError
        self.s.trie = <TrieNode *>pool_new(TRIE_NODES_MAX * sizeof(TrieNode))
        self.s.nodes = <Node *>pool_new(NODES * sizeof(Node))
        self.s.sessions = <Session **>pool_new(SESSION_SLOTS * sizeof(Session *))
        self.s.stations = <Station *>pool_new(STATIONS * sizeof(Station))
        self.s.mac_owners = <MacOwner *>pool_new(MAC_OWNERS * sizeof(MacOwner))
        self.s.capture = <Capture *>pool_new(sizeof(Capture))
        self.event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        if self.s.trie == NULL or self.s.nodes == NULL or self.s.sessions == NULL or self.s.stations == NULL or \
                self.s.mac_owners == NULL or self.s.capture == NULL or self.event_fd < 0:
            raise MemoryError
        self.s.event_fd = self.event_fd
        self.s.event_armed = 1
        self.s.trie_used = 1
        self.s.slot_top = SLOT_LOCAL_
        self.s.workers = workers
        self.s.network = <uint16_t>network
        self.s.mtu = mtu
        self.s.universe_mask = 0xFFFFFFFF
        self.s.station_ns = <uint64_t>(station_seconds * 1e9)
        self.s.station_hold_ns = <uint64_t>(station_hold_seconds * 1e9)
        self.s.mac_size = 16
        self.s.mac_params[0] = OSSL_PARAM_construct_size_t("size", &self.s.mac_size)
        self.s.mac_params[1] = OSSL_PARAM_construct_end()
        self.routes = Routes()
        self.routes.shared = self.s
        for i in range(workers):
            self.w[i] = worker_new(self.s, i, workers)
            if self.w[i] == NULL:
                raise MemoryError
            self.w[i].rekey_packets = rekey_packets // <uint64_t>workers
            self.w[i].rekey_bytes = rekey_bytes // <uint64_t>workers

    def __dealloc__(self):
        cdef int i
        if self.s == NULL:
            return
        for i in range(self.workers):
            worker_free(self.w[i])
        for i in range(SESSION_SLOTS):
            if self.s.sessions != NULL and self.s.sessions[i] != NULL:
                session_free(self.s.sessions[i])
        for i in range(NODES):
            if self.s.nodes != NULL:
                pool_free(self.s.nodes[i].path)
        for _, kind, address in self.limbo:
            self._free(kind, address)
        pool_free(self.s.trie)
        pool_free(self.s.nodes)
        pool_free(self.s.sessions)
        pool_free(self.s.stations)
        pool_free(self.s.mac_owners)
        pool_free(self.s.capture)
        pool_free(self.s.exceptions)
        if self.s.tokens != NULL:
            OPENSSL_cleanse(self.s.tokens, sizeof(Tokens))
        pool_free(self.s.tokens)
        pool_free(self.s)
        if self.event_fd >= 0:
            close(self.event_fd)

    # -- reclamation ----------------------------------------------------------------------------------------------

    cdef _free(self, int kind, size_t address):
        if kind == 0:
            session_free(<Session *>address)
        elif kind == 2:
            OPENSSL_cleanse(<void *>address, sizeof(Tokens))
            pool_free(<void *>address)
        else:
            pool_free(<void *>address)

    cdef _retire(self, int kind, void *p):
        """Free p once no worker can still hold it. p is already unlinked."""
        if p == NULL:
            return
        release64(&self.s.generation, self.s.generation + 1)
        full_fence()
        self.limbo.append((self.s.generation, kind, <size_t>p))
        self._reap()

    cdef _reap(self):
        cdef uint64_t least = <uint64_t>-1, seen
        cdef int i
        if not self.limbo:
            return
        for i in range(self.workers):
            seen = acquire64(&self.w[i].seen)
            if seen < least:
                least = seen
        waiting = []
        for generation, kind, address in self.limbo:
            if generation <= least:
                self._free(kind, address)
            else:
                waiting.append((generation, kind, address))
        self.limbo = waiting

    cdef _wake(self):
        cdef uint64_t one = 1
        cdef int i
        for i in range(self.workers):
            write(self.w[i].wake_fd, &one, 8)

    # -- start and stop -------------------------------------------------------------------------------------------

    def start(self, object tap_fds, object udp_fds, *, int vnet_hdr, bint tap_csum, bint tap_tso, bint tap_uso,
              bint steered=True, object credits=None, double realtime=0):
        cdef int i
        cdef uint8_t[::1] words
        if self.running:
            raise ValueError("the fast path runs already")
        if len(tap_fds) != self.workers or len(udp_fds) != self.workers:
            raise ValueError("one TAP queue and one socket per worker")
        if credits is not None and len(credits) != CREDITS_BYTES:
            raise ValueError(f"{CREDITS_BYTES} bytes of credits")
        if vnet_hdr not in (10, 12):
            raise ValueError("virtio header of 10 or 12 bytes")
        self.family = family_of(udp_fds[0])
        self.s.tap_csum = tap_csum
        self.s.tap_tso = tap_tso and tap_csum
        self.s.tap_uso = tap_uso and tap_csum
        self.s.steer_by_write = not steered
        self.s.realtime_share = <int>(realtime * 1024)
        for i in range(self.workers):
            self.s.tap_fds[i] = self.w[i].tap_fd = tap_fds[i]
            self.s.udp_fds[i] = self.w[i].udp_fd = udp_fds[i]
            self.w[i].vnet_hdr = vnet_hdr
            self.w[i].stop = 0
        if credits is not None:
            self.credits = memoryview(credits)  # it cannot be unmapped before stop()
            words = self.credits
            words[:] = 0  # of an earlier start
            self.s.credits = <uint32_t *>&words[0]
        self.running = True
        for i in range(self.workers):
            thread = threading.Thread(target=self._run, args=(i,), name=f"worker-{i}", daemon=True)
            thread.start()
            self.threads.append(thread)

    def _run(self, int i):
        cdef Worker *w = self.w[i]
        with nogil:
            worker_run(w)

    def stop(self):
        cdef int i
        if not self.running:
            return
        for i in range(self.workers):
            release32(&self.w[i].stop, 1)
        self._wake()
        for thread in self.threads:
            thread.join()
        self.threads, self.running = [], False
        self.credits, self.s.credits = None, NULL
        self._reap()

    def events(self, int limit=512):
        cdef uint64_t drained, one = 1
        cdef int i
        cdef Worker *w
        read(self.event_fd, &drained, 8)
        exchange32(&self.s.event_armed, 1)
        found = []
        for i in range(self.workers):
            w = self.w[i]
            while w.event_tail < acquire64(&w.event_head):
                if len(found) >= limit:
                    write(self.event_fd, &one, 8)
                    return found
                found.append(self._event(&w.events[w.event_tail & (EVENTS - 1)]))
                release64(&w.event_tail, w.event_tail + 1)
        self._reap()
        return found

    cdef _event(self, Event *e):
        cdef int kind = e.kind
        if kind == EV_HANDSHAKE_:
            return (kind, e.data[:e.size], endpoint_of(&e.remote), local_of(e), e.a)
        if kind == EV_CONTROL_:
            return (kind, e.a, e.b, endpoint_of(&e.remote), local_of(e), e.data[:e.size], e.wire_size)
        if kind == EV_VERSION_ or kind == EV_TOKEN_:
            return (kind, e.a, endpoint_of(&e.remote))
        if kind == EV_CANDIDATE_:
            return (kind, e.a, endpoint_of(&e.remote), local_of(e))
        if kind == EV_PATH_ERROR_ or kind == EV_GSO_OFF_:
            return (kind, e.a, e.b)
        if kind == EV_ANNOUNCE_:
            return (kind, e.a, e.data[:e.size])
        if kind == EV_GROUP_:
            return (kind, e.data[:e.size], e.a == 1)
        return (kind, e.a)

    # -- who we are -----------------------------------------------------------------------------------------------

    def tokens_set(self, object keys):
        cdef Tokens *old = self.s.tokens
        cdef Tokens *fresh
        keys = list(keys)
        if len(keys) > TOKENS_MAX or any(len(key) != 32 for _, key in keys):
            raise ValueError(f"at most {TOKENS_MAX} tokens, 32 bytes each")
        fresh = <Tokens *>pool_new(sizeof(Tokens))
        if fresh == NULL:
            raise MemoryError
        for token_id, key in keys:
            fresh.item[fresh.count].id = token_id
            memcpy(fresh.item[fresh.count].key, <const uint8_t *><bytes>key, 32)
            fresh.count += 1
        release_ptr(&self.s.tokens, fresh)
        self._retire(2, old)

    def universe_set(self, object number, int prefix_len, bytes ipv6_prefix):
        if not 0 <= prefix_len <= 32 or len(ipv6_prefix) not in (0, 12):
            raise ValueError("prefix length 0 to 32, IPv6 prefix 12 bytes or none")
        self.s.universe_mask = <uint32_t>((0xFFFFFFFF << (32 - prefix_len)) & 0xFFFFFFFF) if prefix_len else 0
        self.s.universe = <uint32_t>number & self.s.universe_mask
        self.s.has_ipv6 = len(ipv6_prefix) == 12
        if ipv6_prefix:
            memcpy(self.s.ipv6_prefix, <const uint8_t *>ipv6_prefix, 12)

    def mtu_set(self, int mtu):
        self.s.mtu = mtu

    # -- nodes and addresses --------------------------------------------------------------------------------------

    cdef Node *_node(self, int slot) except NULL:
        if not SLOT_LOCAL_ < slot < NODES:
            raise ValueError(f"slot {slot} is not a peer's")
        return &self.s.nodes[slot]

    def node_set(self, int slot, *, int flags, int pod_mtu):
        cdef Node *n = self._node(slot)
        if pod_mtu < 576:
            raise ValueError("pod MTU below 576")
        n.pod_mtu = pod_mtu
        n.flags = flags
        if slot > self.s.slot_top:
            self.s.slot_top = slot

    def node_del(self, int slot):
        cdef Node *n = self._node(slot)
        cdef Path *path = n.path
        release_ptr(&n.session, <void *>NULL)
        release_ptr(&n.path, <void *>NULL)
        n.flags = 0
        n.groups = 0
        n.asked_ns = 0
        n.holder += 1
        self._forget_stations(slot)
        self._retire(1, path)

    cdef _forget_stations(self, int slot):
        """A frame for a station behind a node that left must not follow the slot to its next holder."""
        cdef int i
        with nogil:
            spin_lock(&self.s.stations_lock)
            for i in range(STATIONS):
                if self.s.stations[i].mac and <int>self.s.stations[i].slot == slot:
                    memset(&self.s.stations[i], 0, sizeof(Station))
            spin_unlock(&self.s.stations_lock)

    def route_set(self, object number, int prefix_len, int slot, bytes mac=b""):
        if not 0 <= prefix_len <= 32 or not 0 <= number <= 0xFFFFFFFF or not SLOT_LOCAL_ <= slot < NODES:
            raise ValueError("a route is a prefix of 0 to 32 bits and a slot")
        if mac and (prefix_len != 32 or len(mac) != 6):
            raise ValueError("a MAC goes with one address only")
        if prefix_len < 32 and number & (<uint64_t>0xFFFFFFFFU >> prefix_len):
            raise ValueError("host bits set in a prefix")
        self.routes.put(number, prefix_len, slot, bool(mac))
        if prefix_len == 32:
            self._exception(number, mac if slot == SLOT_LOCAL_ else b"")
            self._mac_owner(number, (int.from_bytes(mac, "big"), slot) if mac else None)

    def route_del(self, object number, int prefix_len):
        self.routes.remove(number, prefix_len)
        if prefix_len == 32:
            self._exception(number, b"")
            self._mac_owner(number, None)

    cdef _mac_owner(self, object number, object owner):
        """(MAC, slot) of this exception, or None; replaces what it had."""
        former = self.macs.pop(number, None)
        if owner is not None:
            self.macs[number] = owner
            self._mac_count(owner[0], owner[1], 1)
        if former is not None:
            self._mac_count(former[0], former[1], -1)

    cdef _mac_count(self, uint64_t key, uint32_t slot, int change):
        """One more or one less address of this node with this MAC. Where 16 places are full the check does without."""
        cdef uint32_t i, at = mac_place(key)
        cdef MacOwner *it
        cdef MacOwner *place = NULL
        with nogil:
            spin_lock(&self.s.stations_lock)
            for i in range(16):
                it = &self.s.mac_owners[(at + i) & (MAC_OWNERS - 1)]
                if it.mac == key and it.slot == slot:
                    place = it
                    break
                if it.mac == 0 and place == NULL and change > 0:
                    place = it
            if place != NULL and key:
                place.mac, place.slot = key, slot
                place.addresses += change
                if place.addresses == 0:
                    place.mac = 0
            spin_unlock(&self.s.stations_lock)

    cdef _exception(self, object number, bytes mac):
        """Keep the sorted table of local addresses with another MAC."""
        cdef Exceptions *old = self.s.exceptions
        cdef Exceptions *fresh
        cdef int i = 0
        if self.local_macs.get(number, b"") == mac:
            return
        if mac:
            self.local_macs[number] = mac
        else:
            del self.local_macs[number]
        fresh = <Exceptions *>pool_new(sizeof(Exceptions) + 12 * len(self.local_macs))
        if fresh == NULL:
            raise MemoryError
        for key in sorted(self.local_macs):
            fresh.item[i].number = key
            memcpy(&fresh.item[i].mac[0], <const uint8_t *><bytes>self.local_macs[key], 6)
            i += 1
        fresh.count = i
        release_ptr(&self.s.exceptions, fresh)
        self._retire(1, old)

    def groups_set(self, int slot, object macs):
        cdef Node *n = self._node(slot)
        cdef int i = 0
        macs = list(macs)
        if len(macs) > GROUPS_PER_NODE or any(len(mac) != 6 for mac in macs):
            raise ValueError(f"at most {GROUPS_PER_NODE} groups, 6 bytes each")
        n.groups = 0
        full_fence()
        for mac in macs:
            memcpy(&n.group[i][0], <const uint8_t *><bytes>mac, 6)
            i += 1
        full_fence()
        n.groups = i

    def lookup(self, object number):
        cdef uint64_t entry = trie_find(self.s, number)
        if entry == 0:
            return SLOT_NONE, 0
        return entry_slot(entry), entry_prefix(entry)

    # -- sessions and paths ---------------------------------------------------------------------------------------

    cdef Session *_session(self, object index) except NULL:
        cdef Session *session = self.s.sessions[<uint32_t>index & (SESSION_SLOTS - 1)]
        if session == NULL or session.index != <uint32_t>index:
            raise KeyError(f"no session {index}")
        return session

    def session_add(self, object session, int slot, *, int suite, bytes send_key, bytes recv_key, object remote_index,
                    int flags):
        cdef Session *fresh
        cdef uint32_t place = <uint32_t>session & (SESSION_SLOTS - 1)
        cdef int i
        cdef bint plain = "ipsec_mb" in self.refuse
        self._node(slot)
        if len(send_key) != 32 or len(recv_key) != 32 or session == 0:
            raise ValueError("keys of 32 bytes, an index other than 0")
        if self.s.sessions[place] != NULL:
            raise ValueError(f"the slot of session {session} is in use")
        fresh = <Session *>pool_new(sizeof(Session))
        if fresh == NULL:
            raise MemoryError
        fresh.index = session
        fresh.remote_index = remote_index
        fresh.slot = slot
        fresh.flags = flags
        for i in range(self.workers):
            if cipher_init(&fresh.seal[i], suite, send_key, True, plain) or \
                    cipher_init(&fresh.open[i], suite, recv_key, False, plain):
                session_free(fresh)
                raise ValueError(f"suite {suite} is not available")
        release_ptr(&self.s.sessions[place], fresh)

    def session_use(self, int slot, object session):
        cdef Node *n = self._node(slot)
        cdef Session *chosen = NULL
        if session:
            chosen = self._session(session)
            if chosen.slot != slot:
                raise ValueError(f"session {session} is another node's")
        release_ptr(&n.session, chosen)
        release64(&self.s.sessions_changed, self.s.sessions_changed + 1)
        self._wake()

    def session_may_send(self, object session):
        cdef Session *chosen = self._session(session)
        chosen.flags |= SESSION_MAY_SEND_

    def session_del(self, object session):
        cdef Session *gone = self._session(session)
        cdef Node *n = &self.s.nodes[gone.slot]
        release_ptr(&self.s.sessions[gone.index & (SESSION_SLOTS - 1)], <void *>NULL)
        if n.session == gone:
            release_ptr(&n.session, <void *>NULL)
        self._retire(0, gone)

    def session_figures(self, object session):
        return session_figures_of(self._session(session), self.workers)

    def path_set(self, int slot, *, object remote, object local, int epoch, int payload_max, int flags):
        cdef Node *n = self._node(slot)
        cdef Path *old = n.path
        cdef Path *fresh
        if not 0 <= epoch <= 15 or not 500 <= payload_max <= 65507:
            raise ValueError("epoch 0 to 15, payload 500 to 65,507 bytes")
        if not self.family:
            raise ValueError("start the fast path before its paths")
        fresh = <Path *>pool_new(sizeof(Path))
        if fresh == NULL:
            raise MemoryError
        try:
            fill_path(fresh, remote, local, self.family)
        except BaseException:
            pool_free(fresh)
            raise
        fresh.epoch = epoch
        fresh.payload_max = payload_max
        fresh.flags = flags
        fresh.gso_off = 1 if flags & PATH_NO_GSO_ or "udp_segment" in self.refuse else 0
        release_ptr(&n.path, fresh)
        release64(&self.s.sessions_changed, self.s.sessions_changed + 1)
        self._wake()
        self._retire(1, old)

    def path_del(self, int slot):
        cdef Node *n = self._node(slot)
        cdef Path *old = n.path
        release_ptr(&n.path, <void *>NULL)
        self._retire(1, old)

    def control_send(self, object session, bytes payload, *, object remote=None, object local="", int size=0):
        cdef Worker *w = self.w[0]
        cdef Command *command
        cdef Path *path = NULL
        cdef uint64_t one = 1
        if len(payload) > EVENT_BYTES - 64 or not 0 <= size <= 65507:
            raise ValueError("control message too long")
        self._session(session)
        if w.command_head - acquire64(&w.command_tail) >= COMMANDS:
            self.commands_lost += 1
            return
        if remote is not None:
            path = <Path *>pool_new(sizeof(Path))
            if path == NULL:
                raise MemoryError
            try:
                fill_path(path, remote, local, self.family)
            except BaseException:
                pool_free(path)
                raise
        command = &w.commands[w.command_head & (COMMANDS - 1)]
        command.session = session
        command.size = <uint32_t>len(payload)
        command.pad_to = size
        command.path = path
        memcpy(command.data, <const uint8_t *>payload, len(payload))
        release64(&w.command_head, w.command_head + 1)
        write(w.wake_fd, &one, 8)

    def datagram_send(self, bytes datagram, object remote, object local=""):
        cdef Path path
        cdef msghdr m
        cdef iovec iov
        memset(&path, 0, sizeof(path))
        memset(&m, 0, sizeof(m))
        if not self.family:
            raise ValueError("start the fast path before sending")
        fill_path(&path, remote, local, self.family)
        iov.iov_base = <void *><const uint8_t *>datagram
        iov.iov_len = len(datagram)
        m.msg_name = &path.remote
        m.msg_namelen = path.remote_size
        m.msg_iov = &iov
        m.msg_iovlen = 1
        if path.control_size:
            m.msg_control = path.control
            m.msg_controllen = path.control_size
        if sendmsg(self.s.udp_fds[0], &m, MSG_DONTWAIT) < 0:
            return errno
        return 0

    # -- figures --------------------------------------------------------------------------------------------------

    def worker_counters(self):
        return [counters_of(self.w[i]) for i in range(self.workers)]

    def counters(self):
        return counters_sum(self.worker_counters()) | {"commands_lost": self.commands_lost}

    def worker_states(self):
        return [state_of(self.w[i]) for i in range(self.workers)]

    def drops(self):
        return drops_of(self.s, self.w, self.workers)

    def stations(self):
        return stations_of(self.s)

    def trace(self):
        found = []
        for i in range(self.workers):
            found += trace_of(self.w[i])
        return sorted(found)

    def capture_start(self, *, object slot=None, object number=None, int snap=2048):
        capture_begin(self.s.capture, slot, number, snap)

    def capture_read(self):
        return capture_take(self.s.capture)

    def capture_stop(self):
        release32(&self.s.capture.on, 0)
        return self.s.capture.lost
