"""Loads eBPF socket filters and makes the map that one reads, by the bpf() system call.

Decides nothing and knows no TAP: the bytecode comes from steering.py. Called by tap_driver.py alone. Whether the kernel
lets us is an OSError, which the caller takes for a refused feature.
"""

import ctypes
import errno
import mmap
import os
import platform
from typing import Final

from weave_router.host import steering

_BPF_MAP_CREATE, _BPF_PROG_LOAD = 0, 5
_SOCKET_FILTER: Final = 1
_ARRAY: Final = 2
_MMAPABLE: Final = 1 << 10  # Linux 5.5
_SYSCALL: Final = {
    "x86_64": 321,
    "aarch64": 280,
    "riscv64": 280,
    "loongarch64": 280,
    "ppc64le": 361,
    "s390x": 351,
    "armv7l": 386,
}


class _Load(ctypes.Structure):
    """union bpf_attr of BPF_PROG_LOAD, as far as Linux 5.4 knows it."""

    _fields_ = (
        ("prog_type", ctypes.c_uint32),
        ("insn_cnt", ctypes.c_uint32),
        ("insns", ctypes.c_uint64),
        ("license", ctypes.c_uint64),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_uint64),
        ("kern_version", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("prog_name", ctypes.c_char * 16),
    )


class _Create(ctypes.Structure):
    """union bpf_attr of BPF_MAP_CREATE, as far."""

    _fields_ = (
        ("map_type", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
    )


def load_tap_program() -> int:
    """Descriptor of the steering program (close-on-exec, the kernel's doing), or OSError: refused."""
    return load(steering.tap_program(), b"weave_steer")


def load_credit_program() -> tuple[int, mmap.mmap]:
    """Descriptor of the filter program and the map of credits that it reads, all 0; or OSError: refused."""
    attr = _Create(map_type=_ARRAY, key_size=4, value_size=steering.CREDITS_BYTES, max_entries=1, map_flags=_MMAPABLE)
    credits = _bpf(_BPF_MAP_CREATE, attr)
    try:
        words = mmap.mmap(credits, steering.CREDITS_BYTES)
        try:
            return load(steering.credit_program(credits), b"weave_credit"), words
        except OSError:
            words.close()
            raise
    finally:
        os.close(credits)


def load(program: bytes, name: bytes) -> int:
    instructions = ctypes.create_string_buffer(program, len(program))
    license_text = ctypes.create_string_buffer(b"Apache-2.0")
    attr = _Load(
        prog_type=_SOCKET_FILTER,
        insn_cnt=len(program) // 8,
        insns=ctypes.addressof(instructions),
        license=ctypes.addressof(license_text),
        prog_name=name,
    )
    return _bpf(_BPF_PROG_LOAD, attr)


def _bpf(command: int, attr: ctypes.Structure) -> int:
    number = _SYSCALL.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    libc = ctypes.CDLL(None, use_errno=True)
    fd = int(libc.syscall(number, command, ctypes.byref(attr), ctypes.sizeof(attr)))
    if fd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return fd
