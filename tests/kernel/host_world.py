"""A host with bridge, TAP and nft table, without a router: what the tests of host/ that wire pods begin with."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_interface
from typing import TYPE_CHECKING, Any

from pyroute2 import IPRoute

from weave_router.host import bridge_driver, handover_driver, netfilter, pod_driver, tap_driver
from weave_router.host.bridge import BridgePlan
from weave_router.host.faults import HostError
from weave_router.host.netlink_driver import links
from weave_router.host.nft_driver import Nft
from weave_router.host.pod import Attached, PodPlan, pod_plan
from weave_router.host.pod_driver import Leaving
from weave_router.host.rtnl_driver import Rtnl
from weave_router.ipam.number import mac_of, mac_text

if TYPE_CHECKING:
    from .conftest import Netns

UNIVERSE4 = IPv4Network("10.32.0.0/12")
UNIVERSE6 = IPv6Network("fd00:1::/96")
GATEWAY = IPv4Address("10.32.0.1")
TABLES = netfilter.TablesPlan("weave", UNIVERSE4, UNIVERSE6)
BRIDGE = BridgePlan(
    name="weave",
    tap="weave-tap",
    mtu=1368,
    mac=mac_text(mac_of(int(GATEWAY))),
    addresses=(ip_interface("10.32.0.1/12"), ip_interface("fd00:1::a20:1/96")),
)


def plan_of(attachment: str, address: str, **words: Any) -> PodPlan:
    return pod_plan(
        attachment=attachment,
        address=ip_interface(address),
        universe_v4=UNIVERSE4,
        universe_v6=UNIVERSE6,
        bridge="weave",
        bridge_address=GATEWAY,
        mtu=1368,
        **words,
    )


@dataclass
class Node:
    """A host with bridge, TAP and nft table, and what the router would hold of it."""

    netns: Netns
    tap: tap_driver.Tap = field(init=False)
    ipr: Any = field(init=False)
    rtnl: Rtnl = field(init=False)
    nft: Nft = field(init=False)

    def start(self) -> None:
        self.tap = tap_driver.open_tap("weave-tap", 1)
        self.ipr = IPRoute()
        self.rtnl = Rtnl()
        self.nft = Nft()
        bridge_driver.ensure(self.ipr, BRIDGE)
        self.nft.run(netfilter.tables(TABLES), "load")

    def stop(self) -> None:
        self.ipr.close()
        self.rtnl.close()
        self.nft.close()
        tap_driver.close_tap(self.tap)

    def attach(self, plan: PodPlan, pod: Netns) -> Attached:
        handle = handover_driver.open_pod(pod.path)
        try:
            return self.netns.call(self._attach, plan, handle)
        finally:
            handle.close()

    def _attach(self, plan: PodPlan, handle: handover_driver.PodHandle) -> Attached:
        with Rtnl(handle.netlink) as inside:
            (plan,) = pod_driver.enter(self.rtnl, self.nft, [plan])
            half = pod_driver.begin(self.rtnl, self.nft, plan, inside, handle.netns)
            return pod_driver.finish(self.rtnl, self.nft, half)

    def detach(self, *plans: PodPlan) -> list[int | HostError]:
        leaving = [Leaving(plan.guard) for plan in plans]
        return self.netns.call(pod_driver.detach, self.rtnl, self.nft, leaving)

    def elements(self) -> str:
        return self.netns.run("nft", "-s", "list", "table", "bridge", "weave_router")


def everything(node: Node) -> tuple[set[str], str]:
    return {link.name for link in node.netns.call(links, node.ipr)}, node.elements()
