"""Inner functions of the fast path, for tests only."""

from array import array
from typing import Final, NamedTuple

WINDOW_SIZE: Final[int]
FRAME_COST: Final[int]
QUANTUM: Final[int]
QUANTUM_LEAST: Final[int]
QUEUE_WEIGHT: Final[int]
QUEUE_FLOWS: Final[int]
VICTIM_FRAMES: Final[int]

class Parsed(NamedTuple):
    """struct Frame of frame.pxd: offsets, 0 where there is none."""

    ethertype: int
    family: int
    l3: int
    l4: int
    protocol: int
    end: int
    payload: int
    fragment: bool

class Lane:
    """A lane that readers share, where no program steers."""

    def take(self, epoch: int, n: int, times: int, readers: int, meetings: int) -> list[tuple[int, int]]:
        """Take counters for frames of ``n`` pieces so many times, and go on until a reader was interrupted ``meetings``
        times. (counter, times taken without an interruption), ...; 0: there was none. Without the GIL, when so many
        readers are here."""

class Queues:
    waiting: tuple[int, int, int]
    """(frames, bytes, weight)"""

    def use_credits(self, words: array[int], now: int) -> None:
        """Bind flows by these words, as many as the kernel's map has, from ``now`` on (ns)."""
    def burst(self, now: int) -> None:
        """The worker looks what it has to do: bounds may end."""
    def put(self, number: int, size: int, flow: int, source: int) -> list[int] | None:
        """Numbers of the frames that gave way for this one; None: the arena has no room for a frame now."""
    def take(self) -> int | None: ...

class Lock:
    def hold(self, ns: int) -> None:
        """Take it, be busy for so long a CPU time, and let it go; without the GIL."""
    def held(self) -> bool: ...

class Window:
    def accept(self, counter: int) -> bool: ...
    def accept_all(self, first: int, end: int) -> int:
        """How many counters from ``first`` to before ``end`` were fresh; without the GIL, as workers call it."""
    def accept_newest(self, end: int) -> int:
        """Accept the newest counter again and again until that is ``end``, as a replayer might: how often it did."""

def parse_untrusted(data: bytes) -> Parsed: ...
def flow_hash(data: bytes) -> int: ...
def checksum(data: bytes, start: int = ...) -> int: ...
def complete_checksum(data: bytes, end: int, start: int, offset: int) -> bytes: ...
def ipv4_checksum(header: bytes) -> bytes: ...
def open_checksum(data: bytes) -> tuple[bytes, bytes]: ...
