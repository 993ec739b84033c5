"""attach.sock: requests with two descriptors, hostile clients, clients that hang up."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from errno import EMFILE
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from weave_router import limits
from weave_router.errors import BadPacket
from weave_router.host import handover, handover_driver
from weave_router.host.faults import Fault, HostError
from weave_router.host.handover_driver import HandoverServer, PodHandle, Request


@given(st.binary(max_size=64))
def test_decoders_take_any_bytes(data: bytes) -> None:
    for decode in (handover.length_untrusted, handover.body_untrusted):
        try:
            decode(data)
        except BadPacket:
            continue


@pytest.mark.parametrize("length", [0, limits.HANDOVER_REQUEST_BYTES + 1, 0xFFFFFFFF])
def test_lengths_out_of_bounds(length: int) -> None:
    with pytest.raises(BadPacket):
        handover.length_untrusted(length.to_bytes(4, "big"))


def test_frame_round_trip() -> None:
    data = handover.frame({"verb": "attach", "n": 1})
    assert handover.length_untrusted(data[:4]) == len(data) - 4
    assert handover.body_untrusted(data[4:]) == {"verb": "attach", "n": 1}


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(BadPacket):
        handover.body_untrusted(b'{"a":' + b"[" * 100_000)


class Router:
    """A handler that notes what it was asked, and can be held in the middle of a request."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen: list[dict[str, Any]] = []
        self.undone: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self.seen_event = asyncio.Event()
        self.undone_event = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.server = HandoverServer(path, self.handle, self.abandoned)

    async def handle(self, request: Request) -> dict[str, Any]:
        assert os.fstat(request.netlink).st_ino != os.fstat(request.netns).st_ino
        assert not os.get_inheritable(request.netlink)
        self.seen.append(request.body)
        self.seen_event.set()
        if not self.go_on.is_set():
            await request.hung_up.wait()
        return {"done": request.body.get("n")}

    async def abandoned(self, request: Request, reply: dict[str, Any]) -> None:
        assert request.hung_up.is_set()
        os.fstat(request.netlink)  # still open: undoing may need it
        self.undone.append((request.body, reply))
        self.undone_event.set()


@pytest.fixture
async def router(tmp_path: Path) -> AsyncIterator[Router]:
    router = Router(tmp_path / "attach.sock")
    before = len(os.listdir("/proc/self/fd"))
    task = asyncio.create_task(router.server.serve())
    await asyncio.sleep(0)  # it listens as soon as it runs
    yield router
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not router.path.exists()
    assert len(os.listdir("/proc/self/fd")) <= before


def handle() -> PodHandle:
    """Any two descriptors will do."""
    return PodHandle(*(end.detach() for end in socket.socketpair()))


async def ask(router: Router, request: dict[str, Any]) -> dict[str, Any]:
    pod = handle()
    try:
        return await asyncio.to_thread(handover_driver.hand_over, router.path, request, pod, timeout=5)
    finally:
        pod.close()


async def test_request_and_answer(router: Router) -> None:
    assert router.path.stat().st_mode & 0o777 == 0o600
    assert await ask(router, {"n": 1}) == {"done": 1}
    assert router.seen == [{"n": 1}] and router.undone == []


async def test_many_at_once(router: Router) -> None:
    count = limits.HANDOVER_CLIENTS + 6
    answers = await asyncio.gather(*(ask(router, {"n": n}) for n in range(count)))
    assert [answer["done"] for answer in answers] == list(range(count))


async def test_the_largest_request(router: Router) -> None:
    fill = limits.HANDOVER_REQUEST_BYTES - len(handover.frame({"n": 4, "fill": ""})) + handover.HEAD_BYTES
    assert await ask(router, {"n": 4, "fill": "x" * fill}) == {"done": 4}
    with pytest.raises(HostError) as caught:
        await ask(router, {"n": 4, "fill": "x" * (fill + 1)})
    assert caught.value.fault is Fault.HANDOVER_SILENT


async def test_hang_up_in_mid_request_is_reported(router: Router) -> None:
    router.seen_event.clear()
    router.go_on.clear()
    client, pod = connect(router), handle()
    socket.send_fds(client, [handover.frame({"n": 7})], [pod.netlink, pod.netns])
    pod.close()
    await asyncio.wait_for(router.seen_event.wait(), 5)
    client.close()
    await asyncio.wait_for(router.undone_event.wait(), 5)
    assert router.undone == [({"n": 7}, {"done": 7})]


def connect(router: Router) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(5)
    client.connect(str(router.path))
    return client


@pytest.mark.parametrize(
    ("pieces", "descriptors"),
    [
        ([b"\xff\xff\xff\xff"], 2),
        ([b"\0\0\0\0"], 2),
        ([b"\0\0\0\x02[]"], 2),
        ([b"\0\0\0\x01{"], 2),
        ([handover.frame({}) + b"x"], 2),
        ([handover.frame({})], 0),
        ([handover.frame({})], 1),
        ([handover.frame({})], limits.HANDOVER_DESCRIPTORS + 1),
        ([handover.frame({})], 50),
        ([handover.frame({})[:5]], 2),
        ([b""], 0),
    ],
)
async def test_hostile_clients_get_nothing_and_leave_nothing(
    router: Router, pieces: list[bytes], descriptors: int
) -> None:
    client = connect(router)
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(descriptors)]
    for piece in pieces:
        if piece:
            socket.send_fds(client, [piece], fds)
    for fd in fds:
        os.close(fd)
    client.shutdown(socket.SHUT_WR)
    with contextlib.suppress(ConnectionResetError):  # the server left with our bytes unread
        assert await asyncio.to_thread(client.recv, 100) == b""
    client.close()
    assert router.seen == []
    assert router.server.refused == 1
    assert await ask(router, {"n": 2}) == {"done": 2}


async def test_descriptors_on_a_later_byte_are_taken_too(router: Router) -> None:
    client, pod, data = connect(router), handle(), handover.frame({"n": 3})
    client.sendall(data[:1])
    socket.send_fds(client, [data[1:]], [pod.netlink, pod.netns])
    pod.close()
    head = await asyncio.to_thread(client.recv, 4, socket.MSG_WAITALL)
    assert (await asyncio.to_thread(client.recv, int.from_bytes(head, "big"), socket.MSG_WAITALL)) == b'{"done":3}'
    client.close()


async def test_silent_client_is_dropped(router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    assert handover_driver.HANDOVER_READ_SECONDS == limits.HANDOVER_READ_SECONDS
    monkeypatch.setattr(handover_driver, "HANDOVER_READ_SECONDS", 0.05)
    client = connect(router)
    assert await asyncio.to_thread(client.recv, 1) == b""
    assert router.server.refused == 1
    client.close()


class OutOfDescriptors(socket.socket):
    """A listener whose first accept fails for want of descriptors."""

    failed = False

    def accept(self) -> tuple[socket.socket, Any]:
        if not self.failed:
            self.failed = True
            raise OSError(EMFILE, "no descriptors")
        return super().accept()


async def test_accept_goes_on_when_descriptors_are_short(tmp_path: Path) -> None:
    with OutOfDescriptors(socket.AF_UNIX, socket.SOCK_STREAM) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(str(tmp_path / "x"))
        listener.listen()
        client.connect(str(tmp_path / "x"))
        accepted = await asyncio.wait_for(handover_driver._accept_one(listener), 20 * limits.HANDOVER_RETRY_SECONDS)
        assert listener.failed
        accepted.close()


def test_router_that_is_not_there(tmp_path: Path) -> None:
    pod = handle()
    with pytest.raises(HostError) as caught:
        handover_driver.hand_over(tmp_path / "attach.sock", {}, pod, timeout=1)
    assert caught.value.fault is Fault.HANDOVER_AWAY
    pod.close()


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("/run/netns/none-of-this-name", Fault.NETNS_OPEN),
        ("/etc/hostname", Fault.NETNS_KIND),
        ("/proc/self/ns/net", Fault.NETNS_OWN),
    ],
)
def test_namespaces_that_are_refused(path: str, fault: Fault) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(HostError) as caught:
        handover_driver.open_pod(path)
    assert caught.value.fault is fault
    assert len(os.listdir("/proc/self/fd")) == before


async def test_run_dir_that_is_not_there(tmp_path: Path) -> None:
    router = Router(tmp_path / "none" / "attach.sock")
    with pytest.raises(HostError) as caught:
        await router.server.serve()
    assert caught.value.fault is Fault.HANDOVER_LISTEN


def test_on_uvloop(tmp_path: Path) -> None:
    """The loop the daemon runs on."""

    async def body() -> None:
        router = Router(tmp_path / "attach.sock")
        task = asyncio.create_task(router.server.serve())
        await asyncio.sleep(0)
        assert await ask(router, {"n": "x" * 500_000}) == {"done": "x" * 500_000}
        await test_hang_up_in_mid_request_is_reported(router)
        task.cancel()
        await asyncio.wait([task])

    uvloop.run(body())
