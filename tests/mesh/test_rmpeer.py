"""`rmpeer` with real routers, kernels and pods: the addresses of hosts that are off for ever come back.

    h1 ── switch ── h2, h3, h4      all linked with all

A host that is off: its router is killed and not started again. What the rules refuse is the checker's and the unit
tests' business; here are the wire, the command and the kernel.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import IPv4Address

import pytest
from lab.lab import Lab
from lab.router import Router, RouterError, ping, program, wait_for, wait_ping
from mesh.test_ipam import agree, gate, said

from weave_router.api import schema
from weave_router.api.client import ApiClient
from weave_router.errors import UserError

RANGE = "10.32.0.0/25"
NUMBERS = range(int(IPv4Address("10.32.0.1")), int(IPv4Address("10.32.0.127")))


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


def started(lab: Lab, count: int) -> list[Router]:
    switch = lab.switch()
    hosts = [lab.host(f"h{number}", switch) for number in range(1, count + 1)]
    names = ",".join(host.label for host in hosts)
    routers = [lab.router(host, peers=[hosts[0].address("v4")] if host is not hosts[0] else [], ipalloc_range=RANGE,
                          flags=["--ipalloc-init", f"seed={names}"]) for host in hosts]  # fmt: skip
    lab.parallel(*(router.launch for router in routers))
    for router in routers:
        wait_for("the others", lambda router=router: len(members(router)) == count and all(
            member["reachable"] and member["standing"] == "member" for member in members(router).values()))  # fmt: skip
    return routers


def members(router: Router) -> dict[str, dict[str, object]]:
    return {member["nickname"]: member for member in router.get("/status/ipam")["members"]}


def gone(dead: Router, *left: Router) -> None:
    """Off, and everybody has seen it."""
    dead.kill()
    for router in left:
        wait_for("it is missed", lambda router=router: not members(router)[dead.host.label]["reachable"], 10)


def give_everything(*routers: Router) -> None:
    """Every number of the range is claimed from one of them that gives it; what is full asks the others for blocks
    meanwhile. Then none is missing and none is with two."""
    apis = [ApiClient(str(router.host.run_dir)) for router in routers]

    def all_given() -> bool:
        missing = set(NUMBERS) - set(used(*routers))
        for number in missing:
            for api in apis:
                with suppress(UserError):
                    api.post("/claim", schema.ClaimRequest(address=str(IPv4Address(number))), schema.AddressesReply)
                    break
        return not missing

    wait_for("the whole range is in use", all_given)
    assert sorted(used(*routers)) == list(NUMBERS)


def used(*routers: Router) -> list[int]:
    """Bridges, pods and claims; who is with two stands here twice."""
    return [int(IPv4Address(row["address"])) for router in routers for row in router.get("/status/addresses")]


def test_the_range_of_a_dead_host_is_given_again(lab: Lab) -> None:
    one, two, three = started(lab, 3)
    dead, near = three.attach(lab.pod(three.host, "dead")), two.attach(lab.pod(two.host, "near"))
    wait_ping(near, str(dead.v4))
    assert "h3 can be reached: only a machine that is off for ever" in said(one, "rmpeer", "h3")
    assert "h9 names 0 members: give name or id of one of h1, h2, h3" in said(one, "rmpeer", "h9")
    gone(three, one, two)
    share = members(one)["h3"]["addresses"]
    done = one.cli("rmpeer", str(members(one)["h3"]["peer"])[:8])
    assert done.stdout == f"retired h3: {share} addresses are this node's now\n"
    for router in (one, two):
        wait_for("it is known", lambda router=router: members(router)["h3"]["standing"] == "retired")
        assert members(router)["h3"]["addresses"] == 0
    assert one.cli("rmpeer", "h3").stdout == "h3: retired before, or without an address\n"
    claim = ("claim", str(dead.v4), "--container-id", "heir")
    wait_for("the blocks may be used", lambda: one.cli(*claim, check=False).returncode == 0)
    heir = one.attach(lab.pod(one.host, "heir"), "", "--container-id", "heir")
    assert heir.v4 == dead.v4
    wait_ping(near, str(dead.v4))
    assert ping(heir, str(near.v4))
    give_everything(one, two)
    agree(one, two)
    # it is started again after all: it owns nothing, its pod says nothing, and it says why
    three.relaunch()
    wait_for("it knows", lambda: gate(three) == "retired")
    assert "this node was retired" in said(three, "attach", str(lab.pod(three.host, "late").path))
    wait_for("its pod is cut off", lambda: not ping(dead, "10.32.0.1", wait=0.3))
    assert ping(heir, str(near.v4)) and ping(near, str(heir.v4))
    three.kill()
    with pytest.raises(RouterError, match="this node was retired"):
        three.launch()


def test_a_coordinator_that_dies_is_superseded_by_a_round_that_retires_it_too(lab: Lab) -> None:
    one, two, three, four = started(lab, 4)
    pods = {router: router.attach(lab.pod(router.host, "p")) for router in (one, four)}
    gone(four, one, two, three)
    gone(three, one, two)
    late = said(one, "rmpeer", "h4", "--timeout", "1")
    assert "waiting for the promise of h3; h1, h2 promised" in late
    assert "h3 did not promise within 1 s: the retirement of h4 stays open" in late
    assert "h1 is retiring h4: h1, h2 promised, h3 did not yet" in one.cli("status", "ipam").stdout
    assert "the retirement of h4 waits for the promise of h3" in one.cli("doctor", check=False).stdout
    assert "h1 is retiring h4: this node has promised" in two.cli("doctor", check=False).stdout
    assert "this node is retiring h4 already" in said(one, "rmpeer", "h3")
    assert "h1 has a retirement of the same machine open" in said(two, "rmpeer", "h4")
    gone(one, two)
    three.relaunch()
    wait_for("h2 and h3", lambda: members(two)["h3"]["reachable"] and members(three)["h2"]["reachable"])
    assert "h1 has a retirement of the same machine open" in said(two, "rmpeer", "h4")
    assert "not retired: h1 has a retirement of the same machine open" in said(three, "rmpeer", "h4")
    assert two.cli("rmpeer", "h1", "h4").stdout.startswith("retired h1, h4: ")
    wait_for("h3 knows", lambda: members(three)["h1"]["standing"] == members(three)["h4"]["standing"] == "retired")
    assert not two.get("/status/ipam")["retirements"] and not three.get("/status/ipam")["retirements"]
    wait_for("the blocks may be used", lambda: all(
        two.cli("claim", str(pod.v4), check=False).returncode == 0 for pod in pods.values()))  # fmt: skip
    give_everything(two, three)
    agree(two, three)
    two.kill()
    two.relaunch()
    assert two.cli("rmpeer", "h4").stdout == "h4: retired before, or without an address\n"  # by a name nobody announces


def test_a_round_goes_on_after_its_router_was_killed_and_can_be_given_up(lab: Lab) -> None:
    one, two, three = started(lab, 3)
    gone(three, one, two)
    gone(two, one)
    assert "h2 did not promise" in said(one, "rmpeer", "h3", "--timeout", "0")
    one.kill()
    one.relaunch()
    assert [each["state"] for each in one.get("/status/ipam")["retirements"]] == ["open"]
    assert one.cli("rmpeer", "--abort").stdout.startswith("given up: the retirement of ")
    assert "no retirement of this node is open" in said(one, "rmpeer", "--abort")
    assert "was given up: what they say about addresses is not followed any more" in " ".join(one.status()["warnings"])
    two.relaunch()
    wait_for("h2 is back", lambda: "h2" in members(one) and members(one)["h2"]["reachable"])
    name = next(str(m["peer"]) for m in members(one).values() if m["standing"] == "retiring")
    assert one.cli("rmpeer", name).stdout.startswith("retired ")
    wait_for("h2 knows", lambda: name in {m["peer"] for m in members(two).values() if m["standing"] == "retired"})


def test_a_lost_majority_by_the_word_typed_out(lab: Lab) -> None:
    one, two, three = started(lab, 3)
    for dead in (two, three):
        gone(dead, one)
    assert "h2, h3: more than half of the members cannot be retired at once" in said(one, "rmpeer", "h2", "h3")
    command = [program(), "rmpeer", "h2", "h3", "--lost-majority", "--json", "--run-dir", str(one.host.run_dir)]
    for word, status in (("yes\n", 1), ("lost-majority\n", 0)):
        done = subprocess.run(command, input=word, capture_output=True, text=True, timeout=30)
        assert done.returncode == status and "You promise that h2, h3 are off" in done.stderr
    assert '"state": "done"' in done.stdout
    assert members(one)["h1"]["addresses"] == 128
