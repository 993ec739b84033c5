"""pcapng.py: read back by an independent reader (scapy), and cut only between blocks."""

import io
import struct

import pytest
from unit.api_router import FRAMES

from weave_router.api import pcapng
from weave_router.errors import BadPacket


def written() -> bytes:
    head = pcapng.header(interface="weave", application="weave-router 0.1.0", snap=262_144, comment="inner frames")
    packets = b"".join(pcapng.packet(*frame) for frame in FRAMES)
    return head + packets + pcapng.statistics(FRAMES[-1][0], received=10, dropped=7)


def blocks(data: bytes) -> list[tuple[int, bytes]]:
    """A reader of its own: (type, body), each with equal lengths at both ends."""
    found = []
    while data:
        kind, length = struct.unpack_from("<II", data)
        assert struct.unpack_from("<I", data, length - 4) == (length,)
        found.append((kind, data[8 : length - 4]))
        data = data[length:]
    return found


def test_scapy_reads_back_what_was_written() -> None:
    from scapy.utils import RawPcapNgReader

    reader = RawPcapNgReader(io.BytesIO(written()))
    packets = list(reader)
    for (ns, direction, length, frame), (data, metadata) in zip(FRAMES, packets, strict=True):
        assert data == frame
        assert ((metadata.tshigh << 32) + metadata.tslow, metadata.tsresol) == (ns, 1_000_000_000)
        assert (metadata.wirelen, metadata.direction) == (length, {0: 2, 1: 1}[direction])
        assert (metadata.ifname, metadata.linktype) == (b"weave", pcapng.LINKTYPE_ETHERNET)


def test_every_block_says_what_it_is() -> None:
    kinds = [kind for kind, _ in blocks(written())]
    assert kinds == [
        pcapng.SECTION_HEADER, pcapng.INTERFACE_DESCRIPTION, *[pcapng.ENHANCED_PACKET] * 3, pcapng.INTERFACE_STATISTICS,
    ]  # fmt: skip
    statistics = blocks(written())[-1][1]
    assert struct.pack("<HHQ", 4, 8, 10) in statistics and struct.pack("<HHQ", 5, 8, 7) in statistics
    section = blocks(written())[0][1]
    assert b"weave-router 0.1.0" in section and b"inner frames" in section


@pytest.mark.parametrize("piece", [1, 7, 64, 4096])
def test_only_whole_blocks_are_taken(piece) -> None:
    data, waiting, taken = written(), bytearray(), b""
    for start in range(0, len(data), piece):
        waiting += data[start : start + piece]
        taken += pcapng.take_whole_blocks(waiting)
        assert sum(12 + len(body) for _, body in blocks(taken)) == len(taken)
    assert taken == data and not waiting


def test_half_a_block_waits() -> None:
    whole = pcapng.packet(*FRAMES[0])
    waiting = bytearray(whole + whole[:-1])
    assert pcapng.take_whole_blocks(waiting) == whole
    assert bytes(waiting) == whole[:-1]


@pytest.mark.parametrize("length", [0, 11, 13, (1 << 20) + 4, 0xFFFFFFFF])
def test_what_is_no_block_is_refused(length) -> None:
    with pytest.raises(BadPacket):
        pcapng.take_whole_blocks(bytearray(struct.pack("<II", 6, length)))
