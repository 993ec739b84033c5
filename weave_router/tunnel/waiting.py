"""Handshake datagrams that wait for their share of the loop: bounded, first come first served, one of each sender.

Where work lags behind, initiators ask again, and the same question would be answered many times over: a newer message
takes the place of the older one of the same sender, type and receiver index (the place in the queue stays). Knows no
clock and reads no more than the head. Called by driver.py and by simulations.
"""

from weave_router.limits import HANDSHAKE_QUEUE_MAX
from weave_router.tunnel.wire import Endpoint

Waiting = tuple[bytes, Endpoint, str]
"""(datagram, remote, local)"""


class HandshakeQueue:
    def __init__(self) -> None:
        self._waiting: dict[tuple[Endpoint, bytes], Waiting] = {}
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, datagram: bytes, remote: Endpoint, local: str) -> None:
        """Dropped and counted where there is no room."""
        key = remote, datagram[:1] + datagram[12:16]
        if key not in self._waiting and len(self._waiting) >= HANDSHAKE_QUEUE_MAX:
            self.dropped += 1
            return
        self._waiting[key] = datagram, remote, local

    def pop(self) -> Waiting:
        """The one that waits longest. There is one."""
        return self._waiting.pop(next(iter(self._waiting)))
