"""Single addresses inside the blocks of this node: host numbers to holders, first released first used again.

A plain state machine: time is an argument, and what changed is returned as a ``Change`` for the store (one transaction
with the ownership state) before anything is answered. Must not know how a block came here, only that it did
(``add_block``, ``remove_block``); who else owns what is told to it in words. Called by the IPAM driver.

Free numbers stand in one queue in the order of their release. Blocks are opened one at a time, so that the others
stay idle and can be given away. A released number rests for ``COOLDOWN_SECONDS``: caches of the old pod's peers die.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from weave_router.errors import UserError
from weave_router.limits import COOLDOWN_SECONDS, PREFETCH_FREE

from .values import Block


class Holder(NamedTuple):
    """Who has an address: a container and one of its interfaces, or one of the names below."""

    container: str
    ifname: str

    def __str__(self) -> str:
        return f"container {self.container} ({self.ifname})" if self.container else f"this node's {self.ifname}"


BRIDGE = Holder("", "bridge")
EXPOSED = Holder("", "exposed address")


@dataclass(frozen=True, slots=True)
class Change:
    """What the store must hold before the answer goes, and which blocks changed between used, resting and idle."""

    leased: tuple[tuple[int, Holder], ...] = ()
    resting: tuple[tuple[int, Holder], ...] = ()  # no longer leased; kept with their last holder
    cooled: tuple[int, ...] = ()  # no longer resting, not leased either
    occupied: frozenset[Block] = frozenset()
    vacated: frozenset[Block] = frozenset()
    idle: frozenset[Block] = frozenset()


class Finding(NamedTuple):
    """An address on a live port that cannot be entered as its own, and why."""

    number: int
    holder: Holder
    problem: str


class AddressTakenError(UserError):
    """The named address is not to be had; the text says whose it is."""


class ExhaustedError(UserError):
    """There is no free address, for a reason that the text gives."""


class NotNowError(UserError):
    """New addresses wait for something, named in the text: try again later."""


class _Book:
    """Counts per block, so that a block's state is known without looking at its numbers."""

    __slots__ = ("leased", "resting")

    def __init__(self) -> None:
        self.leased = 0
        self.resting = 0

    @property
    def word(self) -> str:
        return "used" if self.leased else "resting" if self.resting else "idle"


class Allocator:
    def __init__(
        self,
        range_v4: IPv4Network,
        block_prefix: int,
        excluded: Iterable[IPv4Network] = (),
        owner_of: Callable[[Block], str | None] = lambda block: None,
        cooldown: float = COOLDOWN_SECONDS,
    ) -> None:
        self._range = range_v4
        self._size = 1 << (32 - block_prefix)
        self._first = int(range_v4.network_address)
        self._last = int(range_v4.broadcast_address)
        self._excluded = tuple(excluded)
        self._excluded_numbers = [
            range(int(net.network_address), int(net.broadcast_address) + 1) for net in self._excluded
        ]
        self._owner_of = owner_of
        self._cooldown = cooldown
        self._blocks: dict[Block, bool] = {}  # owned: usable
        self._unopened: dict[Block, None] = {}
        self._books: dict[Block, _Book] = {}
        self._leases: dict[int, Holder] = {}
        self._numbers: dict[Holder, dict[int, None]] = {}
        self._resting: OrderedDict[int, tuple[float, Holder]] = OrderedDict()  # until, in that order
        self._free: OrderedDict[int, None] = OrderedDict()  # of opened, usable blocks
        self._cooled: dict[int, None] = {}  # ended to rest and not told yet
        self._touched: dict[Block, str] = {}  # the word of each block before the running operation

    # --- blocks ---

    def block_of(self, number: int) -> Block:
        return (number - self._first) // self._size

    def numbers_of(self, block: Block) -> Iterator[int]:
        """Those that pods may get: not the range's first and last, nothing excluded."""
        start = self._first + block * self._size
        return (n for n in range(start, start + self._size) if self._reservation(n) is None)

    def add_block(self, block: Block, usable: bool = True) -> None:
        """This node owns the block; ``usable`` False while its neighbours do not know that yet, or it is contested."""
        known = self._blocks.get(block)
        self._blocks[block] = usable
        if known is None:
            self._unopened[block] = None
        elif known != usable and block not in self._unopened:
            for number in self.numbers_of(block):
                if usable and number not in self._leases and number not in self._resting:
                    self._free[number] = None
                elif not usable:
                    self._free.pop(number, None)

    def remove_block(self, block: Block) -> None:
        """It was given away: only an idle one can be."""
        if self.state_of(block) != "idle":
            raise ValueError(f"block {block} is {self.state_of(block)}")
        self._forget_block(block)

    def lose_block(self, block: Block) -> tuple[Holder, ...]:
        """It is another's although it was in use (this node was retired): who must go."""
        gone = tuple(h for n, h in self._leases.items() if self.block_of(n) == block)
        for number in [n for n in self._leases if self.block_of(n) == block]:
            self._drop_lease(number)
        for number in [n for n in self._resting if self.block_of(n) == block]:
            del self._resting[number]
        self._books.pop(block, None)
        self._forget_block(block)
        return gone

    def _forget_block(self, block: Block) -> None:
        self._blocks.pop(block, None)
        if self._unopened.pop(block, block) is not None:
            for number in self.numbers_of(block):
                self._free.pop(number, None)

    def has_block(self, block: Block) -> bool:
        return block in self._blocks

    def state_of(self, block: Block) -> str:
        """``used``, ``resting`` or ``idle``."""
        book = self._books.get(block)
        return book.word if book else "idle"

    def _open(self, within: IPv4Network | None) -> bool:
        """Put the numbers of one more own block into the queue."""
        for block in self._unopened:
            if self._blocks[block] and (within is None or self._network_of(block).overlaps(within)):
                del self._unopened[block]
                self._free.update(
                    (n, None) for n in self.numbers_of(block) if n not in self._leases and n not in self._resting
                )
                return True
        return False

    def _network_of(self, block: Block) -> IPv4Network:
        return IPv4Network((self._first + block * self._size, 33 - self._size.bit_length()))

    def _reservation(self, number: int) -> str | None:
        if number in (self._first, self._last):
            return "the first or last address of the range"
        excluded = zip(self._excluded, self._excluded_numbers, strict=True)
        return next((f"excluded by {net}" for net, numbers in excluded if number in numbers), None)

    # --- what a person or a driver asks ---

    def addresses_of(self, holder: Holder) -> tuple[int, ...]:
        return tuple(self._numbers.get(holder, ()))

    def holder_of(self, number: int) -> Holder | None:
        return self._leases.get(number)

    def leases(self) -> dict[int, Holder]:
        return dict(self._leases)

    def resting(self) -> dict[int, Holder]:
        return {n: holder for n, (_, holder) in self._resting.items()}

    def free_count(self) -> int:
        """Numbers that could be answered now."""
        return len(self._free) + sum(self._room_of(block) for block in self._unopened if self._blocks[block])

    def _room_of(self, block: Block) -> int:
        """Numbers of a block that is not opened yet which pods may get."""
        book = self._books.get(block) or _Book()
        return self._size - self._reserved_in(block) - book.leased - book.resting

    def _reserved_in(self, block: Block) -> int:
        """Counted number by number only where something may be reserved."""
        start = self._first + block * self._size
        end = start + self._size
        edge = start <= self._first or end > self._last
        if not edge and not any(numbers.start < end and start < numbers.stop for numbers in self._excluded_numbers):
            return 0
        return self._size - sum(1 for _ in self.numbers_of(block))

    def wants_blocks(self) -> bool:
        """Ask for blocks before the last number is gone: ADD does not wait for another node."""
        room = len(self._free)
        for block in self._unopened:  # as a rule the first one is enough
            if room >= PREFETCH_FREE:
                return False
            room += self._room_of(block) * self._blocks[block]
        return room < PREFETCH_FREE

    def get_timer(self) -> float | None:
        return next(iter(self._resting.values()))[0] if self._resting else None

    # --- operations: each returns what to store ---

    def load(self, leases: Mapping[int, Holder], resting: Mapping[int, Holder], now: float) -> None:
        """What the store held at start; the time of what rests begins again. Blocks must be added before."""
        for number, holder in leases.items():
            self._take(number, holder)
        for number, holder in resting.items():
            if number not in self._leases:
                self._rest(number, holder, now)
        self._touched.clear()

    def allocate(
        self,
        holder: Holder,
        now: float,
        count: int = 1,
        within: IPv4Network | None = None,
        refusal: str | None = None,
    ) -> tuple[tuple[int, ...], Change]:
        """``count`` addresses for a holder; asked again, the same. ``refusal``: why new ones must wait (the gate)."""
        self._cool(now)
        mine = [n for n in self.addresses_of(holder) if within is None or IPv4Address(n) in within]
        missing = count - len(mine)
        if missing > 0 and refusal is not None:
            raise NotNowError(refusal)
        fresh: list[int] = []
        for _ in range(missing):
            number = self._next_free(within)
            if number is None:
                for taken in reversed(fresh):  # all or nothing, and nothing rests that nobody saw
                    self._give_back(taken)
                raise ExhaustedError(self._why_exhausted(within, now))
            self._take(number, holder)
            fresh.append(number)
        return (*mine, *fresh)[:count], self._change(leased=[(n, holder) for n in fresh])

    def claim(self, holder: Holder, number: int, now: float, refusal: str | None = None) -> Change:
        """This very address. Claiming what one has is no error; what another has, names the other."""
        text = IPv4Address(number)
        if self._leases.get(number) == holder:
            return Change()
        if not self._first <= number <= self._last:
            raise AddressTakenError(f"{text} lies outside the range {self._range}: give one inside")
        reserved = self._reservation(number)
        if reserved is not None:
            raise AddressTakenError(f"{text} is reserved ({reserved}): give another one")
        if number in self._leases:
            raise AddressTakenError(f"{text} belongs to {self._leases[number]}: give another one or detach that first")
        block = self.block_of(number)
        if block not in self._blocks:
            owner = self._owner_of(block) or "no node that is known here"
            raise AddressTakenError(f"{text} lies in a block of {owner}: claim it there or give another one")
        if refusal is not None or not self._blocks[block]:
            raise NotNowError(refusal or f"the block of {text} is not ready yet: try again in a moment")
        until, last = self._resting.get(number, (now, holder))
        if until > now and last != holder:
            raise NotNowError(f"{text} was released by {last} and rests for {until - now:.0f} s more: try again then")
        self._unrest(number)
        self._take(number, holder)
        return self._change(leased=[(number, holder)])

    def release(self, holder: Holder, now: float, number: int | None = None) -> Change:
        """All addresses of a holder or one of them; the unknown is released already. Never touches another's."""
        gone = [n for n in self.addresses_of(holder) if number is None or n == number]
        for each in gone:
            self._drop_lease(each)
            self._rest(each, holder, now)
        return self._change(resting=[(n, holder) for n in gone])

    def handle_timer(self, now: float) -> Change:
        """What has rested long enough is free again."""
        self._cool(now)
        return self._change()

    def reconcile(self, live: Mapping[int, Holder], now: float) -> tuple[Change, tuple[Finding, ...]]:
        """Addresses found on live ports at start: the unknown are entered as used, or reported if they cannot be."""
        entered: list[tuple[int, Holder]] = []
        findings: list[Finding] = []
        for number, holder in sorted(live.items()):
            known = self._leases.get(number)
            if known == holder:
                continue
            problem = self._why_not_ours(number, known)
            if problem is not None:
                findings.append(Finding(number, holder, problem))
                continue
            self._unrest(number)
            self._take(number, holder)
            entered.append((number, holder))
        return self._change(leased=entered), tuple(findings)

    def _why_not_ours(self, number: int, known: Holder | None) -> str | None:
        if known is not None:
            return f"the store gives it to {known}"
        if not self._first <= number <= self._last:
            return f"it lies outside the range {self._range}"
        if self.block_of(number) not in self._blocks:
            return f"its block belongs to {self._owner_of(self.block_of(number)) or 'no node that is known here'}"
        return self._reservation(number)

    # --- inside ---

    def _next_free(self, within: IPv4Network | None) -> int | None:
        while True:
            if within is None:
                number = next(iter(self._free), None)
            else:
                first, last = int(within.network_address), int(within.broadcast_address)
                inner = (n for n in self._free if first <= n <= last and (first == last or n not in (first, last)))
                number = next(inner, None)
            if number is not None or not self._open(within):
                return number

    def _book(self, number: int) -> _Book:
        block = self.block_of(number)
        book = self._books.get(block)
        if book is None:
            book = self._books[block] = _Book()
        self._touched.setdefault(block, book.word)
        return book

    def _take(self, number: int, holder: Holder) -> None:
        self._book(number).leased += 1
        self._free.pop(number, None)
        self._leases[number] = holder
        self._numbers.setdefault(holder, {})[number] = None

    def _drop_lease(self, number: int) -> None:
        self._book(number).leased -= 1
        holder = self._leases.pop(number)
        mine = self._numbers[holder]
        del mine[number]
        if not mine:
            del self._numbers[holder]

    def _give_back(self, number: int) -> None:
        self._drop_lease(number)
        self._free[number] = None
        self._free.move_to_end(number, last=False)

    def _rest(self, number: int, holder: Holder, now: float) -> None:
        self._book(number).resting += 1
        self._free.pop(number, None)
        self._resting[number] = (now + self._cooldown, holder)

    def _unrest(self, number: int) -> None:
        if self._resting.pop(number, None) is not None:
            self._book(number).resting -= 1
            self._cooled[number] = None

    def _cool(self, now: float) -> None:
        while self._resting:
            number, (until, _) = next(iter(self._resting.items()))
            if until > now:
                break
            self._unrest(number)
            block = self.block_of(number)
            if self._blocks.get(block) and block not in self._unopened:
                self._free[number] = None

    def _change(
        self,
        leased: Collection[tuple[int, Holder]] = (),
        resting: Collection[tuple[int, Holder]] = (),
    ) -> Change:
        """What an operation changed, and what an earlier one that failed left untold."""
        words: dict[str, set[Block]] = {"used": set(), "resting": set(), "idle": set()}
        for block, before in self._touched.items():
            after = self.state_of(block)
            if after != before:
                words[after].add(block)
        self._touched.clear()
        cooled = tuple(n for n in self._cooled if n not in self._leases)
        self._cooled.clear()
        return Change(
            tuple(leased),
            tuple(resting),
            cooled,
            frozenset(words["used"]),
            frozenset(words["resting"]),
            frozenset(words["idle"]),
        )

    def _why_exhausted(self, within: IPv4Network | None, now: float) -> str:
        parts = [f"{len(self._leases)} addresses in use"]
        if self._resting:
            soon = max(0.0, (self.get_timer() or now) - now)
            parts.append(f"{len(self._resting)} resting, the next free in {soon:.0f} s")
        waiting = sum(1 for usable in self._blocks.values() if not usable)
        if waiting:
            parts.append(f"{waiting} blocks not ready yet")
        where = f" in {within}" if within else f" of {self._range}"
        return f"no free address{where} on this node: {', '.join(parts)}, {len(self._blocks)} blocks owned"
