"""The vocabulary of address ownership: registers, knowledge, messages, events, effects. All frozen, all hashable.

Knows nothing of sockets, signatures, clocks or the store: a driver verifies signatures before it makes a message of
bytes, and carries effects out. Used by the ownership core (``ownership.py`` and its neighbours), its drivers and the
checker in ``tests/model``. Rules R1 to R12 are those of ``docs/protocol.md``, section "addresses".
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Generic, NamedTuple, NoReturn, TypeVar

NodeId = bytes
Block = int

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class FrozenMap(dict[K, V], Generic[K, V]):
    """A dict that is a value: no mutator works, ``with_items`` answers a changed copy, the hash is kept."""

    __slots__ = ("_hash",)
    _hash: int

    def __hash__(self) -> int:  # type: ignore[override]  # a dict that may not change may be hashed
        try:
            return self._hash
        except AttributeError:
            self._hash = hash(frozenset(self.items()))
            return self._hash

    def with_items(self, items: Mapping[K, V]) -> FrozenMap[K, V]:
        return FrozenMap({**self, **items}) if items else self

    def without(self, keys: Iterable[K]) -> FrozenMap[K, V]:
        gone = set(keys)
        return FrozenMap({k: v for k, v in self.items() if k not in gone}) if gone & self.keys() else self

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("a FrozenMap does not change")

    __setitem__ = __delitem__ = update = pop = popitem = clear = setdefault = __ior__ = _refuse


class Register(NamedTuple):
    """Whose a block is. The newest ``(gen, seq)`` wins; ``issuer`` is who wrote (and signed) this value."""

    gen: int
    seq: int
    owner: NodeId
    issuer: NodeId

    @property
    def epoch(self) -> tuple[int, int]:
        return (self.gen, self.seq)


class RoundId(NamedTuple):
    """One retirement round: its coordinator and that coordinator's own rising number (the nonce of R6)."""

    coordinator: NodeId
    number: int


class Gate(IntEnum):
    """What a node may do with addresses; only this file's readers turn it into words for people."""

    CANDIDATE = 0  # has no universe yet: asks to be admitted
    CLOSED = 1  # booted, has not yet heard that it was not retired meanwhile: no new allocation
    OWN = 2  # opened by the operator: allocates from its own blocks, lets nobody in, gives nothing away
    OPEN = 3
    RESTORED = 4  # the store is older than what others saw of this node: only the operator opens it
    RETIRED = 5  # was retired: owns nothing, must come back under a new identity
    LEFT = 6  # said good-bye: may be wiped


NO_REGISTERS: FrozenMap[Block, Register] = FrozenMap()
NO_INCARNATIONS: FrozenMap[NodeId, int] = FrozenMap()


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What one node tells another: a delta when flooded, everything it knows in an answer or an ack (R5)."""

    registers: FrozenMap[Block, Register] = NO_REGISTERS
    members: frozenset[NodeId] = frozenset()
    proposed: frozenset[NodeId] = frozenset()
    incarnations: FrozenMap[NodeId, int] = NO_INCARNATIONS
    retired: frozenset[NodeId] = frozenset()
    promised: frozenset[NodeId] = frozenset()
    left: frozenset[NodeId] = frozenset()


@dataclass(frozen=True, slots=True)
class Round:
    """A retirement that this node coordinates: victims with the incarnation it knew of each, who has promised, and the
    newest values in acks that this node itself may not accept any more: they count for what is taken, nothing else.
    ``lost_majority``: the operator's word in place of R8."""

    id: RoundId
    victims: FrozenMap[NodeId, int]
    acks: frozenset[NodeId]
    reported: FrozenMap[Block, Register] = NO_REGISTERS
    lost_majority: bool = False


class State(NamedTuple):
    """All that one node knows about ownership. ``durable`` says which part is on disk."""

    me: NodeId
    incarnation: int = 0
    boot_id: Hashable = b""
    universe: bytes | None = None
    gate: Gate = Gate.CANDIDATE
    registers: FrozenMap[Block, Register] = FrozenMap()
    members: frozenset[NodeId] = frozenset()  # admitted, ever; see electorate()
    proposed: frozenset[NodeId] = frozenset()  # held on disk for an admission, not known as admitted
    incarnations: FrozenMap[NodeId, int] = FrozenMap()  # the highest seen of every identity
    retired: frozenset[NodeId] = frozenset()
    promised: frozenset[NodeId] = frozenset()  # includes the retired
    left: frozenset[NodeId] = frozenset()
    used: frozenset[Block] = frozenset()  # own blocks with an address in use
    cooling: frozenset[Block] = frozenset()  # own blocks where nothing is in use but something rests for 60 s
    contested: frozenset[Block] = frozenset()  # two identities claim one seed slot: neither allocates from it
    owed: FrozenMap[Block, Register] = FrozenMap()  # given away, receiver has not said "on disk"
    locks: FrozenMap[NodeId, RoundId] = FrozenMap()  # the one open round promised to, per victim
    round: Round | None = None
    rounds_started: int = 0
    admissions: FrozenMap[NodeId, tuple[int, frozenset[NodeId]]] = FrozenMap()  # candidate: its nonce, who holds it
    leaving: bool = False
    arbiter: bool = False  # who owns what is said from outside (arbiter.py)
    nonce: int = 0  # volatile: of the sync or join that waits for an answer
    met: frozenset[NodeId] = frozenset()  # volatile: gated members that answered this nonce


def durable(state: State) -> State:
    """The part that survives a crash once persisted."""
    return state._replace(nonce=0, met=frozenset())


# --- messages -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Message:
    """``to`` None is for everybody. Every message carries its sender's incarnation (R10)."""

    sender: NodeId
    incarnation: int
    universe: bytes | None
    to: NodeId | None
    body: Body


@dataclass(frozen=True, slots=True)
class Tell:
    """Flooded: values are true whoever forwards them, so a stale sender does not matter."""

    knowledge: Knowledge


@dataclass(frozen=True, slots=True)
class Have:
    """These values are on the receiver's disk."""

    registers: FrozenMap[Block, Register]


@dataclass(frozen=True, slots=True)
class Ask:
    """Give me blocks."""


@dataclass(frozen=True, slots=True)
class SyncAsk:
    nonce: int


@dataclass(frozen=True, slots=True)
class SyncAnswer:
    nonce: int
    open: bool
    knowledge: Knowledge


@dataclass(frozen=True, slots=True)
class JoinAsk:
    nonce: int


@dataclass(frozen=True, slots=True)
class Propose:
    candidate: NodeId
    candidate_incarnation: int


@dataclass(frozen=True, slots=True)
class Hold:
    """The candidate is on my disk."""

    candidate: NodeId


@dataclass(frozen=True, slots=True)
class Admitted:
    nonce: int
    knowledge: Knowledge


@dataclass(frozen=True, slots=True)
class RetireAsk:
    round: RoundId
    victims: FrozenMap[NodeId, int]


@dataclass(frozen=True, slots=True)
class Promise:
    round: RoundId
    knowledge: Knowledge


@dataclass(frozen=True, slots=True)
class Nack:
    """``holder``: the round promised to already. ``returned``: a victim seen alive since."""

    round: RoundId
    holder: RoundId | None = None
    returned: NodeId | None = None


@dataclass(frozen=True, slots=True)
class Aborted:
    """This round and all earlier ones of its coordinator are closed: members may promise to another."""

    round: RoundId


@dataclass(frozen=True, slots=True)
class Hello:
    """First word between two universes; ``spare``: alone in it, no address in use."""

    spare: bool


Body = (
    Tell | Have | Ask | SyncAsk | SyncAnswer | JoinAsk | Propose | Hold | Admitted | RetireAsk | Promise | Nack
    | Aborted | Hello
)  # fmt: skip


# --- events -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Boot:
    """A start of the daemon, applied to what the store holds. ``boot_id`` is the kernel's; ``store_older``: the run
    directory remembers a newer store of this same boot; ``nonce`` must be fresh; ``live``: blocks that the bridge's
    ports show in use."""

    boot_id: Hashable
    incarnation: int
    nonce: int
    store_older: bool = False
    live: frozenset[Block] = frozenset()


@dataclass(frozen=True, slots=True)
class Found:
    """Make a universe: all blocks mine (``new``), or the agreed deal of ``seed=`` where ``slots`` stand for members
    that have not claimed theirs yet and ``mine`` is this node's slot."""

    universe: bytes
    registers: FrozenMap[Block, Register]
    slots: frozenset[NodeId] = frozenset()
    mine: NodeId | None = None
    arbiter: bool = False
    """An outside arbiter says whose a block is (``arbiter.py``)."""


@dataclass(frozen=True, slots=True)
class Grant:
    """The arbiter says: these blocks are this node's, of these generations. ``read``: and no others are."""

    gens: FrozenMap[Block, int]
    read: bool = False


@dataclass(frozen=True, slots=True)
class Withdraw:
    """The arbiter says: these blocks are not this node's."""

    blocks: frozenset[Block]


@dataclass(frozen=True, slots=True)
class Join:
    to: NodeId
    nonce: int


@dataclass(frozen=True, slots=True)
class Occupy:
    """An address of an idle block is about to be answered to a pod."""

    block: Block


@dataclass(frozen=True, slots=True)
class Vacate:
    """The last address of the block was released; it rests."""

    block: Block


@dataclass(frozen=True, slots=True)
class Cooled:
    """Nothing of the block rests any more."""

    block: Block


@dataclass(frozen=True, slots=True)
class Want:
    """Ask this member for blocks."""

    donor: NodeId


@dataclass(frozen=True, slots=True)
class Retire:
    """``lost_majority``: break-glass, outside the proof; the operator promises that these machines stay off although
    they are more than half."""

    victims: frozenset[NodeId]
    lost_majority: bool = False


@dataclass(frozen=True, slots=True)
class Abort:
    """The operator gives the open round up."""


@dataclass(frozen=True, slots=True)
class Ungate:
    """The operator promises: this node was not retired and its store is the newest."""


@dataclass(frozen=True, slots=True)
class Leave:
    pass


@dataclass(frozen=True, slots=True)
class Retry:
    """Send again whatever waits for an answer; ``nonce`` must be fresh (used by a closed gate)."""

    nonce: int


@dataclass(frozen=True, slots=True)
class Met:
    """A neighbour of another universe is there: say hello."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class Receive:
    message: Message


Event = (
    Boot | Found | Grant | Withdraw | Join | Occupy | Vacate | Cooled | Want | Retire | Abort | Ungate | Leave | Retry
    | Met | Receive
)  # fmt: skip


# --- effects, to be carried out in this order ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Persist:
    """The new state must be on disk before the next effect."""


@dataclass(frozen=True, slots=True)
class Send:
    message: Message


@dataclass(frozen=True, slots=True)
class Granted:
    """The address may be answered to the pod."""

    block: Block


@dataclass(frozen=True, slots=True)
class Refused:
    """For the operator or the asker: what was refused, why, and which nodes or rounds it is about."""

    reason: str
    nodes: frozenset[NodeId] = frozenset()


@dataclass(frozen=True, slots=True)
class Waiting:
    """A round or a good-bye still needs these nodes."""

    nodes: frozenset[NodeId]


@dataclass(frozen=True, slots=True)
class Retired:
    """A round of this node is complete."""

    victims: frozenset[NodeId]


@dataclass(frozen=True, slots=True)
class Evict:
    """These blocks are not ours any more although pods may live in them."""

    blocks: frozenset[Block]


@dataclass(frozen=True, slots=True)
class Wipe:
    """Every other member knows all that matters: the store may be erased."""


Effect = Persist | Send | Granted | Refused | Waiting | Retired | Evict | Wipe
