"""Messages of host/rtnl.py, read by pyroute2 as the independent oracle."""

from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Any

import pytest
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from weave_router.host import rtnl
from weave_router.host.rtnl import Message
from weave_router.host.rtnl_numbers import IFLA_BRPORT_LEARNING, IFLA_BRPORT_LOCKED

MAC = "0a:58:0a:20:00:05"


def read(kind: Any, message: Message) -> Any:
    head = (16 + len(message.body)).to_bytes(4, "little") + message.kind.to_bytes(2, "little") + bytes(10)
    found = kind(head + message.body)
    found.decode()
    return found


def test_pair() -> None:
    found = read(ifinfmsg, rtnl.pair_new("vethwr1", 1368, 7, "eth0", MAC, 65000, 9))
    assert (found.get_attr("IFLA_IFNAME"), found.get_attr("IFLA_MTU"), found.get_attr("IFLA_MASTER")) == (
        "vethwr1", 1368, 7)  # fmt: skip
    info = found.get_attr("IFLA_LINKINFO")
    peer = info.get_attr("IFLA_INFO_DATA").get_attr("VETH_INFO_PEER")
    assert info.get_attr("IFLA_INFO_KIND") == "veth" and not found["flags"] & rtnl.IFF_UP
    wanted = {"IFLA_IFNAME": "eth0", "IFLA_ADDRESS": MAC, "IFLA_MTU": 1368, "IFLA_GSO_MAX_SIZE": 65000,
              "IFLA_NET_NS_FD": 9}  # fmt: skip
    assert {name: peer.get_attr(name) for name in wanted} == wanted


def test_port() -> None:
    found = read(ifinfmsg, rtnl.port_set(5, {IFLA_BRPORT_LEARNING: 0, IFLA_BRPORT_LOCKED: 1}))
    port = found.get_attr("IFLA_LINKINFO").get_attr("IFLA_INFO_SLAVE_DATA")
    assert found["index"] == 5
    named = read(ifinfmsg, rtnl.link_alias(5, "weave-router c1 eth0 10.32.0.5"))
    assert (named["index"], named.get_attr("IFLA_IFALIAS")) == (5, "weave-router c1 eth0 10.32.0.5")
    assert (port.get_attr("IFLA_BRPORT_LEARNING"), port.get_attr("IFLA_BRPORT_LOCKED")) == (0, 1)
    away = read(ifinfmsg, rtnl.link_away(5, 77))
    assert (away["index"], away["flags"], away["change"]) == (5, 0, 1)
    assert (away.get_attr("IFLA_MASTER"), away.get_attr("IFLA_GROUP")) == (0, 77)
    grouped = read(ifinfmsg, rtnl.link_group(5, 77))
    assert (grouped["index"], grouped["change"], grouped.get_attr("IFLA_GROUP")) == (5, 0, 77)
    entry = read(ndmsg, rtnl.forwarding_entry(5, MAC))
    assert (entry["ifindex"], entry["state"], entry.get_attr("NDA_LLADDR")) == (5, 0x40, MAC)
    assert entry["flags"] == 0x04 | 0x40  # NTF_MASTER, NTF_STICKY
    gone = read(ndmsg, rtnl.forwarding_gone(5, MAC))
    assert (gone["ifindex"], gone["flags"], gone.get_attr("NDA_LLADDR")) == (5, 0x04, MAC)


@pytest.mark.parametrize("address", [IPv4Interface("10.32.0.5/12"), IPv6Interface("fd00::5/96")])
def test_address(address: IPv4Interface | IPv6Interface) -> None:
    found = read(ifaddrmsg, rtnl.address_new(3, address, 2))
    assert (found["index"], found["prefixlen"]) == (3, address.network.prefixlen)
    assert found.get_attr("IFA_ADDRESS") == found.get_attr("IFA_LOCAL") == str(address.ip)
    assert found.get_attr("IFA_FLAGS") == 2


@pytest.mark.parametrize(("to", "gateway"), [
    (IPv4Network("0.0.0.0/0"), IPv4Address("10.32.0.1")), (IPv6Network("::/0"), IPv6Address("fd00::1")),
    (IPv4Network("192.0.2.0/24"), IPv4Address("10.32.0.1")), (IPv4Network("192.0.2.0/24"), None),
])  # fmt: skip
def test_route(to: Any, gateway: Any) -> None:
    found = read(rtmsg, rtnl.route_new(3, to, gateway))
    assert (found["dst_len"], found.get_attr("RTA_OIF")) == (to.prefixlen, 3)
    assert found.get_attr("RTA_DST") == (str(to.network_address) if to.prefixlen else None)
    assert found.get_attr("RTA_GATEWAY") == (str(gateway) if gateway else None)
    assert bool(found["flags"] & 4) == (gateway is not None)


def test_attributes_of_half_a_message() -> None:
    whole = rtnl.attribute(3, b"eth0\0")
    assert rtnl.attributes(whole + b"\2\0\1\0") == {3: b"eth0\0"}
    assert rtnl.attributes(whole[:3]) == {}
