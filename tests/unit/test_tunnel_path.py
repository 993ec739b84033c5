"""Path MTU discovery, liveness from figures, challenges: the pure parts of a path, step by step."""

import pytest

from weave_router.limits import CHALLENGES_OPEN_MAX, DATAGRAM_BASE, DATAGRAM_FLOOR, SUPERFRAME_SEND_BYTES
from weave_router.tunnel.liveness import Figures, Liveness, difference
from weave_router.tunnel.path import Path, payload_ceiling
from weave_router.tunnel.pmtud import DATA_BYTES, LOSSES, RESOLUTION, PathMtu, Phase
from weave_router.tunnel.roaming import Roaming
from weave_router.tunnel.timers import Timers

TIMERS = Timers()
INTERVAL = 0.2
NS = 1_000_000_000


def drive(mtu: PathMtu, passes: int, now: float, until: float, rtt: float = 0.01) -> float:
    """Answer every probe that fits ``passes``; the time when it fell silent, or ``until``."""
    while (at := mtu.get_timer()) is not None and at <= until:
        now = max(now, at)
        probe = mtu.handle_timer(now, INTERVAL)
        if probe is not None and probe.size <= passes:
            assert mtu.acknowledged(probe.id, probe.size, now + rtt) == pytest.approx(rtt)
            now += rtt
    return now


def test_path_starts_at_the_interface_and_one_probe_confirms_it() -> None:
    mtu = PathMtu(1472, TIMERS, 0.0)
    assert (mtu.size, mtu.phase, mtu.confirmed(0.0)) == (1472, Phase.VERIFY, False)
    probe = mtu.handle_timer(0.0, INTERVAL)
    assert probe is not None and probe.size == 1472
    assert mtu.handle_timer(0.1, INTERVAL) is None
    mtu.acknowledged(probe.id, 1472, 0.1)
    assert mtu.phase is Phase.HELD
    assert mtu.confirmed(1.0) and not mtu.confirmed(1.1)
    assert mtu.get_timer() is None, "nothing more while no data is sent"


@pytest.mark.parametrize("passes", [548, 600, 1199, 1200, 1201, 1272, 1452, 1471, 1472])
@pytest.mark.parametrize("ceiling", [1472, 8972])
def test_search_ends_within_its_resolution(passes: int, ceiling: int) -> None:
    mtu = PathMtu(ceiling, TIMERS, 0.0)
    ended = drive(mtu, passes, 0.0, 60.0)
    assert passes - RESOLUTION < mtu.size <= passes
    assert mtu.phase is Phase.HELD
    assert ended < (6.0 if ceiling == 1472 else 9.0)


def test_three_losses_fall_to_the_base_at_once_and_not_two() -> None:
    mtu = PathMtu(1472, TIMERS, 0.0)
    drive(mtu, 1472, 0.0, 1.0)
    mtu.data_sent(DATA_BYTES - 1, 5.0)
    assert mtu.get_timer() is None
    mtu.data_sent(1, 5.0)
    assert mtu.phase is Phase.VERIFY
    times = []
    while mtu.size == 1472:
        at = mtu.get_timer()
        assert at is not None
        mtu.handle_timer(at, INTERVAL)
        times.append(at)
    assert times == pytest.approx([5.0 + n * INTERVAL for n in range(LOSSES + 1)])
    assert (mtu.size, mtu.phase) == (DATAGRAM_BASE, Phase.BASE)


def test_data_within_the_confirmed_second_asks_nothing() -> None:
    mtu = PathMtu(1472, TIMERS, 0.0)
    drive(mtu, 1472, 0.0, 1.0)
    mtu.data_sent(1_000_000, 0.9)
    assert mtu.phase is Phase.HELD
    mtu.data_sent(1_000_000, 1.1)
    assert mtu.phase is Phase.VERIFY


def test_small_underlay_has_no_size_above_its_ceiling() -> None:
    mtu = PathMtu(600, TIMERS, 0.0)
    assert mtu.base == mtu.size == 600
    drive(mtu, 560, 0.0, 60.0)
    assert 552 < mtu.size <= 560
    assert PathMtu(100, TIMERS, 0.0).size == DATAGRAM_FLOOR


def test_dead_path_comes_back_to_its_ceiling_after_a_restart() -> None:
    mtu = PathMtu(1472, TIMERS, 0.0)
    drive(mtu, 0, 0.0, 60.0)
    assert mtu.size == DATAGRAM_FLOOR
    mtu.restart(60.0)
    assert mtu.size == DATAGRAM_BASE
    drive(mtu, 1472, 60.0, 61.0)
    assert mtu.size == 1472


def test_raise_timer_is_not_put_off_by_confirming() -> None:
    mtu = PathMtu(1472, TIMERS, 0.0)
    now = drive(mtu, 1272, 0.0, 60.0)
    for second in range(60, 640, 2):
        mtu.data_sent(DATA_BYTES, float(second))
        now = drive(mtu, 1272, now, float(second) + 0.5)
    assert mtu.size <= 1272
    drive(mtu, 1472, 640.0, 660.0)
    mtu.data_sent(DATA_BYTES, 1250.0)
    drive(mtu, 1472, 1250.0, 1260.0)
    assert mtu.size == 1472


def test_local_limit_falls_at_once_in_every_phase() -> None:
    mtu = PathMtu(1472, TIMERS, 0.0)
    mtu.local_limit(0.0)
    assert (mtu.size, mtu.phase) == (DATAGRAM_BASE, Phase.BASE)
    held = PathMtu(1472, TIMERS, 0.0)
    drive(held, 1472, 0.0, 1.0)
    held.local_limit(1.0)
    assert held.size == DATAGRAM_BASE
    drive(held, 1200, 1.0, 60.0)
    held.local_limit(60.0)
    assert held.size >= DATAGRAM_BASE, "a datagram of the base was not what the kernel refused"
    searching = PathMtu(1472, TIMERS, 0.0)
    searching.restart(0.0)
    searching.local_limit(0.0)
    drive(searching, 1400, 0.0, 60.0)
    assert 1392 < searching.size <= 1400


def test_acknowledgements_of_nothing_change_nothing() -> None:
    mtu = PathMtu(1472, TIMERS, 0.0)
    probe = mtu.handle_timer(0.0, INTERVAL)
    assert probe is not None
    assert mtu.acknowledged(probe.id + 1, 1472, 0.1) is None
    assert mtu.acknowledged(probe.id, 1400, 0.1) is None, "it arrived shorter than it was sent"
    assert mtu.acknowledged(probe.id, 1472, 0.1) is None, "only once"
    assert mtu.phase is Phase.VERIFY


def test_probe_interval_is_three_round_trips_and_at_least_200_ms() -> None:
    path = Path(("192.0.2.1", 1), "", epoch=0, natted=False, underlay_mtu=1500, timers=TIMERS, now=0.0)
    assert path.probe_interval == 0.2
    path.rtt_sample(0.1)
    assert path.probe_interval == pytest.approx(0.3)
    path.rtt_sample(0.9)
    assert path.rtt == pytest.approx(0.2)


def test_ceiling_depends_on_the_family() -> None:
    assert payload_ceiling(("192.0.2.1", 1), 1500) == 1472
    assert payload_ceiling(("2001:db8::1", 1), 1500) == 1452
    assert payload_ceiling(("127.0.0.1", 1), 65536) == SUPERFRAME_SEND_BYTES, "a datagram holds no more"


# -- liveness ----------------------------------------------------------------------------------------------------


def figures(*, tx: float = 0, rx: float = 0, unanswered: float = 0, owed: float = 0) -> Figures:
    return Figures(last_tx_ns=int(tx * NS), last_rx_ns=int(rx * NS), first_unanswered_ns=int(unanswered * NS),
                   unanswered_rx_ns=int(owed * NS))


def observed(sending: Figures, now: float, *others: Figures, data_sent: int = 0) -> Liveness:
    liveness = Liveness(TIMERS)
    liveness.observe(sending, [sending, *others], data_sent, now)
    return liveness


@pytest.mark.parametrize(("sending", "others", "silence"), [
    (figures(), (), 0.0),
    (figures(tx=9, rx=8), (), 0.0),
    (figures(tx=9, rx=5, unanswered=6), (), 4.0),
    (figures(tx=9, rx=0, unanswered=6), (figures(rx=8),), 2.0),  # heard on the crossing session
    (figures(tx=9, rx=0, unanswered=6), (figures(rx=3),), 4.0),
])
def test_silence(sending: Figures, others: tuple[Figures, ...], silence: float) -> None:
    assert observed(sending, 10.0, *others).silence == pytest.approx(silence)


@pytest.mark.parametrize(("sending", "others", "due_at"), [
    (figures(tx=5, rx=4), (), None),
    (figures(tx=5, rx=6, owed=6), (), 6.25),
    (figures(tx=5, rx=6), (), None),  # only a control message came
    (figures(tx=7, rx=6), (figures(rx=6, owed=6),), None),  # answered on the session in use
    (figures(tx=7), (figures(rx=8, owed=6),), 7.25),
])
def test_keepalive_is_owed_for_data_alone(sending: Figures, others: tuple[Figures, ...], due_at: float | None) -> None:
    liveness = observed(sending, 8.0, *others)
    assert liveness.keepalive_owed is (due_at is not None)
    if due_at is not None:
        assert not liveness.keepalive_due(due_at - 0.01)
        assert liveness.keepalive_due(due_at)
        liveness.keepalive_sent(due_at)
        assert not liveness.keepalive_due(100.0)
        assert liveness.last_tx_at == due_at


def test_data_times() -> None:
    assert observed(figures(), 8.0).data_at == float("-inf")
    assert observed(figures(), 8.0, data_sent=1).data_sent_at == 8.0
    assert observed(figures(rx=6, owed=6), 8.0).data_received_at == 6.0


def test_difference_sums_over_sessions() -> None:
    before, after = Figures(1, 10, 2, 20), Figures(4, 40, 6, 60)
    assert difference([(before, after), (before, after)]) == difference([(Figures(), Figures(6, 60, 8, 80))])


# -- roaming -----------------------------------------------------------------------------------------------------


def roaming() -> Roaming:
    numbers = iter(range(100))
    return Roaming(TIMERS, lambda n: bytes([next(numbers)]) * n)


HERE, THERE = ("192.0.2.1", 1), ("192.0.2.2", 1)


def test_challenge_is_repeated_not_renewed() -> None:
    it = roaming()
    nonce = it.challenge(HERE, "", 0.0)
    assert nonce is not None and len(nonce) == 8
    assert it.challenge(HERE, "", 0.2) is None
    assert it.challenge(HERE, "", 0.25) == nonce
    assert it.challenge(THERE, "", 0.25) not in (None, nonce)


def test_answer_counts_once_from_the_right_place_in_time() -> None:
    it = roaming()
    nonce = it.challenge(HERE, "local", 0.0)
    assert nonce is not None
    assert it.answered(nonce, THERE, 1.0) is None
    assert it.answered(b"x" * 8, HERE, 1.0) is None
    assert it.answered(nonce, HERE, 5.0) is None
    assert it.answered(nonce, HERE, 4.9) == "local"
    it.moved(4.9)
    assert it.answered(nonce, HERE, 4.9) is None
    assert it.challenge(THERE, "", 6.8) is None
    assert it.challenge(THERE, "", 6.9) is not None


def test_open_challenges_are_bounded_and_expire() -> None:
    it = roaming()
    sent = [it.challenge(("192.0.2.1", port), "", 0.0) for port in range(CHALLENGES_OPEN_MAX + 3)]
    assert sum(nonce is not None for nonce in sent) == CHALLENGES_OPEN_MAX
    assert it.challenge(THERE, "", 4.9) is None
    assert it.challenge(THERE, "", 5.0) is not None
    it.forget()
    assert it.answered(sent[0] or b"", ("192.0.2.1", 0), 5.0) is None
