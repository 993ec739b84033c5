"""The CNI's words: what a runtime asks (environment and configuration, as the shim hands them on) and what it gets.

Pure: every version of the specification from 0.3.0 to 1.1.0, its error codes, requests and results as values. The
request comes from outside: bounded, typed, duplicates refused. Knows no attachment; service.py carries requests out.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Interface, ip_interface
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from weave_router.cni import wishes
from weave_router.cni.addresses import MacTakenError, NoAddressError
from weave_router.cni.codes import CniError, Code
from weave_router.errors import BadPacket, UsageError, UserError
from weave_router.host.pod import PodRoute
from weave_router.ipam.allocator import AddressTakenError, ExhaustedError, NotNowError
from weave_router.limits import CNI_CONTAINER_ID_MAX, CNI_GC_MAX, CNI_NESTING_MAX, POD_ADDRESSES_MAX

VERSIONS: Final = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
_POD_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,62})/[a-z0-9]([-a-z0-9.]{0,252})", re.ASCII)
_SINCE: Final = {"ADD": "0.3.0", "DEL": "0.3.0", "CHECK": "0.4.0", "GC": "1.1.0"}
Verb = Literal["ADD", "DEL", "CHECK", "GC"]
Key = tuple[str, str]
"""(container id, interface name)"""


def error_reply(error: CniError, version: str = "") -> dict[str, Any]:
    return {"cniVersion": version or error.version or VERSIONS[-1], "code": int(error.code), "msg": str(error)}


# -- requests ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """One verb. ``wanted``: addresses asked for; ``valid``: what a GC spares; ``inode`` 0: no namespace was there;
    ``mtu`` 0: the router's."""

    verb: Verb
    version: str
    network: str
    container: str = ""
    ifname: str = ""
    netns: str = ""
    inode: int = 0
    boot_id: str = ""
    wanted: tuple[str, ...] = ()
    mac: str = ""
    mtu: int = 0
    routes: tuple[PodRoute, ...] = ()
    pod: str = ""
    """NAMESPACE/NAME in Kubernetes."""
    dns: dict[str, Any] | None = None
    previous: dict[str, Any] | None = None
    valid: frozenset[Key] = frozenset()

    @property
    def key(self) -> Key:
        return self.container, self.ifname


_Text = wishes.Text


class _Relayed(msgspec.Struct, forbid_unknown_fields=True):
    """What the shim sends under the key ``cni``. Its texts hold bytes as Latin-1."""

    command: Verb
    config: str
    container: str = ""
    ifname: str = ""
    netns: str = ""
    args: str = ""
    boot_id: Annotated[str, Meta(max_length=40)] = ""
    netns_inode: Annotated[int, Meta(ge=0)] = 0


class _Dns(msgspec.Struct, omit_defaults=True):
    nameservers: tuple[_Text, ...] | None = None
    domain: _Text | None = None
    search: tuple[_Text, ...] | None = None
    options: tuple[_Text, ...] | None = None


class _Cni(msgspec.Struct):
    ips: tuple[_Text, ...] | None = None
    mac: _Text | None = None


class _Args(msgspec.Struct):
    cni: _Cni | None = None


class _Valid(msgspec.Struct):
    container: str = msgspec.field(name="containerID")
    ifname: str


class _Previous(msgspec.Struct):
    """Only the shape of what is chained on."""

    interfaces: list[dict[str, Any]] | None = None
    ips: list[dict[str, Any]] | None = None
    routes: list[dict[str, Any]] | None = None
    dns: _Dns | None = None


class _Config(msgspec.Struct):
    """Fields that nobody here knows belong to others and are left alone."""

    version: str = msgspec.field(name="cniVersion", default="0.1.0")
    name: str = ""
    dns: _Dns | None = None
    args: _Args | None = None
    runtime: _Cni | None = msgspec.field(name="runtimeConfig", default=None)
    previous: dict[str, Any] | None = msgspec.field(name="prevResult", default=None)
    valid: Annotated[tuple[_Valid, ...], Meta(max_length=CNI_GC_MAX)] | None = msgspec.field(
        name="cni.dev/valid-attachments", default=None
    )
    ipam: dict[str, Any] | None = None
    mtu: int | None = None
    routes: wishes.Routes | None = None


_CONTAINER = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_.-]{{0,{CNI_CONTAINER_ID_MAX - 1}}}")
_IFNAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")
_NETWORK = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,255}")


def request_untrusted(body: dict[str, Any]) -> Request | CniError:
    """The request under the key ``cni``, or what to answer. BadPacket: no shim of ours wrote this."""
    try:
        relayed = msgspec.convert(body.get("cni"), _Relayed)
    except msgspec.ValidationError as error:
        raise BadPacket(f"cni: {error}") from error
    try:
        return _request(relayed)
    except CniError as error:
        return error


def _request(relayed: _Relayed) -> Request:
    config = _config(relayed.config)
    if config.version not in VERSIONS:
        raise CniError(Code.INCOMPATIBLE_VERSION, f"cniVersion {config.version[:32]!r} is none of {VERSIONS}")
    try:
        return _of_version(relayed, config)
    except CniError as error:
        error.version = config.version
        raise


def _of_version(relayed: _Relayed, config: _Config) -> Request:
    if VERSIONS.index(config.version) < VERSIONS.index(_SINCE[relayed.command]):
        raise CniError(Code.INCOMPATIBLE_VERSION, f"there is no {relayed.command} in version {config.version}")
    if not _NETWORK.fullmatch(config.name):
        raise CniError(Code.BAD_CONFIG, f"\"name\" {config.name[:64]!r} of the network is empty or no name")
    if relayed.command == "GC":
        valid = frozenset((one.container, one.ifname) for one in config.valid or ())
        return Request("GC", config.version, config.name, valid=valid)
    _check_pod(relayed)
    return _pod_request(relayed, config)


def _check_pod(relayed: _Relayed) -> None:
    if not _CONTAINER.fullmatch(relayed.container):
        raise CniError(Code.BAD_ENVIRONMENT, f"CNI_CONTAINERID {relayed.container[:64]!r} is no container id")
    if not _IFNAME.fullmatch(relayed.ifname):
        raise CniError(Code.BAD_ENVIRONMENT, f"CNI_IFNAME {relayed.ifname[:64]!r} is no usable interface name: 1 to 15 "
                                             "letters, digits, '_', '.', '-'")


def _pod_request(relayed: _Relayed, config: _Config) -> Request:
    request = Request(
        relayed.command, config.version, config.name, relayed.container, relayed.ifname,
        _bytes_of(relayed.netns).decode(errors="replace"), relayed.netns_inode, relayed.boot_id,
        dns=None if config.dns is None else msgspec.to_builtins(config.dns), previous=_previous(config),
    )  # fmt: skip
    if relayed.command == "DEL":  # what it takes away is on record
        return request
    arguments, ipam = _arguments(relayed.args), _ipam(config)
    named, runtime = (config.args and config.args.cni) or _Cni(), config.runtime or _Cni()
    return replace(
        request,
        wanted=runtime.ips or named.ips or tuple(arguments.get("IP", "").replace(",", " ").split()) or ipam.ips or (),
        mac=wishes.mac_of(runtime.mac or named.mac or arguments.get("MAC", "")),
        mtu=config.mtu or 0,
        routes=wishes.routes_of((config.routes or ()) + (ipam.routes or ())),
        pod=_pod_name(arguments),
    )


def _pod_name(arguments: Mapping[str, str]) -> str:
    """For people alone, so what is no name is left out."""
    namespace, name = arguments.get("K8S_POD_NAMESPACE", ""), arguments.get("K8S_POD_NAME", "")
    return f"{namespace}/{name}" if _POD_NAME.fullmatch(f"{namespace}/{name}") else ""


def _ipam(config: _Config) -> wishes.Ipam:
    wishes.check_ipam(config.ipam or {})
    try:
        return msgspec.convert(config.ipam or {}, wishes.Ipam)
    except msgspec.ValidationError as error:
        raise CniError(Code.UNDECODABLE, f"the network configuration: ipam: {error}") from None


def _previous(config: _Config) -> dict[str, Any] | None:
    if config.previous is not None:
        try:
            msgspec.convert(config.previous, _Previous)
        except msgspec.ValidationError as error:
            raise CniError(Code.UNDECODABLE, f"prevResult: {error}") from None
    return config.previous


def _bytes_of(text: str) -> bytes:
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        raise CniError(Code.UNDECODABLE, "the request is not the shim's: characters beyond a byte") from None


def _config(text: str) -> _Config:
    try:
        value = _JSON.decode(_bytes_of(text).decode())
        _check_nesting(value)
        return msgspec.convert(value, _Config)
    except RecursionError:
        raise CniError(Code.UNDECODABLE, f"the network configuration nests deeper than {CNI_NESTING_MAX}") from None
    except msgspec.ValidationError as error:
        raise CniError(Code.UNDECODABLE, f"the network configuration: {error}") from None
    except ValueError as error:
        raise CniError(Code.UNDECODABLE, f"the network configuration is not JSON: {error}") from None


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{double[:64]!r} stands twice in one object")
    return made


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is no number")


_JSON: Final = json.JSONDecoder(object_pairs_hook=_without_doubles, parse_constant=_no_constant)


def _check_nesting(value: Any, depth: int = 0) -> None:
    if depth > CNI_NESTING_MAX:
        raise RecursionError
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            _check_nesting(inner, depth + 1)


def _arguments(text: str) -> dict[str, str]:
    """CNI_ARGS; keys of others (IgnoreUnknown) are left alone."""
    found = {}
    for pair in filter(None, text.split(";")):
        name, equals, value = pair.partition("=")
        if not equals:
            raise CniError(Code.BAD_ENVIRONMENT, f"CNI_ARGS: {pair[:64]!r} should be KEY=VALUE")
        found[name] = value
    return found


def wanted_addresses(request: Request, universe_v4: IPv4Network, number_of: Any) -> tuple[IPv4Interface, ...]:
    """What was asked for, the pod's MAC following from the first; none: any. IPv6 is the same host number, so it may
    come along or stand alone."""
    numbers = dict.fromkeys(_number(text, universe_v4, number_of) for text in request.wanted)
    if len(numbers) > POD_ADDRESSES_MAX:
        raise CniError(Code.ADDRESS_REFUSED, f"{len(numbers)} addresses are more than a pod can have "
                                             f"({POD_ADDRESSES_MAX}, and the IPv6 address of each): ask for fewer")
    return tuple(IPv4Interface((number, universe_v4.prefixlen)) for number in numbers)


def _number(text: str, universe_v4: IPv4Network, number_of: Any) -> int:
    try:
        interface = ip_interface(text)
    except ValueError:
        raise CniError(Code.BAD_CONFIG, f"{text[:64]!r} is no address, with or without a prefix length") from None
    number = number_of(interface.ip)
    if number is None:
        raise CniError(Code.ADDRESS_REFUSED, f"{interface.ip} is not inside the range {universe_v4} (or its IPv6 twin)")
    return int(number)


_CODES: Final[dict[type[UserError], Code]] = {
    NotNowError: Code.TRY_LATER,
    ExhaustedError: Code.NO_ADDRESS,
    NoAddressError: Code.NO_ADDRESS,
    AddressTakenError: Code.ADDRESS_REFUSED,
    MacTakenError: Code.ADDRESS_REFUSED,
}


def code_of(error: UserError) -> Code:
    """For a sentence of another room."""
    if isinstance(error, CniError):
        return error.code
    for kind, code in _CODES.items():
        if isinstance(error, kind):
            return code
    return Code.BAD_ENVIRONMENT if isinstance(error, UsageError) else Code.WIRING_FAILED


# -- results -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wired:
    """A pod as it stands. A gateway that is None: its default route is not ours."""

    bridge: str
    bridge_mac: str
    port: str
    port_mac: str
    mac: str
    mtu: int
    ipv4: IPv4Interface
    ipv6: IPv6Interface | None
    gateway: IPv4Address
    default_v4: bool = True
    gateway_v6: str = ""
    routes: tuple[PodRoute, ...] = ()
    ipv6_first: bool = False
    more: tuple[IPv4Interface | IPv6Interface, ...] = ()


def result(request: Request, wired: Wired) -> dict[str, Any]:
    """Of the request's version; what stood in prevResult comes first."""
    before = request.previous or {}
    interfaces = list(before.get("interfaces") or ())
    inside = len(interfaces) + 2
    made: list[dict[str, Any]] = [
        {"name": wired.bridge, "mac": wired.bridge_mac},
        {"name": wired.port, "mac": wired.port_mac},
        {"name": request.ifname, "mac": wired.mac, "sandbox": request.netns},
    ]
    if request.version == "1.1.0":
        made = [{**interface, "mtu": wired.mtu} for interface in made]
    return {
        "cniVersion": request.version,
        "interfaces": interfaces + made,
        "ips": [*(before.get("ips") or ()), *_ips(request.version, wired, inside)],
        "routes": [*(before.get("routes") or ()), *_routes(wired)],
        "dns": request.dns or before.get("dns") or {},
    }


def _ips(version: str, wired: Wired, inside: int) -> list[dict[str, Any]]:
    ips: list[dict[str, Any]] = [{"address": str(wired.ipv4), "gateway": str(wired.gateway), "interface": inside}]
    if wired.ipv6 is not None:
        gateway = {"gateway": wired.gateway_v6} if wired.gateway_v6 else {}
        ips.insert(0 if wired.ipv6_first else 1, {"address": str(wired.ipv6), **gateway, "interface": inside})
    ips += [{"address": str(one), "interface": inside} for one in wired.more]
    if VERSIONS.index(version) < VERSIONS.index("1.0.0"):
        return [{"version": "6" if ":" in ip["address"] else "4", **ip} for ip in ips]
    return ips


def _routes(wired: Wired) -> list[dict[str, str]]:
    routes = [{"dst": "0.0.0.0/0", "gw": str(wired.gateway)}] if wired.default_v4 else []
    routes += [{"dst": "::/0", "gw": wired.gateway_v6}] if wired.gateway_v6 else []
    return routes + [{"dst": str(route.to), "gw": str(route.gateway)} for route in wired.routes]


def addresses_of(result: dict[str, Any] | None) -> set[str]:
    """All addresses of a result, for CHECK."""
    return {str(ip.get("address", "")) for ip in (result or {}).get("ips") or ()}
