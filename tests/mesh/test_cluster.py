"""Whole routers as an operator runs them: what holds, what is refused and in which words, what survives.

        pod a            pod a            pod a
          |                |                |
        [ h1 ] <-lists-> [ h2 ] <-lists-- [ h3 ]      one lab for the file; h1 and h3 are never told of each other
          |                |                |
       ---+----------------+----------------+------   switch; tests that must break a router bring a host of their own

Every test leaves the three as it found them. ``time.sleep`` is load before the blow, never synchronisation.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

import pytest
from lab import Host, Lab, Pod, Router, Switch
from lab.cluster import start_cluster
from lab.router import new_token, ping, program, wait_for, wait_ping
from mesh.page import connection, links, node_id, page, target, wait_links, wait_target
from scapy.layers.inet import ICMP
from scapy.layers.l2 import Ether
from scapy.utils import PcapNgReader

from weave_router.tunnel import wire
from weave_router.tunnel.token import Token

NO_PROOF = "no proof from peer (wrong token, or not a weave-router)"
ROAM_GAP_MAX_MS = 1000
_numbers = count(11)


@dataclass
class Cluster:
    lab: Lab
    switch: Switch
    routers: list[Router]
    pods: list[Pod]

    def host(self) -> Host:
        return self.lab.host(f"x{next(_numbers)}", self.switch)

    @contextmanager
    def extra(self, *peers: str, **options: object) -> Iterator[Router]:
        """One more router; gone, and forgotten by nobody's targets, at the end."""
        number = next(_numbers)
        host = self.lab.host(f"x{number}", self.switch)
        router = self.lab.router(host, **{"bridge_address": f"10.33.{number}.1", "peers": peers, **options})
        try:
            yield router.launch()
        finally:
            router.close()
            self.lab.routers.remove(router)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Lab() as lab:
        switch = lab.switch()
        routers, pods = start_cluster(lab, [lab.host(label, switch) for label in ("h1", "h2", "h3")])
        yield Cluster(lab, switch, routers, pods)


def refused(router: Router, *words: str, status: int = 1) -> str:
    """What the command says when it fails with this status: one line."""
    done = router.cli(*words, check=False)
    assert (done.returncode, done.stdout) == (status, ""), (done.returncode, done.stdout, done.stderr)
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr.strip()


def has_interface(pod: Pod) -> bool:
    return "eth0" in pod.run(["ip", "-brief", "link"]).stdout


def counter(router: Router, name: str) -> int:
    return page(router).counters.get(name, 0)


# -- who finds whom ---------------------------------------------------------------------------------------------------


def test_chain_of_three(cluster: Cluster) -> None:
    """h3 lists h2 alone and yet talks to h1, directly."""
    h1, _, h3 = cluster.routers
    assert [one.address for one in page(h3).targets] == [cluster.routers[1].host.address()]
    wait_for("h3 and h1 in session", lambda: getattr(connection(h3, "h1"), "data", "") == "established")
    found = connection(h3, "h1")
    assert found is not None and found.path == "direct"
    assert found.address == f"{h1.host.address()}:6783"
    for far in cluster.pods[:2]:
        for family in ("v4", "v6"):
            assert ping(cluster.pods[2], far.address(family), count=3)
    for router in cluster.routers:
        wait_for("all reachable", lambda router=router: all(peer.reachable for peer in page(router).peers))
        assert {peer.nickname for peer in page(router).peers} == {"h1", "h2", "h3"}


def test_wrong_token(cluster: Cluster) -> None:
    """The caller is told that nobody proved anything and goes on with pauses; the called tells an unknown token."""
    h1 = cluster.routers[0]
    address = h1.host.address()
    before = counter(h1, "strangers unknown token id")
    with cluster.extra(address, token=new_token()) as stranger:
        wait_target(stranger, address, lambda found: found.detail == NO_PROOF and found.state == "retrying")
        assert NO_PROOF in stranger.cli("status", "connections").stdout
        started, seen = time.monotonic(), counter(h1, "strangers unknown token id")
        wait_for("three more calls", lambda: counter(h1, "strangers unknown token id") >= seen + 3)
        assert 2.5 < time.monotonic() - started < 6, "every second, give or take a tenth"
    assert counter(h1, "strangers unknown token id") > before
    assert links(h1) == {"h2", "h3"} or links(h1) == {"h2"}


def link_1(token: Token, *, version: int = 1) -> bytes:
    """A first message of a link with a valid mac1: what a member of another version sends."""
    head = bytearray(wire.Head(wire.Type.LINK_1, wire.SuiteCode.AESGCM_SHA256, token.id, 1, 0).encode())
    head[1] = version
    message = bytes(head) + os.urandom(48)
    message += wire.mac1(token.mac1_key, message)
    return len(message).to_bytes(2, "big") + message


CALL = """
import socket, sys
for family, kind in ((socket.AF_INET, socket.SOCK_STREAM),):
    with socket.socket(family, kind) as link:
        link.settimeout(10)
        link.connect((sys.argv[1], 6783))
        link.sendall(bytes.fromhex(sys.argv[2]))
        try:
            sys.exit(link.recv(100).hex() or 0)
        except ConnectionError:
            pass
"""


@pytest.mark.parametrize("kind", ["another version", "unknown token id", "stranger"])
def test_kinds_of_strangers_are_told_apart(cluster: Cluster, kind: str) -> None:
    h1 = cluster.routers[0]
    ours, other = Token.parse(cluster.lab.token()), Token.parse(new_token())
    message = {
        "another version": link_1(ours, version=2),
        "unknown token id": link_1(other),
        "stranger": link_1(ours)[:-1] + b"\0",
    }[kind]
    names = [f"strangers {each}" for each in ("another version", "unknown token id", "stranger")]
    before = page(h1).counters
    answer = cluster.pods[0].host.run([sys.executable, "-c", CALL, h1.host.address(), message.hex()], check=False)
    assert (answer.returncode, answer.stderr) == (0, ""), "a stranger is not answered"
    wait_for(kind, lambda: counter(h1, f"strangers {kind}") == before.get(f"strangers {kind}", 0) + 1)
    after = page(h1).counters
    assert {n: after.get(n, 0) - before.get(n, 0) for n in names} == {n: int(n.endswith(f" {kind}")) for n in names}


def test_own_address_is_self(cluster: Cluster) -> None:
    h1 = cluster.routers[0]
    address = h1.host.address("v6")
    h1.cli("connect", address)
    try:
        wait_target(h1, address, lambda found: found.state == "self")
        found = next(one for one in page(h1).connections if one.address == address)
        assert (found.state, found.reason) == ("self", "self")
        assert "address is this node's own" in h1.cli("status", "connections").stdout
    finally:
        h1.cli("forget", address)
    assert target(h1, address) is None


def test_connect_and_forget(cluster: Cluster) -> None:
    """A target outlives a restart; forgetting it keeps the link that stands."""
    h2 = cluster.routers[1]
    with cluster.extra() as router:
        assert links(router) == set()
        assert json.loads(router.cli("connect", h2.host.address(), "--json").stdout) == {"targets": [h2.host.address()]}
        wait_links(router, "h1", "h2", "h3", deadline=10)
        router.kill()
        router.launch()
        assert [one.address for one in page(router).targets] == [h2.host.address()]
        wait_for("a link again", lambda: "h2" in links(router))
        router.cli("forget", h2.host.address())
        assert page(router).targets == ()
        assert "h2" in links(router)
        assert "is no target" in refused(router, "forget", h2.host.address())


def test_targets_of_the_configuration_are_of_one_start(cluster: Cluster) -> None:
    """Those of `connect` stay beside them; one that is forgotten comes back with the configuration."""
    h1, h2 = (router.host.address() for router in cluster.routers[:2])
    with cluster.extra(h1) as router:
        router.cli("connect", h2)
        assert {one.address for one in page(router).targets} == {h1, h2}
        router.cli("forget", h1)
        assert [one.address for one in page(router).targets] == [h2]
        router.kill()
        router.launch()
        assert {one.address for one in page(router).targets} == {h1, h2}
        router.kill()
        router.peers = []
        router.launch()
        assert [one.address for one in page(router).targets] == [h2]


# -- one router, one device -------------------------------------------------------------------------------------------


def test_second_router_on_the_same_tap(cluster: Cluster) -> None:
    """Says who holds it, whether it shares the run directory or only the network namespace."""
    h1 = cluster.routers[0]
    elsewhere = h1.host.directory / "second"
    for argv in (h1.launch_argv(), [*h1.launch_argv(), "--run-dir", str(elsewhere), "--state-dir", str(elsewhere)]):
        done = h1.host.run(argv, env=h1.environment, check=False, timeout=20)
        assert done.returncode == 1, done.stderr
        assert f"TAP weave-tap is held by pid {h1.pid} (" in done.stderr
        assert done.stderr.count("\n") == 1
    assert ping(cluster.pods[0], cluster.pods[1].v4)


def test_range_that_overlaps_is_refused(cluster: Cluster) -> None:
    host = cluster.host()
    router = cluster.lab.router(host, bridge_address="10.32.50.1")
    cluster.lab.routers.remove(router)
    host.ip("route add 10.40.0.0/16 via 198.18.1.1")
    done = host.run(router.launch_argv(), env=router.environment, check=False, timeout=20)
    assert done.returncode == 1
    assert "the range 10.32.0.0/12 overlaps the route 10.40.0.0/16" in done.stderr and "--ipalloc-range" in done.stderr
    assert "weave" not in host.run(["ip", "-brief", "link"]).stdout


def test_exit_statuses(cluster: Cluster) -> None:
    h1 = cluster.routers[0]
    assert h1.cli("status").returncode == 0
    assert "no route" not in refused(h1, "detach", "--address", "10.32.99.99")
    assert "--ipalloc-range" in refused(h1, "launch", "--ipalloc-range", "10.32.0.0/99", status=2)
    assert "token" in refused(h1, "launch", "--token-file", "/nonexistent", status=2)
    assert "there is no command statuss; did you mean status?" in refused(h1, "statuss", status=2)
    readable = h1.host.directory / "readable"
    readable.write_text(cluster.lab.token() + "\n")
    readable.chmod(0o644)
    assert "readable" in refused(h1, "launch", "--token-file", str(readable), status=2)
    refused(h1, "status", "--run-dir", "/nonexistent", status=3)
    refused(h1, "attach", "--run-dir", "/nonexistent", str(cluster.pods[0].path), "10.32.1.9/12", status=3)


# -- pods -------------------------------------------------------------------------------------------------------------


def test_attach_and_detach(cluster: Cluster) -> None:
    h1, h2 = cluster.routers[:2]
    pod = cluster.lab.pod(h1.host, "attached")
    h1.attach(pod, "10.32.1.77/12")
    assert pod.v4 == "10.32.1.77"
    wait_ping(pod, cluster.pods[1].v4)
    addresses = [one.address for one in page(h1).ipam.attachments]
    again = h1.cli("attach", str(pod.path), "10.32.1.77/12").stdout
    assert "10.32.1.77" in again
    assert [one.address for one in page(h1).ipam.attachments] == addresses, "attaching twice changes nothing"
    assert "detach it first" in refused(h1, "attach", str(pod.path), "10.32.1.78/12")
    h1.detach(pod)
    wait_for("its interface is gone", lambda: not has_interface(pod), 2)
    assert [one.address for one in page(h1).ipam.attachments] == ["10.32.1.2/12"]
    refused(h1, "detach", str(pod.path))
    wait_for("h2 forgets it", lambda: "10.32.1.77/32" not in
             next(peer.prefixes for peer in page(h2).peers if peer.nickname == "h1"))
    h1.attach(pod, "10.32.1.78/12")
    wait_ping(pod, cluster.pods[1].v6)
    h1.detach(pod)


@pytest.mark.parametrize(("address", "status", "words"), [
    ("10.32.2.2/12", 1, "belongs to node h2"),
    ("10.32.2.1/12", 1, "belongs to node h2"),
    ("10.32.1.1/12", 1, "this node's bridge"),
    ("10.32.0.0/12", 1, "reserved"),
    ("192.0.2.7/24", 1, "not inside the range"),
    ("10.32.1.7", 2, "did you mean 10.32.1.7/12"),
    ("fd00::1/64", 2, "IPv6"),
    ("nonsense", 2, "should be an IPv4 address"),
])  # fmt: skip
def test_refused_addresses(cluster: Cluster, address: str, status: int, words: str) -> None:
    h1 = cluster.routers[0]
    pod = next((one for one in h1.host.pods if one.label == "h1/refused"), None) or cluster.lab.pod(h1.host, "refused")
    assert words in refused(h1, "attach", str(pod.path), address, status=status)
    assert not has_interface(pod)
    assert len(page(h1).ipam.attachments) == 1


def test_address_announced_twice(cluster: Cluster) -> None:
    """While h3 was away both took it: every table gives it to the smaller id, all show it, frames go there."""
    h1, h2, h3 = cluster.routers
    pods = [cluster.lab.pod(h1.host, "twice"), cluster.lab.pod(h3.host, "twice")]
    h3.host.wire.cut()
    wait_for("h3 is away", lambda: links(h3) == set() and "h3" not in links(h1) | links(h2))
    for router, pod in zip((h1, h3), pods, strict=True):
        router.attach(pod, "10.32.77.7/12")
    h3.host.wire.mend()
    owner = min((h1, h3), key=node_id)
    other = h3 if owner is h1 else h1
    wanted = [("10.32.77.7/32", owner.name, (other.name,))]
    for router in cluster.routers:
        wait_for("the conflict is seen", lambda router=router: len(page(router).ipam.conflicts) == 1)
        assert [(one.address, one.owner, one.others) for one in page(router).ipam.conflicts] == wanted
        assert any("10.32.77.7/32 is announced by" in warning for warning in page(router).warnings)
    owned = pods[0] if owner is h1 else pods[1]
    capture = cluster.lab.capture(owned, "eth0", "icmp")
    wait_ping(cluster.pods[1], "10.32.77.7")
    assert capture.packets()
    for router, pod in zip((h1, h3), pods, strict=True):
        router.detach(pod)
    for router in cluster.routers:
        wait_for("the conflict is over", lambda router=router: page(router).ipam.conflicts == ())


def test_kill_and_relaunch_keeps_pods(cluster: Cluster) -> None:
    h2, pod = cluster.routers[1], cluster.pods[1]
    before = page(h2)
    h2.kill()
    assert has_interface(pod)
    h2.launch()
    after = page(h2)
    assert after.ipam.attachments == before.ipam.attachments
    assert (after.service.id, after.service.incarnation) == (before.service.id, before.service.incarnation + 1)
    wait_ping(pod, cluster.pods[0].v4)
    wait_ping(cluster.pods[2], pod.v6)


def test_sigterm_ends_with_0(cluster: Cluster) -> None:
    """And says goodbye: nobody waits for a silence to find out."""
    h1, h3 = cluster.routers[0], cluster.routers[2]
    wait_for("a session", lambda: ping(cluster.pods[0], cluster.pods[2].v4, wait=0.3))
    assert h3.stop() == 0
    assert "Traceback" not in h3.log()
    assert has_interface(cluster.pods[2])
    wait_for("h1 knows why", lambda: getattr(connection(h1, "h3"), "reason", "") == "peer-left", 2)
    h3.launch()
    wait_ping(cluster.pods[0], cluster.pods[2].v4)


def test_reset(cluster: Cluster) -> None:
    """Refused while the router runs, and while pods are attached; forced, it leaves nothing but the token."""
    with cluster.extra() as router:
        host = router.host
        pod = router.attach(cluster.lab.pod(host, "a"), "10.33.1.2/12")
        said = refused(router, "reset")
        assert str(router.pid) in said or "runs" in said or "held" in said, said
        assert ping(pod, router.bridge_address)
        assert router.stop() == 0
        assert "1 pod is attached" in refused(router, "reset")
        assert "removed" in router.cli("reset", "--force").stdout
        assert [line.split("@")[0].split()[0] for line in host.run(["ip", "-brief", "link"]).stdout.splitlines()] == [
            "lo", "eth0"]  # fmt: skip
        assert not has_interface(pod)
        assert host.run(["nft", "list", "ruleset"]).stdout == ""
        assert host.run(["ip", "rule"]).stdout.count("\n") == 3
        assert {path.name for path in host.state_dir.iterdir()} <= {"store.lock"}
        assert not [path.name for path in host.run_dir.iterdir() if path.suffix == ".sock"]
        router.cli("reset")
        router.launch()
        assert page(router).ipam.attachments == ()


# -- looking ----------------------------------------------------------------------------------------------------------


def test_capture_is_pcapng(cluster: Cluster) -> None:
    h1, pod = cluster.routers[0], cluster.pods[0]
    argv = [program(), "capture", "-w", "-", "--pod", pod.v4, "--count", "6", "--seconds", "15"]
    taker = subprocess.Popen(h1.host.argv(argv), env={**os.environ, **h1.environment}, stdout=subprocess.PIPE)
    try:
        wait_for("six frames", lambda: ping(pod, cluster.pods[1].v4) and taker.poll() is not None, interval=0.01)
        data = taker.communicate(timeout=5)[0]
    finally:
        taker.kill()
        taker.wait()
    assert taker.returncode == 0
    with PcapNgReader(io.BytesIO(data)) as reader:
        packets = list(reader)
    assert len(packets) == 6
    echoes = [packet for packet in packets if isinstance(packet, Ether) and ICMP in packet]
    assert {packet[ICMP].type for packet in echoes} == {0, 8}


def test_report(cluster: Cluster) -> None:
    h1 = cluster.routers[0]
    made = json.loads(h1.cli("report").stdout)
    assert {"created_at", "status", "trace", "tables", "truncated"} <= made.keys()
    assert {peer["nickname"] for peer in made["status"]["peers"]} >= {"h1", "h2", "h3"}
    assert len(made["tables"]["sessions"]) >= 2
    token = Token.parse(cluster.lab.token())
    assert token.secret.hex() not in json.dumps(made) and str(token) not in json.dumps(made)


# -- change under load ------------------------------------------------------------------------------------------------


def next_token(router: Router) -> str:
    return router.cli("token", "new", "--domain-of", str(router.token_file)).stdout.strip()


def token_uses(router: Router, cluster: Cluster) -> set[tuple[str, tuple[str, ...]]]:
    """What the records of the three say; those of extra hosts, long gone, say what they said."""
    names = {one.name for one in cluster.routers}
    return {(use.sending, tuple(sorted(use.accepted))) for use in page(router).tokens.nodes if use.nickname in names}


def test_token_rotation_loses_nothing(cluster: Cluster) -> None:
    """Each step file by file, told by SIGHUP; a 10 ms stream runs through all of it."""
    a, b = cluster.pods[0], cluster.pods[1]
    old, new = cluster.lab.token(), next_token(cluster.routers[0])
    ids = {token: f"{Token.parse(token).id:08x}" for token in (old, new)}
    wait_ping(a, b.v4)
    task = cluster.lab.traffic.listen(b, "udp-recv")
    sender = cluster.lab.traffic.start(a, "stream-send", to=b.v4, port=task.port, seconds=60, full=1340)
    steps = ([old, new], [new, old], [new])
    for lines in steps:
        wanted = (ids[lines[0]], tuple(sorted(ids[line] for line in lines)))
        for router in cluster.routers:
            router.write_token(*lines)
            router.signal(signal.SIGHUP)
        for router in cluster.routers:
            wait_for("the next edit is safe", lambda router=router: page(router).tokens.next_edit == "safe")
            wait_for("all know", lambda router=router, wanted=wanted: token_uses(router, cluster) == {wanted})
    for router in cluster.routers:
        wait_links(router, *{one.name for one in cluster.routers} - {router.name})
    sent = sender.stop()
    got = task.result()
    assert (got["unique"], got["corrupt"]) == (sent["sent"], 0), (sent, got)
    assert got["gap_ms"] < 500
    cluster.lab._token = new
    names = {one.name for one in cluster.routers}
    rows = [one for router in cluster.routers for one in page(router).connections if one.nickname in names]
    assert {(one.state, one.reason) for one in rows} == {("established", "")}


def test_underlay_address_changes(cluster: Cluster) -> None:
    """A host of one family gets another address in mid-stream: both ways go on, by challenge, long before the link."""
    a = cluster.pods[0]
    host = cluster.lab.host("mobile", cluster.switch, families=["v4"])
    router = cluster.lab.router(host, bridge_address="10.35.0.1", peers=[cluster.routers[1].host.address()])
    router.launch()
    b = router.attach(cluster.lab.pod(host, "a"), "10.35.0.2/12")
    wait_ping(a, b.v4)
    wait_links(router, "h1", "h2", "h3")
    streams = [
        cluster.lab.traffic.stream(near, far, far.v4, seconds=5, full=1340, small=64) for near, far in ((a, b), (b, a))
    ]
    time.sleep(1)
    old, new = host.address(), "198.18.1.200"
    host.ip(f"address delete {old}/24 dev eth0", f"address add {new}/24 dev eth0")
    gaps = [finish()["gap_ms"] for finish in streams]
    assert max(gaps) < ROAM_GAP_MAX_MS, gaps
    found = connection(cluster.routers[0], "mobile")
    assert found is not None
    assert (found.state, found.address) == ("established", f"{new}:6783")
    wait_links(router, "h1", "h2", "h3")
    addresses = next(peer.addresses for peer in page(cluster.routers[2]).peers if peer.nickname == "mobile")
    assert f"{new}:6783" in addresses
    assert router.stop() == 0
    cluster.lab.routers.remove(router)


FLUSH = "from pyroute2 import NFCTSocket; NFCTSocket().flush()"


def test_behind_nat(cluster: Cluster) -> None:
    """Port-restricted masquerade: the host inside calls, both directions work, and a mapping that is lost is remade."""
    inside = cluster.lab.switch()
    nat = cluster.lab.nat("nat", cluster.switch, inside, "port")
    host = cluster.lab.host("inside", inside, families=["v4"])
    router = cluster.lab.router(host, bridge_address="10.34.0.1", peers=[cluster.routers[1].host.address()])
    router.launch()
    pod = router.attach(cluster.lab.pod(host, "a"), "10.34.0.2/12")
    for far in cluster.pods:
        wait_ping(pod, far.v4)
        wait_ping(far, pod.v6)
    found = connection(cluster.routers[0], "inside")
    assert found is not None and found.address.split(":")[0] == nat.address()
    own = connection(router, "h1")
    assert own is not None and own.reason == "behind-nat"
    nat.run([sys.executable, "-c", FLUSH])
    for far in cluster.pods:
        wait_ping(pod, far.v4)
    assert router.stop() == 0
    cluster.lab.routers.remove(router)
