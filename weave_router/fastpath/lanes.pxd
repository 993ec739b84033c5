# Which queue of the TAP a flow comes on, where no program steers flows. Then tun gives a flow it has no entry for the
# queue of its own secret hash, and every write moves the flow to the queue written through. So a worker notes each flow
# it reads, and whoever writes the flow's reverse does it through that queue; a flow never read yet begins on one of our
# choice. Each entry is one word: a race costs a stale one, never a torn one. Called by inside and join.
from libc.stdint cimport uint32_t

from weave_router.fastpath.frame cimport Frame, flow_hash
from weave_router.fastpath.includes.native cimport acquire32, release32
from weave_router.fastpath.state cimport FLOW_QUEUES, Worker


cdef inline bint queues_are_kept(const Worker *w) noexcept nogil:
    return w.shared.steer_by_write and w.workers > 1


cdef inline void keep_queue(Worker *w, const Frame *f) noexcept nogil:
    """This flow was read from our queue."""
    cdef uint32_t flow = flow_hash(f)
    cdef uint32_t *entry = &w.shared.flow_queue[flow & (FLOW_QUEUES - 1)]
    flow = flow << 8 | <uint32_t>(w.id + 1)
    if acquire32(entry) != flow:
        release32(entry, flow)


cdef inline int kept_queue(const Worker *w, const Frame *f) noexcept nogil:
    """Descriptor of the queue this flow was last read from."""
    cdef uint32_t flow = flow_hash(f)
    cdef uint32_t entry = acquire32(&w.shared.flow_queue[flow & (FLOW_QUEUES - 1)])
    if entry >> 8 == flow and entry & 255:
        return w.shared.tap_fds[(entry & 255) - 1]
    return w.shared.tap_fds[flow % <uint32_t>w.workers]
