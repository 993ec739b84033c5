# The ciphers of the data channel, behind one struct of function pointers. A Cipher belongs to one worker and one
# direction: contexts are not shared between threads.
from libc.stdint cimport uint8_t

cdef enum:
    TAG_SIZE = 16
    AAD_SIZE = 16
    NONCE_SIZE = 12
    AESGCM = 1
    CHACHAPOLY = 2

cdef struct Cipher:
    int (*seal)(Cipher *self, const uint8_t *nonce, const uint8_t *aad, const uint8_t *data, int n, uint8_t *out) noexcept nogil
    int (*open)(Cipher *self, const uint8_t *nonce, const uint8_t *aad, const uint8_t *data, int n, uint8_t *out) noexcept nogil
    void (*wipe)(Cipher *self) noexcept nogil
    void *context

# 0 or -1. `key` is 32 bytes, copied. The caller calls wipe() once. `plain_openssl`: OpenSSL's even where another is faster.
cdef int cipher_init(Cipher *self, int suite, const uint8_t *key, bint sealing, bint plain_openssl) noexcept nogil
