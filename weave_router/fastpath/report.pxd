# What a worker tells the control plane: counts, events, the trace ring, captured frames. Nothing here blocks.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from weave_router.fastpath.counters cimport C_EVENTS_LOST, Counter, Drop
from weave_router.fastpath.includes.linux cimport CLOCK_BOOTTIME, CLOCK_REALTIME, clock_gettime, timespec, write
from weave_router.fastpath.includes.native cimport (
    acquire32,
    acquire64,
    exchange32,
    load_be32,
    release64,
    set64,
    spin_lock,
    spin_unlock,
)
from weave_router.fastpath.frame cimport ETHERTYPE_ARP, Frame
from weave_router.fastpath.state cimport (
    CAPTURE,
    EVENT_BYTES,
    EVENTS,
    TRACE,
    Capture,
    Captured,
    Event,
    TraceEntry,
    Worker,
)

cdef enum:
    EV_HANDSHAKE_ = 1
    EV_VERSION_ = 2
    EV_TOKEN_ = 3
    EV_CONTROL_ = 4
    EV_NEED_SESSION_ = 5
    EV_CONFIRMED_ = 6
    EV_CANDIDATE_ = 7
    EV_REKEY_ = 8
    EV_PATH_ERROR_ = 9
    EV_GSO_OFF_ = 10
    EV_ANNOUNCE_ = 11
    EV_GROUP_ = 12


cdef inline uint64_t boottime_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_BOOTTIME, &t)
    return <uint64_t>t.tv_sec * 1000000000 + <uint64_t>t.tv_nsec


cdef inline void count(Worker *w, Counter which, uint64_t n) noexcept nogil:
    set64(&w.counters[<int>which], w.counters[<int>which] + n)


cdef inline void drop(Worker *w, Drop why) noexcept nogil:
    set64(&w.drops[<int>why], w.drops[<int>why] + 1)


cdef inline void trace(Worker *w, uint32_t what, uint32_t a, uint64_t b) noexcept nogil:
    cdef TraceEntry *entry = &w.trace[w.trace_head & (TRACE - 1)]
    entry.ns = w.now
    entry.what = what
    entry.a = a
    entry.b = b
    release64(&w.trace_head, w.trace_head + 1)


cdef inline void drop_traced(Worker *w, Drop why, uint32_t a) noexcept nogil:
    drop(w, why)
    trace(w, 1000 + <uint32_t>why, a, 0)


cdef inline Event *event_begin(Worker *w, uint32_t kind, uint32_t a, uint32_t b) noexcept nogil:
    """The next free event, or NULL (counted) when Python is behind."""
    cdef Event *event
    if w.event_head - acquire64(&w.event_tail) >= EVENTS:
        count(w, C_EVENTS_LOST, 1)
        return NULL
    event = &w.events[w.event_head & (EVENTS - 1)]
    event.kind = kind
    event.a = a
    event.b = b
    event.size = 0
    event.wire_size = 0
    event.local_family = 0
    return event


cdef inline void event_end(Worker *w) noexcept nogil:
    cdef uint64_t one = 1
    release64(&w.event_head, w.event_head + 1)
    if exchange32(&w.shared.event_armed, 0):
        write(w.shared.event_fd, &one, 8)


cdef inline void event_simple(Worker *w, uint32_t kind, uint32_t a, uint32_t b) noexcept nogil:
    if event_begin(w, kind, a, b) != NULL:
        event_end(w)


cdef inline void event_data(Worker *w, uint32_t kind, uint32_t a, const uint8_t *data, int size) noexcept nogil:
    cdef Event *event = event_begin(w, kind, a, 0)
    if event == NULL:
        return
    memcpy(event.data, data, size if size < EVENT_BYTES else EVENT_BYTES)
    event.size = size if size < EVENT_BYTES else EVENT_BYTES
    event_end(w)


cdef inline bint capture_wants(const Capture *c, int slot, const Frame *f) noexcept nogil:
    cdef uint32_t source = 0, target = 0
    if c.slot >= 0 and c.slot != slot:
        return False
    if c.number < 0:
        return True
    if f.family == 4:
        source, target = load_be32(f.data + f.l3 + 12), load_be32(f.data + f.l3 + 16)
    elif f.family == 6:
        source, target = load_be32(f.data + f.l3 + 20), load_be32(f.data + f.l3 + 36)
    elif f.ethertype == ETHERTYPE_ARP and f.size >= f.l3 + 28:
        source, target = load_be32(f.data + f.l3 + 14), load_be32(f.data + f.l3 + 24)
    return source == c.number or target == c.number


cdef inline void capture(Worker *w, uint32_t direction, int slot, const Frame *f) noexcept nogil:
    """Copy a frame to the capture ring if somebody listens. Costs one load when nobody does."""
    cdef Capture *c = w.shared.capture
    cdef Captured *entry
    cdef timespec t
    if acquire32(&c.on) == 0 or not capture_wants(c, slot, f):
        return
    clock_gettime(CLOCK_REALTIME, &t)
    spin_lock(&c.lock)
    if c.head - acquire64(&c.tail) >= CAPTURE:
        c.lost += 1
    else:
        entry = &c.ring[c.head & (CAPTURE - 1)]
        entry.ns = <uint64_t>t.tv_sec * 1000000000 + <uint64_t>t.tv_nsec
        entry.direction = direction
        entry.size = f.size
        entry.kept = f.size if f.size < <int>c.snap else c.snap
        memcpy(entry.data, f.data, entry.kept)
        release64(&c.head, c.head + 1)
    spin_unlock(&c.lock)
