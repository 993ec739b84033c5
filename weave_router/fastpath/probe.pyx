# cython: language_level=3
"""Inner functions of the fast path as Python sees them, for tests only: the replay window, the parser, checksums.

The product imports nothing from here. No logic of its own: each function copies in, calls, copies out.
"""
from array import array
from collections import namedtuple

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from weave_router.fastpath.frame cimport (
    Frame,
    complete_checksum as c_complete_checksum,
    flow_hash as c_flow_hash,
    ipv4_checksum as c_ipv4_checksum,
    parse_untrusted as c_parse_untrusted,
    seed_checksum,
)
from weave_router.fastpath.includes.linux cimport CLOCK_THREAD_CPUTIME_ID, clock_gettime, sched_yield, timespec
from weave_router.fastpath.includes.native cimport (
    acquire32,
    acquire64,
    add32,
    csum_fold,
    csum_partial,
    release32,
    spin_lock,
    spin_unlock,
)
from weave_router.fastpath.credits cimport CREDITS, credits_sweep
from weave_router.fastpath.lanes cimport next_nonces
from weave_router.fastpath.queues cimport (
    FRAME_COST as C_FRAME_COST,
    QUANTUM as C_QUANTUM,
    QUANTUM_LEAST as C_QUANTUM_LEAST,
    QUEUE_FLOWS as C_QUEUE_FLOWS,
    QUEUE_WEIGHT as C_QUEUE_WEIGHT,
    VICTIM_FRAMES as C_VICTIM_FRAMES,
    Queued,
    Queues as CQueues,
    queue_over,
    queue_place,
    queue_put,
    queue_release,
    queue_take,
    queue_victim,
    queues_credits,
    queue_weight,
    queues_init,
)
from weave_router.fastpath.replay cimport WINDOW_SIZE as C_WINDOW_SIZE
from weave_router.fastpath.replay cimport Window as CWindow, window_accept
from weave_router.fastpath.state cimport Shared, TxLane, Worker

WINDOW_SIZE = C_WINDOW_SIZE
FRAME_COST, QUANTUM, QUANTUM_LEAST = C_FRAME_COST, C_QUANTUM, C_QUANTUM_LEAST
QUEUE_WEIGHT, QUEUE_FLOWS, VICTIM_FRAMES = C_QUEUE_WEIGHT, C_QUEUE_FLOWS, C_VICTIM_FRAMES

cdef enum:
    MOST_RUNS = 1 << 28  # some seconds: readers that never meet give up

Parsed = namedtuple("Parsed", ("ethertype", "family", "l3", "l4", "protocol", "end", "payload", "fragment"))


cdef uint64_t thread_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t)
    return <uint64_t>t.tv_sec * 1000000000 + <uint64_t>t.tv_nsec


cdef class Window:
    cdef CWindow window

    def accept(self, uint64_t counter):
        return bool(window_accept(&self.window, counter))

    def accept_all(self, uint64_t first, uint64_t end):
        cdef uint64_t counter
        cdef long fresh = 0
        with nogil:
            for counter in range(first, end):
                fresh += window_accept(&self.window, counter)
        return fresh

    def accept_newest(self, uint64_t end):
        cdef uint64_t newest = 0
        cdef long fresh = 0
        with nogil:
            while newest < end:
                newest = acquire64(&self.window.newest)
                fresh += window_accept(&self.window, newest)
        return fresh


cdef class Lock:
    cdef uint32_t word

    def hold(self, uint64_t ns):
        """Take it and be busy for so long a CPU time."""
        cdef uint64_t until
        with nogil:
            spin_lock(&self.word)
            until = thread_ns() + ns
            while thread_ns() < until:
                pass
            spin_unlock(&self.word)

    def held(self):
        return bool(acquire32(&self.word))


cdef class Lane:
    """The counters of a lane where no program steers, which readers share."""
    cdef TxLane lane
    cdef Shared *shared
    cdef uint32_t here, met

    def __cinit__(self):
        self.shared = <Shared *>calloc(1, sizeof(Shared))
        if self.shared == NULL:
            raise MemoryError
        self.shared.steer_by_write = 1

    def __dealloc__(self):
        free(self.shared)

    def take(self, int epoch, int n, size_t times, uint32_t readers, size_t meetings):
        cdef uint64_t[::1] firsts = array("Q", bytes(8 * (times + meetings + 1)))
        cdef uint64_t[::1] runs = array("Q", bytes(8 * (times + meetings + 1)))
        cdef Worker *reader = <Worker *>calloc(1, sizeof(Worker))
        cdef uint64_t counter, expected = 0
        cdef size_t taken = 0, spans = 0
        if reader == NULL:
            raise MemoryError
        reader.shared = self.shared
        reader.workers = 2
        with nogil:
            add32(&self.here, 1)
            while acquire32(&self.here) < readers:
                sched_yield()
            while taken < times or (spans <= meetings and not acquire32(&self.met) and taken < MOST_RUNS):
                counter = next_nonces(reader, &self.lane, epoch, n)
                taken += 1
                if counter == 0 or counter != expected:
                    firsts[spans] = counter
                    spans += 1
                runs[spans - 1] += 1
                expected = counter + n
            release32(&self.met, 1)
        free(reader)
        return list(zip(firsts[:spans], runs[:spans], strict=True))


cdef class Queues:
    """Frames are numbers here; what waits lies in the arena as in a worker."""
    cdef CQueues *q
    cdef object words

    def __cinit__(self):
        self.q = <CQueues *>calloc(1, sizeof(CQueues))
        if self.q == NULL:
            raise MemoryError
        queues_init(self.q)

    def __dealloc__(self):
        free(self.q)

    def use_credits(self, object words, uint64_t now):
        cdef uint32_t[::1] view = words
        if len(words) < CREDITS:
            raise ValueError(f"{CREDITS} words")
        self.words = words
        queues_credits(self.q, &view[0])
        self.burst(now)

    def burst(self, uint64_t now):
        credits_sweep(&self.q.credits, now)

    def put(self, uint32_t number, uint32_t size, uint32_t flow, uint32_t source):
        """Numbers of the frames that gave way; None: the arena is full."""
        cdef Queued *frame = queue_place(self.q)
        if frame == NULL:
            return None
        memset(<uint8_t *>frame + sizeof(Queued), number & 255, size)  # a sanitizer sees what overlaps
        memcpy(frame.vnet, &number, 4)
        queue_put(self.q, frame, (128 + size + 63) & ~<uint32_t>63, size, flow, source)
        gone = []
        while queue_over(self.q):
            gone.append(self._out(queue_victim(self.q)))
        return gone

    def take(self):
        cdef Queued *frame = queue_take(self.q)
        return None if frame == NULL else self._out(frame)

    cdef _out(self, Queued *frame):
        cdef uint32_t number, i
        cdef uint8_t *data = <uint8_t *>frame + sizeof(Queued)
        memcpy(&number, frame.vnet, 4)
        for i in range(frame.size):
            if data[i] != number & 255:
                raise AssertionError(f"frame {number} was overwritten")
        queue_release(self.q, frame)
        return number

    @property
    def waiting(self):
        """(frames, bytes, weight)"""
        return self.q.frames, self.q.bytes, queue_weight(self.q)


cdef uint8_t *copy_of(bytes data) except NULL:
    """On the heap and not a byte longer, so that a sanitizer sees a read beyond the end."""
    cdef uint8_t *copy = <uint8_t *>calloc(1, max(len(data), 1))
    if copy == NULL:
        raise MemoryError
    memcpy(copy, <const uint8_t *>data, len(data))
    return copy


def parse_untrusted(bytes data):
    cdef uint8_t *copy = copy_of(data)
    cdef Frame f
    c_parse_untrusted(&f, copy, len(data))
    free(copy)
    return Parsed(f.ethertype, f.family, f.l3, f.l4, f.protocol, f.end, f.payload, bool(f.fragment))


def flow_hash(bytes data):
    cdef uint8_t *copy = copy_of(data)
    cdef Frame f
    c_parse_untrusted(&f, copy, len(data))
    value = c_flow_hash(&f)
    free(copy)
    return value


def checksum(bytes data, uint64_t start=0):
    """Folded sum of 16-bit words as they lie in memory, not complemented."""
    return csum_fold(csum_partial(data, len(data), start))


def complete_checksum(bytes data, int end, int start, int offset):
    if not (0 <= start <= end <= len(data) and 0 <= offset and start + offset + 2 <= len(data)):
        raise ValueError("outside the frame")
    cdef uint8_t *copy = copy_of(data)
    c_complete_checksum(copy, end, start, offset)
    result = <bytes>copy[:len(data)]
    free(copy)
    return result


def ipv4_checksum(bytes header):
    if len(header) < 20 or len(header) < (header[0] & 15) * 4:
        raise ValueError("not a whole header")
    cdef uint8_t *copy = copy_of(header)
    c_ipv4_checksum(copy)
    result = <bytes>copy[:len(header)]
    free(copy)
    return result


def open_checksum(bytes data):
    """The frame with the pseudo-header's sum where the kernel wants it for CHECKSUM_PARTIAL, and the same completed."""
    cdef uint8_t *copy = copy_of(data)
    cdef Frame f
    c_parse_untrusted(&f, copy, len(data))
    try:
        if f.payload == 0:
            raise ValueError("neither TCP nor UDP")
        seed_checksum(&f)
        seeded = <bytes>copy[:len(data)]
        c_complete_checksum(copy, f.end, f.l4, 16 if f.protocol == 6 else 6)
        return seeded, <bytes>copy[:len(data)]
    finally:
        free(copy)
