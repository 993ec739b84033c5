# Declarations of native.h.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "native.h" nogil:
    uint16_t load_be16(const uint8_t *p)
    uint32_t load_be32(const uint8_t *p)
    uint64_t load_be64(const uint8_t *p)
    void store_be16(uint8_t *p, uint16_t v)
    void store_be32(uint8_t *p, uint32_t v)
    void store_be64(uint8_t *p, uint64_t v)
    void *acquire_ptr(void *p)
    void release_ptr(void *p, void *v)
    uint64_t acquire64(const uint64_t *p)
    void release64(uint64_t *p, uint64_t v)
    uint64_t relaxed64(const uint64_t *p)
    void set64(uint64_t *p, uint64_t v)
    uint32_t acquire32(const uint32_t *p)
    void release32(uint32_t *p, uint32_t v)
    uint32_t exchange32(uint32_t *p, uint32_t v)
    void add32(uint32_t *p, uint32_t v)
    bint claim_ptr(void **p, void *v)  # store v where NULL was; False: another was first
    void full_fence()
    void cpu_relax()
    void spin_lock(uint32_t *lock)
    void spin_unlock(uint32_t *lock)
    uint64_t csum_partial(const uint8_t *p, size_t n, uint64_t sum)
    uint16_t csum_fold(uint64_t sum)
    void store_csum(uint8_t *p, uint16_t v)
    uint16_t load_csum(const uint8_t *p)
