"""Several hosts with a router and pods each: what most tests, the demo and the benchmarks begin with.

Node number i (from 1) has the bridge address 10.32.i.1, its pods 10.32.i.2 and on, and lists one address: the host
before it, the first the second. So whoever reaches a host further on learned of it through the mesh, and the first
two meet at once, whichever is ready first. Called by tests, demo, benchmarks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Final

from .lab import Lab
from .namespace import LabError
from .network import Host, Pod
from .router import Router, ping, wait_for

PREFIX_LENGTH: Final = 12
LETTERS: Final = "abcdefgh"
JOIN_DEADLINE: Final = 20.0


def routers_for(
    lab: Lab,
    hosts: Sequence[Host],
    *,
    family: str = "v4",
    flags: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    seeded: bool = False,
) -> list[Router]:
    """One router per host, not yet launched. ``seeded``: they share the range and give addresses themselves."""
    made: list[Router] = []
    if seeded:
        flags = [*flags, "--ipalloc-init", "seed=" + ",".join(host.label for host in hosts)]
    for number, host in enumerate(hosts, 1):
        neighbours = hosts[number - 2 : number - 1] or hosts[1:2]
        peers = [neighbour.address(family) for neighbour in neighbours]
        bridge = "" if seeded else f"10.32.{number}.1"
        made.append(lab.router(host, bridge_address=bridge, peers=peers, flags=flags, env=env))
    return made


def attach_pods(lab: Lab, routers: Sequence[Router], each: int) -> list[Pod]:
    """``each`` pods per router, attached side by side by the product's command."""
    tasks = []
    for router, letter in itertools.product(routers, LETTERS[:each]):
        pod = lab.pod(router.host, letter)
        network = router.bridge_address.rsplit(".", 1)[0]
        tasks.append(partial(router.attach, pod, f"{network}.{2 + LETTERS.index(letter)}/{PREFIX_LENGTH}"))
    return lab.parallel(*tasks)


def start_cluster(
    lab: Lab,
    hosts: Sequence[Host],
    *,
    pods: int = 1,
    family: str = "v4",
    flags: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> tuple[list[Router], list[Pod]]:
    """Launch all, attach all, wait until every host reaches every other: (routers, pods in the order of hosts)."""
    routers = routers_for(lab, hosts, family=family, flags=flags, env=env)
    lab.parallel(*(router.launch for router in routers))
    attached = attach_pods(lab, routers, pods)
    wait_joined(lab, attached)
    return routers, attached


def pairs(pods: Sequence[Pod]) -> Iterator[tuple[Pod, Pod]]:
    return itertools.permutations(pods, 2)


def wait_joined(lab: Lab, pods: Sequence[Pod]) -> None:
    """Until one pod of each host has reached one of each other, by each family that pods have."""
    firsts = [next(pod for pod in pods if pod.host is host) for host in dict.fromkeys(pod.host for pod in pods)]
    families = [family for family in ("v4", "v6") if all(pod.address(family) for pod in pods)]

    def join(near: Pod, far: Pod) -> None:
        for family in families:
            reach = partial(ping, near, far.address(family), wait=0.3)
            wait_for(f"ping {family} from {near.label} to {far.label}", reach, JOIN_DEADLINE)

    lab.parallel(*(partial(join, near, far) for near, far in pairs(firsts)))


def wait_group_known(lab: Lab, sender: Pod, others: Sequence[Pod], group: str, port: int) -> None:
    """A joined group reaches other hosts with their records: knock on ``port`` until each host has heard one."""
    enough = {"enough": 1, "timeout": JOIN_DEADLINE}
    elsewhere = [pod for pod in others if pod.host is not sender.host]
    heard = [
        lab.traffic.listen(pod, "mcast-recv", group=group, interface="eth0", port=port, **enough) for pod in elsewhere
    ]
    knocks = lab.traffic.start(
        sender, "mcast-send", to=group, interface="eth0", port=port, count=int(JOIN_DEADLINE) * 20, pps=20
    )
    try:
        late = [task.what for task in heard if not task.result(JOIN_DEADLINE + 5)["unique"]]
    finally:
        knocks.kill()
    if late:
        raise LabError(f"{group}: not heard within {JOIN_DEADLINE} s: {', '.join(late)}")
