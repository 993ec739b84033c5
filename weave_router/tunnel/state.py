"""States of a connection: one table, changed through one function (``Connection._input``).

    IDLE         no session, nobody asked for one           CONNECTING  an initiation runs, nothing can be sent
    ESTABLISHED  a session carries traffic                  SUSPECT     3 s of sending without an answer
    LOST         6.5 s of it; handshakes go to every known address
    FAILED       nobody answered for 90 s

Must not know time or packets.
"""

from enum import StrEnum
from typing import Final


class State(StrEnum):
    IDLE = "idle"
    CONNECTING = "connecting"
    ESTABLISHED = "established"
    SUSPECT = "suspect"
    LOST = "lost"
    FAILED = "failed"


class Input(StrEnum):
    WANTED = "wanted"
    READY = "ready"
    SILENT = "silent"
    DEAD = "dead"
    HEARD = "heard"
    GAVE_UP = "gave-up"
    EXPIRED = "expired"


TRANSITIONS: Final[dict[tuple[State, Input], State]] = {
    (State.IDLE, Input.WANTED): State.CONNECTING,
    (State.FAILED, Input.WANTED): State.CONNECTING,
    (State.IDLE, Input.READY): State.ESTABLISHED,  # as responder
    (State.FAILED, Input.READY): State.ESTABLISHED,
    (State.CONNECTING, Input.READY): State.ESTABLISHED,
    (State.SUSPECT, Input.READY): State.ESTABLISHED,
    (State.LOST, Input.READY): State.ESTABLISHED,
    (State.ESTABLISHED, Input.SILENT): State.SUSPECT,
    (State.ESTABLISHED, Input.DEAD): State.LOST,
    (State.SUSPECT, Input.DEAD): State.LOST,
    (State.SUSPECT, Input.HEARD): State.ESTABLISHED,
    (State.LOST, Input.HEARD): State.ESTABLISHED,
    (State.CONNECTING, Input.GAVE_UP): State.FAILED,
    (State.ESTABLISHED, Input.EXPIRED): State.IDLE,
    (State.SUSPECT, Input.EXPIRED): State.IDLE,
    (State.LOST, Input.EXPIRED): State.IDLE,
}
"""(state, input) -> state; a pair that is not here changes nothing where ``IGNORED`` says so, else it is our bug."""

IGNORED: Final[frozenset[tuple[State, Input]]] = frozenset({
    (State.ESTABLISHED, Input.READY),  # a rekey
    (State.ESTABLISHED, Input.WANTED),
    (State.SUSPECT, Input.WANTED),
    (State.LOST, Input.WANTED),
    (State.ESTABLISHED, Input.GAVE_UP),  # a rekey that nobody answered; the session lives on until it expires
    (State.SUSPECT, Input.GAVE_UP),
    (State.LOST, Input.GAVE_UP),
    (State.ESTABLISHED, Input.HEARD),
    (State.SUSPECT, Input.SILENT),
    (State.LOST, Input.SILENT),
    (State.LOST, Input.DEAD),
})


def transition(state: State, event: Input) -> State:
    """The next state; raises ``ValueError`` for a pair that cannot happen."""
    if (state, event) in IGNORED:
        return state
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise ValueError(f"{event} in state {state}") from None
