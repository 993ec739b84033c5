"""Hostile bytes for every decoder of the mesh: random, mutated, and well-formed nonsense, also correctly sealed.

A decoder returns a value or raises BadPacket; a link ends or goes on; a whole core stays whole. Number and seeds of the
inputs are inputs.py's; the failing input is in the assertion.
"""

import copy
from collections.abc import Callable, Iterator
from functools import cache
from random import Random
from typing import Any

import msgpack
import pytest
from security.inputs import INPUTS, few, mutated, seeded
from security.test_corpus import corpus
from unit.mesh_helpers import DOMAIN, full_record, identity, signed
from unit.mesh_sim import PORT, Network, remembered_verify, tokens

from weave_router import limits
from weave_router.errors import BadPacket, UsageError
from weave_router.mesh import frames
from weave_router.mesh.core import Mesh
from weave_router.mesh.events import Config, Send
from weave_router.mesh.link import Ended, Link, State, Up
from weave_router.mesh.opening import Opening
from weave_router.mesh.record import CONTEXT, decode_record_untrusted, parse_record_untrusted, sign_record
from weave_router.mesh.targets import parse_target
from weave_router.tunnel import wire
from weave_router.tunnel.identity import verify
from weave_router.tunnel.wire import SuiteCode

TOKENS = tokens()
OWN = {seed: signed(seed) for seed in (1, 2)}
FULL = sign_record(full_record(1), identity(1).sign)


def value(rng: Random, depth: int = 0) -> Any:
    """Any MessagePack value."""
    kind = rng.randrange(9 if depth < 4 else 6)
    match kind:
        case 0:
            return rng.choice((None, True, False, 0, -1, 1, 255, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1))
        case 1:
            return rng.getrandbits(rng.choice((3, 8, 16, 32, 63)))
        case 2:
            return rng.randbytes(rng.choice((0, 5, 6, 8, 15, 16, 17, 32, 33, 64)))
        case 3:
            return "".join(chr(rng.randrange(1, 0xD7FF)) for _ in range(rng.randrange(8)))
        case 4:
            return rng.random() * 1e9
        case 5:
            return rng.choice(("10.0.0.1", "::1", "host", "\x1b[2J", ""))
        case 8:
            return {str(n): value(rng, depth + 1) for n in range(rng.randrange(4))}
        case _:
            return [value(rng, depth + 1) for _ in range(rng.randrange(7))]


def nonsense(rng: Random, valid: list[Any]) -> bytes:
    """A valid array with some fields replaced, dropped or added."""
    fields = list(valid)
    for _ in range(rng.choice((1, 1, 2, 6))):
        match rng.randrange(4):
            case 0 if fields:
                del fields[rng.randrange(len(fields))]
            case 1:
                fields.insert(rng.randrange(len(fields) + 1), value(rng))
            case _ if fields:
                fields[rng.randrange(len(fields))] = value(rng)
    return bytes(msgpack.packb(fields))


def inputs(seed: int, samples: list[bytes], arrays: list[tuple[bytes, list[Any]]] = ()) -> Iterator[bytes]:  # type: ignore[assignment]
    """INPUTS inputs: random, mutated samples, nonsense behind a prefix."""
    rng = seeded(seed)
    for number in range(INPUTS):
        if number % 4 == 0:
            yield rng.randbytes(rng.choice((0, 1, 2, 15, 16, 64, 65, rng.randrange(600))))
        elif number % 4 == 1 and arrays:
            prefix, fields = rng.choice(arrays)
            yield prefix + nonsense(rng, fields)
        else:
            yield mutated(rng, rng.choice(samples))


def only_bad_packet(decode: Callable[[bytes], object], data: bytes) -> bool:
    """True if a value came back."""
    try:
        decode(data)
    except BadPacket as error:
        assert error.reason and len(error.reason) < 60
        return False
    except BaseException as error:
        raise AssertionError(f"{type(error).__name__} for {data.hex()}") from error
    return True


# -- records -----------------------------------------------------------------------------------------------------------
def test_fuzz_record_bytes() -> None:
    samples = [FULL.data, signed(1).data]
    for data in [bytes(64) + body for body in corpus("body")] + list(inputs(1, samples)):
        assert not only_bad_packet(lambda one: decode_record_untrusted(one, domain=DOMAIN), data) or data in samples


def test_fuzz_record_bodies_of_a_signer_without_shame() -> None:
    """Behind a valid signature: what is taken can be read, shown and sent on."""
    samples = [FULL.data[64:], signed(1).data[64:]]
    arrays = [(b"", msgpack.unpackb(body, strict_map_key=False)) for body in samples]
    taken = 0
    for body in corpus("body") + list(inputs(2, samples, arrays)):
        data = bytes(64) + body
        if only_bad_packet(lambda one: parse_record_untrusted(one, domain=DOMAIN), data):
            taken += 1
            read = parse_record_untrusted(data, domain=DOMAIN)
            assert read.data == data and read.name.isprintable() and len(data) <= limits.RECORD_BYTES_MAX
            assert len(read.record.prefixes) <= limits.RECORD_PREFIXES_MAX
    assert taken > INPUTS // 500, "nothing gets through: the inputs are too wild to test what stands behind"


# -- frames ------------------------------------------------------------------------------------------------------------
SAMPLES = [frames.Hello(FULL.data, "2001:db8::1", 6783), frames.Heartbeat(1 << 40, 1 << 41, 99),
           frames.Records((signed(1).data, b"", b"x" * 99)), frames.Synced(1 << 50), frames.Close("full", "text"),
           *frames.digest_frames([(bytes([n] * 16), 1, 2, bytes(8)) for n in range(30)], 7)]
FRAMES = [frames.encode_frame(frame) for frame in SAMPLES]
ARRAYS = [(data[:1], msgpack.unpackb(data[1:])) for data in FRAMES]


def test_fuzz_frames() -> None:
    for data in corpus("frame") + list(inputs(3, FRAMES, ARRAYS)):
        only_bad_packet(frames.decode_frame_untrusted, data)


# -- openings ----------------------------------------------------------------------------------------------------------
def link(seed: int, *, initiator: bool) -> Link:
    opening = Opening(initiator=initiator, identity=identity(seed), tokens=TOKENS, suite=SuiteCode.AESGCM_SHA256,
                      index=seed, entropy=lambda size: bytes([seed]) * size)
    return Link(opening, own=OWN[seed], remote=("10.0.0.1", PORT), verify=verify, now=0.0)


def feed(one: Link, data: bytes) -> None:
    """Nothing but an end, and in an opening not one byte of answer to what is no valid message."""
    try:
        events = one.receive_data(data, 0.0)
    except BaseException as error:
        raise AssertionError(f"{type(error).__name__} for {data.hex()}") from error
    assert all(isinstance(event, Ended) for event in events)


def test_fuzz_streams_to_a_responder() -> None:
    first = link(1, initiator=True).data_to_send()
    for data in corpus("stream") + list(inputs(4, [first])):
        two = link(2, initiator=False)
        feed(two, data)
        assert two.unsent == 0 or data.startswith(first)
        assert not two.opening.proven


def resealed(rng: Random, message: bytes) -> bytes:
    """Any message with a valid mac1 of our token: a member that has gone mad."""
    body = mutated(rng, message[2:-wire.MAC1_SIZE])
    body += wire.mac1(TOKENS.first.mac1_key, body)
    return len(body).to_bytes(2, "big") + body


def test_fuzz_openings_with_a_valid_mac1() -> None:
    rng = seeded(5)
    first = link(1, initiator=True).data_to_send()
    for number in range(few(10)):  # each costs Diffie-Hellman
        two = link(2, initiator=False)
        if number % 2:
            data = resealed(rng, first)
            feed(two, data)
            assert two.unsent == 0 or data == first or two.state is State.OPENING
            continue
        one = link(1, initiator=True)
        two.receive_data(one.data_to_send(), 0.0)
        feed(one, resealed(rng, two.data_to_send()))


# -- whole cores -------------------------------------------------------------------------------------------------------
def core() -> tuple[Mesh, int]:
    """A core whose randomness is the same each time, with one caller."""
    rng = Random(6)
    mesh = Mesh(Config("core", PORT), identity=identity(1), tokens=TOKENS, incarnation=1, run=bytes(16), rng=rng,
                entropy=rng.randbytes, now=0.0, verify=remembered_verify)
    return mesh, mesh.accept(("10.0.0.1", PORT), ("10.0.0.2", 5), 0.0)


@cache
def caller() -> tuple[tuple[bytes, ...], Link]:
    """(what the caller of ``core`` says until the link is up, its end of the link then)."""
    mesh, number = core()
    far = link(2, initiator=True)
    said: list[bytes] = []
    while far.state is not State.UP:
        said.append(far.data_to_send())
        mesh.receive_data(number, said[-1], 0.0)
        for effect in mesh.take_effects():
            if isinstance(effect, Send):
                far.receive_data(effect.data, 0.0)
    return (*said, far.data_to_send()), far


def joined() -> tuple[Mesh, int, Link]:
    """A core with one link up, and the far end of that link in our hands. The caller's part is the same each time, so
    it is computed once."""
    mesh, number = core()
    said, end = caller()
    for data in said:
        mesh.receive_data(number, data, 0.0)
        mesh.take_effects()
    far = copy.copy(end)
    far._unsent, far._send = bytearray(), copy.copy(end._send)
    assert mesh.linked(identity(2).node_id)
    return mesh, number, far


def test_fuzz_sealed_frames_of_a_member_into_a_core() -> None:
    mesh, number, far = joined()
    now, ended = 0.0, 0
    for data in corpus("frame") + list(inputs(7, FRAMES, ARRAYS)):
        now += 0.01
        try:
            far._write(far._send.encrypt(b"", data[:60_000]))  # type: ignore[union-attr]
            mesh.receive_data(number, far.data_to_send(), now)
            mesh.handle_timer(max(now, 0.0))
            mesh.take_effects()
            mesh.take_events()
        except BaseException as error:
            raise AssertionError(f"{type(error).__name__} for {data.hex()}") from error
        if not mesh.linked(identity(2).node_id):
            ended += 1
            mesh, number, far = joined()
            now = 0.0
    assert ended > INPUTS // 10
    assert mesh.status().records <= 3


def test_fuzz_records_of_a_member_into_a_core() -> None:
    """Signed nonsense, as an own record, as others', by the hundred: counted, and the neighbour's link stays."""
    mesh, number, far = joined()
    rng = seeded(8)
    fields = [msgpack.unpackb(signed(seed).data[64:]) for seed in range(1, 5)]
    for step in range(few(5)):
        seed = rng.randrange(1, 5)
        body = nonsense(rng, fields[seed - 1])
        batch = [identity(seed).sign(CONTEXT + DOMAIN + body) + body, mutated(rng, signed(seed).data)[:4096]]
        far._write(far._send.encrypt(b"", frames.encode_frame(frames.Records(tuple(batch)))))  # type: ignore[union-attr]
        mesh.receive_data(number, far.data_to_send(), step / 100)
        mesh.take_effects()
    assert mesh.linked(identity(2).node_id) and sum(mesh.status().counters.values()) > few(5) // 2
    assert mesh.own.record.incarnation == 1


def test_bytes_changed_on_the_way_end_the_link_and_nothing_else() -> None:
    """A man in the middle flips, drops and adds bytes of a whole mesh for a while; then it heals."""
    net, rng = Network(9), Random(9)
    nodes = [net.add(index, max(1, index - 1)) for index in range(1, 5)]
    honest = net._deliver
    net._deliver = lambda end, data: honest(end, mutated(rng, data) if rng.random() < 0.05 else data)  # type: ignore
    net.run(60.0)
    net._deliver = honest  # type: ignore[method-assign]
    assert net.run(20.0, net.agree) < 20.0
    assert all(len(node.core.table) == 4 for node in nodes)


def test_hello_observed_and_close_are_shown_only_printable() -> None:
    one, two = link(1, initiator=True), link(2, initiator=False)
    events = []
    for _ in range(4):
        events += two.receive_data(one.data_to_send(), 0.0)
        events += one.receive_data(two.data_to_send(), 0.0)
    assert [type(event) for event in events] == [Up, Up]
    for text in ("\x00\x1b]0;x\x07", "\u202e", "a" * limits.LINK_CLOSE_TEXT_MAX):
        assert isinstance(frames.decode_frame_untrusted(frames.encode_frame(frames.Close("c", text))), frames.Close)


# -- texts of operators ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(4))
def test_fuzz_target_texts(seed: int) -> None:
    rng = seeded(seed)
    for _ in range(INPUTS // 4):
        text = "".join(rng.choice("0123456789abcdefgh.:[]%/@ -\x00é:::...") for _ in range(rng.randrange(24)))
        try:
            host, port = parse_target(text, PORT)
        except UsageError:
            continue
        assert host and 0 < port < 65536
