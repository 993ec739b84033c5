"""The little programs that choose a worker and bound a flow, as bytecode, and their hash in Python as oracle for tests.

Pure: bytes out. Steering of the TAP: eBPF socket filter that gives both directions of a flow one queue (else tun moves
a flow to the queue that wrote its reverse, a feedback loop that reorders for ever). Filter of the TAP: by the same
hash, drops the frames of a flow that has no credit left (fastpath/credits.pxd), before they cost a read. Steering of
the UDP port: classic BPF that reads the lane's worker bits. bpf_driver.py and udp_driver.py load them.
"""

import struct
from typing import Final

# eBPF opcodes used here (linux/bpf.h).
_LD_ABS: Final = {1: 0x30, 2: 0x28, 4: 0x20}
_LD_IND: Final = {2: 0x48}
_LOAD_WORD, _ATOMIC_WORD, _ATOMIC_LONG, _LD_IMM64 = 0x61, 0xC3, 0xDB, 0x18
_MAP_VALUE: Final = 2  # as the source of _LD_IMM64: the address of the value in this map of one
_MOV_X, _ADD_X, _XOR_X, _MOV_K, _ADD_K = 0xBF, 0x0F, 0xAF, 0xB7, 0x07
_AND_K, _LSH_K, _RSH_K, _MUL_K = 0x57, 0x67, 0x77, 0x27
_JA, _JEQ_K, _JGT_K, _JSET_K, _JLT_K, _JLE_K, _JGT_X, _EXIT = 0x05, 0x15, 0x25, 0x45, 0xA5, 0xB5, 0x2D, 0x95
# R0 result of LD_ABS, R6 the skb that LD_ABS needs, R7 and R8 the two symmetric sums, R9 an offset.
# LD_ABS spends R1 to R5.
_R0, _R1, _R2, _R3, _R6, _R7, _R8, _R9 = 0, 1, 2, 3, 6, 7, 8, 9

_ADDRESS_FACTOR: Final = 0x61C88647
_MIX_FACTORS: Final = (0x45D9F3B5, 0x2C1B3C6D)
_MASK64: Final = (1 << 64) - 1
_IPV4, _IPV6 = 0x0800, 0x86DD
_TCP, _UDP = 6, 17
_FRAGMENT: Final = 0x3FFF  # more fragments, or an offset

CREDITS: Final = 65536
"""Signed words of 32 bits in the map of credits, by flow hash: 0 and below, all frames come; SPENT + n, n more."""
SPENT: Final = 65536
"""None more; nor below it, where CPUs took the last credit at the same time: they owe it."""
CREDITS_BYTES: Final = 4 * CREDITS + 8
"""Of the map: behind the words a count of 64 bits, frames dropped for want of credit."""
DATA_DATAGRAM: Final = 4
"""Type byte of a data datagram (docs/protocol.md)."""
LANE_OFFSET: Final = 8
WORKER_BITS: Final = 0x0F


class _Assembler:
    """Collects instructions; jumps name labels, offsets are filled in at the end."""

    def __init__(self) -> None:
        self._instructions: list[tuple[int, int, int, str | int, int]] = []
        self._labels: dict[str, int] = {}

    def op(self, code: int, dst: int = 0, src: int = 0, jump: str | int = 0, imm: int = 0) -> None:
        self._instructions.append((code, dst, src, jump, imm))

    def label(self, name: str) -> None:
        self._labels[name] = len(self._instructions)

    def load(self, size: int, offset: int) -> None:
        self.op(_LD_ABS[size], imm=offset)

    def fold(self) -> None:
        """Both sums take R0; the order of taking does not matter, so the two ends of a flow may come swapped."""
        self.op(_XOR_X, _R7, _R0)
        self.op(_ADD_X, _R8, _R0)

    def code(self) -> bytes:
        return b"".join(
            struct.pack("=BBhi", code, src << 4 | dst, self._offset(at, jump), imm)
            for at, (code, dst, src, jump, imm) in enumerate(self._instructions)
        )

    def _offset(self, at: int, jump: str | int) -> int:
        return jump if isinstance(jump, int) else self._labels[jump] - at - 1


def tap_program() -> bytes:
    """eBPF for TUNSETSTEERINGEBPF: the queue of a frame is the hash of its flow."""
    a = _Assembler()
    _flow_hash(a)
    a.op(_EXIT)
    return a.code()


def credit_program(credits: int) -> bytes:
    """eBPF for TUNSETFILTEREBPF: how many bytes of a frame may come: all, or none for want of credit, of which it takes
    one. ``credits``: descriptor of the map."""
    a = _Assembler()
    _flow_hash(a)
    a.op(_AND_K, _R0, imm=CREDITS - 1)
    a.op(_LSH_K, _R0, imm=2)
    a.op(_LD_IMM64, _R1, _MAP_VALUE, imm=credits)
    a.op(0)
    a.op(_ADD_X, _R1, _R0)
    a.op(_LOAD_WORD, _R2, _R1)
    a.op(_MOV_K, _R0, imm=-1)
    a.op(_JEQ_K, _R2, jump="come", imm=0)
    a.op(_JGT_K, _R2, jump="come", imm=0x7FFFFFFF)
    a.op(_JLE_K, _R2, jump="spent", imm=SPENT)
    a.op(_MOV_K, _R3, imm=-1)
    a.op(_ATOMIC_WORD, _R1, _R3)  # an add
    a.label("come")
    a.op(_EXIT)
    a.label("spent")
    a.op(_LD_IMM64, _R1, _MAP_VALUE, imm=credits)
    a.op(0, imm=4 * CREDITS)
    a.op(_MOV_K, _R3, imm=1)
    a.op(_ATOMIC_LONG, _R1, _R3)
    a.op(_MOV_K, _R0, imm=0)
    a.op(_EXIT)
    return a.code()


def _flow_hash(a: _Assembler) -> None:
    """R0: hash over addresses and ports, over the MACs of what is neither IPv4 nor IPv6. A fragment hashes by its
    addresses alone (its later pieces have no ports), and so does what is too short for ports."""
    a.op(_MOV_X, _R6, _R1)
    a.op(_MOV_K, _R7)
    a.op(_MOV_K, _R8)
    a.load(2, 12)
    a.op(_JEQ_K, _R0, jump="ipv4", imm=_IPV4)
    a.op(_JEQ_K, _R0, jump="ipv6", imm=_IPV6)
    for size, offset in ((4, 0), (4, 6), (2, 4), (2, 10)):
        a.load(size, offset)
        a.fold()
    a.op(_JA, jump="mix")
    _ipv4(a)
    _ipv6(a)
    a.label("mix")
    a.op(_MOV_X, _R0, _R7)
    a.op(_MUL_K, _R0, imm=_MIX_FACTORS[0])
    a.op(_ADD_X, _R0, _R8)
    a.op(_MUL_K, _R0, imm=_MIX_FACTORS[1])
    a.op(_RSH_K, _R0, imm=32)


def _ipv4(a: _Assembler) -> None:
    a.label("ipv4")
    a.op(_LOAD_WORD, _R0, _R6)  # of the skb: its length
    a.op(_JLT_K, _R0, jump="mix", imm=34)  # a load past the end would end the program, and the filter drop the frame
    for offset in (26, 30):
        a.load(4, offset)
        a.fold()
    a.load(2, 20)
    a.op(_JSET_K, _R0, jump="mix", imm=_FRAGMENT)
    a.load(1, 23)
    a.op(_JEQ_K, _R0, jump="ports4", imm=_TCP)
    a.op(_JEQ_K, _R0, jump="ports4", imm=_UDP)
    a.op(_JA, jump="mix")
    a.label("ports4")
    a.load(1, 14)
    a.op(_AND_K, _R0, imm=0x0F)
    a.op(_LSH_K, _R0, imm=2)
    a.op(_MOV_X, _R9, _R0)
    a.op(_ADD_K, _R0, imm=14 + 4)
    a.op(_LOAD_WORD, _R1, _R6)
    a.op(_JGT_X, _R0, _R1, jump="mix")
    a.op(_MUL_K, _R7, imm=_ADDRESS_FACTOR)
    for offset in (14, 16):
        a.op(_LD_IND[2], src=_R9, imm=offset)
        a.fold()
    a.op(_JA, jump="mix")


def _ipv6(a: _Assembler) -> None:
    a.label("ipv6")
    a.op(_LOAD_WORD, _R0, _R6)
    a.op(_JLT_K, _R0, jump="mix", imm=54)
    for word in range(4):
        a.op(_MUL_K, _R7, imm=_ADDRESS_FACTOR)
        for base in (22, 38):
            a.load(4, base + 4 * word)
            a.fold()
    a.load(1, 20)
    a.op(_JEQ_K, _R0, jump="ports6", imm=_TCP)
    a.op(_JEQ_K, _R0, jump="ports6", imm=_UDP)
    a.op(_JA, jump="mix")
    a.label("ports6")
    a.op(_LOAD_WORD, _R0, _R6)
    a.op(_JLT_K, _R0, jump="mix", imm=58)
    a.op(_MUL_K, _R7, imm=_ADDRESS_FACTOR)
    for offset in (54, 56):
        a.load(2, offset)
        a.fold()


def tap_hash(frame: bytes) -> int:
    """What ``tap_program`` returns for a frame of 14 bytes at least: the slow oracle."""
    xor, total = 0, 0

    def fold(size: int, offset: int) -> None:
        nonlocal xor, total
        value = _load(frame, size, offset)
        xor, total = xor ^ value, (total + value) & _MASK64

    def spread() -> None:
        nonlocal xor
        xor = xor * _ADDRESS_FACTOR & _MASK64

    ethertype = _load(frame, 2, 12)
    ports: int | None = None
    if ethertype == _IPV4 and len(frame) >= 34:
        fold(4, 26)
        fold(4, 30)
        if not _load(frame, 2, 20) & _FRAGMENT and _load(frame, 1, 23) in (_TCP, _UDP):
            ports = 14 + (_load(frame, 1, 14) & 0x0F) * 4
    elif ethertype == _IPV6 and len(frame) >= 54:
        for word in range(4):
            spread()
            fold(4, 22 + 4 * word)
            fold(4, 38 + 4 * word)
        if _load(frame, 1, 20) in (_TCP, _UDP):
            ports = 54
    elif ethertype not in (_IPV4, _IPV6):
        for size, offset in ((4, 0), (4, 6), (2, 4), (2, 10)):
            fold(size, offset)
    if ports is not None and ports + 4 <= len(frame):
        spread()
        fold(2, ports)
        fold(2, ports + 2)
    return ((xor * _MIX_FACTORS[0] + total) * _MIX_FACTORS[1] & _MASK64) >> 32


def _load(frame: bytes, size: int, offset: int) -> int:
    return int.from_bytes(frame[offset : offset + size], "big")


def udp_program(workers: int) -> bytes:
    """Classic BPF for SO_ATTACH_REUSEPORT_CBPF: the lane's worker bits of a data datagram, socket 0 for all else.

    The kernel runs it on the UDP payload. A datagram too short for a load ends it with 0.
    """
    ld_b, jeq, and_k, mod_k, ret_a, ret_k = 0x30, 0x15, 0x54, 0x94, 0x16, 0x06
    program = (
        (ld_b, 0, 0, 0),
        (jeq, 0, 4, DATA_DATAGRAM),
        (ld_b, 0, 0, LANE_OFFSET),
        (and_k, 0, 0, WORKER_BITS),
        (mod_k, 0, 0, workers),
        (ret_a, 0, 0, 0),
        (ret_k, 0, 0, 0),
    )
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
