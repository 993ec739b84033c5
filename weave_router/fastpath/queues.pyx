# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Which frame is sealed next when more than one waits: sparse flows first, then deficit round robin (RFC 8290).

Called by `inside` only, without the GIL; knows nothing of what a frame holds. Frames are read straight into an arena
and stay where they are, so waiting costs no copy and no allocation. Everything is counted in cost, bytes and a share
for the frame itself: small frames are dear because the CPU is what the flows share. The flows of one source (a pod)
share one quantum, so more flows do not buy more service. When more waits than may, the oldest frame of the longest flow
of the source with most gives way. `tests/unit/test_fastpath_queues.py` has the same in plain Python.
"""
from libc.stdint cimport int32_t, uint32_t
from libc.string cimport memset

from weave_router.fastpath.credits cimport credit_begin, credit_came, credit_end, credit_left, credit_mixed, credits_begin
from weave_router.fastpath.includes.native cimport set64


cdef inline Queued *at_offset(Queues *q, int32_t offset) noexcept nogil:
    return <Queued *>(q.arena + offset)


cdef inline int32_t offset_of(const Queues *q, const Queued *frame) noexcept nogil:
    return <int32_t>(<const unsigned char *>frame - q.arena)


cdef inline uint32_t cost_of(const Queued *frame) noexcept nogil:
    return frame.size + FRAME_COST


cdef void queues_init(Queues *q) noexcept nogil:
    cdef int i
    memset(q, 0, sizeof(Queues) - ARENA_BYTES)
    q.sparse.first = q.sparse.last = q.others.first = q.others.last = NOWHERE
    for i in range(QUEUE_FLOWS):
        q.flow[i].first = q.flow[i].last = q.flow[i].next = NOWHERE
    queues_credits(q, NULL)


cdef void queues_credits(Queues *q, uint32_t *words) noexcept nogil:
    cdef int i
    credits_begin(&q.credits, words)
    for i in range(QUEUE_FLOWS):
        q.flow[i].credit.bound = NOWHERE


# ---- the arena: a ring of frames, taken at the head, given back at the tail --------------------------------------


cdef Queued *queue_place(Queues *q) noexcept nogil:
    if q.tail == q.head and not q.wrapped:
        q.head = q.tail = 0  # empty: always the same, warm bytes
    if q.wrapped:
        return <Queued *>(q.arena + q.head) if q.head + FRAME_ROOM <= q.tail else NULL
    if q.head + FRAME_ROOM <= ARENA_BYTES:
        return <Queued *>(q.arena + q.head)
    if q.tail < FRAME_ROOM:
        return NULL
    q.wrapped = q.head
    q.head = 0
    return <Queued *>q.arena


cdef void queue_release(Queues *q, Queued *frame) noexcept nogil:
    frame.freed = 1
    while q.tail != q.head or q.wrapped:
        if q.wrapped and q.tail == q.wrapped:
            q.tail = 0
            q.wrapped = 0
            continue
        frame = at_offset(q, q.tail)
        if not frame.freed:
            return
        q.tail += frame.span


# ---- turns -------------------------------------------------------------------------------------------------------


cdef inline void turn_append(Queues *q, Turns *turns, int32_t index) noexcept nogil:
    q.flow[index].next = NOWHERE
    if turns.last == NOWHERE:
        turns.first = index
    else:
        q.flow[turns.last].next = index
    turns.last = index


cdef inline int32_t turn_shift(Queues *q, Turns *turns) noexcept nogil:
    cdef int32_t index = turns.first
    turns.first = q.flow[index].next
    if turns.first == NOWHERE:
        turns.last = NOWHERE
    return index


cdef inline int32_t quantum(const Queues *q, const FlowQueue *flow) noexcept nogil:
    cdef uint32_t active = q.source[flow.source].active
    cdef int32_t share = QUANTUM / active if active > 1 else QUANTUM
    return share if share > QUANTUM_LEAST else QUANTUM_LEAST


cdef inline int32_t flow_index(Queues *q, uint32_t key) noexcept nogil:
    """The flow's own queue, else an idle one, else one that it has to share."""
    cdef uint32_t way, base = key & (QUEUE_FLOWS - 1) & ~<uint32_t>(QUEUE_WAYS - 1)
    cdef int32_t idle = NOWHERE
    for way in range(QUEUE_WAYS):
        if q.flow[base + way].turn == 0:
            if idle == NOWHERE:
                idle = base + way
        elif q.flow[base + way].key == key:
            return base + way
    return idle if idle != NOWHERE else <int32_t>(key & (QUEUE_FLOWS - 1))


cdef void queue_put(Queues *q, Queued *frame, uint32_t span, uint32_t size, uint32_t flow, uint32_t source) noexcept nogil:
    cdef int32_t place = offset_of(q, frame)
    cdef int32_t index
    cdef FlowQueue *it
    cdef uint32_t key
    source &= QUEUE_SOURCES - 1
    key = (flow * <uint32_t>0x9E3779B1) ^ (source << 26)
    index = flow_index(q, key)
    it = &q.flow[index]
    frame.next = NOWHERE
    frame.flow = index
    frame.size = size
    frame.span = span
    frame.freed = 0
    q.head += span
    if it.turn == 0:
        it.key = key
        it.source = <int32_t>source
        it.turn = 1
        it.cost = 0
        q.active += 1
        credit_begin(&q.credits, &it.credit, flow)
        q.source[source].active += 1
        it.deficit = quantum(q, it)
        turn_append(q, &q.sparse, index)
    elif it.key != key:
        credit_mixed(&q.credits, &it.credit)
    if it.first == NOWHERE:
        it.first = place
    else:
        at_offset(q, it.last).next = place
    it.last = place
    it.cost += cost_of(frame)
    q.source[it.source].cost += cost_of(frame)
    credit_came(&q.credits, &it.credit, q.active == q.source[it.source].active)
    q.frames += 1
    if size > BULK_FRAME:
        q.bulk += size
    set64(&q.bytes, q.bytes + span)


cdef Queued *flow_pop(Queues *q, int32_t index) noexcept nogil:
    """The flow's oldest frame; there is one."""
    cdef FlowQueue *it = &q.flow[index]
    cdef Queued *frame = at_offset(q, it.first)
    it.first = frame.next
    if it.first == NOWHERE:
        it.last = NOWHERE
    it.cost -= cost_of(frame)
    q.source[it.source].cost -= cost_of(frame)
    credit_left(&q.credits, &it.credit)
    q.frames -= 1
    if frame.size > BULK_FRAME:
        q.bulk -= frame.size
    set64(&q.bytes, q.bytes - frame.span)
    return frame


cdef void flow_rest(Queues *q, int32_t index) noexcept nogil:
    """An empty flow leaves the turns."""
    q.flow[index].turn = 0
    q.active -= 1
    credit_end(&q.credits, &q.flow[index].credit)
    q.source[q.flow[index].source].active -= 1


cdef Queued *queue_take(Queues *q) noexcept nogil:
    cdef Turns *turns
    cdef FlowQueue *it
    cdef Queued *frame
    cdef int32_t index
    while True:
        turns = &q.sparse if q.sparse.first != NOWHERE else &q.others
        index = turns.first
        if index == NOWHERE:
            return NULL
        it = &q.flow[index]
        if it.first == NOWHERE:
            turn_shift(q, turns)
            if it.turn == 1 and q.others.first != NOWHERE:
                it.turn = 2  # not idle at once: it would come back as sparse ahead of those that wait
                turn_append(q, &q.others, index)
            else:
                flow_rest(q, index)
        elif it.deficit <= 0:
            turn_shift(q, turns)
            it.deficit += quantum(q, it)
            it.turn = 2
            turn_append(q, &q.others, index)
        else:
            frame = flow_pop(q, index)
            it.deficit -= <int32_t>cost_of(frame)
            return frame


cdef Queued *queue_victim(Queues *q) noexcept nogil:
    cdef int32_t i, source = 0, longest = NOWHERE
    if q.victim_frames and q.flow[q.victim].cost > q.victim_cost:
        q.victim_frames -= 1
        return flow_pop(q, q.victim)
    for i in range(1, QUEUE_SOURCES):
        if q.source[i].cost > q.source[source].cost:
            source = i
    for i in range(QUEUE_FLOWS):
        if q.flow[i].source == source and q.flow[i].first != NOWHERE and \
                (longest == NOWHERE or q.flow[i].cost > q.flow[longest].cost):
            longest = i
    if longest == NOWHERE:
        return NULL
    q.victim = longest
    q.victim_frames = VICTIM_FRAMES - 1
    q.victim_cost = q.flow[longest].cost / 2
    return flow_pop(q, longest)
