"""One path to a peer: addresses, RTT, path MTU, what is known of NAT. RTT and MTU belong to the path, not the session.

Must not know sessions. Called by connection.py.
"""

from typing import Final

from weave_router.limits import SUPERFRAME_SEND_BYTES
from weave_router.tunnel.pmtud import PathMtu
from weave_router.tunnel.timers import Timers
from weave_router.tunnel.wire import Endpoint

IPV4_HEADERS: Final = 28
IPV6_HEADERS: Final = 48
RTT_WEIGHT: Final = 0.125
"""Weight of a new sample (RFC 6298)."""


def payload_ceiling(remote: Endpoint, underlay_mtu: int) -> int:
    """UDP payload that the underlay interface takes towards this address."""
    room = underlay_mtu - (IPV6_HEADERS if ":" in remote[0] else IPV4_HEADERS)
    return min(room, SUPERFRAME_SEND_BYTES)  # loopback's MTU is more than a datagram may be


class Path:
    def __init__(self, remote: Endpoint, local: str, *, epoch: int, natted: bool, underlay_mtu: int, timers: Timers,
                 now: float) -> None:
        self.remote = remote
        self.local = local
        self.epoch = epoch
        self.natted = natted
        self.no_gso = False
        self.stale = False
        """The peer has restarted: the next proof of an address replaces this one."""
        self.rtt: float | None = None
        self.since = now
        self._timers = timers
        self.mtu = PathMtu(payload_ceiling(remote, underlay_mtu), timers, now)

    def rtt_sample(self, seconds: float) -> None:
        self.rtt = seconds if self.rtt is None else self.rtt + RTT_WEIGHT * (seconds - self.rtt)

    @property
    def probe_interval(self) -> float:
        return max(3 * (self.rtt or 0.0), self._timers.mtu_interval)
