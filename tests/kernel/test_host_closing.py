"""A pod that was detached and whose pair still stands: its port is closed, and the next pod may have all it had.

    pod A eth0 --- vethwr... --+
    pod B eth0 --- vethwr... --+-- weave (bridge) -- weave-tap (TAP, held open, silent)
    pod C eth0 --- vethwr... --+

A is detached and not yet reaped. B speaks to it; what C got of the same frames says that they went their way.
"""

import select
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from errno import ENODEV

import pytest
from kernel.host_world import Node, plan_of
from lab.frames import Station, open_raw

from weave_router import limits
from weave_router.host import pod_driver
from weave_router.host import rtnl as rtnl_messages
from weave_router.host.names import GRAVE_GROUP
from weave_router.host.netlink_driver import find
from weave_router.host.pod import PodPlan
from weave_router.host.rtnl_numbers import BR_STATE_FORWARDING

from .conftest import Netns

A = Station("0a:58:0a:20:00:02", "10.32.0.2", "fd00:1::a20:2")
B = Station("0a:58:0a:20:00:03", "10.32.0.3", "fd00:1::a20:3")
C = Station("0a:58:0a:20:00:04", "10.32.0.4", "fd00:1::a20:4")
GROUP = "239.1.2.3"
GROUP_MAC = "01:00:5e:01:02:03"
PORTS_OF_A_BRIDGE = 1023


@dataclass
class Trio:
    node: Node
    pods: list[Netns]
    plans: list[PodPlan]
    raw: list[socket.socket]

    def detach(self) -> int:
        """The first; the index of its port."""
        (index,) = self.node.detach(self.plans[0])
        assert isinstance(index, int)
        return index

    def hears(self, receiver: int, frame: bytes, seconds: float) -> bool:
        while select.select([self.raw[receiver]], [], [], seconds)[0]:
            if self.raw[receiver].recv(2048)[:len(frame)] == frame:
                return True
        return False


@pytest.fixture
def trio(node: Node, make_netns: Callable[[], Netns]) -> Iterator[Trio]:
    made = Trio(node, [make_netns() for _ in range(3)], [], [])
    for name, station, pod in zip("abc", (A, B, C), made.pods, strict=True):
        made.plans.append(plan_of(name, f"{station.v4}/12"))
        node.attach(made.plans[-1], pod)
        made.raw.append(pod.call(open_raw, "eth0"))
    yield made
    for raw in made.raw:
        raw.close()


def to_many(trio: Trio) -> dict[str, bytes]:
    """Frames of B that A and C get while both are attached; of the group that the bridge knows both to be in."""
    from scapy.layers.inet import IP, UDP
    from scapy.layers.l2 import Ether

    netns = trio.node.netns
    for words in ("mcast_query_response_interval 1", "mcast_querier 0", "mcast_querier 1"):
        netns.run("ip", "link", "set", "weave", "type", "bridge", *words.split())
    for plan in (trio.plans[0], trio.plans[2]):
        netns.run("bridge", "mdb", "add", "dev", "weave", "port", plan.port, "grp", GROUP, "permanent")
    return {
        "broadcast": bytes(Ether(src=B.mac, dst="ff:ff:ff:ff:ff:ff", type=0x88B5) / (b"x" * 50)),
        "group": bytes(Ether(src=B.mac, dst=GROUP_MAC) / IP(src=B.v4, dst=GROUP, ttl=1) / UDP(dport=9) / (b"y" * 30)),
    }


def as_it_is(trio: Trio) -> None:
    """Nothing more is done."""


def without_guards(trio: Trio) -> None:
    trio.node.netns.run("nft", "delete", "table", "bridge", "weave_router")


def opened_again(trio: Trio) -> None:
    """The pod takes its end down and up, and the kernel opens the port."""
    trio.pods[0].run("ip", "link", "set", "eth0", "down")
    trio.pods[0].run("ip", "link", "set", "eth0", "up")
    while find(trio.node.rtnl, trio.plans[0].port).port["state"] != BR_STATE_FORWARDING:
        select.select([], [], [], 0.01)
    with pytest.raises(OSError, match="Network is down"):
        while trio.raw[0].recv(2048):
            pass


@pytest.mark.parametrize("harm", [as_it_is, without_guards, opened_again])
def test_nothing_passes_a_closed_port(trio: Trio, harm: Callable[[Trio], None]) -> None:
    frames = to_many(trio)
    for frame in frames.values():
        trio.raw[1].send(frame)
        assert trio.hears(0, frame, 5) and trio.hears(2, frame, 5)
    trio.detach()
    harm(trio)
    for name, frame in frames.items():
        trio.raw[1].send(frame)
        assert trio.hears(2, frame, 5), name
        assert not trio.hears(0, frame, 0.02), name
    unicast = bytes.fromhex(f"{A.mac}{B.mac}".replace(":", "")) + b"\x88\xb5" + bytes(46)
    trio.raw[1].send(unicast)
    assert not trio.hears(0, unicast, 0.02)
    own = bytes.fromhex(f"{B.mac}{A.mac}".replace(":", "")) + b"\x88\xb5" + bytes(46)
    trio.raw[0].send(own)
    assert not trio.hears(1, own, 0.02)
    assert A.mac not in trio.node.netns.run("bridge", "fdb", "show", "br", "weave")  # it may be on another node by now


def test_who_looks_sees_that_it_was_detached(trio: Trio) -> None:
    """Else an ADD that is repeated after a DEL that failed would find the pod as it should be."""
    assert trio.node.netns.call(pod_driver.verify, trio.node.rtnl, trio.plans[0]) == []
    trio.detach()
    assert "was detached" in trio.node.netns.call(pod_driver.verify, trio.node.rtnl, trio.plans[0])[0]


def test_its_address_is_another_pods_at_once(trio: Trio, make_netns: Callable[[], Netns]) -> None:
    """And the deletion that comes later takes nothing from that one."""
    index, heir = trio.detach(), make_netns()
    plan = plan_of("heir", f"{A.v4}/12")
    trio.node.attach(plan, heir)
    trio.pods[1].run("ping", "-c1", "-W1", A.v4)
    trio.node.netns.call(pod_driver.reap, trio.node.rtnl, [index])
    assert f"{A.mac} sticky" in trio.node.netns.run("bridge", "fdb", "show", "dev", plan.port)
    heir.run("ping", "-c1", "-W1", B.v6)
    trio.pods[1].run("ping", "-c1", "-W1", A.v6)


@pytest.mark.parametrize("harm", ["ip link set weave type bridge stp_state 1", "ip link set {} down"])
def test_a_port_that_nobody_may_close_leaves_the_bridge(trio: Trio, harm: str) -> None:
    trio.node.netns.run(*harm.format(trio.plans[0].port).split())
    assert trio.detach() > 0
    port = trio.node.netns.call(find, trio.node.ipr, trio.plans[0].port)
    assert (port.master, port.up, port.group) == (0, False, GRAVE_GROUP)


def test_a_port_that_was_taken_out_of_the_bridge(trio: Trio) -> None:
    trio.node.netns.run("ip", "link", "set", trio.plans[0].port, "nomaster")
    assert trio.detach() > 0
    port = trio.node.netns.call(find, trio.node.ipr, trio.plans[0].port)
    assert (port.up, port.group) == (False, GRAVE_GROUP)


def test_elements_that_something_flushed_fail_nothing(trio: Trio) -> None:
    trio.node.netns.run("nft", "flush", "set", "bridge", "weave_router", "ipv4")
    assert trio.detach() > 0
    assert trio.plans[0].port not in trio.node.elements() and trio.plans[1].mac in trio.node.elements()


def test_closed_ports_make_room_in_a_full_bridge(node: Node, make_netns: Callable[[], Netns]) -> None:
    plan, others = plan_of("a", "10.32.0.2/12"), range(PORTS_OF_A_BRIDGE - 2)
    node.attach(plan, make_netns())
    lines = [f"tuntap add dev t{number} mode tap\nlink set t{number} master weave\n" for number in others]
    node.netns.run("ip", "-batch", "-", text_input="".join(lines))
    node.detach(plan)
    heir = make_netns()
    node.attach(plan_of("b", "10.32.0.3/12"), heir)
    heir.run("ping", "-c1", "-W1", "10.32.0.1")


def test_more_messages_than_the_socket_holds_answers(node: Node) -> None:
    nobody = [rtnl_messages.link_group(1_000_000 + number, 1) for number in range(8 * limits.RTNL_MESSAGES)]
    assert node.netns.call(node.rtnl.run, *nobody) == [ENODEV] * len(nobody)
