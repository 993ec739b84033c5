"""What the tunnel says about a connection: one frozen value for status page, metrics and report.

Must not know how it is shown. Built by ``Tunnel.status``.
"""

from dataclasses import dataclass
from typing import Final

from weave_router.reasons import Reason
from weave_router.tunnel.connection import Connection
from weave_router.tunnel.state import State
from weave_router.tunnel.wire import Endpoint, SuiteCode

CIPHER_NAMES: Final = {SuiteCode.AESGCM_SHA256: "aes-256-gcm", SuiteCode.CHACHAPOLY_BLAKE2S: "chacha20-poly1305"}


@dataclass(frozen=True, slots=True)
class ConnectionStatus:
    """``since``: CLOCK_BOOTTIME seconds when the present stretch of having a session began. ``mtu``: UDP payload."""

    node_id: bytes
    slot: int
    state: State
    reason: Reason | None
    remote: Endpoint | None
    local: str
    initiator: bool | None
    cipher: str
    plaintext: bool
    natted: bool
    mtu: int
    mtu_confirmed: bool
    rtt: float | None
    epoch: int
    since: float | None
    session_age: float | None
    token_id: int | None
    handshakes: int
    sessions: int
    tx_packets: int
    tx_bytes: int
    rx_packets: int
    rx_bytes: int


def status_of(connection: Connection, now: float) -> ConnectionStatus:
    session, path = connection.current, connection.path
    return ConnectionStatus(
        node_id=connection.info.node_id, slot=connection.info.slot, state=connection.state, reason=connection.reason,
        remote=path.remote if path else None, local=path.local if path else "",
        initiator=session.initiator if session else None, cipher=CIPHER_NAMES[session.suite] if session else "",
        plaintext=session.plaintext if session else False, natted=path.natted if path else False,
        mtu=path.mtu.size if path else 0, mtu_confirmed=path.mtu.confirmed(now) if path else False,
        rtt=path.rtt if path else None, epoch=path.epoch if path else 0,
        since=connection.since if session else None, session_age=now - session.created_at if session else None,
        token_id=session.token_id if session else None, handshakes=connection.handshakes,
        sessions=len(connection.sessions), tx_packets=connection.tx_packets, tx_bytes=connection.tx_bytes,
        rx_packets=connection.rx_packets, rx_bytes=connection.rx_bytes)
