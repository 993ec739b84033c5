"""What a start needs of Kubernetes before there are addresses: the universe, the token, a first block.

A node that was a member before has all of it on disk (STATE_FILE, TOKEN_FILE) and asks nobody; the first start of a
node waits for the API server as long as it takes and says what for. What follows from what is found is decided in
ranges.py, tokens.py and core.py. Called by room_driver.py before the router's loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Final

import msgspec

from weave_router import limits
from weave_router.config import LaunchConfig
from weave_router.errors import BadPacket, UserError
from weave_router.ipam.number import prefix_v6_of
from weave_router.mesh.targets import literal
from weave_router.tunnel.token import Token, TokenSet

from . import objects, ranges, tokens
from .core import Kube
from .objects import UniverseLease
from .values import Answer, Call, World, back_off

if TYPE_CHECKING:
    from .api_driver import Api

_log = logging.getLogger(__name__)
STATE_FILE: Final = "kubernetes.json"
TOKEN_FILE: Final = "token"
TARGETS_FILE: Final = "kubernetes-nodes"


@dataclass(frozen=True)
class Start:
    """What the cluster agreed on, as this node has it on disk."""

    universe: UniverseLease
    tokens: TokenSet
    families: str = "46"
    """``4``: no Node has an IPv6 address; ``46``, ``64``: some have, this one's first InternalIP is of that family."""

    @property
    def prefix_v6(self) -> bytes:
        return IPv6Network(self.universe.prefix_v6).network_address.packed[:12]


class _Saved(msgspec.Struct):
    universe: str
    range: str
    range_ipv6: str
    token_id: str
    families: str = "46"


def server_of(config: LaunchConfig) -> str:
    """The API server. UserError where this is no pod and nothing was said instead."""
    if config.kubernetes_api:
        return config.kubernetes_api
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise UserError("--kubernetes: this is no pod (KUBERNETES_SERVICE_HOST is not set): give --kubernetes-api")
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def make_api(config: LaunchConfig) -> Api:
    """Loads the client, which a start does without on a node that was a member before. UserError: see ``server_of``."""
    from .api_driver import Api

    return Api(server_of(config), config.service_account)


def on_disk(config: LaunchConfig) -> Start | None:
    """None: this node's first start. UserError if --ipalloc-range says otherwise."""
    directory = Path(config.state_dir)
    try:
        saved = msgspec.json.decode((directory / STATE_FILE).read_bytes(), type=_Saved)
        held = TokenSet.parse((directory / TOKEN_FILE).read_text())
        start = Start(UniverseLease(bytes.fromhex(saved.universe), saved.range, saved.range_ipv6, saved.token_id), held,
                      saved.families)
        IPv4Network(saved.range), start.prefix_v6
    except FileNotFoundError:
        return None
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise UserError(f"{directory / STATE_FILE} or {TOKEN_FILE} beside it cannot be read ({error}): remove both, "
                        "the next start asks the cluster again") from None
    check_range(config, start.universe)
    return start


def keep(config: LaunchConfig, universe: UniverseLease, held: TokenSet, families: str) -> None:
    """Atomically, readable by root alone."""
    saved = _Saved(universe.universe.hex(), universe.range_v4, universe.prefix_v6, universe.token_id, families)
    text = "".join(f"{token}\n" for token in held).encode()
    for name, data in ((TOKEN_FILE, text), (STATE_FILE, msgspec.json.encode(saved))):
        _write(Path(config.state_dir) / name, data)


def keep_targets(config: LaunchConfig, targets: Iterable[str]) -> None:
    """For a start while the API server is away: whom to call."""
    _write(Path(config.state_dir) / TARGETS_FILE, "".join(f"{target}\n" for target in targets).encode())


def kept_targets(config: LaunchConfig) -> list[str]:
    """Addresses; none where there is no such file, or what it holds is no text."""
    try:
        lines = (Path(config.state_dir) / TARGETS_FILE).read_text().split()
    except (OSError, ValueError):
        return []
    return [line for line in lines[: 2 * limits.KUBE_TARGETS] if literal(line) is not None]


def _write(path: Path, data: bytes) -> None:
    fresh = path.with_suffix(".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)


def families_of(nodes: Iterable[objects.Node], own: str) -> str:
    """As the cluster's machines have them, in the order of this one's, or of the first listed (see ``Start``)."""
    versions = {node.name: [ip_address(address).version for address in node.addresses] for node in nodes}
    if not any(6 in found for found in versions.values()):
        return "4"
    first = versions.get(own) or next(found for found in versions.values() if found)
    return "64" if first[:1] == [6] else "46"


def check_range(config: LaunchConfig, universe: UniverseLease) -> None:
    if config.range_given and config.ipalloc_range != universe.range_v4:
        raise UserError(f"--ipalloc-range says {config.ipalloc_range}, the cluster's Lease {objects.UNIVERSE} says "
                        f"{universe.range_v4}: leave the option out, or set the cluster up anew")


class Beginning:
    """The first start of a node. ``held``: of --token-file, which then is the token."""

    def __init__(self, config: LaunchConfig, api: Api, rng: Random, held: TokenSet | None = None) -> None:
        self._config = config
        self._api = api
        self._rng = rng
        self._held = held
        namespace = config.namespace
        self._leases = f"apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._secrets = f"api/v1/namespaces/{namespace}/secrets"

    async def run(self) -> Start:
        """Secret first, then the Lease: a universe without a token cannot come about."""
        failures = 0
        while True:
            try:
                start = await self._once()
                keep(self._config, start.universe, start.tokens, start.families)
                return start
            except _NotYetError as waiting:
                _log.warning("waiting for Kubernetes", extra={"for": str(waiting)})
            await asyncio.sleep(back_off(failures, self._rng))
            failures += 1

    async def _once(self) -> Start:
        universe = await self._universe()
        if universe is not None:
            check_range(self._config, universe)
        held = await self._tokens(universe.token_id if universe else "")
        if universe is None:
            universe = await self._found(held)
            check_range(self._config, universe)
            held = await self._tokens(universe.token_id)
        return Start(universe, held, families_of(await self._nodes(), self._config.node_name))

    async def _ask(self, method: str, path: str, body: bytes = b"", **params: str) -> Answer:
        answer = await self._api.request(Call(method, path, "start", body=body, params=params))
        if answer.status not in (200, 201, 404, 409):
            raise _NotYetError(f"{method} {path}: {answer.detail or f'the API server answered {answer.status}'}")
        return answer

    async def _universe(self) -> UniverseLease | None:
        answer = await self._ask("GET", f"{self._leases}/{objects.UNIVERSE}")
        try:
            return None if answer.status == 404 else objects.universe_untrusted(answer.body)
        except BadPacket as error:
            raise _NotYetError(error.reason) from None

    async def _tokens(self, lease_token: str) -> TokenSet:
        if self._held is not None:
            return self._held
        while True:
            answer = await self._ask("GET", f"{self._secrets}/{objects.NAME}")
            try:
                text = None if answer.status == 404 else objects.secret_text_untrusted(answer.body)
            except BadPacket as error:
                raise _NotYetError(f"Secret {objects.NAME} {error.reason}") from None
            verdict = tokens.judge(text, lease_token, None)
            if verdict.tokens is not None:
                return verdict.tokens
            if not verdict.create:
                raise _NotYetError(verdict.sentence)
            line = f"{Token.new(os.urandom)}\n"
            await self._ask("POST", self._secrets, objects.secret_body(line))  # 409: another was first, and is read

    async def _found(self, held: TokenSet) -> UniverseLease:
        choice = ranges.choose(await self._cluster())
        v6 = choice.prefix_v6 or IPv6Network((prefix_v6_of(held.domain) + bytes(4), 96))
        lease = UniverseLease(secrets.token_bytes(16), str(choice.range_v4), str(v6), f"{held.first.id:08x}")
        await self._ask("POST", self._leases, lease.body())
        _log.info("universe", extra={"range": lease.range_v4, "from": choice.source})
        stands = await self._universe()
        if stands is None:
            raise _NotYetError(f"Lease {objects.UNIVERSE} is gone again")
        return stands

    async def _cluster(self) -> ranges.Cluster:
        config = self._config
        kubeadm = await self._ask_softly("api/v1/namespaces/kube-system/configmaps/kubeadm-config")
        services = await self._ask_softly("apis/networking.k8s.io/v1/servicecidrs")
        nodes = await self._nodes()
        try:
            settings = objects.read_untrusted(kubeadm, objects.ConfigMap).data if kubeadm else None
            items = objects.read_untrusted(services, objects.Page).items if services else None
            cidrs = [objects.read_untrusted(item, objects.ServiceCidr).spec for item in items or ()]
        except BadPacket as error:
            raise _NotYetError(error.reason) from None
        return ranges.Cluster(
            option=config.ipalloc_range if config.range_given else "",
            kubeadm=(settings or {}).get("ClusterConfiguration", ""),
            pod_cidrs=tuple(cidr for node in nodes for cidr in node.pod_cidrs),
            services=tuple(cidr for spec in cidrs if spec for cidr in spec.cidrs or ()),
            service_host=os.environ.get("KUBERNETES_SERVICE_HOST", ""),
            nodes=tuple(address for node in nodes for address in node.addresses))

    async def _ask_softly(self, path: str) -> bytes:
        """What older or other clusters do not have, or do not let us read."""
        answer = await self._api.request(Call("GET", path, "start"))
        if answer.status in (403, 404):
            return b""
        if answer.status != 200:
            raise _NotYetError(f"GET {path}: {answer.detail or answer.status}")
        return answer.body

    async def _nodes(self) -> list[objects.Node]:
        answer = await self._ask("GET", "api/v1/nodes", limit="50")
        try:
            items = objects.read_untrusted(answer.body, objects.Page).items or []
            return [objects.node_untrusted(item) for item in items]
        except BadPacket as error:
            raise _NotYetError(error.reason) from None


class _NotYetError(Exception):
    """What is waited for."""


async def first_block(core: Kube, api: Api, has_one: Callable[[], bool], now: Callable[[], float], rng: Random) -> None:
    """Run the core by hand until this node owns a block: the bridge needs its address before anything else stands."""
    failures = 0
    while not has_one():
        if core.own is None or not core.leases_synced:
            problem = await _look(core, api, now)
            if problem:
                _log.warning("waiting for a block of addresses", extra={"for": problem})
                await asyncio.sleep(back_off(failures, rng))
                failures += 1
                continue
        core.handle_timer(now(), World())
        call = core.next_call(now())
        if call is not None:
            core.answered(await api.request(call), now())
            continue
        if has_one():
            return
        problem = "; ".join(core.troubles.values()) or "a free one"
        core.leases_synced = False  # look again
        _log.warning("waiting for a block of addresses", extra={"for": problem})
        await asyncio.sleep(back_off(failures, rng))
        failures += 1


async def _look(core: Kube, api: Api, now: Callable[[], float]) -> str:
    """One Node and all Leases, as a watch would have shown them."""
    settings = core.settings
    node = await api.request(Call("GET", f"api/v1/nodes/{settings.node}", "start"))
    try:
        if node.status != 200:
            return node.detail or f"Node {settings.node}: the API server answered {node.status}"
        core.nodes = {settings.node: objects.node_untrusted(node.body)}
        leases: list[objects.Lease] = []
        more = ""
        path = f"apis/coordination.k8s.io/v1/namespaces/{settings.namespace}/leases"
        while True:
            params = {"labelSelector": f"{objects.LABEL}={objects.NAME}", "limit": "500"}
            answer = await api.request(Call("GET", path, "start", params=params | ({"continue": more} if more else {})))
            if answer.status != 200:
                return answer.detail or f"Leases: the API server answered {answer.status}"
            page = objects.read_untrusted(answer.body, objects.Page)
            for item in page.items or ():
                lease = _lease(item, settings.range_v4)
                if lease is not None:
                    leases.append(lease)
            more = page.metadata.continue_
            if not more:
                break
    except BadPacket as error:
        return error.reason
    core.nodes_synced = True
    core.leases_listed(leases, now())
    core.nodes_synced = False  # one Node is not all: nobody is gone by it
    return ""


def _lease(item: msgspec.Raw, range_v4: IPv4Network) -> objects.Lease | None:
    try:
        return objects.lease_untrusted(item, range_v4)
    except BadPacket:
        return None
