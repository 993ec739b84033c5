# Which lane a flow is sealed on, and which queue of the TAP it is written through, where no program steers flows. Then
# tun gives a flow it has no entry for the queue of its own secret hash, every write moves the flow to the queue written
# through, and what was not written to for 3 s is forgotten. So a flow is noted with the worker that it is first read by
# or written through: that one's lane and queue are the flow's, also while tun lets another worker read it, who then
# shares the lane's counters. Each entry is one word: a race costs a stale one, never a torn one. Called by inside, join.
from libc.stdint cimport uint32_t

from weave_router.fastpath.frame cimport Frame, flow_hash
from weave_router.fastpath.includes.native cimport acquire32, release32
from weave_router.fastpath.state cimport FLOW_QUEUES, Worker


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
