"""Two tunnels in virtual time: crossing initiations, rekeys under load, restarts, tokens, replays, strangers.

Every run is seeded; a failing one repeats with the seed that the assertion names.
"""

from dataclasses import replace

import pytest
from sim.tunnel_net import Data, Net, Node, gaps, pair, stream

from weave_router import limits
from weave_router.reasons import Reason, text_of
from weave_router.tunnel import effects, wire
from weave_router.tunnel.identity import Identity
from weave_router.tunnel.state import State
from weave_router.tunnel.timers import Timers
from weave_router.tunnel.token import Token, TokenSet
from weave_router.tunnel.trust import Trust
from weave_router.tunnel.wire import Type

KEY_REASONS = ("unknown session", "bad tag", "replay", "parked too long")


def handshakes(net: Net, kind: Type) -> list[bytes]:
    return [what for _, _, _, what in net.captured if isinstance(what, bytes) and what[0] == kind]


def longest_connect(seed: int, one: Identity, two: Identity) -> float:
    net = Net(seed, delay=0.005, jitter=0.01, loss=0.1)
    a, b = net.node("a", identity=one), net.node("b", identity=two)
    net.introduce(a, b)
    a.send(b, 100)
    b.send(a, 100)
    while not (a.has_session(b) and b.has_session(a)) and net.now < 1010:
        net.run(0.05)
    return net.now - 1000


def test_two_nodes_that_initiate_in_the_same_millisecond_agree_1000_times() -> None:
    net = Net(7)
    one, two = Identity.generate(net.random.randbytes), Identity.generate(net.random.randbytes)
    times = [longest_connect(seed, one, two) for seed in range(1000)]
    late = [seed for seed, seconds in enumerate(times) if seconds > 1.001]
    assert len(late) <= 1, f"seeds {late}"
    assert max(times) <= 4.0, f"seed {times.index(max(times))}"


def test_crossing_initiations_end_on_the_session_of_the_smaller_id() -> None:
    net = Net(3)
    a, b = pair(net)
    a.send(b, 100)
    b.send(a, 100)
    net.run(1.0)
    smaller, other = sorted((a, b), key=lambda node: node.identity.node_id)
    assert len(a.sessions) == len(b.sessions) == 2, "both initiations complete, both are received on"
    assert smaller.status(other).initiator is True
    assert other.status(smaller).initiator is False
    assert not any(node.drops[reason] for node in (a, b) for reason in KEY_REASONS)


def test_first_frame_waits_and_is_delivered_in_one_and_a_half_round_trips() -> None:
    net = Net(1, delay=0.01)
    a, b = pair(net)
    frame = a.send(b, 100)
    net.run(1.0)
    assert b.delivered[frame] - net.frames_sent[frame] == pytest.approx(0.03)


def test_responder_sends_only_after_it_was_heard_on() -> None:
    net = Net(1, delay=0.01)
    a, b = pair(net)
    a.send(b, 100)
    net.run(0.025)  # message 2 has arrived, the keepalive is under way
    assert a.has_session(b)
    assert not b.has_session(a)
    net.run(0.01)
    assert b.has_session(a)


def test_initiator_repeats_its_keepalive_until_it_hears_something() -> None:
    net = Net(1, delay=0.01)
    a, b = pair(net)
    lost = iter((True, True))  # the keepalive and the first probe
    net.drop = lambda datagram, target: isinstance(datagram, Data) and target is b and next(lost, False)
    a.feed(a.tunnel.want_session, a.slot_of(b), net.now)
    net.run(0.1)
    assert a.has_session(b)
    assert not b.has_session(a)
    net.run(0.05)
    assert b.has_session(a)


def test_node_that_was_reached_stops_asking() -> None:
    net = Net(2, delay=0.01)
    a, b = pair(net)
    net.drop = lambda datagram, target: isinstance(datagram, bytes) and datagram[0] == Type.INITIATION and target is a
    b.send(a, 100)
    net.run(0.1)
    a.send(b, 100)
    net.run(0.1)
    assert b.has_session(a)
    net.captured.clear()
    net.run(30.0)
    assert not handshakes(net, Type.INITIATION)


def test_rekeys_under_load_lose_nothing() -> None:
    net = Net(11, delay=0.01, jitter=0.005)
    a, b = pair(net)
    frames = [(a, b, stream(net, a, b, 2000, 0.1)), (b, a, stream(net, b, a, 2000, 0.1))]
    net.run(2001)
    for _source, target, sent in frames:
        assert len(sent) == 20000
        assert not [frame for frame in sent if frame not in target.delivered]
    assert 17 <= a.status(b).handshakes <= 19, "one each 120 s"
    assert not any(node.drops[reason] for node in (a, b) for reason in KEY_REASONS)


def test_rekeys_with_shortened_timers_and_loss_refuse_no_packet_for_a_key() -> None:
    timers = Timers(rekey=2.0, rekey_other=3.0, reject=5.0, send_margin=0.5, index_rest=5.0)
    net = Net(12, delay=0.01, jitter=0.02, loss=0.1)
    a, b = pair(net, timers=timers)
    stream(net, a, b, 100, 0.01)
    stream(net, b, a, 100, 0.01)
    net.run(101)
    assert a.status(b).handshakes >= 20
    assert not any(node.drops[reason] for node in (a, b) for reason in KEY_REASONS)


def test_other_end_rekeys_when_the_initiator_does_not() -> None:
    net = Net(13)
    a, b = pair(net)
    a.send(b, 100)
    net.run(1.0)
    assert b.status(a).initiator is False
    sent = stream(net, b, a, 199, 0.5)
    net.drop = lambda datagram, target: isinstance(datagram, bytes) and datagram[0] == Type.INITIATION and target is b
    net.run(163)
    assert b.status(a).initiator is False
    net.run(4)
    assert b.status(a).initiator is True
    net.run(40)
    assert not [frame for frame in sent if frame not in a.delivered]


def test_packet_count_of_the_fast_path_rekeys_at_once() -> None:
    net = Net(14)
    a, b = pair(net)
    a.send(b, 100)
    net.run(10.0)
    before = a.key_in_use(b)
    b.feed(b.tunnel.rekey, b.use[b.slot_of(a)], net.now)
    net.run(0.2)
    assert a.key_in_use(b) != before
    b.feed(b.tunnel.rekey, 12345, net.now)  # a session that is gone


def test_idle_session_is_wiped_after_180_seconds_and_comes_back_for_a_frame() -> None:
    net = Net(15)
    a, b = pair(net)
    a.send(b, 100)
    net.run(100)
    assert a.sessions
    net.run(300)  # rekeyed once at 120 s, for there was data on the first
    assert not a.sessions
    assert not b.sessions
    assert a.status(b).state is State.IDLE
    frame = a.send(b, 100)
    net.run(1.0)
    assert frame in b.delivered


def test_session_that_nobody_confirms_is_forgotten() -> None:
    net = Net(16)
    a, b = pair(net)
    net.drop = lambda datagram, target: target is a
    a.send(b, 100)
    net.run(5.0)
    assert 1 <= len(b.sessions) <= limits.UNCONFIRMED_MAX
    assert all(session.add.slot not in b.use for session in b.sessions.values())
    net.run(200.0)
    assert not b.sessions


def test_initiations_of_one_peer_hold_a_bounded_number_of_sessions() -> None:
    net = Net(17)
    a, b = pair(net, timers=Timers(retry=(0.1,) * 50, unconfirmed=100.0))
    net.drop = lambda datagram, target: target is a
    a.send(b, 100)
    net.run(4.0)
    assert len(b.sessions) == limits.UNCONFIRMED_MAX
    assert len(a.tunnel._shared.attempts) == limits.ATTEMPTS_OPEN_MAX


@pytest.mark.parametrize("record_comes", [True, False])
def test_restart_recovers_within_the_gap(record_comes: bool) -> None:
    net = Net(20, delay=0.01)
    a, b = pair(net)
    sent = stream(net, a, b, 20, 0.01)
    net.run(10)
    b.kill()
    net.run(0.3)
    b.start()
    if record_comes:
        net.at(net.now + 0.5, a.learn, b)
    net.run(10.5)
    assert gaps(net, b, sent) <= (2.5 if record_comes else 4.5)
    assert a.status(b).state is State.ESTABLISHED
    assert a.incarnation == 1 and b.incarnation == 2


def test_restarted_node_that_sends_is_back_at_once_and_no_frame_waits_for_a_dead_key() -> None:
    net = Net(21, delay=0.01)
    a, b = pair(net)
    stream(net, a, b, 20, 0.01)
    net.run(10)
    b.kill()
    net.run(0.3)
    b.start()
    back = net.now
    b.send(a, 100)
    net.run(1.0)
    assert min(at for frame, at in b.delivered.items() if at > back) - back < 0.05


def test_newer_incarnation_in_a_record_starts_a_handshake_at_once_only_where_there_was_one() -> None:
    net = Net(22)
    a, b, c = net.node("a"), net.node("b"), net.node("c")
    net.introduce(a, b, c)
    a.send(b, 100)
    net.run(1.0)
    net.captured.clear()
    for other in (b, c):
        other.kill()
        other.start()
        a.learn(other)
    assert {target for _, _, target, _ in net.captured} == {b.endpoint}
    assert a.status(b).reason is Reason.PEER_RESTARTED
    net.run(1.0)
    assert a.status(b).state is State.ESTABLISHED
    assert a.status(b).reason is None


def test_goodbye_ends_the_session_and_the_next_frame_starts_another() -> None:
    net = Net(23)
    a, b = pair(net)
    a.send(b, 100)
    net.run(1.0)
    for effect in b.tunnel.close():
        b._carry_out(effect)
    net.run(0.1)
    assert a.status(b).state is State.IDLE
    assert a.status(b).reason is Reason.PEER_LEFT
    assert not a.sessions
    b.kill()
    b.start()
    frame = a.send(b, 100)
    net.run(1.0)
    assert frame in b.delivered


# -- tokens ------------------------------------------------------------------------------------------------------


def test_token_rotation_by_install_use_remove_loses_nothing() -> None:
    net = Net(30, delay=0.01)
    old, new = net.token, Token(net.domain, bytes(range(32)))
    a, b = pair(net)
    streams = [(b, stream(net, a, b, 60, 0.05)), (a, stream(net, b, a, 60, 0.05))]

    def install(node: Node, *tokens: Token) -> None:
        node.settings["tokens"] = TokenSet(tokens)
        node.feed(node.tunnel.tokens_set, TokenSet(tokens), net.now)

    for step in ((old, new), (new, old), (new,)):
        for node in (a, b):
            net.run(5.0)
            install(node, *step)
    net.run(40)
    for target, sent in streams:
        assert len(sent) == 1200
        assert not [frame for frame in sent if frame not in target.delivered]
    assert a.status(b).token_id == b.status(a).token_id == new.id
    assert not any(node.drops[reason] for node in (a, b) for reason in KEY_REASONS)


def test_session_of_a_removed_token_never_wins_over_one_of_a_present_token() -> None:
    net = Net(34, delay=0.01)
    smaller, larger = sorted(pair(net), key=lambda node: node.identity.node_id)
    smaller.send(larger, 100)
    net.run(1.0)
    net.drop = lambda what, target: isinstance(what, bytes) and what[0] == Type.INITIATION and target is larger
    tokens = TokenSet([Token(net.domain, bytes(32))])
    for node in (smaller, larger):
        node.settings["tokens"] = tokens
        node.feed(node.tunnel.tokens_set, tokens, net.now)
    net.run(1.0)
    assert larger.status(smaller).token_id == smaller.status(larger).token_id == tokens.first.id


def test_wrong_token_gets_no_answer_and_a_reason() -> None:
    net = Net(31)
    a = net.node("a")
    b = net.node("b", tokens=TokenSet([Token(net.domain, bytes(32))]))
    net.introduce(a, b)
    a.send(b, 100)
    net.run(4.5)
    assert a.status(b).reason is Reason.NO_PROOF
    assert text_of(Reason.NO_PROOF) == "no proof from peer (wrong token, or not a weave-router)"
    assert not [1 for _, source, _, _ in net.captured if source == b.endpoint], "not one byte"
    net.run(90)
    assert a.status(b).state is State.FAILED
    assert a.status(b).reason is Reason.NO_PROOF
    assert b.tunnel.strangers == {a.endpoint: Reason.UNKNOWN_TOKEN}
    sent = len(net.captured)
    assert 20 <= sent <= 24, "0.25, 0.5, 1, 2, 4, then 5 s and jitter, for 90 s"
    a.send(b, 100)
    assert len(net.captured) == sent, "frames do not bring the fast attempts back at once"
    net.run(5.0)
    a.send(b, 100)
    assert len(net.captured) == sent + 1


def test_side_that_hears_an_unknown_token_says_so() -> None:
    net = Net(32)
    a = net.node("a")
    b = net.node("b", tokens=TokenSet([Token(net.domain, bytes(32))]))
    net.introduce(a, b)
    a.send(b, 100)
    b.send(a, 100)
    net.run(1.0)
    assert a.status(b).reason is Reason.UNKNOWN_TOKEN
    assert b.status(a).reason is Reason.UNKNOWN_TOKEN


def test_another_version_is_told_apart_from_a_stranger() -> None:
    net = Net(33)
    a, b = pair(net)
    net.drop = lambda what, target: True
    a.send(b, 100)
    datagram = bytearray(handshakes(net, Type.INITIATION)[0][:-16])
    datagram[1] = 2
    forged = bytes(datagram) + wire.mac1(net.token.mac1_key, bytes(datagram))
    a.deliver(forged, b.endpoint)
    assert a.status(b).reason is Reason.WRONG_VERSION
    assert a.tunnel.strangers == {b.endpoint: Reason.WRONG_VERSION}
    assert not handshakes(net, Type.RESPONSE)


# -- replays and strangers ---------------------------------------------------------------------------------------


def test_replays_of_every_handshake_message_are_refused_and_change_nothing() -> None:
    net = Net(40)
    a, b = pair(net)
    a.send(b, 100)
    net.run(2.0)
    before = a.status(b), b.status(a), len(b.sessions)
    messages = [(what, target) for _, _, target, what in net.captured if isinstance(what, bytes)]
    assert len(messages) == 2
    net.captured.clear()
    for what, target in messages:
        net.hosts[target].deliver(what, ("203.0.113.9", 1))
    assert (a.status(b), b.status(a), len(b.sessions)) == before
    assert not net.captured, "no answer"
    assert b.tunnel.counts["replayed message 1"] == 1
    assert a.tunnel.counts["answer to nothing"] == 1


def test_replay_after_our_own_restart_finds_what_the_store_kept() -> None:
    net = Net(41)
    a, b = pair(net)
    a.send(b, 100)
    net.run(2.0)
    message = handshakes(net, Type.INITIATION)[0]
    b.kill()
    b.start()
    net.captured.clear()
    b.deliver(message, ("203.0.113.9", 1))
    assert b.tunnel.counts["replayed message 1"] == 1
    assert not net.captured
    b.kill()
    b.persisted_seen.clear()  # what a restored backup would do
    b.start()
    b.deliver(message, ("203.0.113.9", 1))
    assert len(b.sessions) == 1, "a half-open session, nothing more"
    assert not b.paths
    net.run(11.0)
    assert not b.sessions


def test_message_1_of_an_earlier_incarnation_is_refused() -> None:
    net = Net(42)
    a, b = pair(net)
    net.drop = lambda what, target: target is b
    a.send(b, 100)
    message = handshakes(net, Type.INITIATION)[0]
    b.learn(a, incarnation=5)
    b.deliver(message, a.endpoint)
    assert b.tunnel.counts["message 1 of an earlier incarnation"] == 1
    assert not b.sessions


def test_answer_of_an_earlier_incarnation_is_refused() -> None:
    net = Net(48)
    a, b = pair(net)
    a.learn(b, incarnation=7)
    a.send(b, 100)
    net.run(0.1)
    assert a.tunnel.counts["answer of an earlier incarnation"] == 1
    assert not a.has_session(b)


def test_jump_above_restored_state_is_accepted_by_who_knew_the_later_incarnation() -> None:
    net = Net(47)
    a, b = pair(net)
    b.learn(a, incarnation=7)  # what b remembers of a's life before the restored backup
    a.send(b, 100)
    net.run(1.0)
    assert not a.has_session(b)
    a.incarnation = 8
    a.tunnel.incarnation_set(8)
    b.learn(a)
    net.run(2.0)
    assert a.has_session(b) and b.has_session(a)


def test_every_flipped_byte_and_every_length_of_both_messages_is_silence() -> None:
    net = Net(43)
    a, b = pair(net)
    net.drop = lambda what, target: True
    a.send(b, 100)
    message_1 = handshakes(net, Type.INITIATION)[0]
    b.deliver(message_1, a.endpoint)
    message_2 = handshakes(net, Type.RESPONSE)[0]
    net.captured.clear()
    for message, target, source in ((message_1, b, a), (message_2, a, b)):
        token = net.token
        sessions = dict(target.sessions)
        for at in range(len(message) - 16):
            flipped = bytearray(message[:-16])
            flipped[at] ^= 1
            closed = bytes(flipped) + wire.mac1(token.mac1_key, bytes(flipped))  # as a member could
            target.feed(target.tunnel.receive_handshake, closed, source.endpoint, target.address, net.now)
        for length in range(len(message)):
            target.feed(target.tunnel.receive_handshake, message[:length], source.endpoint, target.address, net.now)
        assert target.sessions == sessions, "no session came of it"
    assert not net.captured
    a.deliver(message_2, b.endpoint)
    assert a.has_session(b), "and the true answer is still taken"


def test_unknown_peer_is_counted_and_oneself_is_refused() -> None:
    net = Net(44)
    a, b = net.node("a"), net.node("b")
    a.learn(b)
    a.send(b, 100)
    net.run(0.1)
    assert b.tunnel.counts["unknown peer"] == 1
    with pytest.raises(ValueError, match="no peer of itself"):
        a.learn(a)


def test_own_message_is_marked_self() -> None:
    net = Net(45)
    a, b = pair(net)
    token = net.token
    from weave_router.tunnel import handshake

    _, message = handshake.write_request(
        token=token, suite=wire.SuiteCode.AESGCM_SHA256, index=7, plaintext=False, static=a.identity.x25519_secret,
        remote_static=a.identity.x25519_public, ephemeral=bytes(range(32)), freshness=(1, 1), now=0.0, endpoints=())
    a.deliver(message, a.endpoint)
    assert a.tunnel.strangers == {a.endpoint: Reason.SELF}
    assert a.tunnel.counts["message of our own"] == 1
    assert b.alive


def test_strangers_that_status_remembers_are_bounded() -> None:
    net = Net(46)
    a = net.node("a")
    for port in range(limits.STRANGERS_MAX + 10):
        a.feed(a.tunnel.token_seen, 1, ("203.0.113.9", port))
    assert len(a.tunnel.strangers) == limits.STRANGERS_MAX
    assert ("203.0.113.9", 9) not in a.tunnel.strangers


# -- freshness ---------------------------------------------------------------------------------------------------


def test_counters_are_reserved_on_disk_before_the_packet_and_never_come_twice() -> None:
    net = Net(50)
    a, b = pair(net)
    net.drop = lambda what, target: True
    a.send(b, 100)
    kinds = [type(effect) for effect in a.effects if isinstance(effect, effects.CounterBlock | effects.SendDatagram)]
    assert kinds[:2] == [effects.CounterBlock, effects.SendDatagram]
    shared = a.tunnel._shared
    used = {shared.freshness() for _ in range(2 * limits.COUNTER_BLOCK)}
    assert len(used) == 2 * limits.COUNTER_BLOCK
    a.feed(a.tunnel.handle_timer, net.now)
    assert a.counter_upto == 3 * limits.COUNTER_BLOCK
    a.kill()
    a.start()
    assert a.tunnel._shared.freshness() == (2, 3 * limits.COUNTER_BLOCK)


def test_peers_freshness_is_written_once_a_block() -> None:
    net = Net(51)
    a, b = pair(net, timers=Timers(rekey=1.0, rekey_other=1.5, reject=4.0, send_margin=0.5))
    stream(net, a, b, 20, 0.05)
    net.run(20)
    written = [effect for effect in b.effects if isinstance(effect, effects.PeerCounterSeen)]
    assert b.status(a).handshakes > 5
    assert len(written) == 1


def test_freshness_of_a_peer_that_was_removed_is_kept() -> None:
    net = Net(52)
    a, b = pair(net)
    a.send(b, 100)
    net.run(1.0)
    message = handshakes(net, Type.INITIATION)[0]
    b.feed(b.tunnel.peer_remove, a.identity.node_id, net.now)
    assert not b.sessions and not b.paths
    b.persisted_seen.clear()
    b.learn(a)
    b.deliver(message, a.endpoint)
    assert b.tunnel.counts["replayed message 1"] == 1


# -- plaintext and ciphers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("one", "two"), [(True, True), (True, False), (False, True), (False, False)])
def test_payload_is_plaintext_only_where_both_said_so(one: bool, two: bool) -> None:
    net = Net(60)
    a, b = net.node("a", plaintext=one), net.node("b", plaintext=two)
    net.introduce(a, b)
    frame = a.send(b, 100)
    net.run(1.0)
    assert frame in b.delivered
    assert a.status(b).plaintext is b.status(a).plaintext is (one and two)
    assert a.status(b).reason is (Reason.PLAINTEXT_ONE_SIDED if one != two else None)


@pytest.mark.parametrize(("one", "two"), [(True, True), (True, False), (False, True), (False, False)])
def test_payload_is_plaintext_where_both_trust_the_others_address(one: bool, two: bool) -> None:
    net = Net(61)
    a, b = net.node("a"), net.node("b")
    nowhere = Trust(["203.0.113.0/24"])
    for node, other, trusts in ((a, b, one), (b, a, two)):
        node.tunnel._shared.trusted = Trust([other.address]) if trusts else nowhere
    net.introduce(a, b)
    a.learn(b, plaintext=two)
    b.learn(a, plaintext=one)
    frame = a.send(b, 100)
    net.run(1.0)
    assert frame in b.delivered
    assert a.status(b).plaintext is b.status(a).plaintext is (one and two)
    assert a.status(b).reason is (Reason.PLAINTEXT_ONE_SIDED if one != two else None)


def test_plaintext_does_not_follow_a_peer_out_of_the_trusted_subnet() -> None:
    net = Net(62)
    a, b = net.node("a"), net.node("b")
    a.tunnel._shared.trusted, b.tunnel._shared.trusted = Trust([b.address]), Trust([a.address])
    net.introduce(a, b)
    a.learn(b, plaintext=True)
    b.learn(a, plaintext=True)
    a.send(b, 100)
    net.run(1.0)
    assert a.status(b).plaintext
    b.move("203.0.113.9")
    for _ in range(200):
        a.send(b, 100)
        b.send(a, 100)
        net.run(0.1)
        status = a.status(b)
        assert not (status.plaintext and status.remote and status.remote[0] == "203.0.113.9")
    a.learn(b)
    frames = []
    for _ in range(100):
        frames.append(a.send(b, 100))
        net.run(0.1)
    assert frames[-2] in b.delivered
    assert not a.status(b).plaintext and not b.status(a).plaintext


@pytest.mark.parametrize(("one", "two", "cipher"), [(True, True, "aes-256-gcm"), (True, False, "chacha20-poly1305"),
                                                    (False, True, "chacha20-poly1305")])
def test_cipher_is_aes_where_both_have_the_instructions(one: bool, two: bool, cipher: str) -> None:
    net = Net(61)
    a, b = net.node("a", aes=one), net.node("b", aes=two)
    net.introduce(a, b)
    frame = a.send(b, 100)
    net.run(1.0)
    assert frame in b.delivered
    assert a.status(b).cipher == b.status(a).cipher == cipher
    assert a.status(b).reason is (None if one and two else Reason.NO_AES)


def test_a_run_repeats_exactly() -> None:
    def trace(seed: int) -> list[object]:
        net = Net(seed, loss=0.2, jitter=0.02)
        a, b = pair(net)
        stream(net, a, b, 10, 0.05)
        stream(net, b, a, 10, 0.05)
        net.run(10)
        return [(at, source, target, what) for at, source, target, what in net.captured]

    assert trace(5) == trace(5)
    assert trace(5) != trace(6)


def test_peer_without_an_address_says_so() -> None:
    net = Net(62)
    a, b = net.node("a"), net.node("b")
    a.learn(b, endpoints=())
    a.send(b, 100)
    assert a.status(b).reason is Reason.NO_ENDPOINT
    a.learn(b)
    b.learn(a)
    a.send(b, 100)
    net.run(1.0)
    assert a.has_session(b)


def test_initiation_goes_to_a_bounded_number_of_addresses_and_the_one_that_answers_becomes_the_path() -> None:
    net = Net(63)
    a, b = net.node("a"), net.node("b")
    b.learn(a)
    addresses = (*((f"198.51.100.{n}", 6783) for n in range(3)), b.endpoint, ("198.51.100.9", 6783))
    a.learn(b, endpoints=addresses)
    a.send(b, 100)
    assert len(net.captured) == limits.ENDPOINTS_MAX
    net.run(1.0)
    assert a.status(b).remote == b.endpoint
    a.feed(a.tunnel.peer_set, replace(a.peers[a.slot_of(b)], slot=50), net.now)
    assert not a.sessions, "another slot is another peer to the fast path"
