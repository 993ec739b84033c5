"""Addresses that the router gives: by its own IPAM, claimed by the runtime, exhausted, gated, and never leaked.

    h1 (its own range) --- switch --- h2 (lists h1)
"""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from cni.node import Node, added, quiet
from lab.lab import Lab
from lab.namespace import Namespace
from lab.router import ping, wait_for

SHORT_REST = {"WEAVE_ROUTER_DEBUG_COOLDOWN": "1"}


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def alone(lab: Lab, *flags: str, **options: object) -> Node:
    return Node(lab.router(lab.host("h1", lab.switch()), flags=flags, **options).launch())


def states(node: Node) -> dict[str, str]:
    return {row["address"]: row["state"] for row in node.router.get("/status/addresses")}


def address_of(result: dict[str, list[dict[str, str]]]) -> str:
    return result["ips"][0]["address"].partition("/")[0]


def test_add_gives_del_rests_and_a_repeated_add_keeps(lab: Lab) -> None:
    node, (one, two) = alone(lab), [lab.namespace(f"p{n}") for n in range(2)]
    first = added(node.run("ADD", one))
    assert first["ips"][0]["address"] == "10.32.0.2/12" and len(first["ips"]) == 2
    assert ping(one, "10.32.0.1") and states(node) == {"10.32.0.1": "used", "10.32.0.2": "used"}
    assert added(node.run("ADD", one)) == first
    quiet(node.run("CHECK", one, prevResult=first))
    second = added(node.run("ADD", two, "c2"))
    assert address_of(second) == "10.32.0.3" and ping(two, "10.32.0.2") and ping(one, second["ips"][1]["address"][:-3])
    quiet(node.run("DEL", one))
    assert states(node)["10.32.0.2"] == "resting"
    third = address_of(added(node.run("ADD", one, "c3")))
    assert third not in ("10.32.0.1", "10.32.0.2", "10.32.0.3")
    node.router.kill()
    node.router.launch()
    assert node.attachments() == [("c2", "10.32.0.3"), ("c3", third)] and ping(one, "10.32.0.3")
    assert node.router.cli("ipam", "check").stdout == "all agree\n"


def test_without_ipv6(lab: Lab) -> None:
    """Neither pod nor bridge; and again with, after a restart."""
    node, (one, two) = alone(lab, "--ipv6", "off"), [lab.namespace(f"p{n}") for n in range(2)]
    result = added(node.run("ADD", one))
    assert [ip["address"] for ip in result["ips"]] == ["10.32.0.2/12"] and ping(one, "10.32.0.1")
    assert "inet6 fd" not in one.run(["ip", "address"]).stdout
    node.router.cli("expose", "10.32.0.9")
    assert "inet6 fd" not in node.router.host.run(["ip", "address", "show", "weave"]).stdout
    status = node.router.status()["ipam"]
    assert status.get("range_ipv6", "") == "" and [pod.get("ipv6", "") for pod in status["attachments"]] == [""]
    refused = node.run("ADD", two, "c2", routes=[{"dst": "2001:db8::/32"}])
    assert refused.code == 7 and "--ipv6" in refused.value["msg"]
    quiet(node.run("CHECK", one, prevResult=result))
    quiet(node.run("DEL", one))
    node.router.stop()
    node.router.flags = []
    node.router.launch()
    assert len(added(node.run("ADD", two, "c2"))["ips"]) == 2
    assert "inet6 fd" in node.router.host.run(["ip", "address", "show", "weave"]).stdout


def test_claims_of_the_runtime(lab: Lab) -> None:
    node, (one, two) = alone(lab), [lab.namespace(f"p{n}") for n in range(2)]
    node.router.cli("claim", "10.32.0.50", "--container-id", "c1")
    assert address_of(added(node.run("ADD", one))) == "10.32.0.50"  # claimed before, by a person
    taken = node.run("ADD", two, "c2", args="IP=10.32.0.50")
    assert taken.code == 102 and "belongs to container c1" in taken.value["msg"]
    assert address_of(added(node.run("ADD", two, "c2", runtimeConfig={"ips": ["10.32.0.60/12"]}))) == "10.32.0.60"
    quiet(node.run("DEL", two, "c2"))
    resting = node.run("ADD", two, "c3", args="IP=10.32.0.60")
    assert resting.code == 11 and "rests" in resting.value["msg"]
    assert address_of(added(node.run("ADD", two, "c2", args="IP=10.32.0.60"))) == "10.32.0.60"  # its own, at once


def test_a_failed_add_keeps_no_address(lab: Lab) -> None:
    node, pod = alone(lab), lab.namespace("p")
    pod.ip("link add eth0 type veth peer name other")
    assert node.run("ADD", pod).code == 103
    assert (node.attachments(), node.ports()) == ([], [])
    assert {address for address, state in states(node).items() if state == "used"} == {"10.32.0.1"}


def test_exhausted_is_an_error_of_add_and_never_of_status(lab: Lab) -> None:
    node = alone(lab, "--ipalloc-default-subnet", "10.32.1.0/30", env=SHORT_REST)
    pods = [lab.namespace(f"p{n}") for n in range(3)]
    for number in range(2):
        added(node.run("ADD", pods[number], f"c{number}"))
    begun = time.monotonic()
    full = node.run("ADD", pods[2], "c2")
    assert full.code == 101 and "no free address in 10.32.1.0/30" in full.value["msg"]
    assert time.monotonic() - begun < 2.5
    quiet(node.run("STATUS", None))
    quiet(node.run("DEL", pods[0], "c0"))
    wait_for("the rest to end", lambda: node.run("ADD", pods[2], "c2").status == 0)
    assert len(node.attachments()) == 2


def test_a_gate_says_try_again(lab: Lab) -> None:
    seed = ("--ipalloc-init", "seed=h1,h2")
    switch = lab.switch()
    h1, h2 = lab.host("h1", switch), lab.host("h2", switch)
    nodes = [Node(lab.router(h1, flags=seed).launch()), Node(lab.router(h2, flags=seed, peers=[h1.address()]).launch())]
    pods = [lab.namespace(f"p{n}") for n in range(2)]
    for node, pod in zip(nodes, pods, strict=True):
        wait_for("the first address", lambda node=node, pod=pod: node.run("ADD", pod).status == 0)
    nodes[0].router.kill()
    nodes[1].router.kill()
    pods[1].delete()
    nodes[1].router.reboot_id()
    nodes[1].shim.boot_id = nodes[1].router.boot_id
    nodes[1].router.launch()
    late = lab.namespace("late")
    gated = nodes[1].run("ADD", late, "c9")
    assert gated.code == 11 and "no other member has answered" in gated.value["msg"]
    assert nodes[1].attachments() == [] and nodes[1].ports() == []
    nodes[0].router.launch()
    wait_for("the gate to open", lambda: nodes[1].run("ADD", late, "c9").status == 0)
    assert ping(late, nodes[0].attachments()[0][1])


def test_a_rebooted_node_serves_within_five_seconds(lab: Lab) -> None:
    """All that was attached is released, and the first ADD of the runtime, which tries again on code 11, works."""
    switch, seed = lab.switch(), ("--ipalloc-init", "seed=h1,h2")
    h1, h2 = lab.host("h1", switch), lab.host("h2", switch)
    near = Node(lab.router(h1, flags=seed).launch())
    far = Node(lab.router(h2, flags=seed, peers=[h1.address()]).launch())
    before, after, other = (lab.namespace(name) for name in ("before", "after", "other"))
    added(far.run("ADD", before))
    near_address = address_of(added(near.run("ADD", other, "c2")))
    far.router.kill()
    before.delete()
    far.router.reboot_id()
    far.shim.boot_id = far.router.boot_id
    far.router.launch()
    up_at = time.monotonic()
    assert far.attachments() == []
    wait_for("the first ADD", lambda: far.run("ADD", after, "c3").status == 0, deadline=5.0)
    assert time.monotonic() - up_at < 5.0 and ping(after, near_address)


def test_the_first_packet_works_across_hosts(lab: Lab) -> None:
    """Each pod's only packet is the first it may send: one echo, to the other host, right behind its ADD."""
    count = 200 if os.environ.get("SOAK") is None else 1000
    seed = ("--ipalloc-init", "seed=h1,h2")
    switch = lab.switch()
    h1, h2 = lab.host("h1", switch), lab.host("h2", switch)
    near = Node(lab.router(h1, flags=seed).launch())
    far = Node(lab.router(h2, flags=seed, peers=[h1.address()]).launch())
    target_pod = lab.namespace("target")
    target = address_of(added(far.run("ADD", target_pod, "target")))
    first = lab.namespace("first")
    added(near.run("ADD", first, "first"))
    wait_for("a session", lambda: ping(first, target))

    def pod(number: int) -> bool:
        space: Namespace = lab.namespace(f"p{number}")
        added(near.run("ADD", space, f"c{number}"))
        answered = ping(space, target)
        quiet(near.run("DEL", space, f"c{number}"))
        space.delete()
        return answered

    with ThreadPoolExecutor(4) as side_by_side:
        assert list(side_by_side.map(pod, range(count))) == [True] * count
