"""A roll-out on one node: the new router beside the old one, which ends when it is told to. Pods talk meanwhile.

    p1 ── n1 (old, then new) ══ n2 ── p2
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest
from kube.member import Member
from kube.server import Server
from lab.lab import Lab
from lab.namespace import Namespace, kill_process
from lab.router import wait_for, wait_ping
from lab.traffic import Result

from weave_router import limits

GAP_MS = 500
SECONDS = 4


def streams(lab: Lab, pods: list[Namespace]) -> Callable[[], list[Result]]:
    """A datagram every 10 ms, both ways."""
    near, far = pods
    both = [lab.traffic.stream(a, b, b.address("v4"), seconds=SECONDS)  # type: ignore[attr-defined]
            for a, b in ((near, far), (far, near))]
    return lambda: [end() for end in both]


def waits(router: Member) -> bool:
    """As the pod's probe finds out."""
    return (router.host.run_dir / "standby.sock").exists()


def launch_beside(router: Member) -> subprocess.Popen[str]:
    """The old one's process; the router's is the new one's, which waits."""
    old, router.process = router.process, None
    assert old is not None
    router.launch(wait=False)
    wait_for("it waits", lambda: waits(router))
    return old


@pytest.fixture
def joined(lab: Lab, cluster: tuple[Server, list[Member]]) -> tuple[list[Member], list[Namespace]]:
    _, routers = cluster
    lab.parallel(*(router.launch for router in routers))
    pods = [router.attach(lab.pod(router.host, "p")) for router in routers[:2]]
    wait_ping(pods[0], pods[1].address("v4"))
    return routers, pods


def end_and_wait(old: subprocess.Popen[str], router: Member) -> None:
    old.terminate()
    assert old.wait(limits.SUCCESSION_SECONDS + 5) == 0
    kill_process(old)
    router.wait_ready()
    assert not waits(router)


def test_a_rollout(lab: Lab, joined: tuple[list[Member], list[Namespace]]) -> None:
    routers, pods = joined
    first = routers[0]
    before = first.status()["service"]
    for _ in range(2):
        old = launch_beside(first)
        result = streams(lab, pods)
        end_and_wait(old, first)
        for each in result():
            print(f"gap {each['gap_ms']} ms, {each['lost']} lost")
            assert each["gap_ms"] <= GAP_MS
    after = first.status()["service"]
    assert (after["id"], after["incarnation"]) == (before["id"], before["incarnation"] + 2)


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_heir_that_dies(joined: tuple[list[Member], list[Namespace]], when: str) -> None:
    """Before its turn, or stopped when it has the estate: the old one ends as told, the next one starts as ever."""
    routers, pods = joined
    first = routers[0]
    old = launch_beside(first)
    heir = first.process
    assert heir is not None
    if when == "after":  # it takes the estate and never says a word
        first.host.run(["kill", "-STOP", str(heir.pid)])
    else:
        kill_process(heir)
    old.terminate()
    assert old.wait(limits.SUCCESSION_SECONDS + 5) == 0
    kill_process(old)
    kill_process(heir)
    first.process = None
    first.launch()
    wait_ping(pods[0], pods[1].address("v4"))
