"""What several commands share: options, output, and the way to the router.

Imports nothing slow: every command pays for it. Knows no command; called by the files of this room alone.
"""

import os
import stat
import sys
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click
import msgspec

from weave_router.api.client import ApiClient
from weave_router.config import ENV_PREFIX, RUN_DIR_DEFAULT
from weave_router.errors import UserError

_Command = TypeVar("_Command", bound=Callable[..., Any])
STDOUT: Final = "-"


def flag(name: str, *others: str, **attributes: Any) -> Callable[[_Command], _Command]:
    """An option that can also be given by environment, as every flag of this program."""
    variable = ENV_PREFIX + name.lstrip("-").replace("-", "_").upper()
    return click.option(name, *others, envvar=variable, **attributes)


run_dir_flag = flag(
    "--run-dir", default=RUN_DIR_DEFAULT, show_default=True, metavar="DIR", help="Where the router has its sockets."
)
json_flag = flag("--json", "as_json", is_flag=True, help="Print JSON.")


def client(run_dir: str) -> ApiClient:
    return ApiClient(os.path.abspath(run_dir))


def print_json(value: Any) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))


def print_either(value: Any, as_json: bool, text: str) -> None:
    """JSON when it is asked for, else the text."""
    if as_json:
        print_json(value)
    else:
        click.echo(text)


def open_output(path: str, option: str) -> int:
    """A descriptor to write to: stdout for ``-``, else a file that only its owner can read."""
    if path == STDOUT:
        return os.dup(sys.stdout.fileno())
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UserError(f"{option}: cannot write {path}: {error.strerror}") from None


def close_to_others(descriptor: int) -> None:
    """Take a regular file that stdout was redirected to away from group and others."""
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
        os.fchmod(descriptor, stat.S_IMODE(status.st_mode) & 0o700)
