# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""From the TAP to the peers: read, look up, answer or forward, cut superframes.

Called by the workers only, without the GIL. Everything it decides stands in the tables of state.pxd; a miss is handed to
Python once and the frame is parked. `oracle.py` says the same in plain Python and the tests hold the two together.
"""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from weave_router.fastpath.answers cimport (
    arp_inside,
    group_report,
    is_derived,
    is_multicast,
    nd_inside,
    too_big,
)
from weave_router.fastpath.counters cimport (
    C_CHECKSUMS_COMPLETED,
    C_FLOODED,
    C_FRAMES_IN,
    C_MSS_CLAMPED,
    C_PARKED,
    C_QUEUED,
    C_SEGMENTS_CUT,
    C_TAP_READ_BYTES,
    C_TAP_READS,
    D_FLOOD_LIMIT,
    D_LINK_LOCAL,
    D_LOCAL_DESTINATION,
    D_MALFORMED_INSIDE,
    D_NO_LISTENER,
    D_NO_OWNER,
    D_NO_SESSION,
    D_PARK_FULL,
    D_QUEUE,
    D_TOO_BIG,
)
from weave_router.fastpath.credits cimport credits_sweep
from weave_router.fastpath.frame cimport (
    ETHERNET_HEADER,
    ETHERTYPE_ARP,
    PROTO_ICMPV6,
    PROTO_IGMP,
    PROTO_TCP,
    PROTO_UDP,
    TCP_CWR,
    TCP_FIN,
    TCP_PSH,
    TCP_SYN,
    Frame,
    checksum_offset,
    complete_checksum,
    flow_hash,
    ipv4_checksum,
    parse_untrusted,
)
from weave_router.fastpath.includes.linux cimport EAGAIN, EINTR, errno, read
from weave_router.fastpath.includes.native cimport (
    csum_fold,
    load_be16,
    load_be32,
    load_csum,
    relaxed64,
    set64,
    spin_lock,
    spin_unlock,
    store_be16,
    store_be32,
    store_csum,
)
from weave_router.fastpath.lanes cimport lane_of
from weave_router.fastpath.pool cimport pool_free, pool_new
from weave_router.fastpath.queues cimport (
    Queued,
    queue_enough,
    queue_over,
    queue_place,
    queue_put,
    queue_release,
    queue_take,
    queue_victim,
)
from weave_router.fastpath.report cimport (
    EV_NEED_SESSION_,
    capture,
    count,
    drop,
    drop_traced,
    event_simple,
)
from weave_router.fastpath.state cimport (
    FRAME_MAX,
    GROUPS_PER_NODE,
    NODE_FLOOD_,
    SLOT_LOCAL_,
    SLOT_NONE_,
    STATIONS,
    Node,
    Parked,
    ParkedCount,
    Shared,
    Station,
    Worker,
    owner_of,
)
from weave_router.fastpath.transmit cimport HEADROOM, frame_budget, transmit_frame
from weave_router.fastpath.wire cimport (
    FLAG_CSUM_OPEN,
    KIND_FRAME,
    KIND_TCP_SEGMENT,
    KIND_UDP_SEGMENT,
)

cdef enum:
    READ_FRAMES = 1024  # read ahead per burst
    READ_WASTED = 45056  # bytes that gave way, likewise: a frame read only to be dropped costs what sealing it would
    SERVE_FRAMES = 64  # sealed per burst
    SERVE_BYTES = 90112  # 64 frames of 1,368 bytes or two superframes; more is a sparse frame's wait, and no faster
    FRAME_OFFSET = 128  # from a Queued to its frame, HEADROOM included
    NOTHING = -1
    FAILED = -2

    # virtio_net_hdr, native byte order (here little-endian)
    VNET_NEEDS_CSUM = 1
    GSO_NONE = 0
    GSO_TCPV4 = 1
    GSO_TCPV6 = 4
    GSO_UDP_L4 = 5
    GSO_ECN = 0x80

    PARK_FRAMES = 64  # per node
    PARK_BYTES = 262144
    PARK_TOTAL = 4194304
    PARK_NS = 3000000000
    ASK_NS = 200000000  # ask for the same session at most this often
    FLOOD_INTERVAL_NS = 500000  # 2,000 flooded frames a second and worker
    FLOOD_BURST_NS = 100000000
    FLOOD_SOURCE_INTERVAL_NS = 1000000  # 1,000 of one source, and 100 at once: it leaves half to the others
    FLOOD_PEERS = 64


# ---- floods ------------------------------------------------------------------------------------------------------


cdef bint node_wants(const Node *n, const uint8_t *mac) noexcept nogil:
    cdef uint32_t i
    if n.flags & NODE_FLOOD_:
        return True
    for i in range(n.groups if n.groups < GROUPS_PER_NODE else GROUPS_PER_NODE):
        if memcmp(&n.group[i][0], mac, 6) == 0:
            return True
    return False


cdef bint take_token(uint64_t *bucket, uint64_t now, uint64_t interval_ns) noexcept nogil:
    if bucket[0] + FLOOD_BURST_NS < now:
        bucket[0] = now - FLOOD_BURST_NS
    if bucket[0] + interval_ns > now:
        return False
    bucket[0] += interval_ns
    return True


cdef bint flood_allowed(Worker *w, const uint8_t *source) noexcept nogil:
    """Token buckets: of this source (guards hold a pod's port to its one MAC, so that stands for the port), then of
    the worker: 2,000 a second, burst 200."""
    cdef uint32_t at = (load_be32(source + 2) * <uint32_t>0x9E3779B1) >> 24
    return (take_token(&w.flood_source_ns[at], w.now, FLOOD_SOURCE_INTERVAL_NS)
            and take_token(&w.flood_tokens_ns, w.now, FLOOD_INTERVAL_NS))


cdef void flood(Worker *w, const Frame *f, const uint8_t *vnet) noexcept nogil:
    """Send to every peer that asks for this destination, at most FLOOD_PEERS of them."""
    cdef int slot, sent = 0
    cdef uint8_t *copy = w.flood_buffer + HEADROOM
    cdef uint8_t header[16]
    if not flood_allowed(w, f.data + 6):
        drop_traced(w, D_FLOOD_LIMIT, 0)
        return
    for slot in range(2, w.shared.slot_top + 1):
        if not node_wants(&w.shared.nodes[slot], f.data):
            continue
        memcpy(copy, f.data, f.size)  # forwarding cuts and seals in place: each peer needs the frame anew
        memcpy(header, vnet, w.vnet_hdr)
        to_node(w, slot, copy, f.size, header)
        sent += 1
        if sent == FLOOD_PEERS:
            break
    if sent == 0:
        drop(w, D_NO_LISTENER)
        return
    count(w, C_FLOODED, 1)


cdef int station_slot(Worker *w, const uint8_t *mac) noexcept nogil:
    cdef Shared *s = w.shared
    cdef uint64_t key = (<uint64_t>load_be16(mac) << 32) | load_be32(mac + 2)
    cdef uint32_t i, at = <uint32_t>((key * <uint64_t>0x9E3779B97F4A7C15ULL) >> 52)
    cdef int slot = SLOT_NONE_
    cdef Station *station
    spin_lock(&s.stations_lock)
    for i in range(16):
        station = &s.stations[(at + i) & (STATIONS - 1)]
        if station.mac == key:
            if w.now - station.seen_ns < s.station_ns:
                slot = station.slot
            break
    spin_unlock(&s.stations_lock)
    return slot


# ---- to one node -------------------------------------------------------------------------------------------------


cdef void park(Worker *w, int slot, const uint8_t *data, int size, const uint8_t *vnet) noexcept nogil:
    """Keep the frame until the node has a session and a path; ask for them."""
    cdef Node *n = &w.shared.nodes[slot]
    cdef ParkedCount *waiting = &w.parked_of[slot]
    cdef Parked *p
    cdef int cost = size + <int>sizeof(Parked) + HEADROOM
    if w.now - relaxed64(&n.asked_ns) >= ASK_NS:
        set64(&n.asked_ns, w.now)
        event_simple(w, EV_NEED_SESSION_, slot, 0)
    if waiting.frames >= PARK_FRAMES or <int>waiting.bytes + size > PARK_BYTES or w.parked_bytes + cost > PARK_TOTAL:
        drop_traced(w, D_PARK_FULL, slot)
        return
    p = <Parked *>pool_new(cost)
    if p == NULL:
        drop(w, D_PARK_FULL)
        return
    p.next = NULL
    p.ns = w.now
    p.slot = slot
    p.holder = n.holder
    p.size = size
    memcpy(p.data, vnet, w.vnet_hdr)
    memcpy(p.data + HEADROOM, data, size)
    if w.parked_last == NULL:
        w.parked_first = p
    else:
        w.parked_last.next = p
    w.parked_last = p
    waiting.frames += 1
    waiting.bytes += <uint32_t>size
    w.parked_bytes += cost
    count(w, C_PARKED, 1)


cdef void inside_parked(Worker *w) noexcept nogil:
    """Send what has a session by now, in order; give up what waited 3 s or whose node has left its slot."""
    cdef Parked *p = w.parked_first
    cdef Parked *following
    cdef bint gone
    w.parked_leaving = True
    w.parked_first = NULL
    w.parked_last = NULL
    while p != NULL:
        following = p.next
        p.next = NULL
        gone = p.holder != w.shared.nodes[p.slot].holder
        if not gone and frame_budget(w, p.slot) <= 0 and w.now - p.ns < PARK_NS:
            if w.parked_last == NULL:
                w.parked_first = p
            else:
                w.parked_last.next = p
            w.parked_last = p
        else:
            w.parked_of[p.slot].frames -= 1
            w.parked_of[p.slot].bytes -= <uint32_t>p.size
            w.parked_bytes -= p.size + <int>sizeof(Parked) + HEADROOM
            if not gone and frame_budget(w, p.slot) > 0:
                to_node(w, p.slot, p.data + HEADROOM, p.size, p.data)
            else:
                drop_traced(w, D_NO_SESSION, p.slot)
            pool_free(p)
        p = following
    w.parked_leaving = False


cdef inline int inner_tos(const Frame *f) noexcept nogil:
    """ECN bits of the inner packet, for the outer one (RFC 6040 section 4.1)."""
    if f.family == 4:
        return f.data[f.l3 + 1] & 3
    if f.family == 6:
        return (load_be16(f.data + f.l3) >> 4) & 3
    return 0


cdef void clamp_mss(Worker *w, const Frame *f, int mtu, bint open) noexcept nogil:
    """Lower the MSS option of a SYN to what the path carries in one piece (RFC 6691)."""
    cdef int at = f.l4 + 20, kind, n
    cdef int most = mtu - (40 if f.family == 4 else 60)
    cdef uint16_t old
    cdef uint64_t total
    if not f.data[f.l4 + 13] & TCP_SYN:
        return
    while at + 1 < f.payload:
        kind = f.data[at]
        if kind == 0:
            return
        if kind == 1:
            at += 1
            continue
        n = f.data[at + 1]
        if n < 2 or at + n > f.payload:
            return
        if kind == 2 and n == 4:
            if load_be16(f.data + at + 2) <= most:
                return
            if open:
                store_be16(f.data + at + 2, <uint16_t>most)
            elif (at - f.l4) & 1 == 0:
                # RFC 1624: HC' = ~(~HC + ~m + m')
                old = load_csum(f.data + at + 2)
                store_be16(f.data + at + 2, <uint16_t>most)
                total = <uint64_t>(~load_csum(f.data + f.l4 + 16) & 0xFFFF) + (~old & 0xFFFF) + load_csum(f.data + at + 2)
                store_csum(f.data + f.l4 + 16, <uint16_t>(~csum_fold(total) & 0xFFFF))
            else:
                return
            count(w, C_MSS_CLAMPED, 1)
            return
        at += n


cdef bint may_fragment(const Frame *f) noexcept nogil:
    return f.family == 4 and not load_be16(f.data + f.l3 + 6) & 0x4000


cdef void cut(Worker *w, int slot, const Frame *f, int gso, int tos) noexcept nogil:
    """Cut a TCP or UDP superframe into self-contained frames of `gso` payload bytes (the kernel's tcp_gso_segment and
    __udp_gso_segment). The headers of segment k are written over the end of segment k - 1, which is already sealed."""
    cdef uint8_t header[256]
    cdef int head = f.payload, at = f.payload, index = 0, piece, tcp_flags = 0
    cdef bint tcp = f.protocol == PROTO_TCP, last
    cdef uint32_t sequence = 0
    cdef int ip_id = 0
    cdef uint8_t *p
    memcpy(header, f.data, head)
    if tcp:
        sequence = load_be32(header + f.l4 + 4)
        tcp_flags = header[f.l4 + 13]
    if f.family == 4:
        ip_id = load_be16(header + f.l3 + 4)
    while at < f.end:
        piece = gso if f.end - at > gso else f.end - at
        last = at + piece == f.end
        p = f.data + at - head
        memcpy(p, header, head)
        if f.family == 4:
            store_be16(p + f.l3 + 2, <uint16_t>(head - f.l3 + piece))
            store_be16(p + f.l3 + 4, <uint16_t>(ip_id + index))
            ipv4_checksum(p + f.l3)
        else:
            store_be16(p + f.l3 + 4, <uint16_t>(head - f.l3 - 40 + piece))
        if tcp:
            store_be32(p + f.l4 + 4, sequence + <uint32_t>(at - f.payload))
            p[f.l4 + 13] = <uint8_t>(tcp_flags & ~((0 if last else TCP_FIN | TCP_PSH) | (TCP_CWR if index else 0)))
        else:
            store_be16(p + f.l4 + 4, <uint16_t>(8 + piece))
        transmit_frame(w, slot, p, head + piece, FLAG_CSUM_OPEN, KIND_TCP_SEGMENT if tcp else KIND_UDP_SEGMENT,
                       index & 255, gso, tos)
        at += piece
        index += 1
    count(w, C_SEGMENTS_CUT, index)


cdef void to_node(Worker *w, int slot, uint8_t *data, int size, const uint8_t *vnet) noexcept nogil:
    """Forward one frame (HEADROOM before it, virtio header apart) to a peer: park, refuse, cut or send."""
    cdef Node *n = &w.shared.nodes[slot]
    cdef Frame f
    cdef int budget = frame_budget(w, slot), gso_type = vnet[1] & ~GSO_ECN, gso, start, offset, mtu, tos
    cdef bint open = vnet[0] & VNET_NEEDS_CSUM
    if budget <= 0:
        park(w, slot, data, size, vnet)
        return
    if w.parked_of[slot].frames and not w.parked_leaving:
        inside_parked(w)  # the session came since this burst began: what waited goes first
    parse_untrusted(&f, data, size)
    w.lane = lane_of(w, &f)
    capture(w, 0, slot, &f)
    tos = inner_tos(&f)
    mtu = budget - f.l3
    if <int>n.pod_mtu < mtu:
        mtu = n.pod_mtu
    if f.protocol == PROTO_TCP and f.payload:
        clamp_mss(w, &f, mtu, open)
    if gso_type != GSO_NONE:
        gso = vnet[4] | (vnet[5] << 8)
        if not open or f.payload == 0 or f.payload > 200 or gso < 8 or \
                (gso_type == GSO_UDP_L4) != (f.protocol == PROTO_UDP):
            drop_traced(w, D_MALFORMED_INSIDE, gso_type)
            return
        if f.protocol == PROTO_TCP and f.payload - f.l3 + gso > mtu:
            gso = mtu - (f.payload - f.l3)  # TCP does not mind smaller segments
            if gso < 8:
                drop_traced(w, D_TOO_BIG, mtu)
                return
        elif f.protocol == PROTO_UDP and f.payload - f.l3 + gso > <int>n.pod_mtu and not may_fragment(&f):
            too_big(w, slot, &f, n.pod_mtu)
            return
        cut(w, slot, &f, gso, tos)
        return
    if f.family and f.end - f.l3 > <int>n.pod_mtu and not may_fragment(&f):
        too_big(w, slot, &f, n.pod_mtu)
        return
    if open:
        start = vnet[6] | (vnet[7] << 8)
        offset = vnet[8] | (vnet[9] << 8)
        if f.payload and start == f.l4 and offset == checksum_offset(f.protocol) and \
                (f.family == 6 or f.l4 - f.l3 == 20):  # options may hold the address of the pseudo-header
            transmit_frame(w, slot, data, size, FLAG_CSUM_OPEN, KIND_FRAME, 0, 0, tos)
            return
        if start < ETHERNET_HEADER or start + offset + 2 > size:
            drop_traced(w, D_MALFORMED_INSIDE, start)
            return
        complete_checksum(data, f.end if f.end > start else size, start, offset)
        count(w, C_CHECKSUMS_COMPLETED, 1)
    transmit_frame(w, slot, data, size, 0, KIND_FRAME, 0, 0, tos)


# ---- one frame from the TAP --------------------------------------------------------------------------------------


cdef void multicast(Worker *w, const Frame *f, const uint8_t *vnet) noexcept nogil:
    cdef uint8_t *mac = f.data
    if mac[0] == 0x01 and mac[1] == 0x80 and mac[2] == 0xC2:  # STP, LLDP, pause
        drop(w, D_LINK_LOCAL)
        return
    if f.ethertype == ETHERTYPE_ARP:
        if arp_inside(w, f):
            return
    elif f.family == 4 and f.protocol == PROTO_IGMP:
        group_report(w, f)
        drop(w, D_LINK_LOCAL)
        return
    elif f.family == 6 and f.protocol == PROTO_ICMPV6:
        if nd_inside(w, f):
            return
    flood(w, f, vnet)


cdef void inside_frame(Worker *w, uint8_t *data, int size, const uint8_t *vnet) noexcept nogil:
    cdef Frame f
    cdef int slot
    if size < ETHERNET_HEADER:
        drop(w, D_MALFORMED_INSIDE)
        return
    count(w, C_FRAMES_IN, 1)
    if is_multicast(data):
        parse_untrusted(&f, data, size)
        multicast(w, &f, vnet)
        return
    if is_derived(data):
        slot = owner_of(w.shared, load_be32(data + 2))
    else:
        slot = station_slot(w, data)
        if slot == SLOT_NONE_:
            parse_untrusted(&f, data, size)
            flood(w, &f, vnet)
            return
    if slot == SLOT_NONE_:
        drop_traced(w, D_NO_OWNER, load_be32(data + 2))
    elif slot == SLOT_LOCAL_:
        drop_traced(w, D_LOCAL_DESTINATION, load_be32(data + 2))
    else:
        to_node(w, slot, data, size, vnet)


cdef int read_frame(Worker *w, Queued *place) noexcept nogil:
    """Read one frame to where queue_place says, its virtio header aside: that becomes headroom. Its size; NOTHING
    waits; FAILED: the TAP is down or gone."""
    cdef uint8_t *data = <uint8_t *>place + FRAME_OFFSET
    cdef int n
    while True:
        n = <int>read(w.tap_fd, data - w.vnet_hdr, FRAME_MAX + w.vnet_hdr)
        if n < 0:
            return NOTHING if errno == EAGAIN or errno == EINTR else FAILED
        count(w, C_TAP_READS, 1)
        n -= w.vnet_hdr
        if n >= 0:
            break
        drop(w, D_MALFORMED_INSIDE)
    count(w, C_TAP_READ_BYTES, n)
    memcpy(place.vnet, data - w.vnet_hdr, w.vnet_hdr)
    return n


cdef int read_ahead(Worker *w) noexcept nogil:
    """Queue what the TAP has, so that its own short queue does not run over while we seal: frames read, or FAILED."""
    cdef Queued *place
    cdef Queued *victim
    cdef Frame f
    cdef int size, frames = 0
    cdef int64_t wasted = 0
    while frames < READ_FRAMES and wasted < READ_WASTED and not queue_enough(w.queues):
        place = queue_place(w.queues)
        if place == NULL:
            break
        size = read_frame(w, place)
        if size < 0:
            return FAILED if size == FAILED and frames == 0 else frames
        parse_untrusted(&f, <uint8_t *>place + FRAME_OFFSET, size)
        queue_put(w.queues, place, (FRAME_OFFSET + size + 63) & ~63, size, flow_hash(&f), source_of(&f))
        frames += 1
        while queue_over(w.queues):
            victim = queue_victim(w.queues)
            wasted += victim.size
            drop_traced(w, D_QUEUE, victim.flow)
            queue_release(w.queues, victim)
    count(w, C_QUEUED, frames)
    return frames


cdef inline uint32_t source_of(const Frame *f) noexcept nogil:
    """Of the pod: guards hold its port to its one MAC, whose last byte differs between neighbours."""
    return f.data[10] * 31 + f.data[11] if f.size >= ETHERNET_HEADER else 0


cdef int inside_burst(Worker *w) noexcept nogil:
    """Serve what the TAP has, up to a burst. Where nothing waits, the first frame goes straight through, but not where
    it may have to give back credit."""
    cdef Queued *frame
    cdef int size, found, served = 0
    cdef int64_t bytes = 0
    credits_sweep(&w.queues.credits, w.now)
    if w.queues.frames == 0 and w.queues.credits.bounds == 0:
        frame = queue_place(w.queues)
        size = read_frame(w, frame)
        if size < 0:
            return 0 if size == NOTHING else -1
        inside_frame(w, <uint8_t *>frame + FRAME_OFFSET, size, frame.vnet)
        served = 1
    found = read_ahead(w)
    if found == FAILED and w.queues.frames == 0:
        return served if served else -1
    while bytes < SERVE_BYTES and served < SERVE_FRAMES:
        frame = queue_take(w.queues)
        if frame == NULL:
            break
        inside_frame(w, <uint8_t *>frame + FRAME_OFFSET, frame.size, frame.vnet)
        bytes += frame.size
        queue_release(w.queues, frame)
        served += 1
    return served
