"""Two tunnels in virtual time: liveness, roaming, NAT, path MTU, path epochs."""

import itertools

import pytest
from sim.tunnel_net import Data, Net, Node, gaps, pair, stream

from weave_router import limits
from weave_router.reasons import Reason
from weave_router.tunnel import control, effects
from weave_router.tunnel.state import State
from weave_router.tunnel.timers import Timers


def controls(node: Node) -> list[effects.ControlSend]:
    return [effect for effect in node.effects if isinstance(effect, effects.ControlSend)]


def established(net: Net) -> tuple[Node, Node]:
    a, b = pair(net)
    a.send(b, 100)
    net.run(2.0)
    a.effects.clear()
    b.effects.clear()
    return a, b


# -- liveness ----------------------------------------------------------------------------------------------------


def test_silent_receiver_answers_within_a_second_and_two_silent_sides_say_nothing() -> None:
    net = Net(1)
    a, b = established(net)
    net.run(10)
    net.captured.clear()
    sent_at = net.now
    a.send(b, 100)
    net.run(5)
    answers = [at for at, source, _, what in net.captured if source == b.endpoint and isinstance(what, Data)]
    assert len(answers) == 1 and answers[0] - sent_at <= 1.0
    net.captured.clear()
    net.run(20)
    assert not net.captured, "keepalives are not answered"


def test_one_way_stream_is_answered_every_second_and_never_suspected() -> None:
    net = Net(2)
    a, b = established(net)
    a.changes.clear()
    stream(net, a, b, 30, 0.01)
    net.run(30)
    assert not [change for change in a.changes if change.state is not State.ESTABLISHED]
    assert 28 <= len([effect for effect in controls(b) if effect.payload == b""]) <= 125


def test_dead_path_is_suspect_after_3_and_lost_after_6_and_a_half_seconds_and_comes_back() -> None:
    net = Net(3)
    a, b = established(net)
    a.changes.clear()
    stream(net, a, b, 40, 0.1)
    net.run(1.0)
    net.blocked.add(b.address)
    broken = net.now
    states, reasons = {}, {}
    for _ in range(200):
        net.run(0.1)
        states.setdefault(a.status(b).state, net.now - broken)
        reasons[a.status(b).state] = a.status(b).reason
    assert reasons[State.SUSPECT] is Reason.PATH_SILENT
    assert 3.0 <= states[State.SUSPECT] <= 3.6
    assert 6.5 <= states[State.LOST] <= 7.1
    assert a.status(b).reason is Reason.PATH_LOST
    net.blocked.clear()
    net.run(6.0)
    assert a.status(b).state is State.ESTABLISHED
    assert a.status(b).reason is None


def test_peer_that_answers_with_pings_only_is_alive() -> None:
    """Plaintext payload moves no liveness: what is sealed must be asked for."""
    net = Net(4)
    a, b = established(net)
    a.changes.clear()
    stream(net, a, b, 20, 0.1)
    net.drop = lambda what, target: isinstance(what, Data) and what.control == b"" and target is a
    net.run(20)
    assert not [change for change in a.changes if change.state is not State.ESTABLISHED]
    kinds = {control.parse_control_untrusted(e.payload).__class__ for e in controls(a) if e.payload}
    assert control.Ping in kinds


def test_lost_path_tries_every_known_address_and_takes_the_one_that_answers() -> None:
    net = Net(5)
    a, b = established(net)
    sent = stream(net, a, b, 20, 0.01)
    net.run(1.0)
    b.move("192.0.2.77")
    a.learn(b)
    net.run(19)
    assert a.status(b).remote == b.endpoint
    assert gaps(net, b, sent) < 5.0


# -- roaming -----------------------------------------------------------------------------------------------------


def test_moved_peer_is_followed_after_a_challenge() -> None:
    net = Net(10, delay=0.01)
    a, b = established(net)
    sent = stream(net, b, a, 10, 0.01)
    net.run(5)
    a.move("192.0.2.50")
    a.send(b, 100)
    net.run(0.2)
    assert b.status(a).remote == ("192.0.2.50", 6783)
    assert b.status(a).epoch == 1
    assert b.status(a).state is State.ESTABLISHED
    net.run(5)
    assert gaps(net, a, sent) < 0.1


def test_endpoint_moves_at_most_once_in_2_seconds() -> None:
    net = Net(11, delay=0.01)
    a, b = established(net)
    stream(net, a, b, 20, 0.01)
    moves = []
    for step in range(100):
        net.run(0.1)
        a.move(f"192.0.2.{100 + step}")
        if not moves or b.status(a).remote != moves[-1][1]:
            moves.append((net.now, b.status(a).remote))
    times = [at for at, _ in moves]
    assert 4 <= len(moves) <= 7
    assert min(after - before for before, after in itertools.pairwise(times[1:])) >= 1.9


def test_packet_sent_on_from_another_address_moves_nothing() -> None:
    """An attacker on the way can delay a packet and send it from elsewhere; it cannot answer the challenge."""
    net = Net(12)
    a, b = established(net)
    net.captured.clear()
    net.drop = lambda what, target: True
    a.send(b, 100)
    stolen = next(what for _, _, _, what in net.captured if isinstance(what, Data) and what.frame)
    net.drop = lambda what, target: False
    for port in range(limits.CHALLENGES_OPEN_MAX + 5):
        b.deliver(Data(**{**stolen.__dict__, "counter": stolen.counter + 100 + port}), ("203.0.113.9", port + 1))
    net.run(1.0)
    challenged = {effect.remote for effect in controls(b) if effect.remote}
    assert 1 <= len(challenged) <= limits.CHALLENGES_OPEN_MAX
    assert b.status(a).remote == a.endpoint
    assert b.status(a).epoch == 0


def test_answer_from_another_address_than_the_challenged_moves_nothing() -> None:
    net = Net(13)
    a, b = established(net)
    session = b.use[b.slot_of(a)]
    b.feed(b.tunnel.candidate, session, ("203.0.113.9", 9), b.address, net.now)
    nonce = controls(b)[-1].payload[1:]
    for remote in (a.endpoint, ("203.0.113.9", 8)):
        b.feed(b.tunnel.receive_control, session, remote, control.Answer(nonce).encode(), 49, net.now)
    assert b.status(a).remote == a.endpoint
    b.feed(b.tunnel.receive_control, session, ("203.0.113.9", 9), control.Answer(bytes(8)).encode(), 49, net.now)
    assert b.status(a).remote == a.endpoint
    b.feed(b.tunnel.receive_control, session, ("203.0.113.9", 9), control.Answer(nonce).encode(), 49, net.now)
    assert b.status(a).remote == ("203.0.113.9", 9)


def test_handshake_from_another_address_moves_no_healthy_path() -> None:
    net = Net(14)
    a, b = established(net)
    a.feed(a.tunnel.rekey, a.use[a.slot_of(b)], net.now)
    request = [what for _, _, _, what in net.captured if isinstance(what, bytes)][-1]
    b.deliver(request, ("203.0.113.9", 9))
    net.run(1.0)
    assert b.status(a).remote == a.endpoint
    assert not [effect for effect in b.effects if isinstance(effect, effects.PathSet)]


def test_endless_moves_rekey_before_an_epoch_would_come_twice() -> None:
    net = Net(15, delay=0.01)
    a, b = established(net)
    stream(net, a, b, 110, 0.02)
    sent = stream(net, b, a, 110, 0.02)
    for step in range(50):
        net.run(2.2)
        a.move(f"192.0.2.{100 + step}")
    assert Reason.EPOCHS_USED_UP in {change.reason for change in b.changes}
    epochs = [effect.epoch for effect in b.effects if isinstance(effect, effects.PathSet)]
    assert set(epochs) == set(range(limits.PATH_EPOCHS)), "all are used, and the net asserts that none comes twice"
    assert gaps(net, a, sent) < 0.5


def test_session_that_has_seen_all_epochs_is_never_sent_on() -> None:
    net = Net(16)
    a, b = established(net)
    connection = b.tunnel._slots[b.slot_of(a)]
    for _ in range(limits.PATH_EPOCHS - 1):
        connection._switch(a.endpoint, a.address, net.now)
    assert connection._usable(net.now)
    connection._switch(a.endpoint, a.address, net.now)
    assert not connection._usable(net.now)


# -- NAT ---------------------------------------------------------------------------------------------------------


def nated(net: Net) -> tuple[Node, Node]:
    a, b = net.node("a", address="10.0.0.5"), net.node("b")
    net.translations[a.endpoint] = ("198.51.100.1", 4001)
    a.learn(b)
    b.learn(a, endpoints=())
    return a, b


def test_node_behind_nat_learns_it_from_the_answer_and_uses_one_worker() -> None:
    net = Net(20)
    a, b = nated(net)
    frame = a.send(b, 100)
    net.run(2.0)
    assert frame in b.delivered
    assert a.status(b).natted is True
    assert a.status(b).reason is Reason.BEHIND_NAT
    assert b.status(a).remote == ("198.51.100.1", 4001)


def test_idle_path_through_nat_is_kept_open_every_20_seconds() -> None:
    net = Net(21)
    a, b = nated(net)
    a.send(b, 100)
    net.run(10)
    net.captured.clear()
    net.run(100)
    kept = [at for at, source, _, _ in net.captured if source == ("198.51.100.1", 4001)]
    assert 4 <= len(kept) <= 5
    assert not [1 for _, source, _, _ in net.captured if source == b.endpoint]


def test_new_mapping_of_the_nat_is_followed() -> None:
    net = Net(22)
    a, b = nated(net)
    a.send(b, 100)
    net.run(3.0)
    net.translations[a.endpoint] = ("198.51.100.1", 4002)
    a.send(b, 100)
    net.run(1.0)
    assert b.status(a).remote == ("198.51.100.1", 4002)
    frame = b.send(a, 100)
    net.run(1.0)
    assert frame in a.delivered


# -- path MTU ----------------------------------------------------------------------------------------------------


def test_path_starts_at_the_interface_mtu_and_confirms_it_at_once() -> None:
    net = Net(30)
    a, b = pair(net)
    a.send(b, 100)
    net.run(0.2)
    assert a.status(b).mtu == 1472
    assert a.status(b).mtu_confirmed is True
    v6 = Net(31)
    a, b = v6.node("a", address="2001:db8::1"), v6.node("b", address="2001:db8::2")
    v6.introduce(a, b)
    a.send(b, 100)
    v6.run(0.2)
    assert a.status(b).mtu == 1452


@pytest.mark.parametrize("delay", [0.001, 0.01, 0.03])
def test_black_hole_is_found_within_two_and_a_half_seconds(delay: float) -> None:
    net = Net(32, delay=delay)
    a, b = pair(net)
    small = stream(net, a, b, 30, 0.02, 64)
    large = stream(net, a, b, 30, 0.02, 1368)
    stream(net, b, a, 30, 0.02, 64)
    net.run(10.005)
    net.mtu = 1300
    net.run(20)
    for sent in (small, large):
        assert gaps(net, b, sent) <= 2.5
    assert 1300 - 28 - 8 < a.status(b).mtu <= 1300 - 28, "the search found nearly all that passes"
    assert a.status(b).reason is Reason.PATH_MTU_SMALL


def test_one_way_stream_finds_a_black_hole_before_the_path_is_suspected() -> None:
    net = Net(33)
    a, b = pair(net)
    large = stream(net, a, b, 30, 0.01, 1368)
    net.run(10.005)
    net.mtu = 1300
    net.run(20)
    assert gaps(net, b, large) <= 2.5
    assert not [change for change in a.changes if change.state in (State.SUSPECT, State.LOST)]


def test_small_path_from_the_start_is_found_without_data() -> None:
    net = Net(34, mtu=700)
    a, b = pair(net)
    a.send(b, 100)
    net.run(10)
    assert 700 - 28 - 8 < a.status(b).mtu <= 700 - 28
    frame = a.send(b, 1368)
    net.run(1.0)
    assert frame in b.delivered


def test_wider_path_is_found_after_the_raise_timer() -> None:
    net = Net(35, mtu=1300)
    timers = Timers(mtu_raise=20.0)
    a, b = pair(net, timers=timers)
    stream(net, a, b, 60, 0.1, 1000)
    net.run(10)
    assert a.status(b).mtu <= 1272
    net.mtu = 1500
    net.run(25)
    assert a.status(b).mtu == 1472
    assert a.status(b).reason is None


def test_kernel_that_refuses_a_size_is_believed_at_once() -> None:
    net = Net(36)
    a, b = established(net)
    a.feed(a.tunnel.path_error, a.slot_of(b), 90, net.now)
    assert a.paths[a.slot_of(b)].payload_max == limits.DATAGRAM_BASE
    assert a.status(b).reason is Reason.PATH_MTU_SMALL
    net.run(5)
    assert a.status(b).mtu >= 1472 - 8


@pytest.mark.parametrize("errno", [22, 99, 101])
def test_lost_local_address_is_dropped_from_the_path(errno: int) -> None:
    """Pinned to it, nothing would ever leave again: neither data nor the handshake that looks for a way out."""
    net = Net(39)
    a, b = established(net)
    slot = a.slot_of(b)
    assert a.paths[slot].local
    a.feed(a.tunnel.path_error, slot, errno, net.now)
    assert (a.paths[slot].local, a.paths[slot].remote) == ("", b.endpoint)
    assert a.status(b).reason is None
    other, c = established(Net(40))
    other.feed(other.tunnel.send_error, c.endpoint, errno)
    assert other.paths[other.slot_of(c)].local == ""
    assert other.status(c).reason is None


def test_path_that_refuses_gso_says_so() -> None:
    net = Net(37)
    a, b = established(net)
    a.feed(a.tunnel.gso_refused, a.slot_of(b))
    assert a.status(b).reason is Reason.GSO_REFUSED


def test_unreachable_address_is_the_reason_while_there_is_no_session() -> None:
    net = Net(38)
    a, b = pair(net)
    net.blocked.add(b.address)
    a.send(b, 100)
    a.tunnel.send_error(b.endpoint, 113)
    assert a.status(b).reason is Reason.UNREACHABLE
    net.run(5)
    assert a.status(b).reason is Reason.UNREACHABLE


def test_session_under_a_token_that_was_removed_gets_a_successor_or_says_why_not() -> None:
    from weave_router.tunnel.token import Token, TokenSet

    net = Net(39)
    a, b = established(net)
    a.settings["tokens"] = TokenSet([Token(net.domain, bytes(32))])
    a.feed(a.tunnel.tokens_set, a.settings["tokens"], net.now)
    net.run(1.0)
    assert a.status(b).reason is Reason.TOKEN_RETIRED
    assert a.status(b).state is State.ESTABLISHED


def test_pod_mtu_is_told_once_for_each_incarnation() -> None:
    net = Net(40)
    a, b = net.node("a", pod_mtu=1368), net.node("b", pod_mtu=1280)
    net.introduce(a, b)
    a.send(b, 100)
    net.run(1.0)
    assert [e for e in a.effects if isinstance(e, effects.PodMtuHeard)] == [effects.PodMtuHeard(a.slot_of(b), 1280)]
    assert [e for e in b.effects if isinstance(e, effects.PodMtuHeard)] == [effects.PodMtuHeard(b.slot_of(a), 1368)]


def test_every_reason_of_the_tunnel_is_reached_in_these_files() -> None:
    from pathlib import Path

    here = Path(__file__).parent
    text = (here / "test_tunnel_paths.py").read_text() + (here / "test_tunnel_sessions.py").read_text()
    ours = ["NO_PROOF", "WRONG_VERSION", "UNKNOWN_TOKEN", "SELF", "UNREACHABLE", "NO_ENDPOINT", "PEER_LEFT",
            "PATH_SILENT", "PATH_LOST", "PEER_RESTARTED", "TOKEN_RETIRED", "EPOCHS_USED_UP", "BEHIND_NAT",
            "PATH_MTU_SMALL", "GSO_REFUSED", "NO_AES", "PLAINTEXT_ONE_SIDED"]
    assert [name for name in ours if f"is Reason.{name}" not in text and f"Reason.{name} in" not in text
            and f": Reason.{name}" not in text and f"(Reason.{name}" not in text and f"else Reason.{name}" not in text
            ] == []
