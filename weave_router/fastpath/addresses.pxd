# Socket addresses between text and the kernel's structs. See addresses.pyx.
from weave_router.fastpath.includes.linux cimport sockaddr_in6
from weave_router.fastpath.state cimport Event, Path

cdef object endpoint_of(const sockaddr_in6 *a)  # (text, port)
cdef object local_of(const Event *event)  # text; empty: not known
cdef int family_of(int fd) except -1  # of a bound socket
cdef int fill_path(Path *path, object remote, object local, int family) except -1
