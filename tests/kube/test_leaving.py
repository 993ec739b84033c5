"""A router that is uninstalled: it serves the pods that stand, lets none in, and then nothing of it is left.

    api ── switch ── n1, n2, n3      each a host of the laboratory with its router, and a Node object
"""

from __future__ import annotations

import json

from kube.member import LEASES, SECRETS, Member, holders
from kube.server import Server
from lab.lab import Lab
from lab.router import wait_for, wait_ping

from weave_router.host.install_driver import our_executable

LABEL = "labelSelector=app.kubernetes.io/name=weave-router"


def probe(router: Member, kind: str) -> tuple[int, str]:
    """(exit status, what it says)"""
    socket = router.host.run_dir / "attach.sock"
    done = router.host.run([str(our_executable()), "probe", kind, str(socket)], check=False)
    return done.returncode, done.stdout + done.stderr


def made_by_us(router: Member) -> list[str]:
    """Links and rules of ours in the router's namespace."""
    links = [link["ifname"] for link in json.loads(router.host.run(["ip", "-j", "link"]).stdout)]
    rules = router.host.run(["nft", "list", "ruleset"]).stdout
    return [name for name in links if name.startswith(("weave", "vethwr"))] + (["rules"] if "weave" in rules else [])


def launch_to_leave(router: Member) -> None:
    router.env["WEAVE_ROUTER_UNINSTALL"] = "1"
    router.launch(wait=False)


def test_pods_stay_until_they_end_and_then_all_is_gone(lab: Lab, cluster: tuple[Server, list[Member]]) -> None:
    server, routers = cluster
    lab.parallel(*(router.launch for router in routers))
    first, second, _ = routers
    pods = [router.attach(lab.pod(router.host, "p")) for router in (first, second)]
    wait_ping(pods[0], pods[1].address("v4"))
    mine = set(holders(server, first))
    assert first.stop() == 0
    launch_to_leave(first)
    first.wait_ready()
    wait_ping(pods[0], pods[1].address("v4"))
    status = first.status()
    assert status["service"]["status"] == "uninstalling"
    container = status["ipam"]["attachments"][0]["container_id"]
    waits = f"uninstall waits for the end of 1 pods: {container}"
    assert waits in status["warnings"]
    assert waits in probe(first, "ready")[1] and probe(first, "live") == (0, "")
    refused = first.cli("attach", str(lab.pod(first.host, "q").path), check=False)
    assert refused.returncode == 1 and waits in refused.stderr
    first.detach(pods[0])
    wait_for("ready", lambda: probe(first, "ready") == (0, ""), 20)
    assert made_by_us(first) == []
    assert {server.leases()[name] for name in mine} == {""}
    assert [path.name for path in first.host.state_dir.iterdir()] == ["store.lock"]
    first.kill()  # the same again, without a store
    launch_to_leave(first)
    wait_for("ready again", lambda: probe(first, "ready") == (0, ""), 20)
    assert {server.leases()[name] for name in mine} == {""}
    assert first.stop() == 0
    assert [*first.host.state_dir.iterdir(), *first.host.run_dir.iterdir()] == []
    del first.env["WEAVE_ROUTER_UNINSTALL"]
    first.launch()
    wait_ping(first.attach(lab.pod(first.host, "r")), pods[1].address("v4"))


def test_leases_are_emptied_when_the_api_server_is_back(lab: Lab, cluster: tuple[Server, list[Member]]) -> None:
    """Killed after its state was wiped, it knows its Leases by the Node's UID alone."""
    server, (first, *_) = cluster
    first.launch()
    mine = set(holders(server, first))
    assert mine
    first.stop()
    first.host.ip("link set eth0 down")
    launch_to_leave(first)
    wait_for("the state is wiped", lambda: not (first.host.state_dir / "store.db").exists(), 20)
    wait_for("it says so", lambda: "Leases are not emptied yet" in probe(first, "ready")[1], 20)
    first.kill()
    launch_to_leave(first)
    wait_for("it says so again", lambda: "Leases are not emptied yet" in probe(first, "ready")[1], 20)
    first.host.ip("link set eth0 up")
    wait_for("ready", lambda: probe(first, "ready") == (0, ""), 30)
    assert {server.leases()[name] for name in mine} == {""}


def test_the_documented_command_removes_the_rest(lab: Lab, cluster: tuple[Server, list[Member]]) -> None:
    """What it selects is what is left: universe, blocks, Secret."""
    server, (first, *_) = cluster
    first.launch()
    wait_for("two blocks", lambda: len(holders(server, first)) == 2)
    first.stop()
    left = [each["metadata"]["name"] for path in (LEASES, SECRETS) for each in server.ask("GET", path)["items"]]
    marked = [each["metadata"]["name"] for path in (LEASES, SECRETS)
              for each in server.ask("GET", f"{path}?{LABEL}")["items"]]
    assert sorted(marked) == sorted(name for name in left if name.startswith("weave-router"))
    assert {"weave-router", "weave-router-universe"} < set(marked)


def test_reset_by_hand_empties_the_leases(lab: Lab, cluster: tuple[Server, list[Member]]) -> None:
    server, (first, second, _) = cluster
    lab.parallel(first.launch, second.launch)
    mine, others = set(holders(server, first)), holders(server, second)
    first.stop()
    account = ("--service-account", str(server.account), "--json")
    away = first.cli("reset", "--node-name", first.name, "--kubernetes-api", "127.0.0.1:1", *account)
    assert "this Node's Leases in kube-system" in json.loads(away.stdout)["left"]
    assert set(server.leases()) >= mine
    second.stop()
    there = f"{server.address}:{server.port}"
    done = second.cli("reset", "--node-name", second.name, "--kubernetes-api", there, *account)
    assert json.loads(done.stdout)["left"] == ""
    assert {server.leases()[name] for name in others} == {""}
    assert all(server.leases()[name] for name in mine)
