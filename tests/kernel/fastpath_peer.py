"""A peer of the fast path in plain Python: seals and opens datagrams with `cryptography`, builds and cuts frames.

The slow, obvious other side for the tests of fastpath/: what it says of a datagram or a frame comes from
docs/protocol.md and the RFCs, not from the compiled code.
"""

import select
import socket
import struct
from array import array
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from kernel.fastpath_pair import Namespace, open_udp

from weave_router.fastpath import engine as fp

FRAME, TCP_SEGMENT, UDP_SEGMENT, FRAGMENT, BUNDLE, CONTROL = 1, 2, 3, 4, 5, 9
CSUM_OPEN, LAST = 1, 2
TCP, UDP = 6, 17
FIN, SYN, PSH, ACK, CWR = 1, 2, 8, 16, 0x80
IPV4, IPV6, ARP = 0x0800, 0x86DD, 0x0806


# -- frames ----------------------------------------------------------------------------------------------------------


def ones_sum(data: bytes) -> int:
    words = array("H", data + bytes(len(data) % 2))
    words.byteswap()
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def internet_checksum(data: bytes) -> int:
    return ~ones_sum(data) & 0xFFFF


def packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def pseudo_header(source: bytes, target: bytes, protocol: int, length: int) -> bytes:
    if len(source) == 4:
        return source + target + struct.pack(">HH", protocol, length)
    return source + target + struct.pack(">II", length, protocol)


def ip_packet(
    source: str,
    target: str,
    protocol: int,
    body: bytes,
    *,
    ident: int = 0,
    flags: int = 2,
    tos: int = 0,
    options: bytes = b"",
) -> bytes:
    """IPv4 (`flags` 2: DF) or IPv6 datagram. `options`: IPv4 options or IPv6 extension headers, whole."""
    a, b = packed(source), packed(target)
    if len(a) == 4:
        head = (
            struct.pack(
                ">BBHHHBBH",
                0x45 + len(options) // 4,
                tos,
                20 + len(options) + len(body),
                ident,
                flags << 13,
                64,
                protocol,
                0,
            )
            + a
            + b
            + options
        )
        return head[:10] + struct.pack(">H", internet_checksum(head)) + head[12:] + body
    return struct.pack(">IHBB", 6 << 28 | tos << 20, len(options) + len(body), protocol, 64) + a + b + options + body


def tcp(
    source: str,
    target: str,
    payload: bytes,
    *,
    sport: int = 1000,
    dport: int = 80,
    seq: int = 1,
    flags: int = ACK,
    options: bytes = b"",
) -> bytes:
    head = struct.pack(">HHIIBBHHH", sport, dport, seq, 7, (20 + len(options)) // 4 << 4, flags, 501, 0, 0) + options
    segment = head + payload
    value = internet_checksum(pseudo_header(packed(source), packed(target), TCP, len(segment)) + segment)
    return segment[:16] + struct.pack(">H", value) + segment[18:]


def udp(source: str, target: str, payload: bytes, *, sport: int = 1000, dport: int = 53) -> bytes:
    datagram = struct.pack(">HHHH", sport, dport, 8 + len(payload), 0) + payload
    value = internet_checksum(pseudo_header(packed(source), packed(target), UDP, len(datagram)) + datagram)
    return datagram[:6] + struct.pack(">H", value or 0xFFFF) + datagram[8:]


def ethernet(target: bytes, source: bytes, ethertype: int, body: bytes, tags: bytes = b"") -> bytes:
    return target + source + tags + struct.pack(">H", ethertype) + body


def addresses(frame: bytes, l3: int) -> tuple[bytes, bytes]:
    if frame[l3] >> 4 == 4:
        return frame[l3 + 12 : l3 + 16], frame[l3 + 16 : l3 + 20]
    return frame[l3 + 8 : l3 + 24], frame[l3 + 24 : l3 + 40]


def opened(frame: bytes, l3: int = 14, l4: int | None = None) -> bytes:
    """The frame as the kernel hands it over with an open checksum: the pseudo-header's sum stands in its place."""
    four = frame[l3] >> 4 == 4
    l4 = l4 or l3 + (20 if four else 40)
    protocol = frame[l3 + 9] if four else frame[l3 + 6]
    a, b = addresses(frame, l3)
    at = l4 + (16 if protocol == TCP else 6)
    value = ones_sum(pseudo_header(a, b, protocol, len(frame) - l4))
    return frame[:at] + struct.pack(">H", value) + frame[at + 2 :]


def vnet(frame: bytes, gso: int = 0, l3: int = 14) -> bytes:
    """virtio_net_hdr of 10 bytes for a frame with an open checksum, to be cut at `gso` payload bytes (0: not)."""
    four = frame[l3] >> 4 == 4
    protocol, l4 = (frame[l3 + 9], l3 + 20) if four else (frame[l3 + 6], l3 + 40)
    kind = 0 if not gso else 5 if protocol == UDP else 1 if four else 4
    size = (frame[l4 + 12] >> 4) * 4 if protocol == TCP else 8
    if kind in (1, 4) and frame[l4 + 13] & CWR:
        kind |= 0x80
    return struct.pack("<BBHHHH", 1, kind, l4 + size if gso else 0, gso, l4, 16 if protocol == TCP else 6)


def cut(frame: bytes, gso: int, l3: int = 14) -> list[bytes]:
    """What a superframe (complete checksums not needed) is on a wire: RFC 9293, the kernel's tcp_gso_segment."""
    four = frame[l3] >> 4 == 4
    protocol, l4 = (frame[l3 + 9], l3 + 20) if four else (frame[l3 + 6], l3 + 40)
    start = l4 + ((frame[l4 + 12] >> 4) * 4 if protocol == TCP else 8)
    pieces = [frame[at : at + gso] for at in range(start, len(frame), gso)]
    found = []
    for i, piece in enumerate(pieces):
        head = bytearray(frame[:start])
        length = start - l3 + len(piece)
        if four:
            ident = int.from_bytes(head[l3 + 4 : l3 + 6], "big") + i & 0xFFFF
            struct.pack_into(">HH", head, l3 + 2, length, ident)
            struct.pack_into(">H", head, l3 + 10, 0)
            struct.pack_into(">H", head, l3 + 10, internet_checksum(bytes(head[l3:l4])))
        else:
            struct.pack_into(">H", head, l3 + 4, length - 40)
        if protocol == TCP:
            seq = int.from_bytes(head[l4 + 4 : l4 + 8], "big") + i * gso & 0xFFFFFFFF
            struct.pack_into(">I", head, l4 + 4, seq)
            if i + 1 < len(pieces):
                head[l4 + 13] &= ~(FIN | PSH) & 0xFF
            if i:
                head[l4 + 13] &= ~CWR & 0xFF
        else:
            struct.pack_into(">H", head, l4 + 4, 8 + len(piece))
        found.append(completed(bytes(head) + piece, l3, l4, protocol))
    return found


def completed(frame: bytes, l3: int, l4: int, protocol: int) -> bytes:
    at = l4 + (16 if protocol == TCP else 6)
    bare = frame[:at] + b"\0\0" + frame[at + 2 :]
    a, b = addresses(frame, l3)
    value = internet_checksum(pseudo_header(a, b, protocol, len(frame) - l4) + bare[l4:])
    if protocol == UDP:
        value = value or 0xFFFF
    return bare[:at] + struct.pack(">H", value) + bare[at + 2 :]


def same_frames(found: list[bytes], wanted: list[bytes]) -> bool:
    """Equal but for the two words for zero of a TCP checksum."""
    return [normal(f) for f in found] == [normal(f) for f in wanted]


def normal(frame: bytes) -> bytes:
    l3 = 12
    while frame[l3 : l3 + 2] in (b"\x81\x00", b"\x88\xa8"):
        l3 += 4
    kind, l3 = int.from_bytes(frame[l3 : l3 + 2], "big"), l3 + 2
    l4 = l3 + (20 if kind == IPV4 else 40)
    tcp_here = kind in (IPV4, IPV6) and frame[l3 + (9 if kind == IPV4 else 6)] == TCP
    if tcp_here and frame[l4 + 16 : l4 + 18] == b"\xff\xff":
        return frame[: l4 + 16] + b"\0\0" + frame[l4 + 18 :]
    return frame


# -- datagrams -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Opened:
    """One data datagram, opened: header fields, descriptor, body."""

    index: int
    lane: int
    counter: int
    kind: int
    piece: int
    size: int
    flags: int
    body: bytes

    def frames(self) -> list[tuple[int, bytes]]:
        """(flags, frame) of a whole frame or a bundle."""
        if self.kind in (FRAME, TCP_SEGMENT, UDP_SEGMENT):
            return [(self.flags, self.body)]
        assert self.kind == BUNDLE
        found, at = [], 0
        while at < len(self.body):
            length, flags, zero = struct.unpack_from(">HBB", self.body, at)
            assert zero == 0
            found.append((flags, self.body[at + 4 : at + 4 + length]))
            at += 4 + length
        assert at == len(self.body)
        return found


def descriptor(kind: int, *, piece: int = 0, size: int = 0, flags: int = 0) -> bytes:
    return struct.pack(">BBHBBBB", kind, piece, size, flags, 0, 0, 0)


def bundle(*frames: bytes, flags: int = 0) -> bytes:
    return b"".join(struct.pack(">HBB", len(frame), flags, 0) + frame for frame in frames)


class PythonPeer:
    """One session with an engine. `keys`: sending, receiving, as this peer sees them."""

    def __init__(
        self,
        namespace: Namespace,
        port: int,
        *,
        remote_port: int,
        index: int,
        remote_index: int,
        keys: tuple[bytes, bytes],
        suite: int = fp.SUITE_AESGCM,
    ) -> None:
        self.socket = namespace.call(open_udp, port)
        self.socket.setsockopt(17, 104, 0)  # datagrams one by one
        self.remote = ("::ffff:127.0.0.1", remote_port)
        self.index, self.remote_index = index, remote_index
        cipher = AESGCM if suite == fp.SUITE_AESGCM else ChaCha20Poly1305
        self._seal, self._open = cipher(keys[0]), cipher(keys[1])
        self.counters = dict.fromkeys(range(256), 0)

    def close(self) -> None:
        self.socket.close()

    def sealed(
        self,
        kind: int,
        body: bytes,
        *,
        lane: int = 0,
        counter: int | None = None,
        flags: int = 0,
        piece: int = 0,
        size: int = 0,
    ) -> bytes:
        return self.sealed_raw(descriptor(kind, piece=piece, size=size, flags=flags) + body, lane=lane, counter=counter)

    def sealed_raw(self, plain: bytes, *, lane: int = 0, counter: int | None = None, header_flags: int = 0) -> bytes:
        if counter is None:
            self.counters[lane] += 1
            counter = self.counters[lane]
        head = struct.pack(">BBHIQ", 4, header_flags, 0, self.remote_index, lane << 56 | counter)
        if header_flags & 1:
            return head + plain
        return head + self._seal.encrypt(bytes(4) + head[8:], plain, head)

    def send(self, *datagrams: bytes) -> None:
        for datagram in datagrams:
            self.socket.sendto(datagram, self.remote)

    def receive(self, timeout: float = 5.0) -> bytes | None:
        if not select.select([self.socket], [], [], timeout)[0]:
            return None
        return self.socket.recv(65536)

    def open(self, datagram: bytes) -> Opened:
        kind, flags, network, index, nonce = struct.unpack_from(">BBHIQ", datagram)
        assert (kind, network, index) == (4, 0, self.index), datagram[:16].hex()
        plain = datagram[16:]
        if not flags & 1:
            try:
                plain = self._open.decrypt(bytes(4) + datagram[8:16], datagram[16:], datagram[:16])
            except InvalidTag:
                raise AssertionError("a datagram that does not open") from None
        what, piece, size, bits, *rest = struct.unpack_from(">BBHBBBB", plain)
        assert rest == [0, 0, 0]
        return Opened(index, nonce >> 56, nonce & (1 << 56) - 1, what, piece, size, bits, plain[8:])
