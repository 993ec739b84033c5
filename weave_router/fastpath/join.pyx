# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Frames on their way to the TAP: consecutive segments of one flow are joined and written as one superframe.

Called by outside only, without the GIL. Exception to the size habit: join_flush and join_or_write are a hot loop.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memset

from weave_router.fastpath.counters cimport (
    C_CHECKSUMS_COMPLETED,
    C_SEGMENTS_JOINED,
    C_TAP_WRITE_BYTES,
    C_TAP_WRITES,
    D_TAP_WRITE,
)
from weave_router.fastpath.frame cimport (
    PROTO_TCP,
    PROTO_UDP,
    TCP_CWR,
    TCP_FIN,
    TCP_PSH,
    Frame,
    checksum_offset,
    complete_checksum,
    ipv4_checksum,
    parse_untrusted,
    same_flow,
    seed_checksum,
)
from weave_router.fastpath.includes.linux cimport errno, iovec, writev
from weave_router.fastpath.includes.native cimport load_be16, load_be32, store_be16
from weave_router.fastpath.lanes cimport queue_of
from weave_router.fastpath.report cimport count, drop_traced
from weave_router.fastpath.state cimport JOIN_SEGMENTS, JOINS, Join, Worker

cdef enum:
    VNET_NEEDS_CSUM = 1
    GSO_TCPV4 = 1
    GSO_TCPV6 = 4
    GSO_UDP_L4 = 5
    JOIN_BYTES = 65000  # IP datagram of a joined frame


cdef inline void written(Worker *w, long n) noexcept nogil:
    if n < 0:
        drop_traced(w, D_TAP_WRITE, errno)
        return
    count(w, C_TAP_WRITES, 1)
    count(w, C_TAP_WRITE_BYTES, <uint64_t>n)


cdef void write_single(Worker *w, Frame *f, bint open) noexcept nogil:
    """Write one frame; `open`: TCP or UDP whose checksum is to be made from our own parse."""
    cdef uint8_t vnet[16]
    cdef iovec iov[2]
    memset(vnet, 0, sizeof(vnet))
    if open:
        seed_checksum(f)
        if w.shared.tap_csum and f.end == f.size:  # the kernel would sum the padding too
            vnet[0] = VNET_NEEDS_CSUM
            vnet[6] = <uint8_t>(f.l4 & 255)
            vnet[7] = <uint8_t>(f.l4 >> 8)
            vnet[8] = <uint8_t>checksum_offset(f.protocol)
        else:
            complete_checksum(f.data, f.end, f.l4, checksum_offset(f.protocol))
            count(w, C_CHECKSUMS_COMPLETED, 1)
    iov[0].iov_base = vnet
    iov[0].iov_len = w.vnet_hdr
    iov[1].iov_base = f.data
    iov[1].iov_len = f.size
    written(w, writev(queue_of(w, f), iov, 2))


cdef void join_flush(Worker *w, Join *j) noexcept nogil:
    """Write what was joined as one superframe. Its virtio header comes from our own parse, never from the wire."""
    cdef Frame f
    cdef uint8_t vnet[16]
    cdef iovec iov[JOIN_SEGMENTS + 2]
    cdef int i
    if j.state == 0:
        return
    j.state = 0
    parse_untrusted(&f, j.first, j.end)
    if j.count == 1:
        write_single(w, &f, True)
        return
    f.end = j.header + j.total
    if f.family == 4:
        store_be16(f.data + f.l3 + 2, <uint16_t>(f.end - f.l3))
        ipv4_checksum(f.data + f.l3)
    else:
        store_be16(f.data + f.l3 + 4, <uint16_t>(f.end - f.l3 - 40))
    if f.protocol == PROTO_UDP:
        store_be16(f.data + f.l4 + 4, <uint16_t>(f.end - f.l4))
    seed_checksum(&f)
    memset(vnet, 0, sizeof(vnet))
    vnet[0] = VNET_NEEDS_CSUM
    if f.protocol == PROTO_UDP:
        vnet[1] = GSO_UDP_L4
    else:
        vnet[1] = GSO_TCPV4 if f.family == 4 else GSO_TCPV6
        if f.data[f.l4 + 13] & TCP_CWR:
            vnet[1] |= 0x80
    vnet[2] = <uint8_t>(j.header & 255)
    vnet[3] = <uint8_t>(j.header >> 8)
    vnet[4] = <uint8_t>(j.gso & 255)
    vnet[5] = <uint8_t>(j.gso >> 8)
    vnet[6] = <uint8_t>(f.l4 & 255)
    vnet[7] = <uint8_t>(f.l4 >> 8)
    vnet[8] = <uint8_t>checksum_offset(f.protocol)
    iov[0].iov_base = vnet
    iov[0].iov_len = w.vnet_hdr
    iov[1].iov_base = f.data
    iov[1].iov_len = j.header
    for i in range(j.count):
        iov[i + 2].iov_base = j.part[i]
        iov[i + 2].iov_len = j.part_size[i]
    count(w, C_SEGMENTS_JOINED, j.count)
    written(w, writev(queue_of(w, &f), iov, j.count + 2))


cdef void joins_flush(Worker *w) noexcept nogil:
    cdef int i
    for i in range(JOINS):
        join_flush(w, &w.joins[i])


cdef inline bint continues(const Join *j, const Frame *a, const Frame *b, int payload) noexcept nogil:
    """May b follow what j holds (a is its first frame)? Every header byte but length, id, checksum, sequence, FIN and
    PSH must agree; IPv4 ids count up, as the kernel will number them when it cuts the superframe again."""
    if j.closed or j.count == JOIN_SEGMENTS or payload > j.gso or b.payload - b.l3 + j.total + payload > JOIN_BYTES:
        return False
    if b.payload != j.header or a.data[a.l3 + (1 if a.family == 4 else 0)] != b.data[b.l3 + (1 if a.family == 4 else 0)]:
        return False
    if a.family == 4:
        if load_be16(b.data + b.l3 + 4) != ((load_be16(a.data + a.l3 + 4) + j.count) & 0xFFFF):
            return False
        if memcmp(a.data + a.l3 + 6, b.data + b.l3 + 6, 4) != 0 or a.l4 - a.l3 != 20:
            return False
    elif memcmp(a.data + a.l3, b.data + b.l3, 4) != 0 or memcmp(a.data + a.l3 + 6, b.data + b.l3 + 6, 2) != 0 or \
            a.l4 - a.l3 != 40:
        return False
    if b.protocol == PROTO_UDP:
        return True
    if load_be32(b.data + b.l4 + 4) != j.next_seq or memcmp(a.data + a.l4 + 8, b.data + b.l4 + 8, 5) != 0:
        return False
    if (a.data[a.l4 + 13] ^ b.data[b.l4 + 13]) & ~(TCP_FIN | TCP_PSH | TCP_CWR) or b.data[b.l4 + 13] & TCP_CWR:
        return False
    return memcmp(a.data + a.l4 + 14, b.data + b.l4 + 14, 2) == 0 and \
        memcmp(a.data + a.l4 + 18, b.data + b.l4 + 18, b.payload - b.l4 - 18) == 0


cdef void join_start(Join *j, const Frame *f, int payload) noexcept nogil:
    j.state = 1
    j.first = f.data
    j.end = f.end
    j.header = f.payload
    j.gso = payload
    j.count = 1
    j.total = payload
    j.closed = 0
    if f.protocol == PROTO_TCP:
        j.next_seq = load_be32(f.data + f.l4 + 4) + <uint32_t>payload
        j.closed = f.data[f.l4 + 13] & (TCP_FIN | TCP_PSH)
    j.part[0] = f.data + f.payload
    j.part_size[0] = payload


cdef void join_or_write(Worker *w, Frame *f, bint open) noexcept nogil:
    """Frames of one flow keep their order: a frame that cannot join writes out what its flow has waiting first."""
    cdef Join *j
    cdef Join *place = NULL
    cdef Frame first
    cdef int i, payload
    if f.payload == 0:
        write_single(w, f, open)
        return
    payload = f.end - f.payload
    if f.protocol == PROTO_UDP and load_be16(f.data + f.l4 + 4) != f.end - f.l4:
        payload = 0  # bytes behind the UDP datagram: a superframe has no place for them
    for i in range(JOINS):
        j = &w.joins[i]
        if j.state == 0:
            if place == NULL:
                place = j
            continue
        parse_untrusted(&first, j.first, j.end)
        if not same_flow(&first, f):
            continue
        if open and payload and continues(j, &first, f, payload):
            j.part[j.count] = f.data + f.payload
            j.part_size[j.count] = payload
            j.count += 1
            j.total += payload
            if f.protocol == PROTO_TCP:
                j.next_seq += <uint32_t>payload
                first.data[first.l4 + 13] |= f.data[f.l4 + 13] & (TCP_FIN | TCP_PSH)
                j.closed = f.data[f.l4 + 13] & (TCP_FIN | TCP_PSH)
            if payload < j.gso:
                j.closed = 1
            return
        join_flush(w, j)
        place = j
        break
    if not open or payload == 0 or not (w.shared.tap_uso if f.protocol == PROTO_UDP else w.shared.tap_tso) or \
            f.end != f.size or f.l4 - f.l3 != (20 if f.family == 4 else 40):
        write_single(w, f, open)
        return
    if place == NULL:
        place = &w.joins[0]
        join_flush(w, place)
    join_start(place, f, payload)
