"""Pods on the real kernel, without a router: wiring, guards, removal.

    pod A eth0 --- vethwr... --+
                               +-- weave (bridge) -- weave-tap (TAP, held open, silent)
    pod B eth0 --- vethwr... --+

Forged frames are sent by a packet socket inside pod A; what came through is read at pod B.
"""

import select
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_interface
from typing import Any

import pytest
from pyroute2 import IPRoute

from weave_router import limits
from weave_router.host import bridge_driver, handover_driver, netfilter, pod_driver, sysctl_driver, tap_driver
from weave_router.host.bridge import BridgePlan
from weave_router.host.faults import Fault, HostError
from weave_router.host.names import port_name
from weave_router.host.netlink_driver import find, links
from weave_router.host.nft_driver import Nft
from weave_router.host.pod import Attached, PodPlan, pod_plan
from weave_router.host.rtnl_driver import Rtnl
from weave_router.ipam.number import mac_of, mac_text

from .conftest import Netns

UNIVERSE4 = IPv4Network("10.32.0.0/12")
UNIVERSE6 = IPv6Network("fd00:1::/96")
GATEWAY = IPv4Address("10.32.0.1")
TABLES = netfilter.TablesPlan("weave", UNIVERSE4, UNIVERSE6)
BRIDGE = BridgePlan(
    name="weave",
    tap="weave-tap",
    mtu=1368,
    mac=mac_text(mac_of(int(GATEWAY))),
    addresses=(ip_interface("10.32.0.1/12"), ip_interface("fd00:1::a20:1/96")),
)


def plan_of(attachment: str, address: str, **words: Any) -> PodPlan:
    return pod_plan(
        attachment=attachment,
        address=ip_interface(address),
        universe_v4=UNIVERSE4,
        universe_v6=UNIVERSE6,
        bridge="weave",
        bridge_address=GATEWAY,
        mtu=1368,
        **words,
    )


@dataclass
class Node:
    """A host with bridge, TAP and nft table, and what the router would hold of it."""

    netns: Netns
    tap: tap_driver.Tap = field(init=False)
    ipr: Any = field(init=False)
    rtnl: Rtnl = field(init=False)
    nft: Nft = field(init=False)

    def start(self) -> None:
        self.tap = tap_driver.open_tap("weave-tap", 1)
        self.ipr = IPRoute()
        self.rtnl = Rtnl()
        self.nft = Nft()
        bridge_driver.ensure(self.ipr, BRIDGE)
        self.nft.run(netfilter.tables(TABLES), "load")

    def stop(self) -> None:
        self.ipr.close()
        self.rtnl.close()
        self.nft.close()
        tap_driver.close_tap(self.tap)

    def attach(self, plan: PodPlan, pod: Netns) -> Attached:
        handle = handover_driver.open_pod(pod.path)
        try:
            return self.netns.call(self._attach, plan, handle)
        finally:
            handle.close()

    def _attach(self, plan: PodPlan, handle: handover_driver.PodHandle) -> Attached:
        with Rtnl(handle.netlink) as inside:
            return pod_driver.attach(self.rtnl, self.nft, plan, inside, handle.netns)

    def elements(self) -> str:
        return self.netns.run("nft", "-s", "list", "table", "bridge", "weave_router")


@pytest.fixture
def node(host: Netns) -> Iterator[Node]:
    node = Node(host)
    host.call(node.start)
    yield node
    host.call(node.stop)


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
    assert "0a:58:0a:20:00:02 master weave static" in fdb


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

A_MAC, B_MAC = "0a:58:0a:20:00:02", "0a:58:0a:20:00:03"
A4, B4, A6, B6 = "10.32.0.2", "10.32.0.3", "fd00:1::a20:2", "fd00:1::a20:3"
A_LINK, B_LINK = "fe80::858:aff:fe20:2", "fe80::858:aff:fe20:3"
GATEWAY_LINK = "fe80::858:aff:fe20:1"


def forged() -> dict[str, Any]:
    """Frames that pod A may not send: each has one thing that is not its own. Sent to pod B's MAC."""
    from scapy.layers.inet import ICMP, IP, UDP
    from scapy.layers.inet6 import (
        ICMPv6EchoRequest,
        ICMPv6ND_NA,
        ICMPv6ND_NS,
        ICMPv6ND_RA,
        ICMPv6ND_Redirect,
        ICMPv6NDOptDstLLAddr,
        IPv6,
        IPv6ExtHdrDestOpt,
        IPv6ExtHdrHopByHop,
    )
    from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether

    own = Ether(src=A_MAC, dst=B_MAC)
    advert = ICMPv6ND_RA() / ICMPv6NDOptDstLLAddr(lladdr=A_MAC)
    takeover = ICMPv6ND_NA(tgt="fd00:1::a20:1", R=0, S=0, O=1) / ICMPv6NDOptDstLLAddr(lladdr=A_MAC)
    return {
        "MAC": Ether(src="0a:58:0a:20:00:01", dst=B_MAC) / IP(src=A4, dst=B4) / UDP(),
        "MAC, other ethertype": Ether(src="0a:58:0a:20:00:09", dst=B_MAC, type=0x88B5) / (b"x" * 40),
        "MAC, VLAN": Ether(src="0a:58:0a:20:00:09", dst=B_MAC) / Dot1Q(vlan=7) / IP(src=A4, dst=B4) / UDP(),
        "IPv4": own / IP(src="10.32.0.9", dst=B4) / UDP(),
        "IPv4 of the gateway": own / IP(src="10.32.0.1", dst=B4) / ICMP(),
        "IPv4 outside": own / IP(src="192.0.2.1", dst=B4) / UDP(),
        "IPv4 unspecified": own / IP(src="0.0.0.0", dst=B4) / UDP(),
        "IPv4, VLAN 0": own / Dot1Q(vlan=0) / IP(src="10.32.0.9", dst=B4) / UDP(),
        "IPv4, 802.1ad 0": own / Dot1AD(vlan=0) / IP(src="10.32.0.9", dst=B4) / UDP(),
        "IPv4, VLAN 0 twice": own / Dot1Q(vlan=0) / Dot1Q(vlan=0) / IP(src="10.32.0.9", dst=B4) / UDP(),
        "IPv4 cut short": Ether(src=A_MAC, dst=B_MAC, type=0x0800) / b"\x45\x00\x00\x14",
        "ARP sender address": own / ARP(op=2, hwsrc=A_MAC, psrc="10.32.0.1", hwdst=B_MAC, pdst=B4),
        "ARP request, sender address": own / ARP(op=1, hwsrc=A_MAC, psrc="10.32.0.9", pdst=B4),
        "ARP sender MAC": own / ARP(op=2, hwsrc="0a:58:0a:20:00:01", psrc=A4, hwdst=B_MAC, pdst=B4),
        "ARP probe for another": own / ARP(op=1, hwsrc=A_MAC, psrc="0.0.0.0", pdst=B4),
        "ARP cut short": Ether(src=A_MAC, dst=B_MAC, type=0x0806) / b"\x00\x01\x08\x00",
        "IPv6": own / IPv6(src="fd00:1::a20:9", dst=B6) / ICMPv6EchoRequest(),
        "IPv6 link-local": own / IPv6(src=GATEWAY_LINK, dst=B6) / ICMPv6EchoRequest(),
        "IPv6 outside": own / IPv6(src="2001:db8::1", dst=B6) / ICMPv6EchoRequest(),
        "IPv6 unspecified": own / IPv6(src="::", dst=B6) / UDP(),
        "ND advertisement": own / IPv6(src=A6, dst=B6, hlim=255) / takeover,
        "ND advertisement from link-local": own / IPv6(src=A_LINK, dst=B_LINK, hlim=255) / takeover,
        "ND advertisement behind options": own
        / IPv6(src=A6, dst=B6, hlim=255)
        / IPv6ExtHdrHopByHop()
        / IPv6ExtHdrDestOpt()
        / takeover,
        "ND probe for another": own / IPv6(src="::", dst="ff02::1:ff20:3", hlim=255) / ICMPv6ND_NS(tgt=B6),
        "RA": own / IPv6(src=A_LINK, dst=B_LINK, hlim=255) / advert,
        "RA of the gateway": own / IPv6(src=GATEWAY_LINK, dst=B_LINK, hlim=255) / advert,
        "RA behind options": own / IPv6(src=A_LINK, dst=B_LINK, hlim=255) / IPv6ExtHdrDestOpt() / advert,
        "RA, VLAN 0": own / Dot1Q(vlan=0) / IPv6(src=A_LINK, dst=B_LINK, hlim=255) / advert,
        "redirect": own / IPv6(src=A_LINK, dst=B_LINK, hlim=255) / ICMPv6ND_Redirect(tgt=A_LINK, dst=B6),
    }


def honest() -> dict[str, Any]:
    """Frames that pod A may send."""
    from scapy.layers.igmp import IGMP
    from scapy.layers.inet import IP, UDP
    from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6MLReport2, ICMPv6ND_NA, ICMPv6ND_NS, IPv6
    from scapy.layers.l2 import ARP, LLC, Dot1AD, Dot1Q, Dot3, Ether

    own = Ether(src=A_MAC, dst=B_MAC)
    return {
        "IPv4": own / IP(src=A4, dst=B4) / UDP(),
        "IPv4 to all": Ether(src=A_MAC, dst="ff:ff:ff:ff:ff:ff") / IP(src=A4, dst="255.255.255.255") / UDP(),
        "IGMP": Ether(src=A_MAC, dst="01:00:5e:00:00:01") / IP(src=A4, dst="224.0.0.1", ttl=1) / IGMP(type=0x11),
        "ARP request": own / ARP(op=1, hwsrc=A_MAC, psrc=A4, pdst=B4),
        "ARP reply": own / ARP(op=2, hwsrc=A_MAC, psrc=A4, hwdst=B_MAC, pdst=B4),
        "ARP probe for itself": own / ARP(op=1, hwsrc=A_MAC, psrc="0.0.0.0", pdst=A4),
        "IPv6": own / IPv6(src=A6, dst=B6) / ICMPv6EchoRequest(),
        "IPv6 link-local": own / IPv6(src=A_LINK, dst=B_LINK) / ICMPv6EchoRequest(),
        "ND solicitation": own / IPv6(src=A6, dst=B6, hlim=255) / ICMPv6ND_NS(tgt=B6),
        "ND probe for itself": own / IPv6(src="::", dst=B6, hlim=255) / ICMPv6ND_NS(tgt=A6),
        "ND advertisement": own / IPv6(src=A6, dst=B6, hlim=255) / ICMPv6ND_NA(tgt=A6),
        "MLD report from nowhere": own / IPv6(src="::", dst=B6, hlim=1) / ICMPv6MLReport2(),
        "VLAN": own / Dot1Q(vlan=7) / IP(src="192.168.7.1", dst="192.168.7.2") / UDP(),
        "QinQ": own / Dot1AD(vlan=5) / Dot1Q(vlan=7) / IP(src="192.168.7.1", dst="192.168.7.2") / UDP(),
        "LLC": Dot3(src=A_MAC, dst=B_MAC) / LLC(dsap=0xAA, ssap=0xAA) / (b"x" * 40),
        "odd ethertype": Ether(src=A_MAC, dst=B_MAC, type=0x88B5) / (b"x" * 40),
    }


def open_raw(link: str) -> socket.socket:
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    raw.bind((link, 3))
    return raw


class Wire:
    """Sends frames in pod A; says which of them pod B got. A marker frame behind each closes the question."""

    def __init__(self, pods: Pods) -> None:
        self.sender, self.receiver = pods.a.call(open_raw, "eth0"), pods.b.call(open_raw, "eth0")
        self.marks = 0

    def passes(self, frame: bytes) -> bool:
        self.marks += 1
        mark = bytes.fromhex("0a580a2000030a580a20000288b6") + self.marks.to_bytes(4, "big") + bytes(46)
        self.sender.send(frame)
        self.sender.send(mark)
        tail = frame[-8:]
        got = False
        while True:
            ready, _, _ = select.select([self.receiver], [], [], 5)
            assert ready, "the marker did not come through"
            data = self.receiver.recv(4096)
            if data == mark:
                return got
            got |= data[:12] == frame[:12] and data.endswith(tail)

    def close(self) -> None:
        self.sender.close()
        self.receiver.close()


@pytest.fixture
def wire(pods: Pods) -> Iterator[Wire]:
    wire = Wire(pods)
    yield wire
    wire.close()


def test_guards_hold_and_let_honest_frames_pass(wire: Wire) -> None:
    passed = [name for name, frame in forged().items() if wire.passes(bytes(frame))]
    blocked = [name for name, frame in honest().items() if not wire.passes(bytes(frame))]
    assert (passed, blocked) == ([], [])


def test_without_guards_forgeries_pass_except_for_the_lock(pods: Pods, wire: Wire) -> None:
    """The frames of ``forged`` are good enough to arrive; a locked port alone holds the MAC."""
    pods.node.netns.run("nft", "delete", "table", "bridge", "weave_router")
    for layer in ("arptables", "iptables", "ip6tables"):  # bridge netfilter checks headers of its own
        pods.node.netns.call(sysctl_driver.write, f"net/bridge/bridge-nf-call-{layer}", "0", link="weave")
    held = {name for name, frame in forged().items() if not wire.passes(bytes(frame))}
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
    wire = Wire(pods)
    assert not wire.passes(bytes(forged()["MAC"]))
    assert wire.passes(bytes(honest()["IPv4"]))
    wire.close()


def test_lost_elements_close_a_port(pods: Pods, wire: Wire) -> None:
    pods.node.netns.run("nft", "flush", "set", "bridge", "weave_router", "ipv4")
    assert not wire.passes(bytes(honest()["IPv4"]))
    tables = netfilter.tables(TABLES, [pods.plan_a.guard, pods.plan_b.guard])
    pods.node.netns.call(pods.node.nft.run, tables, "load again")
    assert wire.passes(bytes(honest()["IPv4"]))


def test_station_port_is_open(node: Node, make_netns: Callable[[], Netns]) -> None:
    pods = Pods(
        node, make_netns(), make_netns(), plan_of("a", "10.32.0.2/12", station=True), plan_of("b", "10.32.0.3/12")
    )
    node.attach(pods.plan_a, pods.a)
    node.attach(pods.plan_b, pods.b)
    wire = Wire(pods)
    assert wire.passes(bytes(forged()["MAC"]))
    assert wire.passes(bytes(forged()["ARP sender address"]))
    wire.close()


# -- the end of a pod, and failures --------------------------------------------------------------------------------


def everything(node: Node) -> tuple[set[str], str]:
    return {link.name for link in node.netns.call(links, node.ipr)}, node.elements()


def test_detach_leaves_nothing(node: Node, make_netns: Callable[[], Netns]) -> None:
    before, pod, plan = everything(node), make_netns(), plan_of("a", "10.32.0.2/12")
    node.attach(plan, pod)
    assert everything(node) != before
    assert node.netns.call(pod_driver.detach, node.rtnl, node.nft, plan.guard)
    port = node.netns.call(find, node.ipr, plan.port)
    assert (port.master, port.up) == (0, False)
    assert node.netns.call(pod_driver.ports, node.ipr) == []
    node.netns.call(pod_driver.reap, node.rtnl)
    assert everything(node) == before
    assert "eth0" not in pod.run("ip", "link")
    assert node.netns.call(pod_driver.detach, node.rtnl, node.nft, plan.guard) is False
    node.netns.call(pod_driver.reap, node.rtnl)


def test_detach_after_the_namespace_went_first(node: Node, make_netns: Callable[[], Netns]) -> None:
    before, pod, plan = everything(node), make_netns(), plan_of("a", "10.32.0.2/12")
    node.attach(plan, pod)
    pod.run("ip", "link", "del", "eth0")
    assert node.netns.call(pod_driver.detach, node.rtnl, node.nft, plan.guard) is False
    assert everything(node) == before


def test_attach_again_after_detach_before_the_pair_was_deleted(node: Node, make_netns: Callable[[], Netns]) -> None:
    pod, plan = make_netns(), plan_of("a", "10.32.0.2/12")
    node.attach(plan, pod)
    node.netns.call(pod_driver.detach, node.rtnl, node.nft, plan.guard)
    node.attach(plan, pod)
    pod.run("ping", "-c1", "-W1", "10.32.0.1")


@pytest.mark.parametrize("step", ["_create_pair", "_plug", "_configure_pod", "_route", "_await_forwarding"])
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
    found = pods.node.netns.call(pod_driver.reattach, pods.node.ipr, [pods.plan_a, gone, pods.plan_b])
    assert found == [pods.plan_a, pods.plan_b]


def test_verify_names_what_changed_at_a_port(pods: Pods) -> None:
    pods.node.netns.run("bridge", "link", "set", "dev", pods.plan_a.port, "learning", "on", "locked", "off")
    port = pods.plan_a.port
    assert pods.node.netns.call(pod_driver.verify, pods.node.rtnl, pods.plan_a) == [
        f"learning of {port} is not 0",
        f"locked of {port} is not 1",
    ]
    assert pods.node.netns.call(pod_driver.verify, pods.node.rtnl, replace(pods.plan_b, port="x")) == ["x is gone"]


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
    dropped = node.netns.run("nft", "list", "chain", "bridge", "weave_router", "forward")
    assert "counter packets 0" not in dropped  # the rule, not luck
    node.netns.call(pod_driver.set_hairpin, node.ipr, False)
    assert "hairpin off" in node.netns.run("ip", "-d", "link", "show", plans[0].port)
