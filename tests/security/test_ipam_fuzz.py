"""Hostile words about addresses: random, mutated and well-formed nonsense into decoders, runs and a whole core.

A reader returns a value or raises BadPacket; a core counts what it cannot use and keeps its invariants. Number and
seeds of the inputs are inputs.py's; the failing input is in the assertion.
"""

import contextlib
from collections import Counter
from random import Random

import msgpack
import pytest
from security.inputs import INPUTS, few, mutated, seeded
from security.test_mesh_fuzz import value
from unit.ipam_sim import NAMES, Net

from weave_router.errors import BadPacket
from weave_router.ipam import letters, wire
from weave_router.ipam.knowledge import knowledge_of
from weave_router.ipam.registers import Runs
from weave_router.ipam.speech import Speech
from weave_router.ipam.values import (
    Aborted,
    FrozenMap,
    Knowledge,
    Message,
    Nack,
    Promise,
    Receive,
    Register,
    RetireAsk,
    RoundId,
    State,
    SyncAnswer,
    Tell,
)
from weave_router.mesh.codec import encode
from weave_router.tunnel.identity import Identity, verify


def settled(seed: int) -> Net:
    net = Net(seed)
    for name in NAMES:
        net.add(name)
    net.mesh()
    net.settle()
    return net


def honest() -> list[bytes]:
    """One of each kind."""
    node = next(iter(settled(1).nodes.values())).core
    known = knowledge_of(node.state)
    inner = honest_letters(node.me, known, node.speech)
    posted = [wire.Letter(letter(bytes(16), kind, body, kind)) for kind, body in inner]
    bodies = [*node.speech.said(Tell(known)), *node.speech.said(SyncAnswer(7, True, known)), wire.Ask(), *posted,
              wire.SyncAsk(5), wire.Hello(True), wire.Digest(bytes(16)), wire.Barrier(9), wire.Passed(9),
              wire.Have(tuple(node.runs.proofs_of(known.registers)))]  # fmt: skip
    assert {type(body) for body in bodies} == set(wire.KINDS.values())
    return [wire.encode_message(1, node.state.universe, (0x0A200000, 24), None, body) for body in bodies]


LIAR = Identity.generate(Random(11).randbytes)


def letter(universe: bytes, serial: int, body: bytes, kind: int, **others: int) -> bytes:
    """Signed by LIAR, with these bytes as the kind's fields."""
    fields = {"incarnation": 1, "to": b"", "serial": serial, "part": 0, "parts": 1, "kind": kind, "body": body}
    fields |= others
    signed = bytes(msgpack.packb(list(fields.values())))
    return LIAR.sign(letters.CONTEXT + universe + LIAR.ed25519_public + signed) + LIAR.ed25519_public + signed


def honest_letters(me: bytes, known: Knowledge, speech: Speech) -> list[tuple[int, bytes]]:
    """(kind, fields) of one of each."""
    about = RoundId(me, 1)
    state = State(me=me, registers=known.registers)
    bodies = [RetireAsk(about, FrozenMap({LIAR.node_id: 1})), Promise(about, known), Aborted(about),
              Nack(about, holder=RoundId(LIAR.node_id, 3)), Nack(about, returned=LIAR.node_id)]  # fmt: skip
    made = [part for body in bodies for part in speech.letter(body, state, ())]
    assert {type(part) for part in made} == set(letters.KINDS.values())
    codes = {kind: code for code, kind in letters.KINDS.items()}
    return [(codes[type(part)], encode(part)) for part in made]


def read(data: bytes) -> bool:
    """A letter too, down to its fields, as if its signature held."""
    try:
        body = wire.decode_body_untrusted(wire.decode_envelope_untrusted(data))
        if isinstance(body, wire.Letter):
            post = letters.Letters(bytes(32), lambda data: bytes(64), lambda *_: True, lambda: 0)
            opened = post.open_untrusted(bytes(16), body.data, bytes(16))
            assert opened is not None
            letters.decode_body_untrusted(opened[1])
    except BadPacket:
        return False
    except BaseException as error:
        raise AssertionError(f"{type(error).__name__} for {data.hex()}") from error
    return True


def nonsense(rng: Random, words: list[bytes]) -> bytes:
    kind = rng.randrange(5)
    if kind == 0:
        return rng.randbytes(rng.randrange(200))
    if kind == 1:
        return mutated(rng, rng.choice(words))
    fields = msgpack.unpackb(rng.choice(words))
    if kind == 2:
        fields[-1] = msgpack.packb(value(rng))
    elif kind == 3:  # within: of a letter what was signed
        fields[-1] = inside(rng, fields[-1])
    else:
        fields[rng.randrange(len(fields))] = value(rng)
    return bytes(msgpack.packb(fields))


def inside(rng: Random, packed: bytes) -> bytes:
    """The same with one of its values changed, at any depth, also where that is packed in bytes."""
    try:
        fields = msgpack.unpackb(packed)
    except (ValueError, msgpack.UnpackException):
        fields = None
    if not isinstance(fields, list) or not fields:
        head = 96 if len(packed) > 96 and rng.random() < 0.8 else 0
        return packed[:head] + (inside(rng, packed[head:]) if head else mutated(rng, packed))
    at = rng.randrange(len(fields))
    if isinstance(fields[at], bytes) and len(fields[at]) > 20 and rng.random() < 0.7:
        fields[at] = inside(rng, fields[at])
    elif isinstance(fields[at], list) and fields[at] and rng.random() < 0.7:
        fields[at] = msgpack.unpackb(inside(rng, msgpack.packb(fields[at])))
    else:
        fields[at] = value(rng)
    return bytes(msgpack.packb(fields))


def test_what_is_honest_is_read() -> None:
    assert all(read(data) for data in honest())
    later = msgpack.packb([1, bytes(16), 0, 0, b"", 200, b"\xc1 of a later version"])
    assert wire.decode_body_untrusted(wire.decode_envelope_untrusted(later)) is None


@pytest.mark.parametrize("seed", range(4))
def test_fuzz_decoders(seed: int) -> None:
    rng, words = seeded(seed), honest()
    results = [read(nonsense(rng, words)) for _ in range(INPUTS // 4)]
    assert 0 < sum(results) < len(results)


def test_fuzz_runs() -> None:
    """Nothing that was not signed as it stands passes."""
    rng = seeded(5)
    one, other = (Identity.generate(Random(n).randbytes) for n in (1, 2))
    writer = Runs(64, one.ed25519_public, one.sign, verify)
    writer.issue({b: wire_register(one.node_id) for b in range(64)})
    (data,) = writer.proofs_of({b: wire_register(one.node_id) for b in range(64)})
    reader = Runs(64, other.ed25519_public, other.sign, verify)
    assert reader.read_untrusted(data).count == 64
    for _ in range(few(10)):
        wrong = mutated(rng, data)
        try:
            run = reader.read_untrusted(wrong)
        except BadPacket:
            continue
        except BaseException as error:
            raise AssertionError(f"{type(error).__name__} for {wrong.hex()}") from error
        assert run.data == data


def wire_register(node: bytes) -> Register:
    return Register(0, 0, node, node)


def test_fuzz_letters() -> None:
    """A member that signs anything, handed on by a neighbour, to a node that retires another: no error, nothing written
    by who may not, and the node that was killed is retired at most (a lie about people is signed, and believed)."""
    rng, net = seeded(7), settled(7)
    target, near, dead = net.nodes.values()
    core = target.core
    known = knowledge_of(core.state)
    core.take_in(Receive(Message(near.id, 1, core.state.universe, None, Tell(Knowledge(
        members=frozenset({LIAR.node_id}))))), net.now)  # fmt: skip
    net.cut(near, dead)
    net.kill(dead)
    net.cut(target, near)
    core.link_up(near.id, net.now)
    core.neighbours[near.id] = True
    core.rounds.begin(frozenset({dead.id}), False, net.now)
    assert core.state.round is not None and core.state.universe is not None
    words, ends = honest_letters(core.me, known, core.speech), Counter[bool]()
    for serial in range(few(5)):
        kind, body = rng.choice(words)
        if rng.random() < 0.7:
            body = mutated(rng, body) if rng.random() < 0.5 else bytes(msgpack.packb(value(rng)))
        others = {"part": rng.randrange(3), "parts": rng.randrange(1, 4)} if rng.random() < 0.3 else {}
        data = letter(core.state.universe, serial, body, kind, **others)
        if rng.random() < 0.1:
            data = mutated(rng, data)
        before = sum(core.counters.values())
        frame = wire.encode_message(1, core.state.universe, (0, 0), None, wire.Letter(data))
        try:
            core.receive(near.id, frame, net.now + serial / 1000)
            core.take_steps()
        except BaseException as error:
            raise AssertionError(f"{type(error).__name__} for {data.hex()}") from error
        ends[sum(core.counters.values()) == before] += 1
    assert min(ends.values()) > few(5) // 20
    changed = {b: r for b, r in core.state.registers.items() if known.registers[b] != r}
    assert all(r.issuer == core.me for r in changed.values())


def test_fuzz_a_whole_core() -> None:
    """A neighbour that says anything: no error, no register that its issuer did not sign, own addresses go on."""
    rng, net, words = seeded(6), settled(6), honest()
    nodes = list(net.nodes.values())
    target, liar = nodes[0], nodes[1]
    universe = target.core.state.universe or b""
    before = target.core.state.registers
    for step in range(few(5)):
        data = nonsense(rng, words)
        if rng.random() < 0.5:  # in this universe, or it would be another's
            with contextlib.suppress(Exception):
                fields = msgpack.unpackb(data)
                fields[1] = universe
                data = bytes(msgpack.packb(fields))
        try:
            target.core.receive(liar.id, data, net.now + step / 1000)
            target.core.handle_timer(net.now + step / 1000)
            target.core.take_steps()
        except BaseException as error:
            raise AssertionError(f"{type(error).__name__} for {data.hex()}") from error
    after = target.core.state
    assert sum(target.core.counters.values()) > few(5) // 10
    changed = {b: r for b, r in after.registers.items() if before[b] != r}
    assert {r.issuer for r in changed.values()} == {target.id}  # gifts to who asked in this node's universe
    assert all(before[b].owner == target.id for b in changed)
