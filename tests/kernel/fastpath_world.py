"""One fast path between a TAP and peers in plain Python, for test_fastpath_forwarding.py and test_fastpath_parking.py.

Port -> ta [engine] == UDP on lo, port 6783 == PythonPeer on ports 7002, 7003 (slots 2 and 3)
"""

import fcntl
import mmap
import struct
from contextlib import ExitStack
from dataclasses import dataclass

from kernel.fastpath_pair import LEFT, RIGHT, THIRD, Namespace, Side, add_peer, mac, start_side, wait_for
from kernel.fastpath_peer import Opened, PythonPeer, ethernet

from weave_router.fastpath import engine as fp

A, B, C = LEFT + 2, RIGHT + 2, THIRD + 2
BLOCKS = {2: RIGHT, 3: THIRD}


@dataclass
class World:
    space: Namespace
    side: Side
    peers: dict[int, PythonPeer]

    @property
    def engine(self) -> fp.Engine:
        return self.side.engine

    def index(self, slot: int) -> int:
        return 0x500000 + slot

    def path(self, slot: int = 2, *, payload_max: int = 1472, epoch: int = 0, flags: int = 0) -> None:
        remote = ("127.0.0.1", 7000 + slot)
        self.engine.path_set(slot, remote=remote, local="", epoch=epoch, payload_max=payload_max, flags=flags)

    def put(self, *frames: bytes) -> None:
        for frame in frames:
            self.side.port.send(frame)

    def datagrams(self, slot: int = 2, count: int = 1) -> list[Opened]:
        """So many datagrams, opened; and nothing behind them."""
        found = []
        for _ in range(count):
            datagram = self.peers[slot].receive()
            assert datagram is not None, self.side.drops()
            found.append(self.peers[slot].open(datagram))
        return found

    def frames(self, slot: int = 2, count: int = 1) -> list[bytes]:
        found: list[bytes] = []
        while len(found) < count:
            found += [frame for one in self.datagrams(slot) for _, frame in one.frames()]
        assert len(found) == count
        return found

    def silent(self, slot: int = 2) -> bool:
        return self.peers[slot].receive(0.0) is None

    def settle(self, slot: int = 2) -> None:
        """Everything before this has been dealt with: a frame of its own went through."""
        for _ in range(2):  # the first may pass what waits in other flows
            self.put(ethernet(mac(BLOCKS[slot] + 1), mac(A), 0x88B5, bytes(40)))
            assert self.frames(slot)[0][12:14] == b"\x88\xb5"
            wait_for(lambda: not self.side.queued())

    def dropped(self, name: str, before: dict[str, int]) -> int:
        return self.engine.drops()[name] - before[name]

    def events(self, kind: int) -> list[tuple[object, ...]]:
        return [event for event in self.engine.events() if event[0] == kind]


def build(stack: ExitStack, *, workers: int = 1, sessions: bool = True, steering: int | None = None,
          **bounds: float) -> World:  # fmt: skip
    """``steering``: the descriptor of a program for the TAP, -1: the kernel takes none; ``bounds``: start_side's."""
    space = Namespace()
    stack.callback(space.close)
    space.ip("tuntap add ta mode tap vnet_hdr multi_queue", "link set ta mtu 9100 txqueuelen 4000 up")
    side = start_side(space, "ta", 6783, sockets_in=space, watch=("ta", True), workers=workers,
                      steered=steering != -1, bounds=bounds)  # fmt: skip
    stack.callback(side.close)
    if steering is not None:
        fcntl.ioctl(side.taps[0], 0x800454E0, struct.pack("i", steering))
    side.engine.route_set(LEFT, 26, fp.SLOT_LOCAL)
    world = World(space, side, {})
    for slot, number in BLOCKS.items():
        keys = bytes([slot]) * 32, bytes([slot + 100]) * 32
        peer = PythonPeer(
            space, 7000 + slot, remote_port=6783, index=0x300000 + slot, remote_index=world.index(slot), keys=keys
        )
        stack.callback(peer.close)
        world.peers[slot] = peer
        if sessions:
            add_peer(
                side.engine,
                slot=slot,
                number=number,
                session=world.index(slot),
                remote_index=0x300000 + slot,
                keys=keys[::-1],
            )
            world.path(slot)
            world.settle(slot)
        else:
            side.engine.node_set(slot, flags=fp.NODE_ANSWER, pod_mtu=1368)
            side.engine.route_set(number, 26, slot)
    side.engine.events()
    return world


def plain(target: int, n: int = 46, mark: int = 0) -> bytes:
    return ethernet(mac(target), mac(A), 0x1234, mark.to_bytes(4, "big") + bytes(n - 4))


def use(world: World, slot: int = 2) -> None:
    """Give the slot its session, as a handshake does at last."""
    world.engine.session_add(
        world.index(slot),
        slot,
        suite=fp.SUITE_AESGCM,
        send_key=bytes([slot + 100]) * 32,
        recv_key=bytes([slot]) * 32,
        remote_index=0x300000 + slot,
        flags=fp.SESSION_MAY_SEND,
    )
    world.path(slot)
    world.engine.session_use(slot, world.index(slot))


def start_again(world: World, credits: mmap.mmap | None = None, *, realtime: float = 0) -> None:
    """As after stop(): what was sent meanwhile waits in the TAP and comes as one burst."""
    side = world.side
    sockets = [s.fileno() for s in side.sockets]
    side.engine.start(side.taps, sockets, vnet_hdr=12, tap_csum=True, tap_tso=True, tap_uso=True, credits=credits,
                      realtime=realtime)  # fmt: skip
