# AES-256-GCM by Intel's multi-buffer library. See ipsec_mb.pyx.
from libc.stdint cimport uint8_t

from weave_router.fastpath.aead cimport Cipher

# 0 or -1: not loaded, or no memory. `key` is 32 bytes, copied. The caller calls wipe() once.
cdef int mb_init(Cipher *self, const uint8_t *key) noexcept nogil
