"""The nft text, and what is read of other people's rules."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import pytest

from weave_router.host.netfilter import ForwardDrop, PortGuard, forward_drops, guard_added, guard_removed, tables

GUARD = PortGuard(
    "vethwr1", "0a:58:0a:20:00:02", (IPv4Address("10.32.0.2"),), (IPv6Address("fd00::2"), IPv6Address("fe80::2"))
)


def test_a_pod_is_elements_of_sets_and_nothing_else() -> None:
    assert guard_added(GUARD).splitlines() == [
        'add element bridge weave_router macs { "vethwr1" . 0a:58:0a:20:00:02 }',
        'add element bridge weave_router ipv4 { "vethwr1" . 10.32.0.2 }',
        'add element bridge weave_router ipv6 { "vethwr1" . fd00::2, "vethwr1" . fe80::2 }',
        'add element bridge weave_router nd { "vethwr1" . 0xfd000000000000000000000000000002, '
        '"vethwr1" . 0xfe800000000000000000000000000002 }',
    ]
    assert guard_removed(GUARD) == guard_added(GUARD) + guard_added(GUARD).replace("add ", "delete ")


def test_a_station_has_no_guard() -> None:
    station = PortGuard("vethwr1", GUARD.mac, GUARD.ipv4, GUARD.ipv6, station=True)
    assert guard_added(station) == 'add element bridge weave_router stations { "vethwr1" }\n'


def test_a_pod_without_ipv6_has_no_empty_elements() -> None:
    assert " nd " not in guard_added(PortGuard("vethwr1", GUARD.mac, GUARD.ipv4))
    assert "{  }" not in guard_added(PortGuard("vethwr1", GUARD.mac, GUARD.ipv4))


def test_tables_start_with_the_pods_that_stand() -> None:
    text = tables("weave", IPv4Network("10.32.0.0/12"), None, [GUARD])
    assert 'set macs { type ifname . ether_addr; elements = { "vethwr1" . 0a:58:0a:20:00:02 }; }' in text
    assert "set stations { type ifname; }" in text


@pytest.mark.parametrize("universe_v6", [None, IPv6Network("fd00:1::/96")])
def test_masquerade_is_for_what_leaves_the_universe(universe_v6: IPv6Network | None) -> None:
    text = tables("weave", IPv4Network("10.32.0.0/12"), universe_v6)
    assert 'oifname != "weave" ip saddr 10.32.0.0/12 ip daddr != { 10.32.0.0/12, 224.0.0.0/4 } masquerade' in text
    ipv6 = 'oifname != "weave" ip6 saddr fd00:1::/96 ip6 daddr != { fd00:1::/96, ff00::/8 } masquerade'
    assert (ipv6 in text) == (universe_v6 is not None)


def chain(family: str, name: str, hook: str | None, policy: str | None, table: str = "filter") -> dict[str, Any]:
    return {"chain": {"family": family, "table": table, "name": name, "hook": hook, "policy": policy}}


def rule(name: str, *expr: dict[str, Any]) -> dict[str, Any]:
    return {"rule": {"family": "ip", "table": "filter", "chain": name, "expr": list(expr)}}


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([], []),
        ([chain("ip", "FORWARD", "forward", "accept")], []),
        ([chain("ip", "FORWARD", "forward", "drop")], ["ip filter FORWARD (policy drop)"]),
        ([chain("ip", "INPUT", "input", "drop")], []),
        ([chain("inet", "guard", "forward", "drop", table="weave_router")], []),
        ([chain("bridge", "x", "forward", "drop")], []),
        (
            [chain("ip", "FORWARD", "forward", "accept"), rule("FORWARD", {"counter": None}, {"drop": None})],
            ["ip filter FORWARD (a rule drops or rejects)"],
        ),
        (
            [
                chain("ip", "FORWARD", "forward", "accept"),
                rule("FORWARD", {"jump": {"target": "A"}}),
                rule("A", {"goto": {"target": "B"}}),
                rule("B", {"jump": {"target": "A"}}, {"reject": {"type": "icmp"}}),
            ],
            ["ip filter FORWARD (a rule drops or rejects)"],
        ),
        ([chain("ip", "FORWARD", "forward", "accept"), rule("ELSEWHERE", {"drop": None})], []),
    ],
)
def test_chains_that_can_drop_what_is_forwarded(items: list[dict[str, Any]], expected: list[str]) -> None:
    assert [str(drop) for drop in forward_drops({"nftables": [{"metainfo": {}}, *items]})] == expected
    assert all(isinstance(drop, ForwardDrop) for drop in forward_drops({"nftables": items}))
