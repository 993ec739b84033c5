# Which lane a flow is sealed on, and which queue of the TAP it is written through, where no program steers flows. Then
# tun gives a flow it has no entry for the queue of its own secret hash, every write moves the flow to the queue written
# through, and what was not written to for 3 s is forgotten. So a flow is noted with the worker that it is first read by
# or written through: that one's lane and queue are the flow's, also while tun lets another worker read it, who then
# shares the lane's counters. Each entry is one word: a race costs a stale one, never a torn one. Called by inside, join, transmit.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from weave_router.fastpath.frame cimport Frame, flow_hash
from weave_router.fastpath.includes.native cimport acquire32, release32, spin_lock, spin_unlock
from weave_router.fastpath.state cimport FLOW_QUEUES, TxLane, Worker


cdef inline bint lanes_are_kept(const Worker *w) noexcept nogil:
    return w.shared.steer_by_write and w.workers > 1


cdef inline int noted(Worker *w, uint32_t flow, int unknown) noexcept nogil:
    """The worker whose flow it is; noted as `unknown`'s when it is nobody's yet."""
    cdef uint32_t *entry = &w.shared.flow_queue[flow & (FLOW_QUEUES - 1)]
    cdef uint32_t found = acquire32(entry)
    if found >> 8 == flow >> 8 and found & 255:
        return <int>(found & 255) - 1
    release32(entry, flow & ~<uint32_t>255 | <uint32_t>(unknown + 1))
    return unknown


cdef inline int lane_of(Worker *w, const Frame *f) noexcept nogil:
    """Of a flow that we read."""
    return noted(w, flow_hash(f), w.id) if lanes_are_kept(w) else w.id


cdef inline int queue_of(Worker *w, const Frame *f) noexcept nogil:
    """Descriptor of the queue that the flow is written through: our own where a program steers."""
    cdef uint32_t flow
    if not lanes_are_kept(w):
        return w.tap_fd
    flow = flow_hash(f)
    return w.shared.tap_fds[noted(w, flow, <int>(flow % <uint32_t>w.workers))]


cdef inline uint64_t take_nonces(TxLane *lane, int epoch, int n) noexcept nogil:
    """The first of `n` consecutive counters. 0 when this epoch was used and left before."""
    if not lane.live or lane.epoch != epoch:
        if lane.used & (1 << epoch):
            return 0
        lane.used |= <uint16_t>(1 << epoch)
        lane.epoch = <uint8_t>epoch
        lane.live = 1
        lane.counter = 0
    lane.counter += <uint64_t>n
    return lane.counter - <uint64_t>n + 1


cdef inline uint64_t next_nonces(const Worker *w, TxLane *lane, int epoch, int n) noexcept nogil:
    """The same for who shares the lane."""
    cdef uint64_t first
    if not lanes_are_kept(w):
        return take_nonces(lane, epoch, n)
    spin_lock(&lane.lock)
    first = take_nonces(lane, epoch, n)
    spin_unlock(&lane.lock)
    return first
