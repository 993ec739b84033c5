# Names of what is counted. The order here is the order of the tuples in counters.pyx; a test compares them.
cdef enum Counter:
    C_TAP_READS
    C_TAP_READ_BYTES
    C_TAP_WRITES
    C_TAP_WRITE_BYTES
    C_FRAMES_IN  # frames read from the TAP; a superframe counts once
    C_FRAMES_OUT  # frames written to the TAP, as they came off the wire
    C_DATAGRAMS_SENT
    C_DATAGRAM_BYTES_SENT
    C_DATAGRAMS_RECEIVED
    C_DATAGRAM_BYTES_RECEIVED
    C_SENDS  # sendmsg calls; datagrams_sent / sends = segments per send
    C_RECEIVES  # messages from recvmmsg; datagrams_received / receives = segments per receive
    C_SEGMENTS_CUT  # segments cut from superframes
    C_SEGMENTS_JOINED  # frames that shared a write with another
    C_BUNDLES
    C_BUNDLED_FRAMES
    C_FRAGMENTED  # frames that had to be fragmented by the overlay
    C_FRAGMENTS_SENT
    C_REASSEMBLED
    C_ARP_ANSWERED
    C_ND_ANSWERED
    C_FLOODED
    C_PARKED
    C_CONTROL_SENT
    C_CONTROL_RECEIVED
    C_MSS_CLAMPED
    C_TOO_BIG_SENT  # ICMP 3/4 and ICMPv6 2
    C_CHECKSUMS_COMPLETED  # in software
    C_WAKEUPS
    C_EVENTS_LOST
    C_QUEUED  # frames that were read ahead of their turn
    C_REALTIME_SPENT  # times that a worker had used its share and left the real-time class
    C_COUNT

cdef enum Drop:
    D_STRANGER  # no mac1, no known type, no session: silence
    D_VERSION  # handshake of another version
    D_TOKEN  # handshake under a token id that is not ours
    D_UNKNOWN_SESSION
    D_BAD_TAG
    D_REPLAY
    D_MALFORMED_OUTSIDE  # authenticated, but not a payload we know
    D_PLAINTEXT_REFUSED  # plaintext datagram on a sealed session or from another address
    D_FOREIGN_SOURCE  # frame whose source belongs to another node
    D_FRAGMENT_LOST  # partial frame given up
    D_TAP_WRITE
    D_MALFORMED_INSIDE  # shorter than an Ethernet header, or a superframe we cannot cut
    D_LOCAL_DESTINATION  # for a block of this node: the bridge knows better
    D_NO_OWNER  # derived MAC or address that no node owns
    D_LINK_LOCAL  # chatter that ends at its node
    D_NO_LISTENER  # multicast or unknown station that no peer asks for
    D_FLOOD_LIMIT
    D_NO_ANSWER  # ARP or ND for a node that is gone
    D_NO_SESSION  # parked for 3 s without a session
    D_PARK_FULL
    D_TOO_BIG  # DF and larger than the other side takes
    D_SEND
    D_NONCE  # an epoch would be used twice
    D_TRUNCATED  # a datagram larger than our buffer
    D_CONGESTION  # the outer header said CE, the inner packet is not ECN-capable
    D_QUEUE  # too much waited to be sealed, and this flow had most of it
    D_COUNT
