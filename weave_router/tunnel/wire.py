"""Handshake messages on the wire: the clear head, ``mac1``, the layouts of messages 1 and 2, addresses.

    head (clear)   0 type u8 | version u8 | suite u8 | reserved u8 = 0
                   4 token id u32 | 8 sender index u32 | 12 receiver index u32 (0 in message 1)
    message 1      head 16 | e 32 | sealed s 48 | sealed (incarnation u64, counter u64) 32 | mac1 16          = 144
    message 2      head 16 | e 32 | sealed (head 16, incarnation u64, observed address 18) 58 | mac1 16       = 122
    address        IPv6, or IPv4 mapped, 16 | port u16
    mac1           keyed BLAKE2s-128 over all before it, key = HKDF(token, "mac1")
    prologue       head of message 1 | plaintext bit u8

Big-endian. Links over TCP use types 17, 18, 19 with the same head and the same mac1. Must not know keys' whereabouts,
time or state. Called by handshake.py and mesh links; the fast path's worker has its own copy of the head's layout.
"""

import hashlib
import hmac
import struct
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from weave_router.errors import BadPacket
from weave_router.limits import HANDSHAKE_DATAGRAM_MAX
from weave_router.tunnel import noise
from weave_router.tunnel.token import Token, TokenSet

VERSION: Final = 1
HEAD_SIZE: Final = 16
MAC1_SIZE: Final = 16
ADDRESS_SIZE: Final = 18
MESSAGE_1_SIZE: Final = 144
MESSAGE_2_SIZE: Final = 122

Endpoint = tuple[str, int]
"""Text address and port; IPv4 as dotted quad also where the socket is dual-stack."""


class Type(IntEnum):
    INITIATION = 1
    RESPONSE = 2
    DATA = 4
    RELAY = 5
    LINK_1 = 17
    LINK_2 = 18
    LINK_3 = 19


class SuiteCode(IntEnum):
    """Suite byte of the head."""

    AESGCM_SHA256 = 1
    CHACHAPOLY_BLAKE2S = 2

    @property
    def noise(self) -> noise.Suite:
        return _NOISE_SUITES[self]


_NOISE_SUITES: Final = {SuiteCode.AESGCM_SHA256: noise.Suite.AESGCM_SHA256,
                        SuiteCode.CHACHAPOLY_BLAKE2S: noise.Suite.CHACHAPOLY_BLAKE2S}
_HEAD: Final = struct.Struct(">BBBBIII")
_PAYLOAD_1: Final = struct.Struct(">QQ")
_PAYLOAD_2: Final = struct.Struct(f">{HEAD_SIZE}sQ{ADDRESS_SIZE}s")


@dataclass(frozen=True, slots=True)
class Head:
    type: Type
    suite: SuiteCode
    token_id: int
    sender: int
    receiver: int

    def encode(self) -> bytes:
        return _HEAD.pack(self.type, VERSION, self.suite, 0, self.token_id, self.sender, self.receiver)


def parse_head_untrusted(data: bytes) -> Head:
    """The head at the start of ``data``."""
    if len(data) < HEAD_SIZE:
        raise BadPacket("shorter than its head")
    kind, version, suite, reserved, token_id, sender, receiver = _HEAD.unpack_from(data)
    if version != VERSION:
        raise BadPacket("another version")
    if reserved != 0:
        raise BadPacket("reserved byte is set")
    try:
        return Head(Type(kind), SuiteCode(suite), token_id, sender, receiver)
    except ValueError:
        raise BadPacket("unknown type or suite") from None


def mac1(key: bytes, data: bytes) -> bytes:
    """Proof that the sender has the token, checked before any Diffie-Hellman."""
    return hashlib.blake2s(data, key=key, digest_size=MAC1_SIZE).digest()


def close_message(token: Token, head: Head, body: bytes) -> bytes:
    """Head, Noise message and mac1."""
    open_end = head.encode() + body
    return open_end + mac1(token.mac1_key, open_end)


def open_message_untrusted(data: bytes, tokens: TokenSet) -> tuple[Head, Token, bytes]:
    """(head, its token, Noise message) of a whole handshake message with a valid mac1."""
    if not HEAD_SIZE + MAC1_SIZE <= len(data) <= HANDSHAKE_DATAGRAM_MAX:
        raise BadPacket("length of no handshake message")
    head = parse_head_untrusted(data)
    token = tokens.by_id(head.token_id)
    if token is None:
        raise BadPacket("unknown token id")
    if not hmac.compare_digest(mac1(token.mac1_key, data[:-MAC1_SIZE]), data[-MAC1_SIZE:]):
        raise BadPacket("mac1 does not fit")
    return head, token, data[HEAD_SIZE:-MAC1_SIZE]


def prologue(head_1: Head, plaintext: bool) -> bytes:
    """What both ends mix in first, so that neither head nor plaintext bit can be changed on the way."""
    return head_1.encode() + bytes([plaintext])


def encode_payload_1(incarnation: int, counter: int) -> bytes:
    return _PAYLOAD_1.pack(incarnation, counter)


def parse_payload_1_untrusted(data: bytes) -> tuple[int, int]:
    """(incarnation, counter)."""
    if len(data) != _PAYLOAD_1.size:
        raise BadPacket("payload of another length")
    incarnation, counter = _PAYLOAD_1.unpack(data)
    return incarnation, counter


def encode_payload_2(head: Head, incarnation: int, observed: Endpoint) -> bytes:
    return _PAYLOAD_2.pack(head.encode(), incarnation, encode_address(observed))


def parse_payload_2_untrusted(data: bytes, head: Head) -> tuple[int, Endpoint]:
    """(incarnation, the source address of ours that the responder saw); the repeated head is compared."""
    if len(data) != _PAYLOAD_2.size:
        raise BadPacket("payload of another length")
    repeated, incarnation, observed = _PAYLOAD_2.unpack(data)
    if repeated != head.encode():
        raise BadPacket("head was changed on the way")
    return incarnation, parse_address_untrusted(observed)


def encode_address(endpoint: Endpoint) -> bytes:
    """18 bytes; a scope (``fe80::1%eth0``) means nothing to the other side and is left out."""
    address = ip_address(endpoint[0].partition("%")[0])
    packed = address.packed if address.version == 6 else bytes(10) + b"\xff\xff" + address.packed
    return packed + endpoint[1].to_bytes(2, "big")


def parse_address_untrusted(data: bytes) -> Endpoint:
    if len(data) != ADDRESS_SIZE:
        raise BadPacket("address of another length")
    address: IPv4Address | IPv6Address = IPv6Address(data[:16])
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address), int.from_bytes(data[16:], "big")
