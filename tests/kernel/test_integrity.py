"""Nothing that crosses the overlay is changed, whatever the wire and the kernel offer.

    pod a -- [h1 router] --wire-- [switch] --wire-- [h2 router] -- pod b        wire: MTU, family, cards, faults

The cases are a pairwise covering array over underlay MTU, underlay family, cards, refused kernel features and bridge
netfilter. ``SOAK=1`` sends 1 GiB and 20,000 datagrams per case instead of 128 MiB and 2,000.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from typing import Any

import pytest
from kernel.covering import all_pairs, covering_array, pairs_of
from lab import Faults, Lab, Pod, Router
from lab.cluster import start_cluster
from lab.namespace import Nic

from weave_router.config import REFUSE_WORDS

SOAK = os.environ.get("SOAK", "") not in ("", "0")
TCP_BYTES = 1 << 30 if SOAK else 128 << 20
DATAGRAMS = 20_000 if SOAK else 2_000
DATAGRAM_MAX = 60_000
UDP_MBIT = 300
LOST_MAX = 0.05  # of a paced sender on a lossless wire; a busy machine may still starve a worker for milliseconds
FACTORS: dict[str, list[object]] = {
    "mtu": [1280, 1500, 9000],
    "family": ["v4", "v6"],
    "nic": list(Nic),
    "refuse": ["", "uso", "tso", "csum", "udp_segment", "udp_gro,ipsec_mb", "bpf,locked,realtime"],
    "bridge_netfilter": [False, True],
}
CASES = covering_array(FACTORS)
DEFAULT_POD_MTU_1500 = 1368
ETHERNET = 14
SESSION_REASONS = (
    "bad_tag",
    "replay",
    "unknown_session",
    "nonce",
    "malformed_outside",
    "malformed_inside",
    "truncated",
)


def name_of(case: dict[str, object]) -> str:
    words = [str(case["mtu"]), str(case["family"]), case["nic"].name.lower()]
    words += [str(case["refuse"] or "all").replace(",", "+"), "nf" if case["bridge_netfilter"] else "nonf"]
    return "-".join(words)


def test_cases_cover_every_pair() -> None:
    covered = set().union(*map(pairs_of, CASES))
    assert covered == all_pairs(FACTORS)
    assert {word for words in FACTORS["refuse"] for word in str(words).split(",") if word} == set(REFUSE_WORDS)
    assert len(CASES) <= 24


def check_stream(lab: Lab, near: Pod, far: Pod, family: str, size: int) -> None:
    stream = lab.traffic.tcp(near, far, far.address(family), bytes=size)()
    assert not stream["timed_out"]
    assert (stream["bytes"], stream["hash"], stream["corrupt"]) == (size, stream["sent_hash"], 0)


def check_datagrams(lab: Lab, routers: list[Router], near: Pod, far: Pod, family: str) -> None:
    """What arrives is what was sent, once. What does not was dropped by a queue that counts: a frame or more each."""
    before = dropped(routers)
    got = lab.traffic.udp(near, far, far.address(family), count=DATAGRAMS, max_size=DATAGRAM_MAX, rate=UDP_MBIT)()
    assert (got["sent"], got["corrupt"], got["duplicated"]) == (DATAGRAMS, 0, 0)
    reasons = dropped(routers) - before
    assert got["lost"] <= LOST_MAX * DATAGRAMS, (got, reasons)
    assert got["lost"] <= reasons.total(), (got, reasons)


def dropped(routers: list[Router]) -> Counter[str]:
    drops = {router.name: router.status()["drops"] for router in routers}
    return Counter({f"{name} {reason}": n for name, reasons in drops.items() for reason, n in reasons.items()})


def check_no_drops(routers: list[Router], *reasons: str) -> None:
    for router in routers:
        drops = router.status()["drops"]
        assert {reason: drops.get(reason, 0) for reason in reasons} == dict.fromkeys(reasons, 0), router.name


@pytest.mark.timeout(1800 if SOAK else 60)
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_bytes_arrive_as_sent(case: dict[str, Any]) -> None:
    with Lab() as lab:
        switch = lab.switch(mtu=case["mtu"], nic=case["nic"])
        options = {"families": [case["family"]], "bridge_netfilter": case["bridge_netfilter"]}
        hosts = [lab.host(label, switch, **options) for label in ("h1", "h2")]
        env = {"WEAVE_ROUTER_REFUSE": case["refuse"]} if case["refuse"] else {}
        routers, (a, b) = start_cluster(lab, hosts, family=case["family"], env=env)
        inner, other = ("v4", "v6") if CASES.index(case) % 2 else ("v6", "v4")
        check_stream(lab, a, b, inner, TCP_BYTES)
        check_datagrams(lab, routers, b, a, other)
        check_no_drops(routers, *SESSION_REASONS)


def test_faulty_wire_corrupts_nothing() -> None:
    """1 % loss, 5 % duplicates, reordering: TCP arrives whole, no datagram is changed, none is delivered twice."""
    with Lab() as lab:
        switch = lab.switch()
        hosts = [lab.host("h1", switch), lab.host("h2", switch, faults=Faults())]
        routers, (a, b) = start_cluster(lab, hosts)
        hosts[1].wire.set_faults(Faults(loss=0.01, duplicate=0.05, reorder=0.05))
        check_stream(lab, a, b, "v4", 8 << 20)
        got = lab.traffic.udp(a, b, b.address("v6"), count=DATAGRAMS, max_size=DATAGRAM_MAX, rate=200)()
        assert (got["corrupt"], got["duplicated"]) == (0, 0)
        assert 0 < got["lost"] < got["sent"]
        short = lab.traffic.udp(a, b, b.address("v4"), count=DATAGRAMS, max_size=1200, rate=100)()
        assert (short["corrupt"], short["duplicated"]) == (0, 0)
        assert short["lost"] > 0
        assert any(router.status()["drops"].get("replay", 0) for router in routers)
        check_no_drops(routers, "bad_tag", "malformed_inside", "malformed_outside")


# -- nothing is fragmented that need not be -------------------------------------------------------------------------

VLAN_SENDER = """
import socket, sys
source, target, size, count = bytes.fromhex(sys.argv[1]), bytes.fromhex(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
link.bind(("eth0", 0))
frame = target + source + bytes.fromhex("8100006488b5") + bytes(range(256)) * 8
for _ in range(count):
    link.send(frame[: 18 + size])
"""


def mac_of(pod: Pod) -> str:
    """The derived MAC: 0a:58 and the IPv4 address."""
    return "0a58" + "".join(f"{int(part):02x}" for part in pod.v4.split("."))


@pytest.mark.parametrize("family", ["v4", "v6"])
@pytest.mark.parametrize("nic", Nic)
def test_full_frames_are_not_fragmented_on_1500(family: str, nic: Nic) -> None:
    with Lab() as lab:
        switch = lab.switch(nic=nic)
        hosts = [lab.host(label, switch, families=[family]) for label in ("h1", "h2")]
        routers, (a, b) = start_cluster(lab, hosts, family=family)
        check_stream(lab, a, b, "v4", 16 << 20)
        for inner, header in (("v4", 28), ("v6", 48)):
            size = DEFAULT_POD_MTU_1500 - header
            got = lab.traffic.udp(a, b, b.address(inner), count=500, min_size=size, max_size=size, rate=100)()
            assert got["unique"] >= (1 - LOST_MAX) * 500
        capture = lab.capture(b, "eth0", "vlan")
        a.run([sys.executable, "-c", VLAN_SENDER, mac_of(a), mac_of(b), str(DEFAULT_POD_MTU_1500), "50"])
        lab.traffic.udp(a, b, b.address("v4"), count=10, pps=100)()  # what was sent before has arrived now
        tagged = [packet for packet in capture.packets() if packet[12:14] == b"\x81\x00"]
        assert [len(packet) for packet in tagged] == [ETHERNET + 4 + DEFAULT_POD_MTU_1500] * 50
        for router in routers:
            counters = router.status()["counters"]
            assert (counters.get("fragmented", 0), counters.get("fragments_sent", 0)) == (0, 0)
