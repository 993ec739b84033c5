"""The overlay as a segment: what leaves it through a pod, and what a querier in a pod does to everybody's multicast.

        pod a                 pod a, q                         pod a
          |                       |   192.0.2.0/30               |
        [ h1 ]                  [ h2 ] ------- beyond          [ h3 ]        h2 forwards to a network of its own
          |                       |                              |
       ---+-----------------------+------------------------------+------   switch
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from lab import Lab, Pod, Router
from lab.cluster import start_cluster, wait_group_known
from lab.namespace import Namespace, Nic, kill_process
from lab.router import ping, wait_for
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether

BEYOND = {"v4": "192.0.2.2", "v6": "2001:db8:fe::2"}
GROUPS = ("239.5.5.5", "ff05::555")
QUERIER_SECONDS = 3.0


@dataclass
class Overlay:
    lab: Lab
    routers: list[Router]
    pods: list[Pod]


@pytest.fixture(scope="module")
def overlay() -> Iterator[Overlay]:
    with Lab() as lab:
        switch = lab.switch()
        routers, pods = start_cluster(lab, [lab.host(label, switch) for label in ("h1", "h2", "h3")])
        yield Overlay(lab, routers, pods)


# -- checksums of what leaves -----------------------------------------------------------------------------------------


def bridge_address(router: Router, family: str) -> str:
    """Of this node's bridge, as the kernel has it."""
    words = router.host.run(
        ["ip", f"-{family[1]}", "-o", "address", "show", "dev", "weave", "scope", "global"]
    ).stdout.split()
    return words[3].partition("/")[0]


@pytest.fixture(scope="module")
def beyond(overlay: Overlay) -> Namespace:
    """A machine behind h2, on a wire whose sender has to write every checksum itself."""
    near, gateway = overlay.pods[0], overlay.routers[1].host
    far = overlay.lab.namespace("beyond")
    gateway.ip(
        f"link add out type veth peer name eth0 netns {far.name}",
        "address add 192.0.2.1/30 dev out",
        "address add 2001:db8:fe::1/64 dev out nodad",
        "link set out up",
    )
    far.ip(
        f"address add {BEYOND['v4']}/30 dev eth0",
        f"address add {BEYOND['v6']}/64 dev eth0 nodad",
        "link set eth0 up",
        "route add default via 192.0.2.1",
        "route add default via 2001:db8:fe::1",
    )
    gateway.sysctl({"net.ipv4.ip_forward": 1, "net.ipv6.conf.all.forwarding": 1})
    gateway.set_nic("out", Nic.BARE)
    far.set_nic("eth0", Nic.BARE)
    bridge = {family: bridge_address(overlay.routers[1], family) for family in BEYOND}
    near.ip(f"route add 192.0.2.0/30 via {bridge['v4']}", f"route add 2001:db8:fe::/64 via {bridge['v6']}")
    return far


def valid(packet: bytes) -> bool:
    """Whether every checksum of this frame is what scapy computes."""
    frame = Ether(packet)
    again = Ether(packet)
    layer = next(kind for kind in (TCP, UDP) if kind in again)
    del again[layer].chksum
    if IP in again:
        del again[IP].chksum
    return bytes(Ether(bytes(again))) == bytes(frame)


@pytest.mark.parametrize("family", ["v4", "v6"])
def test_checksums_are_valid_where_a_host_forwards(overlay: Overlay, beyond: Namespace, family: str) -> None:
    near = overlay.pods[0]
    wait_for("the way through h2", lambda: ping(near, BEYOND[family]))
    capture = overlay.lab.capture(beyond, "eth0", f"(tcp or udp) and dst host {BEYOND[family]}")
    tcp = overlay.lab.traffic.tcp(near, beyond, BEYOND[family], bytes=512 << 10)()
    udp = overlay.lab.traffic.udp(near, beyond, BEYOND[family], count=200, rate=50, max_size=1200)()
    assert (tcp["bytes"], tcp["hash"]) == (512 << 10, tcp["sent_hash"])
    assert (udp["lost"], udp["corrupt"]) == (0, 0)
    packets = capture.packets()
    assert len(packets) > 500, "what TCP and UDP needed"
    assert [number for number, packet in enumerate(packets) if not valid(packet)] == []


# -- a querier in a pod -----------------------------------------------------------------------------------------------

QUERIER = """
import sys
from scapy.all import Ether, IP, IPv6, sendp
from scapy.contrib.igmpv3 import IGMPv3, IGMPv3mq
from scapy.layers.inet import IPOption_Router_Alert
from scapy.layers.inet6 import ICMPv6MLQuery2, IPv6ExtHdrHopByHop, RouterAlert

mac, v4, link_local, seconds = sys.argv[1:]
igmp = (Ether(src=mac, dst="01:00:5e:00:00:01") / IP(src=v4, dst="224.0.0.1", ttl=1, options=[IPOption_Router_Alert()])
        / IGMPv3(type=0x11, mrcode=5) / IGMPv3mq(gaddr="0.0.0.0", qqic=1))
mld = (Ether(src=mac, dst="33:33:00:00:00:01") / IPv6(src=link_local, dst="ff02::1", hlim=1)
       / IPv6ExtHdrHopByHop(options=[RouterAlert(value=0)]) / ICMPv6MLQuery2(mladdr="::", mrd=500, QQIC=1))
sendp([igmp, mld], iface="eth0", inter=0.25, count=int(float(seconds) * 2), verbose=False)
"""


def link_facts(pod: Pod) -> tuple[str, str]:
    """Its MAC and its link-local address."""
    link = pod.run(["ip", "-o", "link", "show", "eth0"]).stdout.split()
    address = pod.run(["ip", "-6", "-o", "address", "show", "dev", "eth0", "scope", "link"]).stdout.split()
    return link[link.index("link/ether") + 1], address[3].partition("/")[0]


def hears_querier(router: Router) -> bool:
    """Whether a pod's port of this bridge counts as a multicast router's."""
    shown = json.loads(router.host.run(["bridge", "-j", "-d", "mdb", "show", "dev", "weave"]).stdout)
    return "vethwr" in json.dumps(shown[0]["router"])


def test_a_querier_in_a_pod_takes_nothing_from_anybody(overlay: Overlay) -> None:
    """Snooping bridges forget a member that was not asked; all their times are made short, so that they would."""
    near, *others = overlay.pods
    for router in overlay.routers:
        router.host.ip(
            "link set weave type bridge mcast_query_interval 50 mcast_startup_query_interval 50 "
            "mcast_query_response_interval 25 mcast_membership_interval 200 mcast_querier_interval 125",
            "link set weave type bridge mcast_querier 0",
            "link set weave type bridge mcast_querier 1",  # asks now, not when the old interval ends
        )
    traffic = overlay.lab.traffic
    seconds = 2 * QUERIER_SECONDS
    heard = {
        group: [traffic.listen(pod, "mcast-recv", group=group, interface="eth0", port=7555) for pod in others]
        for group in GROUPS
    }
    for group in GROUPS:
        wait_group_known(overlay.lab, near, others, group, 7556)
    asker = overlay.lab.pod(overlay.routers[1].host, "q")  # of its own: nobody asks a querier's own pod
    overlay.routers[1].attach(asker, "10.32.2.99/12")
    mac, link_local = link_facts(asker)
    querier = asker.popen([sys.executable, "-c", QUERIER, mac, asker.v4, link_local, str(QUERIER_SECONDS)])
    sent = [
        traffic.start(near, "mcast-send", to=group, interface="eth0", port=7555, count=int(seconds * 50), pps=50)
        for group in GROUPS
    ]
    wait_for("the bridge has heard it", lambda: hears_querier(overlay.routers[1]))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for pod in overlay.pods:
            pod.ip("neigh flush dev eth0")
        for pod in others:  # the second echo goes by what the first one learned
            assert ping(near, pod.v6, count=2, interval=0.2) and ping(pod, near.v6) and ping(near, pod.v4)
    assert querier.wait(10) == 0
    kill_process(querier)
    for task, group in zip(sent, GROUPS, strict=True):
        count = task.result()["sent"]
        assert [one.result()["unique"] for one in heard[group]] == [count, count], group
