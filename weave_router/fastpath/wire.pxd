# The datagram of the data channel, drawn once for the code (and in docs/protocol.md for people). Big-endian.
#
#   0        1        2                 4                                   8
#   +--------+--------+-----------------+-----------------------------------+
#   | type   | flags  | network         | receiver index                    |   header: all of it is AAD
#   +--------+--------+-----------------+-----------------------------------+
#   | lane   | counter (56 bits)                                            |   lane = path epoch << 4 | worker
#   +--------+--------------------------------------------------------------+   nonce = 4 zero bytes, bytes 8..15
#   | kind   | index  | size            | flags  | l3     | l4     | 0      |   descriptor, sealed
#   +--------+--------+-----------------+--------+--------+--------+--------+
#   | frame bytes ...                                     | tag, 16 bytes   |
#
# kind FRAME, TCP_SEGMENT, UDP_SEGMENT: one whole Ethernet frame; size = gso_size it was cut at, index = its place.
# kind FRAGMENT: piece `index` of a frame; pieces have consecutive counters in one lane; FLAG_LAST on the last.
# kind BUNDLE: entries of (length u16, flags u8, zero u8, frame).
# kind CONTROL: `size` bytes of a message of tunnel/, then zeros.
cdef enum:
    TYPE_INITIATION = 1
    TYPE_RESPONSE = 2
    TYPE_DATA = 4
    PROTOCOL_VERSION = 1
    HEAD_SIZE = 16  # clear head of handshake messages
    MAC1_SIZE = 16
    HANDSHAKE_MAX = 548

    HEADER_SIZE = 16
    HEADER_PLAINTEXT = 1
    DESCRIPTOR_SIZE = 8
    SEALED_OVERHEAD = 40  # header, descriptor, tag

    KIND_FRAME = 1
    KIND_TCP_SEGMENT = 2
    KIND_UDP_SEGMENT = 3
    KIND_FRAGMENT = 4
    KIND_BUNDLE = 5
    KIND_CONTROL = 9

    FLAG_CSUM_OPEN = 1  # the TCP or UDP checksum holds no value; the receiver makes it from its own parse
    FLAG_LAST = 2

    BUNDLE_ENTRY = 4
