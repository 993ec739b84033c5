"""The clear head, mac1, payloads, addresses and control messages: layouts byte by byte."""

import hashlib

import pytest

from weave_router.errors import BadPacket
from weave_router.limits import HANDSHAKE_DATAGRAM_MAX
from weave_router.tunnel import control, handshake, wire
from weave_router.tunnel.identity import Identity
from weave_router.tunnel.token import Token, TokenSet
from weave_router.tunnel.wire import Head, SuiteCode, Type

TOKEN = Token(bytes(8), bytes(32))
TOKENS = TokenSet([TOKEN])
HEAD = Head(Type.INITIATION, SuiteCode.CHACHAPOLY_BLAKE2S, 0x01020304, 0x0A0B0C0D, 0x11121314)
A, B = (Identity(bytes([n]) * 32, bytes([n + 8]) * 32) for n in (1, 2))


def test_head_is_16_bytes_in_this_order() -> None:
    assert HEAD.encode().hex(" ") == "01 01 02 00 01 02 03 04 0a 0b 0c 0d 11 12 13 14"
    assert wire.parse_head_untrusted(HEAD.encode() + b"more") == HEAD


@pytest.mark.parametrize(("at", "value", "reason"), [(0, 0, "type or suite"), (0, 3, "type or suite"),
                                                     (0, 255, "type or suite"), (1, 0, "version"), (1, 2, "version"),
                                                     (2, 0, "type or suite"), (2, 3, "type or suite"),
                                                     (3, 1, "reserved")])
def test_head_with_a_wrong_byte_is_refused(at: int, value: int, reason: str) -> None:
    data = bytearray(HEAD.encode())
    data[at] = value
    with pytest.raises(BadPacket, match=reason):
        wire.parse_head_untrusted(bytes(data))


def test_types_are_those_of_the_design() -> None:
    assert [(kind.name, kind.value) for kind in Type] == [
        ("INITIATION", 1), ("RESPONSE", 2), ("DATA", 4), ("RELAY", 5), ("LINK_1", 17), ("LINK_2", 18), ("LINK_3", 19)]


def test_mac1_is_keyed_blake2s_over_all_before_it() -> None:
    message = wire.close_message(TOKEN, Head(Type.LINK_1, SuiteCode.AESGCM_SHA256, TOKEN.id, 1, 0), b"body")
    assert message[-16:] == hashlib.blake2s(message[:-16], key=TOKEN.mac1_key, digest_size=16).digest()
    head, token, body = wire.open_message_untrusted(message, TOKENS)
    assert (head.type, token, body) == (Type.LINK_1, TOKEN, b"body")
    for at in range(len(message)):
        with pytest.raises(BadPacket):
            wire.open_message_untrusted(message[:at] + bytes([message[at] ^ 1]) + message[at + 1:], TOKENS)
        with pytest.raises(BadPacket):
            wire.open_message_untrusted(message[:at], TOKENS)
    with pytest.raises(BadPacket, match="length"):
        wire.open_message_untrusted(bytes(HANDSHAKE_DATAGRAM_MAX + 1), TOKENS)
    with pytest.raises(BadPacket, match="unknown token"):
        wire.open_message_untrusted(message, TokenSet([Token(bytes(8), b"x" * 32)]))


def exchange(plaintext: tuple[bool, bool] = (False, False)) -> tuple[handshake.Attempt, bytes, handshake.Request]:
    attempt, message = handshake.write_request(
        token=TOKEN, suite=SuiteCode.AESGCM_SHA256, index=7, plaintext=plaintext[0], static=A.x25519_secret,
        remote_static=B.x25519_public, ephemeral=bytes(range(32)), freshness=(3, 9), now=0.0, endpoints=())
    head, token, body = wire.open_message_untrusted(message, TOKENS)
    return attempt, message, handshake.read_request_untrusted(
        head, token, body, static=B.x25519_secret, ephemeral=bytes(range(1, 33)), plaintext=plaintext[1])


def test_handshake_has_the_documented_sizes_and_both_ends_agree() -> None:
    attempt, message_1, request = exchange()
    assert len(message_1) == wire.MESSAGE_1_SIZE == 144
    assert (request.incarnation, request.counter, request.remote_static) == (3, 9, A.x25519_public)
    message_2, send_key, recv_key = handshake.write_response(request, index=8, incarnation=5,
                                                             observed=("192.0.2.1", 4000))
    assert len(message_2) == wire.MESSAGE_2_SIZE == 122
    head, _, body = wire.open_message_untrusted(message_2, TOKENS)
    assert (head.type, head.sender, head.receiver) == (Type.RESPONSE, 8, 7)
    response = handshake.read_response_untrusted(attempt, head, body)
    assert (response.incarnation, response.observed) == (5, ("192.0.2.1", 4000))
    assert (response.send_key, response.recv_key) == (recv_key, send_key)
    assert send_key.hex() not in repr(response) and str(send_key) not in repr(response)


def test_true_answer_under_a_changed_head_is_refused_and_the_attempt_lives() -> None:
    attempt, _, request = exchange()
    message_2, _, _ = handshake.write_response(request, index=8, incarnation=5, observed=("192.0.2.1", 4000))
    head, _, body = wire.open_message_untrusted(message_2, TOKENS)
    for changed in (Head(head.type, head.suite, head.token_id, 9, 7),
                    Head(head.type, SuiteCode.CHACHAPOLY_BLAKE2S, head.token_id, 8, 7),
                    Head(head.type, head.suite, 1, 8, 7), Head(head.type, head.suite, head.token_id, 0, 7)):
        with pytest.raises(BadPacket):
            handshake.read_response_untrusted(attempt, changed, body)
    with pytest.raises(BadPacket, match="length"):
        handshake.read_response_untrusted(attempt, head, body + b"x")
    assert handshake.read_response_untrusted(attempt, head, body).incarnation == 5


def test_request_with_odd_indices_or_length_is_refused() -> None:
    head = Head(Type.INITIATION, SuiteCode.AESGCM_SHA256, TOKEN.id, 1, 0)
    keys = {"static": B.x25519_secret, "ephemeral": bytes(range(32)), "plaintext": True}
    for odd in (Head(head.type, head.suite, TOKEN.id, 0, 0), Head(head.type, head.suite, TOKEN.id, 1, 1)):
        with pytest.raises(BadPacket, match="indices"):
            handshake.read_request_untrusted(odd, TOKEN, bytes(112), **keys)  # type: ignore[arg-type]
    with pytest.raises(BadPacket, match="length"):
        handshake.read_request_untrusted(head, TOKEN, bytes(111), **keys)  # type: ignore[arg-type]
    with pytest.raises(BadPacket):
        handshake.read_request_untrusted(head, TOKEN, bytes(112), **keys)  # type: ignore[arg-type]


def test_plaintext_bit_is_in_the_prologue() -> None:
    assert exchange((True, True))[2].plaintext is True
    assert exchange((False, True))[2].plaintext is False
    with pytest.raises(BadPacket):
        exchange((True, False))


@pytest.mark.parametrize(("endpoint", "encoded"), [
    (("192.0.2.1", 6783), "00000000000000000000ffffc0000201" "1a7f"),
    (("2001:db8::1", 1), "20010db8000000000000000000000001" "0001"),
])
def test_address_is_18_bytes(endpoint: wire.Endpoint, encoded: str) -> None:
    assert wire.encode_address(endpoint).hex() == encoded
    assert wire.parse_address_untrusted(bytes.fromhex(encoded)) == endpoint


def test_scope_of_an_address_stays_at_home() -> None:
    assert wire.parse_address_untrusted(wire.encode_address(("fe80::1%eth0", 5))) == ("fe80::1", 5)


@pytest.mark.parametrize("size", [0, 17, 19])
def test_payloads_of_another_length_are_refused(size: int) -> None:
    with pytest.raises(BadPacket):
        wire.parse_address_untrusted(bytes(size))
    with pytest.raises(BadPacket):
        wire.parse_payload_1_untrusted(bytes(size))
    with pytest.raises(BadPacket):
        wire.parse_payload_2_untrusted(bytes(size), HEAD)


MESSAGES: list[tuple[control.Control, str]] = [
    (control.Probe(0x01020304, 1472), "0100 05c0 01020304"),
    (control.ProbeAck(1, 548), "0200 0224 00000001"),
    (control.Challenge(bytes(range(8))), "03 0001020304050607"),
    (control.Answer(bytes(range(8))), "04 0001020304050607"),
    (control.Ping(5), "0500 0000 00000005"),
    (control.Pong(5), "0600 0000 00000005"),
    (control.Goodbye(), "07"),
    (control.PodMtu(1368), "0800 0558"),
]


@pytest.mark.parametrize(("message", "encoded"), MESSAGES, ids=lambda value: str(value)[:12])
def test_control_message_layout(message: control.Control, encoded: str) -> None:
    data = bytes.fromhex(encoded)
    assert message.encode() == data
    assert control.parse_control_untrusted(data) == message
    for wrong in [data[:-1], data + b"\0"]:
        with pytest.raises(BadPacket):
            control.parse_control_untrusted(wrong)


@pytest.mark.parametrize("data", [b"", b"\0", b"\x09", b"\xff" * 8, bytes.fromhex("0101000000000000"),
                                  bytes.fromhex("0500000100000000"), bytes.fromhex("08010558")])
def test_control_messages_that_are_none(data: bytes) -> None:
    with pytest.raises(BadPacket):
        control.parse_control_untrusted(data)
