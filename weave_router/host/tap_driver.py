"""Opens the router's TAP: one queue per worker, offloads, steering. Decides nothing but what the kernel refuses.

Called by the composition root (once per start) and the doctor. Hands out descriptors; who asked for them closes them.
"""

import contextlib
import errno
import mmap
import os
import socket
import struct
from dataclasses import dataclass
from fcntl import F_DUPFD_CLOEXEC, F_GETFL, F_SETFL, fcntl, ioctl
from typing import Final

import pytun

from weave_router.host import bpf_driver
from weave_router.host.faults import Fault, HostError
from weave_router.host.netlink_driver import Netlink, explain, need
from weave_router.limits import TAP_QUEUE_LENGTH

# linux/if_tun.h
IFF_NO_CARRIER: Final = 0x0040  # Linux >= 6.0; older kernels ignore the bit
TUNSETOFFLOAD: Final = 0x400454D0
TUNSETVNETHDRSZ: Final = 0x400454D8
TUNSETCARRIER: Final = 0x400454E2
TUNSETSTEERINGEBPF: Final = 0x800454E0
TUNSETFILTEREBPF: Final = 0x800454E1
_CSUM, _TSO4, _TSO6, _TSO_ECN, _USO4, _USO6 = 0x01, 0x02, 0x04, 0x08, 0x20, 0x40
_TSO: Final = _TSO4 | _TSO6 | _TSO_ECN
_USO: Final = _USO4 | _USO6
_VNET_HDR_LONG: Final = 12  # struct virtio_net_hdr_mrg_rxbuf
_VNET_HDR_SHORT: Final = 10  # struct virtio_net_hdr, what a kernel gives that knows no other


@dataclass(frozen=True)
class Tap:
    """An open TAP. ``fds``: one per queue, in worker order. ``credits``: the map that bounds flows (steering.CREDITS
    words), None: this kernel bounds none. The flags say what the kernel gave."""

    name: str
    fds: tuple[int, ...]
    vnet_hdr: int
    csum: bool
    tso: bool
    uso: bool
    steering: bool
    credits: mmap.mmap | None


def make_tap(name: str) -> None:
    """The device, with nobody at its queues, if it is not there: what is built on it can stand before it is read."""
    try:
        socket.if_nametoindex(name)
    except OSError:
        os.close(_open_queue(name))


def open_tap(name: str, queues: int, refuse: frozenset[str] = frozenset()) -> Tap:
    """Attach to the persistent TAP (made if missing), carrier off. The lock of lock_driver.py is held already."""
    fds: list[int] = []
    try:
        for _ in range(queues):
            fds.append(_open_queue(name))
            _carrier(name, fds[0], False)
        vnet_hdr = min([_header(fd) for fd in fds])
        csum, tso, uso = _offload(fds[0], refuse)
        steering, credits = _steer(fds[0], refuse), _bound(fds[0], refuse)
        return Tap(name, tuple(fds), vnet_hdr, csum, tso, uso, steering, credits)
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise


def prepare_link(ipr: Netlink, name: str) -> None:
    """Queue length of the TAP as a link."""
    link = need(ipr, name)
    if link.txqlen != TAP_QUEUE_LENGTH:
        with explain("set the queue length of", name):
            ipr.link("set", index=link.index, txqlen=TAP_QUEUE_LENGTH)


def set_carrier(tap: Tap, up: bool) -> None:
    """Up once the tables are loaded, down before the router goes."""
    _carrier(tap.name, tap.fds[0], up)


def close_tap(tap: Tap) -> None:
    """The device stays: local connectivity survives the router. Nobody may use the credits any more."""
    if tap.credits is not None:
        tap.credits.close()
    for fd in tap.fds:
        os.close(fd)


def _open_queue(name: str) -> int:
    flags = pytun.IFF_TAP | pytun.IFF_NO_PI | pytun.IFF_VNET_HDR | pytun.IFF_MULTI_QUEUE | IFF_NO_CARRIER
    try:
        device = pytun.TunTapDevice(name=name, flags=flags)
    except (pytun.Error, OSError) as error:
        raise _open_error(name, int(error.args[0]) if error.args else 0) from error
    try:
        device.persist(True)
        # pytun's descriptor is inheritable, blocking, and closed with the object.
        fd = fcntl(device.fileno(), F_DUPFD_CLOEXEC, 3)
    finally:
        device.close()
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | os.O_NONBLOCK)
    return fd


def _open_error(name: str, code: int) -> HostError:
    fault = {
        errno.ENOENT: Fault.TUN_MISSING,
        errno.ENODEV: Fault.TUN_MISSING,
        errno.ENXIO: Fault.TUN_MISSING,
        errno.EINVAL: Fault.TAP_KIND,
        errno.EEXIST: Fault.TAP_KIND,
        errno.EBUSY: Fault.TAP_BUSY,
        errno.E2BIG: Fault.TAP_BUSY,
    }.get(code, Fault.TAP_OPEN)
    return HostError(fault, link=name, errno=code)


def _carrier(name: str, fd: int, up: bool) -> None:
    try:
        ioctl(fd, TUNSETCARRIER, struct.pack("i", up))
    except OSError as error:
        raise HostError(Fault.TAP_IOCTL, operation="set the carrier", link=name, errno=error.errno or 0) from error


def _header(fd: int) -> int:
    try:
        ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", _VNET_HDR_LONG))
    except OSError:
        return _VNET_HDR_SHORT
    return _VNET_HDR_LONG


def _offload(fd: int, refuse: frozenset[str]) -> tuple[bool, bool, bool]:
    """(csum, tso, uso): the most the kernel takes. Set at every start: the flags of the last one outlive it."""
    csum = 0 if "csum" in refuse else _CSUM
    tso = _TSO if csum and "tso" not in refuse else 0
    uso = _USO if csum and "uso" not in refuse else 0
    for flags in dict.fromkeys((csum | tso | uso, csum | tso, csum, 0)):
        try:
            ioctl(fd, TUNSETOFFLOAD, flags)
        except OSError:
            continue
        return bool(flags & _CSUM), bool(flags & _TSO4), bool(flags & _USO4)
    return False, False, False


def _steer(fd: int, refuse: frozenset[str]) -> bool:
    """False: this kernel or its rules let us load no program; the writer then has to keep flows on their queue."""
    if "bpf" not in refuse:
        with contextlib.suppress(OSError):
            _attach(fd, TUNSETSTEERINGEBPF, bpf_driver.load_tap_program())
            return True
    _detach(fd, TUNSETSTEERINGEBPF)
    return False


def _bound(fd: int, refuse: frozenset[str]) -> mmap.mmap | None:
    """None, as for steering: a flow that comes too fast then costs a read for each frame, and may fill the queue."""
    if "bpf" not in refuse:
        with contextlib.suppress(OSError):
            program, credits = bpf_driver.load_credit_program()
            try:
                _attach(fd, TUNSETFILTEREBPF, program)
                return credits
            except OSError:
                credits.close()
                raise
    _detach(fd, TUNSETFILTEREBPF)
    return None


def _attach(fd: int, request: int, program: int) -> None:
    """The TAP keeps the program, we need its descriptor no more."""
    try:
        ioctl(fd, request, struct.pack("i", program))
    finally:
        os.close(program)


def _detach(fd: int, request: int) -> None:
    """A program of an earlier start outlives it with the device."""
    with contextlib.suppress(OSError):
        ioctl(fd, request, struct.pack("i", -1))
