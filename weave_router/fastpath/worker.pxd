# One worker thread. See worker.pyx.
from weave_router.fastpath.state cimport Shared, Worker

cdef enum:
    GONE = -1  # Worker.seen while it sleeps or does not run

cdef Worker *worker_new(Shared *shared, int id, int workers) noexcept nogil
cdef void worker_free(Worker *w) noexcept nogil
cdef void worker_run(Worker *w) noexcept nogil
