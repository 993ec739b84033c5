"""Live buffers of the fast path: what tests compare before and after."""

from typing import Final

DEBUG: Final[bool]
"""Whether this is a build with -Dweave_debug=true: what was given back is poisoned."""

def live() -> int:
    """Buffers taken and not given back."""
