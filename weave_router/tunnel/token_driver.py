"""Reads token files. A file that others could read is refused: the token is the cluster's only secret.

Decides nothing but that; what a line means is ``token.py``'s business. Called at start and on SIGHUP.
"""

import os
import stat
from pathlib import Path

from weave_router.errors import UsageError
from weave_router.limits import TOKEN_FILE_MAX
from weave_router.tunnel.token import TokenSet


def load_tokens(path: str | Path) -> TokenSet:
    """The tokens of a file, or ``UsageError`` with one sentence that names the way out."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise UsageError(f"token file {path} does not exist: run `weave-router token new > {path}` on the first node "
                         "and copy the file to the others") from None
    except OSError as error:
        raise UsageError(f"token file {path} cannot be opened: {error.strerror}") from None
    with open(descriptor, "rb") as file:
        _check(path, os.fstat(file.fileno()))
        data = file.read(TOKEN_FILE_MAX + 1)
    if len(data) > TOKEN_FILE_MAX:
        raise UsageError(f"token file {path} is larger than {TOKEN_FILE_MAX} bytes: it holds one to four token lines "
                         "and nothing else")
    try:
        return TokenSet.parse(data.decode("ascii"))
    except UnicodeDecodeError:
        raise UsageError(f"token file {path} is not text: it holds one to four token lines") from None
    except UsageError as error:
        raise UsageError(f"token file {path}: {error}") from None


def _check(path: str | Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(f"token file {path} is not a regular file: name the file that holds the token lines")
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        raise UsageError(f"token file {path} may be read by others (mode {mode:04o}): run `chmod 600 {path}`")
    if status.st_uid not in (0, os.geteuid()):
        raise UsageError(f"token file {path} belongs to user {status.st_uid}: run `chown {os.geteuid()} {path}`")
