"""A node's static identity: an Ed25519 key that signs records, an X25519 key that proves itself in handshakes.

The node id is derived from the Ed25519 key alone, never from a host name, a MAC or a machine id. Must not know where
the keys are kept (the store does). Called by tunnel, mesh and ipam.
"""

import hashlib
from collections.abc import Callable
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

KEY_SIZE: Final = 32
SIGNATURE_SIZE: Final = 64
NODE_ID_SIZE: Final = 16


def node_id_of(ed25519_public: bytes) -> bytes:
    """First 16 bytes of SHA-256 of the raw public key."""
    return hashlib.sha256(ed25519_public).digest()[:NODE_ID_SIZE]


def verify(ed25519_public: bytes, signature: bytes, data: bytes) -> bool:
    """Whether the signature holds. Keys and signatures of any length are looked at, none raises."""
    try:
        Ed25519PublicKey.from_public_bytes(ed25519_public).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


class Identity:
    """Keys of this node, raw 32 bytes each."""

    def __init__(self, ed25519_secret: bytes, x25519_secret: bytes) -> None:
        self.ed25519_secret = ed25519_secret
        self.x25519_secret = x25519_secret
        self._signer = Ed25519PrivateKey.from_private_bytes(ed25519_secret)
        self.ed25519_public = self._signer.public_key().public_bytes_raw()
        self.x25519_public = X25519PrivateKey.from_private_bytes(x25519_secret).public_key().public_bytes_raw()
        self.node_id = node_id_of(self.ed25519_public)

    @classmethod
    def generate(cls, rng: Callable[[int], bytes]) -> "Identity":
        """A new identity. ``rng(n)`` gives n bytes fit for keys."""
        return cls(rng(KEY_SIZE), rng(KEY_SIZE))

    def sign(self, data: bytes) -> bytes:
        return self._signer.sign(data)

    def __repr__(self) -> str:
        return f"Identity({self.node_id.hex()})"
