"""What neighbours say to each other about addresses: bytes of one control-link frame to values and back.

    envelope   MessagePack array: incarnation, universe (16 bytes or none), range (number, length), for whom (16 bytes
               or none: everybody), kind, body
    body       MessagePack array of the kind's fields, as bytes; a kind that this version does not know is skipped

The sender is the node at the other end of the link, never what the bytes say. Registers come as signed runs, which
registers.py reads. Pure. Called by service.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from weave_router import limits
from weave_router.errors import BadPacket
from weave_router.mesh.codec import U8, U32, U63, decode_untrusted, encode
from weave_router.mesh.codec import NodeId as WireNodeId

from .values import FrozenMap, Knowledge

MEMBER, PROPOSED, RETIRED, PROMISED, LEFT = 1, 2, 4, 8, 16
RunBytes = Annotated[bytes, Meta(max_length=limits.IPAM_RUN_BYTES_MAX)]
RunList = Annotated[tuple[RunBytes, ...], Meta(max_length=limits.IPAM_FRAME_RUNS_MAX)]
OptionalId = Annotated[bytes, Meta(max_length=16)]


class Envelope(msgspec.Struct, frozen=True, array_like=True):
    incarnation: U63
    universe: OptionalId
    range_number: U32
    range_len: Annotated[int, Meta(ge=0, le=32)]
    to: OptionalId
    kind: U8
    body: Annotated[bytes, Meta(max_length=limits.LINK_FRAME_MAX)]


class Person(msgspec.Struct, frozen=True, array_like=True):
    """What is known of one identity. ``incarnation`` 0: nothing."""

    node: WireNodeId
    standing: U8
    incarnation: U63 = 0


class Facts(msgspec.Struct, frozen=True, array_like=True):
    """Knowledge: whole, or what changed."""

    runs: RunList = ()
    people: Annotated[tuple[Person, ...], Meta(max_length=limits.IPAM_FRAME_PEOPLE_MAX)] = ()


class Tell(msgspec.Struct, frozen=True, array_like=True):
    facts: Facts


class Have(msgspec.Struct, frozen=True, array_like=True):
    runs: RunList


class Ask(msgspec.Struct, frozen=True, array_like=True):
    pass


class SyncAsk(msgspec.Struct, frozen=True, array_like=True):
    nonce: U63


class SyncAnswer(msgspec.Struct, frozen=True, array_like=True):
    """What did not fit stands in ``Tell``s before it on the same link."""

    nonce: U63
    open: bool
    facts: Facts


class Hello(msgspec.Struct, frozen=True, array_like=True):
    spare: bool


class Digest(msgspec.Struct, frozen=True, array_like=True):
    """A hash of all that the sender knows; whoever has another one tells all that it knows."""

    hash: Annotated[bytes, Meta(min_length=16, max_length=16)]


class Barrier(msgspec.Struct, frozen=True, array_like=True):
    """Say ``Passed`` when all that came before this is on disk and in the fast path."""

    nonce: U63


class Passed(msgspec.Struct, frozen=True, array_like=True):
    nonce: U63


class Letter(msgspec.Struct, frozen=True, array_like=True):
    """Signed by somebody who may be no neighbour: letters.py."""

    data: Annotated[bytes, Meta(max_length=limits.LINK_FRAME_MAX)]


Body = Tell | Have | Ask | SyncAsk | SyncAnswer | Hello | Digest | Barrier | Passed | Letter

KINDS: Final[dict[int, type[Body]]] = {
    1: Tell, 2: Have, 3: Ask, 4: SyncAsk, 5: SyncAnswer, 6: Hello, 7: Digest, 8: Barrier, 9: Passed,
    10: Letter,
}  # fmt: skip
_CODES: Final = {kind: code for code, kind in KINDS.items()}
_DECODERS: Final = {code: msgspec.msgpack.Decoder(kind) for code, kind in KINDS.items()}
_envelope = msgspec.msgpack.Decoder(Envelope)


def encode_message(
    incarnation: int, universe: bytes | None, range_key: tuple[int, int], to: bytes | None, body: Body
) -> bytes:
    return encode(Envelope(incarnation, universe or b"", *range_key, to or b"", _CODES[type(body)], encode(body)))


def decode_envelope_untrusted(data: bytes) -> Envelope:
    envelope = decode_untrusted(_envelope, data, "ipam encoding")
    if len(envelope.universe) not in (0, 16) or len(envelope.to) not in (0, 16):
        raise BadPacket("ipam encoding")
    return envelope


def decode_body_untrusted(envelope: Envelope) -> Body | None:
    """None for a kind of a later version."""
    decoder = _DECODERS.get(envelope.kind)
    return None if decoder is None else decode_untrusted(decoder, envelope.body, "ipam body")


# --- people -------------------------------------------------------------------------------------------------------


def people_of(knowledge: Knowledge) -> list[Person]:
    sets = standing_sets(knowledge)
    everybody = frozenset().union(*sets.values(), knowledge.incarnations)
    return [
        Person(node, sum(bit for bit, nodes in sets.items() if node in nodes), knowledge.incarnations.get(node, 0))
        for node in sorted(everybody)
    ]


def standing_sets(knowledge: Knowledge) -> dict[int, frozenset[bytes]]:
    return {
        MEMBER: knowledge.members, PROPOSED: knowledge.proposed, RETIRED: knowledge.retired,
        PROMISED: knowledge.promised, LEFT: knowledge.left,
    }  # fmt: skip


def knowledge_of_people(people: Iterable[Person]) -> Knowledge:
    rows = list(people)

    def having(bit: int) -> frozenset[bytes]:
        return frozenset(row.node for row in rows if row.standing & bit)

    return Knowledge(
        members=having(MEMBER),
        proposed=having(PROPOSED),
        incarnations=FrozenMap({row.node: row.incarnation for row in rows if row.incarnation}),
        retired=having(RETIRED),
        promised=having(PROMISED),
        left=having(LEFT),
    )


def facts_in_pieces(runs: Sequence[bytes], people: Sequence[Person]) -> list[Facts]:
    """Cut so that each fits one frame; people first, whose retirements decide which registers count."""
    pieces = [
        Facts(people=tuple(people[at : at + limits.IPAM_FRAME_PEOPLE_MAX]))
        for at in range(0, len(people), limits.IPAM_FRAME_PEOPLE_MAX)
    ]
    pieces += [
        Facts(runs=tuple(runs[at : at + limits.IPAM_FRAME_RUNS_MAX]))
        for at in range(0, len(runs), limits.IPAM_FRAME_RUNS_MAX)
    ]
    if len(people) <= 64 and len(runs) <= 64:
        return [Facts(tuple(runs), tuple(people))]
    return pieces or [Facts()]
