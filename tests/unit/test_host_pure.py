"""The pure files of host/: names, bridge and pod plans, steering, overlap, reset, doctor, installed files."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Network, ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weave_router import limits
from weave_router.host import (
    bridge_driver,
    conflist,
    doctor,
    doctor_driver,
    files,
    files_driver,
    steering,
    sysctl_driver,
)
from weave_router.host.bridge import gso_max_size, link_local_of, random_mac
from weave_router.host.faults import Fault, HostError
from weave_router.host.forwarding import ForwardDrop
from weave_router.host.names import IFNAME_MAX, is_port_name, port_name, tap_name
from weave_router.host.overlap import HostRoute, nameservers_untrusted, overlap
from weave_router.host.pod import PodPlan, pod_plan, read_alias
from weave_router.host.reset import Found, Kind, Step, steps
from weave_router.host.underlay_driver import default_pod_mtu

UNIVERSE4 = IPv4Network("10.32.0.0/12")
UNIVERSE6 = IPv6Network("fd00:1::/96")


# -- names ---------------------------------------------------------------------------------------------------------


@given(st.text(), st.text(), st.integers(0, limits.PORT_NAME_TRIES - 1))
def test_port_names_fit_and_are_found_again(attachment: str, ifname: str, salt: int) -> None:
    name = port_name(attachment, ifname, salt)
    assert len(name) == IFNAME_MAX and is_port_name(name)
    assert name == port_name(attachment, ifname, salt)
    assert name != port_name(attachment, ifname, salt + 1)
    assert name != port_name(attachment, ifname + "x", salt)


def test_port_name_parts_do_not_run_together() -> None:
    assert port_name("ab", "c") != port_name("a", "bc")


def test_tap_name_is_the_bridge_with_a_tail_that_fits() -> None:
    assert tap_name("weave") == "weave-tap"
    assert tap_name("a" * 15) == "a" * 11 + "-tap"


# -- plans ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mtu", [1280, 1368, 1400, 1500, 4000, 8868, 9000, limits.POD_MTU_MAX])
def test_superframes_fit_one_send(mtu: int) -> None:
    """For each of the usual TCP headers: as many segments as one send carries, never one more."""
    most = min(limits.SUPERFRAME_SEGMENTS, limits.SUPERFRAME_SEND_BYTES // (mtu + limits.SUPERFRAME_DATAGRAM_OVERHEAD))
    for headers in (40, 52, 60, 72):
        for reserve in (256, 320):
            segments = (gso_max_size(mtu) - reserve - 1) // (mtu - headers)
            assert most - 1 <= segments <= most


def test_default_superframe_is_about_45_segments() -> None:
    assert 44 <= (gso_max_size(1368) - 321) // (1368 - 52) <= 46


@pytest.mark.parametrize(
    ("underlay", "pod"), [(1500, 1368), (9000, 8868), (1300, 1280), (576, 1280), (65535, limits.POD_MTU_MAX)]
)
def test_default_pod_mtu(underlay: int, pod: int) -> None:
    assert pod in (underlay - limits.UNDERLAY_OVERHEAD, limits.POD_MTU_MIN, limits.POD_MTU_MAX)
    assert default_pod_mtu(underlay) == pod


def test_link_local_address_is_the_kernels() -> None:
    assert str(link_local_of("0a:58:0a:20:00:01")) == "fe80::858:aff:fe20:1"


@given(st.binary(min_size=6, max_size=6))
def test_random_macs_are_local_unicast(random: bytes) -> None:
    assert int(random_mac(random)[:2], 16) & 3 == 2


def plan_of(address: str, **words: Any) -> PodPlan:
    arguments: dict[str, Any] = {
        "attachment": "a",
        "address": ip_interface(address),
        "universe_v4": UNIVERSE4,
        "universe_v6": UNIVERSE6,
        "bridge": "weave",
        "bridge_address": IPv4Address("10.32.0.1"),
        "mtu": 1368,
    }
    return pod_plan(**(arguments | words))


def test_everything_of_a_pod_follows_from_its_address() -> None:
    plan = plan_of("10.32.1.2/24", default_ipv6=True)
    assert plan.mac == "0a:58:0a:20:01:02"
    assert str(plan.ipv6) == "fd00:1::a20:102/96"
    assert str(plan.gateway_ipv4) == "10.32.0.1" and str(plan.gateway_ipv6) == "fd00:1::a20:1"
    assert [str(address) for address in plan.guard.ipv6] == ["fd00:1::a20:102", "fe80::858:aff:fe20:102"]
    assert plan.alias == "weave-router a eth0 10.32.1.2"
    assert len(replace(plan, attachment="x" * 400).alias) == 255
    assert read_alias(plan.alias) == [("a", "eth0", plan.ipv4.ip)]


def test_several_addresses_of_a_pod() -> None:
    plan = plan_of("10.32.1.2/24", more=[IPv4Interface("10.32.1.9/24"), IPv4Interface("10.33.0.1/24")])
    assert plan.mac == "0a:58:0a:20:01:02" and plan.alias == "weave-router a eth0 10.32.1.2,10.32.1.9,10.33.0.1"
    assert [str(address) for address in plan.guard.ipv4] == ["10.32.1.2", "10.32.1.9", "10.33.0.1"]
    assert [str(address) for address in plan.guard.ipv6] == [
        "fd00:1::a20:102", "fd00:1::a20:109", "fd00:1::a21:1", "fe80::858:aff:fe20:102"]  # fmt: skip
    assert [str(address) for _, _, address in read_alias(plan.alias)] == ["10.32.1.2", "10.32.1.9", "10.33.0.1"]
    assert read_alias(f"{plan.alias},10.3") == read_alias("eth0 of somebody") == []
    with pytest.raises(HostError, match="2 addresses beside this container id"):
        plan_of("10.32.101.202/24", attachment="x" * 204, ifname="e" * 15, more=[IPv4Interface("10.32.101.203/24")])


def test_pod_without_ipv6() -> None:
    plan = plan_of("10.32.1.2/24", universe_v6=None)
    assert plan.ipv6 is None and plan.guard.ipv6 == () and plan.gateway_ipv6 is None


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ({"address": "10.0.0.1/12"}, Fault.POD_ADDRESS),
        ({"bridge_address": None}, Fault.BRIDGE_NO_NUMBER),
        ({"mtu": limits.POD_MTU_MIN - 1}, Fault.POD_MTU),
        ({"mtu": limits.POD_MTU_MAX + 1}, Fault.POD_MTU),
    ],
)
def test_pods_that_are_refused(words: dict[str, Any], fault: Fault) -> None:
    with pytest.raises(HostError) as caught:
        plan_of(words.pop("address", "10.32.1.2/24"), **words)
    assert caught.value.fault is fault


# -- steering ------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=120))
def test_hash_takes_any_bytes(frame: bytes) -> None:
    assert 0 <= steering.tap_hash(frame) < 1 << 32


@given(
    st.binary(min_size=4, max_size=4), st.binary(min_size=4, max_size=4), st.integers(0, 65535), st.integers(0, 65535)
)
def test_hash_is_symmetric(one: bytes, other: bytes, port: int, back: int) -> None:
    def frame(a: bytes, b: bytes, p: int, q: int) -> bytes:
        return bytes(12) + b"\x08\x00\x45" + bytes(8) + b"\x06" + bytes(2) + a + b + p.to_bytes(2) + q.to_bytes(2)

    assert steering.tap_hash(frame(one, other, port, back)) == steering.tap_hash(frame(other, one, back, port))


def test_hash_spreads_flows_evenly() -> None:
    queues = [0] * 4
    for n in range(4000):
        ports = (32768 + n).to_bytes(2) + b"\x00\x50"
        frame = (
            bytes(12) + b"\x08\x00\x45" + bytes(8) + b"\x06" + bytes(2) + b"\x0a\x20\x00\x01\x0a\x20\x00\x02" + ports
        )
        queues[steering.tap_hash(frame) % 4] += 1
    assert min(queues) > 850


# -- overlap -------------------------------------------------------------------------------------------------------


def routes(*networks: str) -> list[HostRoute]:
    return [HostRoute(ip_network(network), "eth0") for network in networks]


@pytest.mark.parametrize("network", ["10.40.0.0/16", "10.0.0.0/8", "10.32.0.0/12", "10.47.255.255/32", "fd00:1::/64"])
def test_routes_that_collide(network: str) -> None:
    found = overlap([UNIVERSE4, UNIVERSE6], routes(network), [], own_links=("weave",))
    assert found is not None and f"overlaps the route {network} of eth0" in found and "--ipalloc-range" in found


@pytest.mark.parametrize("network", ["0.0.0.0/0", "::/0", "10.48.0.0/12", "192.168.0.0/16", "fd00:2::/64"])
def test_routes_that_do_not_collide(network: str) -> None:
    assert overlap([UNIVERSE4, UNIVERSE6], routes(network), [], own_links=("weave",)) is None


def test_our_own_bridge_does_not_collide() -> None:
    assert overlap([UNIVERSE4], routes("10.32.0.0/12"), [], own_links=("eth0",)) is None


def test_nameserver_inside_the_range() -> None:
    found = overlap([UNIVERSE4], [], [ip_address("10.32.0.10")], own_links=())
    assert found is not None and "nameserver 10.32.0.10 of /etc/resolv.conf" in found
    assert overlap([UNIVERSE4], [], [ip_address("10.0.0.10"), ip_address("::1")], own_links=()) is None


def test_nameservers_are_read_as_the_resolver_does() -> None:
    text = (
        "# nameserver 1.1.1.1\nnameserver 10.0.0.1 # x\n\tnameserver fe80::1%eth0\nnameserver\nnameserver x\nsearch a\n"
    )
    assert nameservers_untrusted(text) == [ip_address("10.0.0.1"), ip_address("fe80::1")]


@given(st.text())
def test_nameservers_take_any_text(text: str) -> None:
    nameservers_untrusted(text)


# -- reset ---------------------------------------------------------------------------------------------------------


FOUND = Found(ports=("vethwr1", "vethwr2"), tap="weave-tap", bridge="weave", tables=True, files=("/run/x/api.sock",))


def test_reset_takes_pods_first_and_files_last() -> None:
    assert steps(FOUND, [], force=True) == [
        Step(Kind.LINK, "vethwr1"),
        Step(Kind.LINK, "vethwr2"),
        Step(Kind.LINK, "weave-tap"),
        Step(Kind.LINK, "weave"),
        Step(Kind.NFT, "weave_router"),
        Step(Kind.FILE, "/run/x/api.sock"),
    ]
    assert steps(Found(), [], force=False) == []


@pytest.mark.parametrize(("found", "attachments"), [(FOUND, []), (Found(), ["abc"])])
def test_reset_refuses_while_pods_are_attached(found: Found, attachments: list[str]) -> None:
    with pytest.raises(HostError, match=r"attached, first (vethwr1|abc); detach them first"):
        steps(found, attachments, force=False)


# -- neighbours ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("present", "then"), [
    ((128, 512, 1024), (8192, 16384, limits.NEIGHBOURS)),
    ((0, 20000, 99999), (8192, 20000, 99999)),
])
def test_the_table_of_neighbours_grows_and_never_shrinks(
    present: tuple[int, ...], then: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NEIGHBOURS. IPv6 has no such file here, as in any namespace but the machine's first."""
    monkeypatch.setattr(sysctl_driver, "ROOT", tmp_path)
    folder = tmp_path / "net/ipv4/neigh/default"
    folder.mkdir(parents=True)
    for serial, value in enumerate(present, 1):
        (folder / f"gc_thresh{serial}").write_text(f"{value}\n")
    for family in ("ipv4", "ipv6"):
        bridge_driver._more_neighbours(family)
    assert tuple(int((folder / f"gc_thresh{serial}").read_text()) for serial in (1, 2, 3)) == then
    assert doctor_driver._neighbours() == then[2]
    assert not (tmp_path / "net/ipv6").exists()


# -- doctor --------------------------------------------------------------------------------------------------------

WELL = doctor.Facts(
    kernel="6.18",
    tun=True,
    capabilities=frozenset({"NET_ADMIN", "SYS_ADMIN"}),
    features=dict.fromkeys(doctor.FEATURES, True),
    underlay=("eth0", 1500),
    managers=(doctor.NetworkManager("NetworkManager", running=True, kept_off=True),),
)


def test_a_healthy_host() -> None:
    found = doctor.checks(WELL)
    assert doctor.worst(found) is doctor.Verdict.OK, [c for c in found if c.verdict is not doctor.Verdict.OK]
    assert "eth0 has 1500: pod MTU 1368" in [check.sentence for check in found]


@pytest.mark.parametrize(
    ("changed", "name", "verdict", "words"),
    [
        ({"tun": False}, "/dev/net/tun", "fail", "modprobe tun"),
        ({"capabilities": frozenset()}, "capabilities", "fail", "run as root"),
        ({"ahead": "/etc/cni/net.d/05-x.conf sorts before ours; remove it"}, "container networks", "fail", "remove it"),
        ({"features": {"uso": False}}, "kernel: uso", "warn", "Linux 6.2 has it"),
        ({"features": {"bpf": None}}, "kernel: bpf", "warn", "run the doctor as root"),
        (
            {"features": {"bpf": None}, "capabilities": frozenset({"NET_ADMIN"})},
            "kernel: bpf",
            "warn",
            "on the host itself: it tries them in a namespace of its own, which takes CAP_SYS_ADMIN",
        ),
        (
            {"forward_drops": (ForwardDrop("ip", "filter", "FORWARD", "policy drop"),)},
            "forwarding rules",
            "warn",
            "puts its rules there while it runs",
        ),
        (
            {"forward_drops": (ForwardDrop("ip", "filter", "FORWARD", "policy drop", "FORWARD", ()),)},
            "forwarding rules",
            "ok",
            "",
        ),
        ({"legacy": ("ip",)}, "forwarding rules", "warn", "iptables-legacy -I FORWARD -i weave -j ACCEPT"),
        ({"bridge_netfilter": None}, "bridge netfilter", "ok", "modprobe br_netfilter"),
        ({"nft_error": "no libnftables"}, "forwarding rules", "warn", "nft list ruleset"),
        ({"neighbours": limits.NEIGHBOURS}, "neighbours", "ok", ""),
        ({"neighbours": 1024}, "neighbours", "warn", "sysctl -w net.ipv4.neigh.default.gc_thresh3=32768; sysctl -w"),
        ({"underlay": None}, "underlay MTU", "fail", "--mtu"),
        ({"underlay": ("eth0", 1400)}, "underlay MTU", "warn", "raise it to 1412 or more"),
        (
            {"managers": (doctor.NetworkManager("NetworkManager", running=True, kept_off=False),)},
            "network managers",
            "warn",
            "make install",
        ),
    ],
)
def test_each_finding_has_a_way_out(changed: dict[str, Any], name: str, verdict: str, words: str) -> None:
    found = [check for check in doctor.checks(replace(WELL, **changed)) if check.name == name]
    assert [check.verdict for check in found] == [verdict]
    assert words in found[0].way_out


FAILURES = {
    ("tcp", "unreachable"): ("TCP 6783 blocked", "allow TCP 6783 both ways"),
    ("tcp", "refused"): ("nothing listens on TCP 6783", "launch weave-router there"),
    ("tcp", "hung up"): ("wrong token", "compare `weave-router token status` there"),
    ("tcp", "silent"): ("not a weave-router", "name the port"),
    ("tcp", "foreign"): ("not a weave-router", "name the port"),
    ("udp", "unreachable"): ("UDP 6783 blocked", "allow UDP 6783 both ways"),
    ("udp", "refused"): ("nothing listens on UDP 6783", "allow UDP 6783 both ways"),
    ("udp", "silent"): ("UDP 6783 blocked", "allow UDP 6783 both ways"),
}


@pytest.mark.parametrize(("protocol", "answer"), FAILURES)
def test_what_came_of_knocking_is_said(protocol: str, answer: str) -> None:
    came = {"tcp": doctor.Answer.PROVEN, "udp": doctor.Answer.UNTRIED, protocol: doctor.Answer(answer)}
    (failed,) = [check for check in doctor.reachability([doctor.Reach("a", **came)], 6783)
                 if check.verdict is doctor.Verdict.FAIL]  # fmt: skip
    sentence, way_out = FAILURES[protocol, answer]
    assert failed.name == "peer a"
    assert failed.sentence.startswith(sentence) and failed.way_out.startswith(way_out)


def test_ports_that_answer_and_one_that_was_not_tried() -> None:
    proven, untried = doctor.Answer.PROVEN, doctor.Answer.UNTRIED
    found = doctor.reachability([
        doctor.Reach("a", proven, proven, token=True),
        doctor.Reach("b", untried, proven, why_untried="give --token-file"),
    ], 6783)  # fmt: skip
    assert [(check.verdict.value, check.sentence) for check in found] == [
        ("ok", "TCP port 6783 answers and holds the token"),
        ("ok", "UDP port 6783 answers and holds the token"),
        ("ok", "TCP port 6783 answers"),
        ("warn", "UDP port 6783 not tried: give --token-file"),
    ]


# -- installed files -----------------------------------------------------------------------------------------------


def test_files_are_installed_once_and_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert files_driver.main(["install", str(tmp_path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(files.INSTALLED)
    assert files_driver.install(tmp_path) == []
    assert all(files_driver.is_kept_off(manager, tmp_path) for manager in files.KEEPS_OFF)
    text = (tmp_path / "etc/NetworkManager/conf.d/90-weave-router.conf").read_text()
    assert "interface-name:weave*" in text and "interface-name:vethwr*" in text
    assert len(files_driver.remove(tmp_path)) == len(files.INSTALLED)
    assert not any(files_driver.is_kept_off(manager, tmp_path) for manager in files.KEEPS_OFF)
    assert files_driver.main([]) == 2


# -- the network list -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "ahead"),
    [
        ([conflist.NAME, "10-calico.conflist", "05-x.conf", "20-y.conflist"], ["05-x.conf", "10-calico.conflist"]),
        ([conflist.NAME, "00-x.txt", ".00-x.conf.new", "99-z.json"], []),
        (["05-x.conf"], []),
    ],
    ids=["two before ours", "no network of another", "ours is not there"],
)  # fmt: skip
def test_networks_that_a_runtime_takes_instead_of_ours(names: list[str], ahead: list[str]) -> None:
    assert conflist.ahead(names) == ahead
