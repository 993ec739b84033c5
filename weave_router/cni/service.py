"""Carries out the CNI verbs on this node's attachments: order, refusals, who may undo what, the DEL journal's rules.

Everything may be repeated. One pod is served serially, pods side by side. Touches nothing itself: attachments, the look
at a pod, the journal and the namespace's inode are handed in (cni_driver.py). Built and called by router.py.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from ipaddress import IPv4Interface
from typing import Any, Final, Protocol
from weakref import WeakValueDictionary

from weave_router.cni import verbs
from weave_router.cni.attachments import Attachments, PodSettings, Wish
from weave_router.cni.codes import CniError, Code
from weave_router.cni.verbs import Key, Wired
from weave_router.errors import BadPacket, UserError
from weave_router.host import handover
from weave_router.host.driver import Host
from weave_router.host.handover_driver import Request as Handover
from weave_router.limits import POD_MTU_MIN
from weave_router.store import Attachment

_log = logging.getLogger(__name__)
DONE: Final[dict[str, Any]] = {}
"""A verb without a result."""


class _Owner:
    """One ADD that can be undone."""


class Journal(Protocol):
    """DELs that shims left. ``entries``: (name, bytes), oldest first."""

    def entries(self) -> Iterable[tuple[str, bytes]]: ...
    def remove(self, name: str) -> None: ...


class CniService:
    """``inode_of`` reads a descriptor's inode, ``number_of`` the host number of an address (None: outside);
    ``unready`` says why pods would not get what they need here, ``refusal`` why none is let in any more; empty: not."""

    def __init__(self, settings: PodSettings, attachments: Attachments, host: Host, journal: Journal,
                 inode_of: Callable[[int], int], number_of: Callable[[Any], int | None],
                 unready: Callable[[], str] = str, refusal: Callable[[], str] = str) -> None:
        self._settings = settings
        self._attachments = attachments
        self._host = host
        self._journal = journal
        self._inode_of = inode_of
        self._number_of = number_of
        self._unready = unready
        self._refusal = refusal
        self._locks: WeakValueDictionary[Key, asyncio.Lock] = WeakValueDictionary()
        self._owners: WeakValueDictionary[Key, _Owner] = WeakValueDictionary()
        """Whose ADD a pod is, while that is under way: a request that hangs up undoes its own work only."""

    async def handle(self, request: Handover) -> dict[str, Any]:
        """The answer to a shim, its error included. BadPacket for what no shim sends."""
        if "probe" in request.body:
            return self._probe(request.body["probe"])
        wanted = verbs.request_untrusted(request.body)
        if isinstance(wanted, CniError):
            return verbs.error_reply(wanted)
        _log.debug("request", extra={"verb": wanted.verb, "container": wanted.container, "pod": wanted.pod})
        try:
            return await self._carry_out(wanted, request)
        except UserError as error:
            return verbs.error_reply(CniError(verbs.code_of(error), str(error)), wanted.version)

    def _probe(self, kind: Any) -> dict[str, Any]:
        if kind == "ready" and self._settings.bridge_address is None:
            return {"error": "the node has no overlay address yet"}
        why = kind == "ready" and (self._refusal() or self._unready())
        return {"error": why} if why else DONE

    async def _carry_out(self, wanted: verbs.Request, request: Handover) -> dict[str, Any]:
        match wanted.verb:
            case "ADD":
                return await self._add(wanted, request)
            case "DEL":
                return await self._del(wanted)
            case "CHECK":
                return await self._check(wanted, request)
            case "GC":
                return await self._collect(wanted)

    def _lock(self, key: Key) -> asyncio.Lock:
        return self._locks.setdefault(key, asyncio.Lock())

    # -- ADD -------------------------------------------------------------------------------------------------------

    async def _add(self, wanted: verbs.Request, request: Handover) -> dict[str, Any]:
        inode = self._inode(request)
        if self._settings.bridge_address is None:
            raise CniError(Code.TRY_LATER, "this node has no overlay address yet: see `weave-router status ipam`")
        if self._refusal() and self._attachments.get(*wanted.key) is None:
            raise CniError(Code.TRY_LATER, self._refusal())
        addresses = verbs.wanted_addresses(wanted, self._settings.universe_v4, self._number_of)
        self._check_wishes(wanted)
        await self._settle(wanted)
        lock = self._lock(wanted.key)
        async with lock:
            await self._make_room(wanted, inode, addresses, request)
            wish = Wish(wanted.container, wanted.ifname, addresses[0] if addresses else None, inode, request.netlink,
                        request.netns, wanted.network, wanted.mac, wanted.mtu, wanted.routes, addresses[1:],
                        pod=wanted.pod)
            known = self._attachments.get(*wanted.key) is not None
            held = await self._attachments.attach(wish)
            self._own(wanted.key, request, known)
            return verbs.result(wanted, await self._wired(held, wanted, request, known))

    def _inode(self, request: Handover) -> int:
        if request.netns < 0:
            raise CniError(Code.BAD_ENVIRONMENT, "CNI_NETNS: no namespace came with the request")
        return self._inode_of(request.netns)

    def _check_wishes(self, wanted: verbs.Request) -> None:
        """What this node cannot give, before anything is done."""
        settings = self._settings
        if wanted.mtu and not POD_MTU_MIN <= wanted.mtu <= settings.mtu:
            raise CniError(Code.BAD_CONFIG, f"\"mtu\" {wanted.mtu} should be from {POD_MTU_MIN} to {settings.mtu}, the "
                                            "router's (`weave-router launch --mtu`)")
        for route in wanted.routes:
            if route.to.version == 6 and settings.universe_v6 is None:
                raise CniError(Code.BAD_CONFIG, f"no route to {route.to}: pods of this node have no IPv6 (--ipv6)")
            if route.gateway is not None and self._number_of(route.gateway) is None:
                raise CniError(Code.BAD_CONFIG, f"\"gw\" {route.gateway} of the route to {route.to} is not inside the "
                                                f"range {settings.universe_v4} (or its IPv6 twin): no pod reaches it")

    async def _make_room(self, wanted: verbs.Request, inode: int, addresses: tuple[IPv4Interface, ...],
                         request: Handover) -> None:
        """A pod that stands as asked for stays; its remains (half wired, or of a namespace that is gone) go."""
        held = self._attachments.get(*wanted.key)
        if held is None:
            return
        if held.network != wanted.network:
            by = f"network {held.network}" if held.network else "`weave-router attach`"
            raise CniError(Code.BAD_ENVIRONMENT, f"CNI_IFNAME {wanted.ifname} of this container was made by {by}")
        numbers = tuple(int(address.ip) for address in addresses)
        same = held.netns_inode == inode and numbers in ((), held.numbers)
        same = same and wanted.mac in ("", held.mac.hex(":"))
        if same and not (await self._seen(held, wanted, request)).problems:
            return
        await self._attachments.detach(*wanted.key)

    def _own(self, key: Key, request: Handover, known: bool) -> None:
        """A repeated ADD is undone by nobody: the DEL that follows a failed ADD takes it away."""
        owner = self._owners[key] = _Owner()
        if not known:
            request.undo = lambda: self._undo(key, owner)

    async def _undo(self, key: Key, owner: _Owner) -> None:
        lock = self._lock(key)
        async with lock:
            if self._owners.get(key) is owner:
                del self._owners[key]
                await self._attachments.detach(*key)

    async def _seen(self, held: Attachment, wanted: verbs.Request, request: Handover) -> Any:
        return await self._host.look(self._attachments.plan(held, wanted.mtu, wanted.routes), request.netlink)

    async def _wired(self, held: Attachment, wanted: verbs.Request, request: Handover, known: bool) -> Wired:
        """A pod that was wired this moment stands as it was; another is looked at."""
        wired = None if known else self._attachments.wired(held.container, held.ifname)
        plan, seen = wired or (self._attachments.plan(held, wanted.mtu, wanted.routes),
                               await self._seen(held, wanted, request))  # fmt: skip
        assert plan.gateway_ipv4 is not None
        return Wired(
            plan.bridge, seen.bridge_mac, plan.port, seen.port_mac, plan.mac, plan.mtu, plan.ipv4, plan.ipv6,
            plan.gateway_ipv4, seen.default_v4, str(plan.gateway_ipv6) if seen.default_v6 else "",
            plan.routes, self._settings.ipv6_first, plan.more,
        )  # fmt: skip

    # -- DEL -------------------------------------------------------------------------------------------------------

    async def _del(self, wanted: verbs.Request) -> dict[str, Any]:
        """Another network's pod of the same name is not ours to take."""
        lock = self._lock(wanted.key)
        async with lock:
            held = self._attachments.get(*wanted.key)
            if held is None or held.network == wanted.network:
                await self._attachments.detach(*wanted.key)
                self._owners.pop(wanted.key, None)
        return DONE

    # -- CHECK -----------------------------------------------------------------------------------------------------

    async def _check(self, wanted: verbs.Request, request: Handover) -> dict[str, Any]:
        inode = self._inode(request)
        lock = self._lock(wanted.key)
        async with lock:
            held = self._attachments.get(*wanted.key)
            if held is None or held.network != wanted.network:
                raise CniError(Code.UNKNOWN_CONTAINER, f"{wanted.container} {wanted.ifname} is not attached here")
            problems = list((await self._seen(held, wanted, request)).problems)
            addresses = [str(one) for one in self._attachments.plan(held).addresses if one.version == 4]
        if held.netns_inode != inode:
            problems.insert(0, "CNI_NETNS is another namespace than at the ADD")
        if wanted.previous is not None:
            listed = verbs.addresses_of(wanted.previous)
            problems += [f"prevResult lacks {address}" for address in addresses if address not in listed]
        if problems:
            raise CniError(Code.NOT_AS_MADE, "; ".join(problems))
        return DONE

    # -- GC --------------------------------------------------------------------------------------------------------

    async def _collect(self, wanted: verbs.Request) -> dict[str, Any]:
        """Made under this network's name, not listed, and its port is gone: the kernel took it with the namespace. Who
        came again meanwhile has a port. Attachments of another boot were released at the start."""
        await self.drain()
        ours = [held for held in self._attachments.all() if held.network == wanted.network]
        gone = await self._host.gone([held.host_ifname for held in ours])
        for held in ours:
            key = (held.container, held.ifname)
            if key in wanted.valid or held.host_ifname not in gone:
                continue
            lock = self._lock(key)
            async with lock:
                if self._attachments.get(*key) == held and await self._host.gone([held.host_ifname]):
                    _log.info("collected", extra={"container": held.container, "ifname": held.ifname})
                    await self._attachments.detach(*key)
        return DONE

    # -- the journal -----------------------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Carry out the DELs that shims left; what this machine refuses stays for the next time."""
        for name, data in self._journal.entries():
            await self._settle_one(name, _journalled_untrusted(data))

    async def _settle(self, wanted: verbs.Request) -> None:
        """An ADD waits for the DELs that are pending for its pod or its namespace."""
        for name, data in self._journal.entries():
            entry = _journalled_untrusted(data)
            if entry is None or (entry.key != wanted.key and entry.inode != wanted.inode):
                continue
            if not await self._settle_one(name, entry):
                raise CniError(Code.TRY_LATER, f"an earlier DEL of {entry.container} {entry.ifname} is not done yet")

    async def _settle_one(self, name: str, entry: verbs.Request | None) -> bool:
        try:
            if entry is None:
                _log.warning("journal entry cannot be used", extra={"entry": name})
            elif not self._is_stale(entry):
                await self._del(entry)
        except UserError as error:
            _log.warning("journalled DEL failed", extra={"entry": name, "error": str(error)})
            return False
        self._journal.remove(name)
        return True

    def _is_stale(self, entry: verbs.Request) -> bool:
        """It means a pod that was; the one of the same name that is here now came later."""
        held = self._attachments.get(*entry.key)
        if held is None:
            return False
        return entry.boot_id != held.boot_id or (entry.inode != 0 and entry.inode != held.netns_inode)


def _journalled_untrusted(data: bytes) -> verbs.Request | None:
    try:
        entry = verbs.request_untrusted(handover.body_untrusted(data))
    except BadPacket:
        return None
    return None if isinstance(entry, CniError) or entry.verb != "DEL" else entry
