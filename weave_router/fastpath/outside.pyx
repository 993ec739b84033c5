# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""From the peers to the TAP: receive, authenticate, check against replay and foreign sources, join, write.

Called by the workers only, without the GIL. Every function named `_untrusted` reads bytes of a stranger; what comes
behind `open_untrusted` was sealed by a peer that proved membership, and is still checked for shape.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from weave_router.fastpath.aead cimport TAG_SIZE, Cipher
from weave_router.fastpath.counters cimport (
    C_CONTROL_RECEIVED,
    C_DATAGRAM_BYTES_RECEIVED,
    C_DATAGRAMS_RECEIVED,
    C_FRAMES_OUT,
    C_REASSEMBLED,
    C_RECEIVES,
    D_BAD_TAG,
    D_CONGESTION,
    D_FOREIGN_SOURCE,
    D_FRAGMENT_LOST,
    D_MALFORMED_OUTSIDE,
    D_PLAINTEXT_REFUSED,
    D_REPLAY,
    D_STRANGER,
    D_TOKEN,
    D_TRUNCATED,
    D_UNKNOWN_SESSION,
    D_VERSION,
)
from weave_router.fastpath.frame cimport (
    ETHERNET_HEADER,
    ETHERTYPE_ARP,
    PROTO_ICMPV6,
    Frame,
    ipv4_checksum,
    parse_untrusted,
)
from weave_router.fastpath.includes.linux cimport (
    AF_INET6,
    CMSG_DATA,
    CMSG_FIRSTHDR,
    CMSG_NXTHDR,
    IP_PKTINFO,
    IP_TOS,
    IPPROTO_IP,
    IPPROTO_IPV6,
    IPV6_PKTINFO,
    IPV6_TCLASS,
    MSG_DONTWAIT,
    MSG_TRUNC,
    SOL_UDP,
    UDP_GRO,
    cmsghdr,
    in6_pktinfo,
    in_pktinfo,
    msghdr,
    recvmmsg,
    sockaddr_in6,
)
from weave_router.fastpath.includes.native cimport (
    acquire_ptr,
    claim_ptr,
    exchange32,
    load_be16,
    load_be32,
    load_be64,
    relaxed64,
    set64,
    spin_lock,
    spin_unlock,
)
from weave_router.fastpath.includes.openssl cimport (
    CRYPTO_memcmp,
    EVP_MAC_final,
    EVP_MAC_init,
    EVP_MAC_update,
)
from weave_router.fastpath.join cimport join_or_write, joins_flush
from weave_router.fastpath.pool cimport pool_free, pool_new
from weave_router.fastpath.replay cimport Window, window_accept
from weave_router.fastpath.report cimport (
    EV_CANDIDATE_,
    EV_CONFIRMED_,
    EV_CONTROL_,
    EV_HANDSHAKE_,
    EV_TOKEN_,
    EV_VERSION_,
    capture,
    count,
    drop,
    drop_traced,
    event_begin,
    event_end,
    event_simple,
)
from weave_router.fastpath.state cimport (
    EVENT_BYTES,
    FRAME_MAX,
    MAC_OWNERS,
    PARTIALS,
    RX_BYTES,
    RX_MESSAGES,
    SESSION_PLAINTEXT_,
    SESSION_SLOTS,
    SLOT_LOCAL_,
    SLOT_NONE_,
    STATIONS,
    Event,
    Exceptions,
    MacOwner,
    Partial,
    Path,
    Session,
    Shared,
    Station,
    Tokens,
    TxLane,
    Worker,
    entry_has_mac,
    entry_slot,
    in_ipv6_universe,
    in_universe,
    mac_place,
    owner_of,
    trie_find,
)
from weave_router.fastpath.wire cimport (
    BUNDLE_ENTRY,
    DESCRIPTOR_SIZE,
    FLAG_CSUM_OPEN,
    FLAG_LAST,
    HANDSHAKE_MAX,
    HEAD_SIZE,
    HEADER_PLAINTEXT,
    HEADER_SIZE,
    KIND_BUNDLE,
    KIND_CONTROL,
    KIND_FRAGMENT,
    KIND_FRAME,
    KIND_TCP_SEGMENT,
    KIND_UDP_SEGMENT,
    MAC1_SIZE,
    PROTOCOL_VERSION,
    TYPE_DATA,
    TYPE_INITIATION,
    TYPE_RESPONSE,
)

cdef enum:
    TELL_NS = 100000000  # strangers with our shape are told to Python at most ten times a second
    CANDIDATE_NS = 100000000
    PARTIAL_NS = 1000000000

# One datagram's surroundings, filled once per message.
cdef struct Origin:
    sockaddr_in6 *remote
    uint32_t remote_size
    uint8_t local[16]
    int local_family
    int segment  # from UDP_GRO; 0: one datagram
    int ecn


# ---- what a peer may send ----------------------------------------------------------------------------------------


cdef inline bint foreign(const Shared *s, uint32_t number, int slot) noexcept nogil:
    """Does this number belong to another node than the one that speaks?"""
    cdef int owner = owner_of(s, number)
    return owner != SLOT_NONE_ and owner != slot


cdef bint foreign_mac(Shared *s, const uint8_t *mac, int slot) noexcept nogil:
    """Is this the MAC of other nodes' exceptions, and of none of this node's?"""
    cdef uint64_t key = (<uint64_t>load_be16(mac) << 32) | load_be32(mac + 2)
    cdef uint32_t i, at = mac_place(key)
    cdef MacOwner *owner
    cdef bint others = False
    spin_lock(&s.stations_lock)
    for i in range(16):
        owner = &s.mac_owners[(at + i) & (MAC_OWNERS - 1)]
        if owner.mac == key and key:
            others = <int>owner.slot != slot
            if not others:
                break
    spin_unlock(&s.stations_lock)
    return others


cdef bint foreign_source(Shared *s, const Frame *f, int slot) noexcept nogil:
    """Source MAC, ARP sender, ND target or source address of another node's block or exception."""
    cdef uint8_t *p = f.data + f.l3
    if f.data[6] == 0x0A and f.data[7] == 0x58:
        if foreign(s, load_be32(f.data + 8), slot):
            return True
    elif foreign_mac(s, f.data + 6, slot):
        return True
    if f.family == 4:
        return in_universe(s, load_be32(p + 12)) and foreign(s, load_be32(p + 12), slot)
    if f.family == 6:
        if in_ipv6_universe(s, p + 8) and foreign(s, load_be32(p + 20), slot):
            return True
        p = f.data + f.l4
        return f.protocol == PROTO_ICMPV6 and f.end >= f.l4 + 24 and p[0] == 136 and \
            in_ipv6_universe(s, p + 8) and foreign(s, load_be32(p + 20), slot)
    if f.ethertype == ETHERTYPE_ARP and f.size >= f.l3 + 28:
        return in_universe(s, load_be32(p + 14)) and foreign(s, load_be32(p + 14), slot)
    return False


cdef void learn(Worker *w, const uint8_t *mac, int slot) noexcept nogil:
    """Remember where a station outside the universe is; one that moved stays put for a while."""
    cdef Shared *s = w.shared
    cdef uint64_t key = (<uint64_t>load_be16(mac) << 32) | load_be32(mac + 2)
    cdef uint32_t i, at = <uint32_t>((key * <uint64_t>0x9E3779B97F4A7C15ULL) >> 52)
    cdef Station *station
    cdef Station *oldest = NULL
    if mac[0] & 1 or key == 0:
        return
    spin_lock(&s.stations_lock)
    for i in range(16):
        station = &s.stations[(at + i) & (STATIONS - 1)]
        if station.mac == key:
            if <int>station.slot != slot and w.now - station.moved_ns > s.station_hold_ns:
                station.slot = slot
                station.moved_ns = w.now
            if <int>station.slot == slot:
                station.seen_ns = w.now
            spin_unlock(&s.stations_lock)
            return
        if oldest == NULL or station.seen_ns < oldest.seen_ns:
            oldest = station
    oldest.mac = key
    oldest.slot = slot
    oldest.seen_ns = w.now
    oldest.moved_ns = w.now
    spin_unlock(&s.stations_lock)


cdef void restore_mac(const Shared *s, uint8_t *mac) noexcept nogil:
    """Rewrite a derived destination to the real MAC where the address is an exception of ours."""
    cdef uint32_t number = load_be32(mac + 2)
    cdef uint64_t entry = trie_find(s, number)
    cdef Exceptions *all_ = <Exceptions *>acquire_ptr(&s.exceptions)
    cdef int low = 0, high, middle
    if not entry_has_mac(entry) or entry_slot(entry) != SLOT_LOCAL_ or all_ == NULL:
        return
    high = all_.count - 1
    while low <= high:
        middle = (low + high) >> 1
        if all_.item[middle].number == number:
            memcpy(mac, &all_.item[middle].mac[0], 6)
            return
        if all_.item[middle].number < number:
            low = middle + 1
        else:
            high = middle - 1


cdef bint mark_congestion(Frame *f) noexcept nogil:
    """The outer header said CE: say so inside. False: an IP packet that is not ECN-capable, whose only signal is its
    loss (RFC 6040 section 4.2)."""
    cdef uint8_t *p = f.data + f.l3
    if f.family == 4:
        if not p[1] & 3:
            return False
        p[1] |= 3
        ipv4_checksum(p)
    elif f.family == 6:
        if not p[1] & 0x30:
            return False
        p[1] |= 0x30
    return True


cdef void deliver(Worker *w, Session *session, uint8_t *data, int size, int flags, const Origin *origin) noexcept nogil:
    """One inner frame of an authenticated peer, on its way to the TAP."""
    cdef Frame f
    cdef bint open
    parse_untrusted(&f, data, size)
    if size < ETHERNET_HEADER:
        drop_traced(w, D_MALFORMED_OUTSIDE, size)
        return
    open = flags & FLAG_CSUM_OPEN
    if open and f.payload == 0:
        drop_traced(w, D_MALFORMED_OUTSIDE, size)
        return
    if foreign_source(w.shared, &f, session.slot):
        drop_traced(w, D_FOREIGN_SOURCE, session.slot)
        return
    if not (data[6] == 0x0A and data[7] == 0x58):
        learn(w, data + 6, session.slot)
    if data[0] == 0x0A and data[1] == 0x58:
        restore_mac(w.shared, data)
    if origin.ecn == 3 and not mark_congestion(&f):
        drop_traced(w, D_CONGESTION, session.slot)
        return
    capture(w, 1, session.slot, &f)
    count(w, C_FRAMES_OUT, 1)
    join_or_write(w, &f, open)


# ---- fragments ---------------------------------------------------------------------------------------------------


cdef Partial *partial_for(Worker *w, uint32_t session, int lane, bint first) noexcept nogil:
    """The partial frame of this lane; for a first piece a place for one (the oldest gives way)."""
    cdef Partial *p
    cdef Partial *oldest = NULL
    cdef int i
    for i in range(PARTIALS):
        p = &w.partials[i]
        if p.lane == lane and p.session == session:
            return p
        if oldest == NULL or p.lane < 0 or (oldest.lane >= 0 and p.ns < oldest.ns):
            oldest = p
    if not first:
        return NULL
    if oldest.lane >= 0:
        drop_traced(w, D_FRAGMENT_LOST, oldest.session)
    oldest.lane = -1
    if oldest.data == NULL:
        oldest.data = <uint8_t *>pool_new(FRAME_MAX)
        if oldest.data == NULL:
            return NULL
    oldest.session = session
    return oldest


cdef void fragment(Worker *w, Session *session, int lane, uint64_t counter, const uint8_t *descriptor, uint8_t *data,
                   int size, const Origin *origin) noexcept nogil:
    """Pieces of one frame have consecutive counters in one lane; anything else in between gives the frame up."""
    cdef int index = descriptor[1], flags = descriptor[4]
    cdef Partial *p = partial_for(w, session.index, lane, index == 0)
    if p == NULL:
        drop_traced(w, D_FRAGMENT_LOST, session.index)
        return
    if index == 0:
        if p.lane >= 0:
            drop_traced(w, D_FRAGMENT_LOST, session.index)
        p.lane = lane
        p.next_counter = counter
        p.next_index = 0
        p.size = 0
    if p.lane < 0 or p.next_counter != counter or p.next_index != index or p.size + size > FRAME_MAX:
        p.lane = -1
        drop_traced(w, D_FRAGMENT_LOST, session.index)
        return
    memcpy(p.data + p.size, data, size)
    p.size += size
    p.next_counter += 1
    p.next_index += 1
    p.ns = w.now
    if flags & FLAG_LAST:
        p.lane = -1
        count(w, C_REASSEMBLED, 1)
        deliver(w, session, p.data, p.size, flags, origin)
        joins_flush(w)  # borrowed: the next frame of this lane overwrites p.data


# ---- datagrams ---------------------------------------------------------------------------------------------------


cdef void fill_event(Event *event, const Origin *origin) noexcept nogil:
    memcpy(&event.remote, origin.remote, origin.remote_size if origin.remote_size < sizeof(sockaddr_in6) else sizeof(sockaddr_in6))
    memcpy(event.local, origin.local, 16)
    event.local_family = <uint8_t>origin.local_family


cdef void bundle(Worker *w, Session *session, uint8_t *data, int size, const Origin *origin) noexcept nogil:
    cdef int at = 0, length
    while at + BUNDLE_ENTRY <= size:
        length = load_be16(data + at)
        if length < ETHERNET_HEADER or at + BUNDLE_ENTRY + length > size:
            drop_traced(w, D_MALFORMED_OUTSIDE, length)
            return
        deliver(w, session, data + at + BUNDLE_ENTRY, length, data[at + 2], origin)
        at += BUNDLE_ENTRY + length
    if at != size:
        drop_traced(w, D_MALFORMED_OUTSIDE, size)


cdef void control(Worker *w, Session *session, int lane, const uint8_t *descriptor, const uint8_t *data, int size,
                  int wire_size, const Origin *origin) noexcept nogil:
    cdef int length = load_be16(descriptor + 2)
    cdef Event *event
    count(w, C_CONTROL_RECEIVED, 1)
    if length > size or length > EVENT_BYTES:
        drop_traced(w, D_MALFORMED_OUTSIDE, length)
        return
    if length == 0:  # keepalive
        return
    event = event_begin(w, EV_CONTROL_, session.index, lane)
    if event == NULL:
        return
    fill_event(event, origin)
    memcpy(event.data, data, length)
    event.size = length
    event.wire_size = wire_size
    event_end(w)


cdef inline bint same_address(const Path *path, const Origin *origin) noexcept nogil:
    """Port and address of the path's peer?"""
    if path == NULL or path.remote.sin6_family != origin.remote.sin6_family:
        return False
    if path.remote.sin6_port != origin.remote.sin6_port:
        return False
    if path.remote.sin6_family == AF_INET6:
        return memcmp(&path.remote.sin6_addr, &origin.remote.sin6_addr, 16) == 0
    return memcmp(<uint8_t *>&path.remote + 4, <uint8_t *>origin.remote + 4, 4) == 0


cdef void heard(Worker *w, Session *session, int lane, int size, const Origin *origin) noexcept nogil:
    """Book an authenticated, fresh datagram: liveness, first use, and the path when the lane speaks for it."""
    cdef TxLane *figures = &session.tx[w.id]
    cdef int epoch = lane >> 4
    cdef Event *event
    set64(&figures.rx_packets, figures.rx_packets + 1)
    set64(&figures.rx_bytes, figures.rx_bytes + <uint64_t>size)
    set64(&session.last_rx_ns, w.now)
    if relaxed64(&session.first_unanswered_ns):
        set64(&session.first_unanswered_ns, 0)
    if session.confirmed == 0 and exchange32(&session.confirmed, 1) == 0:
        session.rx_epoch = epoch  # a session that replaced another begins at the epoch its path has reached
        event_simple(w, EV_CONFIRMED_, session.index, 0)
    if lane & 15:
        return
    if ((epoch - <int>session.rx_epoch) & 15) in (1, 2, 3, 4, 5, 6, 7):
        session.rx_epoch = epoch
    if epoch != <int>session.rx_epoch or w.now - session.candidate_ns < CANDIDATE_NS:
        return
    if same_address(<Path *>acquire_ptr(&w.shared.nodes[session.slot].path), origin):
        return
    session.candidate_ns = w.now
    event = event_begin(w, EV_CANDIDATE_, session.index, 0)
    if event != NULL:
        fill_event(event, origin)
        event_end(w)


cdef Window *lane_window(Session *session, int lane) noexcept nogil:
    """The lane's window, made at the first authenticated datagram (a stranger cannot make us allocate)."""
    cdef Window *window = <Window *>acquire_ptr(&session.lanes[lane])
    cdef Window *fresh
    if window != NULL:
        return window
    fresh = <Window *>pool_new(sizeof(Window))
    if fresh == NULL:
        return NULL
    if not claim_ptr(<void **>&session.lanes[lane], fresh):
        pool_free(fresh)  # another worker heard the lane at the same time; two windows would let a replay pass
    return <Window *>acquire_ptr(&session.lanes[lane])


cdef int open_untrusted(Worker *w, Session *session, uint8_t *data, int size, const Origin *origin) noexcept nogil:
    """Authenticate one data datagram in place: size of the body behind the header, or -1 (counted)."""
    cdef Cipher *cipher = &session.open[w.id]
    cdef uint8_t nonce[12]
    cdef int lane = data[8], body = size - HEADER_SIZE - TAG_SIZE
    cdef Window *window
    if data[1] & HEADER_PLAINTEXT:
        body = size - HEADER_SIZE
        if not session.flags & SESSION_PLAINTEXT_ or body < DESCRIPTOR_SIZE or data[HEADER_SIZE] == KIND_CONTROL or \
                not same_address(<Path *>acquire_ptr(&w.shared.nodes[session.slot].path), origin):
            drop_traced(w, D_PLAINTEXT_REFUSED, session.index)
            return -1
        session.tx[w.id].rx_packets += 1
        session.tx[w.id].rx_bytes += <uint64_t>size
        return body
    if body < DESCRIPTOR_SIZE:
        drop(w, D_BAD_TAG)
        return -1
    memset(nonce, 0, 4)
    memcpy(nonce + 4, data + 8, 8)
    if cipher.open(cipher, nonce, data, data + HEADER_SIZE, body, data + HEADER_SIZE) != 0:
        session.tx[w.id].rx_failed += 1
        drop_traced(w, D_BAD_TAG, session.index)
        return -1
    window = lane_window(session, lane)
    if window == NULL or not window_accept(window, load_be64(data + 8) & <uint64_t>0x00FFFFFFFFFFFFFFULL):
        session.tx[w.id].rx_failed += 1
        drop_traced(w, D_REPLAY, session.index)
        return -1
    heard(w, session, lane, size, origin)
    return body


cdef void data_untrusted(Worker *w, uint8_t *data, int size, const Origin *origin) noexcept nogil:
    cdef uint32_t index = load_be32(data + 4)
    cdef Session *session = <Session *>acquire_ptr(&w.shared.sessions[index & (SESSION_SLOTS - 1)])
    cdef uint8_t *descriptor = data + HEADER_SIZE
    cdef uint8_t *body = descriptor + DESCRIPTOR_SIZE
    cdef int n, kind
    if session == NULL or session.index != index or load_be16(data + 2) != w.shared.network or \
            data[1] & ~HEADER_PLAINTEXT:
        drop(w, D_UNKNOWN_SESSION)
        return
    n = open_untrusted(w, session, data, size, origin)
    if n < 0:
        return
    n -= DESCRIPTOR_SIZE
    kind = descriptor[0]
    if kind != KIND_CONTROL and relaxed64(&session.unanswered_rx_ns) == 0:
        set64(&session.unanswered_rx_ns, w.now)
    if kind == KIND_FRAME or kind == KIND_TCP_SEGMENT or kind == KIND_UDP_SEGMENT:
        deliver(w, session, body, n, descriptor[4], origin)
    elif kind == KIND_BUNDLE:
        bundle(w, session, body, n, origin)
    elif kind == KIND_FRAGMENT:
        fragment(w, session, data[8], load_be64(data + 8) & <uint64_t>0x00FFFFFFFFFFFFFFULL, descriptor, body, n, origin)
    elif kind == KIND_CONTROL:
        control(w, session, data[8], descriptor, body, n, size, origin)
    else:
        drop_traced(w, D_MALFORMED_OUTSIDE, kind)


cdef bint tell(Worker *w) noexcept nogil:
    if w.now - w.told_ns < TELL_NS:
        return False
    w.told_ns = w.now
    return True


cdef void stranger_event(Worker *w, uint32_t kind, uint32_t value, const Origin *origin) noexcept nogil:
    cdef Event *event
    if not tell(w):
        return
    event = event_begin(w, kind, value, 0)
    if event != NULL:
        fill_event(event, origin)
        event_end(w)


cdef void handshake_untrusted(Worker *w, uint8_t *data, int size, const Origin *origin) noexcept nogil:
    """Head: type u8 | version u8 | suite u8 | reserved u8 | token id u32 | ... ; the last 16 bytes are mac1. Without a
    valid one: one counter, and not one byte back."""
    cdef Tokens *tokens = <Tokens *>acquire_ptr(&w.shared.tokens)
    cdef uint32_t token = load_be32(data + 4)
    cdef uint8_t mac[MAC1_SIZE]
    cdef size_t n = 0
    cdef int i
    cdef Event *event
    if size < HEAD_SIZE + MAC1_SIZE or size > HANDSHAKE_MAX or tokens == NULL:
        drop(w, D_STRANGER)
        return
    for i in range(tokens.count):
        if tokens.item[i].id == token:
            break
    else:
        drop(w, D_TOKEN)
        stranger_event(w, EV_TOKEN_, token, origin)
        return
    if EVP_MAC_init(w.mac[0], tokens.item[i].key, 32, w.shared.mac_params) != 1 or \
            EVP_MAC_update(w.mac[0], data, size - MAC1_SIZE) != 1 or \
            EVP_MAC_final(w.mac[0], mac, &n, MAC1_SIZE) != 1 or n != MAC1_SIZE or \
            CRYPTO_memcmp(mac, data + size - MAC1_SIZE, MAC1_SIZE) != 0:
        drop(w, D_STRANGER)
        return
    if data[1] != PROTOCOL_VERSION:
        drop(w, D_VERSION)
        stranger_event(w, EV_VERSION_, data[1], origin)
        return
    event = event_begin(w, EV_HANDSHAKE_, token, 0)
    if event == NULL:
        return
    fill_event(event, origin)
    memcpy(event.data, data, size)
    event.size = size
    event_end(w)


cdef inline void datagram_untrusted(Worker *w, uint8_t *data, int size, const Origin *origin) noexcept nogil:
    count(w, C_DATAGRAMS_RECEIVED, 1)
    count(w, C_DATAGRAM_BYTES_RECEIVED, size)
    if size >= HEADER_SIZE + DESCRIPTOR_SIZE and data[0] == TYPE_DATA:
        data_untrusted(w, data, size, origin)
    elif size >= HEAD_SIZE and (data[0] == TYPE_INITIATION or data[0] == TYPE_RESPONSE):
        handshake_untrusted(w, data, size, origin)
    else:
        drop(w, D_STRANGER)


cdef void read_control(msghdr *m, Origin *origin) noexcept nogil:
    cdef cmsghdr *c = CMSG_FIRSTHDR(m)
    origin.segment = 0
    origin.ecn = 0
    origin.local_family = 0
    while c != NULL:
        if c.cmsg_level == SOL_UDP and c.cmsg_type == UDP_GRO:
            origin.segment = (<int *>CMSG_DATA(c))[0]
        elif c.cmsg_level == IPPROTO_IP and c.cmsg_type == IP_PKTINFO:
            origin.local_family = 4
            memcpy(origin.local, &(<in_pktinfo *>CMSG_DATA(c)).ipi_addr, 4)
        elif c.cmsg_level == IPPROTO_IPV6 and c.cmsg_type == IPV6_PKTINFO:
            origin.local_family = 6
            memcpy(origin.local, &(<in6_pktinfo *>CMSG_DATA(c)).ipi6_addr, 16)
        elif c.cmsg_level == IPPROTO_IP and c.cmsg_type == IP_TOS:
            origin.ecn = CMSG_DATA(c)[0] & 3
        elif c.cmsg_level == IPPROTO_IPV6 and c.cmsg_type == IPV6_TCLASS:
            origin.ecn = (<int *>CMSG_DATA(c))[0] & 3
        c = CMSG_NXTHDR(m, c)


cdef int outside_burst(Worker *w) noexcept nogil:
    """Receive up to RX_MESSAGES messages (each a train of UDP_GRO), open them in place, write what they carried."""
    cdef int received, i, at, size, segment
    cdef msghdr *m
    cdef uint8_t *data
    cdef Origin origin
    for i in range(RX_MESSAGES):
        m = &w.rx[i].msg_hdr
        m.msg_name = &w.rx_name[i]
        m.msg_namelen = sizeof(sockaddr_in6)
        m.msg_iov = &w.rx_iov[i]
        m.msg_iovlen = 1
        m.msg_control = &w.rx_control[i][0]
        m.msg_controllen = 256
        m.msg_flags = 0
        w.rx_iov[i].iov_base = w.rx_buffer + i * RX_BYTES
        w.rx_iov[i].iov_len = RX_BYTES
    received = recvmmsg(w.udp_fd, w.rx, RX_MESSAGES, MSG_DONTWAIT, NULL)
    if received <= 0:
        return 0
    for i in range(received):
        m = &w.rx[i].msg_hdr
        size = <int>w.rx[i].msg_len
        count(w, C_RECEIVES, 1)
        if m.msg_flags & MSG_TRUNC:
            drop(w, D_TRUNCATED)
            continue
        origin.remote = &w.rx_name[i]
        origin.remote_size = m.msg_namelen
        read_control(m, &origin)
        segment = origin.segment if origin.segment > 0 else size
        data = w.rx_buffer + i * RX_BYTES
        at = 0
        while at < size:
            datagram_untrusted(w, data + at, segment if size - at > segment else size - at, &origin)
            at += segment
        if size == 0:
            drop(w, D_STRANGER)
    joins_flush(w)
    return received
