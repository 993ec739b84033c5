"""Deletion of detached pairs beside everything else: whatever goes between a look and the use of what was seen.

    pod A eth0 --- vethwr... --- weave (bridge)

The deletion has a thread and a netlink of its own (host/driver.py), and the kernel takes ports away with their
namespaces, so any port may go at any moment. Each test puts that moment where it hurts.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from kernel.host_world import Node, everything, plan_of

from weave_router.host import handover_driver, netlink_driver, pod_driver
from weave_router.host import pod as pod_room
from weave_router.host import rtnl as rtnl_messages
from weave_router.host.driver import Host
from weave_router.host.faults import HostError
from weave_router.host.names import GRAVE_GROUP
from weave_router.host.netlink_driver import find
from weave_router.host.rtnl_driver import Rtnl

from .conftest import Netns

PLAN = plan_of("a", "10.32.0.2/12")


@pytest.fixture
def reaper(node: Node) -> Iterator[Rtnl]:
    """The other netlink of the host."""
    with node.netns.call(Rtnl) as rtnl:
        yield rtnl


def after_look(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """``act`` once, right behind the first look that finds a port of a pod."""
    real, done = pod_driver.find, threading.Event()

    def look(netlink: Any, name: str) -> Any:
        found = real(netlink, name)
        if found is not None and name == PLAN.port and not done.is_set():
            done.set()
            act()
        return found

    monkeypatch.setattr(pod_driver, "find", look)


def test_a_name_in_the_grave_goes_as_it_is_wanted_again(
    node: Node, make_netns: Callable[[], Netns], monkeypatch: pytest.MonkeyPatch, reaper: Rtnl
) -> None:
    first, second = make_netns(), make_netns()
    node.attach(PLAN, first)
    node.detach(PLAN)
    after_look(monkeypatch, lambda: pod_driver.reap(reaper))
    attached = node.attach(PLAN, second)
    assert attached.port == PLAN.port
    second.run("ping", "-c1", "-W1", "10.32.0.1")


def test_a_new_pod_of_a_name_whose_pair_waits_in_the_grave(
    node: Node, make_netns: Callable[[], Netns], reaper: Rtnl
) -> None:
    """The deletion that comes later takes the old pair, never the new one."""
    first, second = make_netns(), make_netns()
    node.attach(PLAN, first)
    node.detach(PLAN)
    node.attach(PLAN, second)
    node.netns.call(pod_driver.reap, reaper)
    assert node.netns.call(find, node.ipr, PLAN.port).group != GRAVE_GROUP
    assert "eth0" not in first.run("ip", "link")
    second.run("ping", "-c1", "-W1", "10.32.0.1")


@pytest.mark.parametrize("how", ["reaped", "gone with its namespace"])
def test_a_port_goes_as_it_is_detached(
    node: Node, make_netns: Callable[[], Netns], reaper: Rtnl, how: str
) -> None:
    before, pod = everything(node), make_netns()
    node.attach(PLAN, pod)
    if how == "reaped":
        assert reaper.run(rtnl_messages.link_away(find(reaper, PLAN.port).index, GRAVE_GROUP)) == [0]
        pod_driver.reap(reaper)
    else:
        pod.run("ip", "link", "del", "eth0")
    assert node.detach(PLAN) == [0]
    assert everything(node) == before


def test_many_ports_are_detached_in_one_call(node: Node, make_netns: Callable[[], Netns]) -> None:
    before, pods = everything(node), [make_netns() for _ in range(3)]
    plans = [plan_of(name, f"10.32.0.{number}/12") for number, name in enumerate(("a", "b", "c"), start=2)]
    for plan, pod in zip(plans, pods, strict=True):
        node.attach(plan, pod)
    pods[1].run("ip", "link", "del", "eth0")
    indices = [find(node.rtnl, plan.port).index for plan in (plans[0], plans[2])]
    assert node.detach(*plans) == [indices[0], 0, indices[1]]
    node.netns.call(pod_driver.reap, node.rtnl)
    assert everything(node) == before


def test_ports_of_one_batch_have_names_of_their_own(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pods whose first choice is the same."""
    before, plans = everything(node), [plan_of(name, f"10.32.0.{number}/12") for number, name in ((2, "a"), (3, "b"))]
    own = pod_room.port_name
    monkeypatch.setattr(pod_room, "port_name", lambda who, ifname, salt=0: own(who if salt else "same", ifname, salt))
    named = node.netns.call(pod_driver.enter, node.rtnl, node.nft, plans)
    assert named[0].port == own("same", "eth0", 0) and named[1].port == own("b", "eth0", 1)
    assert all(f'"{plan.port}" . {plan.mac}' in node.elements() for plan in named)
    node.detach(*named)
    assert everything(node) == before


def cut_off(node: Node) -> None:
    pod_driver.cut_off(node.ipr, PLAN.port)


def set_hairpin(node: Node) -> None:
    pod_driver.set_hairpin(node.rtnl, node.ipr, True)


def reattach(node: Node) -> None:
    """Of what a kill left without an owner's name."""
    assert pod_driver.reattach(node.ipr, [PLAN], "weave") == []


@pytest.mark.parametrize("work", [cut_off, set_hairpin, reattach])
def test_a_port_goes_as_it_is_changed(
    node: Node, make_netns: Callable[[], Netns], monkeypatch: pytest.MonkeyPatch, work: Callable[[Node], None]
) -> None:
    pod = make_netns()
    node.attach(PLAN, pod)
    if work is reattach:
        node.netns.run("ip", "link", "set", PLAN.port, "alias", "")
    real = netlink_driver.set_if_there

    def late(*words: Any, **more: Any) -> None:
        pod.run("ip", "link", "del", "eth0")
        real(*words, **more)

    monkeypatch.setattr(pod_driver, "set_if_there", late)
    node.netns.call(work, node)
    assert node.netns.call(find, node.ipr, PLAN.port) is None


def test_what_a_kill_left_without_an_owner_goes_at_the_start(node: Node, make_netns: Callable[[], Netns]) -> None:
    """Whether a record was kept for it or not."""
    before, pods = everything(node), [make_netns() for _ in range(3)]
    plans = [plan_of(name, f"10.32.0.{number}/12") for number, name in enumerate(("a", "b", "c"), start=2)]
    node.attach(plans[0], pods[0])
    for plan, pod in zip(plans[1:], pods[1:], strict=True):
        handle = handover_driver.open_pod(pod.path)
        with Rtnl(handle.netlink) as inside:
            node.netns.call(pod_driver.enter, node.rtnl, node.nft, [plan])
            node.netns.call(pod_driver.begin, node.rtnl, node.nft, plan, inside, handle.netns)
        handle.close()
    assert node.netns.call(pod_driver.reattach, node.ipr, plans[:2], "weave") == plans[:1]
    node.netns.call(pod_driver.reap, node.rtnl)
    assert {port.name for port in node.netns.call(pod_driver.ports, node.ipr)} == {plans[0].port}
    for plan in plans:
        node.detach(plan)
    node.netns.call(pod_driver.reap, node.rtnl)
    assert everything(node) == before


def test_a_refusal_beside_the_absence_is_told(node: Node, make_netns: Callable[[], Netns]) -> None:
    node.attach(PLAN, make_netns())
    port = node.netns.call(find, node.ipr, PLAN.port)
    with pytest.raises(HostError, match="cannot enslave"):
        node.netns.call(netlink_driver.set_if_there, node.ipr, "enslave", port, master=port.index)


def test_a_list_that_lacks_ports_ends_no_pod(
    node: Node, make_netns: Callable[[], Netns], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As older kernels give it while other links go."""
    node.attach(PLAN, make_netns())
    monkeypatch.setattr(pod_driver, "links", lambda ipr: [])
    assert node.netns.call(pod_driver.reattach, node.ipr, [PLAN], "weave") == [PLAN]
    room = Host()
    room._ipr, room._rtnl, room._nft = node.ipr, node.rtnl, node.nft
    assert node.netns.call(asyncio.run, room.gone([PLAN.port, "vethwr0"])) == {"vethwr0"}
    node.detach(PLAN)
    assert node.netns.call(pod_driver.reattach, node.ipr, [PLAN], "weave") == []
    assert node.netns.call(asyncio.run, room.gone([PLAN.port])) == {PLAN.port}
    room._thread.shutdown()
    room._reaper.shutdown()


def test_a_bare_list_says_the_same_of_every_link(node: Node, make_netns: Callable[[], Netns]) -> None:
    node.attach(PLAN, make_netns())
    listed = {link.name: link for link in node.netns.call(netlink_driver.links, node.rtnl)}
    for link in node.netns.call(netlink_driver.links, node.ipr):
        own = listed.pop(link.name)
        assert replace(own, port={}) == replace(link, port={})
        assert own.port == {name: link.port[name] for name in own.port}
        assert bool(own.port) == bool(link.master)
    assert listed == {}
