"""Power comes back to a rack: sixty nodes start at once, and every one has a frame for every other.

    60 nodes, all pairs, both ends initiate; delay 0.5 to 10 ms, 1 % of handshakes lost

Each node works on handshakes as its driver does: through a HandshakeQueue, at most a fifth of the loop's time,
``COST`` seconds each, three times what one takes on two busy cores. Virtual time, real handshakes.
"""

import random
import statistics
from typing import Any

from sim.tunnel_net import Net, Node

from weave_router.limits import HANDSHAKE_LOOP_SHARE
from weave_router.tunnel.budget import Budget
from weave_router.tunnel.waiting import HandshakeQueue

NODES = 60
COST = 0.002
LOSS = 0.01
RUN = 6.0
HALF_WITHIN, ALL_WITHIN = 1.0, 4.0


class BusyNode(Node):
    """Handshakes wait for their share of the time."""

    def start(self) -> None:
        self.queue = HandshakeQueue()
        self.budget = Budget(HANDSHAKE_LOOP_SHARE, self.net.now)
        self.due = False
        super().start()

    def feed(self, call: Any, *args: Any) -> None:
        if call != self.tunnel.receive_handshake:
            super().feed(call, *args)
        else:
            self.queue.put(*args[:3])
            self.work()

    def work(self) -> None:
        while self.queue and not self.due:
            pause = self.budget.wait(self.net.now)
            if pause > 0:
                self.due = True
                self.net.at(self.net.now + pause, self.go_on)
                return
            datagram, remote, local = self.queue.pop()
            self._apply(self.tunnel.receive_handshake(datagram, remote, local, self.net.now))
            self.budget.spend(COST)

    def go_on(self) -> None:
        self.due = False
        self.work()


def boot(nodes: int, seed: int) -> tuple[list[float], list[BusyNode]]:
    """(seconds until each frame was delivered, the nodes)."""
    net, dice = Net(seed, delay=0.0005, jitter=0.0095), random.Random(seed)
    net.drop = lambda datagram, _: isinstance(datagram, bytes) and dice.random() < LOSS
    rack = [BusyNode(net, f"n{number}", made.identity, made.address, {}) for number in range(nodes)
            for made in [net.node(f"n{number}")]]  # fmt: skip
    net.introduce(*rack)
    frames = {one.send(other, 100): other for one in rack for other in rack if one is not other}
    net.run(RUN)
    return [other.delivered.get(frame, net.now) - net.frames_sent[frame] for frame, other in frames.items()], rack


def test_sixty_nodes_that_start_at_once_all_talk_within_seconds() -> None:
    taken, rack = boot(NODES, 1)
    assert len(taken) == NODES * (NODES - 1)
    assert sum(node.queue.dropped for node in rack) == 0, "the queue holds a rack's worth"
    assert statistics.median(taken) <= HALF_WITHIN
    assert max(taken) <= ALL_WITHIN
