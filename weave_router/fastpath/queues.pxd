# Frames read ahead of sealing, in a queue per flow. See queues.pyx.
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from weave_router.fastpath.credits cimport Credits, FlowCredit

cdef enum:
    QUEUE_FLOWS = 512  # queues; a power of two
    QUEUE_SOURCES = 64  # a power of two
    QUEUE_WAYS = 8  # neighbouring queues in which a flow looks for itself, or for an idle one
    QUEUE_WEIGHT = 4194304  # what may wait: about a TCP stream's window in superframes, some 2 ms of small frames
    FRAME_WEIGHT = 1536  # of a frame beside its bytes
    BULK_FRAME = 8192
    ARENA_BYTES = 5242880  # space is given back oldest first, so it is more than what may wait; the less, the warmer
    FRAME_ROOM = 66048  # for one read: Queued, headroom, the largest frame, and room behind
    QUANTUM = 16384  # cost that a flow may spend in its turn; shared by the flows of one source
    QUANTUM_LEAST = 512
    FRAME_COST = 2048  # what a frame costs beside its bytes: 1 us, in which 2 KB are cut, sealed and sent
    VICTIM_FRAMES = 32  # that a flow found longest gives way with, before it is looked for again
    NOWHERE = -1

# A frame in the arena. borrowed: everything points into the arena, and ends with queue_release.
cdef struct Queued:
    int32_t next  # offset of the flow's next frame; NOWHERE: the last
    int32_t flow
    uint32_t size
    uint32_t span  # arena bytes up to the next frame's header
    uint32_t freed
    uint8_t vnet[16]

cdef struct FlowQueue:
    uint32_t key  # hash of the flow that has it, while active
    int32_t source
    int32_t first  # offset of the oldest frame; NOWHERE: empty
    int32_t last
    int32_t next  # in the list of its turn
    int32_t turn  # 0: idle, 1: among the sparse, 2: among the others
    int32_t deficit
    uint32_t cost
    FlowCredit credit

cdef struct SourceQueue:
    uint32_t cost
    uint32_t active  # flows

cdef struct Turns:  # a list of flows
    int32_t first
    int32_t last

cdef struct Queues:
    uint64_t bytes  # waiting; read by others
    uint32_t frames
    uint32_t active  # flows with a turn
    uint32_t bulk  # bytes in frames above BULK_FRAME
    uint32_t head  # where the next read goes
    uint32_t tail  # the oldest frame's header
    uint32_t wrapped  # where the upper part ends while head is below tail; 0: it is not
    Turns sparse
    Turns others
    int32_t victim  # flow found longest last
    uint32_t victim_frames  # that it may still lose unasked,
    uint32_t victim_cost  # while it has more than this
    Credits credits
    FlowQueue flow[QUEUE_FLOWS]
    SourceQueue source[QUEUE_SOURCES]
    uint8_t arena[ARENA_BYTES]

cdef void queues_init(Queues *q) noexcept nogil
# Bound flows by these words (CREDITS of them), shared with the kernel's program; NULL: bind none. What waits stays.
cdef void queues_credits(Queues *q, uint32_t *words) noexcept nogil
# Room for FRAME_ROOM bytes: where a Queued and then the frame go; NULL: the arena is full. Nothing is taken yet.
cdef Queued *queue_place(Queues *q) noexcept nogil
# Take what queue_place gave: `span` bytes, a frame of `size` bytes of this flow and source, at the end of its flow.
cdef void queue_put(Queues *q, Queued *frame, uint32_t span, uint32_t size, uint32_t flow, uint32_t source) noexcept nogil
# The next frame by the discipline, off its queue; NULL: none. Its bytes stay until queue_release.
cdef Queued *queue_take(Queues *q) noexcept nogil
# The oldest frame of the longest flow of the source with most, or of one that was within the last VICTIM_FRAMES and
# still has half of what it had; never NULL while something waits.
cdef Queued *queue_victim(Queues *q) noexcept nogil
cdef void queue_release(Queues *q, Queued *frame) noexcept nogil

cdef inline uint64_t queue_weight(const Queues *q) noexcept nogil:
    return q.bytes + <uint64_t>q.frames * FRAME_WEIGHT


cdef inline bint queue_enough(const Queues *q) noexcept nogil:
    """Superframes beyond a TCP stream's window wait as well in the kernel's queue, which counts frames: many streams
    must not lose what that queue can hold."""
    return queue_weight(q) > QUEUE_WEIGHT - FRAME_ROOM - FRAME_WEIGHT and q.bulk > QUEUE_WEIGHT / 2


cdef inline bint queue_over(const Queues *q) noexcept nogil:
    return queue_weight(q) > QUEUE_WEIGHT
