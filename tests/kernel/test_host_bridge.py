"""TAP and bridge on the real kernel.

host namespace:   weave (bridge) -- weave-tap (TAP, two queues)
                        \\------- small (veth, MTU 1300)
"""

import os
import select
import socket
import struct
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_interface

import pytest
from pyroute2 import IPRoute

from weave_router.host import bridge_driver, sysctl_driver, tap_driver
from weave_router.host.bridge import BridgePlan, gso_max_size
from weave_router.host.faults import Fault, HostError
from weave_router.host.netlink_driver import Link, find
from weave_router.host.steering import CREDITS, SPENT, tap_hash
from weave_router.limits import TAP_QUEUE_LENGTH

from .conftest import Netns

PLAN = BridgePlan(
    name="weave",
    tap="weave-tap",
    mtu=1368,
    mac="0a:58:0a:20:00:01",
    addresses=(ip_interface("10.32.0.1/12"), ip_interface("fd00:1::a20:1/96")),
)


def make(plan: BridgePlan, queues: int = 1, refuse: frozenset[str] = frozenset()) -> tap_driver.Tap:
    tap = tap_driver.open_tap(plan.tap, queues, refuse)
    with IPRoute() as ipr:
        tap_driver.prepare_link(ipr, plan.tap)
        bridge_driver.ensure(ipr, plan)
    return tap


def look(name: str) -> Link | None:
    with IPRoute() as ipr:
        return find(ipr, name)


@pytest.fixture
def tap(host: Netns) -> Iterator[tap_driver.Tap]:
    tap = host.call(make, PLAN, 2)
    yield tap
    tap_driver.close_tap(tap)


def test_bridge_is_as_planned(host: Netns, tap: tap_driver.Tap) -> None:
    bridge, port = host.call(look, "weave"), host.call(look, "weave-tap")
    assert (bridge.mac, bridge.mtu, bridge.up) == (PLAN.mac, 1368, True)
    assert bridge.gso_max_size == gso_max_size(1368)
    assert (port.master, port.mtu, port.txqlen, port.up) == (bridge.index, 1368, TAP_QUEUE_LENGTH, True)
    assert port.port["multicast_router"] == 2
    addresses = host.run("ip", "-o", "addr", "show", "dev", "weave")
    assert "10.32.0.1/12" in addresses
    assert "fd00:1::a20:1/96" in addresses
    assert "tentative" not in addresses and "dadfailed" not in addresses
    assert host.run("ip", "-6", "addr", "show", "dev", "weave-tap") == ""
    for name, value in (
        ("net/ipv6/conf/weave/accept_ra", "0"),
        ("net/ipv6/conf/weave-tap/disable_ipv6", "1"),
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
    ):
        assert host.call(sysctl_driver.read, name) == value, name


def test_second_start_changes_nothing(host: Netns) -> None:
    tap_driver.close_tap(host.call(make, PLAN, 2))  # the router dies, the device stays
    before = host.call(look, "weave"), host.call(look, "weave-tap"), host.run("ip", "-o", "addr")
    tap_driver.close_tap(host.call(make, PLAN, 1))
    assert (host.call(look, "weave"), host.call(look, "weave-tap"), host.run("ip", "-o", "addr")) == before


@pytest.mark.parametrize("mtu", [1368, 1500, 65000])
def test_mtu_is_pinned_against_smaller_ports(host: Netns, mtu: int) -> None:
    """1,500 is what a new bridge has: setting it again would pin nothing."""
    tap = host.call(make, replace(PLAN, mtu=mtu))
    host.run("ip", "link", "add", "small", "mtu", "1300", "type", "veth", "peer", "small-peer")
    host.run("ip", "link", "set", "small", "master", "weave")
    assert host.call(look, "weave").mtu == mtu
    host.run("ip", "link", "del", "small")
    assert host.call(look, "weave").mtu == mtu
    tap_driver.close_tap(tap)


def test_mac_stays_when_ports_come_and_go(host: Netns) -> None:
    plan = BridgePlan(name="weave", tap="weave-tap", mtu=1368)
    tap = host.call(make, plan)
    mac = host.call(look, "weave").mac
    assert int(mac[:2], 16) & 3 == 2  # local, unicast
    host.run("ip", "link", "add", "low", "address", "00:00:00:00:00:01", "type", "veth", "peer", "low-peer")
    host.run("ip", "link", "set", "low", "master", "weave")
    assert host.call(look, "weave").mac == mac
    tap_driver.close_tap(tap)


def test_strict_rp_filter_is_loosened(host: Netns) -> None:
    host.call(sysctl_driver.write, "net/ipv4/conf/all/rp_filter", "1", link="all")
    tap_driver.close_tap(host.call(make, PLAN))
    assert host.call(sysctl_driver.read, "net/ipv4/conf/weave/rp_filter") == "2"


def test_host_that_lives_by_router_advertisements_keeps_listening(host: Netns) -> None:
    host.run("ip", "link", "add", "up0", "type", "veth", "peer", "up1")
    assert host.call(sysctl_driver.read, "net/ipv6/conf/up0/accept_ra") == "1"
    tap_driver.close_tap(host.call(make, PLAN))
    assert host.call(sysctl_driver.read, "net/ipv6/conf/up0/accept_ra") == "2"
    assert host.call(sysctl_driver.read, "net/ipv6/conf/weave/accept_ra") == "0"


def test_verify_names_what_changed(host: Netns, tap: tap_driver.Tap) -> None:
    host.run("ip", "link", "set", "weave", "address", "02:00:00:00:00:99")
    host.run("ip", "addr", "del", "10.32.0.1/12", "dev", "weave")
    host.run("ip", "link", "set", "weave-tap", "nomaster")

    def verify() -> list[str]:
        with IPRoute() as ipr:
            return bridge_driver.verify(ipr, PLAN)

    assert host.call(verify) == [
        "its MAC is 02:00:00:00:00:99 instead of 0a:58:0a:20:00:01",
        "weave-tap is no port of it",
        "mcast_router of weave-tap is not 2",
        "address 10.32.0.1/12 is gone",
    ]


def test_name_taken_by_another_kind_of_link(host: Netns) -> None:
    host.run("ip", "link", "add", "weave", "type", "veth", "peer", "w2")
    with pytest.raises(HostError) as caught:
        host.call(make, PLAN)
    assert caught.value.fault is Fault.LINK_KIND


def test_tap_carrier_is_off_until_told(host: Netns, tap: tap_driver.Tap) -> None:
    assert not host.call(look, "weave-tap").carrier
    tap_driver.set_carrier(tap, True)
    assert host.call(look, "weave-tap").carrier
    again = host.call(tap_driver.open_tap, "weave-tap", 1)  # a restart finds it raised and takes it down
    assert not host.call(look, "weave-tap").carrier
    tap_driver.close_tap(again)


def test_tap_descriptors_are_closed_on_exec_and_do_not_block(tap: tap_driver.Tap) -> None:
    assert tap.vnet_hdr == 12
    for fd in tap.fds:
        assert not os.get_inheritable(fd)
        assert not os.get_blocking(fd)


@pytest.mark.parametrize(
    ("refuse", "expected"),
    [
        ((), (True, True, True, True)),
        (("uso",), (True, True, False, True)),
        (("tso",), (True, False, True, True)),
        (("csum",), (False, False, False, True)),
        (("bpf",), (True, True, True, False)),
    ],
)
def test_refused_features_are_off(host: Netns, refuse: tuple[str, ...], expected: tuple[bool, ...]) -> None:
    everything = host.call(tap_driver.open_tap, "t", 1)
    tap_driver.close_tap(everything)  # flags outlive it: the next start must take them back
    tap = host.call(tap_driver.open_tap, "t", 1, frozenset(refuse))
    assert (tap.csum, tap.tso, tap.uso, tap.steering) == expected
    features = host.run("ethtool", "-k", "t")
    assert ("tcp-segmentation-offload: on" in features) == tap.tso
    tap_driver.close_tap(tap)


def test_tap_name_taken_by_another_kind_of_link(host: Netns) -> None:
    host.run("ip", "link", "add", "weave-tap", "type", "veth", "peer", "w2")
    with pytest.raises(HostError) as caught:
        host.call(tap_driver.open_tap, "weave-tap", 1)
    assert caught.value.fault is Fault.TAP_KIND


def test_tap_of_a_single_queue_program(host: Netns) -> None:
    host.run("ip", "tuntap", "add", "weave-tap", "mode", "tap")
    with pytest.raises(HostError) as caught:
        host.call(tap_driver.open_tap, "weave-tap", 1)
    assert caught.value.fault is Fault.TAP_KIND


def test_steering_keeps_both_directions_of_a_flow_on_one_queue(host: Netns) -> None:
    """Frames leave by the TAP link; the queue each arrives on is the oracle's."""
    queues = 4
    tap = host.call(tap_driver.open_tap, "t", queues)
    assert tap.steering
    tap_driver.set_carrier(tap, True)
    host.run("sysctl", "-qw", "net.ipv6.conf.t.disable_ipv6=1")
    host.run("ip", "link", "set", "dev", "t", "up")
    used = set()
    for frame, back in flows():
        seen = [arrival(host, tap, each) for each in (frame, back)]
        assert seen[0] == seen[1] == tap_hash(frame) % queues == tap_hash(back) % queues
        used.add(seen[0])
    assert used == set(range(queues))
    tap_driver.close_tap(tap)


def test_refused_steering_removes_the_program_of_the_last_start(host: Netns) -> None:
    queues = 4
    tap_driver.close_tap(host.call(tap_driver.open_tap, "t", queues))
    tap = host.call(tap_driver.open_tap, "t", queues, frozenset({"bpf"}))
    tap_driver.set_carrier(tap, True)
    host.run("sysctl", "-qw", "net.ipv6.conf.t.disable_ipv6=1")
    host.run("ip", "link", "set", "dev", "t", "up")
    assert any(arrival(host, tap, frame) != tap_hash(frame) % queues for frame, _ in flows())
    tap_driver.close_tap(tap)


def test_a_flow_without_credit_does_not_come(host: Netns) -> None:
    """A word of SPENT or a little less stops a flow, SPENT + n lets n frames come, and below 0 all as with 0; other
    flows, and what is too short to tell, come anyway."""
    tap = host.call(tap_driver.open_tap, "t", 1)
    assert tap.credits is not None
    words = memoryview(tap.credits).cast("I")
    tap_driver.set_carrier(tap, True)
    host.run("sysctl", "-qw", "net.ipv6.conf.t.disable_ipv6=1")
    host.run("ip", "link", "set", "dev", "t", "up")
    some = {tap_hash(frame) % CREDITS: (frame, back) for frame, back in flows()}
    (bound, (frame, back)), *others = some.items()
    for spent in (SPENT, SPENT - 3):
        words[bound] = spent
        for each in (frame, back):
            host.call(send_frame, "t", each)
    for _, (other, _) in others:
        assert arrival(host, tap, other) == 0  # the first to arrive: those before it did not
    words[bound] = SPENT + 2
    for _ in range(2):
        assert arrival(host, tap, frame) == 0
    assert words[bound] == SPENT
    host.call(send_frame, "t", back)
    for free in (0, 2**32 - 1):
        words[bound] = free
        assert arrival(host, tap, frame) == 0
        assert words[bound] == free
    for ethertype in (b"\x08\x00\x4f", b"\x86\xdd\x60"):
        for size in range(20, 60):
            short = (frame[:12] + ethertype + bytes(8) + b"\x06" + bytes(60))[:size]
            assert arrival(host, tap, short) == 0
    words.release()
    tap_driver.close_tap(tap)


def test_refusing_programs_frees_the_flows_of_the_last_start(host: Netns) -> None:
    tap = host.call(tap_driver.open_tap, "t", 1)
    assert tap.credits is not None
    tap.credits[: 4 * CREDITS] = struct.pack("I", SPENT) * CREDITS
    tap_driver.close_tap(tap)
    tap = host.call(tap_driver.open_tap, "t", 1, frozenset({"bpf"}))
    assert tap.credits is None
    tap_driver.set_carrier(tap, True)
    host.run("sysctl", "-qw", "net.ipv6.conf.t.disable_ipv6=1")
    host.run("ip", "link", "set", "dev", "t", "up")
    assert arrival(host, tap, next(flows())[0]) == 0
    tap_driver.close_tap(tap)


def arrival(host: Netns, tap: tap_driver.Tap, frame: bytes) -> int:
    host.call(send_frame, "t", frame)
    ready, _, _ = select.select(tap.fds, [], [], 5)
    assert len(ready) == 1
    assert os.read(ready[0], 4096)[tap.vnet_hdr :] == frame
    return tap.fds.index(ready[0])


def send_frame(link: str, frame: bytes) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind((link, 0))
        sender.send(frame)


def flows() -> Iterator[tuple[bytes, bytes]]:
    """(a frame, one of its answers): IPv4 and IPv6 with and without ports, fragments, options, neither."""
    a, b = bytes.fromhex("0a580a200001"), bytes.fromhex("0a580a200002")
    for n in range(12):
        ports = (1000 + 37 * n, 80)
        for proto in (6, 17, 1):
            yield (
                b + a + b"\x08\x00" + ipv4(n, 1, proto, ports, 0),
                a + b + b"\x08\x00" + ipv4(1, n, proto, ports[::-1], 0),
            )
            yield (
                b + a + b"\x86\xdd" + ipv6(n, 1, proto, ports),
                a + b + b"\x86\xdd" + ipv6(1, n, proto, ports[::-1]),
            )
        yield b + a + b"\x08\x00" + ipv4(n, 1, 17, ports, 0x2000), a + b + b"\x08\x00" + ipv4(1, n, 17, (7, 7), 0x2000)
        yield b + a + b"\x08\x00" + ipv4(n, 1, 6, ports, 0, 6), a + b + b"\x08\x00" + ipv4(1, n, 6, ports[::-1], 0)
    for n in range(8):
        other = bytes([2, 0, 0, 0, 0, n])
        yield other + a + b"\x88\xb5" + bytes(50), a + other + b"\x88\xb5" + bytes(50)


def ipv4(source: int, target: int, proto: int, ports: tuple[int, int], fragment: int, words: int = 5) -> bytes:
    head = struct.pack(">BBHHHBBH", 0x40 | words, 0, 64, 0, fragment, 64, proto, 0)
    return head + bytes([10, 32, 0, source, 10, 32, 0, target]) + bytes(4 * words - 20) + tail(ports)


def ipv6(source: int, target: int, proto: int, ports: tuple[int, int]) -> bytes:
    head = struct.pack(">IHBB", 0x60000000, 24, proto, 64)
    return head + bytes([0xFD, *bytes(14), source]) + bytes([0xFD, *bytes(14), target]) + tail(ports)


def tail(ports: tuple[int, int]) -> bytes:
    return struct.pack(">HH", *ports) + bytes(40)
