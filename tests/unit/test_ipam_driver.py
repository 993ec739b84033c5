"""What carries addresses out, on a real store: words follow the disk, failed writes are mended, commits are shared."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from random import Random

import pytest
from unit.ipam_sim import DOMAIN

from weave_router import limits
from weave_router.config import LaunchConfig
from weave_router.errors import UsageError, UserError
from weave_router.ipam import driver as ipam_driver
from weave_router.ipam import start_driver
from weave_router.ipam.allocator import BRIDGE, AddressTakenError, ExhaustedError, Holder, NotNowError
from weave_router.ipam.driver import IpamDriver
from weave_router.ipam.service import Gift, Service
from weave_router.store import Attachment, Store, StoreError
from weave_router.store_group import GroupWriter
from weave_router.tunnel.identity import Identity

ME = Identity.generate(Random(1).randbytes)
PEER = b"p" * 16
RANGE = "10.32.0.0/16"


def config(**more: object) -> LaunchConfig:
    return LaunchConfig(**{"name": "n1", "nickname": "n1", "token_file": "/t", "ipalloc_range": RANGE, **more})  # type: ignore[arg-type]


def opened(store: Store, launch: LaunchConfig | None = None, **more: object) -> Service | None:
    words = {"boot_id": "boot", "incarnation": store.raise_incarnation(), "live": (), "store_older": False, **more}
    return start_driver.open_service(launch or config(), store, ME, DOMAIN, name_of=bytes.hex, **words)  # type: ignore[arg-type]


@dataclass
class World:
    store: Store
    writer: GroupWriter
    service: Service
    said: list[tuple[bytes, bytes]] = field(default_factory=list)
    owners: dict[int, bytes] = field(default_factory=dict)
    fail: bool = False
    writes: int = 0

    def submit(self, work: Callable[[], object]) -> Future[object]:
        def written() -> object:
            self.writes += 1
            if self.fail:
                raise StoreError("the disk is full")
            return work()

        return self.writer.submit(written)

    def say(self, words: Iterable[tuple[bytes, bytes]]) -> None:
        self.said += words

    def driver(self) -> IpamDriver:
        return IpamDriver(self.service, self.store, submit=self.submit, say=self.say, own=self.owners.update)


@contextmanager
def make_world(folder: Path) -> Iterator[World]:
    with Store.open(folder, boot_id="boot") as store:
        service = opened(store)
        assert service is not None
        start_driver.choose_bridge(service, store, "")
        writer = GroupWriter(store)
        yield World(store, writer, service)
        writer.shutdown()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with make_world(tmp_path) as made:
        yield made


def pod(number: int, name: str) -> Attachment:
    return Attachment(name, "eth0", (number,), 16, 7, "boot", f"v{name}", bytes(6))


async def attach(world: World, driver: IpamDriver, name: str) -> int:
    number = await driver.pick(Holder(name, "eth0"), None)
    await driver.keep(Holder(name, "eth0"), lambda: world.store.attachment_put(pod(number, name)))
    return number


def leased(store: Store) -> dict[int, str]:
    return {row.number: row.container for row in store.ipam.load().leases if not row.resting and row.container}


async def until(condition: Callable[[], object]) -> None:
    """Looks after each turn of the loop; the writer's thread gets its time between them."""
    async with asyncio.timeout(10):
        loop = asyncio.get_running_loop()
        while not condition():
            turn = asyncio.Event()
            loop.call_later(0.005, turn.set)
            await turn.wait()


# -- the start -----------------------------------------------------------------------------------------------------


def test_a_start_founds_once_and_keeps(tmp_path: Path) -> None:
    with Store.open(tmp_path, boot_id="boot") as store:
        service = opened(store)
        assert service is not None and store.ipam.load().head is None  # nothing on disk before the bridge is chosen
        number = start_driver.choose_bridge(service, store, "")
        assert number == int(IPv4Address("10.32.0.1")) and store.setting("bridge_number") == str(number)
        again = opened(store)
        assert again is not None and again.state.universe == service.state.universe
        assert again.allocator.addresses_of(BRIDGE) == (number,)
        with pytest.raises(UsageError, match=r"--bridge-address: 10.32.255.255 is reserved"):
            start_driver.choose_bridge(again, store, "10.32.255.255")


@pytest.mark.parametrize(("words", "sentence"), [
    ({"ipalloc_init": "none"}, "holds a part of universe"), ({"ipalloc_init": "observer"}, "holds a part of universe"),
    ({"ipalloc_init": "seed=n1,n2"}, "not that of --ipalloc-init"),
    ({"ipalloc_range": "10.48.0.0/16"}, "give --ipalloc-range 10.32.0.0/16"),
])  # fmt: skip
def test_options_that_contradict_the_store_change_nothing(world: World, words: dict[str, str], sentence: str) -> None:
    before = world.store.ipam.load()
    with pytest.raises(UserError, match=sentence):
        opened(world.store, config(**words))
    assert world.store.ipam.load() == before


def test_without_a_store_the_options_decide(tmp_path: Path) -> None:
    with Store.open(tmp_path, boot_id="boot") as store:
        with pytest.raises(UsageError, match="joining a universe of addresses is not in service yet"):
            opened(store, config(targets=("h2",)))
        assert opened(store, config(ipalloc_init="observer")) is None
        assert opened(store, config(bridge_address="10.32.0.1")) is None
        seeded = opened(store, config(ipalloc_init="seed=n1,n2", targets=("h2",)))
        assert seeded is not None and len(seeded.state.members) == 3


def test_the_run_directory_remembers_how_new_the_store_was(tmp_path: Path) -> None:
    assert not start_driver.is_older(tmp_path, "boot", PEER, 0)
    start_driver.remember(tmp_path, "boot", PEER, 5)
    assert start_driver.is_older(tmp_path, "boot", PEER, 4)
    assert not start_driver.is_older(tmp_path, "boot", PEER, 5)
    assert not start_driver.is_older(tmp_path, "another boot", PEER, 4)
    assert not start_driver.is_older(tmp_path, "boot", b"q" * 16, 4)  # the state was wiped: another identity
    (tmp_path / start_driver.MEMORY).write_bytes(b"\xff\xfe")
    assert not start_driver.is_older(tmp_path, "boot", PEER, 4)


# -- words follow the disk -----------------------------------------------------------------------------------------


async def test_words_and_owners_wait_for_their_rows(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipam_driver, "WRITE_AGAIN_SECONDS", 0.01)
    driver = world.driver()
    running = asyncio.create_task(driver.run())
    world.fail = True
    driver.do(lambda service, now: service.link_up(PEER, now))
    await until(lambda: world.said)  # no rows, no wait
    world.said.clear()
    driver.do(lambda service, now: service.release(BRIDGE, now))
    driver.do(lambda service, now: service.link_up(PEER, now))
    await until(lambda: driver.trouble)
    assert world.said == [] and driver.trouble == "the disk is full"
    world.fail = False
    await until(lambda: world.said)
    assert driver.trouble == "" and [row.resting for row in world.store.ipam.load().leases] == [True]
    await driver.close()
    running.cancel()


async def test_an_attach_that_the_disk_refuses_is_taken_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipam_driver, "WRITE_AGAIN_SECONDS", 0.01)
    driver = world.driver()
    running = asyncio.create_task(driver.run())
    world.fail = True
    with pytest.raises(StoreError, match="the disk is full"):
        await attach(world, driver, "a")
    world.fail = False
    assert await attach(world, driver, "b") != int(IPv4Address("10.32.0.2"))
    await until(lambda: not driver._waiting)
    assert set(leased(world.store).values()) == {"b"} and len(world.store.attachments()) == 1
    resting = {row.number for row in world.store.ipam.load().leases if row.resting}
    assert resting == {int(IPv4Address("10.32.0.2"))} == set(world.service.allocator.resting())
    await driver.close()
    running.cancel()


async def test_an_attachment_that_fails_takes_its_address_along(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipam_driver, "WRITE_AGAIN_SECONDS", 0.01)
    driver = world.driver()
    running = asyncio.create_task(driver.run())
    world.store.attachment_put(pod(int(IPv4Address("10.32.0.2")), "by hand"))
    with pytest.raises(UserError, match=r"10\.32\.0\.2 is in use by by hand"):
        await attach(world, driver, "a")
    await until(lambda: not driver._waiting)
    assert leased(world.store) == {} and [a.container for a in world.store.attachments()] == ["by hand"]
    await driver.close()
    running.cancel()


async def test_what_was_claimed_before_survives_an_attach_that_fails(world: World) -> None:
    driver = world.driver()
    running = asyncio.create_task(driver.run())
    holder, number = Holder("a", "eth0"), int(IPv4Address("10.32.0.9"))
    await driver.pick(holder, number)
    await driver.keep(holder)
    before = driver.held(holder)
    assert await driver.pick(holder, None) == number and before == (number,)
    world.fail = True
    with pytest.raises(StoreError, match="the disk is full"):
        await driver.keep(holder, lambda: world.store.attachment_put(pod(number, "a")), before)
    world.fail = False
    assert driver.held(holder) == before == tuple(leased(world.store))
    await driver.give_back(holder, but=before)
    assert driver.held(holder) == before
    await driver.give_back(holder)
    assert driver.held(holder) == () and leased(world.store) == {}
    await driver.close()
    running.cancel()


def test_the_bridge_goes_round_what_is_excluded(tmp_path: Path) -> None:
    with Store.open(tmp_path, boot_id="boot") as store:
        service = opened(store, config(ipalloc_exclude=("10.32.0.0/25",)))
        assert service is not None
        assert start_driver.choose_bridge(service, store, "") == int(IPv4Address("10.32.0.128"))
        with pytest.raises(UsageError, match=r"--bridge-address: 10\.32\.0\.5 is reserved \(excluded by"):
            start_driver.choose_bridge(service, store, "10.32.0.5")


async def test_detach_is_one_transaction_and_rewrite_mends_the_disk(world: World) -> None:
    driver = world.driver()
    running = asyncio.create_task(driver.run())
    number = await attach(world, driver, "a")
    await driver.give_back(Holder("a", "eth0"), lambda: world.store.attachment_delete("a", "eth0"))
    assert leased(world.store) == {} and world.store.attachments() == ()
    number = await attach(world, driver, "b")
    with world.store._transaction() as connection:
        connection.execute("DELETE FROM ipam_lease WHERE number = ?", (number,))
        connection.execute("INSERT INTO ipam_lease VALUES (99, 'ghost', 'eth0', 0)")
    await driver.rewrite()
    assert leased(world.store) == {number: "b"}
    await driver.close()
    running.cancel()


async def test_named_addresses_and_exhaustion(world: World) -> None:
    driver = world.driver()
    running = asyncio.create_task(driver.run())
    with pytest.raises(AddressTakenError):
        await driver.pick(Holder("a", "eth0"), int(IPv4Address("10.32.0.1")))
    world.service.settings = world.service.settings.__class__(
        "n1", DOMAIN, IPv4Network(RANGE), subnet=IPv4Network("10.32.7.0/30"))  # fmt: skip
    assert [await attach(world, driver, name) for name in "ab"] == [int(IPv4Address(f"10.32.7.{n}")) for n in (1, 2)]
    begun = time.monotonic()
    with pytest.raises(ExhaustedError, match=r"no free address in 10\.32\.7\.0/30"):
        await attach(world, driver, "c")
    assert time.monotonic() - begun < 2
    world.service.halt("a clone runs")
    with pytest.raises(NotNowError, match="a clone runs"):
        await attach(world, driver, "d")
    await driver.close()
    running.cancel()


async def test_blocks_that_settle_are_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than for those that somebody may give, and not for ever."""
    monkeypatch.setattr(ipam_driver, "EXHAUSTED_WAIT_SECONDS", 0.1)
    driver = world.driver()
    running = asyncio.create_task(driver.run())

    def give_from(subnet: str) -> None:
        world.service.settings = world.service.settings.__class__(
            "n1", DOMAIN, IPv4Network(RANGE), subnet=IPv4Network(subnet))  # fmt: skip

    give_from("10.32.7.0/30")
    for name in "ab":
        await attach(world, driver, name)
    world.service.gifts[1] = Gift(set(), {b"far"}, None, None)
    waiting = asyncio.create_task(attach(world, driver, "c"))
    assert await asyncio.wait({waiting}, timeout=0.5) == (set(), {waiting})
    give_from("10.32.7.0/29")
    assert await waiting == int(IPv4Address("10.32.7.3"))
    give_from("10.32.7.0/30")
    monkeypatch.setattr(ipam_driver, "COMING_WAIT_SECONDS", 0.2)
    with pytest.raises(ExhaustedError):
        await attach(world, driver, "d")
    await driver.close()
    running.cancel()


async def test_a_cooled_address_is_free_on_disk_too(tmp_path: Path) -> None:
    with Store.open(tmp_path, boot_id="boot") as store:
        service = opened(store, config(debug_timers={"cooldown": 0.05}))
        assert service is not None
        start_driver.choose_bridge(service, store, "")
        world = World(store, GroupWriter(store), service)
        driver = world.driver()
        running = asyncio.create_task(driver.run())
        await attach(world, driver, "a")
        await driver.give_back(Holder("a", "eth0"), lambda: store.attachment_delete("a", "eth0"))
        assert [row.resting for row in store.ipam.load().leases] == [False, True]
        await until(lambda: len(store.ipam.load().leases) == 1)
        await driver.close()
        running.cancel()
        world.writer.shutdown()


# -- figures -------------------------------------------------------------------------------------------------------

async def test_twenty_at_once_share_eight_commits_at_most(world: World) -> None:
    driver = world.driver()
    running = asyncio.create_task(driver.run())
    before = world.store.commits
    numbers = await asyncio.gather(*(attach(world, driver, f"p{n}") for n in range(20)))
    assert len(set(numbers)) == 20 and world.store.commits - before <= 8
    assert len(world.store.attachments()) == 20 and len(leased(world.store)) == 20
    await driver.close()
    running.cancel()


def test_ten_thousand_addresses_start_within_half_a_second(world: World) -> None:
    service = world.service
    service.allocate(Holder("many", "eth0"), 0.0, count=10_000)
    start_driver.written_at_once(service, world.store)
    took = []
    for _ in range(3):
        begun = time.perf_counter()
        again = opened(world.store)
        assert again is not None and len(again.allocator.leases()) == 10_001
        start_driver.choose_bridge(again, world.store, "")
        took.append(time.perf_counter() - begun)
    assert min(took) <= 0.5
    assert limits.COOLDOWN_SECONDS == 60
