# How many more frames of a flow the kernel lets come, while they come faster than they leave. A TAP's queue is first in,
# first out: what overruns it takes frames of every pod. So a flow of which BIND_FRAMES wait here is bound: CREDIT_FRAMES
# of it may be on their way, for each that leaves one may come, and the program of host/steering.py drops the others
# before they cost a read. A pod alone takes nothing from anybody and may fill the kernel's queue; a bound ends when the
# pod has been alone, or the flow not deep, for a while, whatever happened to its frames. Called by queues alone.
from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.string cimport memset

from weave_router.fastpath.includes.native cimport acquire32, add32, release32

cdef enum:
    CREDITS = 65536  # words in the map, by flow hash; a power of two
    CREDITS_BYTES = CREDITS * 4 + 8  # behind them, 64 bits: frames dropped for want of credit
    UNBOUND = 0  # a word: all frames come; so with less, where the program took credit just as the bound ended
    SPENT = 65536  # none more, SPENT + n: n more; a little less where CPUs took the last one at the same time
    BIND_FRAMES = 512  # more than bursts have, less than the kernel's queue holds
    CREDIT_FRAMES = 256  # through queue and arena: some 0.3 ms
    CREDIT_BOUNDS = 64  # flows bound at a time; one more is not
    BOUND_NS = 100000000  # from when a flow was last deep (half of CREDIT_FRAMES waited), or last had company
    SWEEP_NS = 50000000

cdef struct Bound:
    uint32_t index
    uint32_t used
    uint64_t deep_ns

cdef struct Credits:
    uint32_t *words  # the map, shared with the kernel; NULL: it takes no program
    uint64_t now  # of the burst
    uint64_t swept_ns
    uint64_t shared_ns  # when frames of two sources waited last
    int32_t bounds  # used ones
    Bound bound[CREDIT_BOUNDS]

# A flow's part, from its first waiting frame to its last.
cdef struct FlowCredit:
    uint32_t index
    uint32_t frames  # that wait
    int32_t bound  # slot; -1: none
    uint32_t mixed  # frames of another flow wait among them, so they are counted for nobody


cdef inline void credits_begin(Credits *c, uint32_t *words) noexcept nogil:
    memset(c, 0, sizeof(Credits))
    c.words = words


cdef inline bint is_bound(const Credits *c, const FlowCredit *it) noexcept nogil:
    return it.bound >= 0 and c.bound[it.bound].used and c.bound[it.bound].index == it.index


cdef inline void credit_begin(const Credits *c, FlowCredit *it, uint32_t hashed) noexcept nogil:
    """The flow has its first frame; it may be bound from before."""
    cdef int32_t i
    it.index = hashed & (CREDITS - 1)
    it.frames = 0
    it.bound = -1
    it.mixed = 0
    if c.bounds and not is_free(c, it.index):
        for i in range(CREDIT_BOUNDS):
            if c.bound[i].used and c.bound[i].index == it.index:
                it.bound = i
                return


cdef inline bint is_free(const Credits *c, uint32_t index) noexcept nogil:
    return <int32_t>acquire32(&c.words[index]) <= UNBOUND


cdef inline void bind_flow(Credits *c, FlowCredit *it) noexcept nogil:
    """Two flows of one word share its credit; a word that another worker has bound is its business."""
    cdef int32_t i, unused = -1
    for i in range(CREDIT_BOUNDS):
        if c.bound[i].used and c.bound[i].index == it.index:
            it.bound = i
            return
        if not c.bound[i].used and unused < 0:
            unused = i
    if unused < 0 or not is_free(c, it.index):
        return
    c.bound[unused].used = 1
    c.bound[unused].index = it.index
    c.bounds += 1
    it.bound = unused
    release32(&c.words[it.index], SPENT)


cdef inline void unbind(Credits *c, int32_t slot) noexcept nogil:
    c.bound[slot].used = 0
    c.bounds -= 1
    release32(&c.words[c.bound[slot].index], UNBOUND)


cdef inline void credit_mixed(Credits *c, FlowCredit *it) noexcept nogil:
    """Frames of another flow come into this one's queue: what waits and leaves says nothing about either."""
    it.mixed = 1
    if is_bound(c, it):
        unbind(c, it.bound)


cdef inline bint is_shared(const Credits *c) noexcept nogil:
    return c.now - c.shared_ns < BOUND_NS


cdef inline void credit_came(Credits *c, FlowCredit *it, bint alone) noexcept nogil:
    it.frames += 1
    if not alone:
        c.shared_ns = c.now
    if it.frames <= CREDIT_FRAMES / 2 or c.words == NULL or it.mixed:
        return
    if it.frames > BIND_FRAMES and is_shared(c) and not is_bound(c, it):
        bind_flow(c, it)
    if is_bound(c, it):
        c.bound[it.bound].deep_ns = c.now


cdef inline void credit_left(Credits *c, FlowCredit *it) noexcept nogil:
    """A frame left, so another may come; none for those that were here already when the flow was bound."""
    it.frames -= 1
    if it.bound >= 0 and it.frames < CREDIT_FRAMES and is_bound(c, it):
        add32(&c.words[it.index], 1)


cdef inline void credit_end(Credits *c, FlowCredit *it) noexcept nogil:
    """Nothing of the flow waits: all of its credit is there again, also what frames took that went straight through or
    that the kernel's full queue dropped."""
    if is_bound(c, it):
        release32(&c.words[it.index], SPENT + CREDIT_FRAMES)


cdef inline void credits_sweep(Credits *c, uint64_t now) noexcept nogil:
    """Once per burst: end what ran out."""
    cdef int32_t i
    c.now = now
    if c.bounds == 0 or now - c.swept_ns < SWEEP_NS:
        return
    c.swept_ns = now
    for i in range(CREDIT_BOUNDS):
        if c.bound[i].used and (now - c.bound[i].deep_ns > BOUND_NS or not is_shared(c)):
            unbind(c, i)
