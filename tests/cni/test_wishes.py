"""What a configuration asks for beside an address: MAC, MTU, routes and the keys of "ipam", as values."""

from typing import Any

import pytest
from cni.test_verbs import parsed, refused

from weave_router import limits
from weave_router.cni.codes import Code
from weave_router.host.pod import PodRoute

MAC = "02:00:00:00:00:01"


def test_ways_to_ask_for_a_mac() -> None:
    asked: list[dict[str, Any]] = [
        {"runtimeConfig": {"mac": MAC}}, {"args": {"cni": {"mac": MAC}}},
        {"runtimeConfig": {"mac": "02-00-00-00-00-01"}, "args": {"cni": {"mac": "02:00:00:00:00:02"}}},
    ]  # fmt: skip
    assert [parsed(config).mac for config in asked] == [MAC] * 3
    assert parsed({}, args=f"MAC={MAC.upper()}").mac == MAC and parsed({}).mac == ""


@pytest.mark.parametrize("mac", ["x", "02:00:00:00:00", "01:00:00:00:00:01", "00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff",
                                 "02:00:00:00:00:01:02", "0200.0000.0001"])  # fmt: skip
def test_what_is_no_mac_of_a_station(mac: str) -> None:
    code, sentence = refused({"cniVersion": "1.1.0", "name": "w", "runtimeConfig": {"mac": mac}})
    assert code == Code.BAD_CONFIG and mac in sentence


def test_routes_of_the_configuration_and_of_ipam() -> None:
    request = parsed({"mtu": 1300, "routes": [{"dst": "192.0.2.0/24", "gw": "10.32.0.9"}, {"dst": "::/0", "gw": None}],
                      "ipam": {"type": "weave-router-cni", "ips": ["10.32.0.5"], "routes": [{"dst": "0.0.0.0/0"}]}})
    assert (request.mtu, request.wanted) == (1300, ("10.32.0.5",))
    assert [(str(route.to), str(route.gateway or "-")) for route in request.routes] == [
        ("192.0.2.0/24", "10.32.0.9"), ("::/0", "-"), ("0.0.0.0/0", "-")]  # fmt: skip
    assert all(isinstance(route, PodRoute) for route in request.routes)


@pytest.mark.parametrize(("config", "code", "words"), [
    ({"routes": [{"dst": "192.0.2.1/24"}]}, Code.BAD_CONFIG, "host bits"),
    ({"routes": [{"dst": "x"}]}, Code.BAD_CONFIG, "'x'"),
    ({"routes": [{"dst": "192.0.2.0/24", "gw": "y"}]}, Code.BAD_CONFIG, "'y'"),
    ({"routes": [{"dst": "192.0.2.0/24", "gw": "fd00::1"}]}, Code.BAD_CONFIG, "other family"),
    ({"routes": [{"dst": "0.0.0.0/0"}], "ipam": {"routes": [{"dst": "0.0.0.0/0"}]}}, Code.BAD_CONFIG, "twice"),
    ({"routes": [{"dst": "192.0.2.0/24", "priority": 5}]}, Code.UNSUPPORTED_FIELD, '"priority"'),
    ({"routes": [{"gw": "10.32.0.1"}]}, Code.UNDECODABLE, "dst"),
    ({"routes": {"dst": "0.0.0.0/0"}}, Code.UNDECODABLE, "routes"),
    ({"mtu": "1300"}, Code.UNDECODABLE, "mtu"),
    ({"ipam": {"type": "host-local"}}, Code.UNSUPPORTED_FIELD, "'host-local'"),
    ({"ipam": {"subnet": "10.32.1.0/24"}}, Code.UNSUPPORTED_FIELD, '"subnet"'),
    ({"ipam": {"routes": 5}}, Code.UNDECODABLE, "ipam"),
])  # fmt: skip
def test_wishes_that_are_refused(config: dict[str, Any], code: Code, words: str) -> None:
    said, sentence = refused({"cniVersion": "1.1.0", "name": "w", **config})
    assert said == code and words in sentence, sentence
    if code != Code.UNDECODABLE:
        assert parsed(config, "DEL").routes == ()  # it takes away what is on record


def test_routes_up_to_the_bound() -> None:
    many = [{"dst": f"192.0.{n}.0/24"} for n in range(limits.CNI_ROUTES_MAX + 1)]
    assert len(parsed({"routes": many[1:]}).routes) == limits.CNI_ROUTES_MAX
    assert refused({"cniVersion": "1.1.0", "name": "w", "routes": many})[0] == Code.UNDECODABLE
