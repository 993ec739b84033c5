"""What all connections of this node have in common, and what the mesh tells of a peer. Values; no decisions.

Owned by core.py; connection.py and initiator.py emit their effects here.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from weave_router.limits import COUNTER_BLOCK
from weave_router.tunnel.effects import CounterBlock, Effect
from weave_router.tunnel.identity import Identity
from weave_router.tunnel.indices import IndexPool
from weave_router.tunnel.timers import Timers
from weave_router.tunnel.token import TokenSet
from weave_router.tunnel.trust import Trust
from weave_router.tunnel.wire import Endpoint

if TYPE_CHECKING:
    from weave_router.tunnel.connection import Connection


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """What the mesh knows of a peer. ``slot``: its number in the fast path's node table."""

    node_id: bytes
    slot: int
    x25519_public: bytes
    endpoints: tuple[Endpoint, ...]
    incarnation: int
    pod_mtu: int
    plaintext: bool = False
    aes: bool = True


@dataclass
class Shared:
    """``counter_reserved``: handshake counters below it are on disk, or will be before what is emitted next."""

    identity: Identity
    tokens: TokenSet
    incarnation: int
    rng: Callable[[int], bytes]
    timers: Timers
    plaintext: bool
    aes: bool
    pod_mtu: int
    underlay_mtu: int
    port: int
    local_addresses: frozenset[str]
    indices: IndexPool
    counter: int
    counter_reserved: int
    trusted: Trust = field(default_factory=Trust)
    attempts: dict[int, "Connection"] = field(default_factory=dict)
    """Our index of each message 1 whose answer is waited for."""
    sessions: dict[int, "Connection"] = field(default_factory=dict)
    effects: list[Effect] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def emit(self, effect: Effect) -> None:
        self.effects.append(effect)

    def freshness(self) -> tuple[int, int]:
        """(incarnation, counter) for one message 1; reserves the next block on disk where needed."""
        if self.counter >= self.counter_reserved:
            self.counter_reserved = self.counter + COUNTER_BLOCK
            self.emit(CounterBlock(self.counter_reserved))
        self.counter += 1
        return self.incarnation, self.counter - 1

    def agrees(self, *endpoints: Endpoint) -> bool:
        """Whether this node lets payload go unencrypted to all these addresses."""
        return self.plaintext or self.trusted.all_of(endpoints)

    def chance(self) -> float:
        """Uniform in [0, 1)."""
        return int.from_bytes(self.rng(4), "big") / 2**32

    def is_ours(self, source: Endpoint) -> bool:
        """Whether this address is one that we send from; True where we do not know our own."""
        return not self.local_addresses or (source[0] in self.local_addresses and source[1] == self.port)
