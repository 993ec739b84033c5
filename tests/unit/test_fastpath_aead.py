"""The ciphers of the data channel against `cryptography`, both suites; a tag that does not fit opens nothing."""

import random

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from weave_router.fastpath import aead
from weave_router.fastpath.engine import CIPHERS, SUITE_AESGCM, SUITE_CHACHAPOLY, Engine

ORACLES = {SUITE_AESGCM: AESGCM, SUITE_CHACHAPOLY: ChaCha20Poly1305}
SIZES = [0, 1, 8, 15, 16, 17, 63, 64, 65, 1371, 1440, 9000, 65451]


def test_both_suites_are_proven_at_import() -> None:
    assert CIPHERS.keys() == ORACLES.keys()
    assert all(aead.self_test(suite) for suite in CIPHERS)


@pytest.mark.parametrize("suite", ORACLES)
@pytest.mark.parametrize("size", SIZES)
def test_known_answers(suite: int, size: int) -> None:
    rng = random.Random(size)
    key, nonce, head, data = (rng.randbytes(n) for n in (32, 12, 16, size))
    sealed = ORACLES[suite](key).encrypt(nonce, data, head)
    assert aead.seal(suite, key, nonce, head, data) == sealed
    assert aead.open_(suite, key, nonce, head, sealed) == data


@pytest.mark.parametrize("suite", ORACLES)
def test_one_changed_bit_opens_nothing(suite: int) -> None:
    key, nonce, head = bytes(range(32)), bytes(range(12)), bytes(range(16))
    sealed = aead.seal(suite, key, nonce, head, bytes(40))
    for bit in range(8 * len(sealed)):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        assert aead.open_(suite, key, nonce, head, bytes(changed)) is None
    for bit in range(128):
        other = bytearray(head)
        other[bit // 8] ^= 1 << bit % 8
        assert aead.open_(suite, key, nonce, bytes(other), sealed) is None


def with_ipsec_mb() -> None:
    serves = aead.CIPHERS[SUITE_AESGCM]
    if not serves.startswith("libipsec-mb"):
        pytest.skip(f"needs a libipsec-mb that beats OpenSSL (package libipsec-mb1): {serves} serves")


@pytest.mark.parametrize("size", SIZES)
def test_both_implementations_read_each_other(size: int) -> None:
    with_ipsec_mb()
    rng = random.Random(size)
    key, nonce, head, data = (rng.randbytes(n) for n in (32, 12, 16, size))
    for sealer, opener in ((True, False), (False, True)):
        sealed = aead.seal(SUITE_AESGCM, key, nonce, head, data, sealer)
        assert sealed == AESGCM(key).encrypt(nonce, data, head)
        assert aead.open_(SUITE_AESGCM, key, nonce, head, sealed, opener) == data


def test_every_bit_of_the_tag_counts_in_both() -> None:
    key, nonce, head = bytes(range(32)), bytes(range(12)), bytes(range(16))
    for plain_openssl in (True, False):
        sealed = aead.seal(SUITE_AESGCM, key, nonce, head, bytes(100), plain_openssl)
        for bit in range(800, 928):
            changed = bytearray(sealed)
            changed[bit // 8] ^= 1 << bit % 8
            assert aead.open_(SUITE_AESGCM, key, nonce, head, bytes(changed), plain_openssl) is None


def test_refusing_ipsec_mb_leaves_openssl() -> None:
    refusing = Engine(workers=1, mtu=1368, refuse=frozenset({"ipsec_mb"}))
    assert set(refusing.ciphers.values()) == {"OpenSSL EVP"}
    assert Engine(workers=1, mtu=1368).ciphers == CIPHERS


def test_the_faster_implementation_serves() -> None:
    with_ipsec_mb()
    assert aead.race(False) < aead.race(True)


def test_unknown_suites_and_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="suite"):
        aead.seal(3, bytes(32), bytes(12), bytes(16), b"")
    with pytest.raises(ValueError, match="32"):
        aead.seal(SUITE_AESGCM, bytes(31), bytes(12), bytes(16), b"")
