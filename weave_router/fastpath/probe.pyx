# cython: language_level=3
"""Inner functions of the fast path as Python sees them, for tests only: the replay window, the parser, checksums.

The product imports nothing from here. No logic of its own: each function copies in, calls, copies out.
"""
from collections import namedtuple

from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from weave_router.fastpath.frame cimport (
    Frame,
    complete_checksum as c_complete_checksum,
    flow_hash as c_flow_hash,
    ipv4_checksum as c_ipv4_checksum,
    parse_untrusted as c_parse_untrusted,
    seed_checksum,
)
from weave_router.fastpath.includes.native cimport csum_fold, csum_partial
from weave_router.fastpath.replay cimport WINDOW_SIZE as C_WINDOW_SIZE
from weave_router.fastpath.replay cimport Window as CWindow, window_accept

WINDOW_SIZE = C_WINDOW_SIZE

Parsed = namedtuple("Parsed", ("ethertype", "family", "l3", "l4", "protocol", "end", "payload", "fragment"))


cdef class Window:
    cdef CWindow window

    def accept(self, uint64_t counter):
        return bool(window_accept(&self.window, counter))


cdef uint8_t *copy_of(bytes data) except NULL:
    """On the heap and not a byte longer, so that a sanitizer sees a read beyond the end."""
    cdef uint8_t *copy = <uint8_t *>calloc(1, max(len(data), 1))
    if copy == NULL:
        raise MemoryError
    memcpy(copy, <const uint8_t *>data, len(data))
    return copy


def parse_untrusted(bytes data):
    cdef uint8_t *copy = copy_of(data)
    cdef Frame f
    c_parse_untrusted(&f, copy, len(data))
    free(copy)
    return Parsed(f.ethertype, f.family, f.l3, f.l4, f.protocol, f.end, f.payload, bool(f.fragment))


def flow_hash(bytes data):
    cdef uint8_t *copy = copy_of(data)
    cdef Frame f
    c_parse_untrusted(&f, copy, len(data))
    value = c_flow_hash(&f)
    free(copy)
    return value


def checksum(bytes data, uint64_t start=0):
    """Folded sum of 16-bit words as they lie in memory, not complemented."""
    return csum_fold(csum_partial(data, len(data), start))


def complete_checksum(bytes data, int end, int start, int offset):
    if not (0 <= start <= end <= len(data) and 0 <= offset and start + offset + 2 <= len(data)):
        raise ValueError("outside the frame")
    cdef uint8_t *copy = copy_of(data)
    c_complete_checksum(copy, end, start, offset)
    result = <bytes>copy[:len(data)]
    free(copy)
    return result


def ipv4_checksum(bytes header):
    if len(header) < 20 or len(header) < (header[0] & 15) * 4:
        raise ValueError("not a whole header")
    cdef uint8_t *copy = copy_of(header)
    c_ipv4_checksum(copy)
    result = <bytes>copy[:len(header)]
    free(copy)
    return result


def open_checksum(bytes data):
    """The frame with the pseudo-header's sum where the kernel wants it for CHECKSUM_PARTIAL, and the same completed."""
    cdef uint8_t *copy = copy_of(data)
    cdef Frame f
    c_parse_untrusted(&f, copy, len(data))
    try:
        if f.payload == 0:
            raise ValueError("neither TCP nor UDP")
        seed_checksum(&f)
        seeded = <bytes>copy[:len(data)]
        c_complete_checksum(copy, f.end, f.l4, 16 if f.protocol == 6 else 6)
        return seeded, <bytes>copy[:len(data)]
    finally:
        free(copy)
