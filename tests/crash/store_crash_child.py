"""The process that dies: runs one life of a store again and again, ended at its n-th change of a file, for every n.

Started by test_store_crash.py with crash_shim.so preloaded. After each death it opens what is left and compares it
with the states that the same life goes through undisturbed: what was acknowledged is there, what was under way is
there as a whole or not at all. Prints one line of JSON: how many deaths, and the first difference.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from crash.deaths import every_death

from weave_router import store_file
from weave_router.store import Attachment, Store
from weave_router.store_ipam import IpamRows, LeaseRow, MemberRow, RegisterRow

POD = Attachment("c1", "eth0", (0x0A200001,), 12, 7, "boot", "vethwe1", b"\x0a\x58\x0a\x20\x00\x01")
MOVED = Attachment("c1", "eth0", (0x0A200002, 0x0A200001), 12, 8, "boot", "vethwe2", b"\x0a\x58\x0a\x20\x00\x02")


A, B = b"a" * 16, b"b" * 16
FOUNDED = IpamRows(
    head=b"universe",
    registers=tuple(RegisterRow(block, 0, 0, A, A, b"run of a") for block in range(4)),
    members=(MemberRow(A, 1, 1),),
    leases=(LeaseRow(0x0A200001, "", "bridge", False),),
)
GIVEN = IpamRows(
    head=b"universe, owed",
    registers=(RegisterRow(2, 0, 1, B, A, b"gift"), RegisterRow(3, 0, 1, B, A, b"gift")),
    members=(MemberRow(B, 1, 7),),
    leases=(LeaseRow(0x0A200002, "c1", "eth0", True),),
    freed=(0x0A200001,),
)


def opened(state: Path, seed: int) -> Store:
    draws = iter(range(seed, 256))
    return Store.open(state, boot_id=f"boot {seed}", random_bytes=lambda size: bytes([next(draws)]) * size)


def life(state: Path) -> Iterator[Store | None]:
    """Yields after each step that has returned: the store as it is then, None where it is closed."""
    store = opened(state, 1)
    yield store
    steps: list[Callable[[], object]] = [
        store.raise_incarnation,
        lambda: store.counter_block(1000),
        lambda: store.set_peer_seen(b"a" * 32, 1, 1),
        lambda: store.set_targets(["one", "two"]),
        lambda: store.attachment_put(POD),
        lambda: store.attachment_put(MOVED),
        lambda: store.set_setting("pod_mtu", "1368"),
        lambda: store._rows("PRAGMA wal_checkpoint(TRUNCATE)"),
        lambda: store.set_peer_seen(b"a" * 32, 1, 2),
        lambda: _batch(store),
        lambda: store.ipam.put(FOUNDED),
        lambda: _attached(store),
        lambda: _detached(store),
        lambda: store.ipam.put(GIVEN),
    ]
    for step in steps:
        step()
        yield store
    store.close()
    yield None
    store = opened(state, 10)
    yield store
    store.raise_incarnation()
    yield store


def _batch(store: Store) -> None:
    with store.batch():
        store.set_targets([])
        store.set_peer_seen(b"b" * 32, 4, 4)
        store.counter_block(2000)


def _attached(store: Store) -> None:
    """Address and attachment in one transaction: never one without the other."""
    with store.batch():
        store.ipam.put(IpamRows(leases=(LeaseRow(0x0A200003, "c1", "eth0", False),)))
        store.attachment_put(POD)


def _detached(store: Store) -> None:
    with store.batch():
        store.ipam.put(IpamRows(leases=(LeaseRow(0x0A200003, "c1", "eth0", True),)))
        store.attachment_delete("c1", "eth0")


def contents(store: Store) -> list[str]:
    values = (
        store.identity(),
        store.incarnation(),
        store.run_nonce,
        store.last_boot_id,
        store.counter_start(),
        store.peers_seen(),
        store.targets(),
        store.attachments(),
        store.setting("pod_mtu"),
        store.ipam.load(),
    )
    return [repr(value) for value in values]


def states(state: Path) -> list[list[str]]:
    """What is to be found after 0, 1, 2... acknowledged steps."""
    found: list[list[str]] = []
    for store in life(state):
        found.append(contents(store) if store else found[-1])
    return [found[0], *found]  # before the first step: the check itself makes the store


def difference(state: Path, acknowledged: int, expected: list[list[str]]) -> str | None:
    allowed = expected[acknowledged : acknowledged + 2]
    try:
        with opened(state, 99 if acknowledged else 1) as store:  # other draws: a lost identity is not made alike
            found = contents(store)
            incarnation = store.incarnation()
            if store.raise_incarnation() <= incarnation:
                return "the incarnation did not rise"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None if found in allowed else f"found {found}, allowed {allowed}"


def main(scratch: Path, powers: tuple[bool, ...]) -> dict[str, object]:
    expected = states(scratch / "undisturbed")

    def lived(state: Path, say: Callable[[bytes], object]) -> None:
        for _ in life(state):
            say(b".")

    return every_death(scratch, lived, lambda state, said: difference(state, len(said), expected), powers)


NO_SYNC = ("synchronous = NORMAL", *store_file._PRAGMAS[1:])
MUTANTS: dict[str, tuple[Callable[[], object], tuple[bool, ...]]] = {
    "none": (lambda: None, (False, True)),
    "not synced": (lambda: setattr(store_file, "_PRAGMAS", NO_SYNC), (True,)),
    "no directory sync": (lambda: setattr(store_file, "_fsync", lambda path: None), (True,)),
    "two commits": (lambda: setattr(Store, "batch", lambda store: store._serial), (False,)),
}
"""What the test breaks to see that the harness notices, and whether by a kill or by a loss of power."""

if __name__ == "__main__":
    mutate, powers = MUTANTS[sys.argv[2]]
    mutate()
    print(json.dumps(main(Path(sys.argv[1]), powers)))
