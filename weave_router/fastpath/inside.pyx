# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""From the TAP to the peers: read, look up, answer or forward, cut superframes.

Called by the workers only, without the GIL. Everything it decides stands in the tables of state.pxd; a miss is handed to
Python once and the frame is parked. `oracle.py` says the same in plain Python and the tests hold the two together.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from weave_router.fastpath.counters cimport (
    C_ARP_ANSWERED,
    C_CHECKSUMS_COMPLETED,
    C_FLOODED,
    C_FRAMES_IN,
    C_MSS_CLAMPED,
    C_ND_ANSWERED,
    C_PARKED,
    C_SEGMENTS_CUT,
    C_TAP_READ_BYTES,
    C_TAP_READS,
    C_TAP_WRITE_BYTES,
    C_TAP_WRITES,
    C_TOO_BIG_SENT,
    D_FLOOD_LIMIT,
    D_LINK_LOCAL,
    D_LOCAL_DESTINATION,
    D_MALFORMED_INSIDE,
    D_NO_ANSWER,
    D_NO_LISTENER,
    D_NO_OWNER,
    D_NO_SESSION,
    D_PARK_FULL,
    D_TAP_WRITE,
    D_TOO_BIG,
)
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
    ipv4_checksum,
    parse_untrusted,
    pseudo_header,
)
from weave_router.fastpath.includes.linux cimport EAGAIN, EINTR, errno, read, write
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
from weave_router.fastpath.pool cimport pool_free, pool_new
from weave_router.fastpath.report cimport (
    EV_ANNOUNCE_,
    EV_GROUP_,
    EV_NEED_SESSION_,
    capture,
    count,
    drop,
    drop_traced,
    event_begin,
    event_end,
    event_simple,
)
from weave_router.fastpath.state cimport (
    FRAME_MAX,
    GROUPS_PER_NODE,
    NODE_ANSWER_,
    NODE_FLOOD_,
    SLOT_LOCAL_,
    SLOT_NONE_,
    STATIONS,
    Event,
    Node,
    Parked,
    ParkedCount,
    Shared,
    Station,
    Worker,
    in_universe,
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
    READ_FRAMES = 64  # per burst
    READ_BYTES = 262144

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
    TOO_BIG_NS = 10000000  # one ICMP "too big" per node in 10 ms


# ---- frames made here --------------------------------------------------------------------------------------------


cdef void tap_write(Worker *w, uint8_t *data, int size) noexcept nogil:
    """Write one frame with an empty virtio header; the header goes into the HEADROOM before it."""
    memset(data - w.vnet_hdr, 0, w.vnet_hdr)
    if write(w.tap_fd, data - w.vnet_hdr, size + w.vnet_hdr) < 0:
        drop_traced(w, D_TAP_WRITE, errno)
        return
    count(w, C_TAP_WRITES, 1)
    count(w, C_TAP_WRITE_BYTES, size)


cdef inline void derived_mac(uint8_t *mac, uint32_t number) noexcept nogil:
    mac[0] = 0x0A
    mac[1] = 0x58
    store_be32(mac + 2, number)


cdef inline bint is_derived(const uint8_t *mac) noexcept nogil:
    return mac[0] == 0x0A and mac[1] == 0x58


cdef inline bint is_multicast(const uint8_t *mac) noexcept nogil:
    return mac[0] & 1


cdef inline bint is_broadcast(const uint8_t *mac) noexcept nogil:
    return load_be32(mac) == 0xFFFFFFFFU and load_be16(mac + 4) == 0xFFFF


cdef inline bint in_ipv6_universe(const Shared *s, const uint8_t *address) noexcept nogil:
    return s.has_ipv6 and memcmp(address, s.ipv6_prefix, 12) == 0


cdef void mac_for(const Shared *s, uint32_t number, uint8_t *mac) noexcept nogil:
    """What ARP and ND answer with: always the derived MAC; the owner rewrites it where another one is real."""
    derived_mac(mac, number)


cdef bint answers(Worker *w, uint32_t number) noexcept nogil:
    """May we answer ARP or ND for this number of the universe? Counts why not."""
    cdef int slot = owner_of(w.shared, number)
    if slot == SLOT_NONE_:
        drop(w, D_NO_OWNER)
        return False
    if slot == SLOT_LOCAL_:
        drop(w, D_LOCAL_DESTINATION)
        return False
    if not w.shared.nodes[slot].flags & NODE_ANSWER_:
        drop(w, D_NO_ANSWER)
        return False
    return True


cdef int arp_inside(Worker *w, const Frame *f) noexcept nogil:
    """1: dealt with (answered, dropped or announced); 0: flood it."""
    cdef uint8_t *arp = f.data + f.l3
    cdef uint8_t *out = w.scratch + HEADROOM
    cdef uint32_t sender, target
    cdef Event *event
    if f.size < f.l3 + 28 or load_be32(arp) != 0x00010800 or load_be16(arp + 4) != 0x0604:
        drop(w, D_MALFORMED_INSIDE)
        return 1
    sender = load_be32(arp + 14)
    target = load_be32(arp + 24)
    if not in_universe(w.shared, target):
        return 0
    if sender == target:
        if is_derived(arp + 8) and load_be32(arp + 10) == sender:
            drop(w, D_LINK_LOCAL)
            return 1
        event = event_begin(w, EV_ANNOUNCE_, sender, 0)
        if event != NULL:
            memcpy(event.data, arp + 8, 6)
            event.size = 6
            event_end(w)
        return 1
    if sender == 0 or load_be16(arp + 6) != 1:
        drop(w, D_LINK_LOCAL)
        return 1
    if not answers(w, target):
        return 1
    memcpy(out, f.data + 6, 6)
    mac_for(w.shared, target, out + 6)
    memcpy(out + 12, f.data + 12, f.l3 - 12)
    memcpy(out + f.l3, arp, 8)
    store_be16(out + f.l3 + 6, 2)
    mac_for(w.shared, target, out + f.l3 + 8)
    store_be32(out + f.l3 + 14, target)
    memcpy(out + f.l3 + 18, arp + 8, 10)
    tap_write(w, out, f.l3 + 28)
    count(w, C_ARP_ANSWERED, 1)
    return 1


cdef void advertise(Worker *w, const Frame *f, const uint8_t *target) noexcept nogil:
    """Answer the neighbour solicitation in f with a solicited advertisement (RFC 4861 section 4.4)."""
    cdef uint8_t *out = w.scratch + HEADROOM
    cdef uint8_t *ip = out + f.l3
    cdef uint8_t *icmp = ip + 40
    cdef Frame answer
    memcpy(out, f.data + 6, 6)
    mac_for(w.shared, load_be32(target + 12), out + 6)
    memcpy(out + 12, f.data + 12, f.l3 - 12)
    memset(ip, 0, 72)
    ip[0] = 0x60
    store_be16(ip + 4, 32)
    ip[6] = PROTO_ICMPV6
    ip[7] = 255
    memcpy(ip + 8, target, 16)
    memcpy(ip + 24, f.data + f.l3 + 8, 16)
    icmp[0] = 136
    icmp[4] = 0x60  # solicited, override
    memcpy(icmp + 8, target, 16)
    icmp[24] = 2
    icmp[25] = 1
    mac_for(w.shared, load_be32(target + 12), icmp + 26)
    parse_untrusted(&answer, out, f.l3 + 72)
    store_csum(icmp + 2, csum_fold(pseudo_header(&answer, PROTO_ICMPV6, 32)))
    complete_checksum(out, f.l3 + 72, f.l3 + 40, 2)
    tap_write(w, out, f.l3 + 72)
    count(w, C_ND_ANSWERED, 1)


cdef int nd_inside(Worker *w, const Frame *f) noexcept nogil:
    """ICMPv6 to a multicast MAC. 1: dealt with; 0: flood it."""
    cdef uint8_t *icmp = f.data + f.l4
    cdef uint8_t *source = f.data + f.l3 + 8
    cdef int kind = icmp[0]
    cdef uint8_t zero[16]
    cdef Event *event
    if kind == 133 or kind == 134:
        drop(w, D_LINK_LOCAL)
        return 1
    if kind == 143 or kind == 131 or kind == 132:
        group_report(w, f)
        drop(w, D_LINK_LOCAL)
        return 1
    if kind == 130:  # a querier's question reaches the stations of its own node only
        drop(w, D_LINK_LOCAL)
        return 1
    if kind != 135 and kind != 136:
        return 0
    if f.end < f.l4 + 24:
        drop(w, D_MALFORMED_INSIDE)
        return 1
    if not in_ipv6_universe(w.shared, icmp + 8):
        return 1 if link_local(w, icmp + 8) else 0
    memset(zero, 0, 16)
    if kind == 136:
        if f.end >= f.l4 + 32 and icmp[24] == 2 and not (is_derived(icmp + 26) and
                                                         load_be32(icmp + 28) == load_be32(icmp + 20)):
            event = event_begin(w, EV_ANNOUNCE_, load_be32(icmp + 20), 0)
            if event != NULL:
                memcpy(event.data, icmp + 26, 6)
                event.size = 6
                event_end(w)
        else:
            drop(w, D_LINK_LOCAL)
        return 1
    if memcmp(source, zero, 16) == 0:
        drop(w, D_LINK_LOCAL)
        return 1
    if answers(w, load_be32(icmp + 20)):
        advertise(w, f, icmp + 8)
    return 1


cdef bint link_local(Worker *w, const uint8_t *address) noexcept nogil:
    """ND about a link-local address (fe80::/10) ends here: those addresses mean this node's bridge."""
    if address[0] == 0xFE and (address[1] & 0xC0) == 0x80:
        drop(w, D_LINK_LOCAL)
        return True
    return False


# ---- multicast groups --------------------------------------------------------------------------------------------


cdef void tell_group(Worker *w, const uint8_t *address, int family, bint joined) noexcept nogil:
    """Report the group's MAC (RFC 1112 section 6.4, RFC 2464 section 7)."""
    cdef Event *event = event_begin(w, EV_GROUP_, 1 if joined else 0, 0)
    if event == NULL:
        return
    if family == 4:
        event.data[0] = 0x01
        event.data[1] = 0x00
        event.data[2] = 0x5E
        memcpy(event.data + 3, address + 1, 3)
        event.data[3] &= 0x7F
    else:
        event.data[0] = 0x33
        event.data[1] = 0x33
        memcpy(event.data + 2, address + 12, 4)
    event.size = 6
    event_end(w)


cdef bint joins(int kind, int sources) noexcept nogil:
    """IGMPv3 / MLDv2 record types: 1 include, 2 exclude, 3 to include, 4 to exclude, 5 allow, 6 block."""
    if kind == 1 or kind == 3:
        return sources > 0
    return kind == 2 or kind == 4 or kind == 5


cdef void group_report(Worker *w, const Frame *f) noexcept nogil:
    """Read an IGMP or MLD report of a local pod. Every record is bounded by the datagram's end."""
    cdef uint8_t *p = f.data + f.l4
    cdef int size = 4 if f.family == 4 else 16
    cdef int records, at, _i, sources, kind = p[0]
    if f.family == 4:
        if f.end < f.l4 + 8:
            return
        if kind == 0x16 or kind == 0x12:
            tell_group(w, p + 4, 4, True)
            return
        if kind == 0x17:
            tell_group(w, p + 4, 4, False)
            return
        if kind != 0x22:
            return
    else:
        if f.end < f.l4 + 8:
            return
        if kind == 131 or kind == 132:
            if f.end >= f.l4 + 24:
                tell_group(w, p + 8, 6, kind == 131)
            return
    records = load_be16(p + 6)
    at = f.l4 + 8
    for _i in range(records if records < 64 else 64):
        if f.end < at + 4 + size:
            return
        p = f.data + at
        sources = load_be16(p + 2)
        if p[0] != 6:
            tell_group(w, p + 4, f.family, joins(p[0], sources))
        at += 4 + size + sources * size + p[1] * 4


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
            if w.now - station.seen_ns < <uint64_t>600000000000ULL:
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


cdef void too_big(Worker *w, int slot, const Frame *f, int mtu) noexcept nogil:
    """ICMP 3/4 or ICMPv6 2 to the sender, as a router on the way would send it (RFC 1191, RFC 8201)."""
    cdef Node *n = &w.shared.nodes[slot]
    cdef uint8_t *out = w.scratch + HEADROOM
    cdef uint8_t *ip = out + f.l3
    cdef uint8_t *icmp
    cdef int quoted = f.end - f.l3, total
    cdef Frame answer
    drop(w, D_TOO_BIG)
    if f.family == 4 and is_multicast(f.data):  # RFC 1122 section 3.2.2; ICMPv6 may (RFC 4443 section 2.4)
        return
    if w.now - relaxed64(&n.too_big_ns) < TOO_BIG_NS:
        return
    set64(&n.too_big_ns, w.now)
    memcpy(out, f.data + 6, 6)
    memcpy(out + 6, f.data, 6)
    memcpy(out + 12, f.data + 12, f.l3 - 12)
    if f.family == 4:
        if quoted > 548:
            quoted = 548
        total = 28 + quoted
        memset(ip, 0, 28)
        ip[0] = 0x45
        store_be16(ip + 2, <uint16_t>total)
        ip[8] = 64
        ip[9] = 1
        memcpy(ip + 12, f.data + f.l3 + 16, 4)
        memcpy(ip + 16, f.data + f.l3 + 12, 4)
        icmp = ip + 20
        icmp[0] = 3
        icmp[1] = 4
        store_be16(icmp + 6, <uint16_t>(mtu if mtu > 576 else 576))
        memcpy(icmp + 8, f.data + f.l3, quoted)
        ipv4_checksum(ip)
        complete_checksum(out, f.l3 + total, f.l3 + 20, 2)
    else:
        if quoted > 1232:
            quoted = 1232
        total = 48 + quoted
        memset(ip, 0, 48)
        ip[0] = 0x60
        store_be16(ip + 4, <uint16_t>(8 + quoted))
        ip[6] = PROTO_ICMPV6
        ip[7] = 64
        memcpy(ip + 8, f.data + f.l3 + 24, 16)
        memcpy(ip + 24, f.data + f.l3 + 8, 16)
        icmp = ip + 40
        icmp[0] = 2
        store_be32(icmp + 4, mtu if mtu > 1280 else 1280)
        memcpy(icmp + 8, f.data + f.l3, quoted)
        parse_untrusted(&answer, out, f.l3 + total)
        store_csum(icmp + 2, csum_fold(pseudo_header(&answer, PROTO_ICMPV6, 8 + quoted)))
        complete_checksum(out, f.l3 + total, f.l3 + 40, 2)
    tap_write(w, out, f.l3 + total)
    count(w, C_TOO_BIG_SENT, 1)


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


cdef int inside_burst(Worker *w) noexcept nogil:
    """Read what the TAP has, up to a burst. The virtio header is copied aside: its place becomes headroom."""
    cdef uint8_t vnet[16]
    cdef uint8_t *frame = w.tap_buffer + HEADROOM
    cdef int frames = 0, total = 0, n
    while frames < READ_FRAMES and total < READ_BYTES:
        n = <int>read(w.tap_fd, frame - w.vnet_hdr, FRAME_MAX + w.vnet_hdr)
        if n < 0:
            if errno == EAGAIN or errno == EINTR:
                break
            return -1 if frames == 0 else frames
        n -= w.vnet_hdr
        count(w, C_TAP_READS, 1)
        if n < 0:
            drop(w, D_MALFORMED_INSIDE)
            continue
        count(w, C_TAP_READ_BYTES, n)
        memcpy(vnet, frame - w.vnet_hdr, w.vnet_hdr)
        inside_frame(w, frame, n, vnet)
        frames += 1
        total += n
    return frames
