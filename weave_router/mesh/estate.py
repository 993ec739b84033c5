"""What a router leaves to the one that follows it on the same machine: everybody's records, and with whom it talked.

The heir's tables stand before it reads its first frame, and its sessions begin with that one. Pure. Called by
router.py; host/succession_driver.py carries the bytes.
"""

from collections.abc import Iterable
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from weave_router import limits
from weave_router.mesh.codec import NodeId, decode_untrusted, encode
from weave_router.mesh.frames import RecordBytes
from weave_router.mesh.record import SignedRecord


class Estate(msgspec.Struct, frozen=True, array_like=True):
    """``records``: signed, as they were heard; ``sessions``: nodes with an established session."""

    records: Annotated[tuple[RecordBytes, ...], Meta(max_length=limits.RECORDS_MAX)] = ()
    sessions: Annotated[tuple[NodeId, ...], Meta(max_length=limits.RECORDS_MAX)] = ()


_DECODER: Final = msgspec.msgpack.Decoder(Estate)


def encode_estate(records: Iterable[SignedRecord], sessions: Iterable[bytes]) -> bytes:
    return encode(Estate(tuple(signed.data for signed in records), tuple(sessions)))


def decode_estate_untrusted(data: bytes) -> Estate:
    """BadPacket for what no router left."""
    return decode_untrusted(_DECODER, data, "estate")
