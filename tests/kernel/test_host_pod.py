"""Pods on the real kernel, without a router: wiring, guards, removal.

    pod A eth0 --- vethwr... --+
                               +-- weave (bridge) -- weave-tap (TAP, held open, silent)
    pod B eth0 --- vethwr... --+

Forged frames are sent by a packet socket inside pod A; what came through is read at pod B.
"""

import os
import select
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from typing import Any

import pytest
from kernel.host_world import TABLES, UNIVERSE6, Node, everything, plan_of
from lab.frames import Station, Wire, forged, honest, open_raw

from weave_router import limits
from weave_router.host import elements, netfilter, pod_driver, sysctl_driver, tap_driver
from weave_router.host.faults import Fault, HostError
from weave_router.host.names import port_name
from weave_router.host.netfilter import PortGuard
from weave_router.host.netlink_driver import find
from weave_router.host.pod import PodPlan

from .conftest import Netns


@dataclass
class Pods:
    node: Node
    a: Netns
    b: Netns
    plan_a: PodPlan
    plan_b: PodPlan


@pytest.fixture
def pods(node: Node, make_netns: Callable[[], Netns]) -> Pods:
    made = Pods(node, make_netns(), make_netns(), plan_of("a", "10.32.0.2/12"), plan_of("b", "10.32.0.3/12"))
    node.attach(made.plan_a, made.a)
    node.attach(made.plan_b, made.b)
    return made


def test_first_packets_work_by_both_families_and_to_the_host(pods: Pods) -> None:
    pods.a.run("ping", "-c1", "-W1", "10.32.0.3")
    pods.b.run("ping", "-c1", "-W1", "fd00:1::a20:2")
    pods.a.run("ping", "-c1", "-W1", "10.32.0.1")
    pods.a.run("ping", "-c1", "-W1", "fd00:1::a20:1")
    pods.a.run("ping", "-c1", "-W1", "-M", "do", "-s", str(1368 - 28), "10.32.0.3")


def test_pod_is_as_planned(pods: Pods) -> None:
    assert pods.node.netns.call(pod_driver.verify, pods.node.rtnl, pods.plan_a) == []
    link = pods.a.run("ip", "-d", "link", "show", "eth0")
    assert "0a:58:0a:20:00:02" in link and "mtu 1368" in link
    assert f"gso_max_size {pods.plan_a.gso_max_size}" in link
    assert "tentative" not in pods.a.run("ip", "addr", "show", "eth0")
    assert pods.a.run("ip", "route", "show", "default").startswith("default via 10.32.0.1 dev eth0")
    assert pods.a.run("ip", "-6", "route", "show", "default") == ""
    assert pods.a.call(sysctl_driver.read, "net/ipv6/conf/eth0/accept_ra") == "0"
    port = pods.node.netns.run("ip", "-d", "link", "show", pods.plan_a.port)
    for words in ("learning off", "flood off", "hairpin off", "locked on", "alias weave-router a eth0 10.32.0.2"):
        assert words in port, words
    fdb = pods.node.netns.run("bridge", "fdb", "show", "dev", pods.plan_a.port)
    assert "0a:58:0a:20:00:02 sticky master weave static" in fdb


def test_a_frame_from_the_tap_with_a_pod_s_mac_takes_nothing_from_the_pod(pods: Pods) -> None:
    """Nodes that were given the same MAC before they knew of each other: each goes on with its own."""
    tap_driver.set_carrier(pods.node.tap, True)
    frame = bytes.fromhex("0a580a200003" "0a580a200002") + b"\x88\xb5" + bytes(46)
    listener = pods.b.call(open_raw, "eth0")
    os.write(pods.node.tap.fds[0], bytes(pods.node.tap.vnet_hdr) + frame)
    listener.settimeout(5)
    while listener.recv(2048) != frame:
        pass
    listener.close()
    pods.b.run("ping", "-c1", "-W1", "10.32.0.2")


def test_default_route_of_both_families_where_the_host_has_one(node: Node, make_netns: Callable[[], Netns]) -> None:
    pod = make_netns()
    node.attach(plan_of("a", "10.32.0.2/32", default_ipv6=True, hairpin=True), pod)
    assert pod.run("ip", "-6", "route", "show", "default").startswith("default via fd00:1::a20:1 dev eth0")
    pod.run("ping", "-c1", "-W1", "10.32.0.1")  # a /32 reaches its gateway, the gateway the rest
    assert "hairpin on" in node.netns.run("ip", "-d", "link", "show", port_name("a", "eth0"))


def test_gratuitous_announcements_reach_the_bridge(node: Node, make_netns: Callable[[], Netns]) -> None:
    def listen() -> socket.socket:
        listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        listener.bind(("weave", 3))
        return listener

    listener = node.netns.call(listen)
    node.attach(plan_of("a", "10.32.0.2/12"), make_netns())
    mac, ipv4 = bytes.fromhex("0a580a200002"), IPv4Address("10.32.0.2").packed
    arp = b"\xff" * 6 + mac + bytes.fromhex("08060001080006040001") + mac + ipv4 + bytes(6) + ipv4
    seen = {"arp": False, "na": False}
    while not all(seen.values()):
        ready, _, _ = select.select([listener], [], [], 5)
        assert ready, f"nothing more came: {seen}"
        frame = listener.recv(2048)
        seen["arp"] |= frame[:20] == arp[:20] and frame[28:32] == ipv4 == frame[38:42]
        seen["na"] |= frame[12:14] == b"\x86\xdd" and frame[54] == 136 and frame[62:78] == UNIVERSE6[0x0A200002].packed
    listener.close()


# -- guards ----------------------------------------------------------------------------------------------------------

A = Station("0a:58:0a:20:00:02", "10.32.0.2", "fd00:1::a20:2")
B = Station("0a:58:0a:20:00:03", "10.32.0.3", "fd00:1::a20:3")
BRIDGE_ITSELF = Station("0a:58:0a:20:00:01", "10.32.0.1", "fd00:1::a20:1")
NOBODY = Station("0a:58:0a:20:00:09", "10.32.0.9", "fd00:1::a20:9")


def forgeries() -> dict[str, Any]:
    return forged(A, B, BRIDGE_ITSELF, NOBODY)


def wire_between(pods: Pods) -> Wire:
    return Wire(pods.a.call(open_raw, "eth0"), pods.b.call(open_raw, "eth0"), A, B)


@pytest.fixture
def wire(pods: Pods) -> Iterator[Wire]:
    wire = wire_between(pods)
    yield wire
    wire.close()


def test_guards_hold_and_let_honest_frames_pass(wire: Wire) -> None:
    passed = [name for name, frame in forgeries().items() if wire.passes(bytes(frame))]
    blocked = [name for name, frame in honest(A, B).items() if not wire.passes(bytes(frame))]
    assert (passed, blocked) == ([], [])


def test_without_guards_forgeries_pass_except_for_the_lock(pods: Pods, wire: Wire) -> None:
    """The frames of ``forged`` are good enough to arrive; a locked port alone holds the MAC."""
    pods.node.netns.run("nft", "delete", "table", "bridge", "weave_router")
    for layer in ("arptables", "iptables", "ip6tables"):  # bridge netfilter checks headers of its own
        pods.node.netns.call(sysctl_driver.write, f"net/bridge/bridge-nf-call-{layer}", "0", link="weave")
    held = {name for name, frame in forgeries().items() if not wire.passes(bytes(frame))}
    assert held == {"MAC", "MAC, other ethertype", "MAC, VLAN"}


def test_guards_hold_the_mac_without_a_locked_port(node: Node, make_netns: Callable[[], Netns]) -> None:
    pods = Pods(
        node,
        make_netns(),
        make_netns(),
        plan_of("a", "10.32.0.2/12", refuse=frozenset({"locked"})),
        plan_of("b", "10.32.0.3/12"),
    )
    node.attach(pods.plan_a, pods.a)
    node.attach(pods.plan_b, pods.b)
    assert "locked off" in node.netns.run("ip", "-d", "link", "show", pods.plan_a.port)
    wire = wire_between(pods)
    assert not wire.passes(bytes(forgeries()["MAC"]))
    assert wire.passes(bytes(honest(A, B)["IPv4"]))
    wire.close()


def test_lost_elements_close_a_port(pods: Pods, wire: Wire) -> None:
    pods.node.netns.run("nft", "flush", "set", "bridge", "weave_router", "ipv4")
    assert not wire.passes(bytes(honest(A, B)["IPv4"]))
    tables = netfilter.tables(TABLES, [pods.plan_a.guard, pods.plan_b.guard])
    pods.node.netns.call(pods.node.nft.run, tables, "load again")
    assert wire.passes(bytes(honest(A, B)["IPv4"]))


def test_station_port_is_open(node: Node, make_netns: Callable[[], Netns]) -> None:
    pods = Pods(
        node, make_netns(), make_netns(), plan_of("a", "10.32.0.2/12", station=True), plan_of("b", "10.32.0.3/12")
    )
    node.attach(pods.plan_a, pods.a)
    node.attach(pods.plan_b, pods.b)
    wire = wire_between(pods)
    assert wire.passes(bytes(forgeries()["MAC"]))
    assert wire.passes(bytes(forgeries()["ARP sender address"]))
    wire.close()


# -- the end of a pod, and failures --------------------------------------------------------------------------------


def test_detach_leaves_nothing(node: Node, make_netns: Callable[[], Netns]) -> None:
    before, pod, plan = everything(node), make_netns(), plan_of("a", "10.32.0.2/12")
    node.attach(plan, pod)
    assert everything(node) != before
    port = node.netns.call(find, node.ipr, plan.port)
    assert node.detach(plan) == [port.index]
    assert node.netns.call(pod_driver.ports, node.ipr) == []
    node.netns.call(pod_driver.reap, node.rtnl)
    assert everything(node) == before
    assert "eth0" not in pod.run("ip", "link")
    assert node.detach(plan) == [0]
    node.netns.call(pod_driver.reap, node.rtnl)


def test_detach_after_the_namespace_went_first(node: Node, make_netns: Callable[[], Netns]) -> None:
    before, pod, plan = everything(node), make_netns(), plan_of("a", "10.32.0.2/12")
    node.attach(plan, pod)
    pod.run("ip", "link", "del", "eth0")
    assert node.detach(plan) == [0]
    assert everything(node) == before


def test_attach_again_after_detach_before_the_pair_was_deleted(node: Node, make_netns: Callable[[], Netns]) -> None:
    pod, plan = make_netns(), plan_of("a", "10.32.0.2/12")
    node.attach(plan, pod)
    node.detach(plan)
    node.attach(plan, pod)
    pod.run("ping", "-c1", "-W1", "10.32.0.1")


@pytest.mark.parametrize("step", ["_create_pair", "_plug", "_configure_pod", "_routed", "_await_forwarding"])
def test_failure_at_any_step_leaves_nothing(
    node: Node, make_netns: Callable[[], Netns], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    before, pod = everything(node), make_netns()
    real = getattr(pod_driver, step)

    def fail(*args: Any) -> None:
        real(*args)
        raise HostError(Fault.POD_NO_CARRIER, link="x", seconds=1)

    monkeypatch.setattr(pod_driver, step, fail)
    with pytest.raises(HostError):
        node.attach(plan_of("a", "10.32.0.2/12"), pod)
    monkeypatch.undo()
    assert everything(node) == before
    assert "eth0" not in pod.run("ip", "link")


def test_port_that_does_not_come_up(
    node: Node, make_netns: Callable[[], Netns], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, pod = everything(node), make_netns()
    real = pod_driver._configure_pod

    def configure_and_take_down(*args: Any) -> Any:
        inside = real(*args)
        pod.run("ip", "link", "set", "eth0", "down")
        return inside

    assert pod_driver.PORT_UP_SECONDS == limits.PORT_UP_SECONDS
    monkeypatch.setattr(pod_driver, "PORT_UP_SECONDS", 0.05)
    monkeypatch.setattr(pod_driver, "_configure_pod", configure_and_take_down)
    with pytest.raises(HostError) as caught:
        node.attach(plan_of("a", "10.32.0.2/12"), pod)
    assert caught.value.fault is Fault.POD_NO_CARRIER
    assert everything(node) == before


def test_interface_name_taken_in_the_pod(node: Node, make_netns: Callable[[], Netns]) -> None:
    before, pod = everything(node), make_netns()
    pod.run("ip", "link", "add", "eth0", "type", "veth", "peer", "other")
    with pytest.raises(HostError) as caught:
        node.attach(plan_of("a", "10.32.0.2/12"), pod)
    assert caught.value.fault is Fault.POD_NAME_TAKEN
    assert everything(node) == before


def test_port_name_taken_by_another_pod(node: Node, make_netns: Callable[[], Netns]) -> None:
    node.netns.run("ip", "link", "add", port_name("a", "eth0"), "type", "veth", "peer", "other")
    node.netns.run("ip", "link", "set", port_name("a", "eth0"), "alias", "weave-router someone-else eth0 10.32.0.7")
    pod = make_netns()
    attached = node.attach(plan_of("a", "10.32.0.2/12"), pod)
    assert attached.port == port_name("a", "eth0", 1)
    pod.run("ping", "-c1", "-W1", "10.32.0.1")


def test_second_interface_in_one_pod_keeps_the_first_default_route(pods: Pods) -> None:
    pods.node.attach(plan_of("a", "10.32.0.4/12", ifname="eth1"), pods.a)
    assert "dev eth0" in pods.a.run("ip", "route", "show", "default")


def test_reattach_finds_the_pods_that_still_stand(pods: Pods) -> None:
    gone = plan_of("gone", "10.32.0.9/12")
    found = pods.node.netns.call(pod_driver.reattach, pods.node.ipr, [pods.plan_a, gone, pods.plan_b], "weave")
    assert found == [pods.plan_a, pods.plan_b]


def test_verify_names_what_changed_at_a_port(pods: Pods) -> None:
    pods.node.netns.run("bridge", "link", "set", "dev", pods.plan_a.port, "learning", "on", "locked", "off")
    port = pods.plan_a.port
    assert pods.node.netns.call(pod_driver.verify, pods.node.rtnl, pods.plan_a) == [
        f"learning of {port} is not 0",
        f"locked of {port} is not 1",
    ]
    assert pods.node.netns.call(pod_driver.verify, pods.node.rtnl, replace(pods.plan_b, port="x")) == ["x is gone"]


def test_guards_change_all_or_none(pods: Pods) -> None:
    """What the kernel refuses, before or behind what it would do, and what it does not answer."""
    node, stranger = pods.node, PortGuard("vethwrx", "0a:58:0a:20:00:77", (IPv4Address("10.32.0.119"),))
    nowhere = elements.added("bridge", "weave_router", "nowhere", [elements.packed(("vethwrx",))])
    before = node.elements()
    both = [*netfilter.guards_added([stranger]), *nowhere], [*nowhere, *netfilter.guards_added([stranger])]
    for messages in (*both, netfilter.guards_removed([stranger])):
        with pytest.raises(HostError, match="No such file"):
            node.netns.call(node.nft.change, messages, "try")
        assert node.elements() == before
    answering = node.nft._socket
    silent, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with silent, other:
        silent.settimeout(0.05)
        node.nft._socket = silent
        with pytest.raises(HostError, match="timed out"):
            node.nft.change(nowhere, "try")
        node.nft._socket = answering
    node.netns.call(node.nft.change, netfilter.guards_added([stranger]), "try")
    assert "10.32.0.119" in node.elements()
    node.netns.call(node.nft.change, netfilter.guards_removed([stranger]), "try")
    assert node.elements() == before


def test_what_leaves_the_universe_is_masqueraded(pods: Pods, make_netns: Callable[[], Netns]) -> None:
    outside = make_netns()
    node = pods.node.netns
    node.run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns", outside.name)
    for netns, link, addresses in ((node, "up0", ("192.0.2.1/24",)), (outside, "eth0", ("192.0.2.2/24",))):
        netns.run("ip", "link", "set", link, "up")
        netns.run("ip", "addr", "add", addresses[0], "dev", link)
    pods.a.run("ping", "-c1", "-W1", "192.0.2.2")  # outside knows no way back to the universe
    assert "masquerade" in node.run("nft", "list", "table", "inet", "weave_router")


MULTICAST = """
import socket, struct, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("", 5353))
group = socket.inet_aton("239.1.2.3")
sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group + socket.inet_aton("10.32.0.2"))
sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("10.32.0.2"))
sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
sock.settimeout(0.5)
sock.sendto(b"once", ("239.1.2.3", 5353))
count = 0
try:
    while sock.recv(9):
        count += 1
except TimeoutError:
    print(count)
"""


def test_no_multicast_returns_to_a_hairpin_port(node: Node, make_netns: Callable[[], Netns]) -> None:
    """Its own unicast does, or a pod could not reach itself through a Service; its DAD probe would end an address."""
    a, b = make_netns(), make_netns()
    plans = plan_of("a", "10.32.0.2/12", hairpin=True), plan_of("b", "10.32.0.3/12", hairpin=True)
    for plan, pod in zip(plans, (a, b), strict=True):
        node.attach(plan, pod)
    assert "hairpin on" in node.netns.run("ip", "-d", "link", "show", plans[0].port)
    for name in ("accept_local=1", "rp_filter=0"):  # else the pod's kernel throws a copy away before anybody sees it
        a.run("sysctl", "-qw", f"net.ipv4.conf.all.{name}", f"net.ipv4.conf.eth0.{name}")
    assert a.run("python3", "-c", MULTICAST).strip() == "1"  # the copy of IP_MULTICAST_LOOP, no second from the port
    a.run("sysctl", "-qw", "net.ipv6.conf.eth0.enhanced_dad=0", "net.ipv6.conf.all.enhanced_dad=0")
    a.run("sysctl", "-qw", "net.ipv6.conf.eth0.accept_dad=1")
    a.run("ip", "address", "del", "fd00:1::a20:2/96", "dev", "eth0")
    a.run("ip", "address", "add", "fd00:1::a20:2/96", "dev", "eth0")
    for _ in range(300):
        shown = a.run("ip", "-6", "address", "show", "dev", "eth0", "scope", "global")
        if "tentative" not in shown:
            break
        select.select([], [], [], 0.01)
    assert "tentative" not in shown and "dadfailed" not in shown
    forward = node.netns.run("nft", "list", "chain", "bridge", "weave_router", "forward")
    (rule,) = [line for line in forward.splitlines() if "own multicast" in line]
    assert "counter packets 0" not in rule  # the rule, not luck
    node.netns.call(pod_driver.set_hairpin, node.rtnl, node.ipr, False)
    assert "hairpin off" in node.netns.run("ip", "-d", "link", "show", plans[0].port)
