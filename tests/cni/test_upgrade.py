"""An update of the router: what an earlier version attached is CHECKed, and deleted, and its journal carried out.

    c1, c2 (wired as that version did, by ip and bridge) --- weave
"""

import json
import lzma
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cni.node import Node, added, quiet
from lab.lab import Lab
from lab.namespace import Namespace
from lab.router import ping

STATES = sorted(path for path in (Path(__file__).parent / "upgrade").iterdir() if path.is_dir())
BOOT = "0000000b-0000-4000-8000-00000000b001"


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def wire(node: Node, pod: Namespace, container: str, result: dict[str, Any]) -> None:
    """As version 1 left a pod."""
    _, port, inside = result["interfaces"]
    four, six = (ip["address"] for ip in result["ips"])
    node.router.host.ip(
        f"link add {port['name']} mtu 1368 type veth peer name eth0 mtu 1368 address {inside['mac']} netns {pod.name}",
        f"link set {port['name']} address {port['mac']} master weave alias "
        f"'weave-router {container} eth0 {four.partition('/')[0]}'",
    )
    flags = ["learning", "off", "flood", "off", "locked", "on"]
    node.router.host.run(["bridge", "link", "set", "dev", port["name"], *flags])
    node.router.host.run(["bridge", "fdb", "replace", inside["mac"], "dev", port["name"], "master", "static"])
    node.router.host.ip(f"link set {port['name']} up")
    pod.ip(f"address add {four} dev eth0", f"address add {six} dev eth0 nodad", "link set eth0 up",
           "route add default via 10.32.0.1 dev eth0 onlink")  # fmt: skip


def taken_over(lab: Lab, state: Path, pods: dict[str, Namespace]) -> Node:
    """A host as that version left it, the router not yet launched."""
    router = lab.router(lab.host("h1", lab.switch()), token=(state / "token").read_text().strip())
    router.boot_id = BOOT
    shutil.rmtree(router.host.state_dir, ignore_errors=True)
    shutil.copytree(state / "state", router.host.state_dir)
    router.host.state_dir.chmod(0o700)
    packed = router.host.state_dir / "store.db.xz"
    (router.host.state_dir / "store.db").write_bytes(lzma.decompress(packed.read_bytes()))
    packed.unlink()
    router.host.ip("link add weave type bridge mcast_querier 1", "link set weave address 0a:58:0a:20:00:01 up")
    node = Node(router)
    for container, pod in pods.items():
        wire(node, pod, container, json.loads((state / f"{container}.json").read_text()))
    with closing(sqlite3.connect(router.host.state_dir / "store.db", isolation_level=None)) as store:
        store.execute("UPDATE attachment SET netns_inode = ? WHERE container = 'c1'", (pods["c1"].path.stat().st_ino,))
    return node


@pytest.mark.parametrize("state", STATES, ids=lambda path: path.name)
def test_what_an_earlier_version_left(lab: Lab, state: Path) -> None:
    pods = {name: lab.namespace(name) for name in ("c1", "c2")}
    first = json.loads((state / "c1.json").read_text())
    node = taken_over(lab, state, pods)
    assert len(node.journal()) == 1
    node.router.launch()
    assert (node.attachments(), node.journal()) == ([("c1", "10.32.0.2")], [])  # c2 went by the journal
    assert node.router.cli("ipam", "check").stdout == "all agree\n"
    assert ping(pods["c1"], "10.32.0.1") and not ping(pods["c2"], "10.32.0.1", wait=0.2)
    quiet(node.run("CHECK", pods["c1"], version="1.0.0", prevResult=first))
    assert added(node.run("ADD", pods["c1"], version="1.0.0"))["ips"] == first["ips"]  # one in doubt asks again
    quiet(node.run("DEL", pods["c1"], version="1.0.0", prevResult=first))
    assert node.attachments() == []
    assert node.run("CHECK", pods["c1"], version="1.0.0", prevResult=first).code == 3


@pytest.mark.parametrize("state", STATES, ids=lambda path: path.name)
def test_an_update_with_a_reboot_releases_all(lab: Lab, state: Path) -> None:
    node = taken_over(lab, state, {"c1": lab.namespace("c1")})
    node.router.host.ip("link del vethwr802d2d584")
    node.router.reboot_id()
    node.shim.boot_id = node.router.boot_id
    node.router.launch()
    assert (node.attachments(), node.journal()) == ([], [])
    assert node.router.cli("ipam", "check").stdout == "all agree\n"
