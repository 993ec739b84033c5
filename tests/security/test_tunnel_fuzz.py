"""Every decoder of tunnel/ under random and mutated bytes: a value or ``BadPacket``, nothing else.

Mutations start from the committed corpus (below, by name) so that they reach behind length and mac1 tests.
"""

import random
import zlib
from collections.abc import Callable

import pytest
from security.inputs import INPUTS, seeded
from sim.tunnel_net import Net, pair

from weave_router.errors import BadPacket, UsageError
from weave_router.tunnel import control, handshake, wire
from weave_router.tunnel.identity import Identity
from weave_router.tunnel.noise import HandshakeState, Pattern, Suite, TransportCipher
from weave_router.tunnel.token import Token, TokenSet
from weave_router.tunnel.wire import SuiteCode

TOKEN = Token(bytes(8), bytes(32))
TOKENS = TokenSet([TOKEN])
A, B = (Identity(bytes([n]) * 32, bytes([n + 8]) * 32) for n in (1, 2))

ATTEMPT, MESSAGE_1 = handshake.write_request(
    token=TOKEN, suite=SuiteCode.AESGCM_SHA256, index=7, plaintext=False, static=A.x25519_secret,
    remote_static=B.x25519_public, ephemeral=bytes(range(32)), freshness=(3, 9), now=0.0, endpoints=())


def read_request(data: bytes) -> handshake.Request:
    head, token, body = wire.open_message_untrusted(data, TOKENS)
    return handshake.read_request_untrusted(head, token, body, static=B.x25519_secret, ephemeral=bytes(range(1, 33)),
                                            plaintext=True)


MESSAGE_2 = handshake.write_response(read_request(MESSAGE_1), index=8, incarnation=5, observed=("192.0.2.1", 4000))[0]


def read_response(data: bytes) -> handshake.Response:
    head, _, body = wire.open_message_untrusted(data, TOKENS)
    return handshake.read_response_untrusted(ATTEMPT, head, body)


def closed(data: bytes) -> bytes:
    """With a valid mac1: what a member with a bug, or with bad intent, may send."""
    return data[:-16] + wire.mac1(TOKEN.mac1_key, data[:-16])


def xx_first() -> bytes:
    return HandshakeState(Pattern.XXPSK0_PSK3, Suite.AESGCM_SHA256, initiator=True, prologue=b"",
                          psks=[bytes(32)] * 2, static=A.x25519_secret, ephemeral=bytes(range(32))).write_message(b"x")


def read_xx(data: bytes) -> bytes:
    return HandshakeState(Pattern.XXPSK0_PSK3, Suite.AESGCM_SHA256, initiator=False, prologue=b"",
                          psks=[bytes(32)] * 2, static=B.x25519_secret, ephemeral=bytes(range(32)),
                          ).read_message_untrusted(data)


SEALED = TransportCipher(bytes(32), Suite.CHACHAPOLY_BLAKE2S).encrypt(b"", b"payload")
CONTROLS = [message.encode() for message in (
    control.Probe(1, 1472), control.ProbeAck(1, 1472), control.Challenge(bytes(8)), control.Answer(bytes(8)),
    control.Ping(1), control.Pong(1), control.Goodbye(), control.PodMtu(1368))]

DECODERS: dict[str, tuple[Callable[[bytes], object], list[bytes]]] = {
    "head": (wire.parse_head_untrusted, [MESSAGE_1[:16], MESSAGE_2[:16]]),
    "message": (lambda data: wire.open_message_untrusted(data, TOKENS), [MESSAGE_1, MESSAGE_2]),
    "message 1": (lambda data: read_request(closed(data)), [MESSAGE_1]),
    "message 2": (lambda data: read_response(closed(data)), [MESSAGE_2]),
    "payload 1": (wire.parse_payload_1_untrusted, [wire.encode_payload_1(1, 2)]),
    "payload 2": (lambda data: wire.parse_payload_2_untrusted(data, ATTEMPT.head),
                  [wire.encode_payload_2(ATTEMPT.head, 1, ("192.0.2.1", 1))]),
    "address": (wire.parse_address_untrusted, [wire.encode_address(("192.0.2.1", 1)),
                                               wire.encode_address(("2001:db8::1", 1))]),
    "control": (control.parse_control_untrusted, CONTROLS),
    "noise XX": (read_xx, [xx_first()]),
    "transport": (lambda data: TransportCipher(bytes(32), Suite.CHACHAPOLY_BLAKE2S).decrypt_untrusted(b"", data),
                  [SEALED]),
}


def mutated(rng: random.Random, corpus: list[bytes]) -> bytes:
    """Random bytes, or a member of the corpus with flips, cuts, insertions and repeats."""
    if rng.random() < 0.2:
        return rng.randbytes(rng.choice([0, 1, 4, 8, 15, 16, 17, 31, 32, 33, 48, 100, 122, 144, 200, 548, 549]))
    data = bytearray(rng.choice(corpus))
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(5):
            case 0 if data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            case 1 if data:
                data[at % len(data)] = rng.choice([0, 1, 2, 127, 128, 255])
            case 2:
                del data[at:]
            case 3:
                data[at:at] = rng.randbytes(rng.randrange(1, 20))
            case _:
                data += data[:at]
    return bytes(data)


def test_corpus_is_read() -> None:
    for decode, corpus in DECODERS.values():
        for data in corpus:
            decode(data)


@pytest.mark.parametrize("name", DECODERS)
def test_fuzz_decoder_gives_a_value_or_bad_packet(name: str) -> None:
    decode, corpus = DECODERS[name]
    rng = seeded(zlib.crc32(name.encode()))
    refused = 0
    for _ in range(INPUTS):
        data = mutated(rng, corpus)
        try:
            decode(data)
        except BadPacket as error:
            refused += 1
            assert 0 < len(error.reason) < 60
    assert refused > INPUTS // 20, "the mutations reach the refusals"


def test_fuzz_token_text_gives_tokens_or_a_sentence() -> None:
    rng = seeded(5)
    corpus = [str(TOKEN).encode(), f"{TOKEN}\n{Token(bytes(8), b'x' * 32)}\n".encode()]
    for _ in range(INPUTS):
        try:
            TokenSet.parse(mutated(rng, corpus).decode("latin-1"))
        except UsageError as error:
            assert len(str(error)) < 250


def test_fuzz_tunnel_survives_and_answers_nothing() -> None:
    """Handshakes under a valid mac1 and control messages inside a session: counted, and the peers still talk."""
    net = Net(99)
    a, b = pair(net)
    a.send(b, 100)
    net.run(2.0)
    net.captured.clear()
    rng = seeded(6)
    corpus = [MESSAGE_1, MESSAGE_2]
    for _ in range(INPUTS):
        data = bytearray(mutated(rng, corpus).ljust(20, b"\0"))
        data[4:8] = net.token.id.to_bytes(4, "big")
        data[-16:] = wire.mac1(net.token.mac1_key, bytes(data[:-16]))
        b.feed(b.tunnel.receive_handshake, bytes(data), ("203.0.113.9", 1), b.address, net.now)
    assert not net.captured, "not one byte to a stranger"
    session = b.use[b.slot_of(a)]
    peaceful = [data for data in CONTROLS if data != control.Goodbye().encode()]
    for _ in range(INPUTS):
        data = mutated(rng, peaceful)
        if data != control.Goodbye().encode():
            b.feed(b.tunnel.receive_control, session, ("203.0.113.9", 1), data, rng.randrange(70000), net.now)
    assert b.status(a).remote == a.endpoint
    assert len(b.tunnel.counts) < 30, "reasons are a fixed set, not what the sender writes"
    net.run(2.0)
    frame = a.send(b, 100)
    net.run(1.0)
    assert frame in b.delivered
