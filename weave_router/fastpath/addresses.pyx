# cython: language_level=3
"""Socket addresses between text and the kernel's structs. Called by engine with the GIL, never by a worker.

An IPv4 address on a dual-stack socket is mapped on the way in and told as dotted quad on the way out.
"""
import socket

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t
from libc.string cimport memcpy, memset

from weave_router.fastpath.includes.linux cimport (
    AF_INET as C_AF_INET,
    AF_INET6 as C_AF_INET6,
    CMSG_LEN,
    CMSG_SPACE,
    IP_PKTINFO,
    IPPROTO_IP,
    IPPROTO_IPV6,
    IPV6_PKTINFO,
    cmsghdr,
    errno,
    getsockname,
    in6_pktinfo,
    in_pktinfo,
    sockaddr,
    sockaddr_in,
    sockaddr_in6,
    socklen_t,
)
from weave_router.fastpath.state cimport Event, Path

cdef object inet_pton = socket.inet_pton
cdef object inet_ntop = socket.inet_ntop
cdef object AF4 = socket.AF_INET
cdef object AF6 = socket.AF_INET6
cdef bytes MAPPED = b"\0" * 10 + b"\xff\xff"


cdef int family_of(int fd) except -1:
    cdef sockaddr_in6 name
    cdef socklen_t n = sizeof(name)
    if getsockname(fd, <sockaddr *>&name, &n) != 0:
        raise OSError(errno, "getsockname")
    return name.sin6_family


cdef object text_of(const uint8_t *address, int n):
    """Address bytes as text; IPv4-mapped as dotted quad."""
    raw = PyBytes_FromStringAndSize(<const char *>address, n)
    if n == 4:
        return inet_ntop(AF4, raw)
    if raw.startswith(MAPPED):
        return inet_ntop(AF4, raw[12:])
    return inet_ntop(AF6, raw)


cdef object endpoint_of(const sockaddr_in6 *a):
    cdef const sockaddr_in *four = <const sockaddr_in *>a
    if a.sin6_family == C_AF_INET6:
        return (text_of(a.sin6_addr.s6_addr, 16), socket.ntohs(a.sin6_port))
    return (text_of(<const uint8_t *>&four.sin_addr, 4), socket.ntohs(four.sin_port))


cdef object local_of(const Event *event):
    if event.local_family == 4:
        return text_of(event.local, 4)
    return text_of(event.local, 16) if event.local_family == 6 else ""


cdef int fill_path(Path *path, object remote, object local, int family) except -1:
    """Socket address of `remote` and a pktinfo cmsg for `local`, for a socket of `family`."""
    cdef sockaddr_in *four = <sockaddr_in *>&path.remote
    cdef in_pktinfo info4
    cdef in6_pktinfo info6
    cdef cmsghdr *c = <cmsghdr *>path.control
    text, port = remote
    cdef bint is_six = ":" in text
    if is_six and family != C_AF_INET6:
        raise ValueError(f"{text}: this host's socket speaks IPv4 only")
    raw = inet_pton(AF6 if is_six else AF4, text)
    path.family = family
    path.outer_family = 6 if is_six else 4
    if family == C_AF_INET6:
        six = raw if is_six else MAPPED + raw
        path.remote.sin6_family = C_AF_INET6
        path.remote.sin6_port = socket.htons(port)
        memcpy(path.remote.sin6_addr.s6_addr, <const uint8_t *><bytes>six, 16)
        path.remote_size = sizeof(sockaddr_in6)
    else:
        four.sin_family = C_AF_INET
        four.sin_port = socket.htons(port)
        memcpy(&four.sin_addr, <const uint8_t *><bytes>raw, 4)
        path.remote_size = sizeof(sockaddr_in)
    if not local:
        return 0
    raw = inet_pton(AF6 if ":" in local else AF4, local)
    if len(raw) == 4:
        memset(&info4, 0, sizeof(info4))
        memcpy(&info4.ipi_spec_dst, <const uint8_t *><bytes>raw, 4)
        c.cmsg_level = IPPROTO_IP
        c.cmsg_type = IP_PKTINFO
        c.cmsg_len = CMSG_LEN(sizeof(info4))
        memcpy(path.control + CMSG_LEN(0), &info4, sizeof(info4))
        path.control_size = CMSG_SPACE(sizeof(info4))
    else:
        memset(&info6, 0, sizeof(info6))
        memcpy(info6.ipi6_addr.s6_addr, <const uint8_t *><bytes>raw, 16)
        c.cmsg_level = IPPROTO_IPV6
        c.cmsg_type = IPV6_PKTINFO
        c.cmsg_len = CMSG_LEN(sizeof(info6))
        memcpy(path.control + CMSG_LEN(0), &info6, sizeof(info6))
        path.control_size = CMSG_SPACE(sizeof(info6))
    return 0
