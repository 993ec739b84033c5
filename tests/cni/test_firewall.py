"""Pods under the host's own firewalls, on real routers: everything connects, and pods see the source that sent.

    client --- switch --- a (10.32.1.1) --- a/pod, a/other        service 10.96.0.1:80 -> one of the pods
                   +----- b (10.32.2.1) --- b/pod

Every case is tried under Docker's, ufw's and firewalld's rules as those programs write them (fixtures/: Docker's by
iptables-nft, ufw's and firewalld's dumped from the programs), with bridge netfilter off and on. The full product is
`SOAK=1`; without, each ruleset is tried once.
"""

import itertools
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from lab.lab import Lab
from lab.namespace import Namespace, kill_process
from lab.network import Host, Pod
from lab.router import Router, ping, wait_for

from weave_router.limits import FIREWALL_LOOK_SECONDS, FIREWALL_LOOK_SPACING

HERE = Path(__file__).parent
SERVICE4, SERVICE6 = "10.96.0.1", "2001:db8:96::1"
SOAK = bool(os.environ.get("SOAK"))
RULESETS = ("docker", "ufw", "firewalld", "drop")
CASES = [*itertools.product(RULESETS, (False, True))] if SOAK else [
    ("docker", True), ("ufw", False), ("firewalld", True), ("drop", False)]  # fmt: skip

SERVER = """
import socket, sys
server = socket.create_server(("::", 80), family=socket.AF_INET6, dualstack_ipv6=True)
print("up", flush=True)
while True:
    client, address = server.accept()
    client.sendall(address[0].removeprefix("::ffff:").encode())
    client.close()
"""
CLIENT = """
import socket, sys
for address in sys.argv[1:]:
    try:
        with socket.create_connection((address, 80), timeout=3) as client:
            print(client.recv(99).decode())
    except OSError as error:
        print(f"{address}: {error}")
"""


ONE_PORT = """
import socket, sys
source = ("", 50123)
for address in sys.argv[1:]:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1] + 7 * [0]))  # no end waits for late packets
        client.settimeout(5)
        client.bind(source)
        try:
            client.connect((address, 80))
            print(client.recv(99).decode())
        except OSError as error:
            print(type(error).__name__)
"""
UDP_SERVER = """
import socket
server = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
server.bind(("::", 80))
print("up", flush=True)
while True:
    size, address = server.recvfrom(99)
    server.sendto(address[0].removeprefix("::ffff:").encode().ljust(int(size)), address)
"""
UDP_CLIENT = """
import socket, sys
for where in sys.argv[1:]:
    address, port, size = where.split(",")
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(3)
        client.connect((address, int(port)))
        try:
            client.send(size.encode())
            answer = client.recv(65536).decode()
            print(answer.strip() if len(answer) == int(size) else len(answer))
        except OSError as error:
            print(type(error).__name__)
"""
SPEAKS_FIRST = """
import socket
server = socket.create_server(("::", 81), family=socket.AF_INET6, dualstack_ipv6=True)
print("up", flush=True)
client, address = server.accept()
print(address[0], flush=True)
input()
client.sendall(b"later")
input()
client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1] + 7 * [0]))  # close is a reset
client.close()
input()
"""
LISTENS = """
import socket, sys
with socket.create_connection((sys.argv[1], 81), timeout=30) as server:
    print(server.recv(99).decode(), flush=True)
    try:
        server.recv(99)
    except ConnectionResetError:
        print("reset", flush=True)
"""


class World:
    """Two hosts with pods that serve, and a third machine."""

    def __init__(self, lab: Lab, env_of: Callable[[Host], Mapping[str, str]] = lambda host: {}) -> None:
        switch = lab.switch()
        self.a, self.b, self.client = lab.host("a", switch), lab.host("b", switch), lab.host("client", switch)
        for host in (self.a, self.b):  # what a host sends to a Service is routed before it is translated
            host.ip("route add default via 198.18.1.254", "route add default via 2001:db8:1::fe")
        self.routers = [
            lab.router(host, bridge_address=f"10.32.{number}.1", peers=[other.address()], env=env_of(host))
            for number, (host, other) in enumerate(((self.a, self.b), (self.b, self.a)), 1)
        ]
        lab.parallel(*(router.launch for router in self.routers))
        self.near, self.other = lab.pod(self.a, "pod"), lab.pod(self.a, "other")
        self.far = lab.pod(self.b, "pod")
        self.pods = (self.near, self.other, self.far)
        self.routers[0].attach(self.near, "10.32.1.2/12")
        self.routers[0].attach(self.other, "10.32.1.3/12")
        self.routers[1].attach(self.far, "10.32.2.2/12")
        self.servers = [self.serve(pod) for pod in self.pods]

    def serve(self, pod: Pod) -> subprocess.Popen[str]:
        server = pod.popen(["python3", "-c", SERVER])
        assert server.stdout is not None and server.stdout.readline() == "up\n"
        return server

    def bridge_netfilter(self, on: bool) -> None:
        for host in (self.a, self.b):
            host.bridge_netfilter(on)
            host.sysctl({"net.bridge.bridge-nf-call-arptables": 0})

    def service(self, host: Host, target: Pod) -> None:
        """As kube-proxy writes it: DNAT where it comes in or begins, masquerade of what a pod sends to itself."""
        host.nft(
            f"""table inet services {{}}
delete table inet services
table inet services {{
  chain prerouting {{ type nat hook prerouting priority dstnat; policy accept;
    ip daddr {SERVICE4} dnat ip to {target.v4}
    ip6 daddr {SERVICE6} dnat ip6 to {target.v6}
  }}
  chain output {{ type nat hook output priority -100; policy accept;
    ip daddr {SERVICE4} dnat ip to {target.v4}
    ip6 daddr {SERVICE6} dnat ip6 to {target.v6}
  }}
  chain postrouting {{ type nat hook postrouting priority srcnat; policy accept;
    ip saddr {target.v4} ip daddr {target.v4} masquerade
    ip6 saddr {target.v6} ip6 daddr {target.v6} masquerade
  }}
}}
"""
        )


def ask(source: Namespace, *addresses: str) -> list[str]:
    """The source address that the server at each address sees, or why it sees none."""
    return source.run(["python3", "-S", "-c", CLIENT, *addresses], timeout=60).stdout.splitlines()


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Lab() as lab:
        world = World(lab)
        yield world
        for server in world.servers:
            kill_process(server)


def load(host: Host, ruleset: str) -> None:
    """In one transaction each, as the programs do."""
    if ruleset == "drop":
        host.nft("table inet mine { chain forward { type filter hook forward priority 0; policy drop; }\n}\n")
    elif ruleset == "firewalld":
        host.run(["nft", "-f", str(HERE / "fixtures" / "firewalld.nft")])
    else:
        for program, suffix in (("iptables-nft-restore", "v4"), ("ip6tables-nft-restore", "v6")):
            text = (HERE / "fixtures" / f"{ruleset}.{suffix}").read_text()
            host.run([program], text_input=text)
    if ruleset in ("ufw", "firewalld"):  # what the operator has to open in any case
        chain = {"ufw": "ip filter ufw-user-input", "firewalld": "inet firewalld filter_INPUT"}[ruleset]
        for protocol in ("udp", "tcp"):
            host.run(["nft", "insert", "rule", *chain.split(), protocol, "dport", "6783", "accept"])


def flush(host: Host) -> None:
    """Everything of others'; ours heals."""
    for table in json.loads(host.run(["nft", "-j", "list", "tables"]).stdout)["nftables"]:
        if "table" in table and not table["table"]["name"].startswith("weave_router"):
            host.run(["nft", "delete", "table", table["table"]["family"], table["table"]["name"]])


def chains(router: Router) -> list[dict[str, str]]:
    return list(router.status()["firewall"]["chains"])


def settled(router: Router, on: bool) -> bool:
    """It has seen every drop that is there, and this bridge netfilter."""
    state = router.status()["firewall"]
    return all(chain["place"] for chain in state["chains"]) and bool(state["chains"]) and state["hairpin"] == on


@pytest.mark.parametrize(("ruleset", "bridge_netfilter"), CASES)
def test_everything_connects_and_sources_are_kept(world: World, ruleset: str, bridge_netfilter: bool) -> None:
    world.bridge_netfilter(bridge_netfilter)
    for host, router in zip((world.a, world.b), world.routers, strict=True):
        load(host, ruleset)
        wait_for("the pair", lambda router=router: settled(router, bridge_netfilter), 40)
    try:
        own, bridge = [world.near.v4, world.near.v6], ["10.32.1.1", bridge6(world.a)]
        for target in world.pods:
            world.service(world.a, target)
            direct = [target.v4, target.v6]
            # What a pod sends to itself must come from somebody else, or its kernel takes it for a lie.
            service = own if target is not world.near else bridge
            assert ask(world.a, *direct, SERVICE4, SERVICE6) == bridge + bridge, target
            assert ask(world.near, SERVICE4, SERVICE6) == service, target
            if target is not world.near:
                assert ask(world.near, *direct) == own, target
    finally:
        flush(world.a)
        flush(world.b)


def test_answers_come_back_through_the_host_without_bridge_netfilter(world: World) -> None:
    """In pieces too; and that nobody listens; and a ping, which has no ports, by way of the bridge's address."""
    world.bridge_netfilter(False)
    for target in (world.other, world.far):
        world.service(world.a, target)
        server = target.popen(["python3", "-S", "-c", UDP_SERVER])
        assert server.stdout is not None and server.stdout.readline() == "up\n"
        wanted = [f"{service},80,{size}" for size in (60, 6000) for service in (SERVICE4, SERVICE6)]
        wanted += [f"{service},82,1" for service in (SERVICE4, SERVICE6)]
        answers = world.near.run(["python3", "-S", "-c", UDP_CLIENT, *wanted], timeout=60).stdout.split()
        assert answers == [world.near.v4, world.near.v6] * 2 + ["ConnectionRefusedError"] * 2, target
        assert ping(world.near, SERVICE4, wait=3) and ping(world.near, SERVICE6, wait=3)
        kill_process(server)
    flush(world.a)


def test_a_pod_reaches_itself_where_nobody_else_masquerades(world: World) -> None:
    world.bridge_netfilter(False)
    world.service(world.a, world.near)
    world.a.run(["nft", "flush", "chain", "inet", "services", "postrouting"])
    assert ask(world.near, SERVICE4, SERVICE6) == ["10.32.1.1", bridge6(world.a)]
    flush(world.a)


@pytest.mark.parametrize("family", [4, 6])
def test_a_translated_connection_outlives_the_router(world: World, family: int) -> None:
    """Without bridge netfilter, also if its server is the first to speak; a reset ends what is kept of it soon."""
    world.bridge_netfilter(False)
    world.service(world.a, world.far)
    own, service = (world.near.v4, SERVICE4) if family == 4 else (world.near.v6, SERVICE6)
    server = world.far.popen(["python3", "-S", "-c", SPEAKS_FIRST])
    assert server.stdin is not None and server.stdout is not None and server.stdout.readline() == "up\n"
    client = world.near.popen(["python3", "-S", "-c", LISTENS, service])
    assert client.stdout is not None and server.stdout.readline().strip().endswith(own)
    assert 4 * 86_400 < kept(world.a, family, 81)[0] <= 5 * 86_400
    world.routers[0].stop()
    world.routers[0].launch()
    wait_for("the other node", lambda: ping(world.near, world.far.v4, wait=0.3))
    server.stdin.write("\n")
    server.stdin.flush()
    assert client.stdout.readline() == "later\n"
    server.stdin.write("\n")
    server.stdin.flush()
    assert client.stdout.readline() == "reset\n"
    assert kept(world.a, family, 81)[0] <= 150
    kill_process(server)
    kill_process(client)
    flush(world.a)


@pytest.mark.parametrize("family", [4, 6])
def test_a_port_is_used_again_for_the_pod_behind_the_service(world: World, family: int) -> None:
    """A connection to a Service ends, and the next from that port goes to the same pod directly."""
    world.bridge_netfilter(False)
    own = world.near.v4 if family == 4 else world.near.v6
    for target in (world.other, world.far):
        world.service(world.a, target)
        service, direct = (SERVICE4, target.v4) if family == 4 else (SERVICE6, target.v6)
        done = world.near.run(["python3", "-S", "-c", ONE_PORT, service, direct, service], timeout=30)
        assert done.stdout.split() == [own] * 3, target
    flush(world.a)


def kept(host: Host, family: int, port: int) -> list[int]:
    """Seconds from now that each connection of this server's port is kept."""
    command = ["nft", "-j", "list", "set", "bridge", "weave_router_answers", f"connections{family}"]
    noted = json.loads(host.run(command).stdout)["nftables"][1]["set"].get("elem", [])
    return [each["elem"]["expires"] for each in noted if port in each["elem"]["val"]["concat"]]


def bridge6(host: Host) -> str:
    links = json.loads(host.run(["ip", "-json", "-6", "address", "show", "dev", "weave", "scope", "global"]).stdout)
    return str(links[0]["addr_info"][0]["local"])


def pairs(host: Host) -> int:
    """Accept rules of ours in others' chains."""
    return host.run(["nft", "list", "ruleset"]).stdout.count('comment "weave-router: ')


def test_the_host_keeps_its_source_towards_its_own_pods_if_it_is_to(world: World) -> None:
    """`--no-masq-local`: what a host process sends to a Service of a pod here has the host's address, else the
    bridge's; towards another node's pod always the bridge's, for the answer has to come back over the overlay."""
    host, router = world.a, world.routers[0]
    bridge, own = ["10.32.1.1", bridge6(host)], [host.address(), host.address("v6")]
    seen = {}
    for flags in ([], ["--no-masq-local"]):
        router.stop()
        router.flags = flags
        router.launch()
        wait_for("the other node", lambda: ping(world.near, world.far.v4, wait=0.3))
        for target in (world.near, world.far):
            world.service(host, target)
            seen[bool(flags), target is world.near] = ask(host, SERVICE4, SERVICE6)
    router.stop()
    router.flags = []
    router.launch()
    flush(host)
    assert seen == {(False, True): bridge, (False, False): bridge, (True, True): own, (True, False): bridge}


@pytest.mark.parametrize("flush_what", ["flush chain ip filter DOCKER-USER", "flush ruleset"])
def test_what_is_flushed_comes_back(world: World, flush_what: str) -> None:
    """Within two looks, the guards and masquerade rules of our own tables too; nobody's `iptables -S` breaks."""
    load(world.a, "docker")
    wait_for("both pairs", lambda: pairs(world.a) == 4)
    own = ["nft", "-s", "list", "table", "bridge", "weave_router"]
    before = sorted(world.a.run(own).stdout.split())
    healed = world.routers[0].status()["firewall"]["healed"]
    world.a.run(["nft", flush_what])
    began = time.monotonic()
    if flush_what == "flush ruleset":
        load(world.a, "docker")
    wait_for("the pair", lambda: pairs(world.a) == 4, interval=0.005)
    took = time.monotonic() - began
    wait_for("it to be counted", lambda: world.routers[0].status()["firewall"]["healed"] > healed)
    assert took <= 2 * FIREWALL_LOOK_SPACING + 1.0
    assert sorted(world.a.run(own).stdout.split()) == before
    assert "-i weave -m comment --comment" in world.a.run(["iptables-nft", "-S"]).stdout
    assert ping(world.near, world.far.v4, wait=3) and ping(world.near, world.other.v6, wait=3)
    flush(world.a)
    wait_for("nothing to answer", lambda: chains(world.routers[0]) == [])


def test_a_legacy_drop_is_named_with_the_command_that_answers_it(world: World) -> None:
    world.a.run(["iptables-legacy", "-P", "FORWARD", "DROP"])
    world.a.nft("table inet nudge { }")  # a look, earlier than the next one of itself
    warned = lambda: [text for text in world.routers[0].status()["warnings"] if "legacy" in text]  # noqa: E731
    wait_for("the warning", warned, FIREWALL_LOOK_SECONDS + 5)
    doctor = world.routers[0].cli("doctor", check=False).stdout
    command = warned()[0].split("run `")[1].rstrip("`")
    assert command in doctor
    client = world.client.address()
    assert not ping(world.near, client, wait=0.5)
    world.a.run(["sh", "-c", command])
    assert ping(world.near, client, wait=3)
    world.a.run(["iptables-legacy", "-F", "FORWARD"])
    world.a.run(["iptables-legacy", "-P", "FORWARD", "ACCEPT"])
    world.a.run(["nft", "delete", "table", "inet", "nudge"])


def test_strangers_get_in_only_where_a_port_is_published(world: World) -> None:
    """The pair opens pods to their own connections and to what was translated, not to the neighbourhood."""
    world.client.ip(f"route replace 10.32.0.0/12 via {world.a.address()}")
    load(world.a, "drop")
    wait_for("the pair", lambda: pairs(world.a) == 2)
    assert not ping(world.client, world.near.v4, wait=0.5)
    world.client.ip(f"route replace {SERVICE4} via {world.a.address()}")
    world.service(world.a, world.near)
    assert ask(world.client, SERVICE4) == [world.client.address()]
    world.service(world.a, world.far)  # on the other node, which would answer past this one: by our bridge's address
    assert ask(world.client, SERVICE4) == ["10.32.1.1"]
    flush(world.a)
    assert ping(world.client, world.near.v4, wait=3)


def test_reset_takes_every_rule_back() -> None:
    with Lab() as lab:
        host = lab.host("a", lab.switch())
        router = lab.router(host, bridge_address="10.32.1.1", flags=["--hairpin", "on", "--bridge-netfilter", "on"])
        load(host, "ufw")
        before = host.run(["iptables-nft-save"]).stdout
        router.launch()
        assert pairs(host) == 4 and router.status()["firewall"]["bridge_netfilter"]
        assert "nf_call_iptables 1" in host.run(["ip", "-d", "link", "show", "weave"]).stdout
        router.stop()
        removed = router.cli("reset", "--state-dir", str(host.state_dir), "--run-dir", str(host.run_dir)).stdout
        assert "accept rules in ip filter FORWARD" in removed and pairs(host) == 0
        rules = [[line for line in text.splitlines() if not line.startswith(("#", ":"))]
                 for text in (before, host.run(["iptables-nft-save"]).stdout)]  # fmt: skip
        assert rules[0] == rules[1]
