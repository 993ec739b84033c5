# cython: language_level=3
"""The prefix table as the control plane changes it: every entry of the trie is replaced atomically while workers read.

Only engine.Engine calls this. What is needed to undo an entry (the covering prefix) stands in a plain dict per length.
"""
from libc.stdint cimport uint32_t, uint64_t

from weave_router.fastpath.includes.native cimport release64
from weave_router.fastpath.state cimport TRIE_NODES_MAX

cdef uint64_t CHILD = 0xFFFFFFFF


cdef inline uint64_t value_of(int prefix_len, int slot, bint has_mac):
    return (<uint64_t>(prefix_len + 1) << 32) | (<uint64_t>slot << 40) | (<uint64_t>has_mac << 56)


cdef class Routes:
    def __cinit__(self):
        self.by_length = {}

    cdef uint32_t _node(self, uint32_t number, int level) except? 0xFFFFFFFFU:
        """The trie node of this level on the number's way, made where missing."""
        cdef uint32_t node = 0, child
        cdef uint64_t *place
        cdef int i
        for i in range(level):
            place = &self.shared.trie[node].entry[(number >> (24 - 8 * i)) & 255]
            child = <uint32_t>(place[0] & CHILD)
            if child == 0:
                if self.shared.trie_used >= TRIE_NODES_MAX:
                    raise ValueError("the route table is full")
                child = self.shared.trie_used
                self.shared.trie_used += 1
                release64(place, (place[0] & ~CHILD) | child)
            node = child
        return node

    cdef int put(self, object number, int prefix_len, int slot, bint has_mac) except -1:
        cdef int level = (prefix_len - 1) // 8 if prefix_len else 0
        cdef int bits = 8 * (level + 1) - prefix_len
        cdef uint32_t node = self._node(number, level)
        cdef uint32_t start = (<uint32_t>number >> (24 - 8 * level)) & 255
        cdef uint64_t value = value_of(prefix_len, slot, has_mac)
        cdef uint64_t *place
        cdef uint32_t i
        self.by_length.setdefault(prefix_len, {})[number] = value
        for i in range(start, start + (1 << bits)):
            place = &self.shared.trie[node].entry[i]
            if <int>((place[0] >> 32) & 0xFF) <= prefix_len + 1:
                release64(place, (place[0] & CHILD) | value)
        return 0

    cdef uint64_t _covering(self, uint32_t number, int prefix_len) except? 1:
        """Value of the next shorter prefix that is written in the same trie node; 0: none."""
        cdef int least = 8 * ((prefix_len - 1) // 8) + 1 if prefix_len > 8 else 0
        cdef int shorter
        cdef uint32_t mask
        for shorter in range(prefix_len - 1, least - 1, -1):
            mask = <uint32_t>((<uint64_t>0xFFFFFFFFU << (32 - shorter)) & 0xFFFFFFFFU) if shorter else 0
            found = self.by_length.get(shorter, {}).get(number & mask)
            if found is not None:
                return found
        return 0

    cdef int remove(self, object number, int prefix_len) except -1:
        """Idempotent: a prefix that is not there changes nothing."""
        cdef int level = (prefix_len - 1) // 8 if prefix_len else 0
        cdef int bits = 8 * (level + 1) - prefix_len
        cdef uint32_t node, start, i
        cdef uint64_t covering
        cdef uint64_t *place
        table = self.by_length.get(prefix_len)
        if table is None or table.pop(number, None) is None:
            return 0
        node = self._node(number, level)
        start = (<uint32_t>number >> (24 - 8 * level)) & 255
        covering = self._covering(number, prefix_len)
        for i in range(start, start + (1 << bits)):
            place = &self.shared.trie[node].entry[i]
            if <int>((place[0] >> 32) & 0xFF) == prefix_len + 1:
                release64(place, (place[0] & CHILD) | covering)
        return 0
