# Joining segments and writing to the TAP. See join.pyx.
from weave_router.fastpath.frame cimport Frame
from weave_router.fastpath.state cimport Worker

# Join f with what its flow has waiting, or write it. `open`: TCP or UDP whose checksum is to be made from our own parse.
# borrowed: f.data until joins_flush.
cdef void join_or_write(Worker *w, Frame *f, bint open) noexcept nogil
cdef void joins_flush(Worker *w) noexcept nogil
