"""Two fast paths joined by loopback UDP; frames go in on the left and come out on the right as on a wire.

    namespace left                                                   namespace right
    Port -> ta [engine a] == UDP on lo, ports 6783 and 6784 == [engine b] tb - b0 - v0 (no offloads) = v1 -> Port

What arrives at v1 passed the kernel's own segmentation and checksum code, so a superframe that we described wrongly,
or a checksum left open, shows there. For the tests of fastpath/ only; knows nothing of the rooms above it.
"""

import contextlib
import ctypes
import fcntl
import os
import select
import socket
import struct
import subprocess
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from weave_router.fastpath import engine as fp
from weave_router.fastpath.probe import flow_hash

T = TypeVar("T")
UNIVERSE, UNIVERSE_BITS, PREFIX6 = 0x0A200000, 12, bytes.fromhex("fd00") + bytes(10)
LEFT, RIGHT, THIRD = 0x0A200000, 0x0A200040, 0x0A200080
"""First numbers of the /26 blocks of the two nodes, and of a third that is not there."""
KEYS = bytes(range(32)), bytes(range(1, 33))
INDEX_LEFT, INDEX_RIGHT = 0x100001, 0x200002
PORT_LEFT, PORT_RIGHT = 6783, 6784
POD_MTU = 1368
VNET = 12
CSUM, TSO4, TSO6, TSO_ECN, USO4, USO6 = 1, 2, 4, 8, 0x20, 0x40
ALL_OFFLOADS = CSUM | TSO4 | TSO6 | TSO_ECN | USO4 | USO6
MARKER = 0x88B5
"""Ethertype for local experiments: frames that say that all before them went through."""


def mac(number: int) -> bytes:
    return b"\x0a\x58" + number.to_bytes(4, "big")


def text(number: int) -> str:
    return mac(number).hex(":")


def ip4(number: int) -> str:
    return socket.inet_ntoa(number.to_bytes(4, "big"))


def ip6(number: int) -> str:
    return socket.inet_ntop(socket.AF_INET6, PREFIX6 + number.to_bytes(4, "big"))


class Namespace:
    """A namespace and one thread that lives in it."""

    def __init__(self) -> None:
        self.name = f"t-fp-{uuid.uuid4().hex[:8]}"
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        self._thread = ThreadPoolExecutor(1, initializer=self._enter)
        self.call(Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text, "1")  # no chatter of its own
        self.ip("link set lo up")

    def _enter(self) -> None:
        fd = os.open(f"/run/netns/{self.name}", os.O_RDONLY | os.O_CLOEXEC)
        assert ctypes.CDLL(None, use_errno=True).setns(fd, 0) == 0
        os.close(fd)

    def call(self, function: Callable[..., T], *args: Any) -> T:
        return self._thread.submit(function, *args).result(timeout=30)

    def ip(self, *commands: str) -> None:
        batch = "".join(f"{command}\n" for command in commands)
        subprocess.run(["ip", "-n", self.name, "-batch", "-"], input=batch, text=True, check=True)

    def run(self, *command: str) -> None:
        subprocess.run(["ip", "netns", "exec", self.name, *command], check=True, stdout=subprocess.DEVNULL)

    def close(self) -> None:
        self._thread.shutdown()
        subprocess.run(["ip", "netns", "del", self.name], check=True)


def open_tap(name: str, offloads: int = ALL_OFFLOADS, multi: bool = True) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    flags = 0x2 | 0x1000 | 0x4000 | (0x100 if multi else 0)  # TAP, NO_PI, VNET_HDR, MULTI_QUEUE
    fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", name.encode(), flags))
    fcntl.ioctl(fd, 0x400454D8, struct.pack("i", VNET))
    fcntl.ioctl(fd, 0x400454D0, offloads)
    return fd


def open_udp(port: int) -> socket.socket:
    """As host/ opens it: dual stack, REUSEPORT, DF without believing ICMP, pktinfo, TOS, UDP_GRO."""
    s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    six = socket.IPPROTO_IPV6
    for level, option, value in (
        (six, socket.IPV6_V6ONLY, 0),
        (socket.SOL_SOCKET, socket.SO_REUSEPORT, 1),
        (six, 23, 3),
        (socket.IPPROTO_IP, 10, 3),
        (socket.IPPROTO_IP, 8, 1),
        (six, socket.IPV6_RECVPKTINFO, 1),
        (socket.IPPROTO_IP, 13, 1),
        (six, socket.IPV6_RECVTCLASS, 1),
        (17, 104, 1),
        (socket.SOL_SOCKET, 33, 8 << 20),
        (socket.SOL_SOCKET, 32, 8 << 20),
    ):
        s.setsockopt(level, option, value)
    s.bind(("::", port))
    return s


class Port:
    """A packet socket on one interface; frames go and come whole, tags included, each send with a virtio header."""

    def __init__(self, namespace: Namespace, interface: str, *, vnet: bool) -> None:
        self.vnet = vnet
        self.socket = namespace.call(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
        s = self.socket
        s.setsockopt(263, 8, 1)  # SOL_PACKET, PACKET_AUXDATA
        s.setsockopt(263, 23, 1)  # PACKET_IGNORE_OUTGOING
        if vnet:
            s.setsockopt(263, 15, 1)  # PACKET_VNET_HDR
        s.setsockopt(socket.SOL_SOCKET, 33, 128 << 20)
        namespace.call(lambda: s.bind((interface, 3)))

    def send(self, frame: bytes, header: bytes = bytes(10)) -> None:
        self.socket.send(header + frame if self.vnet else frame)

    def receive(self, timeout: float = 5.0) -> bytes | None:
        if not select.select([self.socket], [], [], timeout)[0]:
            return None
        data, control, _, _ = self.socket.recvmsg(1 << 17, 256)
        data = data[10:] if self.vnet else data
        for level, kind, value in control:
            if (level, kind) == (263, 8):
                status, _, _, _, _, tci, tpid = struct.unpack("=IIIHHHH", value[:20])
                if status & 0x10:
                    data = data[:12] + struct.pack(">HH", tpid if status & 0x40 else 0x8100, tci) + data[12:]
        return data

    def close(self) -> None:
        self.socket.close()


def wait_for(condition: Callable[[], Any], timeout: float = 5.0) -> None:
    """Poll a figure that another thread changes."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "did not happen"
        time.sleep(0.001)


def by_flow(frames: Iterable[bytes]) -> dict[tuple[bytes, int], list[bytes]]:
    """Flows may pass each other where they wait to be sealed; the frames of one may not."""
    flows: dict[tuple[bytes, int], list[bytes]] = {}
    for frame in frames:
        flows.setdefault((frame[6:12], flow_hash(frame)), []).append(frame)
    return flows


@dataclass
class Side:
    """One fast path with its descriptors."""

    engine: fp.Engine
    taps: list[int]
    sockets: list[socket.socket]
    port: Port

    def drops(self) -> dict[str, int]:
        return {name: count for name, count in self.engine.drops().items() if count}

    def queued(self) -> int:
        """Bytes that wait to be sealed."""
        return sum(state.queue_bytes for state in self.engine.worker_states())

    def close(self) -> None:
        self.engine.stop()
        for tap in self.taps:
            os.close(tap)
        for s in self.sockets:
            s.close()
        self.port.close()


@dataclass
class Pair:
    left: Side
    right: Side
    outer: str
    spaces: list[Namespace]
    offloads: tuple[int, int]

    def path(self, payload_max: int = 1472, flags: int = 0, *, epoch: int = 0, port: int = PORT_RIGHT) -> None:
        """Where both send; `port`: where the left side thinks the right one is."""
        loopback = "127.0.0.1" if self.outer == "4" else "::1"
        for side, to in ((self.left, port), (self.right, PORT_LEFT)):
            side.engine.path_set(2, remote=(loopback, to), local="", epoch=epoch, payload_max=payload_max, flags=flags)

    def stacks(self) -> tuple[str, str]:
        """Both ends become hosts, with addresses LEFT + 2 and RIGHT + 2; names of their namespaces."""
        for space, interface, number in ((self.spaces[0], "ta", LEFT + 2), (self.spaces[1], "v1", RIGHT + 2)):
            space.ip(
                f"link set {interface} address {text(number)}",
                f"link set {interface} mtu {POD_MTU}",
                f"address add {ip4(number)}/{UNIVERSE_BITS} dev {interface}",
            )
        return self.spaces[0].name, self.spaces[1].name

    def exchange(self, frames: Iterable[bytes | tuple[bytes, bytes]], timeout: float = 10.0) -> list[bytes]:
        """Put frames in on the left (with or without a virtio header), take out on the right what comes of them."""
        for frame in frames:
            if isinstance(frame, tuple):
                self.left.port.send(frame[0], frame[1])
            else:
                self.left.port.send(frame)
        found: list[bytes] = []
        for _ in range(3):  # the first may pass what waits in other flows, and joined frames are written behind what
            self._marker(found, timeout)  # follows them in one burst: the second's burst may be theirs, the third's not
            wait_for(lambda: not self.left.queued())
        return found

    def _marker(self, found: list[bytes], timeout: float) -> None:
        marker = mac(RIGHT + 1) + mac(LEFT + 1) + MARKER.to_bytes(2, "big") + uuid.uuid4().bytes + bytes(30)
        self.left.port.send(marker)
        while (frame := self.right.port.receive(timeout)) != marker:
            assert frame is not None, f"nothing more; drops {self.left.drops()} {self.right.drops()}"
            found.append(frame)


def add_peer(
    engine: fp.Engine,
    *,
    slot: int,
    number: int,
    session: int,
    remote_index: int,
    keys: tuple[bytes, bytes],
    suite: int = fp.SUITE_AESGCM,
    flags: int = 0,
    pod_mtu: int = POD_MTU,
) -> None:
    """A node with one /26 block and one session (keys: sending, receiving) that is in use."""
    engine.node_set(slot, flags=fp.NODE_ANSWER, pod_mtu=pod_mtu)
    engine.route_set(number & ~63, 26, slot)
    engine.session_add(
        session,
        slot,
        suite=suite,
        send_key=keys[0],
        recv_key=keys[1],
        remote_index=remote_index,
        flags=flags | fp.SESSION_MAY_SEND,
    )
    engine.session_use(slot, session)


def start_side(
    namespace: Namespace,
    tap: str,
    port: int,
    *,
    sockets_in: Namespace,
    watch: tuple[str, bool],
    workers: int = 1,
    offloads: int = ALL_OFFLOADS,
    refuse: frozenset[str] = frozenset(),
    network: int = 0,
    steered: bool = True,
    bounds: Mapping[str, Any] | None = None,
) -> Side:
    """Engine on a TAP in `namespace` and sockets in `sockets_in`; the interfaces are set up by the caller before.

    ``bounds``: of limits.py, by the names the engine has for them.
    """
    taps = namespace.call(lambda: [open_tap(tap, offloads) for _ in range(workers)])
    sockets = sockets_in.call(lambda: [open_udp(port) for _ in range(workers)])
    engine = fp.Engine(workers=workers, mtu=POD_MTU, refuse=refuse, network=network, **bounds or {})
    engine.start(
        taps,
        [s.fileno() for s in sockets],
        vnet_hdr=VNET,
        tap_csum=bool(offloads & CSUM),
        tap_tso=bool(offloads & TSO4),
        tap_uso=bool(offloads & USO4),
        steered=steered,
    )
    engine.universe_set(UNIVERSE, UNIVERSE_BITS, PREFIX6)
    wait_for(lambda: transmits(namespace, tap))
    return Side(engine, taps, sockets, Port(namespace, watch[0], vnet=watch[1]))


@contextlib.contextmanager
def pair(
    *,
    workers: int = 1,
    suite: int = fp.SUITE_AESGCM,
    session_flags: int = 0,
    outer: str = "4",
    offloads: tuple[int, int] = (ALL_OFFLOADS, ALL_OFFLOADS),
    payload_max: int = 1472,
    refuse: frozenset[str] = frozenset(),
    pod_mtu: int = POD_MTU,
) -> Iterator[Pair]:
    """The picture above. `offloads`: what the left and the right TAP are opened with."""
    spaces = [Namespace(), Namespace()]
    with contextlib.ExitStack() as stack:
        for space in spaces:
            stack.callback(space.close)
        left, right = spaces
        tap = "mode tap vnet_hdr multi_queue"
        left.ip(f"tuntap add ta {tap}", "link set ta mtu 9000 txqueuelen 8000 up")
        right.ip(
            f"tuntap add tb {tap}",
            "link add v0 type veth peer name v1",
            "link add name b0 type bridge mcast_snooping 0 forward_delay 0",
            "link set tb mtu 9100 master b0 up",
            "link set v0 mtu 9100 master b0 up",
            "link set v1 mtu 9100 up",
            "link set b0 mtu 9100 up",
        )
        right.call(no_bridge_netfilter)
        right.run("ethtool", "-K", "v0", "tx", "off", "tso", "off", "gso", "off")
        a = start_side(
            left,
            "ta",
            PORT_LEFT,
            sockets_in=left,
            watch=("ta", True),
            workers=workers,
            offloads=offloads[0],
            refuse=refuse,
        )
        stack.callback(a.close)
        b = start_side(
            right,
            "tb",
            PORT_RIGHT,
            sockets_in=left,
            watch=("v1", False),
            workers=workers,
            offloads=offloads[1],
            refuse=refuse,
        )
        stack.callback(b.close)
        a.engine.route_set(LEFT, 26, fp.SLOT_LOCAL)
        b.engine.route_set(RIGHT, 26, fp.SLOT_LOCAL)
        add_peer(
            a.engine,
            slot=2,
            number=RIGHT,
            session=INDEX_LEFT,
            remote_index=INDEX_RIGHT,
            keys=KEYS,
            suite=suite,
            flags=session_flags,
            pod_mtu=pod_mtu,
        )
        add_peer(
            b.engine,
            slot=2,
            number=LEFT,
            session=INDEX_RIGHT,
            remote_index=INDEX_LEFT,
            keys=KEYS[::-1],
            suite=suite,
            flags=session_flags,
            pod_mtu=pod_mtu,
        )
        both = Pair(a, b, outer, spaces, offloads)
        both.path(payload_max)
        wait_for(lambda: carriers(right, "tb", "v1") and transmits(right, "v0"))
        both.exchange([])
        yield both


def no_bridge_netfilter() -> None:
    """Where br_netfilter is loaded it drops what is not valid IP, and the subject here is the fast path."""
    for name in ("iptables", "ip6tables", "arptables"):
        knob = Path(f"/proc/sys/net/bridge/bridge-nf-call-{name}")
        if knob.exists():
            knob.write_text("0")


def transmits(space: Namespace, interface: str) -> bool:
    """Has the kernel noticed the carrier? Until then the queue is one that swallows everything."""
    command = ["ip", "-n", space.name, "-o", "link", "show", interface]
    return " qdisc noop" not in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def carriers(space: Namespace, *interfaces: str) -> bool:
    """Do all interfaces run, as bridge ports forwarding where they are ports?"""

    done = subprocess.run(
        ["ip", "netns", "exec", space.name, "cat", *[f"/sys/class/net/{i}/carrier" for i in interfaces]],
        capture_output=True,
        text=True,
        check=False,
    )
    ports = subprocess.run(["bridge", "-n", space.name, "link"], capture_output=True, text=True, check=True).stdout
    return done.stdout.split() == ["1"] * len(interfaces) and "state disabled" not in ports and "listening" not in ports
