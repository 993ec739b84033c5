"""Machines go and come back, and no address is ever with two pods: blocks of a Node that is gone are given away by the
rule of design-kubernetes 1, with its 15 minutes shortened to FENCE seconds.

Last in the room, because nodes do not stay. Powering off is killing a node's first process with its wire down.
"""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

import pytest
from kubernetes import commands, pods, product, results, rollout
from kubernetes.blocks import Block, addresses, blocks, held_by, outside, strays, twice, uids
from kubernetes.cluster import Cluster, Node, wait_for
from kubernetes.test_life import wire

SOAK: Final = bool(os.environ.get("SOAK"))
ROUNDS: Final = 20 if SOAK else 3
FENCE, JITTER = 6, 2
FREED_SECONDS: Final = FENCE + JITTER + 25
"""The rule's time, and until its Pods are off the list and every router has looked again."""
PODS: Final = 4
WAYS: Final = ("another machine, blocks freed", "the same disk, blocks freed", "the same disk, blocks held")
CUT_SECONDS: Final = 5.0
"""From the heal to the cut-off: the mesh calls again within some 2 s, whatever TCP does about the API's watches."""

pytestmark = pytest.mark.timeout(3600 if SOAK else 600)


def set_fence(cluster: Cluster) -> None:
    """Nothing happens where it is so already."""
    rollout.set_env(cluster, f"WEAVE_ROUTER_DEBUG_FENCE={FENCE}", f"WEAVE_ROUTER_DEBUG_FENCE_JITTER={JITTER}")


@pytest.fixture(scope="module", autouse=True)
def short_fence(cluster: Cluster) -> None:
    set_fence(cluster)


@pytest.fixture
def victim(cluster: Cluster) -> Iterator[Node]:
    """node-3, up again under the same name whatever the test did to it."""
    node = cluster.nodes[-1]
    yield node
    assert node.holder is not None
    if node.holder.poll() is None and not is_ready(cluster, node):
        node.power_off()
    if node.holder.poll() is not None:
        return_to_service(cluster, node)


def is_ready(cluster: Cluster, node: Node) -> bool:
    return rollout.ready_since(cluster).get(node.name, "").startswith("True")


def return_to_service(cluster: Cluster, node: Node, *, new_disk: bool = True) -> None:
    """Router first, then Node: until the new kubelet speaks, the API has of both what was before the power went."""
    before = rollout.container(rollout.router_pods(cluster).get(node.name))
    heard = rollout.heartbeat(cluster, node)
    with rollout.pulled(cluster) as archives:
        node.power_on(new_disk=new_disk, more_images=archives)

    def serves() -> bool:
        pod = rollout.router_pods(cluster).get(node.name)
        return rollout.is_ready(pod) and rollout.container(pod) != before

    wait_for(f"{node.name} serves", serves, 90)
    wait_for(f"{node.name} Ready", lambda: is_ready(cluster, node) and rollout.heartbeat(cluster, node) != heard, 90)


def settled(cluster: Cluster, names: list[str]) -> None:
    """All of them run, no address is with two, and each lies in a block of its node."""
    product.wait_running(cluster, names, 90)
    assert twice(cluster.nodes) == []
    for node in cluster.nodes:
        assert outside(cluster, node) == [], node.name


def forget(cluster: Cluster, node: Node) -> None:
    """As an operator who knows that the machine is off: the Node, and at once what was bound to it."""
    cluster.kubectl("delete", "node", node.name, "--wait=false")
    cluster.kubectl("delete", "pods", "-A", "--field-selector", f"spec.nodeName={node.name}", "--force",
                    "--grace-period=0", "--wait=false")


def wait_freed(cluster: Cluster, held: list[Block]) -> float:
    """Seconds until nobody, or another one, holds them."""
    began = time.monotonic()
    assert held
    gone = {block.uid for block in held}
    wait_for(f"{len(held)} blocks free", lambda: not [b for b in blocks(cluster) if b.uid in gone], FREED_SECONDS, 0.5)
    return time.monotonic() - began


def many(node: Node, label: str) -> list[dict]:  # type: ignore[type-arg]
    return [pods.pod(f"{label}-{node.name}-{n}", node.name) for n in range(PODS)]


def names_of(made: list[dict]) -> list[str]:  # type: ignore[type-arg]
    return [item["metadata"]["name"] for item in made]


def test_rounds_of_a_dead_machine_and_its_name_again(cluster: Cluster, victim: Node) -> None:
    """In turn: another machine after its blocks were freed, the same disk after them, the same disk before."""
    rounds = []
    others = [item for node in cluster.nodes[:-1] for item in many(node, "stay")]
    with cluster.objects(*others):
        for number in range(ROUNDS):
            made = many(victim, f"round-{number}")
            with cluster.objects(*made):
                settled(cluster, names_of(others) + names_of(made))
                uid = uids(cluster)[victim.name]
                held = held_by(cluster, uid)
                victim.power_off()
                forget(cluster, victim)
                freed = wait_freed(cluster, held) if number % 3 < 2 else None
                return_to_service(cluster, victim, new_disk=number % 3 == 0)
                assert uids(cluster)[victim.name] != uid
                again = many(victim, f"again-{number}")
                with cluster.objects(*again):
                    settled(cluster, names_of(others) + names_of(again))
                    rounds.append({"round": number, "back": WAYS[number % 3], "blocks": len(held),
                                   "seconds_to_free": freed and round(freed, 1),
                                   "addresses": sum(len(addresses(node)) for node in cluster.nodes),
                                   "twice": len(twice(cluster.nodes))})
                    print(rounds[-1], flush=True)
                    wait_for("no block of a Node that is gone", lambda: not strays(cluster), FREED_SECONDS, 0.5)
    if SOAK:
        results.write("kubernetes-rounds.json", {"fence_seconds": FENCE, "rounds": rounds}, "rounds")


def test_drained_and_deleted(cluster: Cluster, victim: Node) -> None:
    """By the commands of docs/operations.md."""
    made = many(victim, "drained")
    with cluster.objects(*made):
        settled(cluster, names_of(made))
        held = held_by(cluster, uids(cluster)[victim.name])
        before, after = commands.block("Replace a node").split(commands.OFF)
        commands.execute(cluster, before, NODE=victim.name)
        assert not set(names_of(made)) & product.running(cluster)
        victim.power_off()
        assert "weave-router-block-" in commands.execute(cluster, after, NODE=victim.name)
        rollout.forget_router(cluster, victim)
        print(f"drained: free after {wait_freed(cluster, held):.1f} s")


def test_a_new_disk_under_the_same_node(cluster: Cluster, victim: Node) -> None:
    """Same UID, another identity: the blocks are its own at once, and its pods are made anew from them."""
    made = many(victim, "reimaged")
    with cluster.objects(*made):
        settled(cluster, names_of(made))
        uid = uids(cluster)[victim.name]
        before = held_by(cluster, uid)
        victim.power_off()
        return_to_service(cluster, victim)
        assert uids(cluster)[victim.name] == uid
        old = {block.holder for block in before}
        wait_for("taken over", lambda: not [b for b in held_by(cluster, uid) if b.holder in old], 90, 0.5)
        assert {block.name for block in before} <= {block.name for block in held_by(cluster, uid)}
        wait_made_anew(victim)
        settled(cluster, names_of(made))


def wait_made_anew(node: Node) -> None:
    """The API says what it was told last, before the machine went off: the kernel knows."""
    wait_for("its pods made anew", lambda: len(addresses(node)) >= PODS, 90, 0.5)


def test_cut_off_and_back_after_its_block_was_given_away(cluster: Cluster, victim: Node, tmp_path: Path) -> None:
    """Not a packet of its old pod reaches another node; its port is down, and an event says why.

    kubelet, which ends pods and router as soon as it reads that they were deleted, hangs at first: the router alone
    protects the others then, with a token that the API server does not take any more."""
    first = cluster.nodes[0]
    listening = pods.pod("listens", first.name)
    with cluster.objects(listening):
        product.wait_running(cluster, ["listens"])
        (target,) = [pod["status"]["podIP"] for pod in cluster.get("pods") if pod["metadata"]["name"] == "listens"]
        others = pod_ports(victim)  # perhaps of another block, which nobody gets: nobody tells of it
        with cluster.objects(pods.pod("old", victim.name, f"exec ping -i 0.1 {target}")):
            product.wait_running(cluster, ["old"])
            (port,) = pod_ports(victim).keys() - others.keys()
            (old,) = [pod["status"]["podIP"] for pod in cluster.get("pods") if pod["metadata"]["name"] == "old"]
            held = held_by(cluster, uids(cluster)[victim.name])
            block = next(block for block in held if IPv4Address(old) in block.network)
            victim.wire(False)
            forget(cluster, victim)
            wait_freed(cluster, held)
            give(cluster, block, first)
            exposed = next(str(address) for address in block.network.hosts() if str(address) != old)
            wait_for(f"{exposed} exposed", lambda: exposed in rollout.inside(
                cluster, first, "weave-router", "expose", exposed, check=False), 15)
            captures = [wire(node, tmp_path / node.name, "weave-tap", f"src host {old}") for node in cluster.nodes[:-1]]
            with captures[0], captures[1]:
                assert pod_ports(victim)[port]
                with victim.without_kubelet():
                    victim.wire(True)
                    began = time.monotonic()
                    wait_for("its port down", lambda: not pod_ports(victim)[port], 30, 0.05)
                    took = time.monotonic() - began
                    print(f"port down {took:.1f} s after the heal")
                    wait_for("the event", lambda: lost_events(cluster, victim), 30)
                    print(f"the event {time.monotonic() - began:.1f} s after the heal")
                    assert port in pod_ports(victim), "its pod ended before it was cut off"
                wait_for("its pods' end", lambda: not pod_ports(victim), 90)
            assert len(lost_events(cluster, victim)) == 1
            assert took <= CUT_SECONDS
            for node in cluster.nodes[:-1]:
                assert packets(tmp_path / node.name) == 0, f"packets of {old} reached {node.name}"
            rollout.inside(cluster, first, "weave-router", "hide", exposed)


def give(cluster: Cluster, block: Block, node: Node) -> None:
    """The Lease as a claim of ``node`` would write it; returns when its router counts the block among its own."""
    status = json.loads(rollout.inside(cluster, node, "weave-router", "status", "--json"))
    holder = f"{uids(cluster)[node.name]}.{status['service']['id']}"
    patch = {"spec": {"holderIdentity": holder, "leaseTransitions": block.gen + 1},
             "metadata": {"annotations": {"weave-router.io/node": node.name}}}
    before = status["kubernetes"]["own_blocks"]
    cluster.kubectl(*rollout.SYSTEM, "patch", "lease", block.name, "--type=merge", "-p", json.dumps(patch))

    def has_it() -> bool:
        now = json.loads(rollout.inside(cluster, node, "weave-router", "status", "--json"))
        return bool(now["kubernetes"]["own_blocks"] > before)

    wait_for(f"{node.name} has {block.network}", has_it, 15)


def pod_ports(node: Node) -> dict[str, bool]:
    """Port of a pod of the node -> whether it is up."""
    found = json.loads(node.run("ip", "-j", "link", "show", "master", "weave").stdout)
    return {link["ifname"]: "UP" in link["flags"] for link in found if link["ifname"] != "weave-tap"}


def lost_events(cluster: Cluster, node: Node) -> list[str]:
    found = cluster.get("events", "-n", "default", "--field-selector", "reason=BlockLost")
    return [event["message"] for event in found if event["involvedObject"]["name"] == node.name]


def packets(capture: Path) -> int:
    listed = subprocess.run(["tcpdump", "-n", "-r", str(capture)], capture_output=True, text=True, check=True)
    return len(listed.stdout.splitlines())


def test_rebooted_while_the_api_is_away(cluster: Cluster, victim: Node) -> None:
    """Same disk, another boot id, and a router that reaches no API server: pods start, and no address is there twice.

    kubelet itself starts nothing without the API, so it is the router alone that cannot reach it."""
    made = many(victim, "rebooted")
    by_hand = {"type": "OnDelete", "rollingUpdate": None}
    (daemon_set,) = cluster.get("ds", *rollout.SYSTEM, "-l", "name=weave-router")
    with cluster.objects(*made):
        settled(cluster, names_of(made))
        set_strategy(cluster, by_hand)
        cluster.kubectl(*rollout.SYSTEM, "set", "env", "ds/weave-router", "WEAVE_ROUTER_DEBUG_BOOT_ID=another-boot",
                        f"WEAVE_ROUTER_KUBERNETES_API={cluster.nodes[0].v4}:1")
        victim.power_off()
        rollout.forget_router(cluster, victim)
        return_to_service(cluster, victim, new_disk=False)
        wait_made_anew(victim)
        settled(cluster, names_of(made))
        assert json.loads(rollout.inside(cluster, victim, "weave-router", "status", "--json"))["kubernetes"]["troubles"]
    cluster.kubectl(*rollout.SYSTEM, "set", "env", "ds/weave-router", "WEAVE_ROUTER_DEBUG_BOOT_ID-",
                    "WEAVE_ROUTER_KUBERNETES_API-")
    cluster.kubectl(*rollout.SYSTEM, "delete", "pod", rollout.router_pod(cluster, victim))
    set_strategy(cluster, daemon_set["spec"]["updateStrategy"])
    rollout.wait_rolled_out(cluster)


def set_strategy(cluster: Cluster, strategy: dict[str, object]) -> None:
    cluster.kubectl(*rollout.SYSTEM, "patch", "ds", "weave-router", "--type=merge", "-p",
                    json.dumps({"spec": {"updateStrategy": strategy}}))
