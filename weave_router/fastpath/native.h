/* Primitives that Cython has no words for: byte order, atomics, the Internet checksum. No logic lives here.
 * Included by the modules of fastpath/ through includes/native.pxd, by nothing else. */
#ifndef WEAVE_NATIVE_H
#define WEAVE_NATIVE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

static inline uint16_t load_be16(const uint8_t *p) { uint16_t v; memcpy(&v, p, 2); return __builtin_bswap16(v); }
static inline uint32_t load_be32(const uint8_t *p) { uint32_t v; memcpy(&v, p, 4); return __builtin_bswap32(v); }
static inline uint64_t load_be64(const uint8_t *p) { uint64_t v; memcpy(&v, p, 8); return __builtin_bswap64(v); }
static inline void store_be16(uint8_t *p, uint16_t v) { v = __builtin_bswap16(v); memcpy(p, &v, 2); }
static inline void store_be32(uint8_t *p, uint32_t v) { v = __builtin_bswap32(v); memcpy(p, &v, 4); }
static inline void store_be64(uint8_t *p, uint64_t v) { v = __builtin_bswap64(v); memcpy(p, &v, 8); }

#if defined(__x86_64__) || defined(__i386__)
static inline void cpu_relax(void) { __builtin_ia32_pause(); }
#else
static inline void cpu_relax(void) { __asm__ __volatile__("" ::: "memory"); }
#endif

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the checksum and virtio headers here assume a little-endian machine"
#endif

#define acquire_ptr(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define release_ptr(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
static inline uint64_t acquire64(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void release64(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline uint64_t relaxed64(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
static inline void set64(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
static inline uint32_t acquire32(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void release32(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline uint32_t exchange32(uint32_t *p, uint32_t v) { return __atomic_exchange_n(p, v, __ATOMIC_ACQ_REL); }
static inline void add32(uint32_t *p, uint32_t v) { __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }
static inline int claim_ptr(void **p, void *v) {
    void *expected = NULL;
    return __atomic_compare_exchange_n(p, &expected, v, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}
static inline void full_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

#define SPINS 256
/* The holder may be an ordinary thread that a real-time worker keeps from its CPU: after some microseconds let it run. */
static inline void spin_lock(uint32_t *l) {
    unsigned tries = 0;
    while (__atomic_exchange_n(l, 1, __ATOMIC_ACQUIRE))
        while (__atomic_load_n(l, __ATOMIC_RELAXED)) {
            if (++tries % SPINS)
                cpu_relax();
            else
                nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
        }
}
static inline void spin_unlock(uint32_t *l) { __atomic_store_n(l, 0, __ATOMIC_RELEASE); }

/* Sum of 16-bit words in memory order, RFC 1071; folded and complemented by the callers below. */
static inline uint64_t csum_partial(const uint8_t *p, size_t n, uint64_t sum) {
    uint64_t a = sum, b = 0, v;
    while (n >= 16) {
        uint64_t w;
        memcpy(&v, p, 8); memcpy(&w, p + 8, 8);
        a += (v & 0xffffffffu) + (v >> 32);
        b += (w & 0xffffffffu) + (w >> 32);
        p += 16; n -= 16;
    }
    a += b;
    while (n >= 2) { uint16_t s; memcpy(&s, p, 2); a += s; p += 2; n -= 2; }
    if (n) a += (uint16_t)*p;  /* little-endian: the odd byte is the low one */
    return a;
}
static inline uint16_t csum_fold(uint64_t s) {
    s = (s & 0xffffffffu) + (s >> 32);
    s = (s & 0xffffffffu) + (s >> 32);
    s = (s & 0xffff) + (s >> 16);
    s = (s & 0xffff) + (s >> 16);
    return (uint16_t)s;
}
/* Stored in memory order, as csum_partial sums. */
static inline void store_csum(uint8_t *p, uint16_t v) { memcpy(p, &v, 2); }
static inline uint16_t load_csum(const uint8_t *p) { uint16_t v; memcpy(&v, p, 2); return v; }

#endif
