"""What a runtime is told instead of a result: the specification's error codes and our own. Pure.

verbs.py and wishes.py refuse by them, service.py answers with them; which sentence of another room gets which code is
said in verbs.py.
"""

from enum import IntEnum

from weave_router.errors import UserError


class Code(IntEnum):
    """The specification's, and from 100 on our own."""

    INCOMPATIBLE_VERSION = 1
    UNSUPPORTED_FIELD = 2
    UNKNOWN_CONTAINER = 3
    BAD_ENVIRONMENT = 4
    IO_FAILURE = 5
    UNDECODABLE = 6
    BAD_CONFIG = 7
    TRY_LATER = 11
    NOT_AS_MADE = 100
    NO_ADDRESS = 101
    ADDRESS_REFUSED = 102
    WIRING_FAILED = 103


class CniError(UserError):
    """One refusal of one verb. ``version``: the request's, where it could be read and is one that we speak."""

    def __init__(self, code: Code, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code
        self.version = ""
