"""/metrics: counters of the fast path and of the rooms, read when somebody scrapes and never before.

Names of Weave (``weave_connections``, ``weave_connection_terminations_total``, ``weave_ips``, ``weave_max_ips``) where
they mean the same; ours begin with ``weave_router_``. ``encryption`` is the first label of whatever has it, so that
plaintext cannot be overlooked; labels are printed in the order of the alphabet, so no other may sort before it.
Called by handlers.py on the event loop's thread.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Network
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from weave_router.api import schema
from weave_router.api.router_api import RouterApi

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
_OWN_FAMILY: Final = frozenset({"connection_terminations"})
_CONNECTION_LABELS: Final = ("encryption", "peer", "nickname")
_CONNECTION_COUNTERS: Final = {
    "tx_bytes": "Bytes sent to the peer.",
    "rx_bytes": "Bytes received from the peer.",
    "tx_packets": "Datagrams sent to the peer.",
    "rx_packets": "Datagrams received from the peer.",
}


class RouterCollector(Collector):
    """Asks the router at every scrape."""

    def __init__(self, router: RouterApi) -> None:
        self._router = router

    def describe(self) -> list[Metric]:
        """Nothing in advance: registering must not ask a router that is still starting."""
        return []

    def collect(self) -> Iterator[Metric]:
        connections = self._router.connections()
        counters = self._router.counters()
        yield from _service(self._router.service())
        yield from _connections(connections, counters)
        yield from _connection_figures(connections)
        yield from _peers(self._router.peers(), self._router.tokens())
        yield from _addresses(self._router.ipam())
        yield from _workers(self._router.workers())
        yield _drops(self._router.drops())
        for name, count in counters.items():
            if name not in _OWN_FAMILY:
                yield CounterMetricFamily(f"weave_router_{_name(name)}", f"Count of {name}.", value=count)
        yield GaugeMetricFamily("weave_router_warnings", "Warnings on the status page.", len(self._router.warnings()))


class Metrics:
    """An own registry: nothing of the process's default one but its collector of memory, CPU and descriptors."""

    def __init__(self, router: RouterApi) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(RouterCollector(router))
        ProcessCollector(registry=self._registry)

    def scrape(self) -> bytes:
        return generate_latest(self._registry)


def _name(text: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_]", "_", text)


def _service(service: schema.Service) -> Iterator[Metric]:
    labels = ("encryption", "version", "id", "nickname")
    info = GaugeMetricFamily("weave_router_info", "Who this is.", labels=labels)
    info.add_metric([service.encryption, service.version, service.id, service.nickname or service.name], 1)
    yield info
    yield GaugeMetricFamily("weave_router_ready", "1 when the status is ready.", int(service.status == "ready"))
    yield GaugeMetricFamily("weave_router_start_time_seconds", "Unix time of the start.", service.started_at)
    yield GaugeMetricFamily("weave_router_pod_mtu_bytes", "MTU of this node's pods.", service.pod_mtu)


def _encryption(connection: schema.Connection) -> str:
    """Weave says ``yes`` or nothing; a session without sealing has its own word."""
    sealed = connection.encryption and connection.encryption != schema.PLAINTEXT
    return "yes" if sealed else connection.encryption


def _connections(connections: tuple[schema.Connection, ...], counters: Mapping[str, int]) -> Iterator[Metric]:
    family = GaugeMetricFamily("weave_connections", "Number of connections.", labels=("encryption", "state", "type"))
    counts = Counter((_encryption(c), c.state, c.path) for c in connections)
    for labels, count in sorted(counts.items()):
        family.add_metric(list(labels), count)
    yield family
    terminations = counters.get("connection_terminations", 0)
    yield CounterMetricFamily("weave_connection_terminations", "Connections that ended.", value=terminations)


def _connection_figures(connections: tuple[schema.Connection, ...]) -> Iterator[Metric]:
    labelled = _by_peer(connections).items()
    for name, what in _CONNECTION_COUNTERS.items():
        counter = CounterMetricFamily(f"weave_router_connection_{name}", what, labels=_CONNECTION_LABELS)
        for labels, connection in labelled:
            counter.add_metric(list(labels), getattr(connection, name))
        yield counter
    rtt = GaugeMetricFamily("weave_router_connection_rtt_seconds", "Round trip.", labels=_CONNECTION_LABELS)
    mtu = GaugeMetricFamily("weave_router_connection_path_mtu_bytes", "Path MTU.", labels=_CONNECTION_LABELS)
    reasons = GaugeMetricFamily(
        "weave_router_connection_reason", "1: why it is down, slow or weak.", labels=(*_CONNECTION_LABELS, "reason")
    )
    for labels, connection in labelled:
        if connection.rtt is not None:
            rtt.add_metric(list(labels), connection.rtt)
        if connection.path_mtu is not None:
            mtu.add_metric(list(labels), connection.path_mtu)
        if connection.reason:
            reasons.add_metric([*labels, connection.reason], 1)
    yield from (rtt, mtu, reasons)


def _by_peer(connections: tuple[schema.Connection, ...]) -> dict[tuple[str, str, str], schema.Connection]:
    """One series per peer (a target without one is called by its address): a scrape refuses doubles."""
    return {(c.encryption, c.peer or c.address, c.nickname): c for c in connections}


def _peers(peers: tuple[schema.Peer, ...], tokens: schema.Tokens) -> Iterator[Metric]:
    family = GaugeMetricFamily("weave_router_peers", "Known nodes, this one included.", labels=("state",))
    reachable = sum(peer.reachable for peer in peers)
    family.add_metric(["reachable"], reachable)
    family.add_metric(["unreachable"], len(peers) - reachable)
    yield family
    uses = GaugeMetricFamily("weave_router_token_nodes", "Nodes by token id and use.", labels=("token", "use"))
    for token, count in sorted(Counter(use.sending for use in tokens.nodes).items()):
        uses.add_metric([token, "sending"], count)
    for token, count in sorted(Counter(token for use in tokens.nodes for token in use.accepted).items()):
        uses.add_metric([token, "accepted"], count)
    yield uses


def _addresses(ipam: schema.Ipam) -> Iterator[Metric]:
    used = GaugeMetricFamily("weave_ips", "Number of IP addresses.", labels=("state",))
    used.add_metric(["local-used"], len(ipam.attachments) + bool(ipam.bridge_address))
    yield used
    total = IPv4Network(ipam.range).num_addresses if ipam.range else 0
    yield GaugeMetricFamily("weave_max_ips", "Size of the range.", total)
    yield GaugeMetricFamily("weave_router_address_conflicts", "Addresses claimed twice.", len(ipam.conflicts))
    yield GaugeMetricFamily("weave_router_mac_conflicts", "MACs that pods of several nodes have.",
                            len(ipam.mac_conflicts))


def _workers(workers: tuple[schema.Worker, ...]) -> Iterator[Metric]:
    depth = GaugeMetricFamily("weave_router_worker_queue_bytes", "Bytes read ahead and parked.", labels=("worker",))
    realtime = GaugeMetricFamily("weave_router_worker_realtime", "1 while a real-time thread.", labels=("worker",))
    families: dict[str, CounterMetricFamily] = {}
    for worker in workers:
        depth.add_metric([str(worker.index)], worker.queue_depth)
        realtime.add_metric([str(worker.index)], worker.realtime)
        for name, count in worker.counters.items():
            if name not in families:
                full_name = f"weave_router_worker_{_name(name)}"
                families[name] = CounterMetricFamily(full_name, f"Count of {name}.", labels=("worker",))
            families[name].add_metric([str(worker.index)], count)
    yield depth
    yield realtime
    yield from families.values()


def _drops(drops: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily("weave_router_drops", "Frames and datagrams dropped, by reason.", labels=("reason",))
    for reason, count in drops.items():
        family.add_metric([reason], count)
    return family
