"""Sessions between two peers: handshakes, keys, liveness, paths, path MTU."""
