"""Frames of an established control link: what stands inside one sealed message.

    sealed frame   u16 length | ciphertext with 16-byte tag          (link.py)
    plaintext      type u8 | MessagePack array of the type's fields  (here)

A type that this version does not know is skipped, fields are appended, never moved: versions can be mixed.
Knows no key, socket or clock. Called by link.py.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from weave_router import limits
from weave_router.errors import BadPacket
from weave_router.mesh.codec import U16, U63, NodeId, decode_untrusted, encode
from weave_router.mesh.record import SignedRecord
from weave_router.mesh.table import Version

RecordBytes = Annotated[bytes, Meta(max_length=limits.RECORD_BYTES_MAX)]
LOWEST: Final = bytes(16)
HIGHEST: Final = b"\xff" * 16


class Hello(msgspec.Struct, frozen=True, array_like=True):
    """First frame each way: our record, and the address the other end has from here."""

    record: RecordBytes
    observed_host: Annotated[str, Meta(max_length=64)] = ""
    observed_port: U16 = 0


class Heartbeat(msgspec.Struct, frozen=True, array_like=True):
    """Microseconds. ``echo`` is the last stamp heard from the other end (0: none), ``hold`` how long ago that was."""

    stamp: U63
    echo: U63 = 0
    hold: U63 = 0


class Records(msgspec.Struct, frozen=True, array_like=True):
    records: Annotated[tuple[RecordBytes, ...], Meta(max_length=512)]


class WireVersion(msgspec.Struct, frozen=True, array_like=True):
    node_id: NodeId
    incarnation: U63
    seq: U63
    hash: Annotated[bytes, Meta(min_length=8, max_length=8)]


class Digest(msgspec.Struct, frozen=True, array_like=True):
    """All versions the sender holds with ids in [low, high]. ``last``: the table ends here, answer with Synced."""

    low: NodeId
    high: NodeId
    versions: Annotated[tuple[WireVersion, ...], Meta(max_length=2048)]
    nonce: U63
    last: bool


class Synced(msgspec.Struct, frozen=True, array_like=True):
    """All that the digest with this nonce lacked was sent before this frame."""

    nonce: U63


class Close(msgspec.Struct, frozen=True, array_like=True):
    """The last frame. ``code`` is one of core.Reason (or one that we do not know), ``text`` is for people."""

    code: Annotated[str, Meta(max_length=32)]
    text: Annotated[str, Meta(max_length=limits.LINK_CLOSE_TEXT_MAX)] = ""


class Ipam(msgspec.Struct, frozen=True, array_like=True):
    """Words about addresses, which ipam/wire.py reads; a node without addresses of its own skips them."""

    data: Annotated[bytes, Meta(max_length=limits.LINK_FRAME_MAX)]


Frame = Hello | Heartbeat | Records | Digest | Synced | Close | Ipam

TYPES: Final[dict[int, type[Frame]]] = {1: Hello, 2: Heartbeat, 3: Records, 4: Digest, 5: Synced, 6: Close, 7: Ipam}
_CODES: Final = {kind: code for code, kind in TYPES.items()}
_DECODERS: Final = {code: msgspec.msgpack.Decoder(kind) for code, kind in TYPES.items()}


def encode_frame(frame: Frame) -> bytes:
    return bytes([_CODES[type(frame)]]) + encode(frame)


def decode_frame_untrusted(data: bytes) -> Frame | None:
    """None for a type of a later version."""
    if not data:
        raise BadPacket("empty frame")
    decoder = _DECODERS.get(data[0])
    if decoder is None:
        return None
    frame: Frame = decode_untrusted(decoder, memoryview(data)[1:], "frame encoding")
    return frame


def record_frames(records: Iterable[SignedRecord]) -> Iterator[Records]:
    """Pack records into as few frames as the batch size allows."""
    batch: list[bytes] = []
    size = 0
    for signed in records:
        batch.append(signed.data)
        size += len(signed.data)
        if size >= limits.LINK_BATCH_BYTES or len(batch) == 512:
            yield Records(tuple(batch))
            batch, size = [], 0
    if batch:
        yield Records(tuple(batch))


def digest_frames(versions: Sequence[Version], nonce: int) -> Iterator[Digest]:
    """Cut a sorted table into digests that join without a gap: together they speak of every node id there is."""
    per_frame = 1024  # about 45 bytes each: limits.LINK_BATCH_BYTES
    low = LOWEST
    for start in range(0, max(1, len(versions)), per_frame):
        part = versions[start:start + per_frame]
        last = start + per_frame >= len(versions)
        high = HIGHEST if last else part[-1][0]
        yield Digest(low, high, tuple(WireVersion(*version) for version in part), nonce, last)
        low = after(high)


def after(node_id: bytes) -> bytes:
    """The next id; only asked for ids below HIGHEST, or when nothing follows."""
    return min(int.from_bytes(node_id, "big") + 1, (1 << 128) - 1).to_bytes(16, "big")


def versions_of(digest: Digest) -> list[Version]:
    return [(version.node_id, version.incarnation, version.seq, version.hash) for version in digest.versions]
