"""Where a pod's address comes from: this node's IPAM, or the operator's hand.

``attachments.py`` knows only this door. With IPAM, ipam/driver.py is behind it; without, an address must be named and
the attachment alone is what the store keeps. Called by router.py, which chooses.
"""

from collections.abc import Awaitable, Callable
from typing import Protocol

from weave_router.errors import UsageError
from weave_router.ipam.allocator import Holder


class NoAddressError(UsageError):
    """None was named, and this node gives none."""


class Addresses(Protocol):
    async def pick(self, holder: Holder, wanted: int | None) -> int:
        """A number, not yet on disk. UserError with the way out."""

    async def keep(self, holder: Holder, work: Callable[[], object] | None = None) -> None:
        """Number and ``work`` are on disk when this returns, or neither."""

    async def give_back(self, holder: Holder, work: Callable[[], object] | None = None) -> None:
        """All numbers of the holder are released, on disk with ``work``."""


class ByHand:
    """No IPAM on this node."""

    def __init__(self, in_writer: Callable[[Callable[[], object]], Awaitable[object]]) -> None:
        self._in_writer = in_writer

    async def pick(self, holder: Holder, wanted: int | None) -> int:
        if wanted is None:
            raise NoAddressError("this node gives no addresses (--ipalloc-init none): name one as ADDRESS/LEN, "
                                 "CNI_ARGS IP=ADDRESS or the runtime's \"ips\"")
        return wanted

    async def keep(self, holder: Holder, work: Callable[[], object] | None = None) -> None:
        if work is not None:
            await self._in_writer(work)

    async def give_back(self, holder: Holder, work: Callable[[], object] | None = None) -> None:
        if work is not None:
            await self._in_writer(work)
