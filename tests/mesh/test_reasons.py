"""Routers driven into every reason of weave_router/reasons.py, as status shows it; the last test counts them.

      a [h1]   a [h2]   a [plain]  a [noaes]      switch, IPv4 only
        |        |        |          |
     ---+--------+--------+----------+---+---------+---
                                     [gateway]   [nat]  symmetric: each mapping another port
                                         |         |
                           MTU 1300  ----+---   ---+----
                                         |         |
                                     a [narrow]  a [inside]

One lab for the file, seen from h1. ``wire.rule`` takes away UDP alone, so that the control link goes on meanwhile. Two
reasons need a kernel or a record that cannot be had here: the core is driven into them, against the simulated network.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
from lab import Lab, Nat, Pod, Router
from lab.cluster import attach_pods, wait_joined
from lab.namespace import kill_process
from lab.router import program, wait_for, wait_ping
from mesh.page import connection, page, target, wait_links
from sim.tunnel_net import Net

from weave_router.reasons import Reason, text_of
from weave_router.tunnel import wire
from weave_router.tunnel.token import Token

F = TypeVar("F", bound=Callable[..., None])
NO_UDP = "udp dport 6783 counter drop"
FLUSH = "from pyroute2 import NFCTSocket; NFCTSocket().flush()"
EPOCHS = 16
driven: dict[Reason, str] = {}


def drives(*reasons: Reason) -> Callable[[F], F]:
    def note(test: F) -> F:
        driven.update(dict.fromkeys(reasons, test.__name__))
        return test

    return note


@dataclass
class World:
    lab: Lab
    nat: Nat
    routers: dict[str, Router]
    pods: dict[str, Pod]

    @property
    def h1(self) -> Router:
        return self.routers["h1"]

    @property
    def h2(self) -> Router:
        return self.routers["h2"]

    @contextmanager
    def talking(self, near: str, far: str) -> Iterator[None]:
        """A ping every 20 ms, whether answered or not."""
        argv = ["ping", "-n", "-q", "-i", "0.02", self.pods[far].v4]
        task = self.pods[near].popen(argv)
        try:
            yield
        finally:
            kill_process(task)

    @contextmanager
    def without_udp(self, name: str) -> Iterator[None]:
        host = self.routers[name].host
        host.wire.rule(NO_UDP)
        try:
            yield
        finally:
            host.wire.mend()


def without_aes(directory: Path) -> str:
    """The program on a CPU that lists no AES instructions; ``ip netns exec`` gives it a mount namespace of its own."""
    listed = directory / "cpuinfo"
    listed.write_text(Path("/proc/cpuinfo").read_text().replace(" aes", ""))
    script = directory / "weave-router"
    script.write_text(f'#!/bin/sh\nmount --bind {listed} /proc/cpuinfo && exec {program()} "$@"\n')
    script.chmod(0o755)
    return str(script)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Lab() as lab, pytest.MonkeyPatch.context() as patch:
        outer, narrow, inner = lab.switch(), lab.switch(mtu=1300), lab.switch()
        lab.gateway("gateway", outer, narrow)
        nat = lab.nat("nat", outer, inner, "symmetric")
        segments = {"h1": outer, "h2": outer, "plain": outer, "noaes": outer, "narrow": narrow, "inside": inner}
        hosts = {name: lab.host(name, segment, families=["v4"]) for name, segment in segments.items()}
        routers = {
            name: lab.router(
                host,
                bridge_address=f"10.32.{number}.1",
                peers=[] if name == "h1" else [hosts["h1"].address()],
                flags=["--mtu", "1280", *(["--plaintext"] if name == "plain" else [])],
                env={"WEAVE_ROUTER_DEBUG_ROAM": "0.02"},
            )
            for number, (name, host) in enumerate(hosts.items(), 1)
        }
        lab.parallel(*(router.launch for name, router in routers.items() if name != "noaes"))
        with patch.context() as other:
            other.setenv("WEAVE_ROUTER_BIN", without_aes(lab.directory))
            routers["noaes"].launch()
        pods = dict(zip(routers, attach_pods(lab, list(routers.values()), 1), strict=True))
        wait_joined(lab, [pods["h1"], pods["h2"]])
        yield World(lab, nat, routers, pods)


def reason(router: Router, peer: str) -> str:
    found = connection(router, peer)
    return found.reason if found is not None else "no such connection"


def wait_reason(router: Router, peer: str, wanted: Reason, deadline: float = 15.0,
                again: Callable[[], object] = lambda: None) -> None:
    """``again`` is done before each look."""
    seen: list[str] = []

    def reached() -> bool:
        again()
        seen.append(reason(router, peer))
        return seen[-1] == wanted

    try:
        wait_for(f"{wanted} between {router.name} and {peer}", reached, deadline, 0.02)
    except Exception as error:
        raise AssertionError(f"{error}; seen: {list(dict.fromkeys(seen))}") from None
    found = connection(router, peer)
    if found is not None and found.reason == wanted:
        assert found.detail == text_of(wanted)


# -- slower or weaker than it could be --------------------------------------------------------------------------------


@drives(Reason.BEHIND_NAT)
def test_behind_nat(world: World) -> None:
    wait_ping(world.pods["inside"], world.pods["h1"].v4)
    wait_reason(world.routers["inside"], "h1", Reason.BEHIND_NAT)


@drives(Reason.PATH_MTU_SMALL)
def test_path_mtu_small(world: World) -> None:
    with world.talking("h1", "narrow"):
        wait_reason(world.h1, "narrow", Reason.PATH_MTU_SMALL)
        wait_for("the size is found", lambda: 1290 <= getattr(connection(world.h1, "narrow"), "path_mtu", 0) <= 1300)


@drives(Reason.PLAINTEXT_ONE_SIDED)
def test_plaintext_on_one_side(world: World) -> None:
    wait_ping(world.pods["h1"], world.pods["plain"].v4)
    wait_reason(world.h1, "plain", Reason.PLAINTEXT_ONE_SIDED)
    found = connection(world.h1, "plain")
    assert found is not None and found.encryption != "plaintext"


@drives(Reason.NO_AES)
def test_no_aes(world: World) -> None:
    wait_ping(world.pods["h1"], world.pods["noaes"].v4)
    wait_reason(world.h1, "noaes", Reason.NO_AES)
    found = connection(world.h1, "noaes")
    assert found is not None and found.encryption == "chacha20-poly1305"


@drives(Reason.GSO_REFUSED)
def test_gso_refused() -> None:
    """Since Linux 6.11 only IPsec policies refuse UDP_SEGMENT: the core is told what the fast path would tell it."""
    net = Net(1)
    a, b = net.node("a"), net.node("b")
    net.introduce(a, b)
    a.send(b, 100)
    net.run(1.0)
    a.feed(a.tunnel.gso_refused, a.slot_of(b))
    assert a.status(b).reason is Reason.GSO_REFUSED


# -- no session -------------------------------------------------------------------------------------------------------


@drives(Reason.SELF)
def test_own_address(world: World) -> None:
    address = world.h1.host.address()
    world.h1.cli("connect", address)
    wait_for("self", lambda: getattr(target(world.h1, address), "state", "") == "self")
    assert [one.reason for one in page(world.h1).connections if one.address == address] == [Reason.SELF]
    world.h1.cli("forget", address)


@drives(Reason.NO_ENDPOINT)
def test_no_endpoint() -> None:
    """A router always knows an address of itself; only a record of another kind has none."""
    net = Net(2)
    a, b = net.node("a"), net.node("b")
    a.learn(b, endpoints=())
    a.send(b, 100)
    assert a.status(b).reason is Reason.NO_ENDPOINT


SEND = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.bind(("", 6783))
    for line in sys.stdin:
        s.sendto(bytes.fromhex(line), (sys.argv[1], 6783))
"""


def say(sender: subprocess.Popen[str], message: bytes) -> None:
    """Have it sent once."""
    assert sender.stdin is not None
    sender.stdin.write(message.hex() + "\n")
    sender.stdin.flush()


def initiation(token: Token, version: int) -> bytes:
    head = bytearray(wire.Head(wire.Type.INITIATION, wire.SuiteCode.AESGCM_SHA256, token.id, 1, 0).encode())
    head[1] = version
    message = bytes(head) + os.urandom(wire.MESSAGE_1_SIZE - wire.HEAD_SIZE - wire.MAC1_SIZE)
    return message + wire.mac1(token.mac1_key, message)


@drives(Reason.PEER_LEFT, Reason.NO_PROOF, Reason.WRONG_VERSION, Reason.UNKNOWN_TOKEN, Reason.UNREACHABLE)
def test_peer_that_left_and_what_answers_in_its_place(world: World) -> None:
    """h2 says goodbye; then nothing, another version, another cluster and no route are behind its address."""
    ours = Token.parse(world.lab.token())
    host, address = world.h2.host, world.h1.host.address()
    wait_ping(world.pods["h1"], world.pods["h2"].v4)
    assert world.h2.stop() == 0
    wait_reason(world.h1, "h2", Reason.PEER_LEFT, 2)
    with world.talking("h1", "h2"):
        wait_reason(world.h1, "h2", Reason.NO_PROOF)
        for message, wanted in (
            (initiation(ours, 2), Reason.WRONG_VERSION),
            (initiation(Token.new(os.urandom, None), 1), Reason.UNKNOWN_TOKEN),
        ):
            task = host.popen([sys.executable, "-c", SEND, address])
            try:
                wait_reason(world.h1, "h2", wanted, again=lambda task=task, message=message: say(task, message))
            finally:
                kill_process(task)
        world.h1.host.ip(f"route add unreachable {host.address()}/32")
        try:
            wait_reason(world.h1, "h2", Reason.UNREACHABLE)
        finally:
            world.h1.host.ip(f"route delete unreachable {host.address()}/32")
        world.h2.launch()
        wait_for("all is well", lambda: reason(world.h1, "h2") == "")
    wait_ping(world.pods["h1"], world.pods["h2"].v4)


# -- a session in trouble ---------------------------------------------------------------------------------------------


@drives(Reason.PATH_SILENT, Reason.PATH_LOST)
def test_path_that_falls_silent(world: World) -> None:
    with world.talking("h1", "h2"):
        wait_reason_none(world)
        with world.without_udp("h2"):
            wait_reason(world.h1, "h2", Reason.PATH_SILENT)
            wait_reason(world.h1, "h2", Reason.PATH_LOST)
        wait_reason_none(world)


def wait_reason_none(world: World) -> None:
    def well() -> bool:
        found = connection(world.h1, "h2")
        return found is not None and (found.data, found.reason) == ("established", "")

    wait_for("h1 and h2 in session, without a reason", well)


@drives(Reason.PEER_RESTARTED)
def test_peer_restarted(world: World) -> None:
    """Its record comes by the link; while the handshake cannot, status says what it waits for."""
    with world.talking("h1", "h2"):
        wait_reason_none(world)
        world.h2.kill()
        with world.without_udp("h2"):
            world.h2.launch(wait=False)
            wait_reason(world.h1, "h2", Reason.PEER_RESTARTED)
        world.h2.wait_ready()
        wait_reason_none(world)
    wait_links(world.h2, *set(world.routers) - {"h2"})


@drives(Reason.TOKEN_RETIRED)
def test_token_retired(world: World) -> None:
    old = world.lab.token()
    new = world.h1.cli("token", "new", "--domain-of", str(world.h1.token_file)).stdout.strip()
    with world.talking("h1", "h2"):
        wait_reason_none(world)
        with world.without_udp("h2"):
            world.h1.write_token(new)
            world.h1.signal(signal.SIGHUP)
            wait_reason(world.h1, "h2", Reason.TOKEN_RETIRED, 2)
            world.h1.write_token(old)
            world.h1.signal(signal.SIGHUP)
        wait_reason_none(world)


@drives(Reason.EPOCHS_USED_UP)
def test_path_epochs_used_up(world: World) -> None:
    """A NAT that forgets its mappings again and again; the reason lasts as long as one handshake, so the log tells."""
    h1 = world.h1

    def address() -> str:
        return getattr(connection(h1, "inside"), "address", "")

    moves = 0
    with world.talking("inside", "h1"):
        wait_ping(world.pods["inside"], world.pods["h1"].v4)
        while Reason.EPOCHS_USED_UP.value not in h1.log():
            before, moves = address(), moves + 1
            assert moves < EPOCHS, "a session must not see an epoch twice"
            world.nat.run([sys.executable, "-c", FLUSH])
            wait_for("h1 follows", lambda before=before: address() != before, 10, 0.01)
        assert moves > EPOCHS // 2, "and not be given up early"
        wait_for("a session of its own", lambda: reason(h1, "inside") != Reason.EPOCHS_USED_UP, 5)
    wait_ping(world.pods["h1"], world.pods["inside"].v4)


def test_every_reason_is_driven() -> None:
    assert set(driven) == set(Reason)
