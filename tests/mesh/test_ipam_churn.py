"""Pods come and go at random on three hosts while routers are killed and relaunched; then the kernel is asked.

    h1 ── switch ── h2, h3      two thirds of the pods on h1: it needs blocks of the others

Each pod's request goes through attach.sock and the API as the command sends it. A request that dies with its router is
neither repeated nor taken back: what became of it must be the same in kernel, store and status. ``SOAK=1`` (`make
soak-mesh`) runs 600 pods, otherwise 60.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from random import Random

import msgspec
import pytest
from lab.books import kernel_addresses, node_of
from lab.lab import Lab
from lab.namespace import run
from lab.network import Pod
from lab.router import Router, wait_for
from model.invariants import violations

from weave_router.api import schema
from weave_router.api.client import ApiClient
from weave_router.errors import NotRunningError, UserError
from weave_router.host.faults import Fault, HostError
from weave_router.host.handover_driver import hand_over, open_pod
from weave_router.host.names import GRAVE_GROUP

SOAK = os.environ.get("SOAK", "") not in ("", "0")
PODS = 600 if SOAK else 60
RANGE = "10.32.0.0/22" if SOAK else "10.32.0.0/25"
SHARES = (4, 1, 1)
WORKERS = 3
"""Requests under way on each host."""
OPERATIONS = 4
"""Of each pod and round."""
ROUNDS = 2
SEED = 4
REFUSALS = ("no free address", "hung up", "no such pod is attached here")
"""Of a router that has none, that was killed while it worked, or before it attached; any other sentence fails."""


@dataclass
class Tally:
    """What became of the requests."""

    counts: Counter[str] = field(default_factory=Counter)
    doubles: list[str] = field(default_factory=list)
    holders: dict[str, str] = field(default_factory=dict)
    """Address -> pod, while it is sure that the pod has it."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    pause: threading.Event = field(default_factory=threading.Event)
    """Never set: to wait a moment for a router that is being relaunched."""

    def count(self, what: str) -> None:
        with self.lock:
            self.counts[what] += 1

    def has(self, pod: Pod, address: str) -> None:
        with self.lock:
            other = self.holders.setdefault(address, pod.name)
            if other != pod.name:
                self.doubles.append(f"{address}: {other} and {pod.name}")

    def unsure(self, pod: Pod) -> None:
        with self.lock:
            self.holders = {address: name for address, name in self.holders.items() if name != pod.name}


def attach(router: Router, pod: Pod) -> str:
    handle = open_pod(str(pod.path))
    try:
        request = schema.AttachRequest(netns=str(pod.path), ifname="eth0", container_id=pod.name)
        reply = hand_over(router.host.run_dir / "attach.sock", msgspec.to_builtins(request), handle, timeout=20)
    finally:
        handle.close()
    if "error" in reply:
        raise UserError(str(reply["error"]))
    return str(reply["address"]).partition("/")[0]


def detach(router: Router, pod: Pod) -> None:
    request = schema.DetachRequest(container_id=pod.name)
    ApiClient(str(router.host.run_dir)).post("/detach", request, schema.DetachReply)


def live(router: Router, pods: Sequence[Pod], rng: Random, tally: Tally, on: dict[str, bool]) -> None:
    """Every pod of the slice is attached and detached so many times, in random order."""
    plan = [pod for pod in pods for _ in range(OPERATIONS)]
    rng.shuffle(plan)
    for pod in plan:
        tally.unsure(pod)
        going = on.get(pod.name, False) and rng.random() < 0.6
        try:
            while not served(router, pod, going, tally):
                tally.count("away")
            on[pod.name] = not going
            tally.count("detached" if going else "attached")
        except UserError as error:
            on[pod.name] = True  # perhaps
            tally.count(next((word for word in REFUSALS if word in str(error)), str(error)))
            tally.unsure(pod)


def served(router: Router, pod: Pod, going: bool, tally: Tally) -> bool:
    """False: no router was there to hear it."""
    try:
        if going:
            detach(router, pod)
        else:
            tally.has(pod, attach(router, pod))
    except NotRunningError:
        tally.pause.wait(0.05)
        return False
    except HostError as error:
        if error.fault is not Fault.HANDOVER_AWAY:
            raise
        tally.pause.wait(0.05)
        return False
    return True


def kill_at_random(routers: Sequence[Router], rng: Random, over: threading.Event, tally: Tally) -> None:
    while not over.wait(rng.uniform(0.1, 0.8)):
        router = rng.choice(routers)
        router.kill()
        tally.count("kills")
        over.wait(rng.uniform(0.0, 0.3))
        router.relaunch()


def addresses(router: Router) -> dict[str, str]:
    return {row["address"]: row["state"] for row in router.get("/status/addresses")}


def graves(router: Router) -> bool:
    """Pairs off the network that the router has not deleted yet: it does that in batches, a moment later."""
    return bool(run(["ip", "-n", router.host.name, "-brief", "link", "show", "group", str(GRAVE_GROUP)]).stdout)


def judge(lab: Lab, routers: Sequence[Router]) -> int:
    """Kernel, disk, status: the same, and nothing twice. Returns how many pods have an address."""
    seen: Counter[str] = Counter()
    nodes = []
    for router in routers:
        wait_for("detached pairs are deleted", lambda router=router: not graves(router), 5)
        with ThreadPoolExecutor(8) as pool:
            listed = [each for found in pool.map(kernel_addresses, router.host.pods) for each in found]
        seen.update(listed)
        known = addresses(router)
        bridge = router.get("/status/ipam")["bridge_address"]
        held = {address for address, state in known.items() if state != "resting"} - {bridge}
        assert held == set(listed), f"{router.name}: leaked {held - set(listed)}, unknown {set(listed) - held}"
        assert "claimed" not in known.values()
        assert router.cli("ipam", "check").stdout == "all agree\n"
        nodes.append(node_of(router, listed))
    assert [address for address, count in seen.items() if count > 1] == []
    assert list(violations(nodes)) == []
    return sum(seen.values())


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.mark.timeout(1800 if SOAK else 120)
def test_no_address_is_doubled_or_lost(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    switch = lab.switch()
    hosts = [lab.host(f"h{number}", switch) for number in (1, 2, 3)]
    options = {"ipalloc_range": RANGE, "flags": ["--ipalloc-init", "seed=h1,h2,h3"],
               "env": {"WEAVE_ROUTER_DEBUG_COOLDOWN": "1"}}  # fmt: skip
    targets = [host.address("v4") for host in hosts]
    routers = [lab.router(host, peers=[t for t in targets if t != host.address("v4")], **options) for host in hosts]
    lab.parallel(*(router.launch for router in routers))
    shares = zip(hosts, SHARES, strict=True)
    jobs = [(host, n) for host, share in shares for n in range(PODS * share // sum(SHARES))]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda job: lab.pod(job[0], f"p{job[1]}"), jobs))
    tally, on = Tally(), [dict[str, bool]() for _ in range(len(routers) * WORKERS)]
    for turn in range(ROUNDS):
        over = threading.Event()
        killer = threading.Thread(target=kill_at_random, args=(routers, Random(f"{SEED} {turn}"), over, tally))
        killer.start()
        try:
            slices = [(router, router.host.pods[n::WORKERS]) for router in routers for n in range(WORKERS)]
            with ThreadPoolExecutor(len(slices)) as pool:
                futures = [pool.submit(live, router, pods, Random(f"{SEED} {turn} {n}"), tally, on[n])
                           for n, (router, pods) in enumerate(slices)]  # fmt: skip
                for future in futures:
                    future.result()
        finally:
            over.set()
            killer.join()
        assert tally.doubles == []
        standing = judge(lab, routers)
        with capsys.disabled():
            print(f"\nround {turn + 1}: {standing} of {PODS} pods stand, {dict(tally.counts)}")
    known = {"attached", "detached", "away", "kills", *REFUSALS}
    assert tally.counts.keys() <= known and tally.counts["kills"] > 0 and tally.counts["attached"] > PODS
    for router in routers:
        for pod in router.host.pods:
            if kernel_addresses(pod):
                detach(router, pod)
    assert judge(lab, routers) == 0
    wait_for("every address is free again", lambda: all(len(addresses(router)) == 1 for router in routers), 10)
