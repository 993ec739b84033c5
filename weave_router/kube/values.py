"""What the core takes and gives: calls and their answers, what the other rooms see, its settings, the blocks' door.

Values; decides nothing but how long to wait after a failure. Used by all files of this room.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from random import Random
from typing import Final, Protocol

from .events import Lost

FENCE_SECONDS: Final = 900.0
FENCE_JITTER: Final = 60.0
BACKOFF_FIRST: Final = 1.0
BACKOFF_MOST: Final = 8.0
"""An API server that is back is noticed within it; a thousand nodes then come at 200 a second."""
IDLE_SECONDS: Final = 600.0
"""Before a block that nobody lives in goes back: pods come and go, and a claim is a write."""


class Blocks(Protocol):
    """The part of ipam's service that this needs."""

    def grant(self, gens: Mapping[int, int], now: float, read: bool = False) -> bool: ...
    def withdraw(self, blocks: Collection[int], now: float) -> None: ...
    def known_gen(self, block: int) -> int: ...
    def has(self, block: int) -> bool: ...
    def inhabited(self, block: int) -> bool: ...
    def wants_block(self) -> bool: ...
    def spare(self) -> int | None: ...
    def disputed(self) -> Collection[int]: ...
    def owned(self) -> Collection[int]: ...
    def may_grow(self, growing: bool) -> None: ...


@dataclass(frozen=True, slots=True)
class Call:
    """One request. ``purpose`` and ``block`` are for whoever gets the answer."""

    method: str
    path: str
    purpose: str
    block: int = -1
    body: bytes = b""
    params: Mapping[str, str] = field(default_factory=dict)
    gen: int = 0
    target: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """``status`` 0: none that could be used; ``detail`` says why. ``after``: seconds the server asks to wait."""

    status: int
    body: bytes = b""
    detail: str = ""
    after: float = 0.0

    @property
    def may_change(self) -> bool:
        """The same call may be answered otherwise in a while: no server, an outworn token, too much to do, a fault."""
        return self.status in (0, 401, 429) or self.status >= 500


@dataclass(frozen=True, slots=True)
class World:
    """What the other rooms see. ``reachable``: identities on the mesh; ``sent``: token ids that nodes send with;
    ``serving``: ADD would be answered; ``utc``: for the objects' time stamps."""

    reachable: frozenset[bytes] = frozenset()
    sent: frozenset[int] = frozenset()
    accepted: Mapping[str, frozenset[int]] = field(default_factory=dict)
    """Token ids that each reachable node accepts, by its name."""
    names: Mapping[bytes, str] = field(default_factory=dict)
    """Of all nodes the mesh has records of."""
    serving: bool = False
    utc: str = ""
    lost: frozenset[Lost] = frozenset()
    """What the others' records say that they lost."""
    cut: frozenset[int] = frozenset()
    """Blocks whose pods' ports were taken down, and that are still attached."""


@dataclass(frozen=True)
class Settings:
    node: str
    namespace: str
    range_v4: IPv4Network
    fence: float = FENCE_SECONDS
    jitter: float = FENCE_JITTER
    idle: float = IDLE_SECONDS
    leaving: bool = False
    """Claims nothing any more."""


def back_off(failures: int, rng: Random) -> float:
    """1, 2, 4, 8 s, each between half and the whole of it."""
    return float(min(BACKOFF_MOST, BACKOFF_FIRST * 2.0 ** min(failures, 8)) * rng.uniform(0.5, 1.0))
