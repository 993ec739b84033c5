"""The lab tests itself: what it promises must be true before a test of the product may stand on it.

    h1 --wire-- [switch] --wire-- h2      h1 -- [s1] -- gateway -- [s2] -- h2      inside -- NAT -- [s1] -- outsiders

No router runs here. Each fault is proven both present (counted) and absent where it was not asked for.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Capture, Faults, Host, Lab, LabError, Nat, Switch, read_pcap, sweep
from lab.namespace import NETNS_DIR, PREFIX, Nic
from lab.router import ping, wait_for
from lab.tools import ROOT, tool
from lab.vxlan import join_vxlan, lay_vxlan

PEAK_DATAGRAM = 60_000
UDP_PORT = 6783
REORDERED_BY_KERNEL = 0.01
"""A sender that moves to another CPU overtakes itself: veth queues per CPU. Seen: 5 of 20,000."""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


def names_of(prefix: str) -> list[str]:
    return [entry.name for entry in NETNS_DIR.iterdir() if entry.name.startswith(prefix)]


# -- the generator --------------------------------------------------------------------------------------------------


def test_hash_gives_known_answers() -> None:
    done = subprocess.run([tool("traffic"), "selftest"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"ok": True}


@pytest.mark.parametrize("nic", Nic)
def test_clean_wire_loses_nothing(lab: Lab, nic: Nic) -> None:
    switch = lab.switch(nic=nic)
    h1, h2 = lab.host("h1", switch), lab.host("h2", switch)
    for family in ("v4", "v6"):
        stream = lab.traffic.tcp(h1, h2, h2.address(family), bytes=(32 << 20) + 13)()
        assert (stream["bytes"], stream["hash"], stream["corrupt"]) == ((32 << 20) + 13, stream["sent_hash"], 0)
        got = lab.traffic.udp(h1, h2, h2.address(family), count=500, max_size=PEAK_DATAGRAM, rate=1000)()
        assert (got["unique"], got["lost"], got["corrupt"], got["duplicated"]) == (500, 0, 0, 0)
        assert got["reordered"] <= REORDERED_BY_KERNEL * 500


def test_generator_sees_corruption(lab: Lab) -> None:
    """nft rewrites four payload bytes of some datagrams and takes the checksum away: only the hash can tell."""
    switch = lab.switch(nic=Nic.BARE)
    h1, h2 = lab.host("h1", switch), lab.host("h2", switch)
    h2.nft(
        "table ip damage {\nchain in { type filter hook input priority 0\n"
        "ip protocol udp numgen inc mod 10 == 0 @th,512,32 set 0xdeadbeef udp checksum set 0\n}\n}\n"
    )
    got = lab.traffic.udp(h1, h2, h2.address(), count=1000, min_size=200, max_size=1200, rate=100)()
    assert got["corrupt"] >= 100
    assert got["unique"] + got["corrupt"] >= 1000


def test_stream_reports_the_gap_of_a_cut(lab: Lab) -> None:
    switch = lab.switch()
    h1, h2 = lab.host("h1", switch), lab.host("h2", switch)
    finish = lab.traffic.stream(h1, h2, h2.address(), seconds=1.5, full=1400)
    # Only full-size datagrams are lost, so the figures must tell the two apart.
    h2.wire.rule("meta length > 1000 drop")
    got = finish()
    assert got["gap_small_ms"] < 200
    assert got["gap_full_ms"] > 1000 or got["lost"] >= 70
    h2.wire.mend()
    assert ping(h1, h2.address(), size=1400)


def test_rates_are_kept(lab: Lab) -> None:
    switch = lab.switch()
    h1, h2 = lab.host("h1", switch), lab.host("h2", switch)
    got = lab.traffic.udp(h1, h2, h2.address(), count=4000, pps=4000, min_size=64, max_size=64)()
    assert 0.9 < got["seconds"] < 1.3
    paced = lab.traffic.tcp(h1, h2, h2.address(), bytes=4 << 20, rate=40)()
    assert 30 < paced["mbit_s"] < 45


def test_flood_and_round_trips(lab: Lab) -> None:
    switch = lab.switch()
    h1, h2 = lab.host("h1", switch), lab.host("h2", switch)
    flood = lab.traffic.listen(h2, "pps-recv", timeout=0.3)
    sent = lab.traffic.start(h1, "pps-send", to=h2.address(), port=flood.port, small=22, seconds=0.5, flows=4).result()
    got = flood.result()
    assert 0.5 < got["received"] / sent["sent"] <= 1
    echo = lab.traffic.listen(h2, "echo")
    times = lab.traffic.start(h1, "rtt", to=h2.address(), port=echo.port, count=200, interval=0).result()
    assert (times["count"], times["lost"]) == (200, 0)
    assert 0 < times["p50_us"] <= times["p99_us"] <= times["max_us"]
    assert echo.stop() == {"ok": True}


@pytest.mark.parametrize("group", ["239.1.2.3", "ff05::123"])
def test_multicast(lab: Lab, group: str) -> None:
    switch = lab.switch()
    h1, h2, h3 = (lab.host(name, switch) for name in ("h1", "h2", "h3"))
    receivers = [lab.traffic.listen(host, "mcast-recv", group=group, interface="eth0", port=7500) for host in (h2, h3)]
    lab.traffic.start(h1, "mcast-send", to=group, interface="eth0", port=7500, count=50, pps=1000).result()
    assert [receiver.result()["unique"] for receiver in receivers] == [50, 50]


# -- wires ----------------------------------------------------------------------------------------------------------


def test_cards_decide_the_size_of_frames(lab: Lab) -> None:
    """Of a TCP stream: whether trains leave the sender, and whether they reach the receiver's stack."""
    large = {}
    for nic in Nic:
        cable = lab.cable(nic=nic)
        h1, h2 = lab.host(f"a{nic.name}", cable), lab.host(f"b{nic.name}", cable)
        captures = [lab.capture(host, "eth0", f"tcp and src {h1.address()}") for host in (h1, h2)]
        lab.traffic.tcp(h1, h2, h2.address(), bytes=4 << 20)()
        large[nic] = [max(len(packet) for packet in capture.packets()) > 1514 for capture in captures]
    assert large == {Nic.OFFLOADS: [True, True], Nic.SEGMENTED: [False, True], Nic.BARE: [False, False]}


@pytest.mark.parametrize("mtu", [1280, 9000])
def test_wire_mtu(lab: Lab, mtu: int) -> None:
    switch = lab.switch(mtu=mtu)
    h1, h2 = lab.host("h1", switch), lab.host("h2", switch)
    argv = ["ping", "-n", "-q", "-c1", "-W", "0.3", "-M", "do", h2.address(), "-s"]
    assert h1.run([*argv, str(mtu - 28)], check=False).returncode == 0
    assert h1.run([*argv, str(mtu - 27)], check=False).returncode != 0


def test_loss_by_rule_and_cut(lab: Lab) -> None:
    switch = lab.switch(nic=Nic.BARE)
    h1, h2 = lab.host("h1", switch), lab.host("h2", switch)
    assert ping(h1, h2.address())  # a lost ARP answer would cost the whole run
    h2.wire.lose(0.1)
    got = lab.traffic.udp(h1, h2, h2.address(), count=5000, min_size=100, max_size=100, pps=20_000)()
    assert 350 < got["lost"] < 650
    h2.wire.cut()
    assert not ping(h1, h2.address(), wait=0.2)
    h2.wire.mend()
    assert ping(h1, h2.address())
    h2.wire.unplug()
    assert not ping(h1, h2.address(), wait=0.2)
    h2.wire.plug()
    assert ping(h1, h2.address())


def test_relay_faults_at_200_mbit(lab: Lab) -> None:
    """Each fault in about its share, TCP survives, and the relay drops nothing at twice what it must carry."""
    switch = lab.switch()
    h1, h2 = lab.host("h1", switch), lab.host("h2", switch, faults=Faults())
    clean = lab.traffic.udp(h1, h2, h2.address(), count=20_000, min_size=1400, max_size=1400, rate=400)()
    assert (clean["lost"], clean["duplicated"], clean["corrupt"]) == (0, 0, 0)
    assert clean["reordered"] < REORDERED_BY_KERNEL * 20_000
    h2.wire.set_faults(Faults(loss=0.01, duplicate=0.05, reorder=0.1))
    got = lab.traffic.udp(h1, h2, h2.address(), count=20_000, min_size=1400, max_size=1400, rate=400)()
    assert 120 < got["lost"] < 280
    assert 800 < got["duplicated"] < 1200
    assert 1000 < got["reordered"] < 2500
    assert got["corrupt"] == 0
    stream = lab.traffic.tcp(h1, h2, h2.address(), bytes=8 << 20)()
    assert (stream["bytes"], stream["hash"]) == (8 << 20, stream["sent_hash"])
    counters = h2.wire.stop()
    assert [counters[way]["overflow"] for way in ("a_to_b", "b_to_a")] == [0, 0]


def test_relay_delay(lab: Lab) -> None:
    switch = lab.switch()
    h1, h2 = lab.host("h1", switch), lab.host("h2", switch, faults=Faults(delay_us=20_000))
    echo = lab.traffic.listen(h2, "echo")
    times = lab.traffic.start(h1, "rtt", to=h2.address(), port=echo.port, count=10, interval=0).result()
    assert 39_000 < times["p50_us"] < 60_000


def test_seed_repeats_the_faults(lab: Lab) -> None:
    """The same seed and the same frames: the same losses. ARP and ND are kept out by static neighbours on a v4 wire."""
    lost = []
    for run in range(2):
        switch = lab.switch()
        faults = Faults(loss=0.05, reorder=0.001, seed=7)
        h1, h2 = (
            lab.host(f"a{run}", switch, families=["v4"]),
            lab.host(f"b{run}", switch, families=["v4"], faults=faults),
        )
        pin_neighbours(h1, h2)
        lost.append(lab.traffic.udp(h1, h2, h2.address(), count=2000, min_size=64, max_size=64, pps=10_000)()["lost"])
    assert lost[0] == lost[1] > 0


def pin_neighbours(*hosts: Host) -> None:
    for host in hosts:
        host.sysctl({"net.ipv6.conf.all.disable_ipv6": 1})
    macs = {host: json.loads(host.run(["ip", "-json", "link", "show", "eth0"]).stdout)[0]["address"] for host in hosts}
    for host in hosts:
        host.ip(
            *(
                f"neigh replace {other.address()} lladdr {mac} dev eth0"
                for other, mac in macs.items()
                if other is not host
            )
        )


# -- gateways and NATs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["v4", "v6"])
def test_path_mtu_lowered_in_silence(lab: Lab, family: str) -> None:
    """1300 passes and 1400 does not, in both directions, and no ICMP says so; before ``block_icmp`` one does."""
    one, two = lab.switch(nic=Nic.BARE), lab.switch(nic=Nic.BARE)
    gateway = lab.gateway("gw", one, two)
    h1, h2 = lab.host("h1", one), lab.host("h2", two)
    header = 28 if family == "v4" else 48

    def whole(near: Host, far: Host, size: int) -> tuple[bool, str]:
        argv = ["ping", "-n", "-c1", "-W", "0.3", "-M", "do", "-s", str(size - header), far.address(family)]
        done = near.run(argv, check=False)
        return done.returncode == 0, done.stdout + done.stderr

    assert whole(h1, h2, 1500)[0]
    gateway.lower_mtu(1300)
    gateway.block_icmp()
    for near, far in ((h1, h2), (h2, h1)):
        assert whole(near, far, 1300)[0]
        passed, said = whole(near, far, 1400)
        assert not passed
        assert "1300" not in said
    gateway.nft("flush ruleset")
    assert "1300" in whole(h1, h2, 1400)[1]


class NatCase:
    """An inside host behind a NAT and two outsiders: who reaches the inside port after it sent to the first?"""

    def __init__(self, lab: Lab, kind: str) -> None:
        outside, inside = lab.switch(), lab.switch()
        self.friend, self.stranger = lab.host("friend", outside), lab.host("stranger", outside)
        self.nat: Nat = lab.nat("nat", outside, inside, kind)
        self.host = lab.host("inside", inside, families=["v4"])

    def send(self, source: Host, sport: int, to: str, dport: int, text: str) -> None:
        program = (
            "import socket,sys; s=socket.socket(2,2); s.bind(('', int(sys.argv[1]))); "
            "s.sendto(sys.argv[4].encode(), (sys.argv[2], int(sys.argv[3])))"
        )
        source.run([sys.executable, "-c", program, str(sport), to, str(dport), text])


NAT_LETS_IN = {  # kind: (the friend's port, another port of the friend, a stranger)
    "full-cone": {"friend", "friend-other-port", "stranger"},
    "address": {"friend", "friend-other-port"},
    "port": {"friend"},
    "symmetric": {"friend"},
}


@pytest.mark.parametrize("kind", Nat.KINDS)
def test_nat_filters_as_its_kind(lab: Lab, kind: str) -> None:
    case = NatCase(lab, kind)
    outside_ports = []
    for target in (case.friend, case.stranger) if kind == "symmetric" else (case.friend,):
        capture = lab.capture(target, "eth0", "udp and port 6783")
        case.send(case.host, UDP_PORT, target.address(), UDP_PORT, "hello")
        outside_ports.append(int.from_bytes(udp_of(next_packet(capture))[:2], "big"))
    if kind == "symmetric":
        assert len({UDP_PORT, *outside_ports}) == 3
    else:
        assert outside_ports == [UDP_PORT]
    inside = lab.capture(case.host, "eth0", "udp")
    to, port = case.nat.address(), outside_ports[0]
    case.send(case.friend, 7777, to, port, "friend-other-port")
    if kind != "symmetric":
        case.send(case.stranger, UDP_PORT, to, port, "stranger")
    case.send(case.friend, UDP_PORT, to, port, "friend")
    heard = {udp_of(packet)[8:].decode() for packet in inside.packets()}
    assert heard == NAT_LETS_IN[kind]


def next_packet(capture: Capture) -> bytes:
    wait_for("a packet in the capture", lambda: len(list(read_pcap(capture.path))) > 0, 5)
    return capture.packets()[0]


def udp_of(frame: bytes) -> bytes:
    header = (frame[14] & 15) * 4
    length = int.from_bytes(frame[16:18], "big")
    return frame[14 + header : 14 + length]


# -- captures, VXLAN ------------------------------------------------------------------------------------------------


def test_capture_holds_every_frame(lab: Lab) -> None:
    switch = lab.switch(nic=Nic.BARE)
    h1, h2 = lab.host("h1", switch), lab.host("h2", switch)
    capture = lab.capture(h2, "eth0", "udp and dst port 7100")
    lab.traffic.udp(h1, h2, h2.address(), count=1)()
    receiver = lab.traffic.listen(h2, "udp-recv", port=7100)
    lab.traffic.start(
        h1, "udp-send", to=h2.address(), port=7100, count=1000, min_size=300, max_size=300, pps=5000
    ).result()
    assert receiver.result()["unique"] == 1000
    frames = capture.packets()
    assert [len(frame) for frame in frames].count(300 + 42) == 1000


def test_vxlan_between_pods(lab: Lab) -> None:
    cable = lab.cable()
    h1, h2 = lab.host("h1", cable), lab.host("h2", cable)
    lay_vxlan(h1, h2)
    pods = [lab.pod(h1, "a"), lab.pod(h2, "b")]
    for pod, address in zip(pods, ("10.99.0.1", "10.99.0.2"), strict=True):
        join_vxlan(pod.host, pod, address)
    assert lab.traffic.tcp(pods[0], pods[1], "10.99.0.2", bytes=16 << 20)()["corrupt"] == 0


def test_bridge_netfilter_is_off_unless_asked(lab: Lab) -> None:
    switch = lab.switch()
    values = [
        host.run(["sysctl", "-n", "net.bridge.bridge-nf-call-iptables"], check=False).stdout.strip()
        for host in (lab.host("h1", switch), lab.host("h2", switch, bridge_netfilter=True))
    ]
    assert values in (["0", "1"], ["", ""])  # the second where the kernel has no bridge netfilter


# -- taking it away -------------------------------------------------------------------------------------------------

SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from lab import Capture, Faults, Lab
with Lab() as lab:
    switch = lab.switch()
    hosts = [lab.host(name, switch, faults=Faults()) for name in ("h1", "h2")]
    lab.traffic.listen(hosts[1], "udp-recv")
    lab.capture(hosts[0], "eth0")
    print(lab.prefix, flush=True)
    if {fail}:
        raise RuntimeError("on purpose")
    sys.stdin.read()
"""


def start_lab_process(*, fail: bool = False) -> tuple[subprocess.Popen[str], str]:
    program = SCRIPT.format(tests=str(ROOT / "tests"), fail=fail)
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def processes_of(prefix: str) -> list[int]:
    """Processes whose command line names something of that lab: none may outlive it."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if prefix.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("how", ["end", "exception", "SIGINT", "SIGTERM", "SIGHUP"])
def test_nothing_is_left_behind(how: str) -> None:
    process, prefix = start_lab_process(fail=how == "exception")
    assert prefix.startswith(f"{PREFIX}-{process.pid}-")
    if how.startswith("SIG"):
        process.send_signal(getattr(signal, how))
    process.communicate(timeout=20)
    assert (process.returncode == 0) == (how == "end")
    assert names_of(prefix) == []
    assert processes_of(prefix) == []
    assert not (Path("/tmp") / prefix).exists()


def test_sweep_removes_what_a_killed_lab_left() -> None:
    process, prefix = start_lab_process()
    process.kill()
    process.communicate(timeout=20)
    assert len(names_of(prefix)) == 3
    removed = sweep()
    assert set(names_of(prefix)) == set()
    assert len([name for name in removed if name.startswith(prefix)]) == 3
    assert processes_of(prefix) == []


def test_sweep_spares_the_living(lab: Lab) -> None:
    lab.switch()
    sweep()
    assert len(names_of(lab.prefix)) == 1


def test_error_names_command_and_answer(lab: Lab) -> None:
    with pytest.raises(LabError, match=r"ip -n .* exit status .*nonsense"):
        lab.namespace("x").ip("link set nonsense up")


def test_lab_needs_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LabError, match="root"):
        Lab().__enter__()


def test_switch_ports_are_bridged(lab: Lab) -> None:
    switch: Switch = lab.switch()
    lab.host("h1", switch)
    links = json.loads(switch.namespace.run(["ip", "-json", "link", "show", "master", "br0"]).stdout)
    assert [link["ifname"] for link in links] == ["p1"]
