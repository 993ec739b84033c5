"""The opening of a control link: XXpsk0+psk3 in three messages, each with the clear head and mac1 of tunnel/wire.py.

    1  ->  head | psk0, e | (empty)          sealed under the token already: a stranger cannot even begin
    2  <-  head | e, ee, s, es | head        the repeated head is compared
    3  ->  head | s, se, psk3 | head

Messages in, messages out; framing, time limits and what follows are link.py's. Who has no valid mac1 gets no answer.
"""

import hmac
from collections.abc import Callable
from typing import Final

from weave_router.errors import BadPacket
from weave_router.tunnel import wire
from weave_router.tunnel.identity import Identity
from weave_router.tunnel.noise import HandshakeState, Pattern, TransportCipher
from weave_router.tunnel.token import Token, TokenSet
from weave_router.tunnel.wire import Head, SuiteCode, Type

ANOTHER_VERSION: Final = "another version"
UNKNOWN_TOKEN: Final = "unknown token id"
STRANGER: Final = "stranger"

Entropy = Callable[[int], bytes]


def open_message_untrusted(data: bytes, tokens: TokenSet) -> tuple[Head, Token, bytes]:
    """As wire.open_message_untrusted, with the three kinds of strangers told apart: only a valid mac1 makes another
    version out of noise."""
    if len(data) >= wire.HEAD_SIZE + wire.MAC1_SIZE and data[1] != wire.VERSION:
        raise BadPacket(ANOTHER_VERSION if has_mac1(data, tokens) else STRANGER)
    try:
        return wire.open_message_untrusted(data, tokens)
    except BadPacket as error:
        raise BadPacket(error.reason if error.reason == UNKNOWN_TOKEN else STRANGER) from error


def has_mac1(data: bytes, tokens: TokenSet) -> bool:
    token = tokens.by_id(int.from_bytes(data[4:8], "big"))
    if token is None:
        return False
    expected = wire.mac1(token.mac1_key, data[:-wire.MAC1_SIZE])
    return hmac.compare_digest(expected, data[-wire.MAC1_SIZE:])


class Opening:
    """One end of one opening. ``index``: our number for it, in an initiator counting up (see ``serial``)."""

    def __init__(self, *, initiator: bool, identity: Identity, tokens: TokenSet, suite: SuiteCode, index: int,
                 entropy: Entropy) -> None:
        self.initiator = initiator
        self.finished = False
        self.proven = False
        """The other end has shown that it holds the token and its key."""
        self.token = tokens.first
        self._identity = identity
        self._tokens = tokens
        self._suite = suite
        self._index = index
        self._remote_index = 0
        self._ephemeral = entropy(32)
        self._noise: HandshakeState | None = None
        self._expected = Type.LINK_2 if initiator else Type.LINK_1

    @property
    def serial(self) -> int:
        """The initiator's index: of two links that one run of one node opened, the greater is the newer."""
        return self._index if self.initiator else self._remote_index

    @property
    def remote_static(self) -> bytes:
        remote = self._state().remote_static
        assert remote is not None
        return remote

    def _state(self) -> HandshakeState:
        assert self._noise is not None
        return self._noise

    def start(self) -> bytes:
        """Message 1, of an initiator."""
        head = self._head(Type.LINK_1)
        self._begin(head)
        return self._close(head, b"")

    def receive_untrusted(self, message: bytes) -> bytes:
        """The answer (empty after message 3). BadPacket ends the opening."""
        head, token, body = open_message_untrusted(message, self._tokens)
        if head.type is not self._expected:
            raise BadPacket("message out of turn")
        if head.type is Type.LINK_1:
            return self._receive_1(head, token, body)
        self._check(head, token)
        if head.type is Type.LINK_2:
            return self._receive_2(head, body)
        return self._receive_3(head, body)

    def _receive_1(self, head: Head, token: Token, body: bytes) -> bytes:
        if head.receiver != 0:
            raise BadPacket("receiver index in message 1")
        self.token, self._suite, self._remote_index = token, head.suite, head.sender
        self._begin(head)
        self._read_untrusted(body, b"")
        self._expected = Type.LINK_3
        answer = self._head(Type.LINK_2)
        return self._close(answer, answer.encode())

    def _receive_2(self, head: Head, body: bytes) -> bytes:
        self._read_untrusted(body, head.encode())
        self._remote_index = head.sender
        self.proven = self.finished = True
        answer = self._head(Type.LINK_3)
        return self._close(answer, answer.encode())

    def _receive_3(self, head: Head, body: bytes) -> bytes:
        if head.sender != self._remote_index:
            raise BadPacket("another sender index")
        self._read_untrusted(body, head.encode())
        self.proven = self.finished = True
        return b""

    def _check(self, head: Head, token: Token) -> None:
        if head.receiver != self._index or token.id != self.token.id or head.suite is not self._suite:
            raise BadPacket("answer to another opening")

    def _read_untrusted(self, body: bytes, payload: bytes) -> None:
        if self._state().read_message_untrusted(body) != payload:
            raise BadPacket("head was changed on the way")

    def _begin(self, head_1: Head) -> None:
        token = self.token
        self._noise = HandshakeState(
            Pattern.XXPSK0_PSK3, head_1.suite.noise, initiator=self.initiator, prologue=wire.prologue(head_1, False),
            psks=(token.link_psk0, token.link_psk3), static=self._identity.x25519_secret, ephemeral=self._ephemeral)

    def _head(self, kind: Type) -> Head:
        return Head(kind, self._suite, self.token.id, self._index, self._remote_index)

    def _close(self, head: Head, payload: bytes) -> bytes:
        return wire.close_message(self.token, head, self._state().write_message(payload))

    def ciphers(self) -> tuple[TransportCipher, TransportCipher]:
        """(send, receive) of a finished opening."""
        state = self._state()
        send_key, receive_key = state.split()
        return TransportCipher(send_key, state.suite), TransportCipher(receive_key, state.suite)
