"""Letters: words about a retirement to members that are no neighbours, signed by their writer and handed on.

    64 bytes  Ed25519 signature over CONTEXT | universe (16) | public key (32) | body
    32 bytes  the writer's public key; its node id is the hash of it
    body      MessagePack array: the writer's incarnation, to whom (16 bytes or none: everybody), serial, part, parts,
              kind, the kind's fields as bytes

A letter to everybody is handed to all neighbours but the one it came from, each letter once. One for a single node
goes back the way on which that node's last letter came, or to all where none is known. Sans-I/O: signer, verifier and
serials are arguments. Called by rounds.py alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from weave_router import limits
from weave_router.errors import BadPacket
from weave_router.mesh.codec import U8, U63, decode_untrusted, encode
from weave_router.mesh.codec import NodeId as WireNodeId
from weave_router.tunnel.identity import node_id_of

from .values import NodeId
from .wire import Facts, OptionalId

CONTEXT: Final = b"weave-router letter 1\0"
_HEAD: Final = 64 + 32


class Round(msgspec.Struct, frozen=True, array_like=True):
    coordinator: WireNodeId
    number: U63


class Victim(msgspec.Struct, frozen=True, array_like=True):
    node: WireNodeId
    incarnation: U63


class RetireAsk(msgspec.Struct, frozen=True, array_like=True):
    """``promised``: who need not answer again. ``sums``: of the asker's registers, see speech.sums_of."""

    round: Round
    victims: Annotated[tuple[Victim, ...], Meta(min_length=1, max_length=limits.IPAM_FRAME_PEOPLE_MAX)]
    promised: Annotated[tuple[WireNodeId, ...], Meta(max_length=limits.IPAM_FRAME_PEOPLE_MAX)]
    sums: Annotated[tuple[U63, ...], Meta(max_length=limits.IPAM_SUMS)]


class Promise(msgspec.Struct, frozen=True, array_like=True):
    """All people, and the registers of those parts of the range whose sums differ."""

    round: Round
    facts: Facts


class Nack(msgspec.Struct, frozen=True, array_like=True):
    round: Round
    holder: Round | None
    returned: WireNodeId | None


class Aborted(msgspec.Struct, frozen=True, array_like=True):
    round: Round


Body = RetireAsk | Promise | Nack | Aborted
KINDS: Final[dict[int, type[Body]]] = {1: RetireAsk, 2: Promise, 3: Nack, 4: Aborted}
_CODES: Final = {kind: code for code, kind in KINDS.items()}
_DECODERS: Final = {code: msgspec.msgpack.Decoder(kind) for code, kind in KINDS.items()}


class Letter(msgspec.Struct, frozen=True, array_like=True):
    incarnation: U63
    to: OptionalId
    serial: U63
    part: U8
    parts: Annotated[int, Meta(ge=1, le=limits.IPAM_LETTER_PARTS_MAX)]
    kind: U8
    body: Annotated[bytes, Meta(max_length=limits.LINK_FRAME_MAX)]


_letter = msgspec.msgpack.Decoder(Letter)


def decode_body_untrusted(letter: Letter) -> Body | None:
    """None for a kind of a later version."""
    decoder = _DECODERS.get(letter.kind)
    return None if decoder is None else decode_untrusted(decoder, letter.body, "letter body")


class Letters:
    """What this node wrote and handed on."""

    def __init__(self, public: bytes, sign: Callable[[bytes], bytes], verify: Callable[[bytes, bytes, bytes], bool],
                 serial: Callable[[], int]) -> None:
        self._public = public
        self._sign = sign
        self._verify = verify
        self._serial = serial
        self._seen: dict[bytes, None] = {}
        self._ways: dict[NodeId, NodeId] = {}

    def write(self, universe: bytes, incarnation: int, to: NodeId | None, bodies: Collection[Body]) -> list[bytes]:
        """One letter in as many parts as there are bodies."""
        serial = self._serial()
        return [self._seal(universe, encode(Letter(incarnation, to or b"", serial, part, len(bodies),
                                                   _CODES[type(body)], encode(body))))
                for part, body in enumerate(bodies)]

    def _seal(self, universe: bytes, body: bytes) -> bytes:
        data = self._sign(CONTEXT + universe + self._public + body) + self._public + body
        self._note(data)
        return data

    def open_untrusted(self, universe: bytes, data: bytes, near: NodeId) -> tuple[NodeId, Letter] | None:
        """Who wrote what; None if it came before. ``near``: the neighbour that handed it over."""
        if self._mark(data) in self._seen:
            return None
        if len(data) <= _HEAD:
            raise BadPacket("letter size")
        public, body = data[64:_HEAD], data[_HEAD:]
        letter = decode_untrusted(_letter, body, "letter encoding")
        if len(letter.to) not in (0, 16) or letter.part >= letter.parts:
            raise BadPacket("letter encoding")
        if not self._verify(public, data[:64], CONTEXT + universe + public + body):
            raise BadPacket("letter signature")
        self._note(data)
        writer = node_id_of(public)
        self._ways.pop(writer, None)
        self._ways[writer] = near
        if len(self._ways) > limits.RECORDS_MAX:
            del self._ways[next(iter(self._ways))]
        return writer, letter

    def ways(self, to: NodeId | None, neighbours: Collection[NodeId], source: NodeId | None = None) -> list[NodeId]:
        """Which neighbours get it."""
        if to in neighbours:
            return [to] if to is not None else []
        way = self._ways.get(to) if to is not None else None
        if way is not None and way in neighbours and way != source:
            return [way]
        return [node for node in neighbours if node != source]

    def _note(self, data: bytes) -> None:
        self._seen[self._mark(data)] = None
        if len(self._seen) > limits.IPAM_LETTERS_SEEN_MAX:
            del self._seen[next(iter(self._seen))]

    def _mark(self, data: bytes) -> bytes:
        return hashlib.blake2b(data, digest_size=16).digest()
