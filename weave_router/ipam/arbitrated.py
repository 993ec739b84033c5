"""Blocks as an outside arbiter's room sees them: what is owned, what is disputed, and the arbiter's word put in.

A thin view of service.py for the Kubernetes room; keeps nothing of its own. What the word means: arbiter.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from weave_router import limits

from . import founding
from .donation import idle, owned
from .service import Service
from .values import Block, FrozenMap, Grant, Withdraw


class ArbitratedBlocks:
    def __init__(self, service: Service) -> None:
        self._service = service

    def grant(self, gens: Mapping[Block, int], now: float, read: bool = False) -> bool:
        """See values.Grant. False: the arbiter has to count on first."""
        return self._service.apply(Grant(FrozenMap(gens), read), now)

    def withdraw(self, blocks: Collection[Block], now: float) -> None:
        """The holders of their addresses stand in ``Service.lost``."""
        self._service.apply(Withdraw(frozenset(blocks)), now)

    def known_gen(self, block: Block) -> int:
        """Of the newest register heard; -1 for none."""
        register = self._service.state.registers.get(block)
        return -1 if register is None else register.gen

    def has(self, block: Block) -> bool:
        """By its newest register, disputed or not."""
        register = self._service.state.registers.get(block)
        return register is not None and register.owner == self._service.me

    def owned(self) -> Collection[Block]:
        return owned(self._service.state)

    def disputed(self) -> Collection[Block]:
        return self._service.state.contested

    def inhabited(self, block: Block) -> bool:
        """Whether withdrawing it would change anything."""
        allocator = self._service.allocator
        return allocator.has_block(block) or allocator.state_of(block) != "idle"

    def wants_block(self) -> bool:
        """One block ahead: fewer free addresses than a block has, and none is on its way."""
        service = self._service
        size = 1 << (32 - founding.block_prefix(service.settings.range_v4))
        return not service.gifts and service.allocator.free_count() < max(size, limits.PREFETCH_FREE)

    def spare(self) -> Block | None:
        """A block of which no address is in use or rests, and that is not missed: one whole block stays ahead."""
        service = self._service
        size = 1 << (32 - founding.block_prefix(service.settings.range_v4))
        if service.gifts or service.allocator.free_count() - size < max(size, limits.PREFETCH_FREE):
            return None
        return next((block for block in reversed(self._idle()) if service.allocator.has_block(block)), None)

    def _idle(self) -> list[Block]:
        state, allocator = self._service.state, self._service.allocator
        return [block for block in idle(state) if block not in state.contested and allocator.state_of(block) == "idle"]

    def may_grow(self, growing: bool) -> None:
        """Whether who finds no address may wait for a block."""
        self._service.growing = growing
