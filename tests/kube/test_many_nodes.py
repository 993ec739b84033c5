"""A cluster of a thousand Nodes, each an object of 20 KB: how long a router's start takes with them, and its memory."""

from __future__ import annotations

import os
import time

from kube.member import Member
from kube.server import Server, node
from lab.lab import Lab
from lab.router import wait_for

NODES, NODE_BYTES = 1_000, 20_000
START_SECONDS = 3.0
MORE_KIB = 15 << 10


def resident_kib(router: Member) -> int:
    with open(f"/proc/{router.pid}/status") as file:
        return int(next(line.split()[1] for line in file if line.startswith("VmRSS:")))


def processor_seconds(router: Member) -> float:
    with open(f"/proc/{router.pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def started(router: Member, nodes: int) -> float:
    """Seconds from the start of the program until it knows so many Nodes and says that it is ready."""
    began = time.monotonic()
    router.launch()
    wait_for("all Nodes", lambda: router.kube()["nodes"] == nodes and router.kube()["status"] == "ready", 30)
    return time.monotonic() - began


def test_a_thousand_nodes(lab: Lab, cluster: tuple[Server, list[Member]]) -> None:
    server, (router, *_) = cluster
    started(router, 3)
    wait_for("two blocks", lambda: router.kube()["own_blocks"] == 2)
    router.stop()
    few_seconds, few_kib = started(router, 3), resident_kib(router)
    router.stop()
    server.add_all("api/v1/nodes", (node(f"m{number}", f"198.51.{number // 250}.{number % 250 + 1}", size=NODE_BYTES)
                                    for number in range(NODES)))
    seconds, kib = started(router, 3 + NODES), resident_kib(router)
    busy = processor_seconds(router)
    print(f"{NODES} Nodes: start {seconds:.1f} s ({few_seconds:.1f} with 3), {busy:.1f} s of a processor, {kib} KiB "
          f"({few_kib} with 3)")
    assert busy <= START_SECONDS and seconds - few_seconds <= START_SECONDS  # on a quiet machine the first is all of it
    assert kib - few_kib <= MORE_KIB
