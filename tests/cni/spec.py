"""Results and errors as the specification (containernetworking/cni, SPEC.md) has them, version by version.

Written from its text, not from the product: fields that a version does not have are refused, addresses are read, and
an index of an interface must lead to one. Called by the tests of this room.
"""

from ipaddress import ip_address, ip_interface, ip_network
from typing import Annotated, Any

import msgspec
from msgspec import Meta

Mac = Annotated[str, Meta(pattern="^([0-9a-f]{2}:){5}[0-9a-f]{2}$")]
Name = Annotated[str, Meta(pattern="^[^/:\\s]{1,15}$")]


class Strict(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    pass


class Dns(Strict):
    nameservers: list[str] = []
    domain: str = ""
    search: list[str] = []
    options: list[str] = []


class Interface(Strict):
    name: Name
    mac: Mac = ""
    sandbox: str = ""


class Interface11(Interface):
    mtu: Annotated[int, Meta(gt=0)] = 0
    socketPath: str = ""
    pciID: str = ""


class Ip(Strict):
    address: str
    gateway: str = ""
    interface: Annotated[int, Meta(ge=0)] | None = None


class Ip03(Ip, kw_only=True):
    version: Annotated[str, Meta(pattern="^[46]$")]


class Route(Strict):
    dst: str
    gw: str = ""


class Route11(Route):
    mtu: int = 0
    advmss: int = 0
    priority: int = 0
    table: int = 0
    scope: int = 0


class Result03(Strict):
    cniVersion: str
    interfaces: list[Interface]
    ips: list[Ip03]
    routes: list[Route] = []
    dns: Dns = Dns()


class Result10(Result03):
    ips: list[Ip]


class Result11(Result10):
    interfaces: list[Interface11]
    routes: list[Route11] = []


class Error(Strict):
    cniVersion: str
    code: Annotated[int, Meta(gt=0)]
    msg: Annotated[str, Meta(min_length=1)]
    details: str = ""


RESULTS = {"0.3.0": Result03, "0.3.1": Result03, "0.4.0": Result03, "1.0.0": Result10, "1.1.0": Result11}


def check_result(value: Any, version: str) -> None:
    """Of an ADD. AssertionError or msgspec.ValidationError where it is not as the version has it."""
    result: Any = msgspec.convert(value, RESULTS[version])
    assert result.cniVersion == version
    for ip in result.ips:
        address = ip_interface(ip.address)
        assert "/" in ip.address and (not ip.gateway or ip_address(ip.gateway).version == address.version), ip
        assert getattr(ip, "version", str(address.version)) == str(address.version), ip
        assert ip.interface is None or ip.interface < len(result.interfaces), ip
    for route in result.routes:
        assert not route.gw or ip_address(route.gw).version == ip_network(route.dst).version, route


def check_error(value: Any, version: str) -> None:
    assert msgspec.convert(value, Error).cniVersion == version
