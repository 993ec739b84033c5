"""Writes pcapng (draft-ietf-opsawg-pcapng), as wireshark and tcpdump read it. Pure: values in, bytes out.

One section, one Ethernet interface with nanosecond time stamps. Knows nothing of captures or sockets. Called by
server.py; ``take_whole_blocks`` by the command line, which must not write half a block when it is interrupted.

    block     type u32 | total length u32 | body, padded to 4 | total length u32
    option    code u16 | length u16 | value, padded to 4
"""

import struct
from typing import Final

from weave_router.errors import BadPacket

SECTION_HEADER: Final = 0x0A0D0D0A
INTERFACE_DESCRIPTION: Final = 1
INTERFACE_STATISTICS: Final = 5
ENHANCED_PACKET: Final = 6

LINKTYPE_ETHERNET: Final = 1
_BYTE_ORDER_MAGIC: Final = 0x1A2B3C4D
_OPTION_COMMENT: Final = 1
_SHB_USERAPPL: Final = 4
_IF_NAME: Final = 2
_IF_TSRESOL: Final = 9
_EPB_FLAGS: Final = 2
_ISB_IFRECV: Final = 4
_ISB_IFDROP: Final = 5
_BLOCK_MAX: Final = 1 << 20

TO_PEER: Final = 0
FROM_PEER: Final = 1
_DIRECTION_FLAGS: Final = {TO_PEER: 2, FROM_PEER: 1}
"""epb_flags, bits 0-1: 01 inbound, 10 outbound, as this node's bridge sees it."""


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def _block(block_type: int, body: bytes) -> bytes:
    length = 12 + len(body)
    return struct.pack("<II", block_type, length) + body + struct.pack("<I", length)


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + _padded(value)


_END: Final = _option(0, b"")


def header(*, interface: str, application: str, snap: int, comment: str = "") -> bytes:
    """Section header and interface description: the first bytes of a file."""
    options = _option(_SHB_USERAPPL, application.encode())
    if comment:
        options = _option(_OPTION_COMMENT, comment.encode()) + options
    section = _block(SECTION_HEADER, struct.pack("<IHHq", _BYTE_ORDER_MAGIC, 1, 0, -1) + options + _END)
    name_and_nanoseconds = _option(_IF_NAME, interface.encode()) + _option(_IF_TSRESOL, b"\x09")
    described = struct.pack("<HHI", LINKTYPE_ETHERNET, 0, snap) + name_and_nanoseconds + _END
    return section + _block(INTERFACE_DESCRIPTION, described)


def packet(ns: int, direction: int, original_length: int, frame: bytes) -> bytes:
    """One frame. ``ns``: CLOCK_REALTIME; ``direction``: TO_PEER or FROM_PEER; ``frame`` may be cut short."""
    fixed = struct.pack("<IIIII", 0, ns >> 32, ns & 0xFFFFFFFF, len(frame), original_length)
    flags = _option(_EPB_FLAGS, struct.pack("<I", _DIRECTION_FLAGS[direction]))
    return _block(ENHANCED_PACKET, fixed + _padded(frame) + flags + _END)


def statistics(ns: int, *, received: int, dropped: int) -> bytes:
    """Last block: how many frames there were, and for how many the capture ring had no room."""
    counts = _option(_ISB_IFRECV, struct.pack("<Q", received)) + _option(_ISB_IFDROP, struct.pack("<Q", dropped))
    return _block(INTERFACE_STATISTICS, struct.pack("<III", 0, ns >> 32, ns & 0xFFFFFFFF) + counts + _END)


def take_whole_blocks(buffer: bytearray) -> bytes:
    """Remove all complete blocks from the front of ``buffer`` and return them; BadPacket if it holds no pcapng."""
    end = 0
    while len(buffer) - end >= 8:
        length = int.from_bytes(buffer[end + 4 : end + 8], "little")
        if length < 12 or length % 4 or length > _BLOCK_MAX:
            raise BadPacket("pcapng-block-length")
        if len(buffer) - end < length:
            break
        end += length
    taken = bytes(buffer[:end])
    del buffer[:end]
    return taken
