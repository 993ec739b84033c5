"""The signed record of a node: what it says about itself, and nothing that others say about it.

A record is stored and forwarded as the bytes that its author signed, so fields that this version does not know
survive. Its total order is (incarnation, seq, hash). Knows no link, no table, no clock. Called by table.py, core.py
and own.py of this room, and by whoever reads a record out of a delta.

    64 bytes  Ed25519 signature over CONTEXT | domain (8) | body
    body      MessagePack array, the fields of ``Record`` in order; new fields are appended, never moved
"""

import hashlib
import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from weave_router import limits
from weave_router.errors import BadPacket
from weave_router.mesh.codec import U8, U16, U32, U63, Key, Mac, NodeId, decode_untrusted, encode
from weave_router.tunnel.identity import node_id_of, verify

CONTEXT: Final = b"weave-router record 1\0"
FORMAT: Final = 1
SIGNATURE_LEN: Final = 64

FLAG_FLOOD: Final = 1  # wants every flooded frame (undeclared station, or more groups than fit)
FLAG_PLAINTEXT: Final = 2  # started with --plaintext
FLAG_NAT: Final = 4  # not reachable from outside: others do not dial it
FLAG_NO_DISCOVERY: Final = 8  # links exactly its targets
FLAG_NO_AES: Final = 16  # no AES instructions: sessions with it use ChaCha20-Poly1305

Verify = Callable[[bytes, bytes, bytes], bool]
"""(Ed25519 public key, signature, data) -> valid?"""
Endpoint = tuple[str, int]
Order = tuple[int, int, bytes]


class Link(msgspec.Struct, frozen=True, array_like=True):
    node_id: NodeId
    rtt: Annotated[int, Meta(ge=0, le=127)] = 0
    """Exponent of 1.25 in microseconds (``rtt_code``); 0 = not measured."""


class Prefix(msgspec.Struct, frozen=True, array_like=True):
    """Host numbers that live behind this node. ``mac`` (a /32 only): the real MAC, where it is not the derived one."""

    number: U32
    prefix_len: Annotated[int, Meta(ge=8, le=32)]
    mac: Annotated[bytes, Meta(max_length=6)] = b""


Host = Annotated[str, Meta(max_length=45)]
Network = Annotated[str, Meta(max_length=49)]
Tag = Annotated[str, Meta(max_length=limits.RECORD_TAG_BYTES_MAX)]
TagValue = Annotated[bytes, Meta(max_length=limits.RECORD_TAG_BYTES_MAX)]


class Lost(msgspec.Struct, frozen=True, array_like=True):
    """A block that was this node's until a register of ``gen`` gave it to another, while pods lived in it."""

    block: U32
    gen: U32


class Record(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    format: U8 = FORMAT
    domain: Annotated[bytes, Meta(min_length=8, max_length=8)]
    ed25519_public: Key
    x25519_public: Key
    incarnation: U63
    seq: U63
    run: Annotated[bytes, Meta(min_length=16, max_length=16)]
    name: Annotated[str, Meta(min_length=1, max_length=limits.RECORD_NAME_MAX)]
    endpoints: Annotated[tuple[tuple[Host, U16], ...], Meta(max_length=limits.RECORD_ENDPOINTS_MAX)] = ()
    links: Annotated[tuple[Link, ...], Meta(max_length=limits.RECORD_LINKS_MAX)] = ()
    prefixes: Annotated[tuple[Prefix, ...], Meta(max_length=limits.RECORD_PREFIXES_MAX)] = ()
    groups: Annotated[tuple[Mac, ...], Meta(max_length=limits.RECORD_GROUPS_MAX)] = ()
    pod_mtu: U16 = 0
    flags: U32 = 0
    token_sent: U32 = 0
    tokens_accepted: Annotated[tuple[U32, ...], Meta(max_length=limits.RECORD_TOKENS_MAX)] = ()
    version: Annotated[str, Meta(max_length=32)] = ""
    tags: Annotated[dict[Tag, TagValue], Meta(max_length=limits.RECORD_TAGS_MAX)] = {}
    nickname: Annotated[str, Meta(max_length=limits.RECORD_NAME_MAX)] = ""
    trusted: Annotated[tuple[Network, ...], Meta(max_length=limits.RECORD_TRUSTED_MAX)] = ()
    lost: Annotated[tuple[Lost, ...], Meta(max_length=limits.RECORD_LOST_MAX)] = ()

    @property
    def shown_name(self) -> str:
        """What people read."""
        return self.nickname or self.name


@dataclass(frozen=True, slots=True)
class SignedRecord:
    """A record with the bytes it travels as. Only ``sign_record`` and the decoders below make one."""

    record: Record
    data: bytes
    node_id: bytes
    hash: bytes
    """First 16 bytes of SHA-256 over ``data``."""

    @property
    def order(self) -> Order:
        return (self.record.incarnation, self.record.seq, self.hash)

    @property
    def name(self) -> str:
        return self.record.name


_decoder = msgspec.msgpack.Decoder(Record)


def hash_of(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:16]


def signed_part(domain: bytes, body: bytes) -> bytes:
    return CONTEXT + domain + body


def sign_record(record: Record, sign: Callable[[bytes], bytes]) -> SignedRecord:
    """Raises ValueError if the record breaks a bound: our own bug, never a peer's."""
    body = encode(record)
    data = sign(signed_part(record.domain, body)) + body
    try:
        return parse_record_untrusted(data, domain=record.domain)
    except BadPacket as error:
        raise ValueError(f"own record refused: {error.reason}") from error


def decode_record_untrusted(data: bytes, *, domain: bytes, verify: Verify = verify) -> SignedRecord:
    """Parse, check and verify. Raises BadPacket and nothing else."""
    signed = parse_record_untrusted(data, domain=domain)
    check_signature(signed, verify)
    return signed


def parse_record_untrusted(data: bytes, *, domain: bytes) -> SignedRecord:
    """All checks but the signature: enough to see that a record is older than ours, before 90 us are spent on it."""
    if not SIGNATURE_LEN < len(data) <= limits.RECORD_BYTES_MAX:
        raise BadPacket("record size")
    record = decode_untrusted(_decoder, memoryview(data)[SIGNATURE_LEN:], "record encoding")
    if record.format != FORMAT:
        raise BadPacket("record format")
    if record.domain != domain:
        raise BadPacket("record domain")
    check_fields(record)
    return SignedRecord(record, data, node_id_of(record.ed25519_public), hash_of(data))


def check_signature(signed: SignedRecord, verify: Verify) -> None:
    data = signed.data
    part = signed_part(signed.record.domain, data[SIGNATURE_LEN:])
    if not verify(signed.record.ed25519_public, data[:SIGNATURE_LEN], part):
        raise BadPacket("record signature")


def check_fields(record: Record) -> None:
    """What the types cannot say. Raises BadPacket."""
    name = record.name
    if not name.isprintable() or name != name.strip() or len(name.encode()) > limits.RECORD_NAME_MAX:
        raise BadPacket("record name")
    if not record.nickname.isprintable() or len(record.nickname.encode()) > limits.RECORD_NAME_MAX:
        raise BadPacket("record nickname")
    for host, port in record.endpoints:
        check_endpoint(host, port)
    check_prefixes(record.prefixes)
    if not all(mac[0] & 1 for mac in record.groups) or has_twins(record.groups):
        raise BadPacket("record group")
    if has_twins([link.node_id for link in record.links]):
        raise BadPacket("record link")


def has_twins(values: Sequence[object]) -> bool:
    return len(set(values)) != len(values)


def check_endpoint(host: str, port: int) -> None:
    """A unicast address in its one canonical spelling, without a zone."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError as error:
        raise BadPacket("record endpoint") from error
    odd = address.is_multicast or address.is_unspecified or port == 0
    if odd or str(address) != host or "%" in host:
        raise BadPacket("record endpoint")


def check_prefixes(prefixes: Sequence[Prefix]) -> None:
    for prefix in prefixes:
        host_bits = prefix.number & (0xFFFFFFFF >> prefix.prefix_len)
        if host_bits or not is_unicast_number(prefix.number):
            raise BadPacket("record prefix")
        if prefix.mac and not (prefix.prefix_len == 32 and is_unicast_mac(prefix.mac)):
            raise BadPacket("record prefix mac")
    if has_twins([(prefix.number, prefix.prefix_len) for prefix in prefixes]):
        raise BadPacket("record prefix")


def is_unicast_number(number: int) -> bool:
    """Not 0/8, not loopback, not multicast, reserved or broadcast: none of these can be a pod's IPv4 address."""
    first = number >> 24
    return first not in (0, 127) and first < 224


def is_unicast_mac(mac: bytes) -> bool:
    return len(mac) == 6 and not mac[0] & 1 and any(mac)


def rtt_code(seconds: float) -> int:
    """Round to a power of 1.25 microseconds, so that a record does not change with every jitter."""
    micros = seconds * 1e6
    code = 0
    while code < 127 and 1.25 ** (code + 0.5) < micros:
        code += 1
    return code


def rtt_seconds(code: int) -> float | None:
    """The inverse; None for a link that was not measured."""
    return 1.25**code / 1e6 if code else None
