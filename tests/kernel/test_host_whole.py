"""The room as a whole: the loop's door, reset, doctor, underlay, on the real kernel."""

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from socket import AF_INET, AF_INET6

import pytest
from kernel.host_world import BRIDGE, UNIVERSE6, plan_of
from pyroute2 import IPRoute

from weave_router.config import LaunchConfig
from weave_router.errors import UserError
from weave_router.host import (
    doctor,
    doctor_driver,
    handover_driver,
    lock_driver,
    pod_driver,
    probe_driver,
    reset_driver,
    tap_driver,
)
from weave_router.host.driver import Host, Soon
from weave_router.host.faults import Fault, HostError
from weave_router.host.nft_driver import Nft
from weave_router.host.rtnl_driver import Rtnl
from weave_router.host.underlay_driver import Underlay, has_default_route, host_routes, nameservers, underlay
from weave_router.limits import MENDED_SHOWN, SOON_SECONDS

from .conftest import Netns

CONFIG = LaunchConfig(name="a", nickname="a", token_file="-")


async def kept(error: Exception | None = None) -> None:
    """The record of a pod, as the disk takes it."""
    if error is not None:
        raise error


async def soon(work: Soon) -> None:
    assert work.task is not None
    await asyncio.wait_for(work.task, 20 * SOON_SECONDS)


async def life(pods: list[str], run: Callable[..., str], leave_attached: bool = False, reap: bool = False) -> int:
    """A router's day without a router: open, build, attach, detach, close. Returns descriptors that leaked."""
    room = Host()
    tap = tap_driver.open_tap("weave-tap", 1)
    before = len(os.listdir("/proc/self/fd"))
    await room.open()
    await room.build(BRIDGE, CONFIG, UNIVERSE6, [])
    plans, room.mended = [], ["earlier"] * MENDED_SHOWN
    for number, path in enumerate(pods, start=2):
        plan = plan_of(path, f"10.32.0.{number}/12")
        pod = handover_driver.open_pod(path)
        if number == 3:
            run("ip", "link", "set", "weave", "address", "02:00:00:00:00:01")
        attached = await room.attach(plan, BRIDGE, pod.netlink, pod.netns, kept())
        pod.close()
        assert attached.port == plan.port
        await soon(room._look)
        assert len(room.mended) == MENDED_SHOWN and room.mended.count("earlier") == MENDED_SHOWN - (number >= 3)
        plans.append(plan)
    assert await room.reattach(plans, "weave") == plans
    if not leave_attached:
        for plan in plans:
            await room.detach(plan.guard)
        if reap:
            await soon(room._reap)
            assert "vethwr" not in run("ip", "link")
        assert await room.reattach(plans, "weave") == []
    await room.close()
    leaked = len(os.listdir("/proc/self/fd")) - before
    tap_driver.close_tap(tap)
    return leaked


async def attach_and_detach(pods: list[str], deletion: "Deletion") -> None:
    """Each answered, whatever the deletion of the one before it does."""
    room = Host()
    tap = tap_driver.open_tap("weave-tap", 1)
    await room.open()
    await room.build(BRIDGE, CONFIG, UNIVERSE6, [])
    for number, path in enumerate(pods, start=2):
        plan, pod = plan_of(path, f"10.32.0.{number}/12"), handover_driver.open_pod(path)
        await asyncio.wait_for(room.attach(plan, BRIDGE, pod.netlink, pod.netns, kept()), 5)
        pod.close()
        await asyncio.wait_for(room.detach(plan.guard), 5)
        assert await asyncio.to_thread(deletion.began.wait, 5)
    deletion.may_end.set()
    await room.close()
    tap_driver.close_tap(tap)


class Deletion:
    """``pod_driver.reap`` that takes as long as the test wants."""

    def __init__(self) -> None:
        self.began, self.may_end = threading.Event(), threading.Event()

    def __call__(self, rtnl: Rtnl, closed: Sequence[int]) -> None:
        self.began.set()
        assert self.may_end.wait(20)
        REAL_REAP(rtnl, closed)


REAL_REAP = pod_driver.reap


def test_nobody_waits_for_a_deletion(
    host: Netns, make_netns: Callable[[], Netns], monkeypatch: pytest.MonkeyPatch
) -> None:
    deletion = Deletion()
    monkeypatch.setattr(pod_driver, "reap", deletion)
    paths = [make_netns().path for _ in range(2)]
    host.call(lambda: asyncio.run(attach_and_detach(paths, deletion)))
    assert "vethwr" not in host.run("ip", "link")


def test_a_record_that_the_disk_refuses_leaves_nothing(host: Netns, make_netns: Callable[[], Netns]) -> None:
    pod = make_netns()

    async def life() -> None:
        room = Host()
        tap = tap_driver.open_tap("weave-tap", 1)
        await room.open()
        await room.build(BRIDGE, CONFIG, UNIVERSE6, [])
        before = host.run("nft", "list", "ruleset")
        handle = handover_driver.open_pod(pod.path)
        with pytest.raises(UserError, match="disk full"):
            await room.attach(plan_of("a", "10.32.0.2/12"), BRIDGE, handle.netlink, handle.netns,
                              kept(UserError("disk full")))  # fmt: skip
        assert "vethwr" not in host.run("ip", "link") and host.run("nft", "list", "ruleset") == before
        handle.close()
        await room.close()
        tap_driver.close_tap(tap)

    host.call(lambda: asyncio.run(life()))
    assert "eth0" not in pod.run("ip", "link")


def in_namespace(host: Netns, pods: list[Netns], leave_attached: bool = False, reap: bool = False) -> int:
    """The whole loop, its threads too, inside the host's namespace: threads inherit it."""
    paths = [pod.path for pod in pods]
    return int(host.call(lambda: asyncio.run(life(paths, host.run, leave_attached, reap))))


def test_attach_and_detach_through_the_loops_door(host: Netns, make_netns: Callable[[], Netns]) -> None:
    pods = [make_netns() for _ in range(3)]
    threads = threading.active_count()
    assert in_namespace(host, pods) == 0
    assert "vethwr" not in host.run("ip", "link")
    assert in_namespace(host, pods, reap=True) == 0  # and once more, over what the first left
    assert threading.active_count() <= threads + 1


def test_reset_leaves_nothing(host: Netns, make_netns: Callable[[], Netns], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    before = host.run("ip", "link"), host.run("nft", "list", "ruleset")
    run_dir.mkdir()
    in_namespace(host, [make_netns(), make_netns()], leave_attached=True)
    host.call(lock_driver.take, run_dir, "weave-tap").release()
    (run_dir / "api.sock").touch()
    (run_dir / "not-ours").touch()
    with pytest.raises(HostError) as caught:
        host.call(reset_driver.reset, "weave", run_dir)
    assert caught.value.fault is Fault.RESET_ATTACHED
    removed = host.call(reset_driver.reset, "weave", run_dir, force=True)
    assert len(removed) == 2 + 2 + 1 + 2
    assert (host.run("ip", "link"), host.run("nft", "list", "ruleset")) == before
    assert [path.name for path in run_dir.iterdir()] == ["not-ours"]
    assert host.call(reset_driver.reset, "weave", run_dir) == []
    assert host.call(reset_driver.reset, "weave", tmp_path / "none") == []
    assert not (tmp_path / "none").exists()


def test_reset_leaves_links_of_others_alone(host: Netns, tmp_path: Path) -> None:
    host.run("ip", "link", "add", "weave", "type", "veth", "peer", "weave-tap")
    assert host.call(reset_driver.reset, "weave", tmp_path) == []


def test_reset_refuses_while_a_router_runs(host: Netns, tmp_path: Path) -> None:
    lock = host.call(lock_driver.take, tmp_path, "weave-tap")
    with pytest.raises(HostError) as caught:
        host.call(reset_driver.reset, "weave", tmp_path, force=True)
    assert caught.value.fault is Fault.TAP_HELD
    lock.release()


def test_doctor_tries_every_feature(host: Netns) -> None:
    host.run("ip", "link", "add", "up0", "mtu", "1450", "type", "veth", "peer", "up1")
    host.run("ip", "link", "set", "up0", "up")
    host.run(
        "nft", "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }"
    )
    links = host.run("ip", "link")
    facts = host.call(doctor_driver.facts, ("weave",))
    assert facts.features == dict.fromkeys(doctor.FEATURES, True)
    assert facts.tun and "NET_ADMIN" in facts.capabilities and facts.underlay == ("up0", 1450)
    assert [str(drop) for drop in facts.forward_drops] == ["ip filter FORWARD (policy drop)"]
    assert host.run("ip", "link") == links
    refused = host.call(doctor_driver.features, frozenset(doctor.FEATURES))
    assert refused == dict.fromkeys(doctor.FEATURES, False)
    assert doctor.worst(doctor.checks(facts)) is doctor.Verdict.WARN


def test_doctor_knocks_at_ports(host: Netns) -> None:
    host.run("ip", "link", "set", "lo", "up")
    assert host.call(probe_driver.try_port, "127.0.0.1", 6783) is doctor.Answer.REFUSED
    assert host.call(probe_driver.try_port, "192.0.2.1", 6783) is doctor.Answer.UNREACHABLE


def test_underlay_is_the_way_out(host: Netns, tmp_path: Path) -> None:
    def look(*peers: str) -> Underlay:
        with IPRoute() as ipr:
            return underlay(ipr, peers, own_links=("weave", "weave-tap"))

    with pytest.raises(HostError) as caught:
        host.call(look)
    assert caught.value.fault is Fault.NO_UNDERLAY
    for number, mtu in ((0, 9000), (1, 1500)):
        link = f"up{number}"
        host.run("ip", "link", "add", link, "mtu", str(mtu), "type", "veth", "peer", f"far{number}")
        host.run("ip", "link", "set", link, "up")
        host.run("ip", "link", "set", f"far{number}", "up")
        host.run("ip", "addr", "add", f"192.0.{number}.1/24", "dev", link)
    host.run("ip", "route", "add", "default", "via", "192.0.0.254", "metric", "5")
    host.run("ip", "route", "add", "default", "via", "192.0.1.254", "metric", "50")
    assert host.call(look) == Underlay("up0", 9000) and Underlay("up0", 9000).pod_mtu == 8868
    assert host.call(look, "192.0.1.9", "192.0.0.9", "a-name") == Underlay("up1", 1500)
    host.run("ip", "link", "set", "lo", "up")
    assert host.call(look, "192.0.0.1") == Underlay("up0", 9000), "a host that lists itself"
    assert host.call(look, "192.0.0.1", "192.0.1.9") == Underlay("up1", 1500)

    def routes() -> list[str]:
        with IPRoute() as ipr:
            assert has_default_route(ipr, AF_INET) and not has_default_route(ipr, AF_INET6)
            return sorted(f"{route.network} {route.link}" for route in host_routes(ipr))

    assert host.call(routes) == ["192.0.0.0/24 up0", "192.0.1.0/24 up1"]
    (tmp_path / "resolv.conf").write_text("nameserver 192.0.2.53\n")
    assert [str(address) for address in nameservers(tmp_path / "resolv.conf")] == ["192.0.2.53"]
    assert nameservers(tmp_path / "none") == []


def test_nft_says_what_is_wrong(host: Netns) -> None:
    nft = host.call(Nft)
    with pytest.raises(HostError, match="cannot try it in nft table weave_router: No such file or directory; see that"):
        host.call(nft.run, "add element bridge none none { 1 }", "try it")
    with pytest.raises(HostError, match="cannot try it in nft table weave_router: syntax error"):
        host.call(nft.run, "nonsense", "try it")
    host.call(nft.run, "add table ip x", "try it")
    with pytest.raises(HostError):
        host.call(nft.run, "add table ip y\nadd element ip x none { 1 }", "try it")
    tables = [item["table"]["name"] for item in host.call(nft.ruleset)["nftables"] if "table" in item]
    assert tables == ["x"]  # one buffer is one transaction
    nft.close()
    nft.close()
