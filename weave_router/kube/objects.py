"""API objects as this room sees them: the few fields it needs, read out of bytes that anybody may have edited.

A Node has 20 KB, of which this keeps some hundred bytes; the rest is skipped by the decoder and never becomes an
object. Also the bodies that are written. Pure: called by core.py and the watches; knows no connection.
"""

from __future__ import annotations

import base64
import ipaddress
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Any, Final, TypeVar

import msgspec

from weave_router import limits
from weave_router.errors import BadPacket
from weave_router.ipam.founding import block_prefix, network_of

LABEL: Final = "app.kubernetes.io/name"
NAME: Final = "weave-router"
UNIVERSE: Final = "weave-router-universe"
_BLOCK: Final = "weave-router-block-"
_OURS: Final = "weave-router.io/"
T = TypeVar("T")


class _Struct(msgspec.Struct, rename="camel", kw_only=True):
    """What is absent or of no interest is left out."""


class Meta(_Struct):
    name: str = ""
    uid: str = ""
    resource_version: str = ""
    creation_timestamp: str = ""
    annotations: dict[str, str] | None = None
    labels: dict[str, str] | None = None


class Address(_Struct):
    type: str = ""
    address: str = ""


class Condition(_Struct):
    type: str = ""
    status: str = ""


class NodeStatus(_Struct):
    addresses: list[Address] | None = None
    conditions: list[Condition] | None = None


class NodeSpec(_Struct):
    pod_cidrs: list[str] | None = msgspec.field(name="podCIDRs", default=None)


class NodeMeta(_Struct):
    """Without the annotations: they are the large part of a Node, and none is ours."""

    name: str = ""
    uid: str = ""
    resource_version: str = ""
    creation_timestamp: str = ""


class RawNode(_Struct):
    metadata: NodeMeta
    spec: NodeSpec | None = None
    status: NodeStatus | None = None


class LeaseSpec(_Struct):
    holder_identity: str | None = None
    lease_transitions: int | None = None


class RawLease(_Struct):
    metadata: Meta
    spec: LeaseSpec | None = None


class RawSecret(_Struct):
    metadata: Meta
    data: dict[str, str] | None = None


class RawPod(_Struct):
    metadata: NodeMeta


class ListMeta(_Struct):
    resource_version: str = ""
    continue_: str = msgspec.field(name="continue", default="")


class Page(_Struct):
    metadata: ListMeta
    items: list[msgspec.Raw] | None = None


class WatchLine(_Struct):
    type: str = ""
    object: msgspec.Raw = msgspec.Raw(b"{}")


class Status(_Struct):
    code: int = 0
    reason: str = ""
    message: str = ""


class ConfigMap(_Struct):
    data: dict[str, str] | None = None


class Cidrs(_Struct):
    cidrs: list[str] | None = None


class ServiceCidr(_Struct):
    spec: Cidrs | None = None


def read_untrusted(data: bytes | msgspec.Raw, kind: type[T]) -> T:
    """One object. BadPacket for what is not one."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError):
        raise BadPacket(f"not a {kind.__name__}") from None


# --- nodes --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Node:
    """``addresses``: InternalIPs, one per family. ``problem``: what is wrong with it, as the end of a sentence."""

    name: str
    uid: str
    version: str
    created: str
    addresses: tuple[str, ...]
    pod_cidrs: tuple[str, ...]
    available: bool
    """Its condition NetworkUnavailable says False."""
    problem: str = ""


def node_untrusted(data: bytes | msgspec.Raw) -> Node:
    raw = read_untrusted(data, RawNode)
    status = raw.status or NodeStatus()
    found: dict[int, str] = {}
    problem = ""
    for address in status.addresses or ():
        if address.type != "InternalIP":
            continue
        try:
            ip = ipaddress.ip_address(address.address)
        except ValueError:
            problem = f"has {address.address[:64]!r} as InternalIP, which is no address"
            continue
        if ip.version in found:
            problem = f"has two InternalIPs of one family, {found[ip.version]} counts"
        found.setdefault(ip.version, str(ip))
    if not found and not problem:
        problem = "has no InternalIP"
    cidrs = tuple((raw.spec.pod_cidrs or ()) if raw.spec else ())
    conditions = {c.type: c.status for c in status.conditions or ()}
    meta = raw.metadata
    if not meta.name or not meta.uid or len(meta.name) > limits.RECORD_NAME_MAX:
        raise BadPacket("Node without name or uid")
    return Node(meta.name, meta.uid, meta.resource_version, meta.creation_timestamp, tuple(found.values()),
                cidrs[:2], conditions.get("NetworkUnavailable") == "False", problem)


# --- leases -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Lease:
    """A block's. ``holder``: ``NODE-UID.IDENTITY`` or empty; ``gen``: leaseTransitions. ``foreign``: why it is not one
    of ours although its name is; its block counts as taken."""

    block: int
    name: str
    uid: str
    version: str
    holder: str
    gen: int
    node: str
    foreign: str = ""

    @property
    def node_uid(self) -> str:
        return self.holder.rpartition(".")[0]

    @property
    def identity(self) -> str:
        return self.holder.rpartition(".")[2]


def lease_name(network: IPv4Network) -> str:
    """``weave-router-block-10-32-0-0-26``"""
    return f"{_BLOCK}{str(network.network_address).replace('.', '-')}-{network.prefixlen}"


def lease_untrusted(data: bytes | msgspec.Raw, range_v4: IPv4Network) -> Lease | None:
    """A block's Lease; None: another one of ours. BadPacket for a name that no block of this range has."""
    raw = read_untrusted(data, RawLease)
    meta, spec = raw.metadata, raw.spec or LeaseSpec()
    if not meta.name.startswith(_BLOCK):
        return None
    block = _block_untrusted(meta.name, range_v4)
    annotations = meta.annotations or {}
    said = annotations.get(_OURS + "cidr", "")
    holder = spec.holder_identity or ""
    gen = spec.lease_transitions or 0
    foreign = ""
    if said != str(network_of(range_v4, block)):
        foreign = f"its annotation says {said[:64]!r}"
    elif holder and (holder.count(".") != 1 or len(holder) > 253):
        foreign = f"its holder {holder[:64]!r} is no node"
    elif not 0 <= gen < 1 << 31:
        foreign = f"its leaseTransitions are {gen}"
    return Lease(block, meta.name, meta.uid, meta.resource_version, holder, gen,
                 annotations.get(_OURS + "node", "")[: limits.RECORD_NAME_MAX], foreign)


def _block_untrusted(name: str, range_v4: IPv4Network) -> int:
    parts = name.removeprefix(_BLOCK).split("-")
    try:
        network = IPv4Network(".".join(parts[:4]) + "/" + "".join(parts[4:5]))
    except ValueError:
        raise BadPacket("Lease of no block") from None
    length = block_prefix(range_v4)
    if len(parts) != 5 or network.prefixlen != length or not network.subnet_of(range_v4):
        raise BadPacket("Lease of a block outside the range")
    if lease_name(network) != name:
        raise BadPacket("Lease of no block")
    return (int(network.network_address) - int(range_v4.network_address)) >> (32 - length)


def lease_body(block: int, range_v4: IPv4Network, holder: str, gen: int, node: str, *, uid: str = "",
               version: str = "") -> bytes:
    """``uid`` and ``version`` are preconditions of a replacement."""
    network = network_of(range_v4, block)
    spec: dict[str, Any] = {"leaseTransitions": gen}
    if holder:
        spec["holderIdentity"] = holder
    notes = {_OURS + "cidr": str(network)} | ({_OURS + "node": node} if holder else {})
    return _lease(lease_name(network), notes, spec, uid, version)


def _lease(name: str, annotations: dict[str, str], spec: dict[str, Any], uid: str, version: str) -> bytes:
    meta: dict[str, Any] = {"name": name, "labels": {LABEL: NAME}, "annotations": annotations}
    meta |= ({"uid": uid} if uid else {}) | ({"resourceVersion": version} if version else {})
    return msgspec.json.encode({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": meta, "spec": spec})


@dataclass(frozen=True, slots=True)
class UniverseLease:
    """What all nodes agreed on."""

    universe: bytes
    range_v4: str
    prefix_v6: str
    token_id: str
    uid: str = ""
    version: str = ""

    def body(self) -> bytes:
        notes = {"universe": self.universe.hex(), "range": self.range_v4, "range-ipv6": self.prefix_v6,
                 "token-id": self.token_id}
        return _lease(UNIVERSE, {_OURS + key: value for key, value in notes.items()}, {}, self.uid, self.version)


def universe_untrusted(data: bytes | msgspec.Raw) -> UniverseLease:
    raw = read_untrusted(data, RawLease)
    notes = {key.removeprefix(_OURS): value for key, value in (raw.metadata.annotations or {}).items()}
    try:
        universe = bytes.fromhex(notes["universe"])
        range_v4, range_v6 = IPv4Network(notes["range"]), ipaddress.IPv6Network(notes["range-ipv6"])
        int(notes["token-id"], 16)
    except (KeyError, ValueError):
        raise BadPacket("the universe's Lease was edited: its annotations cannot be read") from None
    fits = limits.RANGE_PREFIX_MIN <= range_v4.prefixlen <= limits.RANGE_PREFIX_MAX
    if len(universe) != 16 or range_v6.prefixlen != 96 or not fits:
        raise BadPacket("the universe's Lease was edited: its annotations have no sense")
    return UniverseLease(universe, str(range_v4), str(range_v6), notes["token-id"].lower(), raw.metadata.uid,
                         raw.metadata.resource_version)


# --- the token's Secret -------------------------------------------------------------------------------------------


def secret_text_untrusted(data: bytes | msgspec.Raw) -> str:
    """The token lines. BadPacket for a Secret without."""
    raw = read_untrusted(data, RawSecret)
    coded = (raw.data or {}).get("token", "")
    if not coded or len(coded) > 2 * limits.TOKEN_FILE_MAX:
        raise BadPacket("has no key `token` with token lines")
    try:
        return base64.b64decode(coded, validate=True).decode("ascii")
    except ValueError:
        raise BadPacket("holds no text in its key `token`") from None


def secret_body(text: str) -> bytes:
    return msgspec.json.encode({
        "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
        "metadata": {"name": NAME, "labels": {LABEL: NAME}},
        "data": {"token": base64.b64encode(text.encode()).decode()}})


# --- events, conditions -------------------------------------------------------------------------------------------


def event_body(node: str, uid: str, reason: str, message: str, kind: str, at: str, suffix: str, by: str) -> bytes:
    """An event about a Node, by the router of another or the same: those live in namespace default."""
    return msgspec.json.encode({
        "apiVersion": "v1", "kind": "Event",
        "metadata": {"name": f"{node[:200]}.{suffix}", "namespace": "default"},
        "involvedObject": {"kind": "Node", "name": node, "uid": uid, "apiVersion": "v1"},
        "reason": reason, "message": message[:1000], "type": kind, "count": 1, "firstTimestamp": at,
        "lastTimestamp": at, "source": {"component": NAME, "host": by}, "reportingComponent": NAME,
        "reportingInstance": by})


def condition_body(at: str) -> bytes:
    return msgspec.json.encode({"status": {"conditions": [{
        "type": "NetworkUnavailable", "status": "False", "reason": "WeaveRouterReady",
        "message": "weave-router serves this node", "lastTransitionTime": at, "lastHeartbeatTime": at}]}})
