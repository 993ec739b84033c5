"""Does a weave-router of our cluster answer at an address, by TCP and by UDP? Tried without a running router of ours.

TCP: a link is opened under the token, with keys made for it, up to the other end's proof; nothing of us is told. That
gives its static key. UDP: message 1 of a session, under this node's own identity and a counter reserved on disk: a peer
that knows the node answers, and a recording of it is worth nothing. No session comes of it, the keys are dropped.
Synchronous; called by the ``doctor`` command, host/doctor.py has the sentences.
"""

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from weave_router.errors import BadPacket, UserError
from weave_router.host.doctor import Answer
from weave_router.limits import COUNTER_BLOCK, HANDSHAKE_DATAGRAM_MAX
from weave_router.mesh.opening import Opening
from weave_router.store import Store
from weave_router.tunnel import handshake, wire
from weave_router.tunnel.identity import Identity
from weave_router.tunnel.token import TokenSet
from weave_router.tunnel.wire import SuiteCode

CONNECT_SECONDS: Final = 3.0
ANSWER_SECONDS: Final = 2.0
UDP_TRIES: Final = (0.3, 0.6, 1.1)
"""How long each of three messages is waited for: one lost datagram is no blocked port."""


@dataclass
class Caller:
    """Who asks by UDP. ``counters``: of a block that is on disk; several threads may take from it."""

    identity: Identity
    incarnation: int
    counters: Iterator[int]


@contextlib.contextmanager
def caller(state_dir: Path) -> Iterator[Caller | None]:
    """This node, while no router runs as it; None where it never ran (no peer can know it) or runs now."""
    if not (state_dir / "store.db").exists():
        yield None
        return
    try:
        store = Store.open(state_dir, boot_id="")
    except UserError:
        yield None
        return
    with store:
        start = store.counter_start()
        store.counter_block(start + COUNTER_BLOCK)
        counters = iter(range(start, start + COUNTER_BLOCK))
        yield Caller(Identity(*store.identity()), store.incarnation(), counters) if store.incarnation() else None


def try_tcp(host: str, port: int, tokens: TokenSet) -> tuple[Answer, bytes]:
    """(what came, static key of who proved to hold the token)."""
    opening = Opening(initiator=True, identity=Identity.generate(os.urandom), tokens=tokens,
                      suite=SuiteCode.CHACHAPOLY_BLAKE2S, index=1, entropy=os.urandom)
    message, connected = opening.start(), False
    try:
        with socket.create_connection((host, port), CONNECT_SECONDS) as link:
            connected = True
            link.settimeout(ANSWER_SECONDS)
            link.sendall(len(message).to_bytes(2, "big") + message)
            said = _message(link)
    except ConnectionRefusedError:
        return Answer.REFUSED, b""
    except TimeoutError:
        return (Answer.SILENT if connected else Answer.UNREACHABLE), b""
    except ConnectionError:  # with or without a reset
        return Answer.HUNG_UP, b""
    except OSError:
        return Answer.UNREACHABLE, b""
    try:
        opening.receive_untrusted(said)
    except BadPacket:
        return Answer.FOREIGN, b""
    return Answer.PROVEN, opening.remote_static


def _message(link: socket.socket) -> bytes:
    """One message of a link. ConnectionError where it ends before."""
    data = b""
    while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2], "big") <= 2 + HANDSHAKE_DATAGRAM_MAX:
        piece = link.recv(4096)
        if not piece:
            raise ConnectionError
        data += piece
    return data[2:]


def try_udp(host: str, port: int, tokens: TokenSet, remote_static: bytes, who: Caller) -> Answer:
    """Whether the holder of this key answers message 1."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as sock:
        with contextlib.suppress(OSError):  # from the port that firewalls are open for, if it is free
            sock.bind(("", port))
        sock.connect(address)
        for seconds in UDP_TRIES:
            try:
                if _handshake(sock, tokens, remote_static, who, seconds):
                    return Answer.PROVEN
            except ConnectionRefusedError:
                return Answer.REFUSED
            except OSError:
                return Answer.UNREACHABLE
    return Answer.SILENT


def _handshake(sock: socket.socket, tokens: TokenSet, remote_static: bytes, who: Caller, seconds: float) -> bool:
    attempt, datagram = handshake.write_request(
        token=tokens.first, suite=SuiteCode.CHACHAPOLY_BLAKE2S, index=1, plaintext=False,
        static=who.identity.x25519_secret, remote_static=remote_static, ephemeral=os.urandom(32),
        freshness=(who.incarnation, next(who.counters)), now=0.0, endpoints=())
    sock.send(datagram)
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        sock.settimeout(left)
        try:
            head, _, body = wire.open_message_untrusted(sock.recv(2048), tokens)
            handshake.read_response_untrusted(attempt, head, body)
        except (TimeoutError, BadPacket):
            continue
        return True
    return False


def try_port(host: str, port: int) -> Answer:
    """TCP without a token: whether anybody listens."""
    try:
        socket.create_connection((host, port), CONNECT_SECONDS).close()
    except ConnectionRefusedError:
        return Answer.REFUSED
    except OSError:
        return Answer.UNREACHABLE
    return Answer.PROVEN
