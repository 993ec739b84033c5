"""`launch`: reads the configuration, starts the log, and runs the router until a signal ends it.

The options are made from the one list in config.py. The router is imported last, when nothing is wrong any more with
what was typed.
"""

import contextlib
import gc
import os
from collections.abc import Iterator
from typing import Any

import click

from weave_router import config


def _option(option: config.Option) -> click.Option:
    """Never a default here: what was not given must not hide the environment or the file."""
    name = f"--{option.flag}"
    if option.is_switch:
        return click.Option([name], is_flag=True, flag_value="true", default=None, type=str, help=option.help)
    return click.Option([name], metavar=option.metavar, help=option.help)


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """What is imported stays: searching it for garbage, while it comes and ever after, is a tenth of a start."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@click.command(
    params=[
        click.Argument(["targets"], nargs=-1, metavar="[TARGET]..."),
        *(_option(option) for option in config.OPTIONS),
        click.Option(["--config"], metavar="FILE", help="Read options from a TOML file: names as here, without --."),
    ],
    short_help="Run the router in the foreground.",
)
@click.pass_context
def launch(ctx: click.Context, /, targets: tuple[str, ...], **flags: Any) -> None:
    """Run the router in the foreground and link with every TARGET (HOST, HOST:PORT or [IPV6]:PORT).

    Every option can also be set as WEAVE_ROUTER_<OPTION>, and TARGETs as WEAVE_ROUTER_TARGETS; flags come before the
    environment, the environment before the file. SIGHUP reads the token file again.

    \b
    Examples:
      weave-router launch --token-file /etc/weave-router/token
      weave-router launch --token-file /etc/weave-router/token --ipalloc-init seed=a,b --name a 192.0.2.12
      weave-router launch --token-file /etc/weave-router/token --bridge-address 10.32.0.2 192.0.2.11
      WEAVE_ROUTER_MTU=8868 weave-router launch --config /etc/weave-router/config.toml
    """
    settings = config.load(flags, targets, os.environ)

    with _without_collection():
        from weave_router import log
        from weave_router.router import run

    output = log.configure(settings.log_level)
    try:
        exit_status = run(settings)
    finally:
        output.close()
    ctx.exit(exit_status or 0)
