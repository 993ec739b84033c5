"""Every time span of the tunnel in one value, in seconds, each with its reason.

``WEAVE_ROUTER_DEBUG_<NAME>`` shortens one for tests (``timers_from_environment``). Must not know the clock. Built by
router.py and by tests, read by all cores of this room.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final

from weave_router.errors import UsageError

_PREFIX: Final = "WEAVE_ROUTER_DEBUG_"


@dataclass(frozen=True, slots=True)
class Timers:
    retry: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    """Pauses after the first attempts: a lost datagram costs 0.25 s, a dead peer few messages."""
    retry_tail: float = 5.0
    """Pause after those, plus ``retry_jitter`` at most."""
    retry_jitter: float = 1 / 3
    give_up: float = 90.0
    """An initiation that nobody answers ends; the next frame starts another."""
    back_off: float = 5.0
    """After giving up, frames do not start the fast attempts again at once."""
    answer_wait: float = 5.0
    """How long an answer to one message 1 is waited for; longest RTT that works."""
    unconfirmed: float = 10.0
    """A session that the initiator was never heard on is forgotten: its answer was lost or another one was taken."""
    confirm: tuple[float, ...] = (0.1, 0.3)
    """The initiator's keepalive is repeated unless something was heard: a lost one must not block the responder."""
    rekey: float = 120.0
    rekey_other: float = 165.0
    """The responder of a session waits so long for the initiator, then rekeys itself if it still sends."""
    reject: float = 180.0
    """Nothing is accepted on a session after this; without data it is not rekeyed, so an idle one is wiped here."""
    send_margin: float = 2.0
    """Sending ends so much before ``reject``: the other side's clock started up to one round trip earlier."""
    sending: float = 10.0
    """"Still sending" means data within this span."""
    crossing: float = 5.0
    """Sessions of both directions made within this span are crossing initiations: the smaller id's wins."""
    index_rest: float = 180.0
    """A freed index names no new session until packets for the old one are surely gone."""
    keepalive: float = 0.25
    """A receiver with nothing to send answers so long after it was noticed (polls add up to 0.5 s: within 1 s)."""
    ping: float = 2.0
    """Silence after which we ask."""
    suspect: float = 3.0
    lost: float = 6.5
    nat_keepalive: float = 20.0
    """NATs forget UDP mappings after 30 s (RFC 4787 demands 120 s; many do not care)."""
    roam: float = 2.0
    """Least time between two moves of an endpoint."""
    challenge: float = 5.0
    """An answer to a challenge is taken for so long."""
    challenge_repeat: float = 0.25
    poll: float = 0.25
    """Figures of active sessions are read so often; of idle ones every ``poll_idle``."""
    poll_idle: float = 0.5
    mtu_confirmed: float = 1.0
    """A size counts as confirmed so long after an acknowledged probe of it."""
    mtu_interval: float = 0.2
    """Least time between two probes; else 3 RTT."""
    mtu_raise: float = 600.0
    """RFC 8899 PMTU_RAISE_TIMER: look for more after so long."""

    def __post_init__(self) -> None:
        if not 0 < self.rekey < self.reject - self.send_margin or self.rekey_other >= self.reject:
            raise UsageError(f"{_PREFIX}REKEY must be shorter than {_PREFIX}REJECT less {_PREFIX}SEND_MARGIN")
        if not self.suspect < self.lost:
            raise UsageError(f"{_PREFIX}SUSPECT must be shorter than {_PREFIX}LOST")


def timers_from_environment(environ: Mapping[str, str]) -> Timers:
    """Timers with what ``WEAVE_ROUTER_DEBUG_*`` shortens; names that are no timers are left to others."""
    changed: dict[str, float] = {}
    for field in fields(Timers):
        text = environ.get(_PREFIX + field.name.upper())
        if text is None or not isinstance(field.default, float):
            continue
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value < 1e6:
            raise UsageError(f"{_PREFIX}{field.name.upper()} is {text!r}: give a number of seconds")
        changed[field.name] = value
    return Timers(**changed)  # type: ignore[arg-type]
