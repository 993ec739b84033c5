"""Whole routers in Kubernetes mode: peers, blocks and token by a real API server, pods in namespaces.

    api ── switch ── n1, n2, n3      each a host of the laboratory with its router, and a Node object
"""

from __future__ import annotations

import base64
import json
from ipaddress import IPv4Address, IPv4Network

from kube.member import LEASES, SECRET, Member, edit_secret, holders
from kube.server import Server
from lab.lab import Lab
from lab.network import Pod
from lab.router import new_token, ping, wait_for, wait_ping

from weave_router.tunnel.token import Token


def begin(lab: Lab, routers: list[Member]) -> list[Pod]:
    """All at once; a pod of each."""
    lab.parallel(*(router.launch for router in routers))
    return [router.attach(lab.pod(router.host, "p")) for router in routers]


def test_a_cluster_comes_up_and_its_token_rotates(lab: Lab, cluster: tuple[Server, list[Member]]) -> None:
    server, routers = cluster
    pods = begin(lab, routers)
    for pod in pods[1:]:
        wait_ping(pods[0], pod.address("v4"))
        wait_ping(pods[0], pod.address("v6"))
    assert len({router.status()["ipam"]["universe"] for router in routers}) == 1
    wait_for("two blocks each", lambda: all(len(holders(server, r)) == 2 for r in routers))
    wait_for("the condition", lambda: any(
        c["type"] == "NetworkUnavailable" and c["status"] == "False"
        for c in server.ask("GET", "api/v1/nodes/n1")["status"].get("conditions", [])))
    old = base64.b64decode(server.ask("GET", SECRET)["data"]["token"]).decode().strip()
    domain_file = lab.directory / "old"
    domain_file.touch(mode=0o600)
    domain_file.write_text(old + "\n")
    new = routers[0].cli("token", "new", "--domain-of", str(domain_file)).stdout.strip()
    with_all = pods[0].popen(["ping", "-i", "0.05", "-c", "400", "-W", "1", pods[1].address("v4")])
    for lines in ([old, new], [new, old], [new]):
        edit_secret(server, lines)
        wanted = [f"{Token.parse(line).id:08x}" for line in lines]
        wait_for(f"{wanted} everywhere", lambda wanted=wanted: all(r.status()["tokens"]["accepted"] == wanted
                                                                   for r in routers))
        wait_for("the Lease", lambda wanted=wanted: all(r.kube()["token"] == wanted[0] for r in routers))
    out, _ = with_all.communicate(timeout=60)
    assert " 0% packet loss" in out, out
    edit_secret(server, [new_token()])
    wait_for("the refusal", lambda: "refused" in str(routers[0].kube()["troubles"]))
    assert ping(pods[0], pods[1].address("v4"))


def test_a_target_that_is_a_node_too_is_forgotten_only_as_a_target(
    lab: Lab, cluster: tuple[Server, list[Member]]
) -> None:
    server, routers = cluster
    lab.parallel(*(router.launch for router in routers))
    first, second = routers[0], routers[1].host.address("v4")
    wait_for("the Nodes", lambda: second in called(first))
    refused = first.cli("forget", second, check=False)
    assert refused.returncode == 1
    assert f"{second} is the address of a Node of the cluster and is called as long as that is there" in refused.stderr
    first.cli("connect", second)
    assert f"{second} is the address of a Node too and is called as long as that is there" in first.cli(
        "forget", second).stdout
    assert second in called(first)
    first.cli("connect", second)
    server.ask("DELETE", "api/v1/nodes/n2")
    wait_for("its other address goes with the Node", lambda: routers[1].host.address("v6") not in called(first))
    assert second in called(first), "somebody named it"
    first.cli("forget", second)
    assert second not in called(first)
    gone = first.cli("rmpeer", "n2", check=False)
    assert gone.returncode == 1 and "whose a block is says the Kubernetes API here: delete the Node" in gone.stderr


def called(router: Member) -> list[str]:
    return [target["address"] for target in router.status()["targets"]]


def test_a_node_that_is_gone_and_one_that_comes_back(lab: Lab, cluster: tuple[Server, list[Member]]) -> None:
    """n3 loses its link and its Node; its blocks are freed and given to n1; healed, it cuts its pods off."""
    server, routers = cluster
    pods = begin(lab, routers)
    first, _, third = routers
    wait_ping(pods[0], pods[2].address("v4"))
    wait_for("two blocks", lambda: len(holders(server, third)) == 2)
    lost = set(holders(server, third))
    server.ask("DELETE", "api/v1/nodes/n3")
    third.host.ip("link set eth0 down")
    wait_for("freed", lambda: {server.leases()[name] for name in lost} == {""}, 40)
    assert ping(pods[0], pods[1].address("v4"))
    mine = first.status()["service"]["id"]
    uid = server.ask("GET", "api/v1/nodes/n1")["metadata"]["uid"]
    for name in lost:  # what a claim of n1 does when the draw falls on it
        lease = server.ask("GET", f"{LEASES}/{name}")
        lease["spec"] |= {"holderIdentity": f"{uid}.{mine}", "leaseTransitions": 1}
        server.ask("PUT", f"{LEASES}/{name}", lease)
    network = block_of(pods[2].address("v4"), lost)
    wait_for("n1 has it", lambda: first.kube()["own_blocks"] == 4)
    third.host.ip("link set eth0 up")
    server.add_node("n3", third.host.address("v4"))
    wait_for("cut off", lambda: port_state(third) == "DOWN", 20)
    assert f"block {network} is lost" in json.dumps(third.kube()["troubles"])
    assert not ping(pods[0], pods[2].address("v4"), wait=0.5)
    name = network.replace(".", "-").replace("/", "-")
    wait_for("the event", lambda: lost_events(server) == [f"n3.weave-router-block-{name}-lost-1"])
    third.kill()
    third.launch()
    assert port_state(third) == "DOWN"
    fresh = third.attach(lab.pod(third.host, "q"))
    wait_ping(pods[0], fresh.address("v4"))


def test_routers_that_all_start_while_the_api_is_away(lab: Lab, cluster: tuple[Server, list[Member]]) -> None:
    """They find each other by what they kept, and a new pod's first packet arrives."""
    server, routers = cluster
    pods = begin(lab, routers)
    for far in pods[1:]:
        wait_ping(pods[0], far.address("v4"))
    wait_for("two blocks each", lambda: all(router.kube()["own_blocks"] == 2 for router in routers))
    server.stop()
    for router in routers:
        router.kill()
    lab.parallel(*(router.launch for router in routers))
    fresh = routers[2].attach(lab.pod(routers[2].host, "q"))
    assert all(ping(fresh, far.address("v4")) for far in pods)


def lost_events(server: Server) -> list[str]:
    """Their names: n3 and n1 may both tell, and give it the same."""
    found = server.ask("GET", "api/v1/namespaces/default/events")["items"]
    return sorted(event["metadata"]["name"] for event in found if event["reason"] == "BlockLost")


def port_state(router: Member) -> str:
    """Of the first pod's port."""
    port = router.status()["ipam"]["attachments"][0]["port"]
    out = router.host.run(["ip", "-j", "link", "show", "dev", port]).stdout
    return "UP" if "UP" in json.loads(out)[0]["flags"] else "DOWN"


def block_of(address: str, names: set[str]) -> str:
    networks = [IPv4Network("{}.{}.{}.{}/{}".format(*name.removeprefix("weave-router-block-").split("-")))
                for name in names]
    return str(next(network for network in networks if IPv4Address(address) in network))
