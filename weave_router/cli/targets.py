"""`connect` and `forget`: the addresses that the router keeps trying, changed while it runs.

Both check what was typed before they ask, so that a typing error is seen without a router too.
"""

import click

from weave_router.api import schema
from weave_router.cli.common import client, flag, json_flag, print_either, run_dir_flag
from weave_router.config import parse_targets
from weave_router.errors import UsageError


def _checked(targets: tuple[str, ...]) -> tuple[str, ...]:
    try:
        return parse_targets(list(targets))
    except ValueError as error:
        raise UsageError(f"TARGET: {error}") from None


def _print(reply: schema.TargetsReply, as_json: bool) -> None:
    lines = ["targets: " + (" ".join(reply.targets) or "none")]
    lines += [f"{each} is the address of a Node too and is called as long as that is there" for each in reply.of_nodes]
    print_either(reply, as_json, "\n".join(lines))


@click.command(short_help="Link with more nodes.")
@click.argument("targets", nargs=-1, metavar="TARGET...")
@flag("--replace", is_flag=True, help="Forget all other targets.")
@run_dir_flag
@json_flag
def connect(targets: tuple[str, ...], replace: bool, run_dir: str, as_json: bool) -> None:
    """Link with every TARGET too (HOST, HOST:PORT or [IPV6]:PORT), now and after every restart.

    \b
    Examples:
      weave-router connect 192.0.2.13
      weave-router connect node-c.example.org:6783
      weave-router connect --replace 192.0.2.12 192.0.2.13
    """
    if not targets and not replace:
        raise UsageError("connect: name at least one TARGET, such as 192.0.2.13")
    request = schema.ConnectRequest(targets=_checked(targets), replace=replace)
    _print(client(run_dir).post("/connect", request, schema.TargetsReply), as_json)


@click.command()
@click.argument("targets", nargs=-1, metavar="TARGET...")
@run_dir_flag
@json_flag
def forget(targets: tuple[str, ...], run_dir: str, as_json: bool) -> None:
    """Stop trying every TARGET. A link that stands is kept; once lost, it is not made again by this node. An address
    of a cluster's Node is called as long as the Node is there.

    \b
    Example:
      weave-router forget 192.0.2.13
    """
    if not targets:
        raise UsageError("forget: name at least one TARGET; `weave-router status targets` lists them")
    request = schema.ForgetRequest(targets=_checked(targets))
    _print(client(run_dir).post("/forget", request, schema.TargetsReply), as_json)
