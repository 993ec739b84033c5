"""mesh/own.py, targets.py, admission.py, share.py: the small parts of the core, each in virtual time."""

from itertools import count
from random import Random

import pytest
from unit.mesh_helpers import identity, record, signed

from weave_router import limits
from weave_router.errors import UsageError
from weave_router.mesh.admission import Admission, address_key
from weave_router.mesh.calls import LINKS_SOUGHT, Calls
from weave_router.mesh.own import OwnRecord
from weave_router.mesh.record import FLAG_NAT, Prefix
from weave_router.mesh.replica import Replica
from weave_router.mesh.share import ALLOWANCE_SECONDS, LoopShare
from weave_router.mesh.status import dial_reason
from weave_router.mesh.table import Delta
from weave_router.mesh.targets import Targets, TargetState, parse_target, retry_interval
from weave_router.tunnel.identity import verify


# -- own record --------------------------------------------------------------------------------------------------------
def own(now: float = 100.0) -> OwnRecord:
    return OwnRecord(record(1), identity(1).sign, now)


def issued(one: OwnRecord, until: float) -> list[float]:
    """Times at which new records were issued."""
    times = []
    while (at := one.get_timer()) is not None and at <= until:
        if one.handle_timer(at):
            times.append(round(at, 3))
    return times


def test_changes_settle_50_ms_and_are_a_second_apart() -> None:
    one = own()
    one.change(105.0, pod_mtu=1400)
    one.change(105.01, name="other")
    assert issued(one, 106.0) == [105.05] and one.signed.record.seq == 2
    assert (one.signed.record.pod_mtu, one.signed.record.name) == (1400, "other")
    one.change(105.2, pod_mtu=1500)
    assert issued(one, 110.0) == [106.05]
    one.change(110.0, pod_mtu=1500)
    assert one.get_timer() is None, "no change, no record"


def test_urgent_changes_go_at_once_while_the_burst_lasts() -> None:
    one = own()
    times = []
    for number in range(12):
        one.change(200.0, urgent=True, prefixes=(Prefix(0x0A200000 + number, 32),))
        times += [200.0] if one.handle_timer(200.0) else []
    assert len(times) == limits.RECORD_OWN_BURST < limits.RECORD_BURST
    assert issued(one, 205.0) == [201.0]
    assert one.signed.record.prefixes == (Prefix(0x0A200000 + 11, 32),)


def test_groups_joined_together_are_one_record_after_50_ms() -> None:
    one = own()
    one.change(101.0, urgent=True, prefixes=(Prefix(0x0A200000, 32),))
    assert issued(one, 101.0) == [101.0]
    for number in range(1, 6):
        groups = tuple(bytes([1, 0, 0x5E, 0, 0, i]) for i in range(number))
        one.change(101.0 + number / 1000, soon=True, groups=groups)
    assert issued(one, 103.0) == [101.051]
    assert len(one.signed.record.groups) == 5


def test_round_trip_times_alone_wait_a_minute() -> None:
    one, other = own(), identity(2).node_id
    one.set_links({other: 30}, 100.5)
    assert issued(one, 150.0) == [101.0]
    one.set_links({other: 31}, 110.0)
    one.set_links({other: 33}, 120.0)
    assert issued(one, 160.9) == []
    assert issued(one, 162.0) == [161.0] and one.signed.record.links[0].rtt == 33
    one.set_links({}, 170.0)
    assert issued(one, 171.0) == [170.05]


def test_what_breaks_a_bound_changes_nothing() -> None:
    one = own()
    many = tuple(Prefix(0x0A200000 + n, 32) for n in range(limits.RECORD_PREFIXES_MAX + 1))
    with pytest.raises(ValueError):
        one.change(101.0, prefixes=many)
    assert one.draft == one.signed.record and one.get_timer() is None


def test_jump_rises_above_at_once() -> None:
    one = own()
    one.jump(9, 101.0)
    assert one.handle_timer(101.0)
    assert (one.signed.record.incarnation, one.signed.record.seq) == (9, 1)


# -- targets -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("text", "expected"), [
    ("10.0.0.1", ("10.0.0.1", 6783)), (" 10.0.0.1:7000 ", ("10.0.0.1", 7000)), ("Example.ORG", ("example.org", 6783)),
    ("example.org:1", ("example.org", 1)), ("2001:DB8::1", ("2001:db8::1", 6783)), ("[::1]:65535", ("::1", 65535)),
    ("[::1]", ("::1", 6783)), ("fe80::1%eth0", ("fe80::1%eth0", 6783)),
])
def test_target_texts(text: str, expected: tuple[str, int]) -> None:
    assert parse_target(text, 6783) == expected


@pytest.mark.parametrize("text", [
    "", " ", ":", ":80", "host:", "host:0", "host:65536", "host:http", "host:٣", "a b", "http://x", "[::1", "[::1]x",
    "[::1]:", "::1:x", "0.0.0.0", "::", "224.0.0.1", "user@host", "h" * 254,
])
def test_bad_target_texts_are_one_sentence(text: str) -> None:
    with pytest.raises(UsageError, match=r"write|name"):
        parse_target(text, 6783)


def targets() -> Targets:
    return Targets(bytes(16), Random(1), 6783)


def test_one_target_for_two_spellings_and_forget_by_either() -> None:
    some = targets()
    first = some.add("2001:db8::1", 0.0)
    assert some.add("[2001:DB8::1]:6783", 5.0) is first and len(some.all()) == 1
    assert some.remove("[2001:db8:0::1]") is first and some.remove("2001:db8::1") is None


def test_number_of_targets_is_bounded() -> None:
    some = targets()
    for number in range(limits.TARGETS_MAX):
        some.add(f"host{number}", 0.0)
    with pytest.raises(UsageError, match="forget"):
        some.add("one-more", 0.0)
    some.add("host0", 0.0)


def test_failed_calls_are_repeated_with_jitter() -> None:
    some, waits = targets(), []
    target = some.add("host", 0.0)
    assert some.due_targets(0.0) == [target]
    for call in range(200):
        some.calling(target, call)
        assert target.state is TargetState.CONNECTING and some.due_targets(1e9) == []
        some.failed(target, "refused", 3, 100.0)
        assert target.retry_at is not None
        waits.append(target.retry_at - 100.0)
    assert 1.35 <= min(waits) < 1.4 and 1.6 < max(waits) <= 1.65
    assert [retry_interval(count) for count in (0, 2, 3, 10, 20, 8000)] == [1, 1, 1.5, 5, 10, 10]


def test_own_address_is_marked_and_asked_again_after_a_minute() -> None:
    some = targets()
    target = some.add("host", 0.0)
    some.calling(target, 1)
    some.is_self(target, 3, 10.0)
    assert target.state is TargetState.SELF and target.retry_at == 70.0


def test_smaller_id_calls_first() -> None:
    small, large = Targets(bytes(16), Random(1), 1), Targets(b"\xff" * 16, Random(1), 1)
    assert small.first_call_at(b"\x80" * 16, 0.0) < 0.5 < 1.0 < large.first_call_at(b"\x80" * 16, 0.0)


def test_members_come_due_in_order_and_unwanted_ones_go() -> None:
    some = targets()
    ids = [bytes([number]) * 16 for number in range(1, 6)]
    for delay, node_id in enumerate(ids):
        some.want(node_id, 10.0 - delay)
        some.want(node_id, 50.0)  # later: changes nothing
    assert some.get_timer() == 6.0
    assert [member.node_id for member in some.due_members(7.0, 9, lambda _: True)] == [ids[4], ids[3]]
    assert [member.node_id for member in some.due_members(20.0, 1, lambda one: one != ids[2])] == [ids[1]]
    assert some.due_members(20.0, 0, lambda _: True) == []
    some.drop(ids[0])
    assert some.due_members(20.0, 9, lambda _: True) == [] and some.get_timer() is None


# -- calls -------------------------------------------------------------------------------------------------------------
def calls(up: dict[bytes, int]) -> Calls:
    some = Targets(identity(1).node_id, Random(1), 6783)
    replica = Replica(own(0.0), verify=verify, now=0.0)
    return Calls(some, replica, up, discovery=True, rng=Random(2), numbers=count(1), emit=lambda _: None)


def test_a_record_that_names_another_way_is_worth_a_call() -> None:
    some = calls({})
    old, new = signed(2), signed(2, seq=2, endpoints=(("10.0.0.2", 1),))
    some.follow(Delta(old.node_id, old, signed(2, seq=3, pod_mtu=1400)), 5.0)
    assert some.get_timer() is None
    some.follow(Delta(old.node_id, old, new), 5.0)
    assert some.get_timer() is not None
    for other in ({"flags": FLAG_NAT}, {"incarnation": 2}):
        fresh = calls({})
        fresh.follow(Delta(old.node_id, old, signed(2, seq=2, **other)), 5.0)
        assert fresh.get_timer() is not None


def test_a_node_with_few_links_draws_some_members() -> None:
    some = calls({})
    for seed in range(2, 30):
        some._replica.merge(signed(seed, endpoints=((f"10.0.0.{seed}", 1),)), 0, 0.0)
    some.discover_if_few(0.0)
    some.make(10.0)
    assert len(some.dials) == limits.LINKS_DISCOVERED_MAX
    full = calls({identity(seed).node_id: seed for seed in range(2, 2 + LINKS_SOUGHT)})
    full._replica.merge(signed(20), 0, 0.0)
    full.discover_if_few(0.0)
    assert full.get_timer() is None


def test_a_node_with_all_its_links_calls_only_who_is_out_of_reach() -> None:
    some = calls({bytes([number]) * 16: number for number in range(limits.LINKS_DISCOVERED_MAX)})
    some._replica.merge(signed(20, endpoints=(("10.0.0.20", 1),)), 0, 0.0)
    node_id = identity(20).node_id
    for reachable in (False, True):
        some._replica.topology.reachable = frozenset({node_id} if reachable else ())
        some.lost(node_id, 0.0)
        some.make(60.0)
        assert bool(some.dials) != reachable
        some.dials.clear()
        some.targets.drop(node_id)


# -- admission ---------------------------------------------------------------------------------------------------------
def test_oldest_opening_of_the_address_goes() -> None:
    admission = Admission()
    gone = [admission.add(number, "10.0.0.1") for number in range(limits.OPENINGS_PER_ADDRESS_MAX + 3)]
    assert gone == [None] * limits.OPENINGS_PER_ADDRESS_MAX + [0, 1, 2]
    assert len(admission) == limits.OPENINGS_PER_ADDRESS_MAX
    assert 0 not in admission and 3 in admission


def test_oldest_opening_of_all_goes() -> None:
    admission = Admission()
    for number in range(limits.OPENINGS_MAX):
        assert admission.add(number, f"10.0.{number}.1") is None
    assert admission.add(1000, "10.9.9.9") == 0
    admission.remove(5)
    admission.remove(5)
    assert admission.add(1001, "10.9.9.8") is None and len(admission) == limits.OPENINGS_MAX


def test_an_ipv6_stranger_is_its_64() -> None:
    assert address_key("2001:db8::1") == address_key("2001:db8::ffff:1") == "2001:db8::/64"
    assert address_key("2001:db8:0:1::1") != address_key("2001:db8::1")
    assert address_key("10.0.0.1") == "10.0.0.1" and address_key("fe80::1%eth0") == "fe80::/64"
    assert address_key("") == ""


# -- share of the loop -------------------------------------------------------------------------------------------------
def test_work_gets_its_share_and_no_more() -> None:
    share, now, worked = LoopShare(limits.OPENING_LOOP_SHARE, 0.0), 0.0, 0.0
    while now < 10.0:
        now = max(now, share.ready_at(now))
        share.spent(0.003, now)
        worked += 0.003
        now += 0.003
    assert worked / now == pytest.approx(limits.OPENING_LOOP_SHARE, abs=0.01)


def test_first_work_is_free() -> None:
    share = LoopShare(0.2, 0.0)
    share.spent(ALLOWANCE_SECONDS - 0.001, 0.0)
    assert share.ready_at(0.0) == 0.0
    share.spent(0.011, 0.0)
    assert share.ready_at(0.0) == pytest.approx(0.05, abs=1e-4)


def test_reasons_of_failed_calls_are_sentences() -> None:
    assert "refused" in dial_reason(111) and "route" in dial_reason(113) and "no answer" in dial_reason(110)
    assert dial_reason(13) == "Permission denied" and dial_reason(None) == "the call failed"
