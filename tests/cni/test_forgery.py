"""A pod with CAP_NET_RAW changes nothing for any other pod, on its node or across, and sees nobody's unicast.

    evil, near --- a (10.32.1.1) --- switch --- b (10.32.2.1) --- far

What the guards do to each frame on one bridge is in tests/kernel/test_host_pod.py; here it is the whole product.
"""

import json
import select
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from lab.frames import Station, Wire, forged, honest, open_raw_inside
from lab.lab import Lab
from lab.network import Pod
from lab.router import Router, ping, wait_for

ALL = b"\xff" * 6


@dataclass
class World:
    routers: list[Router]
    evil: Pod
    near: Pod
    far: Pod


@pytest.fixture(scope="module")
def world(lab: Lab) -> World:
    switch = lab.switch()
    hosts = [lab.host(label, switch) for label in "ab"]
    routers = [lab.router(host, bridge_address=f"10.32.{number}.1", peers=[other.address()])
               for number, (host, other) in enumerate((hosts, hosts[::-1]), 1)]  # fmt: skip
    lab.parallel(*(router.launch for router in routers))
    evil, near, far = lab.pod(hosts[0], "evil"), lab.pod(hosts[0], "near"), lab.pod(hosts[1], "far")
    routers[0].attach(evil, "10.32.1.66/12")
    routers[0].attach(near, "10.32.1.2/12")
    routers[1].attach(far, "10.32.2.2/12")
    for source, target in ((near, far), (evil, far), (evil, near)):
        wait_for("a way", lambda source=source, target=target: ping(source, target.v4) and ping(source, target.v6))
    return World(routers, evil, near, far)


def mac_of(pod: Pod) -> str:
    return str(json.loads(pod.run(["ip", "-json", "link", "show", "eth0"]).stdout)[0]["address"])


def station(pod: Pod) -> Station:
    return Station(mac_of(pod), pod.v4, pod.v6)


def bridge(router: Router) -> Station:
    link = json.loads(router.host.run(["ip", "-json", "address", "show", "weave"]).stdout)[0]
    v4, v6 = (next(a["local"] for a in link["addr_info"] if a["family"] == family and a["scope"] == "global")
              for family in ("inet", "inet6"))  # fmt: skip
    return Station(link["address"], v4, v6)


def neighbours(world: World) -> set[tuple[str, str, str]]:
    """(who knows it, address, MAC)."""
    found = set()
    for place in (world.near, world.far, *(router.host for router in world.routers)):
        for one in json.loads(place.run(["ip", "-json", "neighbour"]).stdout):
            if one["dev"] in ("eth0", "weave") and "lladdr" in one:
                found.add((place.name, one["dst"], one["lladdr"]))
    return found


def beliefs(world: World) -> list[str]:
    """Routes, and whom the nodes take for the owner of what."""
    pods = [pod.run(["ip", *family, "route"]).stdout for pod in (world.near, world.far) for family in ([], ["-6"])]
    return pods + [str(router.status()["ipam"]["blocks"]) for router in world.routers]


@pytest.mark.parametrize("where", ["near", "far"])
def test_forgeries_reach_nobody_and_change_nothing(world: World, where: str) -> None:
    victim, other = (world.near, world.far) if where == "near" else (world.far, world.near)
    own, to, third = station(world.evil), station(victim), station(other)
    for source, target in ((victim, other), (other, victim), (victim, world.evil)):
        assert ping(source, target.v4) and ping(source, target.v6)
    before, known = beliefs(world), neighbours(world)
    wire = Wire(open_raw_inside(world.evil.path), open_raw_inside(victim.path), own, to)
    passed = []
    for gateway in map(bridge, world.routers):
        for name, frame in forged(own, to, gateway, third).items():
            for kind, data in (("to it", bytes(frame)), ("to all", ALL + bytes(frame)[6:])):
                if wire.passes(data):
                    passed.append(f"{name}, {kind}")
    stopped = [name for name in ("IPv4", "IPv6", "ARP reply") if not wire.passes(bytes(honest(own, to)[name]))]
    wire.close()
    assert (passed, stopped) == ([], [])
    assert beliefs(world) == before
    gone, come = known - neighbours(world), neighbours(world) - known
    assert not gone and not [one for one in come if one[2] == own.mac and one[1] not in (own.v4, own.v6, own.link)]
    for source, target in ((victim, other), (other, victim)):
        assert ping(source, target.v4) and ping(source, target.v6)


@pytest.fixture
def ear(world: World) -> Iterator[socket.socket]:
    """Everything that comes to the evil pod, whoever it is for."""
    raw = open_raw_inside(world.evil.path)
    world.evil.ip("link set eth0 promisc on")
    yield raw
    world.evil.ip("link set eth0 promisc off")
    raw.close()


def test_no_pod_sees_anothers_unicast(world: World, ear: socket.socket) -> None:
    own = bytes.fromhex(mac_of(world.evil).replace(":", ""))
    for source, target in ((world.near, world.far), (world.far, world.near)):
        assert ping(source, target.v4, count=5) and ping(source, target.v6, count=5)
    assert ping(world.near, "10.32.1.1", count=5) and ping(world.evil, world.near.v4)  # the last is heard
    heard = []
    while select.select([ear], [], [], 0.2)[0]:
        heard.append(ear.recv(4096))
    assert any(frame[:6] == own for frame in heard)
    assert [frame.hex() for frame in heard if not frame[0] & 1 and own not in (frame[:6], frame[6:12])] == []
