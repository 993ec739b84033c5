# One Ethernet frame, looked at without copying. `parse_untrusted` reads what a pod or a peer wrote: every offset it
# leaves behind lies inside the frame.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp

from weave_router.fastpath.includes.native cimport (
    csum_fold,
    csum_partial,
    load_be16,
    load_be32,
    store_be16,
    store_csum,
)

cdef enum:
    ETHERNET_HEADER = 14
    ETHERTYPE_IPV4 = 0x0800
    ETHERTYPE_ARP = 0x0806
    ETHERTYPE_VLAN = 0x8100
    ETHERTYPE_QINQ = 0x88A8
    ETHERTYPE_IPV6 = 0x86DD
    PROTO_ICMP = 1
    PROTO_IGMP = 2
    PROTO_TCP = 6
    PROTO_UDP = 17
    PROTO_ICMPV6 = 58
    TCP_FIN = 0x01
    TCP_SYN = 0x02
    TCP_PSH = 0x08
    TCP_CWR = 0x80

cdef struct Frame:
    uint8_t *data
    int size
    int ethertype  # of the innermost tag; below 0x600 it is an LLC length
    int family  # 4, 6, or 0: not IP, or not whole
    int l3  # offset of the network header
    int l4  # offset of the transport header; 0: none that we know, or a fragment
    int protocol  # IP protocol of l4; 0 when there is no l4
    int end  # offset behind the IP datagram; padding may follow
    int payload  # offset of the TCP or UDP payload; 0 when the transport header is not whole
    bint fragment


cdef inline void parse_untrusted(Frame *f, uint8_t *data, int size) noexcept nogil:
    """Fill f. Takes any bytes; a size below 14 gives a frame with no ethertype."""
    cdef int offset = 12, header, protocol, _options
    cdef bint routed = False
    f.data = data
    f.size = size
    f.ethertype = 0
    f.family = 0
    f.l3 = 0
    f.l4 = 0
    f.protocol = 0
    f.end = size
    f.payload = 0
    f.fragment = False
    if size < ETHERNET_HEADER:
        return
    f.ethertype = load_be16(data + offset)
    if f.ethertype == ETHERTYPE_QINQ or f.ethertype == ETHERTYPE_VLAN:
        offset += 4
        if size < offset + 2:
            return
        f.ethertype = load_be16(data + offset)
        if f.ethertype == ETHERTYPE_VLAN:
            offset += 4
            if size < offset + 2:
                return
            f.ethertype = load_be16(data + offset)
    offset += 2
    f.l3 = offset
    if f.ethertype == ETHERTYPE_IPV4:
        if size < offset + 20 or data[offset] >> 4 != 4:
            return
        header = (data[offset] & 15) * 4
        f.end = offset + load_be16(data + offset + 2)
        if header < 20 or f.end > size or offset + header > f.end:
            f.end = size
            return
        f.family = 4
        f.fragment = load_be16(data + offset + 6) & 0x3FFF != 0
        if load_be16(data + offset + 6) & 0x1FFF:
            return
        protocol = data[offset + 9]
        offset += header
    elif f.ethertype == ETHERTYPE_IPV6:
        if size < offset + 40 or data[offset] >> 4 != 6:
            return
        f.end = offset + 40 + load_be16(data + offset + 4)
        if f.end > size:
            f.end = size
            return
        f.family = 6
        protocol = data[offset + 6]
        offset += 40
        for _options in range(4):  # hop-by-hop, as MLD reports carry them; destination options; routing
            if protocol != 0 and protocol != 60 and protocol != 43:
                break
            if f.end < offset + 8:
                return
            routed |= protocol == 43
            protocol = data[offset]
            offset += (data[offset + 1] + 1) * 8
            if offset > f.end:
                return
        if routed and protocol != PROTO_ICMPV6:  # the pseudo-header holds another address than the header
            return
        if protocol == 44:  # fragment header
            f.fragment = True
            return
    else:
        return
    if protocol == PROTO_TCP:
        if f.end < offset + 20 or (data[offset + 12] >> 4) < 5:
            return
        if f.fragment:
            f.l4, f.protocol = offset, protocol
            return
        if offset + (data[offset + 12] >> 4) * 4 > f.end:
            return
        f.payload = offset + (data[offset + 12] >> 4) * 4
    elif protocol == PROTO_UDP:
        if f.end < offset + 8:
            return
        if not f.fragment:
            f.payload = offset + 8
    elif protocol == PROTO_ICMPV6 or protocol == PROTO_ICMP or protocol == PROTO_IGMP:
        if f.end < offset + 4:
            return
    else:
        return
    f.l4 = offset
    f.protocol = protocol


cdef inline int checksum_offset(int protocol) noexcept nogil:
    """Where TCP and UDP keep their checksum; 0 for others."""
    if protocol == PROTO_TCP:
        return 16
    if protocol == PROTO_UDP:
        return 6
    return 0


cdef inline uint64_t pseudo_header(const Frame *f, int protocol, int length) noexcept nogil:
    """Unfolded sum of the pseudo-header (RFC 793, RFC 8200 section 8.1) of a transport datagram of `length` bytes."""
    cdef uint8_t tail[4]
    store_be16(tail, <uint16_t>protocol)
    store_be16(tail + 2, <uint16_t>length)
    cdef uint64_t total = csum_partial(tail, 4, 0)
    if f.family == 4:
        return csum_partial(f.data + f.l3 + 12, 8, total)
    return csum_partial(f.data + f.l3 + 8, 32, total)


cdef inline void seed_checksum(const Frame *f) noexcept nogil:
    """Write the folded pseudo-header sum where the kernel expects it for CHECKSUM_PARTIAL. f has TCP or UDP."""
    store_csum(f.data + f.l4 + checksum_offset(f.protocol), csum_fold(pseudo_header(f, f.protocol, f.end - f.l4)))


cdef inline void complete_checksum(uint8_t *data, int end, int start, int offset) noexcept nogil:
    """Finish an open checksum in software: sum from start to end, store at start + offset (virtio section 5.1.6.2)."""
    cdef uint16_t value = <uint16_t>(~csum_fold(csum_partial(data + start, end - start, 0)) & 0xFFFF)
    if value == 0:
        value = 0xFFFF
    store_csum(data + start + offset, value)


cdef inline void ipv4_checksum(uint8_t *header) noexcept nogil:
    """Compute the IPv4 header's own checksum anew."""
    store_csum(header + 10, 0)
    store_csum(header + 10, <uint16_t>(~csum_fold(csum_partial(header, (header[0] & 15) * 4, 0)) & 0xFFFF))


cdef inline bint same_flow(const Frame *a, const Frame *b) noexcept nogil:
    """Same MACs, tags, addresses, protocol and ports? Both have TCP or UDP payloads."""
    if a.protocol != b.protocol or a.family != b.family or a.l3 != b.l3 or a.l4 != b.l4:
        return False
    if memcmp(a.data, b.data, a.l3) != 0 or memcmp(a.data + a.l4, b.data + b.l4, 4) != 0:
        return False
    if a.family == 4:
        return memcmp(a.data + a.l3 + 12, b.data + b.l3 + 12, 8) == 0
    return memcmp(a.data + a.l3 + 8, b.data + b.l3 + 8, 32) == 0


cdef inline void fold_pair(uint64_t *mixed, uint64_t *total, uint32_t one, uint32_t other) noexcept nogil:
    mixed[0] ^= one ^ other
    total[0] += <uint64_t>one + other


cdef inline uint32_t flow_hash(const Frame *f) noexcept nogil:
    """Symmetric: both directions of a flow give the same value. Of an untagged frame it is what the programs of
    host/steering.py compute in the kernel (tap_hash there says it in Python)."""
    cdef uint64_t mixed = 0, total = 0
    cdef int i
    if f.size < ETHERNET_HEADER:
        return 0
    if f.family == 4:
        fold_pair(&mixed, &total, load_be32(f.data + f.l3 + 12), load_be32(f.data + f.l3 + 16))
    elif f.family == 6:
        for i in range(8, 24, 4):
            mixed *= <uint64_t>0x61C88647
            fold_pair(&mixed, &total, load_be32(f.data + f.l3 + i), load_be32(f.data + f.l3 + 16 + i))
    else:
        fold_pair(&mixed, &total, load_be32(f.data), load_be32(f.data + 6))
        fold_pair(&mixed, &total, load_be16(f.data + 4), load_be16(f.data + 10))
    if f.payload:
        mixed *= <uint64_t>0x61C88647
        fold_pair(&mixed, &total, load_be16(f.data + f.l4), load_be16(f.data + f.l4 + 2))
    return <uint32_t>(((mixed * <uint64_t>0x45D9F3B5 + total) * <uint64_t>0x2C1B3C6D) >> 32)
