"""The UDP port on the real kernel: options, steering, refusals."""

import os
import select
import socket
from collections.abc import Iterator

import pytest

from weave_router import limits
from weave_router.host import udp_driver
from weave_router.host.faults import Fault, HostError
from weave_router.host.steering import DATA_DATAGRAM, LANE_OFFSET

from .conftest import Netns

WORKERS = 3


@pytest.fixture
def loopback(host: Netns) -> Netns:
    host.run("ip", "link", "set", "lo", "up")
    return host


@pytest.fixture
def udp(loopback: Netns) -> Iterator[udp_driver.Udp]:
    udp = loopback.call(udp_driver.open_udp, "", 0, WORKERS)
    yield udp
    udp_driver.close_udp(udp)


def datagram(kind: int, lane: int, size: int = 64) -> bytes:
    data = bytearray(size)
    data[0] = kind
    data[LANE_OFFSET] = lane
    return bytes(data)


def arrival(loopback: Netns, udp: udp_driver.Udp, data: bytes, address: str) -> int:
    def send() -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as sender:
            sender.sendto(data, (address, udp.port))

    loopback.call(send)
    ready, _, _ = select.select(udp.fds, [], [], 5)
    assert len(ready) == 1
    with socket.socket(fileno=ready[0]) as receiver:
        assert receiver.recv(2048) == data
        receiver.detach()
    return udp.fds.index(ready[0])


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_lane_steers_data_and_everything_else_goes_to_the_first(
    loopback: Netns, udp: udp_driver.Udp, address: str
) -> None:
    assert udp.steering and udp.gro and udp.segment and udp.ipv6
    for epoch in (0x00, 0x70, 0xF0):
        for worker in range(16):
            data = datagram(DATA_DATAGRAM, epoch | worker)
            assert arrival(loopback, udp, data, address) == worker % WORKERS
    for kind in (0, 1, 2, 3, 5, 255):
        assert arrival(loopback, udp, datagram(kind, 1), address) == 0
    for size in (1, 8):  # too short for a lane
        assert arrival(loopback, udp, bytes([DATA_DATAGRAM]) + bytes(size - 1), address) == 0


def test_options_are_set(udp: udp_driver.Udp) -> None:
    ip, ipv6 = socket.IPPROTO_IP, socket.IPPROTO_IPV6
    for fd in udp.fds:
        with socket.socket(fileno=fd) as opened:
            assert not os.get_blocking(fd) and not os.get_inheritable(fd)
            assert opened.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 2 * limits.UDP_BUFFER_BYTES
            values = [opened.getsockopt(level, option) for level, option in ((ip, 10), (ipv6, 23))]
            assert values == [3, 3]  # PMTUDISC_PROBE
            assert all(opened.getsockopt(*each) for each in ((ip, 8), (ip, 13), (ipv6, 49), (ipv6, 66)))
            assert opened.getsockopt(socket.SOL_UDP, udp_driver.UDP_GRO) == 1
            opened.detach()


def test_refused_features(loopback: Netns) -> None:
    udp = loopback.call(udp_driver.open_udp, "", 0, 2, frozenset({"udp_gro", "udp_segment", "bpf"}))
    assert (udp.gro, udp.segment, udp.steering) == (False, False, False)
    udp_driver.close_udp(udp)


def test_without_ipv6(loopback: Netns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp_driver, "_family", lambda host: socket.AF_INET)
    udp = loopback.call(udp_driver.open_udp, "", 0, 1)
    assert not udp.ipv6
    assert arrival(loopback, udp, datagram(1, 0), "127.0.0.1") == 0
    udp_driver.close_udp(udp)


def test_one_address(loopback: Netns) -> None:
    udp = loopback.call(udp_driver.open_udp, "127.0.0.1", 0, 1)
    assert arrival(loopback, udp, datagram(1, 0), "127.0.0.1") == 0
    udp_driver.close_udp(udp)


def test_port_in_use_even_by_a_router_of_the_same_user(loopback: Netns, udp: udp_driver.Udp) -> None:
    with pytest.raises(HostError) as caught:
        loopback.call(udp_driver.open_udp, "", udp.port, 1)
    assert caught.value.fault is Fault.UDP_IN_USE


def test_address_of_another_machine(loopback: Netns) -> None:
    with pytest.raises(HostError) as caught:
        loopback.call(udp_driver.open_udp, "192.0.2.1", 6783, 1)
    assert caught.value.fault is Fault.UDP_ADDRESS
