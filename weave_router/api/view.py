"""From what the rooms say of themselves to the sections of the status page. Reads, changes nothing.

``View`` holds references to the parts of a running router and builds the structs of schema.py when somebody asks.
router.py adds the commands to it, which makes the RouterApi whole; knows no HTTP.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, ip_address
from typing import TYPE_CHECKING, Any

from weave_router.api import schema
from weave_router.api.addresses import AddressBook
from weave_router.cni.attachments import Attachments
from weave_router.config import LaunchConfig
from weave_router.errors import UserError
from weave_router.fastpath import engine as fastpath
from weave_router.host import forwarding, install_driver, kernel_driver
from weave_router.ipam.number import Universe
from weave_router.mesh.core import Mesh
from weave_router.mesh.events import LinkStatus, MeshStatus, TargetStatus
from weave_router.mesh.record import FLAG_NAT, FLAG_PLAINTEXT, Endpoint, Record
from weave_router.mesh.routes import Routes
from weave_router.mesh.status import REASONS
from weave_router.reasons import Reason, text_of
from weave_router.store import Attachment
from weave_router.tunnel.driver import TunnelDriver
from weave_router.tunnel.state import State
from weave_router.tunnel.status import ConnectionStatus
from weave_router.tunnel.token import TokenSet

if TYPE_CHECKING:
    from weave_router.kube.room_driver import Room

_HEADERS = {4: 28, 6: 48}  # outer IP and UDP
_TARGET_STATES: Mapping[str, schema.ConnectionState] = {
    "waiting": "connecting", "connecting": "connecting", "connected": "established", "retrying": "retrying",
    "self": "self",
}  # fmt: skip


@dataclass
class Parts:
    """What a running router is made of, as far as the page shows it."""

    config: LaunchConfig
    node_id: bytes
    incarnation: int
    started_at: float
    universe: Universe
    pod_mtu: int
    engine: fastpath.Engine
    tunnel: TunnelDriver
    mesh: Mesh
    routes: Routes
    attachments: Attachments
    tokens: TokenSet
    terminations: dict[str, int]
    counts: Callable[[], Mapping[str, int]]
    warnings: list[str]
    firewall: Callable[[], forwarding.Firewall]
    book: AddressBook | None = None
    """None: addresses are given by hand."""
    kube: "Room | None" = None
    """None: outside Kubernetes."""
    refusal: Callable[[], str] = str
    """Why no pod is let in any more."""


def endpoint_text(endpoint: Endpoint | None) -> str:
    if endpoint is None:
        return ""
    host, port = endpoint
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class View:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._tap_dropped = 0

    def set_tokens(self, tokens: TokenSet) -> None:
        self._parts.tokens = tokens

    # -- names -------------------------------------------------------------------------------------------------------

    def _record(self, node_id: bytes) -> Record | None:
        signed = self._parts.mesh.table.get(node_id)
        return signed.record if signed else None

    def name_of(self, node_id: bytes) -> str:
        record = self._record(node_id)
        return record.shown_name if record else node_id.hex()[:12]

    def slot_of(self, text: str) -> int:
        """Of the one peer that a name or the beginning of an id names."""
        found = [signed.node_id for signed in self._parts.mesh.table
                 if text in (signed.record.name, signed.record.nickname)
                 or (len(text) >= 4 and signed.node_id.hex().startswith(text.lower()))]
        found = [node_id for node_id in found if node_id != self._parts.node_id]
        if len(found) != 1:
            raise UserError(f"{text} names {len(found)} peers: give name or id of one (`weave-router status peers`)")
        return self._parts.routes.slots.of(found[0])

    def number_of(self, text: str) -> int:
        """Of a pod of this node, or of an address."""
        for attachment in self._parts.attachments.all():
            if attachment.container == text:
                return attachment.numbers[0]
        try:
            number = self._parts.universe.number_of(ip_address(text))
        except ValueError:
            number = None
        if number is None:
            raise UserError(f"{text} is neither a pod of this node nor an address of {self._parts.universe.range_v4}")
        return number

    # -- the router itself -------------------------------------------------------------------------------------------

    def service(self) -> schema.Service:
        parts, config = self._parts, self._parts.config
        ciphers = ", ".join(f"{name} ({parts.engine.ciphers[suite]})" for suite, name in
                            ((fastpath.SUITE_AESGCM, "aes-256-gcm"), (fastpath.SUITE_CHACHAPOLY, "chacha20-poly1305"))
                            if suite in parts.engine.ciphers)
        return schema.Service(
            version=parts.mesh.config.version, id=parts.node_id.hex(), name=config.name, nickname=config.nickname,
            incarnation=parts.incarnation, started_at=parts.started_at, uptime=time.time() - parts.started_at,
            host=config.host, port=config.port, encryption=schema.PLAINTEXT if config.plaintext else ciphers,
            discovery=not config.no_discovery, trusted_subnets=config.trusted_subnets, pod_mtu=parts.pod_mtu,
            status="uninstalling" if parts.refusal() else parts.firewall().unready or "ready",
            bridge=config.bridge, domain=parts.tokens.domain.hex(), refused=tuple(sorted(config.refuse)),
        )

    # -- connections -------------------------------------------------------------------------------------------------

    def connections(self) -> tuple[schema.Connection, ...]:
        mesh = self._parts.mesh.status()
        links = {link.node_id: link for link in mesh.links}
        peers = [self._connection(status, links.get(status.node_id)) for status in self._parts.tunnel.status()]
        known = {status.node_id for status in self._parts.tunnel.status()}
        others = [self._from_target(target) for target in mesh.targets
                  if target.node_id is None or target.node_id not in known]
        return (*peers, *others)

    def _connection(self, status: ConnectionStatus, link: LinkStatus | None) -> schema.Connection:
        record = self._record(status.node_id)
        remote = status.remote or (link.remote if link else None) or (record.endpoints[0] if record and record.endpoints
                                                                      else None)
        inbound = status.initiator is False if link is None else not link.initiator
        encrypted = schema.PLAINTEXT if status.plaintext else status.cipher
        headers = _HEADERS[6 if remote and ":" in remote[0] else 4]
        return schema.Connection(
            encryption=encrypted, state=_state_of(status, link), address=endpoint_text(remote),
            direction="inbound" if inbound else "outbound", peer=status.node_id.hex(),
            nickname=self.name_of(status.node_id), link="up" if link else "down", data=str(status.state),
            path="direct" if status.remote else "", path_mtu=status.mtu + headers if status.mtu else None,
            pod_mtu=record.pod_mtu if record else None, rtt=status.rtt if status.rtt is not None else
            (link.rtt if link else None), tx_packets=status.tx_packets, tx_bytes=status.tx_bytes,
            rx_packets=status.rx_packets, rx_bytes=status.rx_bytes, since=_unix(status.since),
            reason=status.reason.value if status.reason else "", detail=_sentence(status.reason),
        )

    def _from_target(self, target: TargetStatus) -> schema.Connection:
        own = target.state == "self"
        return schema.Connection(
            encryption="", state=_TARGET_STATES.get(target.state, "connecting"), address=target.text,
            direction="outbound", reason=Reason.SELF.value if own else "", detail=self._target_detail(target),
            peer=target.node_id.hex() if target.node_id else "", retry_at=self._mesh_time(target.retry_at),
        )

    def _target_detail(self, target: TargetStatus) -> str:
        if target.state == "self":
            return text_of(Reason.SELF)
        return REASONS.get(target.reason, target.reason)

    def _mesh_time(self, at: float | None) -> float | None:
        """The mesh runs on the loop's clock, which is CLOCK_MONOTONIC."""
        return None if at is None else time.time() + at - time.monotonic()

    def targets(self) -> tuple[schema.Target, ...]:
        return tuple(
            schema.Target(address=target.text, state=_TARGET_STATES.get(target.state, "connecting"),
                          peer=target.node_id.hex() if target.node_id else "", detail=self._target_detail(target))
            for target in self._parts.mesh.status().targets
        )

    # -- peers -------------------------------------------------------------------------------------------------------

    def peers(self) -> tuple[schema.Peer, ...]:
        mesh = self._parts.mesh.status()
        return tuple(self._peer(signed.node_id, signed.record, mesh) for signed in self._parts.mesh.table)

    def _peer(self, node_id: bytes, record: Record, mesh: MeshStatus) -> schema.Peer:
        return schema.Peer(
            id=node_id.hex(), nickname=record.shown_name, incarnation=record.incarnation, seq=record.seq,
            version=record.version, addresses=tuple(endpoint_text(e) for e in record.endpoints),
            reachable=node_id in mesh.reachable or node_id == self._parts.node_id, pod_mtu=record.pod_mtu,
            plaintext=bool(record.flags & FLAG_PLAINTEXT), behind_nat=bool(record.flags & FLAG_NAT),
            prefixes=tuple(f"{IPv4Address(p.number)}/{p.prefix_len}" for p in record.prefixes),
            token_sending=f"{record.token_sent:08x}",
            tokens_accepted=tuple(f"{token:08x}" for token in record.tokens_accepted),
            links=tuple(self._peer_link(link.node_id, link.rtt) for link in record.links),
        )

    def _peer_link(self, node_id: bytes, code: int) -> schema.PeerLink:
        record = self._record(node_id)
        address = endpoint_text(record.endpoints[0]) if record and record.endpoints else ""
        return schema.PeerLink(peer=node_id.hex(), nickname=self.name_of(node_id), address=address,
                               rtt=1.25**code / 1e6 if code else None)

    # -- addresses ---------------------------------------------------------------------------------------------------

    def ipam(self) -> schema.Ipam:
        parts = self._parts
        return schema.Ipam(
            range=str(parts.universe.range_v4), range_ipv6=str(parts.config.of_pods(parts.universe.network_v6) or ""),
            default_subnet=parts.config.ipalloc_default_subnet or str(parts.universe.range_v4),
            bridge_address=parts.config.bridge_address, attachments=tuple(self._attachments()),
            blocks=tuple(self._blocks()), conflicts=tuple(self._conflicts()),
            mac_conflicts=tuple(self._mac_conflicts()),
            **(parts.book.fields(parts.mesh.status().reachable, self.name_of) if parts.book else {}),
        )

    def addresses(self) -> tuple[schema.Address, ...]:
        """By hand: those of the pods."""
        if self._parts.book is not None:
            return self._parts.book.addresses()
        return tuple(
            schema.Address(address=pod.address.partition("/")[0], state="used", ipv6=pod.ipv6.partition("/")[0],
                           holder=f"container {pod.container_id} ({pod.ifname})", container_id=pod.container_id,
                           ifname=pod.ifname)
            for pod in self._attachments())

    def _attachments(self) -> Iterable[schema.Attachment]:
        return map(self.attachment, self._parts.attachments.all())

    def attachment(self, held: Attachment) -> schema.Attachment:
        number = held.numbers[0]
        ipv6 = f"{self._parts.universe.ipv6_of(number)}/96" if self._parts.config.families > 1 else ""
        return schema.Attachment(
            container_id=held.container, ifname=held.ifname, address=f"{IPv4Address(number)}/{held.prefix_len}",
            ipv6=ipv6, mac=held.mac.hex(":"), pod=held.pod,
            netns=f"inode {held.netns_inode}", port=held.host_ifname,
        )

    def _blocks(self) -> Iterable[schema.Block]:
        reachable = self._parts.mesh.status().reachable
        for signed in self._parts.mesh.table:
            networks = [IPv4Network((p.number, p.prefix_len)) for p in signed.record.prefixes]
            if networks:
                yield schema.Block(
                    peer=signed.node_id.hex(), nickname=signed.record.shown_name, prefixes=tuple(map(str, networks)),
                    addresses=sum(network.num_addresses for network in networks),
                    reachable=signed.node_id in reachable or signed.node_id == self._parts.node_id,
                )

    def _conflicts(self) -> Iterable[schema.AddressConflict]:
        for conflict in self._parts.routes.conflicts():
            yield schema.AddressConflict(
                address=f"{IPv4Address(conflict.number)}/{conflict.prefix_len}", owner=self.name_of(conflict.holder),
                others=tuple(self.name_of(node_id) for node_id in conflict.others),
            )

    def _mac_conflicts(self) -> Iterable[schema.MacConflict]:
        for conflict in self._parts.routes.mac_conflicts():
            yield schema.MacConflict(
                mac=conflict.mac.hex(":"), owner=self.name_of(conflict.holder),
                others=tuple(self.name_of(node_id) for node_id in conflict.others),
                addresses=tuple(str(IPv4Address(number)) for number in conflict.numbers),
            )

    # -- Kubernetes ----------------------------------------------------------------------------------------------------

    def kubernetes(self) -> schema.Kubernetes:
        room = self._parts.kube
        if room is None:
            return schema.Kubernetes()
        core = room.core
        ready = core.nodes_synced and core.leases_synced
        return schema.Kubernetes(
            status="ready" if ready else "waiting", node=core.settings.node, namespace=core.settings.namespace,
            nodes=len(core.nodes), targets=tuple(core.targets()), own_blocks=len(set(core.blocks.owned()) - core.given),
            blocks=sum(bool(lease.holder) for lease in core.leases.values()),
            token=core.universe.token_id if core.universe else "", troubles=tuple(core.troubles.values()),
            counters=dict(core.counts))

    # -- the fast path -----------------------------------------------------------------------------------------------

    def workers(self) -> tuple[schema.Worker, ...]:
        engine = self._parts.engine
        return tuple(
            schema.Worker(
                index=index, counters=c, bundle_fill=_ratio(c["bundled_frames"], c["bundles"]),
                segments_per_send=_ratio(c["datagrams_sent"], c["sends"]),
                segments_per_receive=_ratio(c["datagrams_received"], c["receives"]),
                segments_per_write=_ratio(c["frames_out"], c["tap_writes"] - _made_here(c)),
                queue_depth=state.queue_bytes, realtime=state.realtime,
            )
            for index, (c, state) in enumerate(zip(engine.worker_counters(), engine.worker_states(), strict=True))
        )

    def drops(self) -> dict[str, int]:
        ours, kernel = self._parts.engine.drops(), kernel_driver.drops(self._parts.config.tap)
        # The device counts both, one a moment before the other: what is told must not go back.
        self._tap_dropped = max(self._tap_dropped, kernel["kernel_tap_queue"] - ours["kernel_flow_credit"])
        return ours | kernel | {"kernel_tap_queue": self._tap_dropped}

    def counters(self) -> dict[str, int]:
        mesh = self._parts.mesh.status()
        figures = dict(self._parts.engine.counters())
        figures |= {f"mesh {name}": count for name, count in mesh.counters.items()}
        figures |= {f"strangers {stranger.reason}": stranger.count for stranger in mesh.strangers}
        figures |= {f"tunnel {name}": count for name, count in self._parts.counts().items()}
        figures["mac_conflicts_seen"] = self._parts.routes.mac_conflicts_seen
        figures["connection_terminations"] = sum(self._parts.terminations.values())
        return figures

    def trace(self) -> Sequence[tuple[int, ...]]:
        return self._parts.engine.trace()

    def tables(self) -> dict[str, Sequence[Any]]:
        parts = self._parts
        return {
            "stations": [(mac.hex(":"), slot, age) for mac, slot, age in parts.engine.stations()],
            "outside": [(node.hex(), [f"{IPv4Address(n)}/{length}" for n, length in keys])
                        for node, keys in parts.routes.outside().items()],
            "strangers": [(endpoint_text(remote), reason.value) for remote, reason in parts.tunnel.strangers.items()],
            "sessions": [(s.node_id.hex(), s.slot, str(s.state), s.epoch, s.sessions, s.handshakes, s.natted)
                         for s in parts.tunnel.status()],
        }

    def firewall(self) -> schema.Firewall:
        state = self._parts.firewall()
        answers = [schema.FirewallAnswer(chain=chain, place=place) for chain, place in state.answered]
        answers += [schema.FirewallAnswer(chain=chain, reason=why) for chain, why in state.refused]
        return schema.Firewall(chains=tuple(answers), legacy=state.legacy, bridge_netfilter=state.bridge_netfilter,
                               hairpin=state.hairpin, healed=state.healed)

    # -- tokens, warnings ----------------------------------------------------------------------------------------------

    def tokens(self) -> schema.Tokens:
        tokens = self._parts.tokens
        ids = [token.id for token in tokens]
        reachable = self._parts.mesh.status().reachable
        behind = [signed for signed in self._parts.mesh.table
                  if signed.record.token_sent != ids[0] or sorted(signed.record.tokens_accepted) != sorted(ids)]
        waits_for = tuple(signed.record.shown_name for signed in behind if signed.node_id in reachable)
        return schema.Tokens(
            next_edit="wait" if waits_for else "safe", waits_for=waits_for,
            away=tuple(signed.record.shown_name for signed in behind if signed.node_id not in reachable),
            sending=f"{tokens.first.id:08x}", accepted=tuple(f"{token.id:08x}" for token in tokens),
            nodes=tuple(
                schema.TokenUse(peer=signed.node_id.hex(), nickname=signed.record.shown_name,
                                sending=f"{signed.record.token_sent:08x}",
                                accepted=tuple(f"{token:08x}" for token in signed.record.tokens_accepted))
                for signed in self._parts.mesh.table
            ),
        )

    def warnings(self) -> tuple[str, ...]:
        mesh = self._parts.mesh.status()
        found = list(self._parts.warnings)
        if self._parts.kube is not None:
            found += self._parts.kube.core.troubles.values()
        if self._parts.config.plaintext:
            found.append("--plaintext: the payload of pods is not encrypted")
        if self._parts.config.install_cni:
            found += filter(None, [install_driver.ahead(install_driver.STANDARD_NETWORKS)])
        if self._parts.refusal():
            found.append(self._parts.refusal())
        if mesh.clone is not None:
            found.append("another running node has this node's identity (a copied state directory): stop one "
                         "of the two and remove its state directory")
        for name, ids in mesh.duplicate_names.items():
            found.append(f"{len(ids)} nodes are called {name}: commands need an id prefix to tell them apart")
        for conflict in self._conflicts():
            found.append(f"{conflict.address} is announced by {', '.join((conflict.owner, *conflict.others))}: "
                         f"all nodes send to {conflict.owner}; detach it on the others")
        for both in self._mac_conflicts():
            found.append(f"MAC {both.mac} is had by pods of {', '.join((both.owner, *both.others))} "
                         f"({', '.join(both.addresses)}), given while these were parted: it is {both.owner}'s; "
                         "delete the pod on the others")
        for node_id, keys in self._parts.routes.outside().items():
            found.append(f"node {self.name_of(node_id)} announces {len(keys)} addresses outside "
                         f"{self._parts.universe.range_v4}: it was started with another --ipalloc-range")
        for key, owner, node_id in self._parts.routes.refused():
            found.append(f"{IPv4Address(key[0])}/{key[1]}, which {self.name_of(node_id)} announces, lies in a block of "
                         f"{self.name_of(owner)}: it is not followed; detach it there")
        found += forwarding.warnings(self._parts.firewall(), self._parts.config.bridge)
        found += self._parts.book.warnings() if self._parts.book else []
        found += [f"found changed and put back: {what}" for what in self._parts.attachments.mended]
        return tuple(found + self._mtu_warnings())

    def _mtu_warnings(self) -> list[str]:
        own = self._parts.pod_mtu
        return [f"node {signed.record.shown_name} has pod MTU {signed.record.pod_mtu}, this node {own}: set one with "
                "--mtu"
                for signed in self._parts.mesh.table if signed.record.pod_mtu not in (0, own)]


def fits(attachment: Attachment, request: schema.DetachRequest) -> bool:
    """Everything that the request names must be so; the interface is eth0 unless it names another or none at all."""
    return (
        request.container_id in ("", attachment.container)
        and request.netns_inode in (None, attachment.netns_inode)
        and request.ifname in ("", attachment.ifname)
        and request.address.partition("/")[0] in ("", *(str(IPv4Address(number)) for number in attachment.numbers))
        and not (request.netns and request.netns_inode is None and not request.container_id and not request.address)
    )


def _state_of(status: ConnectionStatus, link: LinkStatus | None) -> schema.ConnectionState:
    """Weave's words for both halves taken together."""
    if status.state in (State.ESTABLISHED, State.SUSPECT) or (link is not None and status.state is State.IDLE):
        return "established"
    if status.state is State.CONNECTING:
        return "pending"
    return "failed" if status.state is State.FAILED and link is None else "retrying"


def _sentence(reason: Reason | None) -> str:
    return "" if reason is None else text_of(reason)


def _unix(boottime: float | None) -> float | None:
    if boottime is None:
        return None
    return round(time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + boottime, 2)


def _made_here(counters: Mapping[str, int]) -> int:
    """Answers that the worker wrote by itself: they carry nothing from a peer."""
    return counters["arp_answered"] + counters["nd_answered"] + counters["too_big_sent"]


def _ratio(part: int, whole: int) -> float | None:
    return round(part / whole, 2) if whole > 0 else None
