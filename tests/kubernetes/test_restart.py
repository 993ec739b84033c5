"""Routers are killed, deleted and rolled out while 200 flows, 50 new connections a second and a 10 ms stream of
datagrams per pair of nodes go on between pods (load.py).

`SOAK=1` (`make soak-kubernetes`) does each as often as the issue asks.
"""

import os
import time
from collections.abc import Iterator
from typing import Final

import pytest
from kubernetes import rollout
from kubernetes.cluster import Cluster, wait_for
from kubernetes.load import Felt, Load

SOAK: Final = bool(os.environ.get("SOAK"))
KILLS, DELETIONS, IMAGES = (20, 5, 3) if SOAK else (3, 1, 1)
RESTART_GAP, ROLLOUT_GAP = 2500, 500
LATE_SECONDS: Final = 20
SETTLE_SECONDS: Final = 1.0

pytestmark = pytest.mark.timeout(1800 if SOAK else 300)


@pytest.fixture(scope="module")
def load(cluster: Cluster) -> Load:
    return Load(cluster).start()


@pytest.fixture(autouse=True)
def watched(cluster: Cluster) -> Iterator[None]:
    """No Node leaves Ready, no sandbox fails, whatever the test does."""
    watch = rollout.Watch(cluster)
    yield
    watch.check()


def settle() -> None:
    """The load runs alone before and after what is done: a silence is seen only between two datagrams."""
    end = time.monotonic() + SETTLE_SECONDS
    wait_for("a second of load", lambda: time.monotonic() >= end, SETTLE_SECONDS + 1)


def told(what: str, felt: Felt) -> Felt:
    print(f"{what}: {felt}")
    return felt


def test_a_killed_router(cluster: Cluster, load: Load) -> None:
    for number in range(KILLS):
        node = cluster.nodes[number % len(cluster.nodes)]
        with load.between() as felt:
            settle()
            rollout.kill(cluster, node)
            rollout.start_pod(cluster, node, f"killed-{number}")
            settle()
        told(f"kill {number + 1} on {node.name}", felt).check(RESTART_GAP)


def test_a_deleted_router_pod(cluster: Cluster, load: Load) -> None:
    for number in range(DELETIONS):
        node = cluster.nodes[number % len(cluster.nodes)]
        with load.between() as felt:
            settle()
            rollout.delete(cluster, node)
            rollout.start_pod(cluster, node, f"deleted-{number}")
            settle()
        told(f"pod deleted on {node.name}", felt).check(RESTART_GAP)


def test_rollout_restart(cluster: Cluster, load: Load) -> None:
    with load.between() as felt:
        rollout.restart(cluster)
        settle()
    told("rollout restart", felt).check(ROLLOUT_GAP)


def test_another_image_that_comes_late_and_back(cluster: Cluster, load: Load) -> None:
    for number in range(IMAGES):
        with load.between() as felt:
            rollout.change_image(cluster, f"next-{number}", LATE_SECONDS)
            settle()
        told(f"image {number + 1}", felt).check(ROLLOUT_GAP)
    with load.between() as felt:
        rollout.undo(cluster)
        settle()
    told("rollout undo", felt).check(ROLLOUT_GAP)
