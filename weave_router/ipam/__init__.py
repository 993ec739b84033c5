"""Which address is whose: host numbers, blocks, and the rules by which blocks change hands."""
