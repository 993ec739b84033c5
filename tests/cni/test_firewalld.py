"""Pods beside firewalld itself, on a bus of its own, as Debian installs both.

    a (10.32.1.1) --- a/pod, a/other        service 10.96.0.1:80 -> one of the pods
        |
    b (10.32.2.1) --- b/pod                 each host with dbus-daemon and firewalld

What test_firewall.py tries with the rules as firewalld writes them; here it answers, reloads and is asked.
"""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from cni.test_firewall import SERVICE4, SERVICE6, World, ask, bridge6
from lab.lab import Lab
from lab.namespace import kill_process
from lab.network import Host
from lab.router import ping, wait_for

BUS = """<busconfig><type>system</type><listen>unix:path={bus}</listen>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/>
</policy></busconfig>
"""
OPENED = ("6783/udp", "6783/tcp")


class Firewalld:
    """Of one host, until ``close``. ``env``: where whoever asks finds it."""

    def __init__(self, lab: Lab, host: Host) -> None:
        self.host = host
        bus, config, settings = (lab.directory / f"{host.label}-{name}" for name in ("bus", "bus.conf", "firewalld"))
        config.write_text(BUS.format(bus=bus))
        settings.mkdir()
        self.env = {"DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={bus}"}
        self._log = (settings / "log").open("w")
        self._processes = [self._start("dbus-daemon", f"--config-file={config}", "--nofork", "--nopidfile")]
        wait_for("the bus", bus.exists)
        self._processes.append(self._start("firewalld", "--nofork", "--nopid", f"--system-config={settings}"))
        wait_for("firewalld", lambda: self.asked("--state", check=False) == "running")
        for port in OPENED:
            self.asked(f"--add-port={port}", "--permanent")
        self.asked("--reload")

    def _start(self, *argv: str) -> "subprocess.Popen[str]":
        return self.host.popen(argv, env=self.env, output=self._log)

    def asked(self, *words: str, check: bool = True) -> str:
        return self.host.run(["firewall-cmd", *words], env=self.env, check=check).stdout.strip()

    def close(self) -> None:
        for process in reversed(self._processes):
            kill_process(process)
        self._log.close()


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[World, list[Firewalld]]]:
    with Lab() as lab, ExitStack() as closing:
        daemons: list[Firewalld] = []

        def env_of(host: Host) -> dict[str, str]:
            daemons.append(Firewalld(lab, host))
            closing.callback(daemons[-1].close)
            return daemons[-1].env

        world = World(lab, env_of)
        for server in world.servers:
            closing.callback(kill_process, server)
        yield world, daemons


def trusted(daemon: Firewalld) -> bool:
    return daemon.asked("--get-zone-of-interface=weave", check=False) == "trusted"


@pytest.mark.parametrize("bridge_netfilter", [False, True])
def test_everything_connects_beside_firewalld(hosts: tuple[World, list[Firewalld]], bridge_netfilter: bool) -> None:
    world, daemons = hosts
    world.bridge_netfilter(bridge_netfilter)
    for host in (world.a, world.b):
        host.nft("table inet nudge { }\ndelete table inet nudge\n")  # a look, earlier than the next one of itself
    for daemon in daemons:
        wait_for("the bridge is trusted", lambda daemon=daemon: trusted(daemon), 40)
    for router in world.routers:
        wait_for("the switch is seen",
                 lambda router=router: router.status()["firewall"]["hairpin"] == bridge_netfilter, 40)
    own, bridge = [world.near.v4, world.near.v6], ["10.32.1.1", bridge6(world.a)]
    for target in world.pods:
        world.service(world.a, target)
        service = own if target is not world.near else bridge
        assert ask(world.a, target.v4, target.v6, SERVICE4, SERVICE6) == bridge + bridge
        assert ask(world.near, SERVICE4, SERVICE6) == service
        if target is not world.near:
            assert ask(world.near, target.v4, target.v6) == own


def test_a_reload_is_answered(hosts: tuple[World, list[Firewalld]]) -> None:
    """It forgets the zone of the bridge and drops what the bridge forwards, until it is told again."""
    world, daemons = hosts
    daemons[0].asked("--reload")
    wait_for("the bridge is trusted again", lambda: trusted(daemons[0]), 40)
    wait_for("pods talk", lambda: ping(world.near, world.far.v4, wait=0.3))
    client = world.client.address()
    assert ping(world.near, client, wait=3)


def test_reset_takes_the_bridge_out_of_the_zone(hosts: tuple[World, list[Firewalld]]) -> None:
    """Last here: the router is gone."""
    world, daemons = hosts
    router, host = world.routers[0], world.a
    wait_for("the bridge is trusted", lambda: trusted(daemons[0]), 40)
    for pod in (world.near, world.other):
        router.detach(pod)
    router.stop()
    router.cli("reset", "--state-dir", str(host.state_dir), "--run-dir", str(host.run_dir))
    assert not trusted(daemons[0])
