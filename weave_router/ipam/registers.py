"""Registers as they travel: runs of blocks that one node issued with one value, signed once, forwarded as received.

    64 bytes  Ed25519 signature over CONTEXT | universe (16) | public key (32) | body
    32 bytes  the issuer's public key; its node id is the hash of it
    body      MessagePack array: first block, count, gen, seq, owner

A newer register of one block leaves the run true for the others. What the slots of a seed were dealt needs no words
and has no run. Pure; the signer and the verifier are arguments. Called by service.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from weave_router.errors import BadPacket, UserError
from weave_router.limits import IPAM_RUN_BYTES_MAX
from weave_router.mesh.codec import U32, U63, decode_untrusted, encode
from weave_router.mesh.codec import NodeId as WireNodeId
from weave_router.tunnel.identity import node_id_of

from .values import Block, NodeId, Register

CONTEXT: Final = b"weave-router registers 1\0"
_HEAD: Final = 64 + 32


class Body(msgspec.Struct, frozen=True, array_like=True):
    first: U32
    count: Annotated[int, Meta(ge=1, le=1 << 24)]
    gen: U63
    seq: U63
    owner: WireNodeId


@dataclass(frozen=True, slots=True)
class Run:
    first: Block
    count: int
    register: Register
    data: bytes

    @property
    def blocks(self) -> range:
        return range(self.first, self.first + self.count)


_decoder = msgspec.msgpack.Decoder(Body)


class Runs:
    """The run behind each register this node holds. ``sign`` is this node's, ``public`` its key."""

    def __init__(
        self,
        blocks: int,
        public: bytes,
        sign: Callable[[bytes], bytes],
        verify: Callable[[bytes, bytes, bytes], bool],
    ) -> None:
        self.universe = bytes(16)
        self.blocks = blocks
        self._public = public
        self._me = node_id_of(public)
        self._sign = sign
        self._verify = verify
        self._by_block: dict[Block, Run] = {}
        self._users: dict[bytes, int] = {}  # how many blocks stand on a run

    def proof_of(self, block: Block, register: Register) -> bytes | None:
        run = self._by_block.get(block)
        return run.data if run is not None and run.register == register else None

    def proofs_of(self, registers: Mapping[Block, Register]) -> list[bytes]:
        """As few runs as speak of them all; what was dealt by a seed has none."""
        return list(dict.fromkeys(filter(None, (self.proof_of(b, r) for b, r in sorted(registers.items())))))

    def keep(self, block: Block, run: Run) -> None:
        """The register of this block now stands on this run."""
        before = self._by_block.get(block)
        if before is not None:
            left = self._users[before.data] - 1
            if left:
                self._users[before.data] = left
            else:
                del self._users[before.data]
        self._by_block[block] = run
        self._users[run.data] = self._users.get(run.data, 0) + 1

    def forget_all(self) -> None:
        self._by_block.clear()
        self._users.clear()

    def issue(self, registers: Mapping[Block, Register]) -> None:
        """Sign what this node itself wrote, as few runs as it takes."""
        pending: list[Block] = []
        for block in sorted(registers):
            if pending and not (block == pending[-1] + 1 and registers[block] == registers[pending[0]]):
                self._issue(pending, registers[pending[0]])
                pending = []
            pending.append(block)
        if pending:
            self._issue(pending, registers[pending[0]])

    def _issue(self, blocks: list[Block], register: Register) -> None:
        body = encode(Body(blocks[0], len(blocks), register.gen, register.seq, register.owner))
        data = self._sign(self._signed(self._public, body)) + self._public + body
        run = Run(blocks[0], len(blocks), register, data)
        for block in blocks:
            self.keep(block, run)

    def _signed(self, public: bytes, body: bytes) -> bytes:
        return CONTEXT + self.universe + public + body

    def read_untrusted(self, data: bytes) -> Run:
        """Parsed, within the range, and signed by its issuer. A run that some register stands on was checked before."""
        if not _HEAD < len(data) <= IPAM_RUN_BYTES_MAX:
            raise BadPacket("register size")
        public, body = data[64:_HEAD], data[_HEAD:]
        parsed = decode_untrusted(_decoder, body, "register encoding")
        if parsed.first + parsed.count > self.blocks:
            raise BadPacket("register outside the range")
        issuer = node_id_of(public)
        if data not in self._users and not self._verify(public, data[:64], self._signed(public, body)):
            raise BadPacket("register signature")
        return Run(parsed.first, parsed.count, Register(parsed.gen, parsed.seq, parsed.owner, issuer), data)


def newest(runs: Iterable[Run]) -> dict[Block, Run]:
    """Of several runs about one block the newest value; of two of one epoch the first."""
    best: dict[Block, Run] = {}
    for run in runs:
        for block in run.blocks:
            held = best.get(block)
            if held is None or run.register.epoch > held.register.epoch:
                best[block] = run
    return best


def restored(block: Block, register: Register, data: bytes) -> Run:
    """From this node's own store, which was checked when it was written. UserError if it was damaged since."""
    try:
        body = _decoder.decode(data[_HEAD:])
    except ValueError as error:
        raise UserError(f"the store's proof of who owns block {block} cannot be read ({error}): put an undamaged copy "
                        "back, or start anew by `weave-router reset`") from None
    return Run(body.first, body.count, register, data)


def owners(registers: Mapping[Block, Register]) -> dict[NodeId, list[Block]]:
    found: dict[NodeId, list[Block]] = {}
    for block, register in registers.items():
        found.setdefault(register.owner, []).append(block)
    return found
