"""Opens the router's UDP port: one socket per worker in a SO_REUSEPORT group, steered by the lane's worker bits.

Called by the composition root and the doctor. Hands out descriptors; who asked for them closes them.
"""

import contextlib
import ctypes
import errno
import os
import socket
import struct
from dataclasses import dataclass
from typing import Final

from weave_router.host import steering
from weave_router.host.faults import Fault, HostError
from weave_router.limits import UDP_BUFFER_BYTES

# linux/in.h, in6.h, socket.h, udp.h: what the socket module of Python 3.11 does not name.
_IP_PKTINFO, _IP_MTU_DISCOVER, _IP_RECVTOS = 8, 10, 13
_IPV6_MTU_DISCOVER, _IPV6_RECVPKTINFO, _IPV6_RECVTCLASS = 23, 49, 66
_PMTUDISC_PROBE: Final = 3
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE, _SO_RXQ_OVFL, _SO_ATTACH_REUSEPORT_CBPF = 32, 33, 40, 51
UDP_SEGMENT, UDP_GRO = 103, 104


@dataclass(frozen=True)
class Udp:
    """An open port. ``fds``: one per worker, in worker order. The flags say what the kernel gave."""

    fds: tuple[int, ...]
    port: int
    ipv6: bool
    segment: bool
    gro: bool
    steering: bool


def open_udp(host: str, port: int, workers: int, refuse: frozenset[str] = frozenset()) -> Udp:
    """Bind ``workers`` sockets; ``host`` "" means every address. Port 0 lets the kernel choose (tests)."""
    sockets: list[socket.socket] = []
    try:
        family = _family(host)
        _check_free(family, host, port)
        for _ in range(workers):
            sockets.append(_socket(family, port))
            _bind(sockets[-1], host, port)
            port = sockets[0].getsockname()[1]
        gro = all([_try(s, socket.SOL_UDP, UDP_GRO, 1) for s in sockets]) if "udp_gro" not in refuse else False
        segment = "udp_segment" not in refuse and _try(sockets[0], socket.SOL_UDP, UDP_SEGMENT, 0)
        steered = "bpf" not in refuse and _steer(sockets[0], workers)
        return Udp(tuple(s.detach() for s in sockets), port, family == socket.AF_INET6, segment, gro, steered)
    except BaseException:
        for opened in sockets:
            opened.close()
        raise


def close_udp(udp: Udp) -> None:
    for fd in udp.fds:
        os.close(fd)


def _family(host: str) -> socket.AddressFamily:
    """One dual-stack socket serves both families; a host without IPv6 (ipv6.disable=1) gets an IPv4 one."""
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
    except OSError as error:
        if error.errno != errno.EAFNOSUPPORT:
            raise HostError(Fault.UDP_BIND, host=host or "*", port=0, errno=error.errno or 0) from error
        return socket.AF_INET
    return socket.AF_INET6


def _address(family: int, host: str) -> str:
    if family == socket.AF_INET:
        return host or "0.0.0.0"
    return f"::ffff:{host}" if "." in host and ":" not in host else host or "::"


def _check_free(family: int, host: str, port: int) -> None:
    """SO_REUSEPORT lets a second router of the same user join the group and steal its datagrams: ask without it."""
    if port:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            _bind(probe, host, port)


def _bind(udp: socket.socket, host: str, port: int) -> None:
    try:
        udp.bind((_address(udp.family, host), port))
    except OSError as error:
        fault = {errno.EADDRINUSE: Fault.UDP_IN_USE, errno.EADDRNOTAVAIL: Fault.UDP_ADDRESS}.get(
            error.errno or 0, Fault.UDP_BIND
        )
        raise HostError(fault, host=host or "*", port=port, errno=error.errno or errno.EINVAL) from error


def _socket(family: int, port: int) -> socket.socket:
    udp = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        for level, option, value, name in _options(family):
            _set(udp, level, option, value, name, port)
        _buffer(udp, _SO_RCVBUFFORCE, socket.SO_RCVBUF)
        _buffer(udp, _SO_SNDBUFFORCE, socket.SO_SNDBUF)
    except BaseException:
        udp.close()
        raise
    return udp


def _options(family: int) -> list[tuple[int, int, int, str]]:
    """PROBE sets DF and is deaf to forged ICMP. PKTINFO keeps the local address of a session on multi-homed hosts."""
    ip, ipv6 = socket.IPPROTO_IP, socket.IPPROTO_IPV6
    options = [
        (socket.SOL_SOCKET, socket.SO_REUSEPORT, 1, "SO_REUSEPORT"),
        (socket.SOL_SOCKET, _SO_RXQ_OVFL, 1, "SO_RXQ_OVFL"),
        (ip, _IP_MTU_DISCOVER, _PMTUDISC_PROBE, "IP_MTU_DISCOVER"),
        (ip, _IP_PKTINFO, 1, "IP_PKTINFO"),
        (ip, _IP_RECVTOS, 1, "IP_RECVTOS"),
    ]
    if family == socket.AF_INET6:
        options += [
            (ipv6, socket.IPV6_V6ONLY, 0, "IPV6_V6ONLY"),
            (ipv6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE, "IPV6_MTU_DISCOVER"),
            (ipv6, _IPV6_RECVPKTINFO, 1, "IPV6_RECVPKTINFO"),
            (ipv6, _IPV6_RECVTCLASS, 1, "IPV6_RECVTCLASS"),
        ]
    return options


def _set(udp: socket.socket, level: int, option: int, value: int, name: str, port: int) -> None:
    try:
        udp.setsockopt(level, option, value)
    except OSError as error:
        raise HostError(Fault.UDP_OPTION, operation=name, port=port, errno=error.errno or 0) from error


def _buffer(udp: socket.socket, force: int, option: int) -> None:
    """Past net.core.*mem_max with CAP_NET_ADMIN in the first user namespace, up to it without."""
    if not _try(udp, socket.SOL_SOCKET, force, UDP_BUFFER_BYTES):
        with contextlib.suppress(OSError):
            udp.setsockopt(socket.SOL_SOCKET, option, UDP_BUFFER_BYTES)


def _try(udp: socket.socket, level: int, option: int, value: int) -> bool:
    try:
        udp.setsockopt(level, option, value)
    except OSError:
        return False
    return True


def _steer(udp: socket.socket, workers: int) -> bool:
    program = steering.udp_program(workers)
    code = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    try:
        udp.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, fprog)
    except OSError:
        return False
    return True
