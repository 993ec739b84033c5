"""Where a pod's address comes from: this node's IPAM, or the operator's hand.

``attachments.py`` knows only this door. With IPAM, ipam/driver.py is behind it; without, an address must be named and
the attachment alone is what the store keeps. Called by router.py, which chooses.
"""

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeAlias

from weave_router.errors import UsageError, UserError
from weave_router.ipam.allocator import Holder

Work: TypeAlias = Callable[[], object]


class NoAddressError(UsageError):
    """None was named, and this node gives none."""


class MacTakenError(UserError):
    """The MAC that was asked for is another's."""


class Addresses(Protocol):
    async def pick(self, holder: Holder, wanted: int | None) -> int:
        """A number, not yet on disk. UserError with the way out."""

    def held(self, holder: Holder) -> tuple[int, ...]:
        """What the holder has already: claimed for it, or found on its port."""

    async def keep(self, holder: Holder, work: Work | None = None, but: tuple[int, ...] = ()) -> None:
        """Number and ``work`` are on disk when this returns, or neither; of the holder's numbers ``but`` stay."""

    async def give_back(self, holder: Holder, work: Work | None = None, but: tuple[int, ...] = ()) -> None:
        """All numbers of the holder ``but`` these are released, on disk with ``work``."""


class ByHand:
    """No IPAM on this node."""

    def __init__(self, in_writer: Callable[[Callable[[], object]], Awaitable[object]]) -> None:
        self._in_writer = in_writer

    async def pick(self, holder: Holder, wanted: int | None) -> int:
        if wanted is None:
            raise NoAddressError("this node gives no addresses (--ipalloc-init none): name one as ADDRESS/LEN, "
                                 "CNI_ARGS IP=ADDRESS or the runtime's \"ips\"")
        return wanted

    def held(self, holder: Holder) -> tuple[int, ...]:
        return ()

    async def keep(self, holder: Holder, work: Work | None = None, but: tuple[int, ...] = ()) -> None:
        if work is not None:
            await self._in_writer(work)

    async def give_back(self, holder: Holder, work: Work | None = None, but: tuple[int, ...] = ()) -> None:
        if work is not None:
            await self._in_writer(work)
