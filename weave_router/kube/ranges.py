"""Which addresses a new universe takes: the option, else what the cluster calls its pod range, else the default.

Never one that overlaps the Services or a node's network. Pure; runs once in the life of a cluster, by its first router.
Called by start_driver.py.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from weave_router import limits
from weave_router.config import RANGE_DEFAULT
from weave_router.errors import UserError

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Cluster:
    """What the API server knows. ``option``: --ipalloc-range if it was given. ``services``: of ServiceCIDR objects."""

    option: str = ""
    kubeadm: str = ""
    """The ConfigMap's ClusterConfiguration."""
    pod_cidrs: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    service_host: str = ""
    """Address of the API server's own Service."""
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Choice:
    range_v4: IPv4Network
    prefix_v6: IPv6Network | None
    """None: the token's."""
    source: str


def choose(cluster: Cluster) -> Choice:
    """UserError if what was asked for overlaps; what was only guessed gives way to the next."""
    taken = [*service_ranges(cluster), *_hosts(cluster.nodes)]
    pods = _networks(_field(cluster.kubeadm, "podSubnet").split(","))
    v6 = next((IPv6Network((n.network_address, 96)) for n in pods if n.version == 6 and n.prefixlen <= 96), None)
    if cluster.option:
        wanted = IPv4Network(cluster.option)
        other = _overlap(wanted, taken)
        if other is not None:
            raise UserError(f"--ipalloc-range {wanted} overlaps {other}, which Services or nodes use: give another one")
        return Choice(wanted, v6, "--ipalloc-range")
    guesses = [(n, "podSubnet of kubeadm") for n in pods]
    guesses += [(n, "podCIDRs of the Nodes") for n in _around(cluster.pod_cidrs)]
    guesses.append((IPv4Network(RANGE_DEFAULT), "default"))
    for network, source in guesses:
        fits = limits.RANGE_PREFIX_MIN <= network.prefixlen <= limits.RANGE_PREFIX_MAX
        if isinstance(network, IPv4Network) and fits and _overlap(network, taken) is None:
            return Choice(network, v6, source)
    raise UserError(f"{RANGE_DEFAULT} overlaps {_overlap(IPv4Network(RANGE_DEFAULT), taken)}, which Services or nodes "
                    "use: give --ipalloc-range, best the cluster's pod range")


def service_ranges(cluster: Cluster) -> list[Network]:
    """ServiceCIDR objects, else kubeadm's, else the /16 around the API server's Service."""
    found = _networks(cluster.services) or _networks(_field(cluster.kubeadm, "serviceSubnet").split(","))
    if not found and cluster.service_host:
        for address in _hosts([cluster.service_host]):
            found.append(address.supernet(new_prefix=16 if address.version == 4 else 112))
    return found


def _field(text: str, name: str) -> str:
    """A value of kubeadm's YAML, which has one line ``  podSubnet: 10.244.0.0/16,fd00::/56``."""
    match = re.search(rf"^\s*{name}:\s*[\"']?([0-9a-fA-F:./, ]+)", text[: limits.KUBE_TEXT_MAX], re.MULTILINE)
    return match[1] if match else ""


def _networks(texts: Iterable[str]) -> list[Network]:
    found: list[Network] = []
    for text in texts:
        try:
            found.append(ipaddress.ip_network(text.strip()))
        except ValueError:
            continue
    return found


def _hosts(texts: Iterable[str]) -> list[Network]:
    return _networks(texts)


def _around(cidrs: Sequence[str]) -> list[Network]:
    """The /16 that holds them all; none if there is none, or no Node carries any."""
    v4 = [n for n in _networks(cidrs) if n.version == 4 and n.prefixlen >= 16]
    wholes = {n.supernet(new_prefix=16) for n in v4}
    return list(wholes) if len(wholes) == 1 else []


def _overlap(network: IPv4Network, taken: Iterable[Network]) -> Network | None:
    return next((other for other in taken if isinstance(other, IPv4Network) and other.overlaps(network)), None)
