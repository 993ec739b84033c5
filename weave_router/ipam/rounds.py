"""Retirements in service: the core's rounds by letters to all members, what became of them, and sentences for people.

The core (retirement.py) decides; this file asks again with patience, puts a promise together from its parts, and says
no for this node where a machine that is said to be off is linked with it. Knows no socket and no store. Made and called
by service.py; read by api/.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from weave_router import limits
from weave_router.errors import BadPacket, UserError

from . import letters, values, wire
from .knowledge import electorate, issuing
from .letters import Letter, Letters
from .values import Abort, Effect, Message, NodeId, Receive, Refused, Retire, Retired, RoundId, State

if TYPE_CHECKING:
    from .service import Service

ASK_SECONDS: Final = 2.0
"""From the first question of a round to the second; doubled each time, up to ASK_SECONDS_MAX."""
ASK_SECONDS_MAX: Final = 16.0
CLOSED_SECONDS_MAX: Final = 64.0
"""How rarely it is said again that a round was given up, to who was away then."""
ROUND_WORDS: Final = (values.RetireAsk, values.Promise, values.Nack, values.Aborted)


@dataclass(frozen=True, slots=True)
class Progress:
    """Of this node's last round. ``state``: none, open, done or failed; ``blocks``: how many were taken."""

    state: str = "none"
    victims: frozenset[NodeId] = frozenset()
    promised: frozenset[NodeId] = frozenset()
    missing: frozenset[NodeId] = frozenset()
    reason: str = ""
    blocks: int = 0


class Rounds:
    def __init__(self, service: Service, post: Letters) -> None:
        self._service = service
        self._letters = post
        self._parts: dict[NodeId, tuple[int, dict[int, wire.Facts]]] = {}
        self._sums: tuple[int, ...] = ()
        self._last = Progress()
        self._ask_at = 0.0
        self._interval = ASK_SECONDS
        self._due = False

    @property
    def _state(self) -> State:
        return self._service.state

    # -- the operator ------------------------------------------------------------------------------------------------

    def begin(self, victims: frozenset[NodeId], lost_majority: bool, now: float) -> None:
        """Open a round, go on with the same, or do nothing where all are retired. UserError with the way out."""
        fresh = victims - self._state.retired
        if not fresh:
            self._last = Progress("done", victims)
            return
        if self._state.round is not None and fresh == self._state.round.victims.keys() - self._state.retired:
            return
        if len(fresh) > limits.IPAM_FRAME_PEOPLE_MAX:
            raise UserError(f"at most {limits.IPAM_FRAME_PEOPLE_MAX} members can be retired at once")
        near = self._service.me if self._service.neighbours else None
        refused = self._service.take_in(Retire(fresh, lost_majority), now, source=near)
        if refused:
            raise UserError(self._sentence(refused[0]))

    def give_up(self, now: float) -> frozenset[NodeId]:
        """Whom the open round named; none: there was none."""
        victims = frozenset() if self._state.round is None else frozenset(self._state.round.victims)
        if victims:
            self._service.take_in(Abort(), now)
            self._last = replace(self._last, reason="it was given up here")
        return victims

    def progress(self) -> Progress:
        current = self._state.round
        if current is None:
            return self._last
        victims = frozenset(current.victims) - self._state.retired
        return Progress("open", victims, current.acks, electorate(self._state) - victims - current.acks)

    def others(self) -> dict[NodeId, frozenset[NodeId]]:
        """Coordinator -> whom it retires, where this node has promised and the round is open."""
        found: dict[NodeId, frozenset[NodeId]] = {}
        for victim, lock in self._state.locks.items():
            if victim not in self._state.retired and lock.coordinator != self._service.me:
                found[lock.coordinator] = found.get(lock.coordinator, frozenset()) | {victim}
        return found

    def unfinished(self) -> frozenset[NodeId]:
        """Named in a round that was given up: what they say about addresses is not followed any more."""
        state = self._state
        return state.promised & electorate(state) - state.locks.keys()

    # -- what the core says and what became of it ----------------------------------------------------------------------

    def say(self, message: Message, again: bool) -> None:
        """By letter. What is only repeated waits for its time."""
        if again and not self._due:
            return
        bodies = self._service.speech.letter(message.body, self._state, self._sums)
        if not bodies:
            self._service.counters["promise too long, neighbours first"] += 1
        for data in self._letters.write(message.universe or b"", message.incarnation, message.to, bodies):
            for node in self._letters.ways(message.to, self._near()):
                self._service.say(node, wire.Letter(data))

    def _near(self) -> list[NodeId]:
        return [node for node, same in self._service.neighbours.items() if same]

    def noted(self, before: State, effects: Iterable[Effect], now: float) -> None:
        """After each step: whether a round began or ended."""
        after = self._state
        if before.rounds_started == after.rounds_started and (before.round is None) == (after.round is None):
            return
        self._interval, self._ask_at = ASK_SECONDS, now + ASK_SECONDS
        self._parts.clear()
        done = [effect.victims for effect in effects if isinstance(effect, Retired)]
        if done:
            taken = sum(r.owner == after.me and (b not in before.registers or before.registers[b].owner != after.me)
                        for b, r in after.registers.items())
            self._last = Progress("done", done[0], blocks=taken)
        elif before.round is not None:
            victims = frozenset(before.round.victims)
            reasons = [self._sentence(effect) for effect in effects if isinstance(effect, Refused)]
            self._last = (Progress("done", victims) if victims <= after.retired else
                          Progress("failed", victims, reason=reasons[0] if reasons else "it was given up here"))

    def _sentence(self, refused: Refused) -> str:
        names = ", ".join(sorted(self._service.person(node) for node in refused.nodes))
        match refused.reason:
            case "another round is open":
                return (f"{names} has a retirement of the same machine open: wait for that, give it up there by "
                        f"`weave-router rmpeer --abort`, or, if {names} is off for ever too, name it beside the other")
            case "the machine was seen alive":
                return f"{names} was seen alive: nothing was retired; only a machine that is off for ever may be"
            case "this node has a round open already":
                return (f"this node is retiring {names} already: wait for that (`weave-router status ipam`), or give "
                        "it up by `weave-router rmpeer --abort`")
            case "more than half of the members cannot be retired":
                return (f"{names}: more than half of the members cannot be retired at once; if that many machines are "
                        "off for ever, say so by --lost-majority")
            case "the gate of this node is not open":
                return f"this node may retire nobody now: {self._service.refusal() or 'its gate is shut'}"
            case "not a member that can be retired from here":
                return f"{names} is no member any more" if names else "this node cannot retire itself: ask another one"
        return f"{refused.reason}: {names}" if names else refused.reason

    # -- letters -------------------------------------------------------------------------------------------------------

    def hear_untrusted(self, node: NodeId, data: bytes, now: float) -> None:
        """One letter from a neighbour, whoever wrote it. BadPacket for what does not belong here."""
        opened = self._letters.open_untrusted(self._state.universe or b"", data, node)
        if opened is None:
            return
        writer, letter = opened
        if writer != self._service.me and letter.to in (b"", self._service.me):
            self._deliver_untrusted(writer, letter, now)
        if letter.to != self._service.me:
            for near in self._letters.ways(letter.to or None, self._near(), node):
                if near != writer:
                    self._service.say(near, wire.Letter(data))

    def _deliver_untrusted(self, writer: NodeId, letter: Letter, now: float) -> None:
        match letters.decode_body_untrusted(letter):
            case letters.RetireAsk() as body:
                self._asked(writer, letter, body, now)
            case letters.Promise() as body:
                self._promise_untrusted(writer, letter, body, now)
            case letters.Nack() | letters.Aborted() as body:
                self._hear(writer, letter, self._service.speech.heard_letter(body), now)

    def _hear(self, writer: NodeId, letter: Letter, body: values.Body, now: float) -> None:
        message = Message(writer, letter.incarnation, self._state.universe, letter.to or None, body)
        self._service.take_in(Receive(message), now, source=self._service.me)

    def _asked(self, writer: NodeId, letter: Letter, body: letters.RetireAsk, now: float) -> None:
        if body.round.coordinator != writer:
            raise BadPacket("letter about another's round")
        victims = {victim.node for victim in body.victims}
        if self._service.me in body.promised and victims <= self._state.promised:
            return
        linked = victims & self._service.neighbours.keys() - {self._service.me}
        if linked and issuing(self._state):
            self._answer_alive(RoundId(writer, body.round.number), min(linked))
            return
        self._sums = body.sums
        self._hear(writer, letter, self._service.speech.heard_letter(body), now)

    def _answer_alive(self, round_id: RoundId, victim: NodeId) -> None:
        state = self._state
        nack = values.Nack(round_id, returned=victim)
        self.say(Message(state.me, state.incarnation, state.universe, round_id.coordinator, nack), False)

    def _promise_untrusted(self, writer: NodeId, letter: Letter, body: letters.Promise, now: float) -> None:
        """Part by part; of each member only the last answer."""
        current = self._state.round
        about = (body.round.coordinator, body.round.number)
        if current is None or about != current.id or writer not in electorate(self._state):
            return
        serial, parts = self._parts.get(writer, (-1, {}))
        if serial != letter.serial:
            parts = {}
        parts[letter.part] = body.facts
        self._parts[writer] = (letter.serial, parts)
        if len(parts) < letter.parts:
            return
        del self._parts[writer]
        whole = wire.Facts(tuple(run for part in parts.values() for run in part.runs),
                           tuple(person for part in parts.values() for person in part.people))
        knowledge, runs = self._service.speech.read_untrusted(whole)
        with self._service.hearing(runs):
            self._hear(writer, letter, values.Promise(RoundId(*about), knowledge), now)

    # -- neighbours and time -------------------------------------------------------------------------------------------

    def link_up(self, node: NodeId, now: float) -> None:
        """A machine that was said to be off is on; or a member whose promise is missing is there again."""
        lock = self._state.locks.get(node)
        if lock is not None and node not in self._state.retired:
            if lock.coordinator != self._service.me:
                self._answer_alive(lock, node)
            elif self._state.round is not None:
                self._service.take_in(Abort(), now)
                self._last = replace(self._last, reason=self._sentence(
                    Refused("the machine was seen alive", frozenset({node}))))
        if self._state.round is not None:
            self._interval, self._ask_at = ASK_SECONDS, now

    def due(self, now: float) -> bool:
        """Whether it is time to ask again, or to say again that nobody asks any more."""
        state = self._state
        self._due = self._ask_at <= now and (state.round is not None or state.rounds_started > 0)
        if self._due:
            most = CLOSED_SECONDS_MAX if state.round is None else ASK_SECONDS_MAX
            self._interval = min(2 * self._interval, most)
            self._ask_at = now + self._interval
        return self._due


def names(people: Collection[NodeId], service: Service) -> tuple[str, ...]:
    return tuple(sorted(service.person(node) for node in people))
