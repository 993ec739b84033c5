"""From table deltas to the fast path's tables: slots for nodes, routes for prefixes, groups, flags.

Pure, and proportional to the delta: nothing here ever walks the whole table. Knows no engine, only the values that
router.py hands to one. Called by router.py (and by the API for ``conflicts``, ``outside``, ``owner_of``).

An address that two nodes announce goes to the smaller node id; as the rule reads nothing but the table, every node
with the same table gives it to the same one, whatever order the records came in.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from weave_router import limits
from weave_router.mesh.record import FLAG_FLOOD, Prefix, Record
from weave_router.mesh.table import Delta

SLOT_NONE: Final = 0
SLOT_LOCAL: Final = 1
SLOT_FIRST: Final = 2

Key = tuple[int, int]
"""(host number, prefix length)"""


@dataclass(frozen=True, slots=True)
class NodeSet:
    """``answer``: ARP and ND for this node's numbers are answered here."""

    slot: int
    node_id: bytes
    answer: bool
    flood: bool
    pod_mtu: int


@dataclass(frozen=True, slots=True)
class NodeDel:
    slot: int
    node_id: bytes


@dataclass(frozen=True, slots=True)
class RouteSet:
    number: int
    prefix_len: int
    slot: int
    mac: bytes = b""


@dataclass(frozen=True, slots=True)
class RouteDel:
    number: int
    prefix_len: int


@dataclass(frozen=True, slots=True)
class GroupsSet:
    slot: int
    macs: tuple[bytes, ...]


Operation = NodeSet | NodeDel | RouteSet | RouteDel | GroupsSet


@dataclass(frozen=True, slots=True)
class Conflict:
    """One address, several nodes: ``holder`` has it in every table, ``others`` announce it in vain."""

    number: int
    prefix_len: int
    holder: bytes
    others: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class MacConflict:
    """One MAC that does not follow from an address, asked for on several nodes while they were parted: ``holder`` keeps
    it, the pods of ``others`` should give it up. ``numbers``: of all of them."""

    mac: bytes
    holder: bytes
    others: tuple[bytes, ...]
    numbers: tuple[int, ...]


class Slots:
    """Numbers of the fast path's node table. A freed one rests as long as others are there: late events that name it
    then find nobody rather than somebody else."""

    def __init__(self, own_id: bytes, limit: int = limits.NODES_MAX) -> None:
        self._limit = limit
        self._next = SLOT_FIRST
        self._free: deque[int] = deque()
        self._by_node: dict[bytes, int] = {own_id: SLOT_LOCAL}
        self._by_slot: dict[int, bytes] = {SLOT_LOCAL: own_id}

    def take(self, node_id: bytes) -> int:
        """The table is bounded so that this cannot run out (limits.RECORDS_MAX)."""
        if self._next < self._limit:
            slot, self._next = self._next, self._next + 1
        else:
            slot = self._free.popleft()
        self._by_node[node_id] = slot
        self._by_slot[slot] = node_id
        return slot

    def give_back(self, node_id: bytes) -> int:
        slot = self._by_node.pop(node_id)
        del self._by_slot[slot]
        self._free.append(slot)
        return slot

    def of(self, node_id: bytes) -> int:
        return self._by_node.get(node_id, SLOT_NONE)

    def node(self, slot: int) -> bytes | None:
        return self._by_slot.get(slot)


class Routes:
    """``universe``: (number, prefix length) of the IPv4 range; prefixes outside it are reported, not installed."""

    def __init__(self, own_id: bytes, universe: Key = (0, 0)) -> None:
        self._own_id = own_id
        self._universe = universe
        self.slots = Slots(own_id)
        self._claims: dict[Key, dict[bytes, bytes]] = {}
        self._contested: set[Key] = set()
        self._of_mac: dict[bytes, set[tuple[bytes, Key]]] = {}
        self._contested_macs: set[bytes] = set()
        self.mac_conflicts_seen = 0
        self._installed: dict[Key, tuple[int, bytes]] = {}
        self._outside: dict[bytes, tuple[Key, ...]] = {}
        self._unanswered: set[bytes] = set()
        self._records: dict[bytes, Record] = {}
        self._blocks: dict[Key, bytes] = {}
        self._blocks_of: dict[bytes, set[Key]] = {}
        self._block_len = 33

    # -- deltas -----------------------------------------------------------------------------------------------------
    def apply(self, delta: Delta) -> list[Operation]:
        if delta.new is None:
            return self._removed(delta.node_id)
        return self._put(delta.node_id, delta.new.record)

    def _put(self, node_id: bytes, new: Record) -> list[Operation]:
        old = self._records.get(node_id)
        self._records[node_id] = new
        if old is None and node_id != self._own_id:
            self.slots.take(node_id)
        operations = self._node_changes(node_id, old, new)
        if old is None:
            operations += [op for key in sorted(self._blocks_of.get(node_id, ())) for op in self._install(key)]
        operations += self._prefix_changes(node_id, old.prefixes if old else (), new.prefixes)
        if (old.groups if old else ()) != new.groups:
            operations.append(GroupsSet(self.slots.of(node_id), new.groups))
        return operations

    def _removed(self, node_id: bytes) -> list[Operation]:
        old = self._records.pop(node_id, None)
        if old is None:
            return []
        operations = self._prefix_changes(node_id, old.prefixes, ())
        operations += [op for key in sorted(self._blocks_of.get(node_id, ())) for op in self._install(key)]
        self._unanswered.discard(node_id)
        if node_id != self._own_id:
            operations.append(NodeDel(self.slots.give_back(node_id), node_id))
        return operations

    def answer(self, node_id: bytes, wanted: bool) -> list[Operation]:
        """Whether ARP and ND for this node's numbers are answered here (not while it is gone for good)."""
        record = self._records.get(node_id)
        if record is None or (node_id not in self._unanswered) == wanted:
            return []
        (self._unanswered.discard if wanted else self._unanswered.add)(node_id)
        return [self._node_set(node_id, record)]

    def _node_changes(self, node_id: bytes, old: Record | None, new: Record) -> list[Operation]:
        same = old is not None and old.pod_mtu == new.pod_mtu and not (old.flags ^ new.flags) & FLAG_FLOOD
        return [] if same or node_id == self._own_id else [self._node_set(node_id, new)]

    def _node_set(self, node_id: bytes, record: Record) -> NodeSet:
        return NodeSet(self.slots.of(node_id), node_id, answer=node_id not in self._unanswered,
                       flood=bool(record.flags & FLAG_FLOOD), pod_mtu=record.pod_mtu)

    def _prefix_changes(self, node_id: bytes, old: Iterable[Prefix], new: Iterable[Prefix]) -> list[Operation]:
        before, after = self._inside(old), self._inside(new)
        outside = tuple((prefix.number, prefix.prefix_len) for prefix in new if not self._contains(prefix))
        self._outside.pop(node_id, None)
        if outside:
            self._outside[node_id] = outside
        operations: list[Operation] = []
        for key in sorted(before.keys() | after.keys()):
            if before.get(key) != after.get(key):
                operations += self._claim(key, node_id, after.get(key))
        return operations

    def _inside(self, prefixes: Iterable[Prefix]) -> dict[Key, bytes]:
        return {(prefix.number, prefix.prefix_len): prefix.mac for prefix in prefixes if self._contains(prefix)}

    def _contains(self, prefix: Prefix) -> bool:
        number, prefix_len = self._universe
        return prefix.prefix_len >= prefix_len and (prefix.number ^ number) >> (32 - prefix_len) == 0

    def _claim(self, key: Key, node_id: bytes, mac: bytes | None) -> list[Operation]:
        """One node begins (``mac``), changes or ends (None) its claim on one prefix."""
        claims = self._claims.setdefault(key, {})
        self._claim_mac((node_id, key), claims.get(node_id, b""), mac or b"")
        if mac is None:
            claims.pop(node_id, None)
        else:
            claims[node_id] = mac
        (self._contested.add if len(claims) > 1 else self._contested.discard)(key)
        if not claims:
            del self._claims[key]
        return self._install(key)

    def _claim_mac(self, claim: tuple[bytes, Key], before: bytes, after: bytes) -> None:
        for mac in {before, after} - {b""}:
            users = self._of_mac.setdefault(mac, set())
            (users.add if mac == after else users.discard)(claim)
            if not users:
                del self._of_mac[mac]
            if len({node for node, _ in users}) < 2:
                self._contested_macs.discard(mac)
            elif mac not in self._contested_macs:
                self._contested_macs.add(mac)
                self.mac_conflicts_seen += 1

    def _install(self, key: Key) -> list[Operation]:
        entry = self._entry(key)
        if self._installed.get(key) == entry:
            return []
        if entry is None:
            del self._installed[key]
            return [RouteDel(*key)]
        self._installed[key] = entry
        return [RouteSet(*key, *entry)]

    def _entry(self, key: Key) -> tuple[int, bytes] | None:
        """Slot and MAC. A register goes before any record's claim on the block or on something inside it."""
        if key in self._blocks:
            owner = self._blocks[key]
            present = owner == self._own_id or owner in self._records
            return (self.slots.of(owner), b"") if present else None
        claims = self._allowed(key)
        if not claims:
            return None
        holder = min(claims)
        return self.slots.of(holder), claims[holder]

    def _allowed(self, key: Key) -> Mapping[bytes, bytes]:
        claims = self._claims.get(key, {})
        owner = self._covering(key)
        return claims if owner is None else {node: mac for node, mac in claims.items() if node == owner}

    def _covering(self, key: Key) -> bytes | None:
        """The owner of the block that a prefix lies in."""
        number, prefix_len = key
        if prefix_len < self._block_len:
            return None
        return self._blocks.get((number >> (32 - self._block_len) << (32 - self._block_len), self._block_len))

    def set_blocks(self, owners: Mapping[Key, bytes]) -> list[Operation]:
        """Blocks that changed hands, all of one length; the owner's record may come later."""
        operations: list[Operation] = []
        for key, owner in owners.items():
            self._block_len = key[1]
            before = self._blocks.get(key)
            if before is not None:
                self._blocks_of[before].discard(key)
            self._blocks[key] = owner
            self._blocks_of.setdefault(owner, set()).add(key)
            operations += self._install(key)
        mask = self._block_len
        for number, prefix_len in [key for key in self._claims if key[1] > mask]:
            if mask < 33 and (number >> (32 - mask) << (32 - mask), mask) in owners:
                operations += self._install((number, prefix_len))
        return operations

    # -- questions --------------------------------------------------------------------------------------------------
    def refused(self) -> list[tuple[Key, bytes, bytes]]:
        """(prefix, owner of its block, another node that announces it in vain)."""
        found = ((key, self._covering(key), node) for key in sorted(self._claims) for node in sorted(self._claims[key]))
        return [(key, owner, node) for key, owner, node in found if owner is not None and owner != node]

    def conflicts(self) -> list[Conflict]:
        result = []
        for key in sorted(self._contested):
            holder, *others = sorted(self._claims[key])
            result.append(Conflict(*key, holder, tuple(others)))
        return result

    def mac_conflicts(self) -> list[MacConflict]:
        """As for addresses, the smaller node id goes first, on every node with the same table."""
        result = []
        for mac in sorted(self._contested_macs):
            holder, *others = sorted({node for node, _ in self._of_mac[mac]})
            numbers = sorted({number for _, (number, _) in self._of_mac[mac]})
            result.append(MacConflict(mac, holder, tuple(others), tuple(numbers)))
        return result

    def outside(self) -> dict[bytes, tuple[Key, ...]]:
        """Prefixes that lie outside our range, by node: that node was started with another one."""
        return dict(self._outside)

    def owner_of(self, number: int) -> bytes | None:
        """The node whose longest prefix holds this number: whom to name when an address is taken."""
        for prefix_len in range(32, -1, -1):
            claims = self._claims.get((number & ~(0xFFFFFFFF >> prefix_len) & 0xFFFFFFFF, prefix_len))
            if claims:
                return min(claims)
        return None

    def announcer_of(self, mac: bytes) -> bytes | None:
        """Another node that announces an address with this MAC, which does not follow from it."""
        users = self._of_mac.get(mac, ())
        return min((node for node, _ in users if node != self._own_id), default=None)
