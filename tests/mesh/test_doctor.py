"""What `doctor` finds at a peer's ports while no router runs here: proof, or what is blocked, or who sits there.

    [ h1: a router ] --- switch --- [ h2: launched once, stopped; doctor runs here ]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from lab import Lab, Router
from lab.namespace import kill_process
from lab.router import new_token
from mesh.page import page, wait_links

from weave_router.api import schema

OTHERS = """
import socket, sys
with socket.create_server(("", 7000)) as server:
    print("up", flush=True)
    while True:
        link, _ = server.accept()
        with link:
            {answer}
            link.settimeout(5)
            while link.recv(4096):
                pass
"""


@dataclass
class World:
    running: Router
    stopped: Router

    @property
    def address(self) -> str:
        return self.running.host.address()

    def doctor(self, *words: str, target: str = "") -> list[str]:
        """What it says of the peer."""
        said = self.stopped.cli("doctor", *words, target or self.address, check=False).stdout
        return [line for line in said.splitlines() if f"peer {self.address}" in line]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Lab() as lab:
        switch = lab.switch()
        one, two = (lab.router(lab.host(name, switch), bridge_address=f"10.32.{number}.1")
                    for number, name in enumerate(("h1", "h2"), 1))  # fmt: skip
        two.peers = [one.host.address()]
        lab.parallel(one.launch, two.launch)
        wait_links(two, "h1")
        assert two.stop() == 0
        yield World(one, two)


def test_both_ports_answer_and_no_session_comes_of_it(world: World) -> None:
    before = page(world.running)
    for _ in range(2):  # a counter of its own each time
        assert world.doctor() == [
            f"ok    peer {world.address}: TCP port 6783 answers and holds the token",
            f"ok    peer {world.address}: UDP port 6783 answers and holds the token",
        ]
    assert shown(page(world.running)) == shown(before)


def shown(report: schema.StatusReport) -> tuple[list[tuple[str, int]], list[tuple[str, str, str]]]:
    """Who is known, and how each is talked to."""
    connections = [(one.nickname, one.state, one.data) for one in report.connections]
    return [(one.id, one.incarnation) for one in report.peers], connections


def test_udp_is_blocked(world: World) -> None:
    world.running.host.wire.rule("udp dport 6783 drop")
    try:
        assert world.doctor() == [
            f"ok    peer {world.address}: TCP port 6783 answers and holds the token",
            f"fail  peer {world.address}: UDP 6783 blocked: no answer to three handshakes, while TCP 6783 answers",
        ]
    finally:
        world.running.host.wire.mend()


def test_tcp_is_blocked(world: World) -> None:
    world.running.host.wire.rule("tcp dport 6783 drop")
    try:
        assert world.doctor() == [f"fail  peer {world.address}: TCP 6783 blocked: no connection comes about"]
    finally:
        world.running.host.wire.mend()


def test_wrong_token(world: World) -> None:
    ours = world.stopped.token_file.read_text()
    world.stopped.write_token(new_token())
    try:
        (line,) = world.doctor()
    finally:
        world.stopped.write_token(ours.strip())
    assert line.startswith(f"fail  peer {world.address}: wrong token: it hung up on our handshake")


@pytest.mark.parametrize("answer", ["pass", 'link.sendall(b"SSH-2.0-x\\r\\n" * 40)'])
def test_another_program(world: World, answer: str) -> None:
    program = world.running.host.popen([sys.executable, "-c", OTHERS.format(answer=answer)])
    assert program.stdout is not None
    try:
        assert program.stdout.readline() == "up\n"
        (line,) = world.doctor(target=f"{world.address}:7000")
    finally:
        kill_process(program)
    assert line.startswith(f"fail  peer {world.address}: not a weave-router")


def test_a_node_that_was_never_launched(world: World, tmp_path_factory: pytest.TempPathFactory) -> None:
    fresh = str(tmp_path_factory.mktemp("state"))
    assert world.doctor("--state-dir", fresh) == [
        f"ok    peer {world.address}: TCP port 6783 answers and holds the token",
        f"warn  peer {world.address}: UDP port 6783 not tried: this node was never launched, so no peer knows its key "
        "and answers it (--state-dir)",
    ]
