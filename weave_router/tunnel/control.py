"""Control messages inside a session: what two tunnels tell each other, sealed, over the data channel.

    PROBE       1 | 0 | size u16 | id u32     padded to `size` bytes of UDP payload; "did this size arrive?"
    PROBE_ACK   2 | 0 | size u16 | id u32     the UDP payload size that arrived
    CHALLENGE   3 | nonce 8                   "are you at the address that this went to?"
    ANSWER      4 | nonce 8
    PING        5 | 0 | 0 u16 | id u32        answered at once; RTT, and life on a silent path
    PONG        6 | 0 | 0 u16 | id u32
    GOODBYE     7                             the sender's keys are gone with this message
    POD_MTU     8 | 0 | mtu u16               the sender's pod MTU

Big-endian; lengths are exact (the fast path takes the padding away); the empty message is a keepalive and never comes
here. Must not know sessions or time. Called by connection.py.
"""

import struct
from dataclasses import dataclass
from typing import ClassVar, Final

from weave_router.errors import BadPacket

NONCE_SIZE: Final = 8
_SIZED: Final = struct.Struct(">BBHI")


@dataclass(frozen=True, slots=True)
class Probe:
    id: int
    size: int
    KIND: ClassVar[int] = 1

    def encode(self) -> bytes:
        return _SIZED.pack(self.KIND, 0, self.size, self.id)


@dataclass(frozen=True, slots=True)
class ProbeAck:
    id: int
    size: int
    KIND: ClassVar[int] = 2

    def encode(self) -> bytes:
        return _SIZED.pack(self.KIND, 0, self.size, self.id)


@dataclass(frozen=True, slots=True)
class Challenge:
    nonce: bytes
    KIND: ClassVar[int] = 3

    def encode(self) -> bytes:
        return bytes([self.KIND]) + self.nonce


@dataclass(frozen=True, slots=True)
class Answer:
    nonce: bytes
    KIND: ClassVar[int] = 4

    def encode(self) -> bytes:
        return bytes([self.KIND]) + self.nonce


@dataclass(frozen=True, slots=True)
class Ping:
    id: int
    KIND: ClassVar[int] = 5

    def encode(self) -> bytes:
        return _SIZED.pack(self.KIND, 0, 0, self.id)


@dataclass(frozen=True, slots=True)
class Pong:
    id: int
    KIND: ClassVar[int] = 6

    def encode(self) -> bytes:
        return _SIZED.pack(self.KIND, 0, 0, self.id)


@dataclass(frozen=True, slots=True)
class Goodbye:
    KIND: ClassVar[int] = 7

    def encode(self) -> bytes:
        return bytes([self.KIND])


@dataclass(frozen=True, slots=True)
class PodMtu:
    mtu: int
    KIND: ClassVar[int] = 8

    def encode(self) -> bytes:
        return bytes([self.KIND, 0]) + self.mtu.to_bytes(2, "big")


Control = Probe | ProbeAck | Challenge | Answer | Ping | Pong | Goodbye | PodMtu


def parse_control_untrusted(data: bytes) -> Control:
    """The message, or ``BadPacket``: authenticated, but a member may have bugs."""
    if not data:
        raise BadPacket("empty control message")
    kind = data[0]
    if kind in (Probe.KIND, ProbeAck.KIND, Ping.KIND, Pong.KIND):
        return _parse_sized_untrusted(data)
    if kind in (Challenge.KIND, Answer.KIND):
        if len(data) != 1 + NONCE_SIZE:
            raise BadPacket("control message of another length")
        return Challenge(data[1:]) if kind == Challenge.KIND else Answer(data[1:])
    if kind == Goodbye.KIND:
        if len(data) != 1:
            raise BadPacket("control message of another length")
        return Goodbye()
    if kind == PodMtu.KIND:
        if len(data) != 4 or data[1] != 0:
            raise BadPacket("control message of another length")
        return PodMtu(int.from_bytes(data[2:], "big"))
    raise BadPacket("unknown control message")


def _parse_sized_untrusted(data: bytes) -> Control:
    if len(data) != _SIZED.size:
        raise BadPacket("control message of another length")
    kind, reserved, size, number = _SIZED.unpack(data)
    if reserved != 0:
        raise BadPacket("reserved byte is set")
    if kind in (Probe.KIND, ProbeAck.KIND):
        return Probe(number, size) if kind == Probe.KIND else ProbeAck(number, size)
    if size != 0:
        raise BadPacket("reserved field is set")
    return Ping(number) if kind == Ping.KIND else Pong(number)
