"""Records, identities and tokens for tests of the mesh: small, seeded, real keys."""

from functools import lru_cache
from random import Random
from typing import Any

from weave_router.mesh.record import Link, Lost, Prefix, Record, SignedRecord, sign_record
from weave_router.tunnel.identity import Identity

DOMAIN = b"sim-doma"


@lru_cache(256)
def identity(seed: int) -> Identity:
    return Identity.generate(Random(seed).randbytes)


def record(seed: int, **fields: Any) -> Record:
    keys = identity(seed)
    values: dict[str, Any] = {
        "domain": DOMAIN, "ed25519_public": keys.ed25519_public, "x25519_public": keys.x25519_public,
        "incarnation": 1, "seq": 1, "run": bytes(16), "name": f"host{seed}"} | fields
    return Record(**values)


def signed(seed: int, **fields: Any) -> SignedRecord:
    return sign_record(record(seed, **fields), identity(seed).sign)


def full_record(seed: int) -> Record:
    """Every list as long as it may be."""
    addresses = [f"2001:db8:1111:2222:3333:4444:5555:{n + 4096:x}" for n in range(8)]
    return record(
        seed, name="n" * 253, endpoints=tuple((address, 65535) for address in addresses),
        links=tuple(Link(identity(n).node_id, 100) for n in range(48)),
        prefixes=tuple(Prefix(0x0A200000 + n, 32, bytes([2, 255, 255, 255, 255, n])) for n in range(64)),
        groups=tuple(bytes([1, 0, 0x5E, 255, 255, n]) for n in range(32)), pod_mtu=65000, flags=0xFFFFFFFF,
        token_sent=0xFFFFFFFF, tokens_accepted=(0xFFFFFFFF,) * 4, version="v" * 32,
        tags={f"{n}" * 32: bytes(32) for n in range(8)}, lost=tuple(Lost((1 << 32) - 1 - n, n) for n in range(8)),
        incarnation=(1 << 63) - 1, seq=(1 << 63) - 1)
