# From the peers to the TAP. See outside.pyx.
from weave_router.fastpath.state cimport Worker

cdef int outside_burst(Worker *w) noexcept nogil  # messages received; 0: nothing there
