# Sealing and sending. See transmit.pyx.
from libc.stdint cimport uint8_t, uint32_t

from weave_router.fastpath.state cimport Command, Node, Train, Worker

cdef enum:
    HEADROOM = 64  # free bytes that the caller guarantees before every frame it hands over

# Send one whole frame to a node that has a session and a path. Bytes before `data` (HEADROOM) are overwritten.
# `kind`, `index`, `size` go to the descriptor. Returns nothing: what cannot be sent is counted.
cdef void transmit_frame(Worker *w, int slot, uint8_t *data, int size, int flags, int kind, int index, int gso,
                         int tos) noexcept nogil
cdef void transmit_flush(Worker *w) noexcept nogil
cdef void transmit_command(Worker *w, Command *command) noexcept nogil
# Largest frame that one datagram to this node carries now; 0: no session or path.
cdef int frame_budget(Worker *w, int slot) noexcept nogil
