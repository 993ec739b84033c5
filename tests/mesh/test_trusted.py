"""Trusted subnets, nicknames and the limit of links, on real routers.

h1 --+-- switch, 198.18.1.0/24 --+-- h3     h1 and h2 trust the switch's network, h3 trusts nobody;
h2 --+                                      h1 takes two links, h3 has a nickname
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from lab import Lab, Pod, Router
from lab.cluster import attach_pods, wait_joined
from lab.router import wait_for
from mesh.page import connection, page, target

MARKER = "5041594c4f4144"  # PAYLOAD
TRUST = ["--trusted-subnets", "198.18.0.0/15"]
FLAGS = {"h1": [*TRUST, "--conn-limit", "2"], "h2": TRUST, "h3": ["--nickname", "third"]}


@dataclass
class World:
    lab: Lab
    routers: dict[str, Router]
    pods: dict[str, Pod]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Lab() as lab:
        switch = lab.switch()
        hosts = {name: lab.host(name, switch, families=["v4"]) for name in FLAGS}
        routers = {
            name: lab.router(
                host,
                bridge_address=f"10.32.{number}.1",
                peers=[] if name == "h1" else [hosts["h1"].address()],
                flags=FLAGS[name],
            )
            for number, (name, host) in enumerate(hosts.items(), 1)
        }
        lab.parallel(*(router.launch for router in routers.values()))
        pods = attach_pods(lab, list(routers.values()), 1)
        wait_joined(lab, pods)
        yield World(lab, routers, dict(zip(routers, pods, strict=True)))


def seen_on_the_wire(world: World, near: str, far: str) -> int:
    """Datagrams between two hosts that show what one pod sent the other."""
    hosts = {name: router.host for name, router in world.routers.items()}
    capture = world.lab.capture(hosts[near], "eth0", f"udp port 6783 and host {hosts[far].address()}")
    world.pods[near].run(["ping", "-n", "-q", "-c", "5", "-i", "0.02", "-p", MARKER, world.pods[far].v4])
    return sum(bytes.fromhex(MARKER) in packet for packet in capture.packets())


def test_payload_is_in_the_clear_where_both_trust(world: World) -> None:
    for name, peer in (("h1", "h2"), ("h2", "h1")):
        found = connection(world.routers[name], peer)
        assert found is not None and (found.encryption, found.reason) == ("plaintext", "")
    assert seen_on_the_wire(world, "h1", "h2") >= 10


def test_payload_is_sealed_where_one_trusts(world: World) -> None:
    for name, peer in (("h1", "third"), ("third", "h1")):
        found = connection(world.routers["h3" if name == "third" else name], peer)
        assert found is not None and (found.encryption, found.reason) == ("aes-256-gcm", "plaintext-one-sided")
    assert seen_on_the_wire(world, "h1", "h3") == 0


def test_every_node_shows_the_nickname(world: World) -> None:
    for router in world.routers.values():
        assert {peer.nickname for peer in page(router).peers} == {"h1", "h2", "third"}
    assert page(world.routers["h3"]).service.name == "h3"


def test_the_link_too_many_is_told(world: World) -> None:
    switch = world.lab._segments[0]
    host = world.lab.host("h4", switch, families=["v4"])
    late = world.lab.router(
        host, bridge_address="10.32.4.1", peers=[world.routers["h1"].host.address()], flags=["--no-discovery"]
    )
    late.launch()

    def told() -> bool:
        found = target(late, world.routers["h1"].host.address())
        return found is not None and "as many links as it may" in found.detail

    wait_for("the refusal", told)
