# What the workers counted, traced and captured, as Python objects. See figures.pyx.
from weave_router.fastpath.state cimport Capture, Session, Shared, Worker

cdef dict counters_of(const Worker *w)
cdef dict counters_sum(list each)
cdef object state_of(const Worker *w)
cdef dict drops_of(const Shared *s, Worker **workers, int n)
cdef object session_figures_of(const Session *it, int workers)
cdef list stations_of(Shared *s)
cdef list trace_of(Worker *w)
cdef int capture_begin(Capture *c, object slot, object number, int snap) except -1
cdef list capture_take(Capture *c)
