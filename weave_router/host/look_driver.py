"""Looks at a wired pod from both ends and says what is not as planned. Changes nothing, decides nothing.

Synchronous, in a worker thread; the pod's side through a netlink socket that was opened inside it. Called by driver.py
for cni/ (CHECK, a repeated ADD, the result of an ADD).
"""

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from socket import AF_INET, AF_INET6
from typing import Any

from weave_router.host import pod_driver
from weave_router.host.netlink_driver import Link, Netlink, addresses, explain, find
from weave_router.host.pod import DEFAULT_V4, DEFAULT_V6, PodPlan

_MAIN_TABLE = 254


@dataclass(frozen=True)
class Seen:
    """``problems``: in words, empty when all is well. ``default_v4``, ``default_v6``: the default route is ours."""

    problems: tuple[str, ...]
    port_mac: str
    bridge_mac: str
    default_v4: bool
    default_v6: bool


def look(ipr: Netlink, pod: Netlink, plan: PodPlan) -> Seen:
    port, bridge, inside = find(ipr, plan.port), find(ipr, plan.bridge), find(pod, plan.ifname)
    problems = pod_driver.verify(ipr, plan) + _inside(pod, plan, inside)
    return Seen(
        tuple(problems),
        port.mac if port else "",
        bridge.mac if bridge else "",
        inside is not None and _is_routed(pod, inside, DEFAULT_V4, str(plan.gateway_ipv4)),
        inside is not None and plan.gateway_ipv6 is not None
        and _is_routed(pod, inside, DEFAULT_V6, str(plan.gateway_ipv6)),
    )  # fmt: skip


def _inside(pod: Netlink, plan: PodPlan, inside: Link | None) -> list[str]:
    if inside is None:
        return [f"{plan.ifname} is gone from the pod"]
    present = addresses(pod, inside.index)
    checks = {
        f"{plan.ifname} is down": inside.up,
        f"the MAC of {plan.ifname} is {inside.mac} instead of {plan.mac}": inside.mac == plan.mac,
    }
    for route in plan.routes:
        words = f"{plan.ifname} has lost its route to {route.to} by {route.gateway}"
        checks[words] = _is_routed(pod, inside, route.to, str(route.gateway))
    for address in plan.addresses:
        if address.version == 4 or any(":" in one for one in present):  # a pod may have no IPv6 at all
            checks[f"{plan.ifname} has lost its address {address}"] = str(address) in present
    return [problem for problem, well in checks.items() if not well]


def _is_routed(pod: Netlink, inside: Link, to: IPv4Network | IPv6Network, gateway: str) -> bool:
    family = AF_INET if to.version == 4 else AF_INET6
    with explain("list the routes of", inside.name):
        return any(_leads_by(route, inside, to, gateway) for route in pod.get_routes(family=family, table=_MAIN_TABLE))


def _leads_by(route: Any, inside: Link, to: IPv4Network | IPv6Network, gateway: str) -> bool:
    return (
        route["dst_len"] == to.prefixlen
        and (not to.prefixlen or route.get_attr("RTA_DST") == str(to.network_address))
        and route.get_attr("RTA_OIF") == inside.index
        and str(route.get_attr("RTA_GATEWAY")) == gateway
    )
