"""The kernel's plaintext VXLAN between pods of two hosts: the yardstick of every speed figure.

        pod vx0 --veth-- [bridge brvx -- vxlan0] host --underlay-- host [vxlan0 -- brvx] --veth-- pod vx0

The same namespaces as the product's own path, by an interface beside it. Called by benchmarks and the lab's test.
"""

from __future__ import annotations

from typing import Final

from .namespace import Namespace
from .network import Host

OVERHEAD_V4: Final = 50
PORT: Final = 4789


def lay_vxlan(near: Host, far: Host) -> None:
    """Both ends of one tunnel, each with its bridge. MTU: the underlay's less what VXLAN adds."""
    for host, peer in ((near, far), (far, near)):
        mtu = host.segments[0][0].mtu - OVERHEAD_V4
        local, remote = host.address(), peer.address()
        host.ip(
            f"link add vxlan0 mtu {mtu} type vxlan id 42 local {local} remote {remote} dstport {PORT} dev eth0",
            f"link add brvx mtu {mtu} type bridge mcast_snooping 0",
            "link set vxlan0 master brvx",
            "link set vxlan0 up",
            "link set brvx up",
        )


def join_vxlan(host: Host, pod: Namespace, address: str) -> str:
    """Give the pod ``vx0`` with ``address`` (a /24); returns the address. Interface name on the host by its number."""
    mtu = host.segments[0][0].mtu - OVERHEAD_V4
    port = f"vp{address.rsplit('.', 1)[1]}"
    host.ip(
        f"link add {port} mtu {mtu} type veth peer name vx0 mtu {mtu} netns {pod.name}",
        f"link set {port} master brvx",
        f"link set {port} up",
    )
    pod.ip(f"address add {address}/24 dev vx0", "link set vx0 up")
    return address
