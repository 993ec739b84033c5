"""Objects out of hostile bytes, the range of a new universe, the token's Secret, lists and watches."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
from ipaddress import IPv4Network
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.kube_api import UNIVERSE, Sim, raw

from weave_router import limits
from weave_router.config import load
from weave_router.errors import BadPacket, UserError
from weave_router.kube import objects, ranges, start_driver, tokens
from weave_router.kube.api_driver import Api
from weave_router.kube.driver import KubeDriver
from weave_router.kube.ranges import Cluster
from weave_router.kube.values import Answer, World
from weave_router.kube.watch import GOOD_SECONDS, Watch, WatchEnded
from weave_router.tunnel.token import Token, TokenSet

RANGE = IPv4Network("10.32.0.0/12")


# -- objects -------------------------------------------------------------------------------------------------------


def node(*addresses: tuple[str, str], **more: object) -> objects.Node:
    status = {"addresses": [{"type": kind, "address": a} for kind, a in addresses]}
    return objects.node_untrusted(raw({"metadata": {"name": "n", "uid": "u"}, "status": status} | more))


def test_one_internal_ip_of_each_family() -> None:
    found = node(("Hostname", "n"), ("InternalIP", "192.0.2.1"), ("ExternalIP", "192.0.2.9"), ("InternalIP", "FD00::1"))
    assert found.addresses == ("192.0.2.1", "fd00::1") and found.problem == "" and not found.available
    assert node().problem == "has no InternalIP"
    twice = node(("InternalIP", "192.0.2.1"), ("InternalIP", "192.0.2.2"))
    assert twice.addresses == ("192.0.2.1",) and "192.0.2.1 counts" in twice.problem
    assert "no address" in node(("InternalIP", "nonsense")).problem


@pytest.mark.parametrize("value", [None, [], "x", {}, {"metadata": {}}, {"metadata": {"name": "n" * 300, "uid": "u"}},
                                   {"metadata": {"name": 1, "uid": "u"}}])  # fmt: skip
def test_what_is_no_node(value: object) -> None:
    with pytest.raises(BadPacket):
        objects.node_untrusted(raw(value))


@given(st.binary(max_size=200))
def test_any_bytes_are_an_object_or_a_bad_packet(data: bytes) -> None:
    for kind in (objects.RawNode, objects.RawLease, objects.RawSecret, objects.Page, objects.WatchLine):
        with contextlib.suppress(BadPacket):
            objects.read_untrusted(data, kind)


def test_lease_and_its_name() -> None:
    body = json.loads(objects.lease_body(1, RANGE, "uid.id", 3, "n"))
    assert body["metadata"]["name"] == "weave-router-block-10-32-0-64-26"
    lease = objects.lease_untrusted(raw(body), RANGE)
    assert lease is not None
    assert (lease.block, lease.node_uid, lease.identity, lease.gen, lease.node) == (1, "uid", "id", 3, "n")
    assert objects.lease_untrusted(raw({"metadata": {"name": "weave-router-universe"}}), RANGE) is None
    for name in ("10-32-0-64", "10-32-0-64-27", "10-64-0-0-26", "10-32-0-1-26", "010-32-0-64-26", "x", "1-2-3-4-26-1"):
        with pytest.raises(BadPacket):
            objects.lease_untrusted(raw({"metadata": {"name": f"weave-router-block-{name}"}}), RANGE)
    for change in ({"holderIdentity": "nobody"}, {"holderIdentity": "a.b", "leaseTransitions": -1}):
        edited = objects.lease_untrusted(raw(body | {"spec": change}), RANGE)
        assert edited is not None and edited.foreign


def test_universe_there_and_back() -> None:
    assert objects.universe_untrusted(UNIVERSE.body()) == UNIVERSE
    for key, value in (("range", "10.0.0.0/33"), ("universe", "00"), ("range-ipv6", "fd00::/64"), ("token-id", "xyz")):
        body = json.loads(UNIVERSE.body())
        body["metadata"]["annotations"][f"weave-router.io/{key}"] = value
        with pytest.raises(BadPacket, match="was edited"):
            objects.universe_untrusted(raw(body))


# -- range ---------------------------------------------------------------------------------------------------------

KUBEADM = "networking:\n  dnsDomain: cluster.local\n  podSubnet: {}\n  serviceSubnet: 10.96.0.0/12\n"


@pytest.mark.parametrize(("cluster", "range_v4", "v6"), [
    (Cluster(), "10.32.0.0/12", None),
    (Cluster(option="10.50.0.0/16"), "10.50.0.0/16", None),
    (Cluster(kubeadm=KUBEADM.format("10.244.0.0/16,fd00:1::/56")), "10.244.0.0/16", "fd00:1::/96"),
    (Cluster(kubeadm=KUBEADM.format('"10.244.0.0/16"'), option="10.50.0.0/16"), "10.50.0.0/16", None),
    (Cluster(pod_cidrs=("10.42.0.0/24", "10.42.3.0/24"), service_host="10.43.0.1"), "10.42.0.0/16", None),
    (Cluster(pod_cidrs=("10.42.0.0/24", "10.44.3.0/24")), "10.32.0.0/12", None),
    (Cluster(pod_cidrs=("10.52.0.0/24",), nodes=("10.52.9.1",)), "10.32.0.0/12", None),
    (Cluster(kubeadm=KUBEADM.format("10.100.0.0/16")), "10.32.0.0/12", None),
    (Cluster(kubeadm="garbage: [\n"), "10.32.0.0/12", None),
])  # fmt: skip
def test_range_of_a_new_universe(cluster: Cluster, range_v4: str, v6: str | None) -> None:
    choice = ranges.choose(cluster)
    assert str(choice.range_v4) == range_v4 and (str(choice.prefix_v6) if choice.prefix_v6 else None) == v6


@pytest.mark.parametrize("cluster", [
    Cluster(services=("10.43.0.0/16",)), Cluster(service_host="10.43.0.1"), Cluster(nodes=("10.40.0.1",)),
    Cluster(option="10.43.0.0/20", service_host="10.43.0.1"), Cluster(option="10.42.0.0/16", nodes=("10.42.0.7",)),
])  # fmt: skip
def test_a_range_that_overlaps_is_refused(cluster: Cluster) -> None:
    with pytest.raises(UserError, match="overlaps"):
        ranges.choose(cluster)


def test_only_so_much_of_a_configuration_is_read() -> None:
    far = "x" * limits.KUBE_TEXT_MAX + "\n  podSubnet: 10.244.0.0/16"
    assert ranges.choose(Cluster(kubeadm=far)).source == "default"


# -- token ---------------------------------------------------------------------------------------------------------

OLD, NEW = Token.new(os.urandom, b"domain00"), Token.new(os.urandom, b"domain00")
OTHER = Token.new(os.urandom, b"another0")


def ids(*held: Token) -> str:
    return f"{held[0].id:08x}"


def test_a_rotation_by_three_edits() -> None:
    held, lease = TokenSet([OLD]), ids(OLD)
    for lines in ([OLD, NEW], [NEW, OLD], [NEW]):
        verdict = tokens.judge("".join(f"{t}\n" for t in lines), lease, held)
        assert verdict.tokens is not None and not verdict.sentence and not verdict.create
        held, lease = verdict.tokens, verdict.token_id
    assert lease == ids(NEW) and list(held.ids) == [NEW.id]


def test_edits_that_are_no_rotation() -> None:
    held = TokenSet([OLD])
    assert "is refused" in tokens.judge(f"{NEW}\n", ids(OLD), held).sentence
    assert tokens.judge(f"{NEW}\n", ids(OLD), held).tokens is None
    assert "another domain" in tokens.judge(f"{OTHER}\n", ids(OTHER), held).sentence
    assert "stays unused: line 1" in tokens.judge("nonsense", ids(OLD), held).sentence
    early = tokens.judge(f"{NEW}\n{OLD}\n", ids(OLD), held)
    assert early.tokens is None and f"first token {ids(NEW)} is new" in early.sentence
    dropped = tokens.judge(f"{NEW}\n", ids(NEW), TokenSet([OLD, NEW]), {OLD.id})
    assert dropped.tokens is not None and "still sends with" in dropped.sentence
    assert str(OLD) not in dropped.sentence


def test_a_swap_waits_for_the_nodes_that_do_not_accept_the_token_yet() -> None:
    held, swap = TokenSet([OLD, NEW]), f"{NEW}\n{OLD}\n"
    both = frozenset(held.ids)
    waiting = tokens.judge(swap, ids(OLD), held, (), {"a": both, "b": frozenset({OLD.id}), "c": frozenset()})
    assert waiting.tokens is not None and waiting.tokens.ids == held.ids and waiting.token_id == ids(OLD)
    assert f"swap to token {ids(NEW)} waits: b, c do not accept it yet" in waiting.sentence
    done = tokens.judge(swap, ids(OLD), held, (), {"a": both, "b": both})
    assert done.tokens is not None and done.tokens.first == NEW and done.token_id == ids(NEW) and not done.sentence
    late = tokens.judge(swap, ids(NEW), TokenSet([OLD]), (), {"a": both})  # the others went on without this node
    assert late.tokens is not None and late.tokens.first == NEW
    starting = tokens.judge(swap, ids(OLD), None)
    assert starting.tokens is not None and starting.tokens.ids == held.ids, "it sends with the Lease's, accepts both"


def test_no_second_token() -> None:
    assert tokens.judge(None, "", None).create
    assert tokens.judge(None, ids(OLD), TokenSet([OLD])).create
    waiting = tokens.judge(None, ids(OLD), None)
    assert not waiting.create and "makes no second token" in waiting.sentence


def test_secret_there_and_back_and_what_is_none() -> None:
    assert objects.secret_text_untrusted(objects.secret_body(f"{OLD}\n")) == f"{OLD}\n"
    large = base64.b64encode(b"x" * 2 * limits.TOKEN_FILE_MAX).decode()
    for data in ({}, {"token": ""}, {"token": "!"}, {"token": base64.b64encode(b"\xff").decode()}, {"token": large}):
        with pytest.raises(BadPacket):
            objects.secret_text_untrusted(raw({"metadata": {}, "data": data}))


def test_a_deleted_secret_is_written_back_and_the_lease_follows_the_first_line() -> None:
    sim = Sim()
    router = sim.add("a")
    sim.run(2)
    router.core.held = TokenSet([OLD])
    universe = objects.UniverseLease(UNIVERSE.universe, UNIVERSE.range_v4, UNIVERSE.prefix_v6, ids(OLD))
    path = f"{router.core._leases}/weave-router-universe"
    sim.api.put(path, json.loads(universe.body()))
    router.core.universe = objects.universe_untrusted(json.dumps(sim.api.objects[path]).encode())
    router.core.secret_seen(None, sim.now)
    sim.run(5)
    secret = sim.api.objects["api/v1/namespaces/kube-system/secrets/weave-router"]
    assert base64.b64decode(secret["data"]["token"]).decode() == f"{OLD}\n"
    router.core.secret_seen(f"{OLD}\n{NEW}\n", sim.now)
    router.core.secret_seen(f"{NEW}\n{OLD}\n", sim.now)
    found = router.core.take_tokens()
    assert found is not None and found.first.id == NEW.id
    sim.run(5)
    named = objects.universe_untrusted(json.dumps(sim.api.objects[path]).encode()).token_id
    assert named == ids(NEW) == (router.core.universe.token_id if router.core.universe else "")
    router.core.secret_seen(f"{OTHER}\n", sim.now)
    assert router.core.take_tokens() is None and "refused" in router.core.troubles["token"]


# -- watches -------------------------------------------------------------------------------------------------------


def page(items: int, more: str = "", version: str = "7") -> Answer:
    return Answer(200, json.dumps({"metadata": {"resourceVersion": version, "continue": more},
                                   "items": [{}] * items}).encode())


def test_pages_then_a_watch_from_their_version() -> None:
    watch, rng = Watch("nodes", "api/v1/nodes"), Random(1)
    assert watch.request(rng).params == {"limit": str(limits.KUBE_PAGE)}
    assert len(watch.read_page(page(3, "next"))) == 3 and not watch.version
    assert watch.request(rng).params["continue"] == "next"
    assert len(watch.read_page(page(2))) == 2
    call = watch.request(rng)
    assert call.purpose == "watch" and call.params["resourceVersion"] == "7"
    line = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "9"}}}
    assert watch.read_line(json.dumps(line).encode()) is None and watch.version == "9"
    event = watch.read_line(json.dumps(line | {"type": "ADDED"}).encode())
    assert event is not None and event[0] == "ADDED"


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b'{"type":"ADDED","object":', b'{"type":"MADE UP","object":{}}',
                                  b'{"type":"ERROR","object":{"code":410,"message":"too old"}}'])  # fmt: skip
def test_a_bad_line_lists_anew(line: bytes) -> None:
    watch = Watch("nodes", "p", version="7")
    with pytest.raises(WatchEnded) as ended:
        watch.read_line(line)
    assert watch.version == "" and ended.value.status in (0, 410)


def test_large_pages_shrink_to_one_object_and_then_fail() -> None:
    watch = Watch("nodes", "p")
    for _ in range(3):
        assert watch.read_page(Answer(413, detail="too large")) == []
    assert watch.limit == 1
    with pytest.raises(WatchEnded):
        watch.read_page(Answer(413, detail="too large"))
    for answer in (Answer(200, b"{"), Answer(429, after=3.0), Answer(410), Answer(200, b'{"metadata":{}}')):
        with pytest.raises(WatchEnded) as ended:
            watch.read_page(answer)
        assert ended.value.after == answer.after and watch.version == ""


def test_a_refused_watch_keeps_its_place_unless_it_is_forgotten() -> None:
    watch = Watch("nodes", "p", version="7")
    watch.refused(Answer(503))
    assert watch.version == "7"
    watch.refused(Answer(410))
    assert watch.version == ""


def test_what_is_kept_is_bounded() -> None:
    sim = Sim()
    core = sim.add("a").core
    core.nodes = dict.fromkeys(map(str, range(limits.KUBE_OBJECTS_MAX)), node())  # type: ignore[arg-type]
    core.node_changed(node(), False, 0.0)
    assert len(core.nodes) == limits.KUBE_OBJECTS_MAX
    assert limits.KUBE_BODY_MAX > 1536 * 1024


# -- families ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("nodes", "families"), [
    ({}, "4"), ({"a": ["192.0.2.1"]}, "4"), ({"a": ["192.0.2.1", "2001:db8::1"]}, "46"),
    ({"a": ["2001:db8::1", "192.0.2.1"]}, "64"), ({"a": ["2001:db8::1"]}, "64"),
    ({"a": ["192.0.2.1"], "b": ["2001:db8::1"]}, "46"), ({"a": [], "b": ["2001:db8::1"]}, "64"),
    ({"b": ["2001:db8::1"], "c": ["192.0.2.1"]}, "64"),
])  # fmt: skip
def test_families_of_the_nodes(nodes: dict[str, list[str]], families: str) -> None:
    found = [objects.Node(name, "u", "1", "", tuple(addresses), (), True) for name, addresses in nodes.items()]
    assert start_driver.families_of(found, "a") == families


def test_what_an_older_version_kept_has_both_families(tmp_path: Path) -> None:
    config = load({"state_dir": str(tmp_path), "kubernetes": True}, (), {}, hostname="a")
    start_driver.keep(config, UNIVERSE, TokenSet((Token.new(os.urandom),)), "64")
    kept = start_driver.on_disk(config)
    assert kept is not None and kept.families == "64"
    path = tmp_path / start_driver.STATE_FILE
    path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items()
                                if name != "families"}))
    older = start_driver.on_disk(config)
    assert older is not None and older.families == "46"


def test_targets_that_were_kept(tmp_path: Path) -> None:
    """Whatever stands in the file is an address, or is not called."""
    config = load({"state_dir": str(tmp_path), "kubernetes": True}, (), {}, hostname="a")
    assert start_driver.kept_targets(config) == []
    start_driver.keep_targets(config, ["192.0.2.1", "2001:db8::1"])
    path = tmp_path / start_driver.TARGETS_FILE
    assert start_driver.kept_targets(config) == ["192.0.2.1", "2001:db8::1"] and path.stat().st_mode & 0o777 == 0o600
    path.write_text("192.0.2.1\nexample.org 192.0.2.2:99\n" + "192.0.2.3\n" * 1000)
    kept = start_driver.kept_targets(config)
    assert set(kept) == {"192.0.2.1", "192.0.2.3"} and len(kept) <= 2 * limits.KUBE_TARGETS
    path.write_bytes(bytes(range(256)))
    assert start_driver.kept_targets(config) == []


async def test_a_poke_and_the_end_at_one_moment() -> None:
    """The end is not lost: a router that is told to stop stops."""
    core = Sim().add("a").core
    driver = KubeDriver(core, Api("https://127.0.0.1:1", "/nonexistent"), Random(1), act=lambda work: None, world=World,
                        changed=lambda: None)
    calls = asyncio.create_task(driver._call())
    await asyncio.sleep(0)
    driver.poke()
    calls.cancel()
    await asyncio.wait([calls], timeout=2)
    assert calls.cancelled()


def test_a_good_watch_sets_the_back_off_back() -> None:
    watch = Watch("nodes", "api/v1/nodes")
    assert [watch.ended(0.1) for _ in range(4)] == [0, 1, 2, 3]
    assert watch.ended(GOOD_SECONDS) == 0
    assert watch.ended(0.1) == 1
