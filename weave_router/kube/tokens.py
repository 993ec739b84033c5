"""What an edit of the token's Secret means: taken over, refused, waited for, or written back.

The universe's Lease names the token that the cluster sends with; a Secret whose lines have nothing to do with it is
somebody else's. Pure; called by core.py and start_driver.py. No sentence shows a secret.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from weave_router.errors import UserError
from weave_router.tunnel.token import TokenSet

ABSENT = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """``tokens``: to be used from now on. ``create``: the Secret has to be written, with the tokens in hand (or a new
    one where there are none). ``token_id``: what the universe's Lease should name. ``sentence``: what is wrong."""

    tokens: TokenSet | None = None
    create: bool = False
    token_id: str = ""
    sentence: str = ""


def judge(text: str | None, lease_token: str, held: TokenSet | None, sent: Collection[int] = (),
          accepted: Mapping[str, Container[int]] = MappingProxyType({})) -> Verdict:
    """``text``: the Secret's lines, None where there is none. ``lease_token``: empty where there is no universe yet.
    ``sent``: ids that some node still sends with; ``accepted``: those that each node accepts, by its name."""
    if text is None:
        if held is None and lease_token:
            return Verdict(sentence="the universe's Lease stands and Secret weave-router is gone: this router makes no "
                                    "second token; a running router writes it back, or do it from a backup")
        return Verdict(create=True)
    try:
        tokens = TokenSet.parse(text)
    except UserError as error:
        return Verdict(sentence=f"Secret weave-router stays unused: {error}")
    ids = [f"{token:08x}" for token in tokens.ids]
    if lease_token and lease_token not in ids:
        return Verdict(sentence=f"Secret weave-router is refused: none of its tokens ({', '.join(ids)}) is the "
                                f"cluster's {lease_token}; put that line back, and rotate by add, swap, remove")
    if held is not None and tokens.domain != held.domain:
        return Verdict(sentence="Secret weave-router is refused: it is of another domain; make the next token by "
                                "`weave-router token new --domain-of FILE`")
    if lease_token and ids[0] != lease_token:
        return _swap(tokens, lease_token, held, accepted)
    dropped = [token for token in sent if tokens.by_id(token) is None] if held is not None else []
    sentence = ""
    if dropped:
        sentence = (f"the Secret's edit dropped token {dropped[0]:08x}, which some node still sends with: put the line "
                    "back until `weave-router token status` says that nobody does")
    return Verdict(tokens, token_id=ids[0], sentence=sentence)


def _swap(tokens: TokenSet, lease_token: str, held: TokenSet | None, accepted: Mapping[str, Container[int]]) -> Verdict:
    """Another token than the Lease's shall be sent with. Only one that all accept already: an earlier edit added it,
    and every node that is heard has read that. A router that just starts does not know, and sends with the Lease's."""
    first = tokens.first.id
    if held is not None and held.by_id(first) is None:
        return Verdict(sentence=f"Secret weave-router is refused: its first token {first:08x} is new, the cluster "
                                f"sends with {lease_token}; put the new line below, and swap when `weave-router token "
                                "status` says that the next edit is safe")
    lacking = sorted(name for name, ids in accepted.items() if first not in ids)
    if held is not None and not lacking:
        return Verdict(tokens, token_id=f"{first:08x}")
    waiting = TokenSet(sorted(tokens, key=lambda token: f"{token.id:08x}" != lease_token))
    sentence = (f"the Secret's swap to token {first:08x} waits: {', '.join(lacking[:4])} "
                f"{'does' if len(lacking) == 1 else 'do'} not accept it yet") if lacking else ""
    return Verdict(waiting, token_id=lease_token, sentence=sentence)
