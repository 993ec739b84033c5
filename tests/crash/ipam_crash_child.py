"""The process that dies: addresses given, claimed and released through ipam/driver.py on a real store, ended at the
n-th change of a file, for every n.

Started by test_ipam_crash.py with crash_shim.so preloaded; the life's own process writes each answer to a pipe before
it goes on, as the CNI would hear it. After each death a router's start is done on what is left and compared with the
answers: what was answered is there (I6), nothing is there twice (I1), what was released rests or is free (I8, I12), the
invariants of the cluster hold. Prints one line of JSON: how many deaths, and the first difference.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from crash.deaths import every_death
from model.invariants import UP, Node, violations

from weave_router import store_file
from weave_router.config import LaunchConfig
from weave_router.ipam import start_driver
from weave_router.ipam.allocator import BRIDGE, Holder
from weave_router.ipam.driver import IpamDriver
from weave_router.ipam.service import Service
from weave_router.ipam.values import durable
from weave_router.store import Attachment, Store
from weave_router.store_group import GroupWriter
from weave_router.tunnel.identity import Identity

ME = Identity.generate(Random(1).randbytes)
CONFIG = LaunchConfig(name="n1", nickname="n1", token_file="/t", ipalloc_range="10.32.0.0/24")
NAMED = 0x0A200040
Answer = tuple[str, str, int]
"""("+" or "-", container, number)"""


def started(store: Store) -> Service:
    """What router.py does about addresses at a start under the same boot."""
    service = start_driver.open_service(
        CONFIG, store, ME, bytes(8), boot_id="boot", incarnation=store.raise_incarnation(), live=(), store_older=False,
        name_of=bytes.hex)  # fmt: skip
    assert service is not None
    start_driver.choose_bridge(service, store, "")
    return service


def pod(number: int, name: str) -> Attachment:
    return Attachment(name, "eth0", (number,), 24, 7, "boot", f"v{name}", bytes(6))


async def life(state: Path, answer: Callable[[Answer], object]) -> None:
    with Store.open(state, boot_id="boot") as store:
        service = started(store)
        writer = GroupWriter(store)
        driver = IpamDriver(service, store, submit=writer.submit, say=lambda words: None, own=lambda owners: None)
        running = asyncio.create_task(driver.run())

        async def attach(name: str, wanted: int | None = None) -> None:
            holder = Holder(name, "eth0")
            number = await driver.pick(holder, wanted)
            await driver.keep(holder, lambda: store.attachment_put(pod(number, name)))
            answer(("+", name, number))

        async def detach(name: str) -> None:
            (number,) = driver.held(Holder(name, "eth0"))
            await driver.give_back(Holder(name, "eth0"), lambda: store.attachment_delete(name, "eth0"))
            answer(("-", name, number))

        await attach("a")
        await asyncio.gather(attach("b", NAMED), attach("p1"), attach("p2"))
        await asyncio.gather(detach("a"), detach("p1"), attach("c"))
        await attach("a")
        store._rows("PRAGMA wal_checkpoint(TRUNCATE)")
        await detach("b")
        await driver.close()
        running.cancel()
        writer.shutdown()


def wrongs(state: Path, answers: list[Answer]) -> Iterator[str]:
    with Store.open(state, boot_id="boot") as store:
        service = started(store)
        rows = store.ipam.load()
        pods = {a.container: a.numbers[0] for a in store.attachments()}
    leases = {h.container: n for n, h in service.allocator.leases().items() if h != BRIDGE}
    if leases != pods:
        yield f"I12 leases {leases}, attachments {pods}"
    if len(set(pods.values())) != len(pods):
        yield f"I1 {pods}"
    last = {name: (sign, number) for sign, name, number in answers}
    free = set(service.allocator.resting())
    for name, (sign, number) in last.items():
        if sign == "+" and pods.get(name) != number and number not in free:
            yield f"I6 {name} was answered {number}; the disk has {pods.get(name)}"
        if sign == "+" and pods.get(name) != number and name not in ("a", "p1", "b"):
            yield f"I6 {name} was answered {number} and never released"
        if sign == "-" and pods.get(name) != number and number not in free:
            yield f"I8 {number} of {name} was released and does not rest"
    used = {service.allocator.block_of(row.number) for row in rows.leases if not row.resting}
    living = frozenset((service.allocator.block_of(n), 1) for n in pods.values())
    if not used <= service.state.used:
        yield f"blocks {used - service.state.used} are in use on disk and not in ownership"
    yield from violations([Node(UP, service.state, durable(service.state), living, book=service.allocator,
                               numbers=frozenset(pods.values()))])  # fmt: skip


def main(scratch: Path) -> dict[str, object]:
    def lived(state: Path, say: Callable[[bytes], object]) -> None:
        asyncio.run(life(state, lambda answer: say(json.dumps(answer).encode() + b"\n")))

    def judge(state: Path, said: bytes) -> list[str]:
        return list(wrongs(state, [tuple(json.loads(line)) for line in said.splitlines()]))

    return every_death(scratch, lived, judge)


MUTANTS: dict[str, Callable[[], object]] = {
    "none": lambda: None,
    "not synced": lambda: setattr(store_file, "_PRAGMAS", ("synchronous = NORMAL", *store_file._PRAGMAS[1:])),
    "two commits": lambda: setattr(IpamDriver, "_put", _put_apart),
}
"""What the test breaks to see that the harness notices."""


def _put_apart(driver: IpamDriver, rows: object, also: Callable[[], object] | None) -> None:
    driver._store.ipam.put(rows)  # type: ignore[arg-type]
    if also is not None:
        also()


if __name__ == "__main__":
    MUTANTS[sys.argv[2]]()
    print(json.dumps(main(Path(sys.argv[1]))))
