# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Frames that the router makes itself: ARP and ND answers, ICMP "too big"; and what pods report of their groups.

Called by inside only, without the GIL. Everything it answers from stands in the tables of state.pxd.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp, memcpy, memset

from weave_router.fastpath.counters cimport (
    C_ARP_ANSWERED,
    C_ND_ANSWERED,
    C_TAP_WRITE_BYTES,
    C_TAP_WRITES,
    C_TOO_BIG_SENT,
    D_LINK_LOCAL,
    D_LOCAL_DESTINATION,
    D_MALFORMED_INSIDE,
    D_NO_ANSWER,
    D_NO_OWNER,
    D_TAP_WRITE,
    D_TOO_BIG,
)
from weave_router.fastpath.frame cimport (
    PROTO_ICMPV6,
    Frame,
    complete_checksum,
    ipv4_checksum,
    parse_untrusted,
    pseudo_header,
)
from weave_router.fastpath.includes.linux cimport errno, write
from weave_router.fastpath.includes.native cimport (
    csum_fold,
    load_be16,
    load_be32,
    relaxed64,
    set64,
    store_be16,
    store_be32,
    store_csum,
)
from weave_router.fastpath.report cimport (
    EV_ANNOUNCE_,
    EV_GROUP_,
    count,
    drop,
    drop_traced,
    event_begin,
    event_end,
)
from weave_router.fastpath.state cimport (
    NODE_ANSWER_,
    SLOT_LOCAL_,
    SLOT_NONE_,
    Event,
    Node,
    Shared,
    Worker,
    in_ipv6_universe,
    in_universe,
    owner_of,
    in_ipv6_universe,
)
from weave_router.fastpath.transmit cimport HEADROOM

cdef enum:
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
