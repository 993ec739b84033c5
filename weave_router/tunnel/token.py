"""The cluster secret: one line ``wr1.<domain>.<secret>.<crc>``, and the keys that are derived from it.

Base32 without padding: 8 bytes of public domain id, 32 bytes of secret, 4 bytes of CRC-32 over both. Must not know
files (``token_driver.py`` reads them). Called by the tunnel, by mesh links (``link_psk0``, ``link_psk3``) and by
``token new``.
No error text and no repr ever shows the secret.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from weave_router.errors import UsageError
from weave_router.limits import TOKENS_MAX

PREFIX: Final = "wr1"
DOMAIN_SIZE: Final = 8
SECRET_SIZE: Final = 32
CRC_SIZE: Final = 4
_SALT: Final = b"weave-router token 1"


def _derive(secret: bytes, label: str, size: int = 32) -> bytes:
    """HKDF-SHA256 (RFC 5869) with one block of output."""
    key = hmac.digest(_SALT, secret, hashlib.sha256)
    return hmac.digest(key, label.encode() + b"\x01", hashlib.sha256)[:size]


def _encode(data: bytes) -> str:
    return base64.b32encode(data).decode().rstrip("=").lower()


def _decode(text: str, size: int, name: str) -> bytes:
    if len(text) != -(-size * 8 // 5):
        raise UsageError(f"the token's {name} is incomplete: copy the whole line again")
    try:
        data = base64.b32decode(text.upper() + "=" * (-len(text) % 8))
    except (binascii.Error, ValueError):
        data = b""
    if _encode(data) != text.lower():  # also where unused bits of the last character are set
        raise UsageError(f"the token's {name} has characters that no token has: copy the whole line again")
    return data


def _crc(domain: bytes, secret: bytes) -> bytes:
    return binascii.crc32(domain + secret).to_bytes(CRC_SIZE, "big")


@dataclass(frozen=True)
class Token:
    """One token. ``id`` is public (it stands in every handshake's head and in records), all keys are secret."""

    domain: bytes
    secret: bytes = field(repr=False)
    id: int = field(init=False)
    mac1_key: bytes = field(init=False, repr=False, compare=False)
    psk: bytes = field(init=False, repr=False, compare=False)
    link_psk0: bytes = field(init=False, repr=False, compare=False)
    link_psk3: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.domain) != DOMAIN_SIZE or len(self.secret) != SECRET_SIZE:
            raise ValueError("domain 8 bytes, secret 32 bytes")
        object.__setattr__(self, "id", int.from_bytes(_derive(self.secret, "id", 4), "big"))
        for name in ("mac1", "psk", "link psk0", "link psk3"):
            attribute = "mac1_key" if name == "mac1" else name.replace(" ", "_")
            object.__setattr__(self, attribute, _derive(self.secret, name))

    @classmethod
    def parse(cls, line: str) -> "Token":
        """The token of one line; ``UsageError`` with the way out if it is none."""
        parts = line.strip().split(".")
        if parts[0].lower() != PREFIX or len(parts) != 4:
            raise UsageError(f"not a token line: it has the form {PREFIX}.DOMAIN.SECRET.CRC, as "
                             "`weave-router token new` prints it")
        domain = _decode(parts[1], DOMAIN_SIZE, "domain")
        secret = _decode(parts[2], SECRET_SIZE, "secret")
        if not hmac.compare_digest(_decode(parts[3], CRC_SIZE, "check sum"), _crc(domain, secret)):
            raise UsageError("the token's check sum does not fit: a character was changed, copy the whole line again")
        return cls(domain, secret)

    @classmethod
    def new(cls, rng: Callable[[int], bytes], domain: bytes | None = None) -> "Token":
        """A fresh token, of the given domain or of a new one. ``rng(n)`` gives n bytes fit for keys."""
        return cls(rng(DOMAIN_SIZE) if domain is None else domain, rng(SECRET_SIZE))

    def __str__(self) -> str:
        """The line itself: only for writing a token file."""
        return ".".join((PREFIX, *map(_encode, (self.domain, self.secret, _crc(self.domain, self.secret)))))


class TokenSet:
    """One to four tokens of one domain: the first is sent with, all are accepted."""

    def __init__(self, tokens: Iterable[Token]) -> None:
        self._tokens = tuple(tokens)
        if not 1 <= len(self._tokens) <= TOKENS_MAX:
            raise UsageError(f"a token file holds one to {TOKENS_MAX} lines, this one has {len(self._tokens)}")
        if len({token.domain for token in self._tokens}) != 1:
            raise UsageError("the token file mixes domains: make the next token with "
                             "`weave-router token new --domain-of FILE`")
        self._by_id = {token.id: token for token in self._tokens}
        if len(self._by_id) != len(self._tokens):
            raise UsageError("the token file names one token twice: remove one of the two lines")

    @property
    def first(self) -> Token:
        return self._tokens[0]

    @property
    def domain(self) -> bytes:
        return self._tokens[0].domain

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(self._by_id)

    def by_id(self, token_id: int) -> Token | None:
        return self._by_id.get(token_id)

    def __iter__(self) -> Iterator[Token]:
        return iter(self._tokens)

    def __len__(self) -> int:
        return len(self._tokens)

    @classmethod
    def parse(cls, text: str) -> "TokenSet":
        """Tokens of a file's text; blank lines are ignored, a bad line is named by its number."""
        tokens = []
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip():
                continue
            try:
                tokens.append(Token.parse(line))
            except UsageError as error:
                raise UsageError(f"line {number}: {error}") from None
        return cls(tokens)
