# Frames that the router makes itself. See answers.pyx.
from libc.stdint cimport uint8_t

from weave_router.fastpath.frame cimport Frame
from weave_router.fastpath.state cimport Worker

cdef void tap_write(Worker *w, uint8_t *data, int size) noexcept nogil  # a frame made here (HEADROOM before it)
cdef int arp_inside(Worker *w, const Frame *f) noexcept nogil  # 1: dealt with; 0: flood it
cdef int nd_inside(Worker *w, const Frame *f) noexcept nogil  # ICMPv6 to a multicast MAC; the same
cdef void group_report(Worker *w, const Frame *f) noexcept nogil
cdef void too_big(Worker *w, int slot, const Frame *f, int mtu) noexcept nogil


cdef inline bint is_derived(const uint8_t *mac) noexcept nogil:
    return mac[0] == 0x0A and mac[1] == 0x58


cdef inline bint is_multicast(const uint8_t *mac) noexcept nogil:
    return mac[0] & 1
