# From the TAP to the peers. See inside.pyx.
from weave_router.fastpath.state cimport Worker

cdef int inside_burst(Worker *w) noexcept nogil  # frames read; 0: nothing there; -1: the TAP fails
cdef void inside_parked(Worker *w) noexcept nogil  # look at parked frames again
