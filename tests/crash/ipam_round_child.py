"""The process that dies in the middle of retirements, ended at the n-th change of a file, for every n.

One node on a real store, through ipam/driver.py: it asks for a promise (R6: the round is on disk before), gets it and
takes the blocks, and promises in the round of another. What it said to its neighbour is written to a pipe before it
goes on. After each death the store is opened as by a start, and has to hold what was said (R2): the open round with the
promise, all of what was taken or nothing of it, the promise to the other. Started by test_ipam_crash.py with
crash_shim.so preloaded; prints one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from random import Random

from crash.deaths import every_death
from crash.ipam_crash_child import ME, MUTANTS, started

from weave_router.ipam import letters, wire
from weave_router.ipam.driver import IpamDriver
from weave_router.ipam.letters import Letters
from weave_router.ipam.values import Ask, FrozenMap, Knowledge, Message, Receive, RoundId, Tell
from weave_router.store import Store
from weave_router.store_group import GroupWriter
from weave_router.tunnel.identity import Identity, verify

NEAR, DEAD, OTHER = (Identity.generate(Random(n).randbytes) for n in (2, 3, 4))
MINE = RoundId(ME.node_id, 1)
THEIRS = RoundId(NEAR.node_id, 1)


async def life(state: Path, answer: Callable[[str], object]) -> None:
    with Store.open(state, boot_id="boot") as store:
        service = started(store)
        writer = GroupWriter(store)
        spoken: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        saying = Letters(NEAR.ed25519_public, NEAR.sign, verify, iter(range(1, 99)).__next__)

        def tell(word: str) -> None:
            answer(word)
            spoken[word].set()

        async def until_said(word: str) -> None:
            """Before the next change of a file begins, or nobody could tell which came first."""
            await driver.written()
            await spoken[word].wait()

        def say(words: Iterable[tuple[bytes, bytes]]) -> None:
            for _, data in words:
                body = wire.decode_body_untrusted(wire.decode_envelope_untrusted(data))
                if isinstance(body, wire.Letter):
                    _, letter = Letters(ME.ed25519_public, ME.sign, verify, int).open_untrusted(
                        service.state.universe or b"", body.data, b"")  # type: ignore[misc]
                    tell(type(letters.decode_body_untrusted(letter)).__name__)
                elif isinstance(body, wire.Tell) and any(each.standing & wire.RETIRED for each in body.facts.people):
                    tell("Retired")

        driver = IpamDriver(service, store, submit=writer.submit, say=say, own=lambda owners: None)
        running = asyncio.create_task(driver.run())

        def hear(body: letters.Body) -> None:
            (data,) = saying.write(service.state.universe or b"", 1, ME.node_id, [body])
            frame = wire.encode_message(1, service.state.universe, (0, 0), None, wire.Letter(data))
            driver.do(lambda core, at: core.receive(NEAR.node_id, frame, at))

        people = frozenset({NEAR.node_id, DEAD.node_id, OTHER.node_id})
        born = Knowledge(members=people, incarnations=FrozenMap(dict.fromkeys(people, 1)))
        told = Message(NEAR.node_id, 1, service.state.universe, None, Tell(born))
        driver.do(lambda core, at: core.link_up(NEAR.node_id, at))
        driver.do(lambda core, at: core.take_in(Receive(told), at))
        asks = Message(DEAD.node_id, 1, service.state.universe, ME.node_id, Ask())
        driver.do(lambda core, at: core.take_in(Receive(asks), at))
        service.neighbours[NEAR.node_id] = True
        await driver.written()
        driver.do(lambda core, at: core.rounds.begin(frozenset({DEAD.node_id, OTHER.node_id}), False, at))
        await until_said("RetireAsk")
        hear(letters.Promise(letters.Round(*MINE), wire.Facts()))
        await until_said("Retired")
        extra = Identity.generate(Random(5).randbytes).node_id
        more = Message(NEAR.node_id, 1, service.state.universe, None, Tell(Knowledge(members=frozenset({extra}))))
        driver.do(lambda core, at: core.take_in(Receive(more), at))
        hear(letters.RetireAsk(letters.Round(*THEIRS), (letters.Victim(extra, 1),), (), ()))
        await until_said("Promise")
        await driver.close()
        running.cancel()
        writer.shutdown()


def wrongs(state: Path, said: list[str]) -> Iterator[str]:
    with Store.open(state, boot_id="boot") as store:
        core = started(store).state
    dead = {DEAD.node_id, OTHER.node_id}
    promised = core.promised >= dead and all(core.locks.get(node, MINE) == MINE for node in dead)
    if "RetireAsk" in said and not (promised and (core.round is not None or core.retired >= dead)):
        yield "it asked for promises, and its own, or the round, is not on disk"
    if "Retired" in said and not core.retired >= dead:
        yield "it told that they are retired, and the disk does not know"
    if "Promise" in said and THEIRS not in core.locks.values():
        yield "it promised to another, and the disk does not know"
    theirs = [r for r in core.registers.values() if r.owner in dead]
    if core.retired & dead and (core.round is not None or theirs or not core.retired >= dead):
        yield "retired, and not all of it in one transaction"
    if not core.retired & dead and any(r.gen for r in core.registers.values()):
        yield "blocks are taken of who is not retired on disk"


def main(scratch: Path) -> dict[str, object]:
    def lived(state: Path, say: Callable[[bytes], object]) -> None:
        asyncio.run(life(state, lambda answer: say(answer.encode() + b"\n")))

    return every_death(scratch, lived, lambda state, said: list(wrongs(state, said.decode().split())))


async def _at_once(driver: IpamDriver, made: object, future: object) -> None:
    """Words that do not wait for the disk."""


MUTANTS["said first"] = lambda: setattr(IpamDriver, "_written", _at_once)

if __name__ == "__main__":
    MUTANTS[sys.argv[2]]()
    print(json.dumps(main(Path(sys.argv[1]))))
