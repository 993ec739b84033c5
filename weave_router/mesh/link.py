"""One control link over one byte stream: opening, hello, then frames. Bytes in, events out, bytes out.

    stream     u16 length | message, again and again
    opening    messages 1, 2, 3 (opening.py), each at most 548 bytes
    then       sealed frames (frames.py), nonces count from 0 in each direction; Hello is the first each way

A failed opening is silent: nothing is sent, the link is closed, the event names the reason. Knows no socket, no table,
no other link; time, keys and randomness are arguments. Called by core.py alone.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from weave_router import limits
from weave_router.errors import BadPacket
from weave_router.mesh import frames
from weave_router.mesh.frames import Close, Digest, Frame, Heartbeat, Hello, Ipam, Records, Synced
from weave_router.mesh.opening import Opening
from weave_router.mesh.record import Endpoint, SignedRecord, Verify, decode_record_untrusted
from weave_router.mesh.table import Version
from weave_router.mesh.targets import literal
from weave_router.tunnel.noise import TransportCipher

OUTBOX_SECONDS: Final = 0.02
DEAD_SECONDS: Final = 2.0


class State(Enum):
    OPENING = auto()  # the three messages
    HELLO = auto()  # keys agreed, the other end's record awaited
    UP = auto()
    CLOSED = auto()


_NEXT: Final = {
    State.OPENING: {State.HELLO, State.CLOSED},
    State.HELLO: {State.UP, State.CLOSED},
    State.UP: {State.CLOSED},
    State.CLOSED: set[State](),
}


@dataclass(frozen=True, slots=True)
class Up:
    """The other end has proven token and key, and its record fits both. ``observed``: our address as it sees it."""

    peer: SignedRecord
    observed: Endpoint | None


@dataclass(frozen=True, slots=True)
class Ended:
    """``code``: from a close frame, or "" when the stream itself was bad; ``text`` says what was wrong."""

    code: str
    text: str


Event = Up | Records | Digest | Synced | Ipam | Ended


class Link:
    """``own``: our record, as the hello shows it. ``remote``: where the other end is; the hello tells it so."""

    def __init__(self, opening: Opening, *, own: SignedRecord, remote: Endpoint, verify: Verify, now: float) -> None:
        self.opening = opening
        self.remote = remote
        self.peer: SignedRecord | None = None
        self.state = State.OPENING
        self.since = now
        self.heard_at = now
        self.bytes_in = self.bytes_out = 0
        self.frames_in = 0
        self.own = own
        self._verify = verify
        self._buffer = bytearray()
        self._unsent = bytearray()
        self._send: TransportCipher | None = None
        self._receive: TransportCipher | None = None
        self._outbox: dict[bytes, SignedRecord] = {}
        self._synced_pending: list[int] = []
        self._ipam: deque[bytes] = deque()
        self._ipam_bytes = 0
        self.flush_at: float | None = None
        self._stamp_heard = 0
        self._stamp_heard_at = now
        self._rtts: deque[float] = deque(maxlen=8)
        if opening.initiator:
            self._write(opening.start())

    @property
    def initiator(self) -> bool:
        return self.opening.initiator

    @property
    def confirmed(self) -> bool:
        """The other end knows that this link is up: it called us and went on after its hello, or it answered our
        call."""
        return self.state is State.UP and (self.initiator or self.frames_in > 1)

    @property
    def rtt(self) -> float | None:
        """Least of the last eight, in seconds: the path's share, without our loops'."""
        return min(self._rtts, default=None)

    def _enter(self, state: State) -> None:
        if state not in _NEXT[self.state]:
            raise RuntimeError(f"link cannot go from {self.state} to {state}")
        self.state = state

    # -- the stream in ----------------------------------------------------------------------------------------------
    def receive_data(self, data: bytes, now: float) -> list[Event]:
        self._buffer += data
        self.bytes_in += len(data)
        events: list[Event] = []
        try:
            while self.state is not State.CLOSED and (message := self._next_message_untrusted()) is not None:
                event = self._receive_message(message, now)
                if event is not None:
                    events.append(event)
        except BadPacket as error:
            self._enter(State.CLOSED)
            events.append(Ended("", error.reason))
        if self.state is State.CLOSED:
            self._buffer.clear()
        return events

    def _next_message_untrusted(self) -> bytes | None:
        if len(self._buffer) < 2:
            return None
        size = int.from_bytes(self._buffer[:2], "big")
        longest = limits.HANDSHAKE_DATAGRAM_MAX if self.state is State.OPENING else limits.LINK_FRAME_MAX
        if not 0 < size <= longest:
            raise BadPacket("stranger" if self.state is State.OPENING else "frame size")
        if len(self._buffer) < 2 + size:
            return None
        message = bytes(self._buffer[2:2 + size])
        del self._buffer[:2 + size]
        return message

    def _receive_message(self, message: bytes, now: float) -> Event | None:
        if self.state is State.OPENING:
            self._receive_opening(message)
            return None
        assert self._receive is not None
        frame = frames.decode_frame_untrusted(self._receive.decrypt_untrusted(b"", message))
        self.heard_at = max(self.heard_at, now)
        self.frames_in += 1
        if self.state is State.HELLO:
            return self._receive_first(frame)
        return self._receive_frame(frame, now)

    def _receive_opening(self, message: bytes) -> None:
        answer = self.opening.receive_untrusted(message)
        if answer:
            self._write(answer)
        if self.opening.finished:
            self._send, self._receive = self.opening.ciphers()
            self._enter(State.HELLO)
            host, port = self.remote
            self._send_frame(Hello(self.own.data, host, port))

    def _receive_first(self, frame: Frame | None) -> Event:
        if isinstance(frame, Close):
            return self._ended(frame)
        if not isinstance(frame, Hello):
            raise BadPacket("no hello")
        peer = decode_record_untrusted(frame.record, domain=self.own.record.domain, verify=self._verify)
        if peer.record.x25519_public != self.opening.remote_static:
            raise BadPacket("record of another key")
        self.peer = peer
        self._enter(State.UP)
        seen = literal(frame.observed_host)
        return Up(peer, (str(seen), frame.observed_port) if seen else None)

    def _receive_frame(self, frame: Frame | None, now: float) -> Event | None:
        match frame:
            case Heartbeat():
                self._receive_heartbeat(frame, now)
                return None
            case Close():
                return self._ended(frame)
            case Records() | Digest() | Synced() | Ipam():
                return frame
            case Hello():
                raise BadPacket("second hello")
            case _:
                return None

    def _ended(self, frame: Close) -> Ended:
        self._enter(State.CLOSED)
        return Ended(printable(frame.code) or "close", printable(frame.text))

    def _receive_heartbeat(self, frame: Heartbeat, now: float) -> None:
        self._stamp_heard = frame.stamp
        self._stamp_heard_at = now
        if frame.echo:
            rtt = now - frame.echo / 1e6 - frame.hold / 1e6
            if 0 <= rtt < 60:
                self._rtts.append(rtt)

    # -- the stream out ---------------------------------------------------------------------------------------------
    def data_to_send(self) -> bytes:
        data, self._unsent = bytes(self._unsent), bytearray()
        self.bytes_out += len(data)
        return data

    @property
    def unsent(self) -> int:
        return len(self._unsent)

    def _write(self, message: bytes) -> None:
        self._unsent += len(message).to_bytes(2, "big") + message

    def _send_frame(self, frame: Frame) -> None:
        assert self._send is not None
        self._write(self._send.encrypt(b"", frames.encode_frame(frame)))

    def send_heartbeat(self, now: float) -> None:
        """Left out while the socket does not take what waits: more of it would prove nothing."""
        if self.state is not State.UP or self.unsent >= limits.LINK_UNSENT_MAX:
            return
        echo = self._stamp_heard
        hold = round((now - self._stamp_heard_at) * 1e6) if echo else 0
        self._send_frame(Heartbeat(max(1, round(now * 1e6)), echo, hold))

    def queue(self, signed: SignedRecord, now: float) -> None:
        """Into the outbox: one record per node, the newest; out within 20 ms."""
        if self.state is not State.UP:
            return
        self._outbox[signed.node_id] = signed
        if self.flush_at is None:
            self.flush_at = now + OUTBOX_SECONDS

    def queue_ipam(self, data: bytes, now: float) -> bool:
        """In order, at once as far as the socket keeps up. False: there is no room, it is dropped."""
        if self.state is not State.UP or self._ipam_bytes + len(data) > limits.IPAM_OUTBOX_BYTES:
            return False
        self._ipam.append(data)
        self._ipam_bytes += len(data)
        self._flush_ipam(now)
        return True

    def _flush_ipam(self, now: float) -> None:
        while self._ipam and self.unsent < limits.LINK_UNSENT_MAX:
            data = self._ipam.popleft()
            self._ipam_bytes -= len(data)
            self._send_frame(Ipam(data))
        if self._ipam and self.flush_at is None:
            self.flush_at = now + 0.25

    def heard(self, signed: SignedRecord) -> None:
        """The neighbour sent this record: it needs not be told the same or older."""
        waiting = self._outbox.get(signed.node_id)
        if waiting is not None and waiting.order <= signed.order:
            del self._outbox[signed.node_id]

    def answer_digest(self, records: Iterable[SignedRecord], digest: Digest, now: float) -> None:
        for signed in records:
            self.queue(signed, now)
        if digest.last:
            self._synced_pending = [*self._synced_pending[-3:], digest.nonce]
            self.flush_at = now + OUTBOX_SECONDS if self.flush_at is None else self.flush_at

    def send_digest(self, versions: list[Version], nonce: int) -> None:
        if self.unsent < limits.LINK_UNSENT_MAX:
            for frame in frames.digest_frames(versions, nonce):
                self._send_frame(frame)

    def flush(self, now: float) -> None:
        """Seal what the outbox holds, as far as the socket keeps up; the rest stays there, one record per node."""
        self.flush_at = None
        self._flush_ipam(now)
        records, self._outbox = self._outbox, {}
        waiting = deque(records.values())
        while waiting and self.unsent < limits.LINK_UNSENT_MAX:
            batch = next(frames.record_frames(waiting))
            self._send_frame(batch)
            for _ in batch.records:
                waiting.popleft()
        if waiting:
            self._outbox = {signed.node_id: signed for signed in waiting}
            self.flush_at = now + 0.25
            return
        for nonce in self._synced_pending:
            self._send_frame(Synced(nonce))
        self._synced_pending = []

    def close(self, code: str, text: str = "") -> None:
        """Say why, if keys are agreed, and end. Idempotent."""
        if self.state is State.CLOSED:
            return
        if self._send is not None:
            self._send_frame(Close(code, text[:limits.LINK_CLOSE_TEXT_MAX]))
        self._enter(State.CLOSED)


def printable(text: str) -> str:
    """It ends up on somebody's terminal."""
    return "".join(letter for letter in text if letter.isprintable())
