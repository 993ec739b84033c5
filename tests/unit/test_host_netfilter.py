"""Our own nft tables as text."""

import struct
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import pytest

from weave_router.host.elements import PIECE, added, packed, text
from weave_router.host.netfilter import PortGuard, TablesPlan, guards_added, guards_removed, standing, tables
from weave_router.limits import TRANSLATED_CONNECTIONS, TRANSLATED_PAIRS

GUARD = PortGuard(
    "vethwr1", "0a:58:0a:20:00:02", (IPv4Address("10.32.0.2"),), (IPv6Address("fd00::2"), IPv6Address("fe80::2"))
)


def texts(guard: PortGuard) -> dict[str, list[str]]:
    return {name: list(map(text, own)) for name, own in guard.elements.items()}


def test_a_pod_is_elements_of_sets_and_nothing_else() -> None:
    assert texts(GUARD) == {
        "macs": ['"vethwr1" . 0a:58:0a:20:00:02'],
        "ipv4": ['"vethwr1" . 10.32.0.2'],
        "ipv6": ['"vethwr1" . fd00::2', '"vethwr1" . fe80::2'],
        "nd": ['"vethwr1" . 0xfd000000000000000000000000000002', '"vethwr1" . 0xfe800000000000000000000000000002'],
        "returns": ['"vethwr1" . "vethwr1"'],
        "pods4": ["10.32.0.2 . 10.32.0.2"],
        "pods6": ["fd00::2 . fd00::2"],
    }
    assert [message.body for message in guards_removed([GUARD])] == [one.body for one in guards_added([GUARD])]
    assert len(guards_added([GUARD, GUARD])) == len(guards_added([GUARD])) == 7


def test_a_station_has_no_guard() -> None:
    station = PortGuard("vethwr1", GUARD.mac, GUARD.ipv4, GUARD.ipv6, station=True)
    assert texts(station) == {
        "stations": ['"vethwr1"'], "pods4": ["10.32.0.2 . 10.32.0.2"], "pods6": ["fd00::2 . fd00::2"]}  # fmt: skip


def test_a_pod_without_ipv6_has_no_empty_elements() -> None:
    assert len(guards_added([PortGuard("vethwr1", GUARD.mac, GUARD.ipv4)])) == 4


def test_a_key_is_its_parts_filled_up_to_four_bytes() -> None:
    (message,) = added("bridge", "t", "s", [packed(("if0", b"\x0a\x58\0\0\0\1", IPv4Address("10.32.0.2"), 1))])
    key = b"if0" + bytes(13) + b"\x0a\x58\0\0\0\1\0\0" + bytes([10, 32, 0, 2]) + bytes(15) + b"\1"
    value = struct.pack("=HH", 48, 1) + key
    nesting = ((3, 0x8003), (2, 0x8001), (1, 0x8001))
    elements = b"".join(struct.pack("=HH", 48 + 4 * depth, number) for depth, number in nesting)
    assert message.body == b"\7\0\0\0" + b"\6\0\1\0t\0\0\0" + b"\6\0\2\0s\0\0\0" + elements + value
    assert len(added("bridge", "t", "s", [packed(("if0",))] * (PIECE + 1))) == 2


def test_tables_start_with_the_pods_that_stand() -> None:
    text = tables(TablesPlan("weave", IPv4Network("10.32.0.0/12"), None), [GUARD])
    assert 'set macs { type ifname . ether_addr; elements = { "vethwr1" . 0a:58:0a:20:00:02 }; }' in text
    assert "set stations { type ifname; }" in text


@pytest.mark.parametrize("universe_v6", [None, IPv6Network("fd00:1::/96")])
def test_masquerade_is_for_what_leaves_the_universe(universe_v6: IPv6Network | None) -> None:
    text = tables(TablesPlan("weave", IPv4Network("10.32.0.0/12"), universe_v6))
    assert 'oifname != "weave" ip saddr 10.32.0.0/12 ip daddr != { 10.32.0.0/12, 224.0.0.0/4 } masquerade' in text
    ipv6 = 'oifname != "weave" ip6 saddr fd00:1::/96 ip6 daddr != { fd00:1::/96, ff00::/8 } masquerade'
    assert (ipv6 in text) == (universe_v6 is not None)


@pytest.mark.parametrize("no_masq_local", [False, True])
def test_the_host_speaks_to_pods_with_the_bridge_s_address(no_masq_local: bool) -> None:
    """With --no-masq-local not to its own; forwarded strangers are masqueraded towards other nodes' pods alone."""
    plan = TablesPlan("weave", IPv4Network("10.32.0.0/12"), IPv6Network("fd00:1::/96"), no_masq_local)
    text = tables(plan)
    own = "ip daddr . ip daddr != @pods4 " if no_masq_local else ""
    assert (
        f'oifname "weave" ip saddr != 10.32.0.0/12 ip daddr 10.32.0.0/12 {own}fib saddr type local masquerade' in text
    )
    stranger = "ip saddr != 10.32.0.0/12 ip daddr 10.32.0.0/12"
    assert f'iifname != "weave" oifname "weave" {stranger} ip daddr . ip daddr != @pods4 masquerade' in text
    assert "ip6 saddr != { fd00:1::/96, fe80::/10 } ip6 daddr fd00:1::/96" in text  # neighbour discovery keeps its own


def test_all_addresses_of_a_pod_are_itself() -> None:
    two = PortGuard("vethwr1", GUARD.mac, (IPv4Address("10.32.0.2"), IPv4Address("10.32.0.3")))
    assert texts(two)["pods4"] == [
        "10.32.0.2 . 10.32.0.2", "10.32.0.2 . 10.32.0.3", "10.32.0.3 . 10.32.0.2", "10.32.0.3 . 10.32.0.3"]  # fmt: skip


def test_what_is_translated_keeps_its_source_where_answers_can_be_brought_back() -> None:
    """That is, where the bridge has its MAC; what is noted is bounded and outlives a reload."""
    plan = TablesPlan("weave", IPv4Network("10.32.0.0/12"), None)
    assert "ip daddr 10.32.0.0/12 masquerade" in tables(plan)
    assert "delete table bridge weave_router_answers" in tables(plan)
    text = tables(replace(plan, mac="0a:58:0a:20:00:01"))
    assert "ip daddr 10.32.0.0/12 masquerade" not in text
    assert "delete table bridge weave_router_answers" not in text
    assert "ether daddr set 0a:58:0a:20:00:01" in text
    bounds = [int(line.split("size ")[1].split(";")[0]) for line in text.splitlines() if "size " in line]
    assert bounds == [TRANSLATED_PAIRS, TRANSLATED_CONNECTIONS] * 2


def test_rules_are_compared_without_handles_and_ports_by_name() -> None:
    def listing(handle: int, port: str) -> dict[str, Any]:
        rule = {"family": "inet", "table": "weave_router", "chain": "x", "handle": handle, "expr": [{"accept": None}]}
        elements = [{"concat": [port, "0a:58:0a:20:00:02"]}]
        return {"nftables": [{"rule": rule}, {"set": {"name": "macs", "elem": elements}}]}

    assert standing([listing(1, "vethwr1")]) == standing([listing(9, "vethwr1")])
    assert standing([listing(1, "vethwr1")])[1] == {"vethwr1"}
    assert standing([listing(1, "vethwr1")]) != standing([listing(1, "vethwr2")])
    assert standing([{}]) == (frozenset(), frozenset())
