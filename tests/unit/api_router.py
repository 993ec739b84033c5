"""A small real router behind the API: keeps targets, pods and frames in memory, and refuses what a router refuses.

``serve`` runs it with its ApiServer on uvloop in a thread, as the product does in a process. Imported by the tests of
api/ and cli/ here and in tests/security.
"""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvloop

from weave_router.api import schema
from weave_router.api.router_api import CapturedFrame
from weave_router.api.server import ApiServer
from weave_router.errors import UsageError, UserError

ID_A = "0a1b2c3d4e5f60718293a4b5c6d7e8f9"
ID_B = "b1" * 16
STARTED_AT = 1_800_000_000.0

SERVICE = schema.Service(
    version="0.1.0", id=ID_A, name="node-a", nickname="node-a", incarnation=3, started_at=STARTED_AT, uptime=3725.0,
    encryption="aes-256-gcm (OpenSSL), chacha20-poly1305 (OpenSSL)", pod_mtu=1368, domain="00" * 8,
)  # fmt: skip
CONNECTIONS = (
    schema.Connection(
        encryption="aes-256-gcm", state="established", address="192.0.2.12:6783", direction="outbound", peer=ID_B,
        nickname="node-b", link="up", data="up", path="direct", path_mtu=1500, pod_mtu=1368, rtt=0.00021,
        tx_packets=1043, tx_bytes=1_258_291, rx_packets=900, rx_bytes=999, since=STARTED_AT, reason="gso-refused",
        detail="the path refuses UDP_SEGMENT: datagrams are sent one by one",
    ),
    schema.Connection(
        encryption="plaintext", state="established", address="192.0.2.15:6783", direction="inbound", peer="c2" * 16,
        nickname="node-c", link="up", data="up", path="direct", path_mtu=1400, pod_mtu=1268,
    ),
    schema.Connection(
        encryption="", state="pending", address="192.0.2.13:6783", direction="inbound", peer="d3" * 16,
        nickname="node-d", link="up", data="no answer", path="direct",
    ),
    schema.Connection(
        encryption="", state="failed", address="192.0.2.14:6783", direction="outbound", reason="no-proof",
        detail="no proof from peer (wrong token, or not a weave-router)", retry_at=STARTED_AT + 4,
    ),
    schema.Connection(
        encryption="", state="self", address="192.0.2.11:6783", direction="outbound", reason="self",
        detail="address is this node's own",
    ),
)  # fmt: skip
PEERS = (
    schema.Peer(
        id=ID_A, nickname="node-a", pod_mtu=1368, addresses=("192.0.2.11:6783",), prefixes=("10.32.0.1/32",),
        links=(schema.PeerLink(peer=ID_B, nickname="node-b", address="192.0.2.12:6783"),),
    ),
    schema.Peer(
        id=ID_B, nickname="node-b", pod_mtu=1268, reachable=False, addresses=("192.0.2.12:6783",),
        links=(schema.PeerLink(peer=ID_A, nickname="node-a", address="192.0.2.11:40112", direction="inbound"),),
    ),
)  # fmt: skip
WORKER = schema.Worker(
    index=0, bundle_fill=1.5, segments_per_send=31.25, segments_per_receive=12.0, queue_depth=4096, realtime=True,
    counters={"frames_in": 10, "frames_out": 20, "flooded": 0},
)  # fmt: skip
TOKENS = schema.Tokens(
    sending="1a2b3c4d", accepted=("1a2b3c4d", "5e6f7081"),
    nodes=(
        schema.TokenUse(peer=ID_A, nickname="node-a", sending="1a2b3c4d", accepted=("1a2b3c4d", "5e6f7081")),
        schema.TokenUse(peer=ID_B, nickname="node-b", sending="1a2b3c4d", accepted=("1a2b3c4d",)),
    ),
)  # fmt: skip
POD = schema.Attachment(
    container_id="blue", ifname="eth0", address="10.32.0.5/12", ipv6="fd00::a20:5/96", mac="0a:58:0a:20:00:05",
    netns="/run/netns/blue", port="vethwr012345678",
)  # fmt: skip
FRAMES: tuple[CapturedFrame, ...] = (
    (1_800_000_000_000_000_001, 0, 60, bytes(range(60))),
    (1_800_000_000_000_000_999, 1, 1500, b"\xff" * 1500),
    (1_800_000_001_123_456_789, 1, 65_000, b"\x00" * 1000),
)


class MemoryCapture:
    """Hands out what it was given once, then nothing, at the pace of the real one."""

    def __init__(self, router: "MemoryRouter", frames: Sequence[CapturedFrame]) -> None:
        self._router = router
        self._frames = list(frames)

    async def read(self) -> Sequence[CapturedFrame]:
        frames, self._frames = self._frames, []
        if not frames:
            await asyncio.sleep(0.02)
        return frames

    async def stop(self) -> int:
        self._router.capturing = None
        return 7


class MemoryRouter:
    """Implements RouterApi."""

    def __init__(self) -> None:
        self.known_targets: tuple[str, ...] = ("192.0.2.12", "192.0.2.14")
        self.pods: tuple[schema.Attachment, ...] = (POD,)
        self.capturing: schema.CaptureRequest | None = None
        self.frames: tuple[CapturedFrame, ...] = FRAMES
        self.trace_rows: list[tuple[int, ...]] = [(1, 0, 2, 3, 4)]
        self.complaints: tuple[str, ...] = ()
        self.wrong: tuple[str, ...] = ("10.32.0.7 is on a port",)
        self.rounds = [schema.Retirement()]
        self.retired: schema.RetireRequest | None = None
        self.broken = False
        self.hangs = False

    def service(self) -> schema.Service:
        if self.broken:
            raise RuntimeError("broken on purpose")
        return SERVICE

    def connections(self) -> tuple[schema.Connection, ...]:
        return CONNECTIONS

    def targets(self) -> tuple[schema.Target, ...]:
        return tuple(schema.Target(address=address, state="established") for address in self.known_targets)

    def peers(self) -> tuple[schema.Peer, ...]:
        return PEERS

    def kubernetes(self) -> schema.Kubernetes:
        return schema.Kubernetes()

    def ipam(self) -> schema.Ipam:
        block = schema.Block(peer=ID_A, nickname="node-a", prefixes=("10.32.0.1/32",), addresses=1)
        conflict = schema.AddressConflict(address="10.32.0.9", owner=ID_A, others=(ID_B,))
        return schema.Ipam(
            range="10.32.0.0/12", range_ipv6="fd00::/96", bridge_address="10.32.0.1", attachments=self.pods,
            blocks=(block,), conflicts=(conflict,),
        )  # fmt: skip

    def workers(self) -> tuple[schema.Worker, ...]:
        return (WORKER,)

    def drops(self) -> dict[str, int]:
        return {"bad_tag": 10, "replay": 2, "stranger": 0}

    def counters(self) -> dict[str, int]:
        return {"connection_terminations": 5, "handshakes": 9}

    def firewall(self) -> schema.Firewall:
        answers = (schema.FirewallAnswer(chain="ip filter FORWARD (policy drop)", place="DOCKER-USER"),
                   schema.FirewallAnswer(chain="ip6 x y (policy drop)", reason="not permitted"))
        return schema.Firewall(chains=answers, bridge_netfilter=True, hairpin=True, healed=2)

    def tokens(self) -> schema.Tokens:
        return TOKENS

    def warnings(self) -> tuple[str, ...]:
        return self.complaints

    def trace(self) -> Sequence[tuple[int, ...]]:
        return self.trace_rows

    def tables(self) -> dict[str, Sequence[Any]]:
        return {"routes": [["10.32.0.1/32", 1]], "stations": []}

    async def connect(self, request: schema.ConnectRequest) -> schema.TargetsReply:
        if self.hangs:
            await asyncio.sleep(3600)
        former = () if request.replace else self.known_targets
        self.known_targets = tuple(dict.fromkeys((*former, *request.targets)))
        return schema.TargetsReply(targets=self.known_targets)

    async def forget(self, request: schema.ForgetRequest) -> schema.TargetsReply:
        for target in request.targets:
            if target not in self.known_targets:
                raise UserError(f"{target} is no target; `weave-router status targets` lists them")
        self.known_targets = tuple(target for target in self.known_targets if target not in request.targets)
        return schema.TargetsReply(targets=self.known_targets)

    async def detach(self, request: schema.DetachRequest) -> schema.DetachReply:
        if not (request.netns or request.address or request.container_id):
            raise UsageError("say which attachment")
        gone = tuple(pod for pod in self.pods if request.netns in ("", pod.netns))
        self.pods = tuple(pod for pod in self.pods if pod not in gone)
        return schema.DetachReply(detached=gone)

    def addresses(self) -> tuple[schema.Address, ...]:
        return (schema.Address(address="10.32.0.5", state="used", ipv6="fd00::a20:5", holder="container blue (eth0)",
                               container_id="blue", ifname="eth0"),)  # fmt: skip

    async def claim(self, request: schema.ClaimRequest) -> schema.AddressesReply:
        return schema.AddressesReply(addresses=(request.address,))

    async def expose(self, request: schema.ExposeRequest) -> schema.AddressesReply:
        return schema.AddressesReply(addresses=(request.address or "10.32.0.9",))

    async def ipam_check(self, request: schema.CheckRequest) -> schema.CheckReply:
        found, self.wrong = self.wrong, () if request.repair else self.wrong
        return schema.CheckReply(findings=found, repaired=("entered",) if request.repair else ())

    async def ungate(self, request: schema.UngateRequest) -> schema.Ipam:
        return schema.Ipam(status="ready", gate="own")

    async def retire(self, request: schema.RetireRequest) -> schema.Retirement:
        self.retired = request
        return self.retirement()

    def retirement(self) -> schema.Retirement:
        """Each time the next of what was prepared; the last one stays."""
        return self.rounds.pop(0) if len(self.rounds) > 1 else self.rounds[0]

    async def capture(self, request: schema.CaptureRequest) -> MemoryCapture:
        if self.capturing is not None:
            raise UserError("another capture is under way; stop it first")
        if request.peer not in ("", "node-b"):
            raise UserError(f"no peer is called {request.peer}")
        self.capturing = request
        return MemoryCapture(self, self.frames)


class Served:
    """A router that answers on ``run_dir``; ``ask`` runs a coroutine on its loop."""

    def __init__(self, router: MemoryRouter, run_dir: Path, loop: asyncio.AbstractEventLoop, server: ApiServer) -> None:
        self.router = router
        self.run_dir = run_dir
        self.server = server
        self._loop = loop

    def ask(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)


@contextmanager
def serve(run_dir: Path) -> Iterator[Served]:
    """A MemoryRouter with its API, in a thread."""
    ready: Future[Served] = Future()
    stop: list[asyncio.Event] = []

    async def run() -> None:
        router = MemoryRouter()
        stop.append(asyncio.Event())
        async with ApiServer(router, str(run_dir)) as server:
            ready.set_result(Served(router, run_dir, asyncio.get_running_loop(), server))
            await stop[0].wait()

    def thread_body() -> None:
        try:
            uvloop.run(run())
        except BaseException as error:
            if ready.done():
                raise
            ready.set_exception(error)

    thread = threading.Thread(target=thread_body, name="router")
    thread.start()
    served = ready.result(10)
    try:
        yield served
    finally:
        served._loop.call_soon_threadsafe(stop[0].set)
        thread.join(10)
        assert not thread.is_alive(), "the API did not stop"
