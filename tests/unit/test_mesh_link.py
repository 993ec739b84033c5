"""mesh/opening.py, link.py, frames.py: two ends joined by bytes; strangers, flips, cuts, order, batches, time."""

from collections.abc import Iterator
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from unit.mesh_helpers import DOMAIN, identity, signed
from unit.mesh_sim import tokens

from weave_router import limits
from weave_router.errors import BadPacket
from weave_router.mesh.frames import (
    HIGHEST,
    LOWEST,
    Close,
    Digest,
    Heartbeat,
    Hello,
    Ipam,
    Records,
    Synced,
    decode_frame_untrusted,
    digest_frames,
    encode_frame,
    record_frames,
    versions_of,
)
from weave_router.mesh.link import Ended, Event, Link, State, Up
from weave_router.mesh.opening import Opening
from weave_router.mesh.record import SignedRecord
from weave_router.mesh.table import Table
from weave_router.tunnel import wire
from weave_router.tunnel.identity import verify
from weave_router.tunnel.token import Token, TokenSet
from weave_router.tunnel.wire import SuiteCode

NEAR, FAR = ("10.0.0.1", 6783), ("10.0.0.2", 40000)


def end(seed: int, *, initiator: bool, accepted: TokenSet | None = None, own: SignedRecord | None = None,
        suite: SuiteCode = SuiteCode.AESGCM_SHA256, index: int = 5) -> Link:
    opening = Opening(initiator=initiator, identity=identity(seed), tokens=accepted or tokens(), suite=suite,
                      index=index, entropy=Random(seed).randbytes)
    return Link(opening, own=own or signed(seed), remote=FAR if initiator else NEAR, verify=verify, now=0.0)


def pair(**more: Any) -> tuple[Link, Link]:
    return end(1, initiator=True, **more), end(2, initiator=False, index=9)


def pump(one: Link, two: Link, now: float = 0.0) -> tuple[list[Event], list[Event]]:
    """Carry bytes to and fro until nothing is left; what each end said."""
    events: tuple[list[Event], list[Event]] = ([], [])
    while one.unsent or two.unsent:
        events[1].extend(two.receive_data(one.data_to_send(), now))
        events[0].extend(one.receive_data(two.data_to_send(), now))
    return events


def up(**more: Any) -> tuple[Link, Link]:
    one, two = pair(**more)
    pump(one, two)
    assert one.state is two.state is State.UP
    return one, two


def messages(stream: bytes) -> list[bytes]:
    result = []
    while stream:
        size = int.from_bytes(stream[:2], "big")
        result.append(stream[2:2 + size])
        stream = stream[2 + size:]
    return result


# -- opening -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("suite", SuiteCode)
def test_both_ends_come_up_with_each_others_record(suite: SuiteCode) -> None:
    one, two = pair(suite=suite)
    events = pump(one, two)
    assert events == ([Up(signed(2), NEAR)], [Up(signed(1), FAR)])
    assert one.opening.token.id == two.opening.token.id and one.opening.serial == two.opening.serial == 5
    assert one.opening.remote_static == identity(2).x25519_public


def test_messages_have_types_17_18_19_and_fit_548_bytes() -> None:
    one, two = pair()
    first = messages(one.data_to_send())
    two.receive_data(b"".join(len(m).to_bytes(2, "big") + m for m in first), 0.0)
    second = messages(two.data_to_send())
    one.receive_data(b"".join(len(m).to_bytes(2, "big") + m for m in second), 0.0)
    third = messages(one.data_to_send())
    openings = [first[0], second[0], third[0]]
    assert [message[0] for message in openings] == [17, 18, 19] and len(first) == len(second) == 1
    assert all(len(message) <= limits.HANDSHAKE_DATAGRAM_MAX for message in openings)
    heads = [wire.parse_head_untrusted(message) for message in openings]
    assert [(head.sender, head.receiver) for head in heads] == [(5, 0), (9, 5), (5, 9)]


def test_bytes_may_come_one_by_one() -> None:
    one, two = pair()
    events = []
    while one.unsent or two.unsent:
        for link, data in ((two, one.data_to_send()), (one, two.data_to_send())):
            for index in range(len(data)):
                events += link.receive_data(data[index:index + 1], 0.0)
    assert len(events) == 2 and one.state is two.state is State.UP


def test_rotation_any_accepted_token_opens() -> None:
    old_first, new_first = tokens("old", "new"), tokens("new", "old")
    one, two = end(1, initiator=True, accepted=new_first), end(2, initiator=False, accepted=old_first)
    pump(one, two)
    assert two.state is State.UP and two.opening.token.id == new_first.first.id


def refused(link: Link, data: bytes) -> str:
    """The reason for which a stream ends; nothing may have been said."""
    events = link.receive_data(data, 0.0)
    assert link.state is State.CLOSED and link.unsent == 0
    assert len(events) == 1 and isinstance(events[0], Ended) and events[0].code == ""
    return events[0].text


def test_unknown_token_another_version_and_strangers_are_told_apart_in_silence() -> None:
    message = end(1, initiator=True, accepted=tokens("wrong")).data_to_send()
    assert refused(end(2, initiator=False), message) == "unknown token id"
    right = end(1, initiator=True).data_to_send()
    other = bytes([*right[2:3], 9, *right[4:-16]])
    newer = other + wire.mac1(tokens().first.mac1_key, other)
    assert refused(end(2, initiator=False), len(newer).to_bytes(2, "big") + newer) == "another version"
    assert refused(end(2, initiator=False), right[:3] + b"\x09" + right[4:]) == "stranger"
    assert refused(end(2, initiator=False), b"GET / HTTP/1.1\r\n\r\n") == "stranger"
    assert refused(end(2, initiator=False), b"\0\0") == "stranger"
    assert refused(end(2, initiator=False), Random(1).randbytes(600)) == "stranger"
    same_id = TokenSet([Token(DOMAIN, tokens().first.secret)])
    object.__setattr__(same_id.first, "mac1_key", bytes(32))
    assert refused(end(2, initiator=False), end(1, initiator=True, accepted=same_id).data_to_send()) == "stranger"


def test_every_flipped_byte_of_message_1_and_2_ends_in_silence() -> None:
    first = end(1, initiator=True).data_to_send()
    for index in range(2, len(first)):
        refused(end(2, initiator=False), first[:index] + bytes([first[index] ^ 0x20]) + first[index + 1:])
    for index in range(2, 120):
        one, two = pair()
        two.receive_data(one.data_to_send(), 0.0)
        second = two.data_to_send()
        assert index < len(second)
        refused(one, second[:index] + bytes([second[index] ^ 0x20]) + second[index + 1:])
        assert not one.opening.proven


def test_every_flipped_byte_of_message_3_proves_nothing() -> None:
    for index in range(2, 114):
        one, two = pair()
        two.receive_data(one.data_to_send(), 0.0)
        one.receive_data(two.data_to_send(), 0.0)
        third = one.data_to_send()
        refused(two, third[:index] + bytes([third[index] ^ 0x20]) + third[index + 1:])
        assert not two.opening.proven


def test_messages_out_of_turn_and_of_another_opening_are_refused() -> None:
    first = end(1, initiator=True).data_to_send()
    one = end(1, initiator=True)
    one.data_to_send()
    assert refused(one, first) == "message out of turn"
    two = end(2, initiator=False)
    two.receive_data(first, 0.0)
    answer = two.data_to_send()
    other = end(1, initiator=True, index=6)
    other.data_to_send()
    assert refused(other, answer) == "answer to another opening"
    again = end(2, initiator=False)
    again.receive_data(first, 0.0)
    again.data_to_send()
    assert refused(again, first) == "message out of turn"


def test_recorded_opening_played_again_gets_no_further_than_message_2() -> None:
    one, two = pair()
    first = one.data_to_send()
    two.receive_data(first, 0.0)
    one.receive_data(two.data_to_send(), 0.0)
    third = one.data_to_send()
    replayed = end(3, initiator=False)
    replayed.receive_data(first, 0.0)
    replayed.data_to_send()
    refused(replayed, third)


def test_hello_with_a_record_of_another_key_is_refused() -> None:
    one, two = end(1, initiator=True, own=signed(3)), end(2, initiator=False)
    assert pump(one, two)[1] == [Ended("", "record of another key")]


@pytest.mark.parametrize("own", [signed(1, domain=b"elsewher"), SignedRecord(
    signed(1).record, bytes(64) + signed(1).data[64:], signed(1).node_id, bytes(16))])
def test_hello_with_a_bad_record_is_refused(own: SignedRecord) -> None:
    one, two = end(1, initiator=True, own=own), end(2, initiator=False)
    [event] = pump(one, two)[1]
    assert isinstance(event, Ended) and event.text in ("record domain", "record signature")


def remade(data: bytes, at: int, value: int) -> bytes:
    """The first message of a stream with four bytes of its head changed and a valid mac1: a member tampers."""
    message = data[2:2 + int.from_bytes(data[:2], "big")]
    body = message[:at] + value.to_bytes(4, "big") + message[at + 4:-16]
    body += wire.mac1(tokens().first.mac1_key, body)
    return len(body).to_bytes(2, "big") + body


def test_heads_changed_by_one_who_has_the_token_are_noticed() -> None:
    one, two = pair()
    first = one.data_to_send()
    assert refused(end(2, initiator=False), remade(first, 12, 7)) == "receiver index in message 1"
    assert refused(end(2, initiator=False), remade(first, 8, 7)) == "tag does not fit", "the prologue holds head 1"
    two.receive_data(first, 0.0)
    second = two.data_to_send()
    assert refused(one, remade(second, 8, 7)) == "head was changed on the way"
    one, two = pair()
    two.receive_data(one.data_to_send(), 0.0)
    one.receive_data(two.data_to_send(), 0.0)
    assert refused(two, remade(one.data_to_send(), 8, 7)) == "another sender index"


def test_first_frame_is_a_hello_or_a_goodbye() -> None:
    for frame, expected in ((Close("full"), Ended("full", "")), (Synced(1), Ended("", "no hello"))):
        one, two = pair()
        two.receive_data(one.data_to_send(), 0.0)
        one.receive_data(two.data_to_send(), 0.0)
        third = one.data_to_send()
        opening = third[:2 + int.from_bytes(third[:2], "big")]
        assert two.receive_data(opening, 0.0) == [] and two.state is State.HELLO
        one._send, _ = one.opening.ciphers()
        one._send_frame(frame)
        assert two.receive_data(one.data_to_send(), 0.0) == [expected]


def test_a_closed_link_cannot_come_up_again() -> None:
    one, _ = up()
    one.close("full")
    with pytest.raises(RuntimeError):
        one._enter(State.UP)
    assert one.state is State.CLOSED


# -- frames ------------------------------------------------------------------------------------------------------------
FRAMES = [Hello(b"r", "::1", 5), Heartbeat(1, 2, 3), Records((b"a", b"b")), Synced(7), Close("full", "text"),
          next(digest_frames([], 3))]


@pytest.mark.parametrize("frame", FRAMES)
def test_frames_come_back(frame: object) -> None:
    assert decode_frame_untrusted(encode_frame(frame)) == frame  # type: ignore[arg-type]


def test_unknown_types_are_skipped_and_broken_ones_refused() -> None:
    assert decode_frame_untrusted(b"\xfa\x01\x02") is None
    for data in (b"", b"\x02", b"\x02\x80", b"\x03\x91\x91\x01", b"\x05\x91\xff"):
        with pytest.raises(BadPacket):
            decode_frame_untrusted(data)
    with pytest.raises(BadPacket):
        decode_frame_untrusted(encode_frame(Close("x", "a" * (limits.LINK_CLOSE_TEXT_MAX + 1))))


def test_records_are_packed_into_frames_that_fit() -> None:
    template = signed(1)
    big = [SignedRecord(template.record, bytes(limits.RECORD_BYTES_MAX), bytes([n]), bytes(16)) for n in range(40)]
    batches = list(record_frames(big))
    assert sum(len(batch.records) for batch in batches) == 40
    assert all(len(encode_frame(batch)) + 16 <= limits.LINK_FRAME_MAX for batch in batches)
    assert all(sum(map(len, batch.records)) >= limits.LINK_BATCH_BYTES for batch in batches[:-1])
    small = [SignedRecord(template.record, b"", bytes(16), bytes(16))] * 1500
    assert [len(batch.records) for batch in record_frames(small)] == [512, 512, 476]


@pytest.mark.parametrize("count", [0, 1, 1023, 1024, 1025, limits.RECORDS_MAX])
def test_digests_cover_every_id_once_without_a_gap(count: int) -> None:
    versions = [((n * 77).to_bytes(16, "big"), 1 << 62, n, bytes(8)) for n in range(1, count + 1)]
    digests = list(digest_frames(versions, 4))
    assert digests[0].low == LOWEST and digests[-1].high == HIGHEST
    assert [digest.last for digest in digests] == [False] * (len(digests) - 1) + [True]
    for before, behind in pairwise(digests):
        assert int.from_bytes(behind.low, "big") == int.from_bytes(before.high, "big") + 1
    assert [version for digest in digests for version in versions_of(digest)] == versions
    assert all(len(encode_frame(digest)) < limits.LINK_FRAME_MAX - 16 for digest in digests)
    assert all(decode_frame_untrusted(encode_frame(digest)) == digest for digest in digests)


# -- an established link -----------------------------------------------------------------------------------------------
def test_outbox_keeps_the_newest_waits_20_ms_and_leaves_out_what_the_neighbour_said() -> None:
    one, two = up()
    one.queue(signed(3, seq=1), 1.0)
    one.queue(signed(3, seq=2), 1.01)
    one.queue(signed(4, seq=1), 1.01)
    one.heard(signed(4, seq=1))
    one.queue(signed(5, seq=2), 1.01)
    one.heard(signed(5, seq=1))
    assert one.flush_at == pytest.approx(1.02) and one.unsent == 0
    one.flush(1.02)
    [records] = pump(one, two)[1]
    assert isinstance(records, Records) and records.records == (signed(3, seq=2).data, signed(5, seq=2).data)
    assert one.flush_at is None


def test_heartbeats_measure_the_round_trip_without_the_wait_between() -> None:
    one, two = up()
    for start in (10.0, 11.0, 12.0):
        one.send_heartbeat(start)
        two.receive_data(one.data_to_send(), start + 0.004)
        two.send_heartbeat(start + 0.3)
        one.receive_data(two.data_to_send(), start + 0.306)
    assert one.rtt == pytest.approx(0.010, abs=1e-4)
    assert one.heard_at == pytest.approx(12.306)


def test_any_frame_counts_as_a_sign_of_life() -> None:
    one, two = up()
    one.queue(signed(3), 50.0)
    one.flush(50.0)
    two.receive_data(one.data_to_send(), 51.5)
    assert two.heard_at == 51.5


def test_synced_comes_behind_the_records_that_the_digest_lacked() -> None:
    one, two = up()
    table = Table()
    for seed in range(3, 9):
        table.merge(signed(seed), 0.0)
    one.send_digest([], 77)
    [digest] = pump(one, two)[1]
    assert isinstance(digest, Digest)
    two.answer_digest(table.missing_from(digest.low, digest.high, versions_of(digest)), digest, 1.0)
    two.flush(1.02)
    records, synced = pump(one, two)[0]
    assert isinstance(records, Records) and len(records.records) == 6 and synced == Synced(77)


def test_a_neighbour_that_does_not_read_costs_bounded_memory() -> None:
    one, _ = up()
    template = signed(3)
    count = 2 * limits.LINK_UNSENT_MAX // limits.RECORD_BYTES_MAX
    for index in range(count):
        data = bytes(limits.RECORD_BYTES_MAX)
        one.queue(SignedRecord(template.record, data, index.to_bytes(16, "big"), bytes(16)), 0.0)
    one.flush(0.02)
    assert one.flush_at is not None and one.unsent < limits.LINK_UNSENT_MAX + limits.LINK_FRAME_MAX
    before = one.unsent
    one.send_heartbeat(1.0)
    one.send_digest([], 1)
    one.flush(1.0)
    assert one.unsent == before
    one.data_to_send()
    one.flush(2.0)
    assert one.flush_at is None, "the rest goes once the socket took the first part"


def test_words_about_addresses_go_at_once_in_order_and_within_bounds() -> None:
    one, two = up()
    words = [bytes([n]) * 40_000 for n in range(60)]
    assert all(one.queue_ipam(data, 0.0) for data in words)
    assert one.flush_at is not None and one.unsent < limits.LINK_UNSENT_MAX + limits.LINK_FRAME_MAX
    heard: list[Event] = []
    for turn in range(4):
        heard += pump(one, two)[1]
        one.flush(1.0 + turn)
    assert heard == [Ipam(data) for data in words]
    full = 0
    while full < 2 * limits.IPAM_OUTBOX_BYTES and one.queue_ipam(bytes(60_000), 3.0):
        full += 60_000
    assert limits.IPAM_OUTBOX_BYTES - 60_000 < full <= limits.IPAM_OUTBOX_BYTES + limits.LINK_UNSENT_MAX + 60_000
    for turn in range(60):
        pump(one, two)
        one.flush(4.0 + turn)
    assert one.flush_at is None and one.queue_ipam(b"again", 90.0)
    one.close("shutdown")
    assert not one.queue_ipam(b"late", 91.0)


def test_close_says_why_and_is_the_last_word() -> None:
    one, two = up()
    one.close("full", "x" * 500)
    one.close("full")
    assert pump(one, two)[1] == [Ended("full", "x" * limits.LINK_CLOSE_TEXT_MAX)]
    assert two.state is State.CLOSED and two.receive_data(b"more", 0.0) == []
    one.queue(signed(3), 0.0)
    one.send_heartbeat(0.0)
    assert one.unsent == 0


def test_close_before_keys_is_silent() -> None:
    two = end(2, initiator=False)
    two.close("full")
    assert two.unsent == 0 and two.state is State.CLOSED


def test_flipped_cut_replayed_and_swapped_frames_end_the_link() -> None:
    def frames() -> Iterator[tuple[Link, list[bytes]]]:
        one, two = up()
        one.send_heartbeat(1.0)
        one.send_heartbeat(1.5)
        yield two, [len(m).to_bytes(2, "big") + m for m in messages(one.data_to_send())]

    for index in range(2, 27):
        [(two, (first, _))] = frames()
        flipped = first[:index] + bytes([first[index] ^ 1]) + first[index + 1:]
        assert two.receive_data(flipped, 0.0) == [Ended("", "tag does not fit")]
    [(two, (first, second))] = frames()
    assert two.receive_data(second + first, 0.0) == [Ended("", "tag does not fit")]
    [(two, (first, second))] = frames()
    assert two.receive_data(first + first, 0.0) == [Ended("", "tag does not fit")]
    [(two, _)] = frames()
    assert two.receive_data(b"\0\0", 0.0) == [Ended("", "frame size")]
    [(two, _)] = frames()
    assert two.receive_data(b"\0\x05hello", 0.0) == [Ended("", "shorter than its tag")]


def test_text_of_a_close_frame_is_made_printable() -> None:
    one, two = up()
    one._send_frame(Close("fu\x1bll", "a\x1b[2Jb\n"))
    assert pump(one, two)[1] == [Ended("full", "a[2Jb")]


def test_second_hello_and_no_hello_end_the_link() -> None:
    one, two = up()
    one._send_frame(Hello(signed(1).data))
    assert pump(one, two)[1] == [Ended("", "second hello")]


def test_unknown_frame_is_skipped() -> None:
    one, two = up()
    one._write(one._send.encrypt(b"", b"\xfa\x90"))  # type: ignore[union-attr]
    one.send_heartbeat(3.0)
    assert pump(one, two)[1] == [] and two.state is State.UP
