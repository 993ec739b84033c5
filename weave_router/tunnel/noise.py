"""The Noise protocol framework (revision 34), for the two patterns that we use.

``IKpsk2`` for data sessions, ``XXpsk0+psk3`` for control links; X25519; AES-256-GCM or ChaCha20-Poly1305; SHA-256 or
BLAKE2s. Written over `cryptography`, proven with public vectors (tests/unit/vectors/noise.json) and against the
`noiseprotocol` package. Must not know datagrams, heads or tokens. Called by handshake.py and by mesh links.

A read that fails leaves the state as it was: whoever forges a message cannot break a handshake under way.
"""

import copy
import hashlib
import hmac
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from weave_router.errors import BadPacket

KEY_SIZE: Final = 32
TAG_SIZE: Final = 16
NONCE_MAX: Final = (1 << 64) - 1
"""Reserved by Noise section 5.1: never used to seal."""

MESSAGE_MAX: Final = 65535


class Pattern(StrEnum):
    IKPSK2 = "IKpsk2"
    XXPSK0_PSK3 = "XXpsk0+psk3"


class Suite(StrEnum):
    AESGCM_SHA256 = "AESGCM_SHA256"
    AESGCM_BLAKE2S = "AESGCM_BLAKE2s"
    CHACHAPOLY_SHA256 = "ChaChaPoly_SHA256"
    CHACHAPOLY_BLAKE2S = "ChaChaPoly_BLAKE2s"


# Tokens of each message; the initiator writes the first. IK's responder key is known before.
_MESSAGES: Final[dict[Pattern, tuple[tuple[str, ...], ...]]] = {
    Pattern.IKPSK2: (("e", "es", "s", "ss"), ("e", "ee", "se", "psk")),
    Pattern.XXPSK0_PSK3: (("psk", "e"), ("e", "ee", "s", "es"), ("s", "se", "psk")),
}
_RESPONDER_KNOWN: Final = frozenset({Pattern.IKPSK2})


def _aead(suite: Suite, key: bytes) -> AESGCM | ChaCha20Poly1305:
    return AESGCM(key) if suite.value.startswith("AESGCM") else ChaCha20Poly1305(key)


def _nonce(suite: Suite, counter: int) -> bytes:
    """AES-GCM counts big-endian, ChaCha20-Poly1305 little-endian (Noise sections 12.3 and 12.4)."""
    return bytes(4) + counter.to_bytes(8, "big" if suite.value.startswith("AESGCM") else "little")


class TransportCipher:
    """One direction of a finished handshake over a stream: a nonce that counts from 0."""

    def __init__(self, key: bytes, suite: Suite) -> None:
        self._suite = suite
        self._cipher = _aead(suite, key)
        self._counter = 0

    def _next_nonce(self) -> bytes:
        if self._counter >= NONCE_MAX:
            raise OverflowError("nonces are used up")  # ours: links end long before
        return _nonce(self._suite, self._counter)

    def encrypt(self, ad: bytes, plaintext: bytes) -> bytes:
        sealed = self._cipher.encrypt(self._next_nonce(), plaintext, ad)
        self._counter += 1
        return sealed

    def decrypt_untrusted(self, ad: bytes, data: bytes) -> bytes:
        if len(data) < TAG_SIZE:
            raise BadPacket("shorter than its tag")
        try:
            plaintext = self._cipher.decrypt(self._next_nonce(), data, ad)
        except InvalidTag:
            raise BadPacket("tag does not fit") from None
        self._counter += 1
        return plaintext


class _Symmetric:
    """SymmetricState of Noise section 5.2. Small values only, so that ``snapshot`` is cheap."""

    def __init__(self, name: str, suite: Suite) -> None:
        self._suite = suite
        self._digest: Any = hashlib.sha256 if suite.value.endswith("SHA256") else hashlib.blake2s
        encoded = name.encode()
        self.h: bytes = encoded.ljust(32, b"\0") if len(encoded) <= 32 else self._digest(encoded).digest()
        self._ck = self.h
        self._key = b""
        self._counter = 0

    def snapshot(self) -> tuple[bytes, bytes, bytes, int]:
        return self.h, self._ck, self._key, self._counter

    def restore(self, snapshot: tuple[bytes, bytes, bytes, int]) -> None:
        self.h, self._ck, self._key, self._counter = snapshot

    def hkdf(self, material: bytes, outputs: int) -> list[bytes]:
        temporary = hmac.digest(self._ck, material, self._digest)
        result = [b""]
        for number in range(1, outputs + 1):
            result.append(hmac.digest(temporary, result[-1] + bytes([number]), self._digest))
        return result[1:]

    def mix_hash(self, data: bytes) -> None:
        self.h = self._digest(self.h + data).digest()

    def mix_key(self, material: bytes) -> None:
        self._ck, self._key = self.hkdf(material, 2)
        self._counter = 0

    def mix_key_and_hash(self, material: bytes) -> None:
        self._ck, mixed, self._key = self.hkdf(material, 3)
        self._counter = 0
        self.mix_hash(mixed)

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        sealed = _aead(self._suite, self._key).encrypt(_nonce(self._suite, self._counter), plaintext, self.h)
        self._counter += 1
        self.mix_hash(sealed)
        return sealed

    def decrypt_and_hash_untrusted(self, sealed: bytes) -> bytes:
        if len(sealed) < TAG_SIZE:
            raise BadPacket("shorter than its tag")
        try:
            nonce = _nonce(self._suite, self._counter)
            plaintext = _aead(self._suite, self._key).decrypt(nonce, sealed, self.h)
        except InvalidTag:
            raise BadPacket("tag does not fit") from None
        self._counter += 1
        self.mix_hash(sealed)
        return plaintext


class HandshakeState:
    """One handshake. ``static``, ``ephemeral``: raw private keys; ``remote_static``: raw public key.

    Messages are written and read in turn; out of turn is our bug (``RuntimeError``).
    """

    def __init__(self, pattern: Pattern, suite: Suite, *, initiator: bool, prologue: bytes, psks: Sequence[bytes],
                 static: bytes, ephemeral: bytes, remote_static: bytes | None = None) -> None:
        if any(len(psk) != KEY_SIZE for psk in psks):
            raise ValueError("a pre-shared key has 32 bytes")
        if len(psks) != sum(message.count("psk") for message in _MESSAGES[pattern]):
            raise ValueError("the pattern takes another number of pre-shared keys")
        self.pattern, self.suite, self.initiator = pattern, suite, initiator
        self._symmetric = _Symmetric(f"Noise_{pattern}_25519_{suite}", suite)
        self._psks = tuple(psks)
        self._psk_next = 0
        self._message_next = 0
        self._static = X25519PrivateKey.from_private_bytes(static)
        self._ephemeral = X25519PrivateKey.from_private_bytes(ephemeral)
        self.remote_static = remote_static
        self._remote_ephemeral: bytes | None = None
        self._symmetric.mix_hash(prologue)
        if pattern in _RESPONDER_KNOWN:
            known = remote_static if initiator else self._static.public_key().public_bytes_raw()
            if known is None:
                raise ValueError("the initiator of IK knows the responder's key")
            self._symmetric.mix_hash(known)

    @property
    def finished(self) -> bool:
        return self._message_next == len(_MESSAGES[self.pattern])

    @property
    def handshake_hash(self) -> bytes:
        return self._symmetric.h

    def clone(self) -> "HandshakeState":
        """An independent copy: for messages whose content decides later whether they count."""
        twin = copy.copy(self)
        twin._symmetric = copy.copy(self._symmetric)
        return twin

    def _tokens(self, writing: bool) -> tuple[str, ...]:
        ours = (self._message_next % 2 == 0) == self.initiator
        if self.finished or ours != writing:
            raise RuntimeError("handshake message out of turn")
        return _MESSAGES[self.pattern][self._message_next]

    def write_message(self, payload: bytes) -> bytes:
        out = b""
        for token in self._tokens(writing=True):
            if token == "e":
                public = self._ephemeral.public_key().public_bytes_raw()
                out += public
                self._symmetric.mix_hash(public)
                self._symmetric.mix_key(public)  # section 9.2: psk handshakes mix the ephemeral in
            elif token == "s":
                out += self._symmetric.encrypt_and_hash(self._static.public_key().public_bytes_raw())
            else:
                self._mix(token)
        out += self._symmetric.encrypt_and_hash(payload)
        self._message_next += 1
        return out

    def read_message_untrusted(self, data: bytes) -> bytes:
        """The payload, or ``BadPacket`` with nothing changed."""
        tokens = self._tokens(writing=False)
        before = (self._symmetric.snapshot(), self._psk_next, self.remote_static, self._remote_ephemeral)
        try:
            if len(data) > MESSAGE_MAX:
                raise BadPacket("handshake message too long")
            payload = self._read_untrusted(tokens, data)
        except BadPacket:
            snapshot, self._psk_next, self.remote_static, self._remote_ephemeral = before
            self._symmetric.restore(snapshot)
            raise
        self._message_next += 1
        return payload

    def _read_untrusted(self, tokens: tuple[str, ...], data: bytes) -> bytes:
        for token in tokens:
            if token == "e":
                if len(data) < KEY_SIZE:
                    raise BadPacket("handshake message too short")
                self._remote_ephemeral, data = data[:KEY_SIZE], data[KEY_SIZE:]
                self._symmetric.mix_hash(self._remote_ephemeral)
                self._symmetric.mix_key(self._remote_ephemeral)
            elif token == "s":
                if len(data) < KEY_SIZE + TAG_SIZE:
                    raise BadPacket("handshake message too short")
                sealed, data = data[:KEY_SIZE + TAG_SIZE], data[KEY_SIZE + TAG_SIZE:]
                self.remote_static = self._symmetric.decrypt_and_hash_untrusted(sealed)
            else:
                self._mix(token)
        return self._symmetric.decrypt_and_hash_untrusted(data)

    def _mix(self, token: str) -> None:
        if token == "psk":
            self._symmetric.mix_key_and_hash(self._psks[self._psk_next])
            self._psk_next += 1
            return
        # The initiator's key stands first in a DH token.
        ours, theirs = (token[0], token[1]) if self.initiator else (token[1], token[0])
        remote = self._remote_ephemeral if theirs == "e" else self.remote_static
        if remote is None:
            raise RuntimeError("a key is used before it was read")
        secret = self._ephemeral if ours == "e" else self._static
        try:
            shared = secret.exchange(X25519PublicKey.from_public_bytes(remote))
        except ValueError:
            raise BadPacket("all-zero Diffie-Hellman result") from None
        self._symmetric.mix_key(shared)

    def split(self) -> tuple[bytes, bytes]:
        """(send key, receive key), 32 bytes each, of a finished handshake."""
        if not self.finished:
            raise RuntimeError("handshake is not finished")
        first, second = self._symmetric.hkdf(b"", 2)
        return (first, second) if self.initiator else (second, first)
