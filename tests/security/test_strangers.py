"""Whole routers among strangers: nothing of the pods is readable, nothing is answered, nothing grows, members link.

      pod a            pod a
        |                |
      [ h1 ] ---------- [ h2 ]      [ h3 ]: a member that calls while the flood goes on
        |                |            |
     ---+----------------+------------+-------- switch ---- stranger: any port, any bytes; sees all that h1 sends it
"""

from __future__ import annotations

import os
import random
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from lab import Lab, Pod, Router, read_pcap
from lab.cluster import start_cluster
from lab.network import Node
from lab.router import wait_for, wait_ping
from mesh.page import connection, page, wait_links
from security.inputs import SANITIZED
from security.stranger import build_stranger

DATAGRAMS = 1_000_000
DATAGRAMS_A_SECOND = 100_000
OPENINGS = 10_000
GROWTH = 2 << 20
LINK_WITHIN = 2.0
MARKER = b"the-marker-that-nobody-on-the-underlay-may-read"
HANDSHAKES = {1, 2}
DATA = 4
OUTSIDE = ("stranger", "version", "token", "unknown_session", "bad_tag", "replay", "malformed_outside",
           "plaintext_refused")  # fmt: skip
REFUSALS = ("replayed message 1", "answer to nothing")
SAMPLE = 12
"""Datagrams of each kind that are replayed, cut and changed."""


@dataclass
class World:
    lab: Lab
    routers: list[Router]
    pods: list[Pod]
    member: Router
    stranger: Node
    sender: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with Lab() as lab:
        switch = lab.switch()
        routers, pods = start_cluster(lab, [lab.host(label, switch) for label in ("h1", "h2")])
        member = lab.router(lab.host("h3", switch), bridge_address="10.32.3.1").launch()
        stranger = lab.host("stranger", switch)
        yield World(lab, routers, pods, member, stranger, build_stranger(tmp_path_factory.mktemp("stranger")))


# -- secrecy ----------------------------------------------------------------------------------------------------------

SPEAK = """
import socket, sys
marker, to = bytes.fromhex(sys.argv[1]), sys.argv[2]
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    for size in (len(marker), 600, 1300, 8000):
        s.sendto((marker * 200)[:size], (to, 9))
with socket.create_connection((to, 9000), 10) as s:
    for _ in range(40):
        s.sendall(marker * 500)
"""
LISTEN = """
import socket
with socket.create_server(("", 9000)) as server:
    print("ready", flush=True)
    link, _ = server.accept()
    with link:
        size = 0
        while data := link.recv(1 << 16):
            size += len(data)
    print(size, flush=True)
"""


def test_marker_never_on_the_underlay(world: World) -> None:
    a, b = world.pods
    underlay = [world.lab.capture(router.host, "eth0") for router in world.routers]
    inside = world.lab.capture(b, "eth0")
    listener = b.popen([sys.executable, "-c", LISTEN])
    assert listener.stdout is not None
    assert listener.stdout.readline() == "ready\n"
    a.run([sys.executable, "-c", SPEAK, MARKER.hex(), b.v4])
    said = listener.communicate(timeout=20)[0]
    assert int(said) == 40 * 500 * len(MARKER)
    assert sum(MARKER in packet for packet in inside.packets()) > 20, "it would be seen where it is"
    for capture in underlay:
        packets = capture.packets()
        assert sum(map(len, packets)) > int(said)
        assert not [packet for packet in packets if MARKER[:16] in packet]


# -- floods -----------------------------------------------------------------------------------------------------------

FLOOD_TCP = """
import random, socket, struct, sys
rng, to, count = random.Random(8), (sys.argv[1], 6783), int(sys.argv[2])
held, answered = [], 0
for number in range(count):
    link = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    link.settimeout(10)
    try:
        link.connect(to)
        kind = number % 5
        size = rng.randrange(1, 700)
        body = rng.randbytes(size)
        if kind == 1:
            link.sendall(body)
        elif kind == 2:
            link.sendall(struct.pack(">H", 96) + bytes([17, 1, 1, 0]) + body[:92])
        elif kind == 3:
            link.sendall(struct.pack(">H", size + 1) + body)
        elif kind == 4:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    except OSError:
        pass
    held.append(link)
    if len(held) > 20:
        gone = held.pop(rng.randrange(20))
        gone.settimeout(0)
        try:
            answered += len(gone.recv(100))
        except OSError:
            pass
        gone.close()
print(answered)
"""


def resident(router: Router) -> int:
    return int(Path(f"/proc/{router.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors(router: Router) -> int:
    return len(os.listdir(f"/proc/{router.pid}/fd"))


def flood(world: World, openings: int, datagrams: int) -> list[subprocess.Popen[str]]:
    address = world.routers[0].host.address()
    return [
        world.stranger.popen([sys.executable, "-c", FLOOD_TCP, address, str(openings)]),
        world.stranger.popen([str(world.sender), address, "6783", str(datagrams), "7", "1", str(DATAGRAMS_A_SECOND)]),
    ]


def end(floods: list[subprocess.Popen[str]], timeout: float) -> str:
    said = [one.communicate(timeout=timeout) for one in floods]
    assert [one.returncode for one in floods] == [0, 0], said
    return said[0][0].strip()


def settle(router: Router) -> None:
    """Openings of the flood have ended: those that say nothing are given 5 s."""
    wait_for("no half-open link is left", lambda: not strangers_open(router), 15, 0.1)


def strangers_open(router: Router) -> bool:
    """TCP connections on the router's port that are no links."""
    lines = router.host.run(["ss", "-Htn", "state", "established", "sport", "=", ":6783"]).stdout.splitlines()
    return any("198.18.1.4]" in line or "198.18.1.4:" in line for line in lines)


def test_flood_of_strangers(world: World) -> None:
    h1, member = world.routers[0], world.member
    end(flood(world, 1500, 5000), 60)  # the allocator's own pools fill at the first flood
    settle(h1)
    memory, files = resident(h1), descriptors(h1)
    drops = Counter(page(h1).drops)
    capture = world.lab.capture(world.stranger, "eth0", f"src host {h1.host.address()}")
    floods = flood(world, OPENINGS, DATAGRAMS)
    wait_for("the flood is on", lambda: page(h1).drops["stranger"] > drops["stranger"] + 1000, 20, 0.01)
    assert all(one.poll() is None for one in floods)
    start = time.monotonic()
    member.cli("connect", h1.host.address())
    called = time.monotonic()
    wait_links(member, "h1", "h2", deadline=10)
    took = time.monotonic() - called
    assert all(one.poll() is None for one in floods), "the flood must outlast the call"
    assert took <= LINK_WITHIN, (took, called - start)
    answered = end(floods, 90)
    assert answered == "0"
    settle(h1)
    check_unanswered(capture.stop(), OPENINGS)
    grown = page(h1).drops["stranger"] + page(h1).drops["token"] - drops["stranger"] - drops["token"]
    kernel = page(h1).drops["kernel_udp_buffer"] - drops["kernel_udp_buffer"]
    others = sum(page(h1).drops[name] - drops[name] for name in OUTSIDE if name not in ("stranger", "token"))
    assert grown + kernel + others >= DATAGRAMS, (grown, kernel, others)
    wait_for("descriptors as before, and one link", lambda: descriptors(h1) <= files + 1, 10)
    assert SANITIZED or abs(resident(h1) - memory) <= GROWTH, (resident(h1), memory)
    wait_ping(world.pods[0], world.pods[1].v4, 5)
    assert "Traceback" not in h1.log()


def check_unanswered(path: Path, openings: int) -> None:
    """TCP without payload, no UDP: what a stranger hears of the router is its kernel."""
    seen: Counter[str] = Counter()
    for _, packet in read_pcap(path):
        if packet[12:14] != b"\x08\x00":
            continue
        protocol, start = packet[23], 14 + (packet[14] & 15) * 4
        total = struct.unpack_from(">H", packet, 16)[0]
        if protocol == socket.IPPROTO_TCP:
            payload = 14 + total - start - (packet[start + 12] >> 4) * 4
            seen["tcp with payload" if payload else "tcp"] += 1
        else:
            seen[f"protocol {protocol}"] += 1
    assert seen["tcp"] >= openings, seen
    assert set(seen) == {"tcp"}, seen


# -- replays ----------------------------------------------------------------------------------------------------------

REPLAY = """
import socket, sys
to, port = (sys.argv[1], 6783), int(sys.argv[2])
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.bind(("", port))
    for line in sys.stdin:
        s.sendto(bytes.fromhex(line), to)
    s.setblocking(False)
    try:
        sys.exit("answered: " + s.recv(2000).hex())
    except BlockingIOError:
        pass
"""
AT_ONCE = 200
"""Datagrams sent before the router has counted those before: far fewer than its socket holds."""


def replay(source: Node, port: int, datagrams: list[bytes], router: Router) -> None:
    """Send them all; each was counted as refused before this returns, and none was answered."""
    before = refused(router)
    sender = source.popen([sys.executable, "-c", REPLAY, router.host.address(), str(port)])
    assert sender.stdin is not None
    for at in range(0, len(datagrams), AT_ONCE):
        sender.stdin.write("".join(f"{datagram.hex()}\n" for datagram in datagrams[at : at + AT_ONCE]))
        sender.stdin.flush()
        due = before + min(at + AT_ONCE, len(datagrams))
        wait_for("all are counted", lambda due=due: refused(router) >= due, 10, 0.01)
    said = sender.communicate(timeout=10)
    assert sender.returncode == 0, said
    assert refused(router) - before == len(datagrams)


def payloads(path: Path, source: str, target: str) -> list[bytes]:
    """UDP payloads of router port 6783 from one host to the other."""
    want = socket.inet_aton(source) + socket.inet_aton(target)
    found = [packet for _, packet in read_pcap(path) if packet[12:14] == b"\x08\x00" and packet[26:34] == want]
    return [packet[42:] for packet in found if packet[23] == socket.IPPROTO_UDP and packet[36:38] == b"\x1a\x7f"]


def sample(datagrams: list[bytes]) -> list[bytes]:
    """Some of each type and size, the same in every run of the same traffic."""
    groups: dict[tuple[int, bool], list[bytes]] = {}
    for datagram in datagrams:
        groups.setdefault((datagram[0], len(datagram) > 200), []).append(datagram)
    rng = random.Random(3)
    return [one for _, group in sorted(groups.items()) for one in rng.sample(group, min(SAMPLE, len(group)))]


def mutations(datagrams: list[bytes]) -> list[bytes]:
    """As they were, cut, and with a byte changed: each length and place of the first of each type, some of the rest."""
    found = list(datagrams)
    whole = {datagram[0]: datagram for datagram in reversed(datagrams) if len(datagram) <= 200}
    for datagram in datagrams:
        step = 1 if whole.get(datagram[0]) is datagram else max(1, len(datagram) // 6)
        found += [datagram[:length] for length in range(1, len(datagram), step)]
        for at in range(0, len(datagram), step):
            changed = bytearray(datagram)
            changed[at] ^= 1 << at % 8
            found.append(bytes(changed))
    return found


def unchanged(router: Router, peer: str) -> dict[str, object]:
    """What a stranger must not be able to change."""
    found = connection(router, peer)
    assert found is not None
    whole = page(router)
    return {
        "connection": (found.state, found.data, found.address, found.path, found.path_mtu, found.reason),
        "peers": [(one.id, one.incarnation, one.prefixes, one.addresses) for one in whole.peers],
        "ipam": whole.ipam,
        "warnings": whole.warnings,
    }


def refused(router: Router) -> int:
    """Datagrams that the router dropped as a stranger's, by whichever of its counters."""
    whole = page(router)
    return sum(whole.drops[name] for name in OUTSIDE) + sum(whole.counters.get(f"tunnel {n}", 0) for n in REFUSALS)


def test_captured_datagrams_change_nothing(world: World) -> None:
    h1, h2 = world.routers
    a, b = world.pods
    capture = world.lab.capture(h1.host, "eth0", "udp port 6783")
    h2.stop()
    h2.launch()
    wait_ping(a, b.v4)
    wait_ping(b, a.v6)
    b.run(["ping", "-n", "-q", "-c", "20", "-i", "0.01", "-s", "1200", a.v4])
    path = capture.stop()
    heard = payloads(path, h2.host.address(), h1.host.address())
    assert {datagram[0] for datagram in heard} >= {DATA} and HANDSHAKES & {datagram[0] for datagram in heard}
    chosen = sample(heard)
    wait_for("h2 is at rest", lambda: all(peer.reachable for peer in page(h1).peers if peer.nickname != "h3"))
    before, early = unchanged(h1, "h2"), connection(h1, "h2")
    sent = 0
    for source, port, datagrams in (
        (world.stranger, 40_000, mutations(chosen)),
        (h2.host, 40_001, mutations(chosen)),
        (world.stranger, 6783, chosen),
    ):
        replay(source, port, datagrams, h1)
        sent += len(datagrams)
    assert sent > 1000
    assert unchanged(h1, "h2") == before
    now = connection(h1, "h2")
    assert early is not None and now is not None and now.since == pytest.approx(early.since, abs=0.5)
    wait_ping(b, a.v4, 2)
