"""One IKpsk2 handshake, as initiator and as responder: bytes in, bytes and keys out. State is per initiation.

Must not know peers' tables, time-outs or paths. Called by initiator.py, connection.py and core.py.
"""

from dataclasses import dataclass, field

from weave_router.errors import BadPacket
from weave_router.tunnel import wire
from weave_router.tunnel.noise import HandshakeState, Pattern
from weave_router.tunnel.token import Token
from weave_router.tunnel.wire import Endpoint, Head, SuiteCode, Type


@dataclass(slots=True)
class Attempt:
    """One message 1 that was sent, and what is needed to read its answer."""

    head: Head
    token: Token
    noise: HandshakeState
    plaintext: bool
    sent_at: float
    endpoints: tuple[Endpoint, ...]

    @property
    def index(self) -> int:
        return self.head.sender


@dataclass(frozen=True, slots=True)
class Request:
    """A message 1 that was read."""

    head: Head
    token: Token
    noise: HandshakeState
    plaintext: bool
    remote_static: bytes
    incarnation: int
    counter: int


@dataclass(frozen=True, slots=True)
class Response:
    """A message 2 that was read. ``observed``: our source address as the responder saw it."""

    incarnation: int
    observed: Endpoint
    send_key: bytes = field(repr=False)
    recv_key: bytes = field(repr=False)


def write_request(*, token: Token, suite: SuiteCode, index: int, plaintext: bool, static: bytes, remote_static: bytes,
                  ephemeral: bytes, freshness: tuple[int, int], now: float,
                  endpoints: tuple[Endpoint, ...]) -> tuple[Attempt, bytes]:
    """(what to keep, message 1). ``freshness``: (incarnation, counter), never used before."""
    head = Head(Type.INITIATION, suite, token.id, index, 0)
    noise = HandshakeState(Pattern.IKPSK2, suite.noise, initiator=True, prologue=wire.prologue(head, plaintext),
                           psks=[token.psk], static=static, remote_static=remote_static, ephemeral=ephemeral)
    body = noise.write_message(wire.encode_payload_1(*freshness))
    return Attempt(head, token, noise, plaintext, now, endpoints), wire.close_message(token, head, body)


def read_request_untrusted(head: Head, token: Token, body: bytes, *, static: bytes, ephemeral: bytes,
                           plaintext: bool) -> Request:
    """``plaintext``: ours. A node that was started with it also talks, sealed, to one that was not."""
    if head.receiver != 0 or head.sender == 0:
        raise BadPacket("indices of no message 1")
    if len(body) != wire.MESSAGE_1_SIZE - wire.HEAD_SIZE - wire.MAC1_SIZE:
        raise BadPacket("message 1 of another length")
    for agreed in (True, False) if plaintext else (False,):
        noise = HandshakeState(Pattern.IKPSK2, head.suite.noise, initiator=False, prologue=wire.prologue(head, agreed),
                               psks=[token.psk], static=static, ephemeral=ephemeral)
        try:
            payload = noise.read_message_untrusted(body)
        except BadPacket:
            if agreed:
                continue
            raise
        if noise.remote_static is None:
            raise RuntimeError("message 1 carries a static key")
        return Request(head, token, noise, agreed, noise.remote_static, *wire.parse_payload_1_untrusted(payload))
    raise RuntimeError("the last try returns or raises")


def write_response(request: Request, *, index: int, incarnation: int,
                   observed: Endpoint) -> tuple[bytes, bytes, bytes]:
    """(message 2, send key, receive key)."""
    head = Head(Type.RESPONSE, request.head.suite, request.token.id, index, request.head.sender)
    body = request.noise.write_message(wire.encode_payload_2(head, incarnation, observed))
    send_key, recv_key = request.noise.split()
    return wire.close_message(request.token, head, body), send_key, recv_key


def read_response_untrusted(attempt: Attempt, head: Head, body: bytes) -> Response:
    """A forged answer leaves the attempt as it was, also one with a true body under a changed head."""
    if head.suite is not attempt.head.suite or head.token_id != attempt.token.id or head.sender == 0:
        raise BadPacket("answer to another initiation")
    if len(body) != wire.MESSAGE_2_SIZE - wire.HEAD_SIZE - wire.MAC1_SIZE:
        raise BadPacket("message 2 of another length")
    noise = attempt.noise.clone()
    payload = noise.read_message_untrusted(body)
    incarnation, observed = wire.parse_payload_2_untrusted(payload, head)
    return Response(incarnation, observed, *noise.split())
