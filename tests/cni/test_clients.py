"""Real container runtimes on several hosts: containerd's ctr and podman as Debian ships them, Debian's chained plugins.

        containers --- a (its own block of 10.32.0.0/12) --- switch --- b (its own) --- containers
                                                               |
                                                               c (its own) --- containers

Every host is a machine of its own for its runtimes (lab/machine.py), set up by the commands that people type.
"""

import itertools
import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from lab.image import NAME as IMAGE
from lab.lab import Lab
from lab.machine import Container, Machine
from lab.router import wait_for
from lab.tools import ROOT

LISTS = "/etc/cni/net.d"
RANGE = ip_network("10.32.0.0/12")


def attached(machine: Machine) -> list[str]:
    return [one["container_id"] for one in machine.router.status()["ipam"]["attachments"]]


def bridge_address(machine: Machine) -> str:
    return str(machine.router.status()["ipam"]["bridge_address"].partition("/")[0])


def third(address: str) -> int:
    """Three seeds share the range in three equal parts, in the order of their names."""
    return (int(ip_address(address)) - int(RANGE.network_address)) * 3 // RANGE.num_addresses


@pytest.fixture(scope="module")
def machines(lab: Lab) -> Iterator[list[Machine]]:
    """Each lists all three, itself included: one list for all is what people write."""
    switch = lab.switch()
    hosts = [lab.host(label, switch) for label in "abc"]
    peers = [host.address() for host in hosts]
    routers = [lab.router(host, peers=peers, flags=["--ipalloc-init", "seed=a,b,c"]) for host in hosts]
    lab.parallel(*(router.launch for router in routers))
    with ExitStack() as stack:
        made = [stack.enter_context(Machine(router)) for router in routers]
        for router, machine in zip(routers, made, strict=True):
            wait_for("the others", lambda router=router: len(router.status()["peers"]) == 3)
            machine.install_plugins("portmap")
            machine.run(["weave-router", "install-cni"])
        yield made


@pytest.fixture
def running(machines: list[Machine]) -> Iterator[list[Container]]:
    """Containers of a test: append, and they are gone at its end."""
    made: list[Container] = []
    yield made
    for container in made:
        container.remove()
    for machine in machines:
        for one in attached(machine):
            machine.router.cli("detach", "--container-id", one, "--ifname", "", check=False)


# -- the picture: several hosts, each with its own subnet, one overlay ----------------------------------------------


def test_every_host_has_its_own_subnet(machines: list[Machine], running: list[Container]) -> None:
    for part, machine in enumerate(machines):
        running += [machine.ctr_start(f"own{number}") for number in range(2)]
        own = [container.addresses()[0] for container in running[-2:]]
        assert own[0] != own[1] and [third(one) for one in (*own, bridge_address(machine))] == [part] * 3


def test_containers_on_all_hosts_reach_each_other(machines: list[Machine], running: list[Container]) -> None:
    """The first packet between every two, by both families, and TCP with what was said compared."""
    a, b, c = machines
    running += [a.ctr_start("one"), b.podman_start("two"), c.ctr_start("three"), a.podman_start("four")]
    for near, far in itertools.permutations(running, 2):
        for address in far.addresses():
            assert near.pings(address), (near.name, far.name, address)
    for near, far in zip(running, [*running[1:], running[0]], strict=True):
        for family, address in enumerate(far.addresses()):
            port = str(7000 + 2 * running.index(near) + family)
            far.run("sh", "-c", f"nc -l -p {port} -e cat >/dev/null 2>&1 &")
            said = f"from {near.name} to {far.name}"
            ask = f"(echo {said}; sleep 0.3) | nc -w 5 {address} {port}"
            heard = lambda near=near, ask=ask: near.run("sh", "-c", ask, check=False).stdout.strip()  # noqa: E731
            wait_for(f"TCP {said}", lambda heard=heard, said=said: heard() == said)


@pytest.mark.parametrize("runtime", ["ctr", "podman"])
def test_default_route_is_the_bridge(machines: list[Machine], runtime: str) -> None:
    """`ip route` as the container's first and only command; nothing is left when it ends."""
    machine = machines[0]
    bridge = bridge_address(machine)
    if runtime == "ctr":
        said = machine.ctr_once("shows", "ip", "route")
    else:
        said = machine.podman("run", "--rm", "--cgroup-parent", f"/{machine.name}", IMAGE, "ip", "route").stdout
    first, second = said.splitlines()
    assert first.startswith(f"default via {bridge} dev eth0")
    assert second.startswith("10.32.0.0/12 dev eth0 ")
    assert attached(machine) == []


def test_podman_asks_for_an_address(machines: list[Machine], running: list[Container]) -> None:
    machine = machines[0]
    wanted = str(ip_address(bridge_address(machine)) + 99)
    running.append(machine.podman_start("asked", "--ip", wanted))
    assert running[-1].addresses()[0] == wanted


DOCKERLIKE = {
    "cniVersion": "1.0.0", "name": "dockerlike",
    "plugins": [{"type": "bridge", "bridge": "docker0", "isDefaultGateway": True, "ipMasq": False,
                 "ipam": {"type": "host-local", "ranges": [[{"subnet": "172.17.0.0/16"}]]}}],
}  # fmt: skip


@pytest.mark.parametrize("first", ["dockerlike", "weave"])
def test_container_on_two_bridges(machines: list[Machine], running: list[Container], first: str) -> None:
    """The other bridge's default route stands, overlay and its own neighbours go by their subnets' routes."""
    a, b, _ = machines
    a.install_plugins("bridge", "host-local")
    a.write(f"{LISTS}/20-dockerlike.conflist", json.dumps(DOCKERLIKE))
    second = "weave" if first == "dockerlike" else "dockerlike"
    names = {"dockerlike": "eth0", "weave": "eth1"}
    both = [word for net in (first, second) for word in ("--network", f"{net}:interface_name={names[net]}")]
    running.append(a.podman_start("both", *both))
    running.append(a.podman_start("neighbour", "--network", "dockerlike"))
    running.append(b.ctr_start("remote"))
    on_both, neighbour, remote = running
    routes = on_both.run("ip", "route").stdout.splitlines()
    assert routes[0].startswith("default via 172.17.0.1 dev eth0"), routes
    assert any(line.startswith("10.32.0.0/12 dev eth1 ") for line in routes), routes
    assert on_both.pings(remote.addresses()[0]) and on_both.pings(remote.addresses()[1])
    assert on_both.pings(neighbour.addresses()[0]) and on_both.pings("172.17.0.1")
    assert remote.pings(on_both.addresses("eth1")[0])


# -- chained plugins, restarts --------------------------------------------------------------------------------------


def test_published_port_answers_on_the_host(machines: list[Machine], running: list[Container]) -> None:
    """By chained portmap: from another host, over the underlay."""
    a, b, _ = machines
    serve = "echo from the container > /tmp/hello; exec httpd -f -p 80 -h /tmp"
    running.append(a.podman_start("web", "--publish", "8080:80", command=["sh", "-c", serve]))
    get = f"exec 3<>/dev/tcp/{a.host.address()}/8080; printf 'GET /hello HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3"
    heard = lambda: b.host.run(["bash", "-c", get], check=False).stdout.splitlines()[-1:]  # noqa: E731
    wait_for("the published port", lambda: heard() == ["from the container"])


def test_run_while_the_router_is_relaunched(machines: list[Machine], running: list[Container]) -> None:
    """Neither the start of a container nor its end fails; the first packet after it works."""
    a, b, _ = machines
    running.append(b.ctr_start("far"))
    far = running[-1].addresses()[0]
    for number in range(2):
        a.router.kill()
        starting = a.popen(["ctr", "run", "--detach", "--cni", IMAGE, f"mid{number}", "sleep", "1000"])
        a.router.launch(wait=False)
        said = starting.communicate(timeout=30)
        assert starting.returncode == 0, said
        running.append(Container(a, f"mid{number}", ("ctr", "task", "exec")))
        a.router.wait_ready()
        wait_for("the other host again", lambda: running[-1].pings(far))


def test_container_ends_while_the_router_is_down(machines: list[Machine]) -> None:
    machine = machines[0]
    container = machine.podman_start("ends")
    assert len(attached(machine)) == 1
    machine.router.kill()
    container.remove()
    assert f"{LISTS}/10-weave-router.conflist" in machine.shell(f"ls {LISTS}/*")
    machine.router.launch()
    assert attached(machine) == []


# -- what docs/operations.md says -----------------------------------------------------------------------------------


def commands() -> list[str]:
    """The lines of the shell block below "With containerd and podman"."""
    text = (ROOT / "docs" / "operations.md").read_text()
    block = re.search(r"^### With containerd and podman\n.*?^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert block is not None
    return [line for line in block[1].splitlines() if line]


def test_commands_of_the_documentation(machines: list[Machine], tmp_path: Path) -> None:
    """Each as it stands, in a shell on a host that has the router and nothing else."""
    machine = machines[2]
    machine.shell("rm -rf /opt/cni/bin/* /etc/cni/net.d/*")
    lines = commands()
    assert len(lines) >= 5
    for line in lines:
        machine.shell(line)
    assert attached(machine) == []
