"""Addresses in service, with real routers, kernels and pods:

    h1 ── switch ── h2, h3      each host with its router; pods as the test asks

What one router does alone (``new``), three that share a range (``seed=``), what a reboot gates, and who is refused.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator

import pytest
from lab.lab import Lab
from lab.network import Host, Pod
from lab.router import Router, RouterError, ping, wait_for, wait_ping

SEED = ("--ipalloc-init", "seed=h1,h2,h3")
SHORT_REST = {"WEAVE_ROUTER_DEBUG_COOLDOWN": "1"}


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


def gate(router: Router) -> str:
    return str((router.get("/status/ipam") or {}).get("gate"))


def addresses(router: Router) -> dict[str, str]:
    return {row["address"]: row["state"] for row in router.get("/status/addresses")}


def said(router: Router, *words: str) -> str:
    """The sentence with which a command was refused."""
    done = router.cli(*words, check=False)
    assert done.returncode != 0, done.stdout
    return done.stderr


def agree(*routers: Router) -> None:
    for router in routers:
        assert router.cli("ipam", "check").stdout == "all agree\n"


def three(lab: Lab, *flags: str, **options: object) -> list[Router]:
    """h1 <- h2 <- h3: each lists the one before."""
    switch = lab.switch()
    hosts = [lab.host(f"h{number}", switch) for number in (1, 2, 3)]
    routers = [
        lab.router(host, peers=[near.address("v4") for near in hosts[max(0, n - 1) : n]], flags=flags, **options)
        for n, host in enumerate(hosts)
    ]
    lab.parallel(*(router.launch for router in routers))
    return routers


def one(lab: Lab, *flags: str, **options: object) -> tuple[Host, Router]:
    host = lab.host("h1", lab.switch())
    return host, lab.router(host, flags=flags, **options).launch()


# -- one host ------------------------------------------------------------------------------------------------------


def test_new_gives_addresses_that_survive_kill_and_rest_after_detach(lab: Lab) -> None:
    host, router = one(lab)
    pods = [router.attach(lab.pod(host, letter)) for letter in "ab"]
    assert [pod.v4 for pod in pods] == ["10.32.0.2", "10.32.0.3"]  # 10.32.0.1 is the bridge's
    assert ping(pods[0], str(pods[1].v4)) and ping(pods[0], str(pods[1].v6)) and ping(pods[0], "10.32.0.1")
    router.kill()
    router.relaunch()
    assert set(addresses(router)) == {"10.32.0.1", "10.32.0.2", "10.32.0.3"} and gate(router) == "open"
    router.detach(pods[0])
    assert addresses(router)["10.32.0.2"] == "resting"
    assert router.attach(pods[0]).v4 == "10.32.0.4"  # first released, first used again, and not before it has rested
    router.kill()
    router.relaunch()
    assert addresses(router)["10.32.0.2"] == "resting"  # a restart does not shorten it
    agree(router)


def test_claim_attach_by_name_expose_hide(lab: Lab) -> None:
    host, router = one(lab)
    router.cli("claim", "10.32.0.50", "--container-id", "blue")
    assert "belongs to container blue" in said(router, "claim", "10.32.0.50", "--container-id", "red")
    blue = router.attach(lab.pod(host, "blue"), "", "--container-id", "blue")
    assert blue.v4 == "10.32.0.50" and addresses(router)["10.32.0.50"] == "used"
    router.cli("claim", "10.32.0.51", "--container-id", "green")
    full = lab.pod(host, "full")
    full.ip("link add eth0 type bridge")
    assert "eth0" in said(router, "attach", str(full.path), "--container-id", "green")
    assert addresses(router)["10.32.0.51"] == "claimed"  # the claim outlives the attach that failed
    named = router.attach(lab.pod(host, "n"), "10.32.0.60/12")
    assert named.v4 == "10.32.0.60" and "in use by" in said(router, "claim", "10.32.0.60", "--release")
    assert "is reserved" not in said(router, "claim", "10.32.0.1")
    router.cli("claim", "10.32.0.70")
    router.cli("claim", "10.32.0.70", "--release")
    router.cli("expose", "10.32.0.9")
    assert ping(blue, "10.32.0.9")
    router.kill()
    router.relaunch()
    assert ping(blue, "10.32.0.9")
    assert router.cli("hide").stdout == "hidden 10.32.0.9\n" and not ping(blue, "10.32.0.9", wait=0.3)
    agree(router)


def test_default_subnet_and_exhaustion(lab: Lab) -> None:
    host, router = one(lab, "--ipalloc-default-subnet", "10.32.1.0/30", env=SHORT_REST)
    pods = [router.attach(lab.pod(host, letter)) for letter in "ab"]
    assert [pod.v4 for pod in pods] == ["10.32.1.1", "10.32.1.2"] and ping(pods[0], "10.32.0.1")
    begun = time.monotonic()
    sentence = said(router, "attach", str(lab.pod(host, "c").path))
    assert "no free address in 10.32.1.0/30 on this node: 3 addresses in use" in sentence
    assert time.monotonic() - begun < 2
    router.detach(pods[0])
    last = lab.pod(host, "d")
    wait_for("an address after the rest", lambda: router.cli("attach", str(last.path), check=False).returncode == 0)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--ipalloc-init", "none"], "the store holds a part of universe"),
        (["--ipalloc-init", "seed=h1,h2"], "which is not that of --ipalloc-init"),
        (["--ipalloc-range", "10.48.0.0/12"], "give --ipalloc-range 10.32.0.0/12"),
        (["--bridge-address", "10.32.0.2"], "--bridge-address: 10.32.0.2 belongs to container"),
    ],
)
def test_a_start_that_contradicts_the_store_is_refused(lab: Lab, flags: list[str], sentence: str) -> None:
    host, router = one(lab)
    router.attach(lab.pod(host, "a"))
    router.stop()
    router.flags = flags
    with pytest.raises(RouterError) as error:
        router.launch()
    assert sentence in str(error.value)
    router.flags = []
    router.launch()
    agree(router)


def test_joining_is_said_to_be_not_in_service(lab: Lab) -> None:
    host = lab.host("h1", lab.switch())
    with pytest.raises(RouterError, match="joining a universe of addresses is not in service yet: give --ipalloc-init"):
        lab.router(host, peers=["192.0.2.77"]).launch()


def test_an_old_copy_of_the_store_opens_only_at_the_operators_word(lab: Lab) -> None:
    host, router = one(lab)
    router.stop()
    copy = (host.state_dir / "store.db").read_bytes()
    router.launch()
    router.attach(lab.pod(host, "a"))
    router.stop()
    (host.state_dir / "store.db").write_bytes(copy)
    router.launch()
    assert gate(router) == "restored"
    assert addresses(router) == {"10.32.0.1": "used", "10.32.0.2": "claimed"}  # found on the port of a pod that stands
    assert "the store is older" in said(router, "attach", str(lab.pod(host, "b").path))
    router.cli("ipam", "ungate")
    assert router.attach(lab.pod(host, "c")).v4 == "10.32.0.3"
    agree(router)


# -- three hosts ---------------------------------------------------------------------------------------------------


def test_seed_shares_the_range_and_reboots_are_gated(lab: Lab) -> None:
    routers = three(lab, *SEED)
    pods = [router.attach(lab.pod(router.host, "a")) for router in routers]
    assert [pod.v4 for pod in pods] == ["10.32.0.2", "10.37.85.130", "10.42.170.194"] or len({p.v4 for p in pods}) == 3
    for near in pods:
        for far in pods:
            if near is not far:
                wait_ping(near, str(far.v4))
                wait_ping(near, str(far.v6))
    assert f"{pods[1].v4} lies in a block of node h2" in said(routers[0], "claim", str(pods[1].v4))
    members = {m["nickname"]: (m["standing"], m["blocks"]) for m in routers[2].get("/status/ipam")["members"]}
    assert members.keys() == {"h1", "h2", "h3"} and sum(blocks for _, blocks in members.values()) == 16384
    assert {standing for standing, _ in members.values()} == {"member"}
    # one booted: shut until a neighbour answered
    routers[1].kill()
    routers[1].reboot_id()
    routers[1].relaunch()
    wait_for("the gate of h2", lambda: gate(routers[1]) == "open", 5)
    # all off, one comes: shut; the second makes the majority
    for router in routers:
        router.kill()
        router.reboot_id()
    routers[0].launch()
    assert gate(routers[0]) == "closed"
    assert "this host was booted and no other member has answered yet" in said(
        routers[0], "attach", str(lab.pod(routers[0].host, "b").path))  # fmt: skip
    routers[1].launch()
    wait_for("the gates of h1 and h2", lambda: gate(routers[0]) == gate(routers[1]) == "open", 10)
    assert routers[0].attach(lab.pod(routers[0].host, "c")).v4
    routers[2].launch()
    wait_for("the gate of h3", lambda: gate(routers[2]) == "open", 5)
    agree(*routers)


def test_two_nodes_of_one_name_stop_and_name_each_other(lab: Lab) -> None:
    switch = lab.switch()
    first, second = lab.host("h1", switch), lab.host("h2", switch)
    one = lab.router(first, name="h1", flags=SEED).launch()
    one.attach(lab.pod(first, "a"))
    two = lab.router(second, name="h1", flags=SEED, peers=[first.address("v4")]).launch()
    for router in (one, two):
        wait_for("both know", lambda router=router: any("is claimed by" in w for w in router.status()["warnings"]))
        assert "not ready yet" in said(router, "attach", str(lab.pod(router.host, "z").path))


def test_other_universes_and_ranges_are_named_and_carried(lab: Lab) -> None:
    switch = lab.switch()
    first, second = lab.host("h1", switch), lab.host("h2", switch)
    one = lab.router(first, flags=["--ipalloc-init", "new"]).launch()
    two = lab.router(second, flags=["--ipalloc-init", "new"], ipalloc_range="10.64.0.0/12",
                     peers=[first.address("v4")]).launch()  # fmt: skip
    for router, other, network in ((one, "h2", "10.64.0.0/12"), (two, "h1", "10.32.0.0/12")):
        wait_for("the other is seen", lambda router=router: router.get("/status/ipam")["other_universes"])
        [row] = router.get("/status/ipam")["other_universes"]
        assert (row["nickname"], row["range"]) == (other, network)
        assert any(f"node {other} is in another universe of addresses ({network})" in w
                   for w in router.status()["warnings"])  # fmt: skip
        assert [link["state"] for link in router.get("/status/connections")] == ["established"]
        router.attach(lab.pod(router.host, "a"))


@pytest.mark.parametrize("network", ["10.32.0.0/12", "10.64.0.0/12"])
def test_pods_of_one_universe_keep_talking_while_a_stranger_is_there(lab: Lab, network: str) -> None:
    """h1 and h2 share a universe; h3 founds its own, in the same range (with the same addresses) or another."""
    switch = lab.switch()
    hosts = [lab.host(f"h{number}", switch) for number in (1, 2, 3)]
    seed = ["--ipalloc-init", "seed=h1,h2"]
    one = lab.router(hosts[0], flags=seed).launch()
    two = lab.router(hosts[1], flags=seed, peers=[hosts[0].address("v4")]).launch()
    near, far = (router.attach(lab.pod(router.host, "a")) for router in (one, two))
    wait_ping(near, str(far.v4))
    wait_ping(near, str(far.v6))
    talks = [near.popen(["ping", "-n", "-q", "-i", "0.02", str(to)]) for to in (far.v4, far.v6)]
    stranger = lab.router(hosts[2], flags=["--ipalloc-init", "new"], ipalloc_range=network,
                          peers=[host.address("v4") for host in hosts[:2]]).launch()  # fmt: skip
    for router, others in ((one, {"h3"}), (two, {"h3"}), (stranger, {"h1", "h2"})):
        wait_for("the others are seen", lambda router=router, others=others: others == {
            row["nickname"] for row in router.get("/status/ipam")["other_universes"]})  # fmt: skip
        warnings = router.status()["warnings"]
        assert all(any(f"node {other} is in another universe of addresses" in w for w in warnings) for other in others)
        members = {m["nickname"] for m in router.get("/status/ipam")["members"]}
        assert members == {"h1", "h2", "h3"} - others
    for number in range(4):  # in the same range: addresses that pods of the others have
        stranger.attach(lab.pod(hosts[2], f"s{number}"))
    more = one.attach(lab.pod(hosts[0], "b"))
    assert ping(more, str(far.v4), count=5)
    for talk in talks:
        assert talk.poll() is None
        talk.send_signal(signal.SIGINT)
        sent, received = map(int, re.findall(r"(\d+) packets transmitted, (\d+) received", talk.communicate()[0])[0])
        assert sent > 20 and received >= sent - 1, (sent, received)  # the last may be under way
    agree(one, two)


def test_a_full_node_gets_blocks_from_a_neighbour(lab: Lab) -> None:
    """A /26 makes 16 blocks of 4; h1 has 5 or 6 of them and asks before its last address is gone."""
    routers = three(lab, *SEED, ipalloc_range="10.32.0.0/26")
    wait_for("links", lambda: all(len(r.get("/status/ipam")["members"]) == 3 for r in routers))
    pods: list[Pod] = []
    for number in range(30):
        pods.append(routers[0].attach(lab.pod(routers[0].host, f"p{number}")))
    assert len({pod.v4 for pod in pods}) == 30
    wait_ping(pods[0], str(pods[-1].v4))
    far = routers[2].attach(lab.pod(routers[2].host, "far"))
    wait_ping(far, str(pods[-1].v4))
    agree(*routers)
