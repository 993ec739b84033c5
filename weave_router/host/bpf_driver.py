"""Loads an eBPF socket filter by the bpf() system call.

Decides nothing and knows no TAP: the bytecode comes from steering.py. Called by tap_driver.py alone. Whether the kernel
lets us is an OSError, which the caller takes for a refused feature.
"""

import ctypes
import os
import platform
from typing import Final

from weave_router.host import steering

_BPF_PROG_LOAD: Final = 5
_SOCKET_FILTER: Final = 1
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


def load_tap_program() -> int:
    """Descriptor of the steering program (close-on-exec, the kernel's doing), or OSError: refused."""
    return load(steering.tap_program(), b"weave_steer")


def load(program: bytes, name: bytes) -> int:
    number = _SYSCALL.get(platform.machine())
    if number is None:
        raise OSError(os.strerror(38))
    instructions = ctypes.create_string_buffer(program, len(program))
    license_text = ctypes.create_string_buffer(b"Apache-2.0")
    attr = _Load(
        prog_type=_SOCKET_FILTER,
        insn_cnt=len(program) // 8,
        insns=ctypes.addressof(instructions),
        license=ctypes.addressof(license_text),
        prog_name=name,
    )
    libc = ctypes.CDLL(None, use_errno=True)
    fd = int(libc.syscall(number, _BPF_PROG_LOAD, ctypes.byref(attr), ctypes.sizeof(attr)))
    if fd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return fd
