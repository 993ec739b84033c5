"""MessagePack for the mesh: one place where bytes of a peer become a value, or BadPacket.

Used by record.py and frames.py. Bounds stand in the types themselves (``Annotated`` with ``msgspec.Meta``), so a
decoder never builds more than they allow. Knows no socket, no clock, no key.
"""

from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from weave_router.errors import BadPacket

T = TypeVar("T")

NodeId = Annotated[bytes, Meta(min_length=16, max_length=16)]
Key = Annotated[bytes, Meta(min_length=32, max_length=32)]
Mac = Annotated[bytes, Meta(min_length=6, max_length=6)]
U8 = Annotated[int, Meta(ge=0, le=0xFF)]
U16 = Annotated[int, Meta(ge=0, le=0xFFFF)]
U32 = Annotated[int, Meta(ge=0, le=0xFFFFFFFF)]
U63 = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
"""63 bits: the most that msgspec can bound, and a counter never gets there."""

_encoder = msgspec.msgpack.Encoder()


def encode(value: object) -> bytes:
    return _encoder.encode(value)


def decode_untrusted(decoder: "msgspec.msgpack.Decoder[T]", data: bytes | memoryview, what: str) -> T:
    """``what`` is the counter's reason. Deep nesting and bad UTF-8 do not come as msgspec's own errors (tried)."""
    try:
        return decoder.decode(data)
    except (ValueError, RecursionError) as error:
        raise BadPacket(what) from error
