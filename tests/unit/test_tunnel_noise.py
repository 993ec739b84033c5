"""Noise: public vectors, the `noiseprotocol` package as oracle, and what an attacker may send.

vectors/noise.json holds the eight vectors of the patterns and suites that we speak. IKpsk2: from
vectors/cacophony.txt of haskell-cryptography/cacophony, as carried by mcginty/snow in tests/vectors/cacophony.txt;
XXpsk0+psk3: from mcginty/snow, tests/vectors/snow-multipsk.txt.
"""

import json
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
from noise.connection import Keypair, NoiseConnection  # type: ignore[import-untyped]

from weave_router.errors import BadPacket
from weave_router.tunnel.noise import MESSAGE_MAX, HandshakeState, Pattern, Suite, TransportCipher

VECTORS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "vectors/noise.json").read_text())["vectors"]
KEY_A, KEY_B, KEY_E, KEY_F = (bytes([n]) * 32 for n in range(1, 5))
PSKS = {Pattern.IKPSK2: [b"p" * 32], Pattern.XXPSK0_PSK3: [b"p" * 32, b"q" * 32]}


def names(vector: dict[str, Any]) -> tuple[Pattern, Suite]:
    _, pattern, _, cipher, digest = vector["protocol_name"].split("_")
    return Pattern(pattern), Suite(f"{cipher}_{digest}")


def from_vector(vector: dict[str, Any], side: str) -> HandshakeState:
    pattern, suite = names(vector)
    remote = vector.get(f"{side}_remote_static")
    return HandshakeState(
        pattern, suite, initiator=side == "init", prologue=bytes.fromhex(vector[f"{side}_prologue"]),
        psks=[bytes.fromhex(psk) for psk in vector[f"{side}_psks"]], static=bytes.fromhex(vector[f"{side}_static"]),
        ephemeral=bytes.fromhex(vector[f"{side}_ephemeral"]), remote_static=bytes.fromhex(remote) if remote else None)


def pair(pattern: Pattern, suite: Suite = Suite.AESGCM_SHA256, *, prologues: tuple[bytes, bytes] = (b"", b""),
         psks: list[bytes] | None = None) -> tuple[HandshakeState, HandshakeState]:
    responder = HandshakeState(pattern, suite, initiator=False, prologue=prologues[1],
                               psks=PSKS[pattern] if psks is None else psks, static=KEY_B, ephemeral=KEY_F)
    public = responder._static.public_key().public_bytes_raw()
    initiator = HandshakeState(pattern, suite, initiator=True, prologue=prologues[0], psks=PSKS[pattern], static=KEY_A,
                               ephemeral=KEY_E, remote_static=public if pattern is Pattern.IKPSK2 else None)
    return initiator, responder


def finish(initiator: HandshakeState, responder: HandshakeState) -> list[bytes]:
    messages, writer, reader = [], initiator, responder
    while not (initiator.finished and responder.finished):
        messages.append(writer.write_message(b"payload"))
        assert reader.read_message_untrusted(messages[-1]) == b"payload"
        writer, reader = reader, writer
    return messages


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["protocol_name"])
def test_public_vector(vector: dict[str, Any]) -> None:
    initiator, responder = from_vector(vector, "init"), from_vector(vector, "resp")
    messages = iter(vector["messages"])
    writer, reader = initiator, responder
    while not initiator.finished or not responder.finished:
        message = next(messages)
        assert writer.write_message(bytes.fromhex(message["payload"])).hex() == message["ciphertext"]
        assert reader.read_message_untrusted(bytes.fromhex(message["ciphertext"])).hex() == message["payload"]
        writer, reader = reader, writer
    assert initiator.handshake_hash == responder.handshake_hash
    _, suite = names(vector)
    keys = {id(writer): initiator.split() for writer in (initiator,)} | {id(responder): responder.split()}
    ciphers = {side: [TransportCipher(key, suite) for key in pair] for side, pair in keys.items()}
    for message in messages:
        sealed = ciphers[id(writer)][0].encrypt(b"", bytes.fromhex(message["payload"]))
        assert sealed.hex() == message["ciphertext"]
        assert ciphers[id(reader)][1].decrypt_untrusted(b"", sealed).hex() == message["payload"]
        writer, reader = reader, writer


def test_vectors_cover_every_pattern_with_every_suite() -> None:
    assert {names(vector) for vector in VECTORS} == {(pattern, suite) for pattern in Pattern for suite in Suite}


def oracle(pattern: Pattern, suite: Suite, initiator: bool, rng: random.Random, prologue: bytes, psks: list[bytes],
           keys: dict[str, bytes], remote: bytes | None) -> NoiseConnection:
    connection = NoiseConnection.from_name(f"Noise_{pattern}_25519_{suite}".encode())
    (connection.set_as_initiator if initiator else connection.set_as_responder)()
    connection.set_psks(psks=list(psks))
    connection.set_prologue(prologue)
    connection.set_keypair_from_private_bytes(Keypair.STATIC, keys["static"])
    connection.set_keypair_from_private_bytes(Keypair.EPHEMERAL, keys["ephemeral"])
    if remote is not None:
        connection.set_keypair_from_public_bytes(Keypair.REMOTE_STATIC, remote)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of a given ephemeral, which is the point here
        connection.start_handshake()
    return connection


@pytest.mark.parametrize("suite", Suite)
@pytest.mark.parametrize("pattern", Pattern)
def test_agrees_with_the_oracle_on_random_handshakes(pattern: Pattern, suite: Suite) -> None:
    rng = random.Random(f"{pattern} {suite}")
    for turn in range(6):
        psks = [rng.randbytes(32) for _ in PSKS[pattern]]
        prologue = rng.randbytes(rng.randrange(1, 60))
        keys = [{"static": rng.randbytes(32), "ephemeral": rng.randbytes(32)} for _ in range(2)]
        ours_first = turn % 2 == 0
        remote = None
        if pattern is Pattern.IKPSK2:
            known = HandshakeState(pattern, suite, initiator=False, prologue=b"", psks=psks, **keys[1])
            remote = known._static.public_key().public_bytes_raw()
        ours = HandshakeState(pattern, suite, initiator=ours_first, prologue=prologue, psks=psks,
                              remote_static=remote if ours_first else None, **keys[0 if ours_first else 1])
        theirs = oracle(pattern, suite, not ours_first, rng, prologue, psks, keys[1 if ours_first else 0],
                        None if ours_first else remote)
        our_turn = ours_first
        while not ours.finished:
            payload = rng.randbytes(rng.randrange(100))
            if our_turn:
                assert bytes(theirs.read_message(ours.write_message(payload))) == payload
            else:
                assert ours.read_message_untrusted(bytes(theirs.write_message(payload))) == payload
            our_turn = not our_turn
        assert ours.handshake_hash == theirs.get_handshake_hash()
        sending, receiving = (TransportCipher(key, suite) for key in ours.split())
        for _ in range(3):
            payload = rng.randbytes(rng.randrange(100))
            assert bytes(theirs.decrypt(sending.encrypt(b"", payload))) == payload
            assert receiving.decrypt_untrusted(b"", bytes(theirs.encrypt(payload))) == payload


@pytest.mark.parametrize("pattern", Pattern)
def test_both_ends_get_opposite_keys_and_each_others_static(pattern: Pattern) -> None:
    initiator, responder = pair(pattern)
    finish(initiator, responder)
    assert initiator.split() == responder.split()[::-1]
    assert responder.remote_static == initiator._static.public_key().public_bytes_raw()
    assert initiator.remote_static == responder._static.public_key().public_bytes_raw()


@pytest.mark.parametrize("pattern", Pattern)
def test_every_flipped_byte_and_every_length_is_refused_and_changes_nothing(pattern: Pattern) -> None:
    initiator, responder = pair(pattern)
    writer, reader = initiator, responder
    while not initiator.finished or not responder.finished:
        message = writer.write_message(b"payload")
        for at in range(len(message)):
            with pytest.raises(BadPacket):
                reader.read_message_untrusted(message[:at] + bytes([message[at] ^ 1]) + message[at + 1:])
            with pytest.raises(BadPacket):
                reader.read_message_untrusted(message[:at])
        with pytest.raises(BadPacket, match="too long"):
            reader.read_message_untrusted(bytes(MESSAGE_MAX + 1))
        assert reader.read_message_untrusted(message) == b"payload", "the true message is still taken"
        writer, reader = reader, writer


@pytest.mark.parametrize("point", [bytes(32), b"\1" + bytes(31),
                                   bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
                                   bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f")])
def test_points_of_low_order_are_bad_packets(point: bytes) -> None:
    """RFC 7748 section 6.1: a result of all zeros; Noise section 9.1 leaves it open, we refuse."""
    _, responder = pair(Pattern.IKPSK2)
    with pytest.raises(BadPacket, match="all-zero"):
        responder.read_message_untrusted(point + bytes(48 + 16))
    initiator, _ = pair(Pattern.IKPSK2)
    initiator.write_message(b"")
    with pytest.raises(BadPacket, match="all-zero"):
        initiator.read_message_untrusted(point + bytes(16))


@pytest.mark.parametrize(("pattern", "psks"), [
    (Pattern.IKPSK2, [b"x" * 32]), (Pattern.XXPSK0_PSK3, [b"p" * 32, b"x" * 32]),
    (Pattern.XXPSK0_PSK3, [b"x" * 32, b"q" * 32])])
def test_another_key_or_prologue_is_refused(pattern: Pattern, psks: list[bytes]) -> None:
    with pytest.raises(BadPacket):
        finish(*pair(pattern, psks=psks))
    with pytest.raises(BadPacket):
        finish(*pair(pattern, prologues=(b"one", b"two")))


def test_wrong_use_is_our_bug_and_loud() -> None:
    initiator, responder = pair(Pattern.IKPSK2)
    with pytest.raises(RuntimeError, match="out of turn"):
        initiator.read_message_untrusted(b"")
    with pytest.raises(RuntimeError, match="out of turn"):
        responder.write_message(b"")
    with pytest.raises(RuntimeError, match="not finished"):
        initiator.split()
    finish(initiator, responder)
    with pytest.raises(RuntimeError, match="out of turn"):
        initiator.write_message(b"")
    common: dict[str, Any] = {"initiator": True, "prologue": b"", "static": KEY_A, "ephemeral": KEY_E}
    with pytest.raises(ValueError, match="knows the responder's key"):
        HandshakeState(Pattern.IKPSK2, Suite.AESGCM_SHA256, psks=[KEY_A], **common)
    with pytest.raises(ValueError, match="another number"):
        HandshakeState(Pattern.IKPSK2, Suite.AESGCM_SHA256, psks=[], remote_static=KEY_B, **common)
    with pytest.raises(ValueError, match="32 bytes"):
        HandshakeState(Pattern.IKPSK2, Suite.AESGCM_SHA256, psks=[b"short"], remote_static=KEY_B, **common)


def test_clone_is_independent() -> None:
    initiator, responder = pair(Pattern.IKPSK2)
    message = initiator.write_message(b"payload")
    twin = responder.clone()
    assert twin.read_message_untrusted(message) == b"payload"
    assert responder.read_message_untrusted(message) == b"payload"
    assert twin.handshake_hash == responder.handshake_hash


@pytest.mark.parametrize("suite", Suite)
def test_transport_refuses_reordered_changed_and_short_data_and_goes_on(suite: Suite) -> None:
    sender, receiver = TransportCipher(KEY_A, suite), TransportCipher(KEY_A, suite)
    first, second = sender.encrypt(b"ad", b"one"), sender.encrypt(b"ad", b"two")
    for wrong in (second, first[:-1], b"", bytes(15), b"\0" + first[1:]):
        with pytest.raises(BadPacket):
            receiver.decrypt_untrusted(b"ad", wrong)
    with pytest.raises(BadPacket):
        receiver.decrypt_untrusted(b"da", first)
    assert receiver.decrypt_untrusted(b"ad", first) == b"one"
    assert receiver.decrypt_untrusted(b"ad", second) == b"two"
    sender._counter = (1 << 64) - 1
    with pytest.raises(OverflowError):
        sender.encrypt(b"", b"")
