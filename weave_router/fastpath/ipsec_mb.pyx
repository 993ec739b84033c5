# cython: language_level=3, boundscheck=False, wraparound=False
"""AES-256-GCM by Intel's multi-buffer library (libipsec-mb), where the machine has it. Nothing of it is needed to build.

Loaded by soname, major versions 1 and 2. No struct of the library is declared here: its own manager, made for this CPU,
is searched for the exported one-shot function that it chose, and the functions of that name are taken by symbol. Key
schedule and context are memory of ours, larger than any version's; what `load` finds is believed only after known
answers and after nothing was written beyond. Called by aead, which decides whether this or OpenSSL serves.
"""
from libc.stdint cimport uint8_t, uint64_t, uintptr_t
from libc.string cimport memset

from weave_router.fastpath.aead cimport AAD_SIZE, TAG_SIZE, Cipher
from weave_router.fastpath.includes.dl cimport RTLD_LOCAL, RTLD_NOW, dlclose, dlopen, dlsym
from weave_router.fastpath.includes.openssl cimport CRYPTO_memcmp, OPENSSL_cleanse
from weave_router.fastpath.pool cimport pool_free, pool_new

ctypedef void (*crypt_fn)(const void *key, void *context, uint8_t *out, const uint8_t *data, uint64_t n,
                          const uint8_t *iv, const uint8_t *aad, uint64_t aad_n, uint8_t *tag, uint64_t tag_n) noexcept nogil
ctypedef void (*pre_fn)(const void *key, void *schedule) noexcept nogil
ctypedef unsigned int (*version_fn)() noexcept nogil
ctypedef void *(*alloc_fn)(uint64_t flags) noexcept nogil
ctypedef void (*manager_fn)(void *manager) noexcept nogil
ctypedef void (*auto_fn)(void *manager, void *arch) noexcept nogil

cdef enum:
    SCHEDULE_SIZE = 4096  # struct gcm_key_data: 1,008 bytes in 1.3
    CONTEXT_SIZE = 512  # struct gcm_context_data: 88 bytes in 1.3
    ALIGNMENT = 64
    MANAGER_WORDS = 96  # of the manager: flags, then one pointer per function; the GCM ones stand at word 34 in 1.x

cdef struct State:  # aligned inside `raw`
    uint8_t schedule[SCHEDULE_SIZE]
    uint8_t context[CONTEXT_SIZE]
    void *raw

cdef crypt_fn encrypt = NULL
cdef crypt_fn decrypt = NULL
cdef pre_fn prepare = NULL

SONAMES = {1: b"libIPSec_MB.so.1", 2: b"libIPSec_MB.so.2"}
KINDS = (b"vaes_avx512", b"vaes_avx2", b"avx512", b"avx_gen4", b"avx_gen2", b"sse")


cdef int mb_seal(Cipher *self, const uint8_t *nonce, const uint8_t *aad, const uint8_t *data, int n,
                 uint8_t *out) noexcept nogil:
    cdef State *state = <State *>self.context
    encrypt(state.schedule, state.context, out, data, <uint64_t>n, nonce, aad, AAD_SIZE, out + n, TAG_SIZE)
    return 0


cdef int mb_open(Cipher *self, const uint8_t *nonce, const uint8_t *aad, const uint8_t *data, int n,
                 uint8_t *out) noexcept nogil:
    """The library leaves the comparison of the tags to us: in constant time."""
    cdef State *state = <State *>self.context
    cdef uint8_t tag[TAG_SIZE]
    decrypt(state.schedule, state.context, out, data, <uint64_t>n, nonce, aad, AAD_SIZE, tag, TAG_SIZE)
    return 0 if CRYPTO_memcmp(tag, data + n, TAG_SIZE) == 0 else -1


cdef void mb_wipe(Cipher *self) noexcept nogil:
    cdef State *state = <State *>self.context
    cdef void *raw = state.raw
    OPENSSL_cleanse(state, sizeof(State))
    pool_free(raw)
    self.context = NULL


cdef int mb_init(Cipher *self, const uint8_t *key) noexcept nogil:
    cdef void *raw
    cdef State *state
    if prepare == NULL:
        return -1
    raw = pool_new(sizeof(State) + ALIGNMENT)
    if raw == NULL:
        return -1
    state = <State *>((<uintptr_t>raw + ALIGNMENT - 1) & ~<uintptr_t>(ALIGNMENT - 1))
    state.raw = raw
    prepare(key, state.schedule)
    self.seal = mb_seal
    self.open = mb_open
    self.wipe = mb_wipe
    self.context = state
    return 0


cdef object find(void *library, object words):
    """(kind, encrypt, decrypt, prepare) of the AES-256-GCM that the library chose for this CPU; None: not exported."""
    for kind in KINDS:
        chosen = <uintptr_t>dlsym(library, b"aes_gcm_enc_256_" + kind)
        if chosen and chosen in words:
            found = (kind, chosen, <uintptr_t>dlsym(library, b"aes_gcm_dec_256_" + kind),
                     <uintptr_t>dlsym(library, b"aes_gcm_pre_256_" + kind))
            return found if all(found) else None
    return None


cdef object choose(void *library, int major):
    """What `find` finds, of a library whose version is the one that its name says."""
    cdef version_fn version = <version_fn>dlsym(library, b"imb_get_version")
    cdef alloc_fn alloc = <alloc_fn>dlsym(library, b"alloc_mb_mgr")
    cdef auto_fn set_up = <auto_fn>dlsym(library, b"init_mb_mgr_auto")
    cdef manager_fn release = <manager_fn>dlsym(library, b"free_mb_mgr")
    cdef void **manager
    if version == NULL or alloc == NULL or set_up == NULL or release == NULL or version() >> 16 != <unsigned>major:
        return None
    manager = <void **>alloc(0)
    if manager == NULL:
        return None
    set_up(manager, NULL)
    words = {<uintptr_t>manager[i] for i in range(MANAGER_WORDS)}
    release(manager)
    found = find(library, words)
    return None if found is None else (f"libipsec-mb {major}.{version() >> 8 & 255}.{version() & 255}", *found)


cdef bint stays_inside():
    """Does the key schedule end before the room that it has? The context's is three times what 1.x takes."""
    cdef Cipher cipher
    cdef State *state
    cdef int i
    cdef bint untouched = True
    cdef bytes key = bytes(range(32)), zeros = bytes(16)
    if mb_init(&cipher, key) != 0:
        return False
    state = <State *>cipher.context
    memset(state.schedule, 0xA5, SCHEDULE_SIZE)
    memset(state.context, 0xA5, CONTEXT_SIZE)
    prepare(<const uint8_t *>key, state.schedule)
    mb_seal(&cipher, zeros, zeros, zeros, 0, &state.context[CONTEXT_SIZE - TAG_SIZE])
    for i in range(SCHEDULE_SIZE - 256, SCHEDULE_SIZE):
        untouched = untouched and state.schedule[i] == 0xA5
    for i in range(CONTEXT_SIZE - 128, CONTEXT_SIZE - TAG_SIZE):
        untouched = untouched and state.context[i] == 0xA5
    mb_wipe(&cipher)
    return untouched


def load():
    """Name and version of what was loaded; empty: none. Idempotent; the library stays loaded."""
    global encrypt, decrypt, prepare
    cdef void *library
    for major, soname in SONAMES.items():
        library = dlopen(soname, RTLD_NOW | RTLD_LOCAL)
        if library == NULL:
            continue
        found = choose(library, major)
        if found is not None:
            name, _, one, two, three = found
            encrypt, decrypt, prepare = <crypt_fn><uintptr_t>one, <crypt_fn><uintptr_t>two, <pre_fn><uintptr_t>three
            if stays_inside():
                return name
            encrypt, decrypt, prepare = NULL, NULL, NULL
        dlclose(library)
    return ""
