"""`token new` and `token status`: the cluster's secret, made here, and which node has which.

`new` needs no router and prints the one secret this program ever prints; `status` shows ids only.
"""

import contextlib
import os
import sys

import click

from weave_router.api import schema, text
from weave_router.cli.common import client, close_to_others, flag, json_flag, print_either, run_dir_flag


@click.group(no_args_is_help=False)
def token() -> None:
    """Make the cluster's token, or see which nodes have which."""


@token.command()
@flag("--domain-of", default="", metavar="FILE", help="Make the next token of this file's cluster.")
@json_flag
def new(domain_of: str, as_json: bool) -> None:
    """Print a new token, one line. Redirected into a file, the file is closed to others.

    To change the token of a running cluster: add the new line below the old one on every node, then above it on every
    node, then remove the old one; after each step send SIGHUP, and see `weave-router token status`.

    \b
    Examples:
      weave-router token new > /etc/weave-router/token
      weave-router token new --domain-of /etc/weave-router/token >> /etc/weave-router/token
    """
    from weave_router.tunnel.token import Token
    from weave_router.tunnel.token_driver import load_tokens

    domain = load_tokens(domain_of).domain if domain_of else None
    made = Token.new(os.urandom, domain)
    _protect_output()
    value = {"token": str(made), "id": f"{made.id:08x}", "domain": made.domain.hex()}
    print_either(value, as_json, str(made))


def _protect_output() -> None:
    with contextlib.suppress(OSError):  # no descriptor behind stdout, or a file system without modes
        close_to_others(sys.stdout.fileno())


@token.command()
@run_dir_flag
@json_flag
def status(run_dir: str, as_json: bool) -> None:
    """Show which node sends with and accepts which token (ids, never secrets), and what that allows next.

    \b
    Example:
      weave-router token status
    """
    tokens = client(run_dir).get("/tokens", schema.Tokens)
    print_either(tokens, as_json, text.rotation(tokens))
