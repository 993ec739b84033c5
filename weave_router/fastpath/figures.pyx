# cython: language_level=3
"""What the workers counted, traced and captured, as Python objects; read while they run, nothing is stopped.

Called by engine with the GIL. What the names mean: counters.pxd; shapes and units: engine.pyi.
"""
from collections import namedtuple

from libc.stdint cimport uint8_t, uint64_t

from weave_router.fastpath.counters cimport C_COUNT, D_COUNT
from weave_router.fastpath.credits cimport CREDITS
from weave_router.fastpath.includes.native cimport acquire64, release32, release64, relaxed64, store_be64
from weave_router.fastpath.report cimport boottime_ns
from weave_router.fastpath.state cimport CAPTURE, STATIONS, TRACE, Capture, Captured, Session, Shared, TraceEntry, Worker

from weave_router.fastpath.counters import COUNTERS, DROP_REASONS

SessionFigures = namedtuple("SessionFigures", (
    "tx_packets", "tx_bytes", "rx_packets", "rx_bytes", "last_tx_ns", "last_rx_ns", "first_unanswered_ns", "rx_failed",
    "unanswered_rx_ns",
))

WorkerState = namedtuple("WorkerState", ("queue_bytes", "realtime"))


cdef dict counters_of(const Worker *w):
    return {COUNTERS[j]: relaxed64(&w.counters[j]) for j in range(<int>C_COUNT)}


cdef object state_of(const Worker *w):
    return WorkerState(relaxed64(&w.queues.bytes), w.scheduling.realtime != 0)


cdef dict counters_sum(list each):
    return {name: sum([one[name] for one in each]) for name in COUNTERS}


cdef dict drops_of(const Shared *s, Worker **workers, int n):
    cdef int i, j
    cdef uint64_t total
    found = {}
    for j in range(<int>D_COUNT):
        total = 0
        for i in range(n):
            total += relaxed64(&workers[i].drops[j])
        found[DROP_REASONS[j]] = total
    found["kernel_flow_credit"] = 0 if s.credits == NULL else relaxed64(<uint64_t *>(s.credits + CREDITS))
    return found


cdef object session_figures_of(const Session *it, int workers):
    cdef uint64_t tx = 0, tx_bytes = 0, rx = 0, rx_bytes = 0, failed = 0
    cdef int i
    for i in range(workers):
        tx += relaxed64(&it.tx[i].packets)
        tx_bytes += relaxed64(&it.tx[i].bytes)
        rx += relaxed64(&it.tx[i].rx_packets)
        rx_bytes += relaxed64(&it.tx[i].rx_bytes)
        failed += relaxed64(&it.tx[i].rx_failed)
    return SessionFigures(tx, tx_bytes, rx, rx_bytes, relaxed64(&it.last_tx_ns), relaxed64(&it.last_rx_ns),
                          relaxed64(&it.first_unanswered_ns), failed, relaxed64(&it.unanswered_rx_ns))


cdef list stations_of(Shared *s):
    cdef uint64_t now = boottime_ns()
    cdef uint8_t mac[8]
    cdef int i
    found = []
    for i in range(STATIONS):
        if s.stations[i].mac:
            store_be64(mac, s.stations[i].mac)
            found.append((mac[2:8], s.stations[i].slot, (now - s.stations[i].seen_ns) // 1000000))
    return found


cdef list trace_of(Worker *w):
    cdef uint64_t head = acquire64(&w.trace_head), at
    cdef TraceEntry *entry
    found = []
    for at in range(head - TRACE if head > TRACE else 0, head):
        entry = &w.trace[at & (TRACE - 1)]
        found.append((entry.ns, w.id, entry.what, entry.a, entry.b))
    return found


cdef int capture_begin(Capture *c, object slot, object number, int snap) except -1:
    if c.on:
        raise ValueError("a capture is running")
    c.slot = -1 if slot is None else slot
    c.number = -1 if number is None else number
    c.snap = min(max(snap, 64), 2048)
    c.head = c.tail = c.lost = 0
    release32(&c.on, 1)
    return 0


cdef list capture_take(Capture *c):
    cdef Captured *entry
    cdef uint64_t head = acquire64(&c.head)
    found = []
    while c.tail < head:
        entry = &c.ring[c.tail & (CAPTURE - 1)]
        found.append((entry.ns, entry.direction, entry.size, entry.data[:entry.kept]))
        release64(&c.tail, c.tail + 1)
    return found
