"""The network list as libcni 1.3 reads it (cnitool), and Debian's plugins behind ours: which, in which version.

        p1, p2 (network namespaces) --- a
"""

import ctypes
import json
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab.cnitool import ask, cnitool
from lab.lab import Lab
from lab.machine import Machine
from lab.router import wait_for

from weave_router.host.conflist import NAME

LIST = f"/etc/cni/net.d/{NAME}"
PORTS = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}
RATE = {"bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 8_000_000}}


@pytest.fixture(scope="module", autouse=True)
def tool() -> None:
    cnitool()


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with Lab() as lab:
        router = lab.router(lab.host("a", lab.switch()))
        router.launch()
        with Machine(router) as made:
            yield made


@pytest.fixture(autouse=True)
def fresh(machine: Machine) -> Iterator[None]:
    machine.shell("rm -rf /opt/cni/bin/* /etc/cni/net.d/* /var/lib/cni; ip netns add p1; ip netns add p2")
    yield
    machine.shell("ip netns del p1 2>/dev/null || true; ip netns del p2 2>/dev/null || true")
    for one in attached(machine):
        machine.router.cli("detach", "--container-id", one)


def attached(machine: Machine) -> list[str]:
    return [one["container_id"] for one in machine.router.status()["ipam"]["attachments"]]


def install(machine: Machine, *words: str) -> dict[str, Any]:
    machine.run(["weave-router", "install-cni", *words])
    return listed(machine)


def listed(machine: Machine) -> dict[str, Any]:
    return dict(json.loads(machine.shell(f"cat {LIST}")))


def types(value: dict[str, Any]) -> list[str]:
    return [plugin["type"] for plugin in value["plugins"]]


def done(said: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    assert said.returncode == 0, said
    return dict(json.loads(said.stdout)) if said.stdout else {}


# -- alone: 1.1.0, STATUS and GC ------------------------------------------------------------------------------------


def test_status_and_gc(machine: Machine) -> None:
    """GC takes what a lost DEL left. The live one was made by another runtime: libcni here knows nothing of it."""
    assert install(machine)["cniVersions"] == ["1.0.0", "1.1.0"]
    done(ask(machine, "status"))
    done(ask(machine, "add", "/run/netns/p2"))
    (live,) = attached(machine)
    assert done(ask(machine, "add", "/run/netns/p1"))["cniVersion"] == "1.1.0"
    done(ask(machine, "check", "/run/netns/p1"))
    machine.shell("rm -rf /var/lib/cni; ip netns del p1")
    wait_for("the port to go", lambda: machine.host.run(["ip", "-o", "link"]).stdout.count(" vethwr") == 1)
    assert len(attached(machine)) == 2
    done(ask(machine, "gc"))
    assert attached(machine) == [live]
    done(ask(machine, "del", "/run/netns/p2"))
    assert attached(machine) == []


def test_status_through_a_restart(machine: Machine) -> None:
    install(machine)
    machine.router.kill()
    done(ask(machine, "status"))
    machine.router.launch()
    done(ask(machine, "status"))


# -- Debian's plugins behind ours -----------------------------------------------------------------------------------


def test_chain_of_debian(machine: Machine) -> None:
    """portmap, bandwidth and tuning read our result: each leaves its mark, and takes it away. They speak 1.0.0."""
    machine.install_plugins("portmap", "bandwidth", "tuning")
    value = install(machine, "--chain", "portmap,bandwidth,tuning")
    assert types(value) == ["weave-router-cni", "portmap", "bandwidth", "tuning"] and "cniVersions" not in value
    value["plugins"][3]["sysctl"] = {"net.ipv4.conf.eth0.arp_filter": "1"}
    machine.write(LIST, json.dumps(value))
    result = done(ask(machine, "add", "/run/netns/p1", capabilities={**PORTS, **RATE}))
    assert result["cniVersion"] == "1.0.0" and len(result["ips"]) == 2
    port = result["interfaces"][1]["name"]
    rules = machine.shell("iptables-save -t nat")
    assert f"--to-destination {result['ips'][0]['address'].partition('/')[0]}:80" in rules
    assert "tbf" in machine.shell(f"tc qdisc show dev {port}")
    assert machine.shell("ip netns exec p1 cat /proc/sys/net/ipv4/conf/eth0/arp_filter") == "1\n"
    done(ask(machine, "check", "/run/netns/p1", capabilities=RATE))  # Debian's portmap misses its own rule in nft
    done(ask(machine, "del", "/run/netns/p1", capabilities={**PORTS, **RATE}))
    assert ":80" not in machine.shell("iptables-save -t nat") and attached(machine) == []


def test_loopback_behind_ours(machine: Machine) -> None:
    machine.install_plugins("loopback")
    value = install(machine)
    value["plugins"].append({"type": "loopback"})
    del value["cniVersions"]
    machine.write(LIST, json.dumps(value))
    result = done(ask(machine, "add", "/run/netns/p1"))
    assert [one["name"] for one in result["interfaces"]][2:] == ["eth0"]
    assert machine.shell("ip -n p1 -o link show lo").count("LOWER_UP") == 1
    done(ask(machine, "del", "/run/netns/p1"))


# -- which plugins stand in it --------------------------------------------------------------------------------------


def test_plugin_that_is_missing_is_left_out_until_it_comes(machine: Machine) -> None:
    """With --follow; each list works as it is written, and the version is looked at again when a binary changes."""
    follower = machine.popen(["weave-router", "install-cni", "--chain", "portmap", "--follow"])
    try:
        wait_for("the list", lambda: machine.run(["test", "-e", LIST], check=False).returncode == 0)
        alone = listed(machine)
        assert types(alone) == ["weave-router-cni"] and "cniVersions" in alone
        done(ask(machine, "add", "/run/netns/p1"))
        done(ask(machine, "del", "/run/netns/p1"))
        machine.install_plugins("portmap")
        wait_for("portmap in the list", lambda: len(listed(machine)["plugins"]) == 2, deadline=20)
        assert "cniVersions" not in listed(machine)
        done(ask(machine, "add", "/run/netns/p1", capabilities=PORTS))
        done(ask(machine, "del", "/run/netns/p1", capabilities=PORTS))
        said = json.dumps({"cniVersion": "1.1.0", "supportedVersions": ["1.0.0", "1.1.0"]})
        machine.shell("rm /opt/cni/bin/portmap")
        machine.write("/opt/cni/bin/portmap", f"#!/bin/sh\necho '{said}'\n")
        machine.shell("chmod +x /opt/cni/bin/portmap")
        wait_for("the newer version", lambda: "cniVersions" in listed(machine), deadline=20)
    finally:
        machine.shell("kill $(cat /proc/[0-9]*/stat | awk '$2 == \"(weave-router)\" {print $1}')")
        follower.communicate(timeout=10)


def test_folders_are_options(machine: Machine) -> None:
    bins, lists = "/opt/k3s/bin", "/var/lib/k3s/net.d"
    machine.run(["weave-router", "install-cni", "--bin-dir", bins, "--conf-dir", lists])
    assert machine.shell("ls /etc/cni/net.d /opt/cni/bin").split() == ["/etc/cni/net.d:", "/opt/cni/bin:"]
    done(ask(machine, "add", "/run/netns/p1", bin_dir=bins, conf_dir=lists))
    done(ask(machine, "del", "/run/netns/p1", bin_dir=bins, conf_dir=lists))


# -- written last and atomically ------------------------------------------------------------------------------------

IN_MODIFY, IN_MOVED_TO, IN_CREATE = 0x2, 0x80, 0x100


class Watch:
    """inotify on one folder: what happened to which name."""

    def __init__(self, folder: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self._libc.inotify_add_watch(self._fd, os.fsencode(folder), IN_MODIFY | IN_MOVED_TO | IN_CREATE) > 0

    def events(self) -> list[tuple[int, str]]:
        data, found = os.read(self._fd, 1 << 16), []
        os.close(self._fd)
        while data:
            _, mask, _, length = struct.unpack("iIII", data[:16])
            found.append((mask, data[16 : 16 + length].rstrip(b"\0").decode()))
            data = data[16 + length :]
        return found


def test_list_is_written_last_and_whole(machine: Machine, tmp_path: Path) -> None:
    bins, lists = tmp_path / "bin", tmp_path / "net.d"
    bins.mkdir()
    lists.mkdir()
    words = ["install-cni", "--bin-dir", str(bins), "--conf-dir", str(lists)]
    watch = Watch(lists)
    machine.router.cli(*words)
    machine.router.cli(*words, "--network", "other")
    events = watch.events()
    assert [mask for mask, name in events if name == NAME] == [IN_MOVED_TO] * 2
    assert all(Path(name).suffix not in (".conf", ".conflist", ".json") for _, name in events if name != NAME)
    program, config = bins / "weave-router-cni", lists / NAME
    assert program.stat().st_ctime_ns < config.stat().st_ctime_ns
