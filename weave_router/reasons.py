"""Reason codes: why a connection, a path or a route is not what it could be. One enum, one file.

A code is what metrics and JSON carry; ``text_of`` gives the sentence for people. Listed in docs/operations.md; a test
drives the router into every one. Every room may import this file, it imports nothing of the product.
"""

from enum import StrEnum
from typing import Final


class Reason(StrEnum):
    """Codes, grouped by the room that sets them."""

    # tunnel: why there is no session
    NO_PROOF = "no-proof"
    WRONG_VERSION = "wrong-version"
    UNKNOWN_TOKEN = "unknown-token"
    SELF = "self"
    UNREACHABLE = "unreachable"
    NO_ENDPOINT = "no-endpoint"
    PEER_LEFT = "peer-left"
    # tunnel: why a session is in trouble
    PATH_SILENT = "path-silent"
    PATH_LOST = "path-lost"
    PEER_RESTARTED = "peer-restarted"
    TOKEN_RETIRED = "token-retired"
    EPOCHS_USED_UP = "epochs-used-up"
    # tunnel: why a session is slower or weaker than it could be
    BEHIND_NAT = "behind-nat"
    PATH_MTU_SMALL = "path-mtu-small"
    GSO_REFUSED = "gso-refused"
    NO_AES = "no-aes"
    PLAINTEXT_ONE_SIDED = "plaintext-one-sided"


_TEXTS: Final[dict[Reason, str]] = {
    Reason.NO_PROOF: "no proof from peer (wrong token, or not a weave-router)",
    Reason.WRONG_VERSION: "peer speaks another protocol version",
    Reason.UNKNOWN_TOKEN: "peer uses a token that is not in this node's token file",
    Reason.SELF: "address is this node's own",
    Reason.UNREACHABLE: "the kernel has no way to the peer's address",
    Reason.NO_ENDPOINT: "peer has announced no address to send to",
    Reason.PEER_LEFT: "peer said goodbye",
    Reason.PATH_SILENT: "nothing comes back from the peer",
    Reason.PATH_LOST: "path lost: nothing came back for too long",
    Reason.PEER_RESTARTED: "peer was restarted, a new handshake is under way",
    Reason.TOKEN_RETIRED: "the session's token was removed, a new handshake is under way",
    Reason.EPOCHS_USED_UP: "path changed 16 times within one session, a new handshake is under way",
    Reason.BEHIND_NAT: "behind NAT: kept open every 20 s, reached only while it is",
    Reason.PATH_MTU_SMALL: "path takes less than the interface's MTU",
    Reason.GSO_REFUSED: "the path refuses UDP_SEGMENT: datagrams are sent one by one",
    Reason.NO_AES: "one side has no AES instructions: ChaCha20-Poly1305",
    Reason.PLAINTEXT_ONE_SIDED: "--plaintext on one side only: payload stays encrypted",
}


def text_of(reason: Reason) -> str:
    """The sentence for people; the code itself where nobody wrote one."""
    return _TEXTS.get(reason, reason.value)
