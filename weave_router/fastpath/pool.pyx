# cython: language_level=3
"""The one door to the heap for the fast path: counts what is live, and poisons what was given back in a debug build.

Called off the hot path only: sessions, paths, windows, parked and partial frames, the workers' own memory. Tests compare
``live()`` before and after each of them.
"""
from libc.stdlib cimport calloc, free
from libc.string cimport memset

cdef extern from *:
    """
    #include <malloc.h>
    #ifdef WEAVE_DEBUG
    #define WEAVE_POISON 1
    #else
    #define WEAVE_POISON 0
    #endif
    static long weave_live;
    static inline void live_add(long n) { __atomic_fetch_add(&weave_live, n, __ATOMIC_RELAXED); }
    static inline long live_now(void) { return __atomic_load_n(&weave_live, __ATOMIC_RELAXED); }
    """
    void live_add(long n) nogil
    long live_now() nogil
    size_t malloc_usable_size(void *p) nogil
    bint WEAVE_POISON

DEBUG = bool(WEAVE_POISON)


cdef void *pool_new(size_t size) noexcept nogil:
    cdef void *p = calloc(1, size)
    if p != NULL:
        live_add(1)
    return p


cdef void pool_free(void *p) noexcept nogil:
    if p == NULL:
        return
    if WEAVE_POISON:
        memset(p, 0xA5, malloc_usable_size(p))  # who still looks at it sees no plausible value
    live_add(-1)
    free(p)


def live():
    """Buffers taken and not given back."""
    return live_now()
