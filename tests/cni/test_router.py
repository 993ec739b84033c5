"""The installed executable and real routers: every verb in every version, pods that talk, restarts, the journal, GC.

        pod1, pod2 --- a (10.32.0.1) --- switch --- b (10.32.0.2) --- pod3
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cni import spec
from cni.conftest import selected
from cni.node import Node, added, quiet
from cni.shim import VERSIONS, Shim, installed
from lab.lab import Lab
from lab.namespace import Namespace, kill_process
from lab.router import ping, wait_for

from weave_router import limits
from weave_router.host import handover, handover_driver
from weave_router.host.conflist import NAME


@pytest.fixture(scope="module")
def nodes(lab: Lab) -> tuple[Node, Node]:
    switch = lab.switch()
    a, b = lab.host("a", switch), lab.host("b", switch)
    routers = [lab.router(a, bridge_address="10.32.0.1", peers=[b.address()]),
               lab.router(b, bridge_address="10.32.0.2", peers=[a.address()])]
    for router in routers:
        router.launch()
    for router in routers:
        wait_for("the other node", lambda router=router: len(router.status()["peers"]) == 2)
    return Node(routers[0]), Node(routers[1])


def fall_silent() -> None:
    with Lab() as lab:
        router = lab.router(lab.host("a", lab.switch()), bridge_address="10.32.0.1").launch()
        node, pod = Node(router), lab.namespace("silent")
        added(node.run("ADD", pod, args="IP=10.32.0.5"))
        os.kill(router.pid, signal.SIGSTOP)
        try:
            quiet(node.run("DEL", pod))  # 12 s: its own time-out, then the journal
            assert len(node.journal()) == 1
        finally:
            os.kill(router.pid, signal.SIGCONT)
        result = added(node.run("ADD", pod, args="IP=10.32.0.6"))
        assert result["ips"][0]["address"] == "10.32.0.6/12" and node.journal() == []
        quiet(node.run("DEL", pod))


@pytest.fixture(scope="module", autouse=True)
def silent(request: pytest.FixtureRequest) -> Iterator[Future[None] | None]:
    """In a lab of its own, beside the other tests: it waits for 12 s."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(fall_silent) if selected(request, "test_add_after_a_router_that_was_silent") else None


@pytest.fixture
def node(nodes: tuple[Node, Node]) -> Iterator[Node]:
    """The first one, as it was found when the test is over."""
    yield nodes[0]
    if not nodes[0].router.running:
        nodes[0].router.launch()
    assert nodes[0].attachments() == [] and nodes[0].journal() == []
    wait_for("the ports to go", lambda: nodes[0].ports() == [])


@pytest.fixture
def pods(lab: Lab) -> Iterator[list[Namespace]]:
    made = [lab.namespace(f"pod{time.monotonic_ns() % 10**9}{n}") for n in range(3)]
    yield made
    for pod in made:
        pod.delete()


@pytest.mark.parametrize("version", VERSIONS)
def test_every_verb_in_every_version(node: Node, pods: list[Namespace], version: str) -> None:
    pod = pods[0]
    result = added(node.run("ADD", pod, version=version, args="IgnoreUnknown=1;IP=10.32.0.5"))
    links = json.loads(pod.run(["ip", "-json", "address", "show", "eth0"]).stdout)[0]
    host = {link["ifname"]: link for link in json.loads(node.router.host.run(["ip", "-json", "link"]).stdout)}
    bridge, port, inside = result["interfaces"]
    spec.check_result(result, version)
    assert (bridge["name"], bridge["mac"]) == ("weave", host["weave"]["address"])
    assert port["mac"] == host[port["name"]]["address"] and "sandbox" not in port
    assert (inside["name"], inside["mac"], inside["sandbox"]) == ("eth0", links["address"], str(pod.path))
    assert inside.get("mtu") == (links["mtu"] if version == "1.1.0" else None)
    shown = {f"{a['local']}/{a['prefixlen']}" for a in links["addr_info"] if a["scope"] == "global"}
    assert {ip["address"] for ip in result["ips"]} == shown and len(shown) == 2
    assert [ip["interface"] for ip in result["ips"]] == [2, 2] and result["ips"][0]["gateway"] == "10.32.0.1"
    assert [ip.get("version") for ip in result["ips"]] == (["4", "6"] if version < "1.0.0" else [None, None])
    assert result["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.32.0.1"}] and result["dns"] == {}
    assert pod.run(["ip", "route", "show", "default"]).stdout.startswith("default via 10.32.0.1 dev eth0")
    assert added(node.run("ADD", pod, version=version, args="IP=10.32.0.5")) == result  # repeated: the same
    if version >= "0.4.0":
        quiet(node.run("CHECK", pod, version=version, prevResult=result))
    if version >= "1.1.0":
        quiet(node.run("STATUS", None))
        quiet(node.run("GC", None, **{"cni.dev/valid-attachments": []}))  # its namespace is there
        quiet(node.run("CHECK", pod))
    for _ in range(2):
        quiet(node.run("DEL", pod, version=version, prevResult=result))
    assert node.attachments() == []


def test_the_first_packet_works_both_ways(nodes: tuple[Node, Node], node: Node, pods: list[Namespace]) -> None:
    """Single addresses are announced in bursts of RECORD_OWN_BURST and then once per second, so the other node's
    knowledge is waited for; blocks, which are announced before they serve, need no such wait."""
    other = nodes[1]
    added(other.run("ADD", pods[2], "c3", args="IP=10.32.0.30"))
    wait_for("a to know", lambda: "10.32.0.30" in str(node.router.status()["ipam"]["blocks"]))
    for number in range(3):
        added(node.run("ADD", pods[0], args=f"IP=10.32.1.{number}"))
        shown = f"10.32.1.{number}/"
        wait_for("b to know", lambda shown=shown: shown in str(other.router.status()["ipam"]["blocks"]))
        source, target = (pods[0], "10.32.0.30") if number % 2 else (pods[2], f"10.32.1.{number}")
        assert ping(source, target), number
        quiet(node.run("DEL", pods[0]))
    quiet(other.run("DEL", pods[2], "c3"))


def test_ways_to_ask_for_an_address(node: Node, pods: list[Namespace]) -> None:
    asked: list[dict[str, Any]] = [
        {"args": "IP=10.32.0.5"}, {"args": "K8S_POD_NAME=x;IP=10.32.0.5/12;MAC=0A:58:0a:20:00:05"},
        {"runtimeConfig": {"ips": ["10.32.0.5/12"]}}, {"runtimeConfig": {"ips": ["10.32.0.5"]}, "args": "IP=10.32.0.6"},
    ]  # fmt: skip
    results = []
    for more in asked:
        results.append(added(node.run("ADD", pods[0], **more))["ips"])
        quiet(node.run("DEL", pods[0]))
    raw = node.shim.config("1.1.0", args={"cni": {"ips": [results[0][1]["address"], "10.32.0.5"]}})
    done = node.shim.run("ADD", raw, prefix=node.router.host.argv([]), CNI_NETNS=str(pods[0].path))
    results.append(added(done)["ips"])
    quiet(node.run("DEL", pods[0]))
    assert all(ips == results[0] for ips in results)


def test_chained_behind_another(node: Node, pods: list[Namespace]) -> None:
    before = {"cniVersion": "1.0.0", "interfaces": [{"name": "eth1", "sandbox": "/x"}],
              "dns": {"nameservers": ["10.9.9.9"]}, "ips": [{"address": "192.0.2.5/24", "interface": 0}],
              "routes": [{"dst": "192.0.2.0/24"}]}  # fmt: skip
    result = added(node.run("ADD", pods[0], version="1.0.0", args="IP=10.32.0.5", prevResult=before))
    assert result["interfaces"][0] == before["interfaces"][0] and result["ips"][0] == before["ips"][0]
    assert result["interfaces"][3]["name"] == "eth0" and {ip["interface"] for ip in result["ips"][1:]} == {3}
    assert result["routes"][0] == {"dst": "192.0.2.0/24"} and result["dns"] == before["dns"]
    quiet(node.run("CHECK", pods[0], version="1.0.0", prevResult=result))
    assert node.run("CHECK", pods[0], version="1.0.0", prevResult=before).code == 100
    quiet(node.run("DEL", pods[0], version="1.0.0"))


DEEP = json.loads("[" * (limits.CNI_NESTING_MAX + 1) + "]" * (limits.CNI_NESTING_MAX + 1))
REFUSALS: list[tuple[dict[str, Any], int, str]] = [
    ({}, 101, "this node gives no addresses"),
    ({"args": "IP"}, 4, "CNI_ARGS"),
    ({"args": "IP=nonsense"}, 7, "'nonsense'"),
    ({"args": "IP=192.0.2.5"}, 102, "not inside the range"),
    ({"args": "IP=2001:db8::5"}, 102, "not inside the range"),
    ({"args": "IP=" + ",".join(f"10.32.0.{5 + n}" for n in range(limits.POD_ADDRESSES_MAX + 1))}, 102, "more than"),
    ({"args": "IP=10.32.0.5,10.32.0.2"}, 103, "belongs to node"),
    ({"args": "IP=10.32.0.1"}, 103, "bridge"),
    ({"args": "IP=10.32.0.0"}, 103, "reserved"),
    ({"args": "IP=10.32.0.2"}, 103, "belongs to node"),
    ({"args": "IP=10.32.0.5;MAC=0a:58:0a:20:00:06"}, 102, "another address"),
    ({"args": "IP=10.32.0.5;MAC=01:00:00:00:00:01"}, 7, "no MAC of one station"),
    ({"args": "IP=10.32.0.5", "ifname": "-x"}, 4, "CNI_IFNAME"),
    ({"args": "IP=10.32.0.5", "ifname": "lo"}, 103, "already has an interface"),
    ({"args": "IP=10.32.0.5", "ipam": {"type": "host-local"}}, 2, '"ipam"'),
    ({"args": "IP=10.32.0.5", "mtu": 9000}, 7, '"mtu" 9000'),
    ({"args": "IP=10.32.0.5", "mtu": limits.POD_MTU_MIN - 1}, 7, '"mtu"'),
    ({"args": "IP=10.32.0.5", "routes": [{"dst": "192.0.2.0/24", "gw": "192.0.2.1"}]}, 7, '"gw" 192.0.2.1'),
    ({"args": "IP=10.32.0.5", "routes": [{"dst": "10.32.0.0/12"}]}, 103, "the pod has such a route"),
    ({"args": "IP=10.32.0.5", "name": ""}, 7, '"name"'),
    ({"args": "IP=10.32.0.5", "name": 5}, 6, "str"),
    ({"args": "IP=10.32.0.5", "dns": []}, 6, "dns"),
    ({"args": "IP=10.32.0.5", "prevResult": "x"}, 6, "prevResult"),
    ({"args": "IP=10.32.0.5", "prevResult": {"ips": [5]}}, 6, "prevResult"),
    ({"args": "IP=10.32.0.5", "runtimeConfig": {"ips": "x"}}, 6, "ips"),
    ({"args": "IP=10.32.0.5", "deep": DEEP}, 6, "nests deeper"),
]  # fmt: skip


@pytest.mark.parametrize(("more", "code", "words"), REFUSALS)
def test_refusals_leave_nothing(node: Node, pods: list[Namespace], more: dict[str, Any], code: int, words: str) -> None:
    done = node.run("ADD", pods[0], **more)
    assert (done.code, words in done.value["msg"]) == (code, True), done
    assert (node.attachments(), node.ports()) == ([], [])


@pytest.mark.parametrize("broken", [b'{"cniVersion":"1.0.0","name":"w",}', b'{"cniVersion":"1.0.0","a":{"b":1,"b":2}}',
                                    b'{"cniVersion":"1.0.0","a":\xff}', b'{"cniVersion":"1.0.0","a":NaN}'])  # fmt: skip
def test_json_that_only_the_router_sees_through(node: Node, pods: list[Namespace], broken: bytes) -> None:
    config = broken[:-1] + b',"socket":"' + str(node.shim.socket).encode() + b'"}'
    done = node.shim.run("ADD", config, prefix=node.router.host.argv([]), CNI_NETNS=str(pods[0].path))
    assert done.code == 6, done


def test_mtu_and_routes_of_the_configuration(node: Node, pods: list[Namespace]) -> None:
    asked = {"mtu": 1300, "routes": [{"dst": "192.0.2.0/24"}, {"dst": "2001:db8::/32"}],
             "ipam": {"routes": [{"dst": "0.0.0.0/0", "gw": "10.32.0.9"}]}}  # fmt: skip
    result = added(node.run("ADD", pods[0], args="IP=10.32.0.5", **asked))
    six = result["routes"].pop()
    assert six["dst"] == "2001:db8::/32" and six["gw"].endswith("a20:1")
    assert result["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.32.0.9"}, {"dst": "192.0.2.0/24", "gw": "10.32.0.1"}]
    assert [interface["mtu"] for interface in result["interfaces"][1:]] == [1300, 1300]
    link = json.loads(pods[0].run(["ip", "-json", "link", "show", "eth0"]).stdout)[0]
    assert link["mtu"] == 1300
    assert "192.0.2.0/24 via 10.32.0.1" in pods[0].run(["ip", "route"]).stdout
    assert pods[0].run(["ip", "route", "show", "default"]).stdout.startswith("default via 10.32.0.9 dev eth0")
    assert f"2001:db8::/32 via {six['gw']}" in pods[0].run(["ip", "-6", "route"]).stdout
    assert ping(pods[0], "10.32.0.1")
    quiet(node.run("CHECK", pods[0], **asked))
    assert "MTU" in node.run("CHECK", pods[0]).value["msg"]  # as for the router's own
    pods[0].ip("route del 192.0.2.0/24")
    assert "route to 192.0.2.0/24" in node.run("CHECK", pods[0], **asked).value["msg"]
    added(node.run("ADD", pods[0], args="IP=10.32.0.5", **asked))
    quiet(node.run("CHECK", pods[0], **asked))
    quiet(node.run("DEL", pods[0], **asked))


def test_a_requested_mac_is_known_everywhere(nodes: tuple[Node, Node], node: Node, pods: list[Namespace]) -> None:
    mac, other = "02:00:00:00:00:77", nodes[1]
    added(other.run("ADD", pods[2], "c3", args="IP=10.32.0.30"))
    result = added(node.run("ADD", pods[0], args=f"IP=10.32.0.5;MAC={mac}"))
    link = json.loads(pods[0].run(["ip", "-json", "link", "show", "eth0"]).stdout)[0]
    assert link["address"] == mac == result["interfaces"][2]["mac"]
    assert ping(pods[0], "10.32.0.1")
    wait_for("b to know", lambda: "10.32.0.5/" in str(other.router.status()["ipam"]["blocks"]))
    assert ping(pods[2], "10.32.0.5") and ping(pods[0], "10.32.0.30")
    assert ping(pods[2], result["ips"][1]["address"].partition("/")[0])
    for one, owner in ((node, "another pod"), (other, "a pod of node ")):
        taken = one.run("ADD", pods[1], "c2", args=f"IP=10.32.0.6;MAC={mac}")
        assert taken.code == 102 and owner in taken.value["msg"]
    node.router.kill()
    node.router.launch()
    quiet(node.run("CHECK", pods[0]))
    assert ping(pods[0], "10.32.0.1")
    assert added(node.run("ADD", pods[0], args=f"IP=10.32.0.5;MAC={mac}")) == result
    moved = added(node.run("ADD", pods[0], args="IP=10.32.0.5;MAC=02:00:00:00:00:78"))
    assert moved["interfaces"][2]["mac"] == "02:00:00:00:00:78"
    quiet(node.run("DEL", pods[0]))
    assert added(node.run("ADD", pods[1], args="IP=10.32.0.5"))["interfaces"][2]["mac"] == "0a:58:0a:20:00:05"
    wait_for("b to reach it by its own MAC", lambda: ping(pods[2], "10.32.0.5", wait=0.3))
    quiet(node.run("DEL", pods[1]))
    quiet(other.run("DEL", pods[2], "c3"))


def test_a_mac_asked_for_on_two_nodes_at_once_is_given_to_one(nodes: tuple[Node, Node], node: Node,
                                                              pods: list[Namespace]) -> None:
    """Both ADDs pass before either record arrives, most of the time; then one is told and leaves nothing."""
    for turn in range(3):
        mac = f"02:00:00:00:01:{turn:02x}"
        with ThreadPoolExecutor(2) as pool:
            done = [each.result() for each in [
                pool.submit(one.run, "ADD", pod, args=f"IP={ip};MAC={mac}")
                for one, pod, ip in zip(nodes, pods, ("10.32.0.5", "10.32.0.30"), strict=False)]]  # fmt: skip
        [loser] = [one for one in done if one.status]
        winner, at = added(next(one for one in done if one is not loser)), done.index(loser)
        assert loser.code == 102 and "a pod of node " in loser.value["msg"], loser
        assert nodes[at].attachments() == [] and winner["interfaces"][2]["mac"] == mac
        third = pods[2], f"c{turn}"
        added(nodes[at].run("ADD", *third, args="IP=10.32.0.31"))
        to = ("10.32.0.5", "10.32.0.30")[1 - at]
        wait_for("the one that has it", lambda to=to: ping(pods[2], to, wait=0.3))
        quiet(nodes[at].run("DEL", *third))
        quiet(nodes[1 - at].run("DEL", pods[1 - at]))


def test_a_mac_given_on_two_parted_nodes_is_named_when_they_meet(nodes: tuple[Node, Node],
                                                                 pods: list[Namespace]) -> None:
    """Both keep it and run on; everybody names the smaller node id as its owner until the other pod is gone."""
    mac, numbers = "02:00:00:00:02:01", ("10.32.0.5", "10.32.0.30")
    routers = [node.router for node in nodes]
    seen = [router.status()["counters"]["mac_conflicts_seen"] for router in routers]
    routers[0].host.wire.cut()
    for router in routers:
        wait_for("they are parted", lambda router=router: not any(
            peer["reachable"] for peer in router.status()["peers"] if peer["id"] != router.status()["service"]["id"]))
    for node, pod, number in zip(nodes, pods, numbers, strict=False):
        added(node.run("ADD", pod, args=f"IP={number};MAC={mac}"))
    routers[0].host.wire.mend()
    owner, other = sorted(nodes, key=lambda node: str(node.router.status()["service"]["id"]))
    for router, before in zip(routers, seen, strict=True):
        wait_for("the conflict is seen", lambda router=router: router.status()["ipam"]["mac_conflicts"])
        assert router.status()["ipam"]["mac_conflicts"] == [
            {"mac": mac, "owner": owner.router.name, "others": [other.router.name], "addresses": list(numbers)}]
        line = f"conflict: MAC {mac} belongs to {owner.router.name}, also given to pods of {other.router.name}"
        assert line in router.cli("status", "ipam").stdout
        assert f"MAC {mac} is had by pods of" in router.cli("doctor", check=False).stdout
        assert router.status()["counters"]["mac_conflicts_seen"] == before + 1
        assert "pods of two nodes have one MAC" in router.log()
        assert ping(router.host, "10.32.0.1" if router is routers[0] else numbers[1])
    quiet(other.run("DEL", pods[nodes.index(other)]))
    for router in routers:
        wait_for("it is over", lambda router=router: not router.status()["ipam"].get("mac_conflicts"))
    quiet(owner.run("DEL", pods[nodes.index(owner)]))


def test_several_addresses_of_one_pod(nodes: tuple[Node, Node], node: Node, pods: list[Namespace]) -> None:
    """Each is reached from everywhere, survives a restart, is missed by CHECK and free again after DEL."""
    other, asked = nodes[1], {"runtimeConfig": {"ips": ["10.32.0.5/12", "10.32.0.6", "10.32.0.7"]}}
    far = [ip["address"] for ip in added(other.run("ADD", pods[2], "c3", args="IP=10.32.0.30"))["ips"]]
    result = added(node.run("ADD", pods[0], **asked))
    spec.check_result(result, "1.1.0")
    addresses = [ip["address"].partition("/")[0] for ip in result["ips"]]
    assert [one for one in addresses if "." in one] == ["10.32.0.5", "10.32.0.6", "10.32.0.7"] and len(addresses) == 6
    wait_for("b to know", lambda: "10.32.0.7/" in str(other.router.status()["ipam"]["blocks"]))
    for address in addresses:
        assert ping(pods[2], address, wait=2.0), address
        target = far[":" in address].partition("/")[0]
        pods[0].run(["ping", "-n", "-c1", "-W2", "-I", address, target])
    taken = node.run("ADD", pods[1], "c2", args="IP=10.32.0.6")
    assert taken.code == 103 and "in use by c1" in taken.value["msg"]
    node.router.kill()
    node.router.launch()
    quiet(node.run("CHECK", pods[0], prevResult=result, **asked))
    assert added(node.run("ADD", pods[0], **asked)) == result and ping(pods[0], "10.32.0.1")
    short = {**result, "ips": [ip for ip in result["ips"] if "10.32.0.6" not in ip["address"]]}
    assert "prevResult lacks 10.32.0.6" in node.run("CHECK", pods[0], prevResult=short).value["msg"]
    pods[0].ip("address del 10.32.0.7/12 dev eth0")
    assert "lost its address 10.32.0.7/12" in node.run("CHECK", pods[0]).value["msg"]
    fewer = added(node.run("ADD", pods[0], args="IP=10.32.0.5,10.32.0.6"))  # made anew
    assert len(fewer["ips"]) == 4
    added(node.run("ADD", pods[1], "c2", args="IP=10.32.0.7"))
    quiet(node.run("DEL", pods[0]))
    added(node.run("ADD", pods[0], args="IP=10.32.0.6"))
    for one, pod, container in ((node, pods[0], "c1"), (node, pods[1], "c2"), (other, pods[2], "c3")):
        quiet(one.run("DEL", pod, container))


def test_two_pods_of_one_name_or_address(node: Node, pods: list[Namespace]) -> None:
    added(node.run("ADD", pods[0], args="IP=10.32.0.5"))
    taken = node.run("ADD", pods[1], "c2", args="IP=10.32.0.5")
    assert taken.code == 103 and "in use by c1" in taken.value["msg"]
    other = node.run("ADD", pods[0], args="IP=10.32.0.5", name="other")
    assert other.code == 4 and "network weave" in other.value["msg"]
    quiet(node.run("DEL", pods[0], name="other"))
    quiet(node.run("CHECK", pods[0]))
    assert node.run("CHECK", pods[1]).code == 100
    assert node.run("CHECK", pods[1], "c2").code == 3
    added(node.run("ADD", pods[0], args="IP=10.32.0.7", ifname="eth1"))
    quiet(node.run("DEL", pods[0], ifname="eth1"))
    quiet(node.run("DEL", pods[0]))


def test_a_pod_that_attach_made_is_not_ours(node: Node, pods: list[Namespace]) -> None:
    node.router.attach(pods[0], "10.32.0.5/12", "--container-id", "c1")
    assert "attach" in node.run("ADD", pods[0], args="IP=10.32.0.5").value["msg"]
    quiet(node.run("DEL", pods[0]))
    pods[0].delete()
    wait_for("the port to go", lambda: node.ports() == [])
    quiet(node.run("GC", None))
    assert node.attachments() == [("c1", "10.32.0.5")]
    node.router.cli("detach", "--container-id", "c1")


@pytest.mark.parametrize("harm", ["link set eth0 down", "address del 10.32.0.5/12 dev eth0", "link del eth0"])
def test_check_names_what_is_wrong_and_add_mends_it(node: Node, pods: list[Namespace], harm: str) -> None:
    added(node.run("ADD", pods[0], args="IP=10.32.0.5"))
    pods[0].ip(harm)
    done = node.run("CHECK", pods[0])
    assert done.code == 100 and "eth0" in done.value["msg"]
    added(node.run("ADD", pods[0], args="IP=10.32.0.5"))
    quiet(node.run("CHECK", pods[0]))
    assert ping(pods[0], "10.32.0.1")
    quiet(node.run("DEL", pods[0]))


def test_container_id_comes_again_in_another_namespace(node: Node, pods: list[Namespace]) -> None:
    added(node.run("ADD", pods[0], args="IP=10.32.0.5"))
    added(node.run("ADD", pods[1], args="IP=10.32.0.5"))
    assert ping(pods[1], "10.32.0.1") and not ping(pods[0], "10.32.0.1", wait=0.2)
    quiet(node.run("DEL", pods[1]))


def test_gc_takes_what_a_lost_del_left_and_nothing_else(node: Node, pods: list[Namespace]) -> None:
    for number, pod in enumerate(pods):
        added(node.run("ADD", pod, f"c{number}", args=f"IP=10.32.0.{5 + number}"))
    pods[0].delete()
    pods[1].delete()
    wait_for("two ports to go", lambda: len(node.ports()) == 1)
    quiet(node.run("GC", None, name="other"))
    assert len(node.attachments()) == 3
    quiet(node.run("GC", None, **{"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]}))
    assert node.attachments() == [("c1", "10.32.0.6"), ("c2", "10.32.0.7")]
    quiet(node.run("DEL", None, "c1"))
    quiet(node.run("DEL", pods[2], "c2"))


# -- a router that comes and goes ----------------------------------------------------------------------------------


def test_del_while_the_router_is_down_is_done_before_it_serves(node: Node, pods: list[Namespace]) -> None:
    added(node.run("ADD", pods[0], args="IP=10.32.0.5"))
    added(node.run("ADD", pods[1], "c2", args="IP=10.32.0.6"))
    node.router.kill()
    quiet(node.run("STATUS", None))
    quiet(node.run("DEL", pods[0]))
    assert len(node.journal()) == 1
    node.router.launch()
    assert (node.attachments(), node.journal()) == ([("c2", "10.32.0.6")], [])
    quiet(node.run("CHECK", pods[1], "c2"))
    quiet(node.run("DEL", pods[1], "c2"))


def test_journal_of_a_pod_that_was_spares_the_one_that_is(node: Node, pods: list[Namespace]) -> None:
    """Same container, another namespace or another boot; and entries that are none."""
    added(node.run("ADD", pods[0], args="IP=10.32.0.5"))
    node.router.kill()
    quiet(node.run("DEL", pods[1]))
    node.shim.boot_id, boot = "0" * 36, node.shim.boot_id
    quiet(node.run("DEL", pods[0]))
    node.shim.boot_id = boot
    for name, content in (("0.json", b""), ("1.json", b"[]"), ("2.json", b'{"cni":{"command":"ADD","config":"{}"}}')):
        (node.shim.journal / name).write_bytes(content)
    old = node.shim.journal / "3.json.tmp"
    old.write_bytes(b"half")
    past = time.time() - 2 * limits.CNI_JOURNAL_TEMPORARY_SECONDS
    os.utime(old, (past, past))
    node.router.launch()
    assert (node.attachments(), node.journal()) == ([("c1", "10.32.0.5")], [])
    quiet(node.run("CHECK", pods[0]))
    quiet(node.run("DEL", pods[0]))


def test_more_entries_than_one_pass_takes(node: Node, pods: list[Namespace]) -> None:
    """Cut short by the file system's order of names: the DEL that counts is the last."""
    added(node.run("ADD", pods[0], args="IP=10.32.0.5"))
    node.router.kill()
    for number in range(limits.CNI_JOURNAL_ENTRIES_MAX):
        (node.shim.journal / f"0{number:05}.json").write_bytes(b"?")
    quiet(node.run("DEL", pods[0]))
    node.router.launch()
    wait_for("the journal to be empty", lambda: node.journal() == [], deadline=2 * limits.CNI_ALIVE_SECONDS)


def test_add_carries_out_a_pending_del_of_its_pod_first(node: Node, pods: list[Namespace]) -> None:
    """A shim that could not reach the router leaves the entry while the router runs; else it would take the new pod."""
    added(node.run("ADD", pods[0], args="IP=10.32.0.5"))
    before = "c1"
    for number, container in enumerate(("c1", "c2", "c1", "c2", "c3"), 6):  # the same pod, then the same namespace
        quiet(node.run("DEL", pods[0], before, socket="/nowhere/attach.sock"))
        assert len(node.journal()) == 1
        added(node.run("ADD", pods[0], container, args=f"IP=10.32.0.{number}"))
        assert (node.journal(), node.attachments()) == ([], [(container, f"10.32.0.{number}")])
        before = container
    quiet(node.run("DEL", pods[0], before))


def test_add_after_a_router_that_was_silent(silent: Future[None]) -> None:
    silent.result()


def test_restart_in_the_middle_fails_no_add(node: Node, pods: list[Namespace]) -> None:
    for round_ in range(3):
        node.router.kill()
        argv = node.router.host.argv([str(node.shim.executable)])
        environment = node.shim.environment("ADD", CNI_NETNS=str(pods[0].path), CNI_ARGS="IP=10.32.0.5")
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        node.router.launch(wait=False)
        if round_:  # killed while it starts, or as it carries out the ADD
            wait_for("the socket", node.shim.socket.exists)
            node.router.kill()
            node.router.launch(wait=False)
        said, _ = process.communicate(json.dumps(node.shim.config("1.1.0")).encode(), timeout=30)
        assert process.returncode == 0, said
        node.router.wait_ready()
        assert ping(pods[0], "10.32.0.1")
        quiet(node.run("CHECK", pods[0]))
        quiet(node.run("DEL", pods[0]))


def test_two_seconds_without_a_router_are_not_seen(node: Node, pods: list[Namespace]) -> None:
    """STATUS is 0 all the time, and every ADD that was sent meanwhile succeeds."""
    node.router.kill()
    gone_at, statuses, adds = time.monotonic(), [], []
    while time.monotonic() - gone_at < 2.0:
        statuses.append(node.run("STATUS", None).status)
        if len(adds) < len(pods):
            number = len(adds)
            environment = node.shim.environment("ADD", CNI_NETNS=str(pods[number].path), CNI_CONTAINERID=f"c{number}",
                                                CNI_ARGS=f"IP=10.32.0.{5 + number}")  # fmt: skip
            argv = node.router.host.argv([str(node.shim.executable)])
            adds.append(subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment))
            adds[-1].stdin.write(json.dumps(node.shim.config("1.1.0")).encode())
            adds[-1].stdin.close()
    node.router.launch(wait=False)
    while any(add.poll() is None for add in adds):
        statuses.append(node.run("STATUS", None).status)
    assert set(statuses) == {0} and len(adds) == 3
    for number, add in enumerate(adds):
        with add.stdout:
            spec.check_result(json.loads(add.stdout.read()), "1.1.0")
        assert add.returncode == 0
        quiet(node.run("CHECK", pods[number], f"c{number}"))
        quiet(node.run("DEL", pods[number], f"c{number}"))


def test_add_whose_client_hung_up_is_undone(node: Node, pods: list[Namespace], tmp_path: Path) -> None:
    """Seen on the host's links: the port comes, and goes again."""
    with (tmp_path / "links").open("w") as output:
        monitor = node.router.host.popen(["ip", "monitor", "link"], output=output)
    seen = (tmp_path / "links").read_text
    touch = ("link add d0 type veth peer name d1", "link del d0")
    wait_for("ip monitor", lambda: (node.router.host.ip(*touch), "d0" in seen())[1])
    body = {"command": "ADD", "container": "c1", "ifname": "eth0", "args": "IP=10.32.0.5",
            "config": json.dumps(node.shim.config("1.1.0"))}  # fmt: skip
    pod = handover_driver.open_pod(str(pods[0].path))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(node.shim.socket))
        socket.send_fds(client, [handover.frame({"cni": body})], [pod.netlink, pod.netns])
    pod.close()
    wait_for("the port to come", lambda: "vethwr" in seen())
    wait_for("the undoing", lambda: node.attachments() == [] and node.ports() == [])
    kill_process(monitor)


def test_killed_in_mid_add_and_a_new_add_stays(node: Node, pods: list[Namespace]) -> None:
    argv = node.router.host.argv([str(node.shim.executable)])
    environment = node.shim.environment("ADD", CNI_NETNS=str(pods[0].path), CNI_ARGS="IP=10.32.0.5")
    for delay in (0.002, 0.005, 0.008, 0.012, 0.02):
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment)
        assert process.stdin
        process.stdin.write(json.dumps(node.shim.config("1.1.0")).encode())
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(delay)
        process.kill()
        process.wait()  # one that had its answer and was killed then is not undone; else the undoing may be to come
        added(node.run("ADD", pods[0], args="IP=10.32.0.5"))
        quiet(node.run("CHECK", pods[0]))
        quiet(node.run("DEL", pods[0]))


def test_reboot_releases_all(node: Node, pods: list[Namespace]) -> None:
    added(node.run("ADD", pods[0], args="IP=10.32.0.5"))
    node.router.kill()
    pods[0].delete()
    node.router.boot_id = node.shim.boot_id = "1" * 36
    assert node.run("STATUS", None).code == 50
    node.router.launch()
    assert node.attachments() == []
    quiet(node.run("STATUS", None))
    added(node.run("ADD", pods[1], "c2", args="IP=10.32.0.5"))
    quiet(node.run("DEL", pods[1], "c2"))


def test_probe(node: Node) -> None:
    def probe(kind: str, *before: str) -> int:
        words = [*before, installed(), "probe", kind, node.shim.socket]
        return subprocess.run(words, capture_output=True, check=False).returncode

    assert (probe("live"), probe("ready")) == (0, 0)
    elsewhere = ("unshare", "--pid", "--fork", "--kill-child")  # as in the other pod of a roll-out
    assert (probe("live", *elsewhere), probe("ready", *elsewhere)) == (1, 1)
    node.router.kill()
    assert (probe("live"), probe("ready")) == (1, 1)


# -- install-cni ---------------------------------------------------------------------------------------------------


def plugin(path: Path, *versions: str) -> None:
    path.write_text(f"#!/bin/sh\necho '{json.dumps({'cniVersion': '1.0.0', 'supportedVersions': versions})}'\n")
    path.chmod(0o755)


def types(listed: dict[str, Any]) -> list[str]:
    return [one["type"] for one in listed["plugins"]]


def test_install_cni(node: Node, pods: list[Namespace], tmp_path: Path) -> None:
    bin_dir, conf_dir = tmp_path / "bin", tmp_path / "net.d"
    words = ["install-cni", "--bin-dir", str(bin_dir), "--conf-dir", str(conf_dir), "--state-dir",
             str(node.router.host.state_dir), "--chain", "portmap,bandwidth"]

    def install() -> dict[str, Any]:
        node.router.cli(*words)
        assert os.listdir(conf_dir) == [NAME]
        return dict(json.loads((conf_dir / NAME).read_text()))

    node.router.kill()
    assert node.router.cli(*words, check=False).returncode == 3 and not conf_dir.exists()
    node.router.launch()
    listed = install()
    assert types(listed) == ["weave-router-cni"] and listed["cniVersions"] == ["1.0.0", "1.1.0"]
    assert (bin_dir / "weave-router-cni").read_bytes() == installed().read_bytes()
    assert node.router.cli(*words).stdout == "nothing to change\n"
    plugin(bin_dir / "portmap", "0.4.0", "1.0.0", "1.1.0")
    listed = install()
    assert types(listed) == ["weave-router-cni", "portmap"] and "cniVersions" in listed
    plugin(bin_dir / "bandwidth", "1.0.0")
    listed = install()
    assert types(listed) == ["weave-router-cni", "portmap", "bandwidth"] and "cniVersions" not in listed
    (bin_dir / "portmap").write_text("#!/bin/sh\nexit 1\n")
    assert types(install()) == ["weave-router-cni", "bandwidth"]
    ours = {**listed["plugins"][0], "name": listed["name"], "cniVersion": "1.0.0"}
    shim = Shim(bin_dir / "weave-router-cni", node.shim.socket, node.shim.journal, boot_id=node.shim.boot_id)
    there = {"CNI_NETNS": str(pods[0].path), "CNI_ARGS": "IP=10.32.0.5"}
    added(shim.run("ADD", ours, prefix=node.router.host.argv([]), **there))
    quiet(shim.run("DEL", ours, prefix=node.router.host.argv([]), **there))


@pytest.mark.parametrize("words", [["--network", "a/b"], ["--chain", "flannel"]])
def test_install_cni_wrong_use(node: Node, words: list[str]) -> None:
    assert node.router.cli("install-cni", *words, check=False).returncode == 2
