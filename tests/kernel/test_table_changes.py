"""A thousand changes a second of routes that the traffic does not use: no frame misses its route, and hardly any speed.

    namespace left                                                  namespace right
    10.32.0.2 on ta [engine a] == UDP on lo == [engine b] tb - b0 - v0 = v1 10.32.0.66     one TCP stream, left to right

Both engines live in this process and are changed by one thread of it, as the event loop would; the stream runs through
all pairs of slots, quiet and changing, and is counted by what the receiving engine wrote to its TAP.
"""

from __future__ import annotations

import itertools
import statistics
import time

import pytest
from kernel.fastpath_pair import RIGHT, THIRD, Pair, Side, ip4, pair
from lab.namespace import Namespace
from lab.traffic import Traffic

from weave_router.fastpath import engine as fp

PAIRS = 9
SLOTS, SLOT_SECONDS = 4, 0.2
"""Of either kind in one pair, and how long one is."""
CHANGES_A_SECOND = 1000
THROUGHPUT_LEAST = 0.93
MISSES = ("no_owner", "no_session", "park_full", "no_answer", "foreign_source", "local_destination", "unknown_session",
          "bad_tag", "replay", "nonce")  # fmt: skip
UNRELATED = 3


def change(sides: list[Side], seconds: float, numbers: itertools.count[int]) -> None:
    """Set and delete routes of a third node, all that are due in so many seconds, on both engines."""
    start, made, wanted = time.monotonic(), 0, int(seconds * CHANGES_A_SECOND)
    while made < wanted:
        due = min(wanted, int((time.monotonic() - start) * CHANGES_A_SECOND))
        for number in itertools.islice(numbers, due - made):
            host = THIRD + (number // 2) % 64
            for side in sides:
                if number % 2:
                    side.engine.route_del(host, 32)
                else:
                    side.engine.route_set(host, 32, UNRELATED, bytes((2, 0, 0, 0, 0, number % 251)))
        made = due
        time.sleep(0.001)


def slot(both: Pair, changing: bool, numbers: itertools.count[int]) -> tuple[float, float]:
    """(bytes into the right TAP, seconds) of one slot."""
    engine = both.right.engine
    start, before = time.monotonic(), engine.counters()["tap_write_bytes"]
    if changing:
        change([both.left, both.right], SLOT_SECONDS, numbers)
    else:
        time.sleep(SLOT_SECONDS)  # the slot itself
    return engine.counters()["tap_write_bytes"] - before, time.monotonic() - start


def ratio(both: Pair, numbers: itertools.count[int]) -> float:
    """Throughput under changes by throughput without, of one pair: a few slots in turn, so that what else the
    machine does meets both alike."""
    totals = {True: [0.0, 0.0], False: [0.0, 0.0]}
    for index in range(2 * SLOTS):
        found = slot(both, index % 2 == 0, numbers)
        totals[index % 2 == 0] = [sum(pair) for pair in zip(totals[index % 2 == 0], found, strict=True)]
    rates = {changing: size / seconds for changing, (size, seconds) in totals.items()}
    assert rates[False] > 1e6
    return rates[True] / rates[False]


def misses(both: Pair) -> dict[str, int]:
    found = [side.engine.drops() for side in (both.left, both.right)]
    return {name: sum(drops[name] for drops in found) for name in MISSES}


@pytest.mark.timeout(90)
def test_unrelated_changes_cost_nothing() -> None:
    with pair() as both:
        for side in (both.left, both.right):
            side.engine.node_set(UNRELATED, flags=fp.NODE_ANSWER, pod_mtu=1368)
        near, far = (Namespace(name, name) for name in both.stacks())
        traffic = Traffic()
        numbers = itertools.count()
        try:
            finish = traffic.tcp(near, far, ip4(RIGHT + 2), seconds=2 * PAIRS * SLOTS * SLOT_SECONDS + 2, timeout=60)
            slot(both, False, numbers)  # slow start
            before = misses(both)
            ratios = [ratio(both, numbers) for _ in range(PAIRS)]
            grown = {name: count - before[name] for name, count in misses(both).items()}
            result = finish()
        finally:
            traffic.close()
    assert grown == dict.fromkeys(MISSES, 0)
    assert (result["bytes"], result["hash"], result["corrupt"]) == (result["sent_bytes"], result["sent_hash"], 0)
    assert statistics.median(ratios) >= THROUGHPUT_LEAST, [round(one, 3) for one in sorted(ratios)]
    print("ratios", [round(one, 3) for one in sorted(ratios)])
