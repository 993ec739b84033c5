"""One peer: its sessions, its path, its liveness, joined. The decisions of design "Handshakes and sessions".

Must not know bytes of handshakes (handshake.py), attempts (initiator.py), tables of peers (core.py), or the world. What
it wants done goes to ``Shared.emit``. Called by core.py alone, which asks for ``get_timer`` after every input.

Rules kept here: no handshake message moves the endpoint of a healthy path; the responder sends on a new key only after
it was heard on; a session that was replaced is received on until it is rejected; a session never sees a path epoch
twice.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Final

from weave_router.errors import BadPacket
from weave_router.limits import COUNTER_BLOCK, ENDPOINTS_MAX, PATH_EPOCHS, UNCONFIRMED_MAX
from weave_router.reasons import Reason
from weave_router.tunnel import control, effects, handshake
from weave_router.tunnel.handshake import Request
from weave_router.tunnel.initiator import Initiator
from weave_router.tunnel.liveness import Figures, Liveness, difference
from weave_router.tunnel.path import Path
from weave_router.tunnel.roaming import Roaming
from weave_router.tunnel.session import Session, best_session
from weave_router.tunnel.shared import PeerInfo, Shared
from weave_router.tunnel.state import Input, State, transition
from weave_router.tunnel.wire import Endpoint, Head, SuiteCode

SILENT_TRIES: Final = 4
"""Unanswered attempts (3.75 s) after which status says why, long before the initiation ends."""

PATH_TRIES: Final = 3
"""Attempts of a rekey that go to the healthy path alone."""

EPOCH_RESERVE: Final = 4
"""Path epochs left when a rekey is begun, so that a path switch need not wait for it."""

CONTROL_OVERHEAD: Final = 40
"""UDP payload of an empty control message: header 16, descriptor 8, tag 16."""

EMSGSIZE: Final = 90

LOCAL_GONE: Final = frozenset({22, 99, 101})
"""EINVAL, EADDRNOTAVAIL, ENETUNREACH: what a send from an address that this host has lost ends with, by kernel."""


class Connection:
    """``seen``: greatest (incarnation, counter) ever accepted from this peer's key."""

    def __init__(self, shared: Shared, info: PeerInfo, seen: tuple[int, int] | None) -> None:
        self._shared = shared
        self._timers = shared.timers
        self.info = info
        self.incarnation = info.incarnation
        self.state = State.IDLE
        self.reason: Reason | None = None
        self.since: float | None = None
        self.sessions: dict[int, Session] = {}
        self.current: Session | None = None
        self.path: Path | None = None
        self.handshakes = 0
        self.tx_bytes = self.rx_bytes = self.tx_packets = self.rx_packets = 0
        self.seen = seen if seen is not None else (-1, -1)
        self._initiator = Initiator(shared, self)
        self._roaming = Roaming(self._timers, shared.rng)
        self._liveness = Liveness(self._timers)
        self._not_before = float("-inf")
        self._evidence: Reason | None = None
        self._serial = -1
        self._poll_at: float | None = None
        self._pinged_at = float("-inf")
        self._pings: dict[int, float] = {}
        self._ping_ids = itertools.count(1)
        self._mtu_told: int | None = None

    # -- state ---------------------------------------------------------------------------------------------------

    def _input(self, event: Input, reason: Reason | None = None) -> None:
        """The only place where the state changes."""
        before = self.state, self.reason
        self.state, self.reason = transition(self.state, event), reason
        if (self.state, self.reason) != before:
            self._tell()

    def _because(self, reason: Reason | None) -> None:
        if reason is not self.reason:
            self.reason = reason
            self._tell()

    def _tell(self) -> None:
        self._shared.emit(effects.Changed(self.info.slot, self.info.node_id, self.state, self.reason))

    @property
    def _healthy(self) -> bool:
        return self.state is State.ESTABLISHED and self.path is not None and not self.path.stale

    # -- what the mesh and the fast path ask ---------------------------------------------------------------------

    def update(self, info: PeerInfo, now: float) -> None:
        """A newer record. A newer incarnation starts a handshake at once where there was anything between us."""
        moved = bool(set(info.endpoints) - set(self.info.endpoints))
        concerned = bool(self.sessions) or self._initiator.running or self.state is State.FAILED
        restarted = info.incarnation > self.incarnation
        self.info = info
        if restarted:
            self._peer_restarted(info.incarnation, now)
        if concerned and (restarted or moved) and self.current is None:
            self._initiator.cancel(now)
            self._not_before = float("-inf")
            self._initiate(now)

    def want(self, now: float) -> None:
        """A frame waits. Also asked for where a session is in use but has no path."""
        if not self._initiator.running and (self.current is None or self.path is None) and now >= self._not_before:
            self._initiate(now)

    def rekey(self, session: int, now: float) -> None:
        """The session's packets, bytes or path epochs are nearly used up."""
        if self.current is not None and self.current.index == session and not self._initiator.running:
            self._initiate(now)

    def retire_tokens(self, now: float) -> None:
        """The token set changed: a session made under a token that is gone gets a successor at once."""
        if self.current is not None and not self._initiator.running \
                and self._shared.tokens.by_id(self.current.token_id) is None:
            self._initiate(now)
            self._because(Reason.TOKEN_RETIRED)

    def evidence(self, reason: Reason) -> None:
        """Something arrived from this peer's address that explains the silence."""
        self._evidence = reason
        if self.current is None and self._initiator.running:
            self._because(reason)

    def say_goodbye(self) -> None:
        """We are going, and our keys with us."""
        self._control(control.Goodbye())

    def remove(self, now: float) -> None:
        """The peer is no member any more."""
        self._initiator.cancel(now)
        self._drop_sessions(now, None)
        if self.path is not None:
            self.path = None
            self._shared.emit(effects.PathDel(self.info.slot))

    # -- initiating ----------------------------------------------------------------------------------------------

    def _initiate(self, now: float) -> None:
        if not self._targets():
            self._because(Reason.NO_ENDPOINT)
            return
        self._initiator.start(now)
        self._evidence = None
        if self.current is None and self.state is not State.CONNECTING:
            self._input(Input.WANTED, self.reason if self.reason is Reason.PEER_RESTARTED else None)
        self._attempt(now)

    def _targets(self) -> tuple[Endpoint, ...]:
        """Where message 1 goes: a healthy path first; else, and after a few tries, every address known."""
        path = () if self.path is None else (self.path.remote,)
        if self._healthy and self._initiator.tries < PATH_TRIES:
            return path
        return tuple(dict.fromkeys(path + self.info.endpoints))[:ENDPOINTS_MAX]

    def _attempt(self, now: float) -> None:
        if self._initiator.given_up(now):
            self._give_up(now)
            return
        if self._initiator.tries >= SILENT_TRIES and self.current is None:
            self._because(self._evidence or Reason.NO_PROOF)
        targets = self._targets()
        datagram = self._initiator.attempt(self.info, targets, now)
        for endpoint in targets if datagram is not None else ():
            local = self.path.local if self.path is not None and endpoint == self.path.remote else ""
            self._shared.emit(effects.SendDatagram(datagram or b"", endpoint, local))

    def _give_up(self, now: float) -> None:
        self._initiator.cancel(now)
        self._not_before = now + self._timers.back_off
        self._input(Input.GAVE_UP, self.reason if self.current is not None else self._evidence or Reason.NO_PROOF)

    def answered(self, head: Head, body: bytes, remote: Endpoint, local: str, now: float) -> None:
        """Message 2 for one of our attempts: the session is ready, and confirmed by a keepalive at once."""
        attempt = self._initiator.find(head.receiver)
        if attempt is None:
            raise BadPacket("answer to nothing")
        response = handshake.read_response_untrusted(attempt, head, body)
        if response.incarnation < self.incarnation:
            raise BadPacket("answer of an earlier incarnation")
        self._initiator.succeed(attempt, now)
        if response.incarnation > self.incarnation:
            self._peer_restarted(response.incarnation, now)
        where = remote if remote in attempt.endpoints else attempt.endpoints[0]
        self._place(where, local if where == remote else "", now)
        if self.path is not None:
            self.path.rtt_sample(now - attempt.sent_at)
            self._judge_nat(self.path, response.observed)
        session = Session(attempt.index, True, head.suite, attempt.plaintext, attempt.token.id, now,
                          response.incarnation, self._serial, where, local, may_send=True,
                          confirms=[now + pause for pause in self._timers.confirm])
        self._admit(session, head.sender, response.send_key, response.recv_key)
        self._choose(now)
        self._send(session, b"")
        self._introduce(session)

    def _judge_nat(self, path: Path, observed: Endpoint) -> None:
        """The responder told us the source that it saw: if it is not ours, somebody translates."""
        natted = not self._shared.is_ours(observed)
        if natted != path.natted:
            path.natted = natted
            self._emit_path()

    def _introduce(self, session: Session) -> None:
        """Tell our pod MTU, once for each incarnation of the peer."""
        if self._shared.pod_mtu and self._mtu_told != session.remote_incarnation:
            self._mtu_told = session.remote_incarnation
            self._send(session, control.PodMtu(self._shared.pod_mtu).encode())

    # -- answering -----------------------------------------------------------------------------------------------

    def asked(self, request: Request, remote: Endpoint, local: str, now: float) -> None:
        """An authentic message 1 of this peer."""
        if (request.incarnation, request.counter) <= self.seen:
            raise BadPacket("replayed message 1")
        if request.incarnation < self.incarnation:
            raise BadPacket("message 1 of an earlier incarnation")
        index = self._shared.indices.take(now)
        if index is None:
            raise BadPacket("no free index")
        self._see(request.incarnation, request.counter)
        if request.incarnation > self.incarnation:
            self._peer_restarted(request.incarnation, now)
        self._bound_unconfirmed(now)
        datagram, send_key, recv_key = handshake.write_response(
            request, index=index, incarnation=self._shared.incarnation, observed=remote)
        session = Session(index, False, request.head.suite, request.plaintext, request.token.id, now,
                          request.incarnation, max(self._serial, 0), remote, local, may_send=False)
        self._admit(session, request.head.sender, send_key, recv_key)
        self._shared.emit(effects.SendDatagram(datagram, remote, local))

    def _see(self, incarnation: int, counter: int) -> None:
        """On disk by blocks: a replay from within one, after our own restart, wins a half-open session, no more."""
        if incarnation != self.seen[0] or counter // COUNTER_BLOCK != self.seen[1] // COUNTER_BLOCK:
            self._shared.emit(effects.PeerCounterSeen(self.info.x25519_public, incarnation, counter))
        self.seen = incarnation, counter

    def _bound_unconfirmed(self, now: float) -> None:
        unconfirmed = [s for s in self.sessions.values() if not s.initiator and not s.heard]
        for session in unconfirmed[:max(0, len(unconfirmed) + 1 - UNCONFIRMED_MAX)]:
            self._delete(session, now)

    def confirmed(self, index: int, now: float) -> None:
        """First authenticated datagram on a session: the peer has its keys, and got what we sent to its address."""
        session = self.sessions[index]
        if session.heard:
            return
        session.heard = True
        session.confirms.clear()
        if session.may_send or session.stale:
            return
        session.may_send = True
        self._shared.emit(effects.SessionMaySend(index))
        self._place(session.handshake_remote, session.handshake_local, now)
        self._initiator.stop_retrying()
        self._choose(now)
        self._introduce(session)

    # -- sessions ------------------------------------------------------------------------------------------------

    def _admit(self, session: Session, remote_index: int, send_key: bytes, recv_key: bytes) -> None:
        self.sessions[session.index] = session
        self._shared.sessions[session.index] = self
        self._shared.emit(effects.SessionAdd(session.index, self.info.slot, session.suite, send_key, recv_key,
                                             remote_index, session.plaintext, session.may_send))

    def _usable(self, now: float) -> list[Session]:
        """Sessions that may be sent on; those of retired tokens only where there is no other."""
        limit = self._timers.reject - self._timers.send_margin
        sessions = [s for s in self.sessions.values() if s.may_send and not s.stale and now - s.created_at < limit
                    and self._serial - s.serial < PATH_EPOCHS]
        accepted = [s for s in sessions if self._shared.tokens.by_id(s.token_id) is not None]
        return accepted or sessions

    def _choose(self, now: float, because: Reason | None = None) -> None:
        """Send on the best session; to none where there is none, ``because`` of this."""
        best = best_session(self._usable(now), local_is_smaller=self._shared.identity.node_id < self.info.node_id,
                            crossing=self._timers.crossing)
        if best is self.current:
            return
        before, self.current = self.current, best
        self._shared.emit(effects.SessionUse(self.info.slot, best.index if best is not None else 0))
        if best is None:
            self._poll_at = None
            self._input(Input.EXPIRED, because)
            if self._initiator.running:
                self._input(Input.WANTED, because)
            return
        self.handshakes += 1
        if before is None:
            self.since = now
        self._poll_at = now + self._timers.poll
        self._input(Input.READY, self._weakness(best))

    def _weakness(self, session: Session) -> Reason | None:
        """Why the connection is slower or weaker than it could be."""
        if self._shared.agrees(*self.info.endpoints) != self.info.plaintext and not session.plaintext:
            return Reason.PLAINTEXT_ONE_SIDED
        path = self.path
        if path is not None and path.natted:
            return Reason.BEHIND_NAT
        if path is not None and path.no_gso:
            return Reason.GSO_REFUSED
        if path is not None and path.mtu.size < path.mtu.ceiling:
            return Reason.PATH_MTU_SMALL
        return None if session.suite is SuiteCode.AESGCM_SHA256 else Reason.NO_AES

    def _refresh_weakness(self) -> None:
        if self.state is State.ESTABLISHED and self.current is not None \
                and self.reason not in (Reason.TOKEN_RETIRED, Reason.EPOCHS_USED_UP):
            self._because(self._weakness(self.current))

    def _delete(self, session: Session, now: float) -> None:
        del self.sessions[session.index]
        del self._shared.sessions[session.index]
        self._shared.indices.free(session.index, now)
        self._shared.emit(effects.SessionDel(session.index))

    def _drop_sessions(self, now: float, because: Reason | None) -> None:
        for session in self.sessions.values():
            session.stale = True
        self._choose(now, because)
        for session in list(self.sessions.values()):
            self._delete(session, now)

    def _peer_restarted(self, incarnation: int, now: float) -> None:
        """Its keys were in memory and are gone: frames wait for the next session instead of being lost."""
        self.incarnation = incarnation
        if self.reason is Reason.PEER_LEFT:
            self._because(None)  # it is back
        for session in self.sessions.values():
            session.stale |= session.remote_incarnation < incarnation
        if self.path is not None:
            self.path.stale = True
        self._choose(now, Reason.PEER_RESTARTED)

    # -- paths ---------------------------------------------------------------------------------------------------

    def _place(self, remote: Endpoint, local: str, now: float) -> None:
        """A handshake proved an address. It becomes the path's only where there is no healthy one."""
        path = self.path
        if self._healthy:
            return
        if path is not None and path.remote == remote:
            path.stale = False
            path.mtu.restart(now)
            self._emit_path()
        else:
            self._switch(remote, local, now)

    def _switch(self, remote: Endpoint, local: str, now: float) -> None:
        """Another path, under the next epoch. RTT and MTU are its own and unknown."""
        natted = self.path.natted if self.path is not None else False
        self._serial += 1
        self.path = Path(remote, local, epoch=self._serial % PATH_EPOCHS, natted=natted,
                         underlay_mtu=self._shared.underlay_mtu, timers=self._timers, now=now)
        self._roaming.forget()
        for session in self.sessions.values():  # plaintext follows to no address that is not trusted
            session.stale |= session.plaintext and not self._shared.agrees(remote)
        self._emit_path()

    def _emit_path(self) -> None:
        path = self.path
        if path is not None:
            self._shared.emit(effects.PathSet(self.info.slot, path.remote, path.local, path.epoch, path.mtu.size,
                                              path.no_gso))

    def candidate(self, index: int, remote: Endpoint, local: str, now: float) -> None:
        """Authenticated data came from another address: challenge it."""
        session = self.current or self.sessions[index]
        if not session.may_send or session.stale or (session.plaintext and not self._shared.agrees(remote)):
            return
        if self.path is not None and (self.path.remote, self.path.local) == (remote, local):
            return
        nonce = self._roaming.challenge(remote, local, now)
        if nonce is not None:
            self._send(session, control.Challenge(nonce).encode(), remote, local)

    def _on_answer(self, answer: control.Answer, remote: Endpoint, now: float) -> None:
        """The peer is at the challenged address. A session that has seen all epochs is rekeyed first."""
        local = self._roaming.answered(answer.nonce, remote, now)
        session = self.current
        if local is None or session is None:
            return
        left = PATH_EPOCHS - 1 - (self._serial - session.serial)
        if left > 0:
            self._switch(remote, local, now)
            self._roaming.moved(now)
            self._input(Input.HEARD, self._weakness(session))
        if left <= EPOCH_RESERVE and not self._initiator.running:
            self._initiate(now)
            self._because(Reason.EPOCHS_USED_UP)

    def path_error(self, errno: int, now: float) -> None:
        if errno == EMSGSIZE and self.path is not None:
            self.path.mtu.local_limit(now)
            self._emit_path()
            self._refresh_weakness()
        elif errno != EMSGSIZE and not self._unpinned(errno):
            self.evidence(Reason.UNREACHABLE)

    def handshake_error(self, remote: Endpoint, errno: int) -> None:
        if self.path is None or self.path.remote != remote or not self._unpinned(errno):
            self.evidence(Reason.UNREACHABLE)

    def _unpinned(self, errno: int) -> bool:
        """Our own address was taken from us: go on from whichever the kernel chooses, the peer follows by challenge."""
        if errno not in LOCAL_GONE or self.path is None or not self.path.local:
            return False
        self.path.local, self.path.no_gso = "", False
        self._emit_path()
        return True

    def gso_refused(self) -> None:
        if self.path is not None and not self.path.no_gso:
            self.path.no_gso = True
            self._refresh_weakness()

    # -- control messages ----------------------------------------------------------------------------------------

    def _control(self, message: control.Control) -> None:
        if self.current is not None:
            self._send(self.current, message.encode())

    def _send(self, session: Session, payload: bytes, remote: Endpoint | None = None, local: str = "",
              size: int = 0) -> None:
        session.control_bytes += max(size, CONTROL_OVERHEAD + len(payload))
        self._shared.emit(effects.ControlSend(session.index, payload, remote, local, size))

    def receive_control(self, index: int, message: control.Control, remote: Endpoint, wire_size: int,
                        now: float) -> None:
        match message:
            case control.Probe():
                self._control(control.ProbeAck(message.id, min(wire_size, 0xFFFF)))
            case control.ProbeAck():
                self._on_probe_ack(message, now)
            case control.Ping():
                self._control(control.Pong(message.id))
            case control.Pong():
                self._on_pong(message, now)
            case control.Challenge():
                self._control(control.Answer(message.nonce))
            case control.Answer():
                self._on_answer(message, remote, now)
            case control.PodMtu():
                self._shared.emit(effects.PodMtuHeard(self.info.slot, message.mtu))
            case control.Goodbye():
                if self.sessions[index].remote_incarnation == self.incarnation:
                    self._initiator.cancel(now)
                    self._drop_sessions(now, Reason.PEER_LEFT)

    def _on_probe_ack(self, ack: control.ProbeAck, now: float) -> None:
        path = self.path
        if path is None:
            return
        before = path.mtu.size
        rtt = path.mtu.acknowledged(ack.id, ack.size, now)
        if rtt is not None:
            path.rtt_sample(rtt)
        if path.mtu.size != before:
            self._emit_path()
        self._refresh_weakness()

    def _on_pong(self, pong: control.Pong, now: float) -> None:
        sent_at = self._pings.pop(pong.id, None)
        if sent_at is not None and self.path is not None:
            self.path.rtt_sample(now - sent_at)

    # -- figures -------------------------------------------------------------------------------------------------

    def activity(self, figures: Mapping[int, Figures], now: float) -> None:
        """The figures of this peer's sessions, as asked for by ``ReadFigures``."""
        known = {index: figures[index] for index in self.sessions if index in figures}
        delta = difference((self.sessions[index].figures, after) for index, after in known.items())
        data_sent = 0
        for index, after in known.items():
            data_sent += self.sessions[index].count_data(after)
            self.sessions[index].figures = after
        self.tx_bytes += delta.tx_bytes
        self.rx_bytes += delta.rx_bytes
        self.tx_packets += delta.tx_packets
        self.rx_packets += delta.rx_packets
        if self.current is None:
            return
        self._liveness.observe(self.current.figures, (s.figures for s in self.sessions.values()), data_sent, now)
        active = now - self._liveness.data_at < self._timers.sending or self._liveness.keepalive_owed
        self._poll_at = now + (self._timers.poll if active else self._timers.poll_idle)
        self._judge_silence(now)
        self._keep_alive(now)
        if self.path is not None and data_sent:
            self.path.mtu.data_sent(data_sent, now)
        self._rekey_if_due(now)

    def _judge_silence(self, now: float) -> None:
        silence = self._liveness.silence
        if silence < self._timers.suspect:
            if self.state in (State.SUSPECT, State.LOST) and self.current is not None:
                if self.path is not None:
                    self.path.mtu.restart(now)
                    self._emit_path()
                self._input(Input.HEARD, self._weakness(self.current))
        elif silence >= self._timers.lost:
            self._input(Input.DEAD, Reason.PATH_LOST)
        else:
            self._input(Input.SILENT, Reason.PATH_SILENT)
        if silence >= self._timers.suspect and not self._initiator.running and now >= self._not_before:
            self._initiate(now)  # the peer may have restarted, or moved
        if silence >= self._timers.ping and now >= self._pinged_at + self._timers.poll_idle:
            self._ping(now)

    def _ping(self, now: float) -> None:
        self._pinged_at = now
        number = next(self._ping_ids) & 0xFFFFFFFF
        self._pings = {k: at for k, at in self._pings.items() if now - at < self._timers.lost}
        self._pings[number] = now
        self._control(control.Ping(number))

    def _keep_alive(self, now: float) -> None:
        natted = self.path is not None and self.path.natted
        if self.current is not None and (self._liveness.keepalive_due(now) or (
                natted and now - self._liveness.last_tx_at >= self._timers.nat_keepalive)):
            self._liveness.keepalive_sent(now)
            self._send(self.current, b"")

    def _rekey_if_due(self, now: float) -> None:
        session = self.current
        if session is None or self._initiator.running or now < self._not_before:
            return
        age = now - session.created_at
        if session.initiator:
            due = age >= self._timers.rekey and self._liveness.data_at > session.created_at
        else:
            due = age >= self._timers.rekey_other and now - self._liveness.data_sent_at < self._timers.sending
        if due:
            self._initiate(now)

    # -- time ----------------------------------------------------------------------------------------------------

    def get_timer(self) -> float | None:
        return min(self._deadlines(), default=None)

    def _deadlines(self) -> Iterator[float]:
        yield from self._initiator.deadlines()
        for session in self.sessions.values():
            yield self._ends_at(session)
            yield from session.confirms[:1]
        if self.current is not None:
            yield self.current.created_at + self._timers.reject - self._timers.send_margin
            if self.path is not None and (at := self.path.mtu.get_timer()) is not None:
                yield at
        if self._poll_at is not None:
            yield self._poll_at

    def _ends_at(self, session: Session) -> float:
        waits = not session.initiator and not session.heard
        return session.created_at + (self._timers.unconfirmed if waits else self._timers.reject)

    def handle_timer(self, now: float) -> None:
        self._initiator.age(now)
        if self._initiator.due(now):
            self._attempt(now)
        self._choose(now)
        if self.state is State.CONNECTING and not self._initiator.running:
            self._initiate(now)  # the session that ended the retries is gone already
        for session in list(self.sessions.values()):
            if now >= self._ends_at(session):
                self._delete(session, now)
            elif session.confirms and now >= session.confirms[0]:
                session.confirms.pop(0)
                self._send(session, b"")
        self._probe(now)
        if self._poll_at is not None and now >= self._poll_at:
            self._poll_at = now + self._timers.poll  # activity() sets it better; asked again if nobody answers
            self._shared.emit(effects.ReadFigures(tuple(self.sessions)))

    def _probe(self, now: float) -> None:
        path = self.path
        if path is None or self.current is None:
            return
        before = path.mtu.size
        probe = path.mtu.handle_timer(now, path.probe_interval)
        if path.mtu.size != before:
            self._emit_path()
            self._refresh_weakness()
        if probe is not None:
            self._send(self.current, control.Probe(probe.id, probe.size).encode(), size=probe.size)
