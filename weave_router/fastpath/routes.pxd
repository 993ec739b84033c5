# Changing the prefix trie of state.pxd in place. See routes.pyx.
from libc.stdint cimport uint32_t, uint64_t

from weave_router.fastpath.state cimport Shared

cdef class Routes:
    cdef Shared *shared
    cdef dict by_length
    cdef uint32_t _node(self, uint32_t number, int level) except? 0xFFFFFFFFU
    cdef uint64_t _covering(self, uint32_t number, int prefix_len) except? 1
    cdef int put(self, object number, int prefix_len, int slot, bint has_mac) except -1
    cdef int remove(self, object number, int prefix_len) except -1
