"""The fast path's one capture, as the API reads it.

Polls the engine, which fills a ring of its own; decides nothing. Made by router.py for each request.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

from weave_router.api.router_api import CapturedFrame
from weave_router.errors import UserError
from weave_router.fastpath import engine as fastpath

CAPTURE_POLL_SECONDS: Final = 0.1


class EngineCapture:
    """The fast path's one capture, as the API reads it."""

    def __init__(self, engine: fastpath.Engine, slot: int | None, number: int | None, snap: int) -> None:
        self._engine = engine
        try:
            engine.capture_start(slot=slot, number=number, snap=snap)
        except ValueError:
            raise UserError("another capture is running: end it first, there is one at a time") from None

    async def read(self) -> Sequence[CapturedFrame]:
        frames = self._engine.capture_read()
        if not frames:
            await asyncio.sleep(CAPTURE_POLL_SECONDS)
            frames = self._engine.capture_read()
        return frames

    async def stop(self) -> int:
        return self._engine.capture_stop()
