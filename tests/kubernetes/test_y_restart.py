"""Routers are killed, deleted and rolled out while 200 flows, 50 new connections a second and a 10 ms stream of
datagrams per pair of nodes go on between pods (load.py).

`SOAK=1` (`make soak-kubernetes`) does each as often as the issue asks.
"""

import os
from collections.abc import Callable, Iterator
from typing import Final

import pytest
from kubernetes import results, rollout
from kubernetes.cluster import Cluster, Node
from kubernetes.load import Felt, Load

SOAK: Final = bool(os.environ.get("SOAK"))
KILLS, DELETIONS, IMAGES = (20, 5, 3) if SOAK else (3, 1, 1)
RESTART_GAP, ROLLOUT_GAP = 2500, 500
LATE_SECONDS: Final = 20
TOLD: Final[list[dict[str, object]]] = []
"""What was felt of each, for docs/results/."""

pytestmark = pytest.mark.timeout(1800 if SOAK else 300)


@pytest.fixture(scope="module")
def load(cluster: Cluster) -> Iterator[Load]:
    yield Load(cluster).start()
    if SOAK:
        results.write("kubernetes-restarts.json", {"bar_ms": {"killed, deleted": RESTART_GAP, "others": ROLLOUT_GAP},
                                                   "restarts": TOLD}, "restarts")


@pytest.fixture(autouse=True)
def watched(cluster: Cluster) -> Iterator[None]:
    """No Node leaves Ready, no sandbox fails, whatever the test does."""
    watch = rollout.Watch(cluster)
    yield
    watch.check()


def told(what: str, felt: Felt) -> Felt:
    print(f"{what}: {felt}", flush=True)
    TOLD.append({"what": what, **felt.figures()})
    return felt


@pytest.mark.parametrize(
    ("what", "count", "act"), [("killed", KILLS, rollout.kill), ("deleted", DELETIONS, rollout.delete)]
)
def test_a_router_that_is(
    what: str, count: int, act: Callable[[Cluster, Node], None], cluster: Cluster, load: Load
) -> None:
    for number in range(count):
        node = cluster.nodes[number % len(cluster.nodes)]
        with load.between() as felt:
            act(cluster, node)
            rollout.start_pod(cluster, node, f"{what}-{number}")
        told(f"{what} {number + 1} on {node.name}", felt).check(RESTART_GAP)


def test_rollout_restart(cluster: Cluster, load: Load) -> None:
    with load.between() as felt:
        rollout.restart(cluster)
    told("rollout restart", felt).check(ROLLOUT_GAP)


def test_another_image_that_comes_late_and_back(cluster: Cluster, load: Load) -> None:
    for number in range(IMAGES):
        with load.between() as felt:
            rollout.change_image(cluster, f"next-{number}", LATE_SECONDS)
        told(f"image {number + 1}", felt).check(ROLLOUT_GAP)
    with load.between() as felt:
        rollout.undo(cluster)
    told("rollout undo", felt).check(ROLLOUT_GAP)
