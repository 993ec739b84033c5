# cython: language_level=3
"""Names of the counters and drop reasons, in the order of counters.pxd. Read by engine, metrics and status."""

COUNTERS = (
    "tap_reads", "tap_read_bytes", "tap_writes", "tap_write_bytes", "frames_in", "frames_out", "datagrams_sent",
    "datagram_bytes_sent", "datagrams_received", "datagram_bytes_received", "sends", "receives", "segments_cut",
    "segments_joined", "bundles", "bundled_frames", "fragmented", "fragments_sent", "reassembled", "arp_answered",
    "nd_answered", "flooded", "parked", "control_sent", "control_received", "mss_clamped", "too_big_sent",
    "checksums_completed", "wakeups", "events_lost", "queued", "realtime_spent",
)

DROP_REASONS = (
    "stranger", "version", "token", "unknown_session", "bad_tag", "replay", "malformed_outside", "plaintext_refused",
    "foreign_source", "fragment_lost", "tap_write", "malformed_inside", "local_destination", "no_owner", "link_local",
    "no_listener", "flood_limit", "no_answer", "no_session", "park_full", "too_big", "send", "nonce", "truncated",
    "congestion", "queue",
)

if len(COUNTERS) != C_COUNT or len(DROP_REASONS) != D_COUNT:
    raise ImportError("counters.pxd and counters.pyx disagree")
