"""Every error code with its message, and every result, in every version: the service on a host of dictionaries.

No kernel: what each verb does to one is in test_router.py. The executable's own codes (5, 50) are asked of itself.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

import pytest
from cni import spec
from cni.shim import VERSIONS, Shim, installed

from weave_router import limits
from weave_router.cni import cni_driver
from weave_router.cni.addresses import Addresses, ByHand
from weave_router.cni.attachments import Attachments, PodSettings, Rival
from weave_router.cni.codes import Code
from weave_router.cni.service import CniService
from weave_router.errors import UserError
from weave_router.host.bridge import BridgePlan
from weave_router.host.faults import Fault, HostError
from weave_router.host.handover_driver import Request
from weave_router.host.look_driver import Seen
from weave_router.host.pod import Attached, PodPlan
from weave_router.ipam.allocator import ExhaustedError, Holder, NotNowError
from weave_router.store import Attachment

UNIVERSE, TWIN = IPv4Network("10.32.0.0/12"), IPv6Network("fd00:1::/96")
INODE = 4026531000
MAC_ELSEWHERE, MAC_CROSSED = bytes.fromhex("020000000099"), bytes.fromhex("020000000098")


class World:
    """A node's store, host and neighbours."""

    def __init__(self, *, bridge: str = "10.32.0.1", addresses: Addresses | None = None) -> None:
        self.rows: dict[tuple[str, str], Attachment] = {}
        self.wired: dict[str, PodPlan] = {}
        self.problems: tuple[str, ...] = ()
        self.fault: UserError | None = None
        self.full = False
        """The disk, for deletions."""
        self.after_look: Callable[[], None] = lambda: None
        self.waited_for: list[tuple[int, bytes]] = []
        address = IPv4Address(bridge) if bridge else None
        settings = PodSettings(UNIVERSE, TWIN, BridgePlan("weave", "weave-tap", 1368, None, ()), address, 1368, "boot",
                               default_ipv6=True)
        self.attachments = Attachments(
            settings, host=self, store=self, in_writer=self.in_writer, announce=lambda numbers: None,
            owner_of={int(IPv4Address("10.32.9.9")): "other"}.get, owner_of_mac={MAC_ELSEWHERE: "other"}.get,
            until_sent=self.until_sent, keeper=self.keeper, addresses=addresses)
        self.service = CniService(settings, self.attachments, self, self, lambda fd: fd, self.number_of)

    async def in_writer(self, work: Callable[[], object]) -> object:
        return work()

    async def until_sent(self, number: int, mac: bytes) -> None:
        self.waited_for.append((number, mac))

    async def keeper(self, mac: bytes) -> str | None:
        """Of a MAC that the other node was given in this very moment."""
        return "other" if mac == MAC_CROSSED else None

    def number_of(self, address: Any) -> int | None:
        return int(address) & 0xFFFFFFFF if address in UNIVERSE or address in TWIN else None

    # the store
    def attachment_put(self, attachment: Attachment) -> None:
        self.rows[attachment.container, attachment.ifname] = attachment

    def attachment_delete(self, container: str, ifname: str) -> None:
        if self.full:
            raise UserError("the disk is full")
        del self.rows[container, ifname]

    # the journal
    def entries(self) -> Iterable[tuple[str, bytes]]:
        return ()

    # the host
    async def attach(self, plan: PodPlan, bridge: Any, netlink: int, netns: int, kept: Awaitable[None]) -> Attached:
        await kept
        if self.fault:
            raise self.fault
        self.wired[plan.port] = plan
        return Attached(plan.port, 5, 2, plan.mac, plan.ipv4, plan.ipv6, "02:00:00:00:00:01", "0a:58:0a:20:00:01",
                        True, plan.gateway_ipv6 is not None)

    async def detach(self, guard: Any, index: int = 0) -> None:
        self.wired.pop(guard.port, None)

    async def look(self, plan: PodPlan, netlink: int) -> Seen:
        return Seen(self.problems, "02:00:00:00:00:01", "0a:58:0a:20:00:01", True, True)

    async def gone(self, names: Iterable[str]) -> set[str]:
        gone = set(names) - set(self.wired)
        self.after_look()
        return gone

    def ask(self, verb: str, container: str = "c1", version: str = "1.1.0", *, args: str = "IP=10.32.0.5",
            inode: int = INODE, raw: str | None = None, ifname: str = "eth0", **config: Any) -> dict[str, Any]:
        text = raw or json.dumps({"cniVersion": version, "name": "weave", **config})
        body = {"command": verb, "config": text, "container": container, "ifname": ifname, "args": args,
                "netns": "/run/netns/x", "netns_inode": max(inode, 0), "boot_id": "boot"}  # fmt: skip
        return asyncio.run(self.service.handle(Request({"cni": body}, -1, inode)))


class Refusing(ByHand):
    """An IPAM that says no."""

    def __init__(self, error: Exception) -> None:
        super().__init__(lambda work: asyncio.sleep(0, work()))
        self._error = error

    async def pick(self, holder: Holder, wanted: int | None) -> int:
        raise self._error


def attached(world: World, **more: Any) -> World:
    assert "code" not in world.ask("ADD", **more)
    return world


def broken(world: World, **fields: Any) -> World:
    for name, value in fields.items():
        setattr(world, name, value)
    return world


Case = tuple[Code, str, Callable[[], World], dict[str, Any]]
CASES: list[Case] = [
    (Code.INCOMPATIBLE_VERSION, "cniVersion '9.0.0' is none of", World, {"raw": '{"cniVersion":"9.0.0","name":"w"}'}),
    (Code.UNSUPPORTED_FIELD, "'host-local'", World, {"ipam": {"type": "host-local"}}),
    (Code.UNKNOWN_CONTAINER, "c1 eth0 is not attached here", World, {"verb": "CHECK"}),
    (Code.BAD_ENVIRONMENT, "CNI_CONTAINERID '/'", World, {"container": "/"}),
    (Code.BAD_ENVIRONMENT, "CNI_NETNS", World, {"inode": -1}),
    (Code.BAD_ENVIRONMENT, "made by network weave", lambda: attached(World()), {"name": "other"}),
    (Code.UNDECODABLE, "is not JSON", World, {"raw": "{"}),
    (Code.UNDECODABLE, "'a' stands twice", World, {"raw": '{"cniVersion":"1.1.0","a":1,"a":2}'}),
    (Code.BAD_CONFIG, '"name"', World, {"name": ""}),
    (Code.BAD_CONFIG, '"mtu" 1369 should be from 1280 to 1368', World, {"mtu": 1369}),
    (Code.BAD_CONFIG, '"gw" 192.0.2.1', World, {"routes": [{"dst": "192.0.2.0/24", "gw": "192.0.2.1"}]}),
    (Code.TRY_LATER, "no overlay address yet", lambda: World(bridge=""), {}),
    (Code.TRY_LATER, "wait a little", lambda: World(addresses=Refusing(NotNowError("wait a little"))), {}),
    (Code.NOT_AS_MADE, "eth0 is down; eth0 is gone",
     lambda: broken(attached(World()), problems=("eth0 is down", "eth0 is gone")), {"verb": "CHECK"}),
    (Code.NOT_AS_MADE, "another namespace", lambda: attached(World()), {"verb": "CHECK", "inode": INODE + 1}),
    (Code.NOT_AS_MADE, "prevResult lacks 10.32.0.5/12", lambda: attached(World()),
     {"verb": "CHECK", "prevResult": {"ips": []}}),
    (Code.NO_ADDRESS, "gives no addresses", World, {"args": ""}),
    (Code.NO_ADDRESS, "all are used", lambda: World(addresses=Refusing(ExhaustedError("all are used"))), {}),
    (Code.ADDRESS_REFUSED, "192.0.2.5 is not inside the range", World, {"args": "IP=192.0.2.5"}),
    (Code.ADDRESS_REFUSED, "MAC 0a:58:0a:20:00:06 belongs to another address", World,
     {"args": "IP=10.32.0.5;MAC=0a:58:0a:20:00:06"}),
    (Code.ADDRESS_REFUSED, "MAC 02:00:00:00:00:99 belongs to a pod of node other", World,
     {"args": "IP=10.32.0.5;MAC=02:00:00:00:00:99"}),
    (Code.ADDRESS_REFUSED, "9 addresses are more than a pod can have", World,
     {"args": "IP=" + " ".join(f"10.32.0.{number}" for number in range(5, 14))}),
    (Code.WIRING_FAILED, "10.32.0.6 is in use by c2 eth0",
     lambda: attached(World(), container="c2", args="IP=10.32.0.6"), {"args": "IP=10.32.0.5,10.32.0.6"}),
    (Code.NOT_AS_MADE, "prevResult lacks 10.32.0.6/12", lambda: attached(World(), args="IP=10.32.0.5,10.32.0.6"),
     {"verb": "CHECK", "prevResult": {"ips": [{"address": "10.32.0.5/12"}]}}),
    (Code.WIRING_FAILED, "pod already has an interface",
     lambda: broken(World(), fault=HostError(Fault.POD_NAME_TAKEN, link="eth0")), {}),
    (Code.WIRING_FAILED, "belongs to node other", World, {"args": "IP=10.32.9.9"}),
]  # fmt: skip


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case[1][:24] if isinstance(case, tuple) else str(case))
def test_every_code_with_its_message(case: Case, version: str) -> None:
    code, words, world_of, asked = case
    verb = asked.get("verb", "ADD")
    if verb == "CHECK" and version < "0.4.0":
        code, words = Code.INCOMPATIBLE_VERSION, "there is no CHECK in version"
    world = world_of()
    before = (dict(world.rows), dict(world.wired))
    answer = world.ask(**{"verb": verb, "version": version, **asked})
    assert (answer["code"], words in answer["msg"]) == (code, True), answer
    spec.check_error(answer, "1.1.0" if "raw" in asked else version)
    assert (world.rows, world.wired) == before


def test_no_code_is_left_out(tmp_path: Path) -> None:
    """5 is the executable's: a journal that cannot be written; and 50, of STATUS, which the router never says."""
    shim = Shim(installed(), tmp_path / "attach.sock", Path("/proc/journal"))
    unwritten = shim.run("DEL", shim.config("1.1.0"))
    spec.check_error(unwritten.value, "1.1.0")
    assert unwritten.code == Code.IO_FAILURE and "/proc/journal" in unwritten.value["msg"]
    never = shim.run("STATUS", shim.config("1.1.0"))
    spec.check_error(never.value, "1.1.0")
    assert never.code == 50
    assert {case[0] for case in CASES} | {unwritten.code} == set(Code)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("config", [
    {}, {"mtu": 1300, "dns": {"nameservers": ["10.0.0.10"], "search": ["x"]}},
    {"routes": [{"dst": "192.0.2.0/24"}, {"dst": "2001:db8::/32"}, {"dst": "::/0", "gw": "fd00:1::a20:9"}]},
    {"prevResult": {"interfaces": [{"name": "eth1"}], "routes": [{"dst": "198.51.100.0/24"}]}},
])  # fmt: skip
def test_every_result(version: str, config: dict[str, Any]) -> None:
    world = World()
    first = world.ask("ADD", version=version, **config)
    spec.check_result(first, version)
    assert world.ask("ADD", version=version, **config) == first
    if version >= "0.4.0":
        assert world.ask("CHECK", version=version, **{**config, "prevResult": first}) == {}
    assert world.ask("DEL", version=version, **config) == {} and (world.rows, world.wired) == ({}, {})


@pytest.mark.parametrize("version", VERSIONS)
def test_the_schema_sees_what_is_wrong(version: str) -> None:
    good = World().ask("ADD", version=version)
    for change in ({"more": 1}, {"cniVersion": "0.2.0"}, {"ips": [{"address": "10.32.0.5/12", "version": 4}]},
                   {"ips": [{**good["ips"][0], "interface": 3}]}, {"routes": [{"dst": "::/0", "gw": "10.32.0.1"}]},
                   {"interfaces": [{"name": "eth0", "mac": "x"}]}):  # fmt: skip
        with pytest.raises((AssertionError, ValueError)):
            spec.check_result({**good, **change}, version)


# -- MACs ----------------------------------------------------------------------------------------------------------


def test_an_add_with_a_mac_waits_until_the_others_were_told() -> None:
    world, mac = World(), bytes.fromhex("020000000077")
    number = int(IPv4Address("10.32.0.5"))
    result = world.ask("ADD", args="IP=10.32.0.5;MAC=02:00:00:00:00:77")
    assert result["interfaces"][2]["mac"] == "02:00:00:00:00:77"
    assert world.waited_for == [(number, mac)] and world.attachments.exceptions() == {number: mac}
    again = world.ask("ADD", "c2", args="IP=10.32.0.6;MAC=02:00:00:00:00:77")
    assert again["code"] == Code.ADDRESS_REFUSED and "another pod" in again["msg"]
    assert "code" not in world.ask("ADD", "c2", args="IP=10.32.0.6;MAC=0a:58:0a:20:00:06")
    assert len(world.waited_for) == 1
    assert world.ask("DEL") == {} and world.attachments.exceptions() == {}


def test_a_mac_that_another_node_keeps_leaves_nothing() -> None:
    world = World()
    answer = world.ask("ADD", args="IP=10.32.0.5;MAC=02:00:00:00:00:98")
    assert answer["code"] == Code.ADDRESS_REFUSED and "a pod of node other" in answer["msg"]
    assert world.rows == world.wired == world.attachments.exceptions() == {}
    assert "code" not in world.ask("ADD", args="IP=10.32.0.5")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What was slept so far, and nobody waits."""
    slept = [0.0]

    async def sleep(seconds: float) -> None:
        slept[0] += seconds

    monkeypatch.setattr(cni_driver.asyncio, "sleep", sleep)
    return slept


@pytest.mark.parametrize(("goes_first", "gone_at", "keeper", "after"), [
    (True, 9.0, "other", 0.0), (False, 0.5, None, 0.25), (False, 0.1, None, 0.0),
    (False, 9.0, "other", limits.EXCEPTION_SENT_SECONDS),
])  # fmt: skip
def test_who_keeps_a_mac_that_two_were_given(clock: list[float], goes_first: bool, gone_at: float, keeper: str | None,
                                             after: float) -> None:
    """The record of a rival needs a while to get here, and one that must yield a while to take it back."""
    def rival() -> Rival | None:
        return None if clock[0] >= gone_at else Rival("other", goes_first)

    assert asyncio.run(cni_driver.keeper(rival)) == keeper
    assert clock[0] == pytest.approx(limits.EXCEPTION_CROSSING_SECONDS + after, abs=0.03)


def test_the_wait_ends_when_it_was_sent_and_else_too(clock: list[float]) -> None:
    asyncio.run(cni_driver.until_sent(lambda: True))
    assert clock == [0.0]
    asyncio.run(cni_driver.until_sent(lambda: clock[0] > 0.5))
    assert 0.5 < clock[0] < 0.6
    asyncio.run(cni_driver.until_sent(lambda: False))
    assert clock[0] == pytest.approx(limits.EXCEPTION_SENT_SECONDS + 0.5, abs=0.1)


# -- GC ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spared_by", "freed"), [
    ("nothing", True), ("its port", False), ("the list", False), ("another network", False),
    ("attach", False),
])  # fmt: skip
def test_gc_frees_only_what_is_surely_gone(spared_by: str, freed: bool) -> None:
    world = attached(World())
    if spared_by != "its port":
        world.wired.clear()
    if spared_by == "attach":
        held = world.attachments._held
        held["c1", "eth0"] = replace(held["c1", "eth0"], network="")
    listed = [{"containerID": "c1", "ifname": "eth0"}] if spared_by == "the list" else []
    name = "other" if spared_by == "another network" else "weave"
    assert world.ask("GC", name=name, **{"cni.dev/valid-attachments": listed}) == {}
    assert (world.rows == {}) == freed


def test_gc_spares_a_pod_that_came_again_while_it_looked() -> None:
    """In the same namespace, with the same address: on record it is the one whose port was gone."""
    world = attached(World())
    wired = world.wired.copy()
    world.wired.clear()
    world.after_look = lambda: world.wired.update(wired)
    assert world.ask("GC", **{"cni.dev/valid-attachments": []}) == {}
    assert world.wired == wired and world.rows != {}


@pytest.mark.parametrize("again", ["DEL", "ADD"])
def test_a_record_that_the_disk_kept_goes_with_the_next_request(again: str) -> None:
    """Else its address would be refused to all others until the next start."""
    world = attached(World())
    world.full = True
    assert world.ask("DEL")["code"] == Code.WIRING_FAILED
    assert world.wired == {} and world.rows != {}
    world.full = False
    assert "code" not in world.ask(again)
    assert (world.rows == {}) == (again == "DEL")


def test_a_record_of_an_add_that_failed_goes_with_its_del() -> None:
    world = World()
    world.fault, world.full = UserError("no pair"), True
    assert world.ask("ADD")["code"] == Code.WIRING_FAILED
    assert world.rows != {}
    world.full = False
    assert world.ask("DEL") == {} and world.rows == {}
