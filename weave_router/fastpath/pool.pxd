# Every buffer of the fast path that is taken and given back at run time. See pool.pyx.
cdef void *pool_new(size_t size) noexcept nogil  # zeroed; NULL: no memory
cdef void pool_free(void *p) noexcept nogil  # NULL is nothing
