"""The command group: which commands there are, and how any of them ends.

A command's file is imported when the command is called, and what is slow (aiohttp, netlink) only inside it. Errors
are one sentence on stderr; exit status 0 done, 1 failed, 2 wrong usage, 3 router not running. A traceback means a
mistake of ours.
"""

import difflib
import importlib
import sys
from typing import Any, Final, NoReturn

import click

from weave_router.errors import UsageError, UserError

PROGRAM: Final = "weave-router"

COMMANDS: Final = {
    "launch": "launch",
    "status": "status",
    "connect": "targets",
    "forget": "targets",
    "attach": "pods",
    "detach": "pods",
    "claim": "addresses",
    "expose": "addresses",
    "hide": "addresses",
    "ipam": "addresses",
    "rmpeer": "rmpeer",
    "install-cni": "install_cni",
    "token": "token",
    "doctor": "doctor",
    "capture": "capture",
    "report": "report",
    "reset": "reset",
}
"""Command -> file of this room that holds it, in the order of the help page."""


OF_WEAVE: Final = {
    "ps": "`weave-router status attachments`", "setup": "`weave-router install-cni`",
    "stop": "`systemctl stop weave-router`", "version": "`weave-router --version`",
    "dns-lookup": "nothing: there is no DNS", "dns-add": "nothing: there is no DNS", "env": "`weave-router attach`",
    "run": "`weave-router attach`", "start": "`weave-router attach`", "consensus": "nothing: see --ipalloc-init",
    "prime": "nothing: see --ipalloc-init",
}
"""Commands of Weave that have another name here, or none."""


class CommandGroup(click.Group):
    """Commands by name, loaded on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"weave_router.cli.{COMMANDS[cmd_name]}")
        command = getattr(module, cmd_name.replace("-", "_"))
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name in OF_WEAVE:
            raise UsageError(f"there is no command {name}; what does it here: {OF_WEAVE[name]}")
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        if name not in COMMANDS and near and not name.startswith("-"):
            raise UsageError(f"there is no command {name}; did you mean {near[0]}?")
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args:
            raise click.UsageError("no command given", ctx)
        return super().parse_args(ctx, args)

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        """As click's (which ends with 1 when nobody reads our output), but a wrong use, too, is one sentence."""
        kwargs["standalone_mode"] = False
        try:
            result = super().main(*args, **kwargs)
        except UserError as error:
            fail(str(error), error.exit_status)
        except click.UsageError as error:
            path = error.ctx.command_path if error.ctx else PROGRAM
            message = error.format_message().replace(". Did you mean", "; did you mean")
            fail(f"{message.rstrip('.?')}; see `{path} --help`", 2)
        except click.ClickException as error:
            fail(error.format_message().rstrip("."), 1)
        except (click.Abort, KeyboardInterrupt):
            fail("interrupted", 1)
        sys.exit(result if isinstance(result, int) else 0)


def fail(sentence: str, exit_status: int) -> NoReturn:
    """End with one line on stderr."""
    click.echo(f"{PROGRAM}: {' '.join(sentence.split())}", err=True)
    sys.exit(exit_status)


def _show_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    """Looked up only when asked for: the look-up costs a third of a command's time."""
    if not wanted:
        return
    from importlib import metadata

    try:
        version = metadata.version(PROGRAM)
    except metadata.PackageNotFoundError:
        version = "(not installed)"
    click.echo(f"{PROGRAM} {version}")
    ctx.exit()


@click.group(
    cls=CommandGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit status: 0 done, 1 failed, 2 wrong usage, 3 router not running.",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show the version."
)
def cli() -> None:
    """An encrypted pod network among hosts that only share IP reachability.

    \b
    On the first node:
      weave-router token new > /etc/weave-router/token
      weave-router launch --token-file /etc/weave-router/token
    On every other, with a copy of that file:
      weave-router launch --token-file /etc/weave-router/token FIRST-NODE
    Without FIRST-NODE a node founds the range of addresses; several share it by --ipalloc-init seed=NAME,...
    """
