"""What people tell a router about addresses: claim, expose, hide, check, ungate; and what is shown of them.

Made by router.py where this node has IPAM. Changes go through ipam/driver.py, the bridge through host/; sentences are
made here. Knows no HTTP.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from ipaddress import IPv4Address, IPv4Interface, IPv6Interface
from typing import Any

from weave_router.api import schema
from weave_router.cni.attachments import Attachments
from weave_router.errors import UserError
from weave_router.host.bridge import BridgePlan
from weave_router.ipam import founding
from weave_router.ipam.allocator import EXPOSED, AddressTakenError, Holder
from weave_router.ipam.driver import IpamDriver
from weave_router.ipam.knowledge import electorate
from weave_router.ipam.number import Universe, parse_address
from weave_router.ipam.registers import owners
from weave_router.ipam.rounds import names
from weave_router.ipam.service import Service
from weave_router.ipam.values import Gate

LivePod = tuple[str, str, IPv4Address]
BridgeWork = Callable[[BridgePlan, list[IPv4Interface | IPv6Interface]], Awaitable[Any]]


class AddressBook:
    """``add``, ``remove``: addresses of the bridge; ``live``: pods on its ports now; ``announce``: the record again."""

    def __init__(self, driver: IpamDriver, universe: Universe, bridge: BridgePlan, attachments: Attachments, *,
                 add: BridgeWork, remove: BridgeWork, live: Callable[[], Awaitable[list[LivePod]]],
                 announce: Callable[[], None], stored: Callable[[], Awaitable[Any]]) -> None:
        self._driver = driver
        self._universe = universe
        self._bridge = bridge
        self._attachments = attachments
        self._add, self._remove, self._live, self._announce = add, remove, live, announce
        self._stored = stored

    @property
    def service(self) -> Service:
        return self._driver.service

    # -- claim -------------------------------------------------------------------------------------------------------

    async def claim(self, request: schema.ClaimRequest) -> schema.AddressesReply:
        number = parse_address(self._universe, request.address.partition("/")[0])
        holder = Holder(request.container_id or f"claim-{IPv4Address(number)}", request.ifname)
        if request.release:
            await self._release(number)
        else:
            before = self._driver.held(holder)
            await self._driver.pick(holder, number)
            await self._driver.keep(holder, but=before)
        return schema.AddressesReply(addresses=(str(IPv4Address(number)),))

    async def _release(self, number: int) -> None:
        holder = self.service.allocator.holder_of(number)
        if holder is None:
            raise UserError(f"{IPv4Address(number)} is not claimed here: see `weave-router status addresses`")
        if not holder.container or holder in self._pods():
            raise AddressTakenError(f"{IPv4Address(number)} is in use by {holder}: detach or hide it instead")
        await self._driver.give_back(holder)

    def _pods(self) -> set[Holder]:
        return {Holder(a.container, a.ifname) for a in self._attachments.all()}

    # -- expose ------------------------------------------------------------------------------------------------------

    def exposed(self) -> tuple[int, ...]:
        return self.service.allocator.addresses_of(EXPOSED)

    async def expose(self, request: schema.ExposeRequest) -> schema.AddressesReply:
        wanted = parse_address(self._universe, request.address.partition("/")[0]) if request.address else None
        if request.hide:
            return _texts(await self._hide(wanted))
        if wanted is None and self.exposed():
            return _texts(self.exposed())
        before = self.exposed()
        number = await self._driver.pick(EXPOSED, wanted)
        await self._driver.keep(EXPOSED, but=before)
        await self.show([number])
        self._announce()
        return _texts(self.exposed())

    async def show(self, numbers: Iterable[int]) -> None:
        """On the bridge; also at start, what was exposed before."""
        found = self._interfaces(numbers)
        if found:
            await self._add(self._bridge, found)

    async def _hide(self, wanted: int | None) -> tuple[int, ...]:
        gone = self.exposed() if wanted is None else (wanted,)
        if wanted is not None and wanted not in self.exposed():
            raise UserError(f"{IPv4Address(wanted)} is not exposed: see `weave-router status addresses`")
        await self._remove(self._bridge, self._interfaces(gone))
        for number in gone:
            self._driver.do(lambda service, now, number=number: service.release(EXPOSED, now, number))  # type: ignore[misc]
        await self._driver.written()
        self._announce()
        return gone

    def _ipv6_of(self, number: int) -> str:
        return str(self._universe.ipv6_of(number)) if self._has_ipv6() else ""

    def _has_ipv6(self) -> bool:
        """A bridge without an address of its own yet says nothing against it (--ipv6 off)."""
        return len(self._bridge.addresses) != 1

    def _interfaces(self, numbers: Iterable[int]) -> list[IPv4Interface | IPv6Interface]:
        length, v6 = self._universe.range_v4.prefixlen, self._universe.ipv6_of
        return [each for n in numbers for each in (IPv4Interface((n, length)), IPv6Interface((v6(n), 96)))
                if each.version == 4 or self._has_ipv6()]

    # -- retire ------------------------------------------------------------------------------------------------------

    async def retire(self, request: schema.RetireRequest, reachable: frozenset[bytes]) -> schema.Retirement:
        """Begin, go on, or give up; what is missing stands in the answer, and in ``retirement`` later."""
        rounds = self.service.rounds
        if self.service.state.arbiter:
            raise UserError("whose a block is says the Kubernetes API here: delete the Node, and its blocks are free "
                            "15 minutes later")
        if request.give_up:
            if not self._driver.do(lambda service, now: rounds.give_up(now)):
                raise UserError("no retirement of this node is open: see `weave-router status ipam`")
        else:
            victims = frozenset(self._member(text) for text in request.peers)
            if not victims:
                raise UserError("name at least one member that is off for ever: see `weave-router status ipam`")
            if alive := victims & reachable - {self.service.me} - self.service.state.retired:
                raise UserError(f"{', '.join(names(alive, self.service))} can be reached: only a machine that is off "
                                "for ever may be retired; stop its router first, and never start it again")
            self._driver.do(lambda service, now: rounds.begin(victims, request.lost_majority, now))
        await self._driver.written()
        return self.retirement()

    def retirement(self) -> schema.Retirement:
        service, now = self.service, self.service.rounds.progress()
        return schema.Retirement(
            state=now.state, coordinator=service.person(service.me) if now.victims else "",
            victims=names(now.victims, service), promised=names(now.promised, service),
            missing=names(now.missing, service), reason=now.reason, blocks=now.blocks,
            addresses=now.blocks * self._block_size())

    def _retirements(self) -> Iterable[schema.Retirement]:
        service = self.service
        if service.state.round is not None:
            yield self.retirement()
        for coordinator, victims in sorted(service.rounds.others().items()):
            yield schema.Retirement(state="promised", coordinator=service.person(coordinator),
                                    victims=names(victims, service))

    def _member(self, text: str) -> bytes:
        """Of a name or the beginning of an id; of several of one name, that which is not retired yet."""
        service, state = self.service, self.service.state
        known = (state.members | state.proposed) - (state.left - state.retired)
        found = {node for node in known if text == service.person(node).partition(" (")[0]
                 or (len(text) >= 4 and node.hex().startswith(text.lower()))}
        found = found - state.retired if len(found) > 1 else found
        if len(found) != 1:
            people = ", ".join(sorted(service.person(node) for node in known - state.retired)[:16])
            raise UserError(f"{text} names {len(found)} members: give name or id of one of {people}")
        return next(iter(found))

    def _block_size(self) -> int:
        return 1 << (32 - founding.block_prefix(self._universe.range_v4))

    # -- check -------------------------------------------------------------------------------------------------------

    async def ungate(self) -> None:
        self._driver.do(lambda service, now: service.ungate(now))
        await self._driver.written()

    async def check(self, request: schema.CheckRequest) -> schema.CheckReply:
        """Kernel, attachments, leases and disk against each other."""
        live = {int(address): Holder(container, ifname) for container, ifname, address in await self._live()}
        findings = [*self._check_live(live), *self._check_pods(live), *await self._check_disk()]
        repaired = await self._repair(live) if request.repair and findings else []
        return schema.CheckReply(findings=tuple(findings), repaired=tuple(repaired))

    def _check_live(self, live: dict[int, Holder]) -> list[str]:
        allocator, found = self.service.allocator, []
        for number, holder in sorted(live.items()):
            known = allocator.holder_of(number)
            if known != holder:
                owner = known or "nobody"
                found.append(f"{IPv4Address(number)} is on the port of {holder}, the store gives it to {owner}")
        return found

    def _check_pods(self, live: dict[int, Holder]) -> list[str]:
        standing = set(live.values())
        return [f"{holder} is on record with an address and has no port"
                for holder in sorted(self._pods()) if holder not in standing]

    async def _check_disk(self) -> list[str]:
        """Memory against the store, row by row."""
        stored, service = await self._stored(), self.service
        leases = {row.number: Holder(row.container, row.ifname) for row in stored.leases if not row.resting}
        held = service.allocator.leases()
        wrong = sorted(n for n in leases.keys() | held.keys() if leases.get(n) != held.get(n))
        found = [f"{IPv4Address(n)}: the disk says {leases.get(n) or 'free'}, the router {held.get(n) or 'free'}"
                 for n in wrong]
        registers = {row.block: tuple(row[1:5]) for row in stored.registers}
        differ = sum(registers.get(block) != tuple(register) for block, register in service.state.registers.items())
        return found + ([f"{differ} blocks differ between disk and router"] if differ else [])

    async def _repair(self, live: dict[int, Holder]) -> list[str]:
        before = self.service.allocator.leases()
        findings = self._driver.do(lambda service, now: service.reconcile(live, now))
        entered = sorted(self.service.allocator.leases().keys() - before.keys())
        done = [f"entered {IPv4Address(n)} as used by {self.service.allocator.holder_of(n)}" for n in entered]
        done += [f"cannot enter {IPv4Address(f.number)} of {f.holder}: {f.problem}" for f in findings]
        standing = set(live.values())
        for holder in sorted(self._pods() - standing):
            await self._attachments.detach(holder.container, holder.ifname)
            done.append(f"detached {holder}")
        await self._driver.rewrite()
        return done

    # -- what is shown -----------------------------------------------------------------------------------------------

    def addresses(self) -> tuple[schema.Address, ...]:
        allocator, pods = self.service.allocator, self._pods()
        found = [self._address(n, h, "used" if h in pods or not h.container else "claimed")
                 for n, h in sorted(allocator.leases().items())]
        return (*found, *(self._address(n, h, "resting") for n, h in sorted(allocator.resting().items())))

    def _address(self, number: int, holder: Holder, state: str) -> schema.Address:
        return schema.Address(address=str(IPv4Address(number)), state=state, holder=str(holder),
                              ipv6=self._ipv6_of(number), container_id=holder.container,
                              ifname=holder.ifname if holder.container else "")

    def fields(self, reachable: frozenset[bytes], name_of: Callable[[bytes], str]) -> dict[str, Any]:
        """This node's IPAM for the status page."""
        service, state = self.service, self.service.state
        reason = service.refusal() or self._driver.trouble
        allocator = service.allocator
        return {
            "status": "waiting" if reason else "ready", "reason": reason, "gate": state.gate.name.lower(),
            "universe": (state.universe or b"").hex(), "used": len(allocator.leases()),
            "resting": len(allocator.resting()), "free": allocator.free_count(),
            "cold_start": self._cold_start(reachable), "members": tuple(self._members(reachable)),
            "other_universes": tuple(
                schema.OtherUniverse(peer=node.hex(), nickname=name_of(node), universe=other.universe.hex(),
                                     range=str(other.network))
                for node, other in sorted(service.strangers.items())),
            "retirements": tuple(self._retirements()),
        }  # fmt: skip

    def _members(self, reachable: frozenset[bytes]) -> Iterable[schema.Member]:
        state, size = self.service.state, self._block_size()
        blocks = owners(state.registers)
        slots = self.service.slots()
        for node in sorted(state.members | state.proposed | blocks.keys()):
            count = len(blocks.get(node, ()))
            if node in state.left and not count:
                continue
            standing = ("retired" if node in state.retired else "retiring" if node in state.promised
                        else "slot" if node in slots
                        else "left" if node in state.left else "member" if node in state.members else "proposed")
            yield schema.Member(
                peer=node.hex(), nickname=self.service.person(node), standing=standing, blocks=count,
                addresses=count * size, reachable=node in reachable or node == state.me,
                incarnation=state.incarnations.get(node, 0))

    def _cold_start(self, reachable: frozenset[bytes]) -> str:
        members = electorate(self.service.state)
        needed = len(members) // 2 + 1
        if len(members) == 1:
            return "a cold start needs nobody else"
        there = len(members & (reachable | {self.service.me}))
        short = f", {there} are reachable" + (": one more loss would lock it" if there == needed else "")
        return f"a cold start needs {needed} of {len(members)} members{short}"

    def warnings(self) -> list[str]:
        service = self.service
        found = [*service.conflicts(), *service.evicted]
        if service.state.gate not in (Gate.OPEN, Gate.OWN):
            found.append(service.refusal() or "")
        found += [f"node {service.person(node)} is in another universe of addresses ({other.network}): traffic goes "
                  "on, addresses are not shared" for node, other in service.strangers.items()]
        return [*(sentence for sentence in found if sentence), *self._of_retirements()]

    def _of_retirements(self) -> Iterable[str]:
        """What is pending, and what was left half done."""
        for each in self._retirements():
            who = ", ".join(each.victims)
            yield (f"the retirement of {who} waits for the promise of {', '.join(each.missing)}" if each.missing
                   else f"{each.coordinator} is retiring {who}: this node has promised")
        if left := names(self.service.rounds.unfinished(), self.service):
            yield (f"a retirement of {', '.join(left)} was given up: what they say about addresses is not followed any "
                   f"more; complete it by `weave-router rmpeer {' '.join(left)}` when they are off for ever")


def _texts(numbers: Iterable[int]) -> schema.AddressesReply:
    return schema.AddressesReply(addresses=tuple(str(IPv4Address(number)) for number in numbers))
