"""mesh/record.py: bounds, order, checks, signature, additive evolution; msgpack as the independent oracle."""

import hashlib

import msgpack
import msgspec
import pytest
from unit.mesh_helpers import DOMAIN, full_record, identity, record, signed

from weave_router import limits
from weave_router.errors import BadPacket
from weave_router.mesh.record import (
    CONTEXT,
    Link,
    Lost,
    Prefix,
    decode_record_untrusted,
    parse_record_untrusted,
    rtt_code,
    rtt_seconds,
    sign_record,
)
from weave_router.tunnel.identity import node_id_of


def forged(seed: int, body: bytes) -> bytes:
    """A body of any content, correctly signed."""
    return identity(seed).sign(CONTEXT + DOMAIN + body) + body


def test_what_is_signed_comes_back() -> None:
    made = sign_record(full_record(1), identity(1).sign)
    read = decode_record_untrusted(made.data, domain=DOMAIN)
    assert read == made and read.record == full_record(1)
    assert read.node_id == node_id_of(identity(1).ed25519_public) == identity(1).node_id
    assert read.hash == hashlib.sha256(made.data).digest()[:16]


def test_record_with_every_list_full_fits() -> None:
    made = sign_record(full_record(1), identity(1).sign)
    assert 3000 < len(made.data) <= limits.RECORD_BYTES_MAX


def test_wire_is_plain_messagepack() -> None:
    made = signed(1, links=(Link(bytes(16), 7),), prefixes=(Prefix(0x0A200001, 32),), tags={"a": b"b"})
    fields = msgpack.unpackb(made.data[64:], raw=False)
    assert fields[0] == 1 and fields[1] == DOMAIN and fields[7] == "host1"
    assert fields[9] == [[bytes(16), 7]] and fields[10] == [[0x0A200001, 32, b""]]
    assert fields[17:] == [{"a": b"b"}, "", [], []]
    assert decode_record_untrusted(forged(1, msgpack.packb(fields)), domain=DOMAIN).record == made.record


def test_fields_of_a_later_version_are_kept_in_the_bytes() -> None:
    fields = [*msgpack.unpackb(signed(1).data[64:]), ["new", 1], {"more": None}]
    data = forged(1, msgpack.packb(fields))
    read = decode_record_untrusted(data, domain=DOMAIN)
    assert read.record == record(1) and read.data == data


def test_order_is_incarnation_then_seq_then_hash() -> None:
    low, high = signed(1, incarnation=1, seq=9), signed(1, incarnation=2, seq=1)
    assert low.order < high.order < signed(1, incarnation=2, seq=2).order
    twins = sorted([signed(1, name="a"), signed(1, name="b")], key=lambda one: one.order)
    assert twins[0].hash < twins[1].hash


def test_any_flipped_bit_is_refused() -> None:
    data = signed(1, prefixes=(Prefix(0x0A200001, 32),)).data
    for index in range(len(data)):
        with pytest.raises(BadPacket):
            decode_record_untrusted(data[:index] + bytes([data[index] ^ 1]) + data[index + 1:], domain=DOMAIN)


@pytest.mark.parametrize("size", range(64 + 12))
def test_cut_records_are_refused(size: int) -> None:
    with pytest.raises(BadPacket):
        decode_record_untrusted(signed(1).data[:size], domain=DOMAIN)


def test_record_over_the_limit_is_refused() -> None:
    body = msgpack.packb([*msgpack.unpackb(signed(1).data[64:]), b""])
    filler = limits.RECORD_BYTES_MAX - 64 - len(body) - 1
    fits = msgpack.packb([*msgpack.unpackb(signed(1).data[64:]), bytes(filler)])
    assert len(fits) + 64 == limits.RECORD_BYTES_MAX
    assert decode_record_untrusted(forged(1, fits), domain=DOMAIN).record == record(1)
    over = msgpack.packb([*msgpack.unpackb(signed(1).data[64:]), bytes(filler + 1)])
    with pytest.raises(BadPacket, match="record size"):
        decode_record_untrusted(forged(1, over), domain=DOMAIN)


def test_other_domain_is_told_apart_and_the_domain_is_under_the_signature() -> None:
    with pytest.raises(BadPacket, match="record domain"):
        decode_record_untrusted(signed(1).data, domain=b"elsewher")
    moved = record(1, domain=b"elsewher")
    body = msgspec.msgpack.encode(moved)
    with pytest.raises(BadPacket, match="record signature"):  # signed for DOMAIN, claims another
        decode_record_untrusted(forged(1, body), domain=b"elsewher")


def test_signature_of_another_key_is_refused() -> None:
    body = signed(1).data[64:]
    with pytest.raises(BadPacket, match="record signature"):
        decode_record_untrusted(forged(2, body), domain=DOMAIN)


def test_parse_alone_does_not_verify() -> None:
    assert parse_record_untrusted(bytes(64) + signed(1).data[64:], domain=DOMAIN).record == record(1)


MAC = bytes([2, 0, 0, 0, 0, 1])
ODD = {
    "two formats": {"format": 2},
    "empty name": {"name": ""},
    "control letters in the name": {"name": "a\x1b[31mb"},
    "spaces around the name": {"name": " a"},
    "name too long": {"name": "n" * (limits.RECORD_NAME_MAX + 1)},
    "name too long in bytes": {"name": "ü" * (limits.RECORD_NAME_MAX // 2 + 1)},
    "short key": {"x25519_public": bytes(31)},
    "short run": {"run": bytes(15)},
    "negative seq": {"seq": -1},
    "huge incarnation": {"incarnation": 1 << 63},
    "endpoint is a name": {"endpoints": (("example.org", 1),)},
    "endpoint not canonical": {"endpoints": (("2001:DB8::1", 1),)},
    "endpoint with a zone": {"endpoints": (("fe80::1%eth0", 1),)},
    "endpoint of any": {"endpoints": (("0.0.0.0", 1),)},
    "endpoint of many": {"endpoints": (("224.0.0.1", 1),)},
    "endpoint without port": {"endpoints": (("10.0.0.1", 0),)},
    "too many endpoints": {"endpoints": (("10.0.0.1", 1),) * (limits.RECORD_ENDPOINTS_MAX + 1)},
    "too many links": {"links": tuple(Link(bytes([n] * 16)) for n in range(limits.RECORD_LINKS_MAX + 1))},
    "one link twice": {"links": (Link(bytes(16), 1), Link(bytes(16), 2))},
    "rtt out of range": {"links": (Link(bytes(16), 128),)},
    "host bits in a prefix": {"prefixes": (Prefix(0x0A200001, 24),)},
    "prefix of everything": {"prefixes": (Prefix(0x0A000000, 7),)},
    "longer than an address": {"prefixes": (Prefix(0x0A000000, 33),)},
    "loopback prefix": {"prefixes": (Prefix(0x7F000001, 32),)},
    "multicast prefix": {"prefixes": (Prefix(0xE0000001, 32),)},
    "prefix of this network": {"prefixes": (Prefix(0, 8),)},
    "broadcast": {"prefixes": (Prefix(0xFFFFFFFF, 32),)},
    "one prefix twice": {"prefixes": (Prefix(0x0A200001, 32), Prefix(0x0A200001, 32, MAC))},
    "mac on a block": {"prefixes": (Prefix(0x0A200000, 26, MAC),)},
    "multicast mac": {"prefixes": (Prefix(0x0A200001, 32, b"\x01" + MAC[1:]),)},
    "zero mac": {"prefixes": (Prefix(0x0A200001, 32, bytes(6)),)},
    "short mac": {"prefixes": (Prefix(0x0A200001, 32, MAC[:5]),)},
    "too many prefixes": {"prefixes": tuple(Prefix(0x0A200000 + n, 32) for n in range(limits.RECORD_PREFIXES_MAX + 1))},
    "unicast group": {"groups": (MAC,)},
    "one group twice": {"groups": (b"\x01" + MAC[1:],) * 2},
    "too many lost blocks": {"lost": tuple(Lost(n, 1) for n in range(limits.RECORD_LOST_MAX + 1))},
    "too many groups": {"groups": tuple(bytes([1, 0, 0, 0, 0, n]) for n in range(limits.RECORD_GROUPS_MAX + 1))},
    "too many tokens": {"tokens_accepted": (1,) * (limits.RECORD_TOKENS_MAX + 1)},
    "nickname too long": {"nickname": "n" * (limits.RECORD_NAME_MAX + 1)},
    "too many bytes in the nickname": {"nickname": "\u00e9" * limits.RECORD_NAME_MAX},
    "nickname of control characters": {"nickname": "a\x1b[2J"},
    "too many trusted networks": {"trusted": tuple(f"10.{n}.0.0/16" for n in range(limits.RECORD_TRUSTED_MAX + 1))},
    "too many tags": {"tags": {str(n): b"" for n in range(limits.RECORD_TAGS_MAX + 1)}},
    "long tag": {"tags": {"a" * (limits.RECORD_TAG_BYTES_MAX + 1): b""}},
    "long tag value": {"tags": {"a": bytes(limits.RECORD_TAG_BYTES_MAX + 1)}},
}  # fmt: skip


@pytest.mark.parametrize("fields", ODD.values(), ids=ODD.keys())
def test_odd_fields_are_refused_though_signed(fields: dict[str, object]) -> None:
    body = msgspec.msgpack.encode(record(1, **fields))
    with pytest.raises(BadPacket):
        decode_record_untrusted(forged(1, body), domain=DOMAIN)
    with pytest.raises(ValueError):
        sign_record(record(1, **fields), identity(1).sign)


@pytest.mark.parametrize("body", [
    b"", b"\xc1", b"\x80", b"\x90", msgpack.packb(list(range(20))), b"\xdd\xff\xff\xff\xff", b"\x91" * 3000,
    b"\x98\x01\xc4\x08" + DOMAIN,
])
def test_other_shapes_are_refused(body: bytes) -> None:
    with pytest.raises(BadPacket):
        decode_record_untrusted(forged(1, body), domain=DOMAIN)


def test_deep_nesting_behind_the_known_fields_is_refused() -> None:
    body = signed(1).data[64:]
    assert body[0] == 0xDC and int.from_bytes(body[1:3], "big") == 21
    deep = b"\xdc" + (22).to_bytes(2, "big") + body[3:] + b"\x91" * 2500 + b"\x01"
    with pytest.raises(BadPacket, match="record encoding"):
        decode_record_untrusted(forged(1, deep), domain=DOMAIN)


def test_rtt_is_rounded_to_powers_of_a_quarter_more() -> None:
    for micros in (1, 5, 80, 150, 1000, 20_000, 300_000, 5_000_000):
        code = rtt_code(micros / 1e6)
        back = rtt_seconds(code)
        if code:
            assert back is not None and micros / 1.13 < back * 1e6 < micros * 1.13
    assert rtt_code(0.0) == 0 and rtt_seconds(0) is None and rtt_code(1e9) == 127
    assert [rtt_code(0.0100), rtt_code(0.0104)] == [41, 41]
