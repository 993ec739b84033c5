"""How many inputs a fuzz entry makes, and from which seed: what `make fuzz` and `make asan` hand down.

``.ci/fuzz`` runs an entry many times with another ``FUZZ_SEED`` each, so that 10^6 inputs come in pieces. Without it an
entry makes 10,000 inputs, the same in every run. Knows no decoder.
"""

import os
from random import Random

IN_A_TEST = 10_000
INPUTS = int(os.environ.get("FUZZ_INPUTS", IN_A_TEST))
SEED = int(os.environ.get("FUZZ_SEED", "0"))
SANITIZED = "libasan" in os.environ.get("LD_PRELOAD", "")
"""Under the sanitizers, which keep what was freed for a while and make everything about three times as slow."""


def few(share: int) -> int:
    """For inputs that cost much: all that are asked for, or a ``share``-th part in a plain test run."""
    return INPUTS if "FUZZ_INPUTS" in os.environ else IN_A_TEST // share


def seeded(number: int) -> Random:
    """The generator of entry ``number``; another one in each piece."""
    return Random(number + (SEED << 32))


def mutated(rng: Random, data: bytes) -> bytes:
    """A few of: a byte changed, a piece cut, a piece doubled, random bytes put in."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(5):
            case 0 if at < len(changed):
                changed[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(changed):
                changed[at] = rng.choice((0, 1, 0x7F, 0x80, 0x90, 0xC0, 0xC6, 0xCF, 0xDB, 0xDD, 0xDF, 0xFF))
            case 2:
                del changed[at:at + rng.randrange(20)]
            case 3:
                changed[at:at] = changed[at:at + rng.randrange(40)]
            case _:
                changed[at:at] = rng.randbytes(rng.randrange(8))
    return bytes(changed)
