"""What is read of other people's chains at forward, what is put there, and which notifications concern it."""

import struct
from typing import Any

import pytest

from weave_router.host.forwarding import (
    Firewall,
    ForwardDrop,
    answer,
    concerns,
    forward_drops,
    forward_tables,
    legacy_sentence,
    places,
    rest,
    warnings,
    withdrawn,
)
from weave_router.limits import FIREWALL_LOOK_SHARE, FIREWALL_LOOK_SPACING


def chain(family: str, name: str, hook: str | None, policy: str | None, table: str = "filter") -> dict[str, Any]:
    return {"chain": {"family": family, "table": table, "name": name, "hook": hook, "policy": policy}}


def rule(name: str, *expr: dict[str, Any]) -> dict[str, Any]:
    return {"rule": {"family": "ip", "table": "filter", "chain": name, "expr": list(expr)}}


def xt(kind: str, name: str) -> dict[str, Any]:
    """An expression of iptables-nft that nft does not translate."""
    return {"xt": {"type": kind, "name": name}}


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
        (
            [chain("ip", "FORWARD", "forward", "accept"), rule("FORWARD", xt("target", "REJECT"))],
            ["ip filter FORWARD (a rule drops or rejects)"],
        ),
        (
            [chain("ip", "FORWARD", "forward", "accept"), rule("FORWARD", xt("match", "comment"))],
            [],
        ),
        (
            [
                chain("ip", "FORWARD", "forward", "accept"),
                rule("FORWARD", {"vmap": {"data": {"set": [["a", {"goto": {"target": "A"}}]]}}}),
                rule("A", {"drop": None}),
            ],
            ["ip filter FORWARD (a rule drops or rejects)"],
        ),
        (
            [
                chain("ip", "FORWARD", "forward", "accept"),
                rule("FORWARD", {"vmap": {"data": {"set": [["a", {"drop": None}]]}}}),
            ],
            ["ip filter FORWARD (a rule drops or rejects)"],
        ),
        (
            [
                chain("ip", "FORWARD", "forward", "accept"),
                rule("FORWARD", {"jump": {"target": "KUBE-FORWARD"}}),
                rule("KUBE-FORWARD", {"drop": None}),
            ],
            [],
        ),
        ([chain("ip", "forward", "forward", "drop", table="kube-proxy")], []),
    ],
)
def test_chains_that_can_drop_what_is_forwarded(items: list[dict[str, Any]], expected: list[str]) -> None:
    assert [str(drop) for drop in forward_drops({"nftables": [{"metainfo": {}}, *items]})] == expected
    assert all(isinstance(drop, ForwardDrop) for drop in forward_drops({"nftables": items}))


FORWARD = chain("ip", "FORWARD", "forward", "drop")
USER = [chain("ip", "DOCKER-USER", None, None), rule("FORWARD", {"jump": {"target": "DOCKER-USER"}})]


def ours(place: str, bridge: str = "weave") -> list[dict[str, Any]]:
    made = []
    for number, (text, key) in enumerate((("answers to pods", "oifname"), ("from pods", "iifname"))):
        made.append(rule(place, {"match": {"left": {"meta": {"key": key}}, "right": bridge}}, {"accept": None}))
        made[-1]["rule"] |= {"comment": f"weave-router: {text}", "handle": 7 + number}
    return made


def drop_of(*items: dict[str, Any], bridge: str = "weave") -> ForwardDrop:
    (found,) = forward_drops({"nftables": [FORWARD, *items]}, bridge)
    return found


def test_the_pair_stands_at_the_head_or_in_docker_user() -> None:
    assert (drop_of().place, drop_of(*USER).place) == ("FORWARD", "DOCKER-USER")
    assert drop_of(USER[0]).place == "FORWARD"  # nothing jumps to it
    assert answer(drop_of(*USER), "weave").splitlines() == [
        'insert rule ip filter DOCKER-USER oifname "weave" meta mark & 0x2000000 == 0x2000000 counter accept '
        'comment "weave-router: answers to pods"',
        'insert rule ip filter DOCKER-USER iifname "weave" counter accept comment "weave-router: from pods"',
    ]


def test_a_pair_is_whole_at_its_place_for_this_bridge() -> None:
    pair = ours("FORWARD")
    assert drop_of(*pair).answered and answer(drop_of(*pair), "weave") == ""
    assert drop_of(pair[0]).missing == ("weave-router: from pods",)
    assert not drop_of(*USER, *pair).answered
    assert not drop_of(*ours("FORWARD", "other")).answered


def test_rules_of_ours_are_taken_away_where_they_are_not_needed() -> None:
    ruleset = {"nftables": [FORWARD, *ours("FORWARD"), *ours("DOCKER-USER")]}
    assert places(ruleset) == ("ip filter FORWARD", "ip filter DOCKER-USER")
    both = ["delete rule ip filter DOCKER-USER handle 7", "delete rule ip filter DOCKER-USER handle 8"]
    assert withdrawn(ruleset, {("ip", "filter", "FORWARD")}).splitlines() == both
    assert withdrawn(ruleset, of="ip filter DOCKER-USER").splitlines() == both
    assert len(withdrawn(ruleset).splitlines()) == 4


def test_tables_that_are_listed() -> None:
    chains = [FORWARD, chain("ip6", "FORWARD", "forward", "drop"), chain("ip", "nat", "postrouting", "accept"),
              chain("inet", "x", "forward", "accept", table="weave_router"), chain("bridge", "x", "forward", "drop"),
              chain("ip", "f", "forward", "accept", table="kube-proxy")]  # fmt: skip
    assert forward_tables({"nftables": chains}) == [("ip", "filter"), ("ip6", "filter")]


def message(kind: int, family: int, table: str, subsystem: int = 10) -> bytes:
    name = table.encode() + b"\0"
    attribute = (struct.pack("=HH", 4 + len(name), 1) + name).ljust(-(-(4 + len(name)) // 4) * 4, b"\0")
    return struct.pack("=IHHIIBBH", 20 + len(attribute), subsystem << 8 | kind, 0, 0, 0, family, 0, 0) + attribute


@pytest.mark.parametrize(
    ("kind", "family", "table", "expected"),
    [
        (0, 1, "new", True),  # a table
        (5, 2, "nat", True),  # a chain went
        (6, 2, "filter", True),
        (8, 2, "filter", True),
        (6, 10, "filter", False),
        (6, 2, "nat", False),
        (12, 2, "filter", False),  # an element of a set
        (15, 0, "", False),  # a generation
    ],
)
def test_notifications_that_concern_us(kind: int, family: int, table: str, expected: bool) -> None:
    watched = {("ip", "filter")}
    assert concerns(message(kind, family, table), watched) == expected
    assert concerns(message(12, 2, "filter") + message(kind, family, table), watched) == expected
    assert not concerns(message(kind, family, table, subsystem=1), watched)


def test_a_notification_that_is_none_concerns_us() -> None:
    assert concerns(bytes(20), set()) and not concerns(b"", set())


def test_sentences() -> None:
    sentence = (
        "legacy iptables has a filter table, which nft does not show: if `ip6tables-legacy -S FORWARD` drops or "
        "rejects, run `ip6tables-legacy -I FORWARD -i weave -j ACCEPT; ip6tables-legacy -I FORWARD -o weave -j ACCEPT`"
    )
    assert legacy_sentence("ip6", "weave") == sentence
    state = Firewall(refused=(("inet guard forward (policy drop)", "cannot accept pods"),), legacy=("ip6",),
                     unready="br_netfilter is missing", problem="no nft")  # fmt: skip
    assert warnings(state, "weave") == [
        "chain inet guard forward (policy drop) can drop what pods send and get, and could not be answered: "
        "cannot accept pods",
        sentence, "br_netfilter is missing", "no nft",
    ]  # fmt: skip
    assert warnings(Firewall(answered=(("ip filter FORWARD (policy drop)", "FORWARD"),)), "weave") == []


def test_a_look_that_took_long_is_followed_by_a_long_rest() -> None:
    assert rest(0.0) == rest(FIREWALL_LOOK_SPACING * FIREWALL_LOOK_SHARE) == FIREWALL_LOOK_SPACING
    assert rest(3.0) == 3.0 / FIREWALL_LOOK_SHARE
