"""The unit of deploy/ under systemd itself: start, death, reload, restart, stop, wrong options, reset.

    pod -- [h1: systemd -- weave-router.service] -- switch -- [h2 router] -- pod

Every test leaves the service running, with the pod attached.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from lab import Lab, Pod
from lab.init import UNIT, InitHost, missing
from lab.router import learn_addresses, ping, program, wait_for, wait_ping

CAPABILITIES = 1 << 12 | 1 << 13 | 1 << 39
"""CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF."""
OPTIONS, TOKEN = "/etc/weave-router/environment", "/etc/weave-router/token"
BRIDGE_ADDRESS, ADDRESS = "10.32.1.1", "10.32.1.2"
AFTER_RESET = "10.32.3.2"
"""Others still know the former node and its addresses."""


@dataclass
class World:
    machine: InitHost
    pod: Pod
    far: Pod
    options: str
    token: str

    def cli(self, *words: str) -> str:
        return self.machine.run(["weave-router", *words]).stdout

    @property
    def pid(self) -> int:
        """Of the service's main process, as the machine counts."""
        return int(self.machine.show("MainPID"))

    def process(self) -> Path:
        return self.machine.root / "proc" / str(self.pid)

    def serves(self) -> bool:
        return self.machine.run(["weave-router", "status"], check=False).returncode == 0

    def accepted(self) -> int:
        """Tokens that the router takes."""
        return len(json.loads(self.cli("token", "status", "--json"))["accepted"])

    def attach(self, address: str) -> None:
        """As from the machine's own shell, but with a pod of the lab's."""
        argv = [program(), "attach", str(self.pod.path), f"{address}/12"]
        self.machine.host.run(argv, env={"WEAVE_ROUTER_RUN_DIR": str(self.machine.run_dir)})
        learn_addresses(self.pod)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    if lacking := missing():
        pytest.skip(f"systemd does not boot here: {lacking}")
    with Lab() as lab:
        switch = lab.switch()
        host, other = lab.host("h1", switch), lab.host("h2", switch)
        router = lab.router(other, bridge_address="10.32.2.1").launch()
        far = router.attach(lab.pod(other, "p"), "10.32.2.2/12")
        options = f"WEAVE_ROUTER_TARGETS={other.address()}\nWEAVE_ROUTER_BRIDGE_ADDRESS={BRIDGE_ADDRESS}\n"
        with InitHost(host) as machine:
            world = World(machine, lab.pod(host, "p"), far, options, lab.token())
            machine.write(OPTIONS, options)
            machine.write(TOKEN, world.token + "\n")
            machine.systemctl("start", UNIT)
            wait_for("the service", world.serves)
            world.attach(ADDRESS)
            yield world


def test_it_serves_with_three_capabilities_and_nothing_else(world: World) -> None:
    wait_ping(world.pod, world.far.v4)
    wait_ping(world.pod, world.far.v6)
    said = dict(line.split(":\t", 1) for line in (world.process() / "status").read_text().splitlines())
    assert int(said["CapBnd"], 16) == int(said["CapEff"], 16) == CAPABILITIES
    assert said["NoNewPrivs"].strip() == "1" and said["Seccomp"].strip() == "2"
    shown = {name: world.machine.show(name) for name in ("LimitNICE", "LimitRTPRIO", "RestrictRealtime")}
    assert shown == {"LimitNICE": "30", "LimitRTPRIO": "1", "RestrictRealtime": "no"}
    assert world.machine.show("StateDirectory") == "weave-router"
    assert (world.machine.root / "var/lib/weave-router").stat().st_mode & 0o777 == 0o700


def test_it_comes_back_when_killed(world: World) -> None:
    before, restarts = world.pid, int(world.machine.show("NRestarts"))
    world.machine.run(["kill", "-9", str(before)])
    wait_for("another process", lambda: world.pid not in (0, before) and world.serves())
    assert int(world.machine.show("NRestarts")) == restarts + 1
    wait_ping(world.pod, world.far.v4)


def test_reload_reads_the_token_file_again(world: World) -> None:
    before = world.pid
    following = world.cli("token", "new", "--domain-of", TOKEN).strip()
    for lines in ([world.token, following], [world.token]):
        world.machine.write(TOKEN, "\n".join(lines) + "\n")
        world.machine.systemctl("reload", UNIT)
        wait_for("as many tokens", lambda lines=lines: world.accepted() == len(lines))
    assert world.pid == before and ping(world.pod, world.far.v4)


def test_restart_and_stop_leave_pods_attached(world: World) -> None:
    before = world.pid
    world.machine.systemctl("restart", UNIT)
    wait_for("another process", lambda: world.pid != before and world.serves())
    wait_ping(world.pod, world.far.v4)
    world.machine.systemctl("stop", UNIT)
    assert (world.machine.show("ActiveState"), world.machine.show("Result")) == ("inactive", "success")
    assert ping(world.pod, BRIDGE_ADDRESS), "the bridge stays"
    assert list(world.machine.run_dir.iterdir()), "lock files keep their inodes"
    world.machine.systemctl("start", UNIT)
    wait_ping(world.pod, world.far.v4)


def test_wrong_options_end_it_for_good(world: World) -> None:
    world.machine.systemctl("stop", UNIT)
    restarts = world.machine.show("NRestarts")
    world.machine.write(OPTIONS, world.options + "WEAVE_ROUTER_MTU=many\n")
    world.machine.systemctl("start", UNIT)  # Type=exec: it was executed
    wait_for("its end", lambda: world.machine.show("ActiveState") == "failed")
    assert (world.machine.show("ExecMainStatus"), world.machine.show("NRestarts")) == ("2", restarts)
    assert "WEAVE_ROUTER_MTU" in world.machine.log()
    world.machine.write(OPTIONS, world.options)
    world.machine.systemctl("start", UNIT)
    wait_ping(world.pod, world.far.v4)


def test_reset_takes_everything_and_the_next_start_is_a_first(world: World) -> None:
    links = ["ip", "-br", "link"]
    assert "weave" in world.machine.run(links).stdout
    world.machine.systemctl("stop", UNIT)
    world.cli("reset", "--force")
    assert "weave" not in world.machine.run(links).stdout
    world.machine.write(OPTIONS, world.options.replace(BRIDGE_ADDRESS, "10.32.3.1"))
    world.machine.systemctl("start", UNIT)
    wait_for("the service", world.serves)
    world.attach(AFTER_RESET)
    wait_ping(world.pod, world.far.v4)
