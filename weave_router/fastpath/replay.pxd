# Replay window of one lane: 8,192 counters (RFC 6479: a ring of words, the newest block is cleared when entered).
# Test-and-set under its own lock; called only after the tag was found good.
from libc.stdint cimport uint32_t, uint64_t

from weave_router.fastpath.includes.native cimport spin_lock, spin_unlock

cdef enum:
    WINDOW_WORDS = 128  # 8,192 bits, of which one word is always being filled
    WINDOW_SIZE = (WINDOW_WORDS - 1) * 64

cdef struct Window:
    uint32_t lock
    uint64_t newest
    uint64_t bits[WINDOW_WORDS]


cdef inline bint window_accept(Window *w, uint64_t counter) noexcept nogil:
    """True once per counter; False for a duplicate or one too old."""
    cdef uint64_t block = counter >> 6
    cdef uint64_t current, steps, i, word, bit
    cdef bint fresh = False
    spin_lock(&w.lock)
    if counter > w.newest:
        current = w.newest >> 6
        steps = block - current
        if steps > WINDOW_WORDS:
            steps = WINDOW_WORDS
        for i in range(1, steps + 1):
            w.bits[(current + i) & (WINDOW_WORDS - 1)] = 0
        w.newest = counter
    if w.newest - counter <= WINDOW_SIZE:
        bit = <uint64_t>1 << (counter & 63)
        word = w.bits[block & (WINDOW_WORDS - 1)]
        fresh = (word & bit) == 0
        w.bits[block & (WINDOW_WORDS - 1)] = word | bit
    spin_unlock(&w.lock)
    return fresh
