"""Requests and results as values: what the router takes from a shim, and what it answers in each version."""

import json
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Interface
from typing import Any

import pytest
from cni.shim import VERSIONS

from weave_router import limits
from weave_router.cni import verbs
from weave_router.cni.addresses import NoAddressError
from weave_router.cni.codes import CniError, Code
from weave_router.cni.verbs import Request, Wired
from weave_router.errors import BadPacket, UsageError, UserError
from weave_router.ipam.allocator import AddressTakenError, ExhaustedError, NotNowError

UNIVERSE = IPv4Network("10.32.0.0/12")
WIRED = Wired("weave", "0a:58:0a:20:00:01", "vethwr1", "02:00:00:00:00:01", "0a:58:0a:20:00:05", 1368,
              IPv4Interface("10.32.0.5/12"), IPv6Interface("fd00::a20:5/96"), IPv4Address("10.32.0.1"), True,
              "fd00::a20:1")  # fmt: skip


def body(config: Any, command: str = "ADD", **fields: Any) -> dict[str, Any]:
    text = config if isinstance(config, str) else json.dumps(config)
    return {"cni": {"command": command, "config": text, "container": "c1", "ifname": "eth0", **fields}}


def parsed(config: dict[str, Any], command: str = "ADD", **fields: Any) -> Request:
    request = verbs.request_untrusted(body({"cniVersion": "1.1.0", "name": "weave", **config}, command, **fields))
    assert isinstance(request, Request), request
    return request


def refused(config: Any, command: str = "ADD", **fields: Any) -> tuple[Code, str]:
    error = verbs.request_untrusted(body(config, command, **fields))
    assert isinstance(error, CniError), error
    return error.code, str(error)


@pytest.mark.parametrize("request_", [
    {}, {"cni": None}, {"cni": []}, {"cni": {"command": "ADD"}}, {"cni": {"command": "VERSION", "config": ""}},
    body({}, netns_inode=-1), body({}, netns_inode="1"), body({}, boot_id="b" * 41), body({}, more=1),
])  # fmt: skip
def test_what_no_shim_sends(request_: dict[str, Any]) -> None:
    with pytest.raises(BadPacket):
        verbs.request_untrusted(request_)


def test_a_gc_lists_so_many_and_no_more() -> None:
    def listed(count: int) -> dict[str, Any]:
        return {"cni.dev/valid-attachments": [{"containerID": f"c{n}", "ifname": "eth0"} for n in range(count)]}

    assert len(parsed(listed(limits.CNI_GC_MAX), "GC").valid) == limits.CNI_GC_MAX
    code, _ = refused({"cniVersion": "1.1.0", "name": "w", **listed(limits.CNI_GC_MAX + 1)}, "GC")
    assert code == Code.UNDECODABLE
    for nothing in ({}, {"cni.dev/valid-attachments": None}):
        assert parsed(nothing, "GC").valid == frozenset()


def test_nulls_of_a_go_runtime_mean_nothing() -> None:
    nothing = dict.fromkeys(("dns", "args", "runtimeConfig", "prevResult", "ipam", "routes", "mtu"))
    assert parsed(nothing) == parsed({}) == parsed({"ipam": {}, "routes": [], "capabilities": {"ips": True}})


@pytest.mark.parametrize(("args", "pod"), [
    ("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-1", "default/web-1"), ("K8S_POD_NAME=web-1", ""),
    ("K8S_POD_NAMESPACE=default;K8S_POD_NAME=a/b", ""), (f"K8S_POD_NAMESPACE=d;K8S_POD_NAME={'x' * 254}", ""), ("", ""),
])  # fmt: skip
def test_the_pods_name_in_kubernetes(args: str, pod: str) -> None:
    assert parsed({}, args=args).pod == pod


def test_text_of_the_configuration_is_bytes_as_latin_1() -> None:
    name = "/run/netns/ä"
    assert parsed({}, netns=name.encode().decode("latin-1")).netns == name
    assert refused("\u4e00")[0] == Code.UNDECODABLE
    assert refused('{"cniVersion":"1.1.0","name":"\xff"}')[0] == Code.UNDECODABLE


def test_container_ids_up_to_the_bound() -> None:
    longest = "x" * limits.CNI_CONTAINER_ID_MAX
    assert parsed({}, container=longest).container == longest
    assert refused({"cniVersion": "1.1.0", "name": "w"}, container=longest + "x")[0] == Code.BAD_ENVIRONMENT


@pytest.mark.parametrize(("wanted", "expected"), [
    (("10.32.0.5",), ["10.32.0.5/12"]), (("10.32.0.5/32",), ["10.32.0.5/12"]),
    (("10.32.0.5", "10.32.0.5/12"), ["10.32.0.5/12"]),
    (("10.32.0.5", "10.32.0.6"), ["10.32.0.5/12", "10.32.0.6/12"]),
    (tuple(f"10.32.0.{n}" for n in range(1, limits.POD_ADDRESSES_MAX + 2)), Code.ADDRESS_REFUSED),
    (("192.0.2.1",), Code.ADDRESS_REFUSED), (("x",), Code.BAD_CONFIG), (("10.32.0.5/33",), Code.BAD_CONFIG),
])  # fmt: skip
def test_wanted_addresses(wanted: tuple[str, ...], expected: list[str] | Code) -> None:
    request = Request("ADD", "1.0.0", "weave", wanted=wanted)

    def number_of(address: Any) -> int | None:
        return int(address) if address in UNIVERSE else None

    if isinstance(expected, list):
        assert [str(address) for address in verbs.wanted_addresses(request, UNIVERSE, number_of)] == expected
        assert verbs.wanted_addresses(Request("ADD", "1.0.0", "weave"), UNIVERSE, number_of) == ()
    else:
        with pytest.raises(CniError) as caught:
            verbs.wanted_addresses(request, UNIVERSE, number_of)
        assert caught.value.code == expected


@pytest.mark.parametrize("version", VERSIONS)
def test_the_nodes_primary_family_comes_first(version: str) -> None:
    request = Request("ADD", version, "weave", "c1", "eth0", "/run/netns/x")
    six, four = (ip["address"] for ip in verbs.result(request, replace(WIRED, ipv6_first=True))["ips"])
    assert (six, four) == ("fd00::a20:5/96", "10.32.0.5/12")
    (only,) = verbs.result(request, replace(WIRED, ipv6_first=True, ipv6=None, gateway_v6=""))["ips"]
    assert only["address"] == "10.32.0.5/12"


@pytest.mark.parametrize("version", VERSIONS)
def test_result(version: str) -> None:
    request = Request("ADD", version, "weave", "c1", "eth0", "/run/netns/x", dns={"nameservers": ["10.0.0.10"]})
    mtu = {"mtu": 1368} if version == "1.1.0" else {}
    four, six = ({"version": "4"}, {"version": "6"}) if version < "1.0.0" else ({}, {})
    assert verbs.result(request, WIRED) == {
        "cniVersion": version,
        "interfaces": [
            {"name": "weave", "mac": "0a:58:0a:20:00:01", **mtu},
            {"name": "vethwr1", "mac": "02:00:00:00:00:01", **mtu},
            {"name": "eth0", "mac": "0a:58:0a:20:00:05", "sandbox": "/run/netns/x", **mtu},
        ],
        "ips": [
            {**four, "address": "10.32.0.5/12", "gateway": "10.32.0.1", "interface": 2},
            {**six, "address": "fd00::a20:5/96", "gateway": "fd00::a20:1", "interface": 2},
        ],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.32.0.1"}, {"dst": "::/0", "gw": "fd00::a20:1"}],
        "dns": {"nameservers": ["10.0.0.10"]},
    }


def test_codes_of_sentences_from_other_rooms() -> None:
    assert verbs.code_of(NotNowError("x")) == Code.TRY_LATER
    assert verbs.code_of(ExhaustedError("x")) == verbs.code_of(NoAddressError("x")) == Code.NO_ADDRESS
    assert verbs.code_of(AddressTakenError("x")) == Code.ADDRESS_REFUSED
    assert verbs.code_of(UsageError("x")) == Code.BAD_ENVIRONMENT
    assert verbs.code_of(UserError("x")) == Code.WIRING_FAILED
    assert verbs.code_of(CniError(Code.TRY_LATER, "x")) == Code.TRY_LATER
    assert verbs.error_reply(CniError(Code.TRY_LATER, "x"), "0.4.0") == {"cniVersion": "0.4.0", "code": 11, "msg": "x"}
