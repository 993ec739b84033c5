"""Which underlay addresses lie in the networks of --trusted-subnets, ours or those that a peer's record names.

Payload goes unencrypted only where each end trusts every address of the other. Values, no decisions. Called by
shared.py of this room, and by router.py for what a peer said.
"""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address, ip_network

from weave_router.tunnel.wire import Endpoint


class Trust:
    """``networks`` may come from a peer: what is no network trusts nothing."""

    def __init__(self, networks: Iterable[str] = ()) -> None:
        self._networks = [found for text in networks if (found := network_untrusted(text)) is not None]

    def all_of(self, endpoints: Iterable[Endpoint]) -> bool:
        """Whether there are any, and every one is trusted."""
        listed = list(endpoints)
        return bool(self._networks) and bool(listed) and all(self._has(host) for host, _ in listed)

    def _has(self, host: str) -> bool:
        try:
            address = ip_address(host.partition("%")[0])
        except ValueError:
            return False
        if not isinstance(address, IPv4Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        return any(address.version == network.version and address in network for network in self._networks)


def network_untrusted(text: str) -> IPv4Network | IPv6Network | None:
    try:
        return ip_network(text)
    except ValueError:
        return None
