"""Identity: derived names, signatures; the vector is that of RFC 8032, section 7.1, test 1."""

import hashlib

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from weave_router.tunnel.identity import Identity, node_id_of, verify

ED25519_SECRET = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
ED25519_PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
X25519_SECRET = bytes(range(32))
BASE_POINT = b"\x09" + bytes(31)
SIGNATURE_OF_NOTHING = bytes.fromhex(
    "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
    "d25bf5f0595bbe24655141438e7a100b")


def test_known_answers() -> None:
    identity = Identity(ED25519_SECRET, X25519_SECRET)
    assert identity.ed25519_public == ED25519_PUBLIC
    assert identity.sign(b"") == SIGNATURE_OF_NOTHING
    base = X25519PublicKey.from_public_bytes(BASE_POINT)
    assert identity.x25519_public == X25519PrivateKey.from_private_bytes(X25519_SECRET).exchange(base)
    assert identity.node_id == node_id_of(ED25519_PUBLIC) == hashlib.sha256(ED25519_PUBLIC).digest()[:16]


def test_verify_tells_right_from_wrong_and_never_raises() -> None:
    assert verify(ED25519_PUBLIC, SIGNATURE_OF_NOTHING, b"")
    assert not verify(ED25519_PUBLIC, SIGNATURE_OF_NOTHING, b"x")
    assert not verify(bytes(32), SIGNATURE_OF_NOTHING, b"x")
    for wrong in (b"", bytes(31), bytes(33), b"\xff" * 32):
        assert not verify(wrong, SIGNATURE_OF_NOTHING, b"")
    for wrong in (b"", bytes(63), bytes(65)):
        assert not verify(ED25519_PUBLIC, wrong, b"")


def test_generate_takes_its_bytes_from_the_argument_and_shows_no_secret() -> None:
    identity = Identity.generate(lambda n: b"\7" * n)
    assert identity.ed25519_secret == identity.x25519_secret == b"\7" * 32
    assert len(identity.x25519_public) == 32
    assert repr(identity) == f"Identity({identity.node_id.hex()})"
