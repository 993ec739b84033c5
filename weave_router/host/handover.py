"""The attach socket's frames: u32 length, big-endian, then JSON. Pure; handover_driver.py moves the bytes.

Whoever may open the socket is root, but what arrives is read as a stranger's: bounded, typed, nothing else happens.
"""

from typing import Any, Final

import msgspec

from weave_router.errors import BadPacket
from weave_router.limits import HANDOVER_REQUEST_BYTES

HEAD_BYTES: Final = 4


def frame(message: Any) -> bytes:
    body = msgspec.json.encode(message)
    return len(body).to_bytes(HEAD_BYTES, "big") + body


def length_untrusted(head: bytes) -> int:
    """Bytes that follow the head."""
    if len(head) < HEAD_BYTES:
        raise BadPacket("handover: short head")
    length = int.from_bytes(head[:HEAD_BYTES], "big")
    if not 0 < length <= HANDOVER_REQUEST_BYTES:
        raise BadPacket("handover: length out of bounds")
    return length


def body_untrusted(body: bytes) -> dict[str, Any]:
    """A JSON object; what its fields mean is the handler's to check."""
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadPacket("handover: no JSON object") from error
