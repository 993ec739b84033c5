"""Two routers that begin to speak in the same instant, fifty times and more: each time both have a session within 4 s.

    pod a -- [h1 router] ----- cable ----- [h2 router] -- pod a        sessions are made to end after 0.25 s

One process holds a socket in either pod and sends from both at once, when neither router has a session: the frames
wait, both initiate, what arrives has crossed on a session. (The rekey bar itself is in test_gaps.py.)
"""

from __future__ import annotations

import ctypes
import os
import select
import socket
import time
from concurrent.futures import ThreadPoolExecutor

from lab import Lab, Pod
from lab.cluster import start_cluster
from lab.router import wait_for, wait_ping
from mesh.page import connection

LABS, ROUNDS, AT_ONCE = 3, 20, 50
"""Rounds of each lab, and initiations of either node in all of them. Now and then the first frame has made its session
before the second one is read: that round counts for one node."""
SESSION_WITHIN = 4.0
PORT = 9000
INITIATION = 1
SHORT_SESSIONS = {
    "WEAVE_ROUTER_DEBUG_REJECT": "0.25",
    "WEAVE_ROUTER_DEBUG_SEND_MARGIN": "0.05",
    "WEAVE_ROUTER_DEBUG_REKEY": "0.199",
    "WEAVE_ROUTER_DEBUG_REKEY_OTHER": "0.199",
    "WEAVE_ROUTER_DEBUG_INDEX_REST": "0.5",
}


def socket_in(pod: Pod) -> socket.socket:
    """Made by a thread that enters the namespace and ends there."""

    def make() -> socket.socket:
        netns = os.open(pod.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            assert ctypes.CDLL(None, use_errno=True).setns(netns, 0) == 0
        finally:
            os.close(netns)
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind(("", PORT))
        return made

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(make).result()


def exchange(sockets: list[socket.socket], pods: tuple[Pod, Pod], number: int) -> float:
    """Send from both, wait until both have the other's; seconds."""
    payload = number.to_bytes(4, "big")
    start = time.monotonic()
    for one in (0, 1) if number % 2 else (1, 0):
        sockets[one].sendto(payload, (pods[1 - one].v4, PORT))
    missing = set(sockets)
    while missing:
        left = start + 2 * SESSION_WITHIN - time.monotonic()
        readable = select.select(list(missing), [], [], max(0.0, left))[0]
        assert readable, f"round {number}: nothing within {2 * SESSION_WITHIN} s"
        missing -= {one for one in readable if one.recv(64) == payload}
    return time.monotonic() - start


def rounds(numbers: range) -> list[int]:
    """Initiations of either node."""
    with Lab() as lab:
        cable = lab.cable()
        hosts = [lab.host(label, cable) for label in ("h1", "h2")]
        routers, pods = start_cluster(lab, hosts, env=SHORT_SESSIONS)
        a, b = pods
        wait_ping(a, b.v4)
        for near, far in ((a, b), (b, a)):  # nothing but our datagrams may start a session
            near.ip(f"neighbour replace {far.v4} lladdr {mac_of(far)} dev eth0 nud permanent")
        capture = lab.capture(hosts[0], "eth0", f"udp port 6783 and udp[8]={INITIATION}")
        sockets = [socket_in(pod) for pod in pods]
        try:
            took = []
            for number in numbers:
                wait_for("no session", lambda: all(
                    getattr(connection(near, far.name), "data", "") == "idle"
                    for near, far in (routers, routers[::-1])), 5, 0.01)  # fmt: skip
                took.append(exchange(sockets, (a, b), number))
        finally:
            for one in sockets:
                one.close()
        assert max(took) <= SESSION_WITHIN, sorted(took)[-5:]
        senders = [packet[26:30] for packet in capture.packets() if packet[12:14] == b"\x08\x00"]
        return [senders.count(socket.inet_aton(host.address())) for host in hosts]


def test_fifty_simultaneous_initiations() -> None:
    """In labs side by side: a round mostly waits for sessions to end."""
    with ThreadPoolExecutor(LABS) as pool:
        initiated = list(pool.map(rounds, [range(ROUNDS * lab, ROUNDS * (lab + 1)) for lab in range(LABS)]))
    for node in zip(*initiated, strict=True):
        assert sum(node) >= AT_ONCE, f"{initiated}: the two were not at once"


def mac_of(pod: Pod) -> str:
    """The derived MAC: 0a:58 and the IPv4 address."""
    return (b"\x0a\x58" + socket.inet_aton(pod.v4)).hex(":")
