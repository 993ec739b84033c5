"""What an edit of the token's Secret means: taken over, refused, waited for, or written back.

The universe's Lease names the token that the cluster sends with; a Secret whose lines have nothing to do with it is
somebody else's. Pure; called by core.py and start_driver.py. No sentence shows a secret.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

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


def judge(text: str | None, lease_token: str, held: TokenSet | None, sent: Container[int] = frozenset()) -> Verdict:
    """``text``: the Secret's lines, None where there is none. ``lease_token``: empty where there is no universe yet.
    ``sent``: ids that some node still sends with."""
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
    dropped = [] if held is None else [token for token in held.ids if tokens.by_id(token) is None and token in sent]
    sentence = ""
    if dropped:
        sentence = (f"the Secret's edit dropped token {dropped[0]:08x}, which some node still sends with: put the line "
                    "back until `weave-router token status` says that nobody does")
    return Verdict(tokens, token_id=ids[0], sentence=sentence)
