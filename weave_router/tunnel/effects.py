"""What the tunnel wants done: frozen values, carried out in their order by driver.py (or a simulated network).

``CounterBlock`` and ``PeerCounterSeen`` must be on disk before any later effect is carried out.
"""

from dataclasses import dataclass

from weave_router.reasons import Reason
from weave_router.tunnel.state import State
from weave_router.tunnel.wire import Endpoint, SuiteCode


@dataclass(frozen=True, slots=True)
class CounterBlock:
    """Own handshake counters below ``upto`` are about to be used."""

    upto: int


@dataclass(frozen=True, slots=True)
class PeerCounterSeen:
    """A message 1 of this key with this freshness was accepted; it must never be again."""

    x25519_public: bytes
    incarnation: int
    counter: int


@dataclass(frozen=True, slots=True)
class SendDatagram:
    """A handshake message; ``local``: source address, "" where the kernel chooses."""

    datagram: bytes
    remote: Endpoint
    local: str


@dataclass(frozen=True, slots=True)
class SessionAdd:
    session: int
    slot: int
    suite: SuiteCode
    send_key: bytes
    recv_key: bytes
    remote_index: int
    plaintext: bool
    may_send: bool

    def __repr__(self) -> str:
        return f"SessionAdd({self.session}, slot={self.slot}, remote_index={self.remote_index})"  # never the keys


@dataclass(frozen=True, slots=True)
class SessionUse:
    """Send to this slot on this session; 0: on none, frames wait."""

    slot: int
    session: int


@dataclass(frozen=True, slots=True)
class SessionMaySend:
    session: int


@dataclass(frozen=True, slots=True)
class SessionDel:
    session: int


@dataclass(frozen=True, slots=True)
class PathSet:
    slot: int
    remote: Endpoint
    local: str
    epoch: int
    payload_max: int
    no_gso: bool


@dataclass(frozen=True, slots=True)
class PathDel:
    slot: int


@dataclass(frozen=True, slots=True)
class ControlSend:
    """Seal and send; ``remote`` None: on the path. ``size``: pad to this UDP payload, 0: as it is."""

    session: int
    payload: bytes
    remote: Endpoint | None = None
    local: str = ""
    size: int = 0


@dataclass(frozen=True, slots=True)
class ReadFigures:
    """Read these sessions' figures and hand them to ``Tunnel.activity``."""

    sessions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PodMtuHeard:
    """The peer's pod MTU, from itself; its record says the same a little later."""

    slot: int
    mtu: int


@dataclass(frozen=True, slots=True)
class Changed:
    """A connection's state or reason changed: for the log and for who waits."""

    slot: int
    node_id: bytes
    state: State
    reason: Reason | None


Effect = (CounterBlock | PeerCounterSeen | SendDatagram | SessionAdd | SessionUse | SessionMaySend | SessionDel
          | PathSet | PathDel | ControlSend | ReadFigures | PodMtuHeard | Changed)
