"""Which pods hang on this node's bridge, and how one comes and goes: store first, then the kernel, then the mesh.

One attachment at a time per pod, pods side by side. Whatever fails is undone in reverse, and repeating a request that
was carried out changes nothing. Knows no HTTP and no CNI words; router.py builds it, the handlers of attach.sock and of
the API call it. The kernel's side is host/, this file decides order and refusals.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Network
from typing import NoReturn, Protocol
from weakref import WeakValueDictionary

from weave_router.cni.addresses import Addresses, ByHand, MacTakenError
from weave_router.errors import UserError
from weave_router.host.bridge import BridgePlan
from weave_router.host.driver import Host
from weave_router.host.pod import Attached, PodPlan, PodRoute, pod_plan
from weave_router.ipam.allocator import Holder
from weave_router.ipam.number import DERIVED_MAC_PREFIX, mac_of, mac_text
from weave_router.store import AddressInUseError, Attachment

_log = logging.getLogger(__name__)


class Records(Protocol):
    """The part of ``Store`` that attachments need; called in the writer thread only."""

    def attachments(self) -> tuple[Attachment, ...]: ...
    def attachment_put(self, attachment: Attachment) -> None: ...
    def attachment_delete(self, container: str, ifname: str) -> None: ...


@dataclass(frozen=True)
class PodSettings:
    """What all pods of this node share."""

    universe_v4: IPv4Network
    universe_v6: IPv6Network | None
    bridge: BridgePlan
    bridge_address: IPv4Address | None
    mtu: int
    boot_id: str
    default_ipv6: bool = False
    refuse: frozenset[str] = frozenset()
    subnet_len: int = 0
    """Prefix length of an address that was not named; 0: the range's."""
    hairpin: Callable[[], bool] = bool
    ipv6_first: bool = False
    """Whether pod ports give frames back at this moment."""


@dataclass(frozen=True)
class Wish:
    """One pod to attach. ``container``: unique on this node; the namespace's device and inode where nobody names it.
    ``address`` None: any; ``more``: further ones."""

    container: str
    ifname: str
    address: IPv4Interface | None
    netns_inode: int
    netlink: int
    netns: int
    network: str = ""
    """Name of the CNI network; empty: by `attach`."""
    mac: str = ""
    mtu: int = 0
    routes: tuple[PodRoute, ...] = ()
    more: tuple[IPv4Interface, ...] = ()
    """Empty and 0: as it follows from the address, as all pods of the node, and only the default one."""
    pod: str = ""


@dataclass(frozen=True)
class Rival:
    """Another node that announces a MAC which this one announces, too; ``goes_first``: where both were given it."""

    name: str
    goes_first: bool


class Attachments:
    """``announce``: tells others what changed of these numbers; raises ValueError when a record is full.
    ``owner_of`` and ``owner_of_mac``: name of another node that announces a number, or a MAC that does not follow from
    its number; None where nobody does. ``until_sent``: waits a little until other nodes were told of such a one.
    ``keeper``: waits a little for another node that was given the same MAC at the same time; the name of that one if
    the MAC stays with it. ``addresses`` None: by hand."""

    def __init__(self, settings: PodSettings, *, host: Host, store: Records,
                 in_writer: Callable[[Callable[[], object]], Awaitable[object]],
                 announce: Callable[[Iterable[int]], None], owner_of: Callable[[int], str | None],
                 owner_of_mac: Callable[[bytes], str | None],
                 until_sent: Callable[[int, bytes], Awaitable[None]],
                 keeper: Callable[[bytes], Awaitable[str | None]], addresses: Addresses | None = None) -> None:
        self._settings = settings
        self._host = host
        self._store = store
        self._addresses: Addresses = addresses or ByHand(in_writer)
        self._announce = announce
        self._owner_of = owner_of
        self._owner_of_mac = owner_of_mac
        self._until_sent = until_sent
        self._keeper = keeper
        self._exceptions: dict[tuple[str, str], dict[int, bytes]] = {}
        self._held: dict[tuple[str, str], Attachment] = {}
        self._wired: dict[tuple[str, str], tuple[PodPlan, Attached]] = {}
        """By this router."""
        self._numbers: dict[tuple[str, str], tuple[int, ...]] = {}
        self._users: dict[int, tuple[str, str]] = {}
        """Whose a number is, from before it is wired: two pods of one MAC would share an entry of the bridge."""
        self._left: set[tuple[str, str]] = set()
        """Pods that are gone, and whose records the disk would not let go."""
        self._busy: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    # -- start -----------------------------------------------------------------------------------------------------

    def standing_plans(self) -> list[PodPlan]:
        """Plans of all attachments on record that this boot made; the kernel says which of them stand."""
        return [self._plan_of(a) for a in self._store.attachments() if a.boot_id == self._settings.boot_id]

    async def restore(self, standing: Iterable[PodPlan]) -> None:
        """Take over pods that stand, forget the others: their namespaces ended with the boot or while we were away."""
        ports = {(plan.attachment, plan.ifname): plan.port for plan in standing}
        gone: list[tuple[str, str]] = []
        for attachment in self._store.attachments():
            key = (attachment.container, attachment.ifname)
            if key in ports:
                self._held[key] = _on_port(attachment, ports[key])
                self._take(key, attachment)
            else:
                gone.append(key)
        await asyncio.gather(*(self._forget(key) for key in gone))  # side by side: they share commits

    # -- what there is ---------------------------------------------------------------------------------------------

    @property
    def mended(self) -> list[str]:
        """What was found changed at the bridge and put back, the latest last."""
        return self._host.mended

    def all(self) -> list[Attachment]:
        return [self._held[key] for key in sorted(self._held)]

    def numbers(self) -> list[int]:
        return sorted(number for attachment in self._held.values() for number in attachment.numbers)

    def exceptions(self) -> dict[int, bytes]:
        """Numbers whose MAC does not follow from them, and it: other nodes must be told."""
        return {number: mac for of_pod in self._exceptions.values() for number, mac in of_pod.items()}

    def get(self, container: str, ifname: str) -> Attachment | None:
        return self._held.get((container, ifname))

    def wired(self, container: str, ifname: str) -> tuple[PodPlan, Attached] | None:
        """What was carried out, and what the kernel said of it then; None for one that was taken over."""
        return self._wired.get((container, ifname))

    def plan(self, attachment: Attachment, mtu: int = 0, routes: Iterable[PodRoute] = ()) -> PodPlan:
        """As it was carried out, with the port name it really got; MTU and routes are not on record, who asks knows
        what was asked for."""
        return self._plan_of(attachment, mtu, routes).on(attachment.host_ifname)

    # -- attach ----------------------------------------------------------------------------------------------------

    async def attach(self, wish: Wish) -> Attachment:
        """Wire a pod. UserError with the way out; then nothing of it stays."""
        key = (wish.container, wish.ifname)
        lock = self._busy.setdefault(key, asyncio.Lock())
        async with lock:
            held = self._held.get(key)
            if held is not None:
                return self._same_again(held, wish)
            for address in (wish.address, *wish.more):
                if address is not None:
                    self._refuse_taken(address.ip)
            return await self._wire(key, wish)

    def _same_again(self, held: Attachment, wish: Wish) -> Attachment:
        wanted = wish.address
        numbers = tuple(int(one.ip) for one in (wanted, *wish.more) if one is not None)
        if wanted is None or (held.numbers == numbers and held.prefix_len == wanted.network.prefixlen):
            return held
        raise UserError(
            f"{wish.ifname} of this pod is attached with {IPv4Address(held.numbers[0])}/{held.prefix_len} already: "
            f"detach it first"
        )

    def _refuse_taken(self, address: IPv4Address) -> None:
        if address == self._settings.bridge_address:
            raise UserError(f"{address} is the address of this node's bridge: choose another one")
        network = self._settings.universe_v4
        if address in (network.network_address, network.broadcast_address):
            raise UserError(f"{address} is the first or last address of {network}, which are reserved: choose another")
        owner = self._owner_of(int(address))
        if owner is not None:
            raise UserError(f"{address} belongs to node {owner}: choose another one, or detach it there first")

    async def _wire(self, key: tuple[str, str], wish: Wish) -> Attachment:
        wanted = None if wish.address is None else int(wish.address.ip)
        before = self._addresses.held(Holder(*key))  # claimed for the pod: a wiring that fails does not take it away
        length = self._settings.subnet_len or self._settings.universe_v4.prefixlen
        try:
            numbers = [await self._addresses.pick(Holder(*key), wanted)]
            numbers += [await self._addresses.pick(Holder(*key), int(one.ip)) for one in wish.more]
            address = wish.address or IPv4Interface((numbers[0], length))
            for number in numbers:
                self._refuse_used(number, key)
            self._refuse_mac(numbers[0], wish.mac)
            plan = self._plan(wish.container, wish.ifname, address, wish.mac, wish.mtu, wish.routes, numbers[1:])
            attachment = Attachment(wish.container, wish.ifname, tuple(numbers), address.network.prefixlen,
                                    wish.netns_inode, self._settings.boot_id, plan.port, _mac_bytes(plan.mac),
                                    wish.network, wish.pod)
        except BaseException:
            await asyncio.shield(self._addresses.give_back(Holder(*key), but=before))
            raise
        self._take(key, attachment)
        kept = False

        async def keep() -> None:
            nonlocal kept
            await self._addresses.keep(Holder(*key), lambda: self._store.attachment_put(attachment), before)
            self._left.discard(key)  # in the place of one that was left
            kept = True

        try:
            attached = await self._host.attach(plan, self._settings.bridge, wish.netlink, wish.netns, keep())
        except BaseException:
            if kept:
                await asyncio.shield(self._forget(key, before))
            self._drop(key)
            raise
        self._held[key], self._wired[key] = _on_port(attachment, attached.port), (plan.on(attached.port), attached)
        try:
            self._announce(numbers)
        except ValueError:
            await asyncio.shield(self._unwire(key, before))
            raise UserError(
                f"{address.ip} cannot be announced: this node announces as many single addresses as it may; "
                f"detach pods that are no longer needed"
            ) from None
        held = self._held[key]
        for number, mac in self._exceptions.get(key, {}).items():
            await self._until_sent(number, mac)
        if wish.mac and key in self._exceptions:
            keeper = await self._keeper(held.mac)
            if keeper is not None:
                await asyncio.shield(self._unwire(key, before))
                _refuse_taken_mac(numbers[0], wish.mac, f"a pod of node {keeper}")
        return held

    def _take(self, key: tuple[str, str], attachment: Attachment) -> None:
        self._users |= dict.fromkeys(attachment.numbers, key)
        self._numbers[key] = attachment.numbers
        own = {number: attachment.mac for number in attachment.numbers if attachment.mac != mac_of(number)}
        if own:
            self._exceptions[key] = own

    def _drop(self, key: tuple[str, str]) -> None:
        for known in (self._held, self._exceptions, self._wired):
            known.pop(key, None)
        for number in self._numbers.pop(key, ()):
            del self._users[number]

    def _refuse_used(self, number: int, key: tuple[str, str]) -> None:
        user = self._users.get(number, key)
        if user != key:
            raise AddressInUseError(f"address {IPv4Address(number)} is in use by {user[0]} {user[1]}: "
                                    "choose another one or detach that first")

    def _refuse_mac(self, number: int, mac: str) -> None:
        """A MAC that follows from an address is its; and no two pods have one, here or elsewhere."""
        wanted = _mac_bytes(mac)
        owner = "another address" if wanted.startswith(DERIVED_MAC_PREFIX) and wanted != mac_of(number) else ""
        owner = owner or ("another pod" if wanted in self.exceptions().values() else "")
        elsewhere = self._owner_of_mac(wanted) if wanted and not owner else None
        owner = owner or (f"a pod of node {elsewhere}" if elsewhere else "")
        if owner:
            _refuse_taken_mac(number, mac, owner)

    async def _forget(self, key: tuple[str, str], but: tuple[int, ...] = ()) -> None:
        self._drop(key)
        self._left.add(key)
        await self._addresses.give_back(Holder(*key), lambda: self._store.attachment_delete(*key), but)
        self._left.discard(key)

    # -- detach ----------------------------------------------------------------------------------------------------

    async def detach(self, container: str, ifname: str) -> Attachment | None:
        """Off the network and its address released on disk when this returns; None: there was no such pod, and what
        was claimed for it, or found on its port without a record, is released all the same."""
        key = (container, ifname)
        lock = self._busy.setdefault(key, asyncio.Lock())
        async with lock:
            held = self._held.get(key)
            if held is not None:
                await self._unwire(key)
            elif key in self._left:
                await self._forget(key)
            else:
                await self._addresses.give_back(Holder(*key))
            return held

    async def _unwire(self, key: tuple[str, str], but: tuple[int, ...] = ()) -> None:
        held = self._held[key]
        if key in self._wired:
            plan, attached = self._wired[key]
            await self._host.detach(plan.guard, attached.port_index)
        else:
            await self._host.detach(self.plan(held).guard)
        await self._forget(key, but)
        self._announce(held.numbers)

    async def cut_off(self, holders: Iterable[Holder]) -> None:
        """Their addresses became another node's. They stay attached, so that their DEL finds them; not a frame of
        theirs leaves the port."""
        for holder in holders:
            held = self._held.get((holder.container, holder.ifname))
            if held is not None:
                await self._host.cut_off(held.host_ifname)
                _log.error("cut off", extra={"container": holder.container, "port": held.host_ifname})

    # -- plans -----------------------------------------------------------------------------------------------------

    def _plan_of(self, attachment: Attachment, mtu: int = 0, routes: Iterable[PodRoute] = ()) -> PodPlan:
        address = IPv4Interface((attachment.numbers[0], attachment.prefix_len))
        return self._plan(attachment.container, attachment.ifname, address, mac_text(attachment.mac), mtu, routes,
                          attachment.numbers[1:])

    def _plan(self, container: str, ifname: str, address: IPv4Interface, mac: str = "", mtu: int = 0,
              routes: Iterable[PodRoute] = (), more: Iterable[int] = ()) -> PodPlan:
        settings = self._settings
        return pod_plan(
            attachment=container, ifname=ifname, address=address, universe_v4=settings.universe_v4,
            universe_v6=settings.universe_v6, bridge=settings.bridge.name, bridge_address=settings.bridge_address,
            mtu=mtu or settings.mtu, mac=mac, routes=routes, default_ipv6=settings.default_ipv6,
            hairpin=settings.hairpin(), refuse=settings.refuse,
            more=[IPv4Interface((number, address.network.prefixlen)) for number in more],
        )


def _on_port(attachment: Attachment, port: str) -> Attachment:
    return attachment if port == attachment.host_ifname else replace(attachment, host_ifname=port)


def _refuse_taken_mac(number: int, mac: str, owner: str) -> NoReturn:
    raise MacTakenError(f"MAC {mac} belongs to {owner}: ask for another one, or for none "
                        f"({IPv4Address(number)} then has {mac_text(mac_of(number))})")


def _mac_bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))
