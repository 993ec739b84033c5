"""The three families of error (style 9): ours crash a task, a peer's are counted, a user's are one sentence.

Every room may import this file; it imports nothing of the product.
"""


class WeaveError(Exception):
    """Base of every error that this program raises on purpose."""


class UserError(WeaveError):
    """Something the operator can mend. The text is one sentence that names the way out; shown without a traceback.

    ``exit_status``: 1 failed, 2 wrong usage, 3 router not running.
    """

    exit_status = 1


class UsageError(UserError):
    """Wrong flags, wrong files: exit status 2."""

    exit_status = 2


class NotRunningError(UserError):
    """No router answers on the API socket: exit status 3."""

    exit_status = 3


class BadPacket(WeaveError):
    """What a stranger or a peer sent cannot be used. Carries a short reason for the counter, nothing else happens."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
