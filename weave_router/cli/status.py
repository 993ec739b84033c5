"""`status [SUBJECT]`: asks the router for the page and prints it as text or JSON.

Decides nothing: the values are the router's, the layout is api/text.py's. JSON comes out as the router sent it.
"""

import time
from typing import Any, Final

import click

from weave_router.api import schema, text
from weave_router.cli.common import client, json_flag, print_json, run_dir_flag

ADDRESSES: Final = "addresses"
"""Not part of the page: there may be ten thousand."""


@click.command()
@click.argument("subject", required=False, type=click.Choice([*text.SUBJECTS, ADDRESSES]), metavar="[SUBJECT]")
@run_dir_flag
@json_flag
def status(subject: str | None, run_dir: str, as_json: bool) -> None:
    """Show how the router and its connections are.

    \b
    SUBJECT is one of
      connections  encryption, remote address, state, path, MTU, RTT, bytes, since when, and why
      peers        every known node and its connections, as it tells them itself
      targets      addresses given by hand
      ipam         who has which part of the range, members, the gate, and conflicts
      addresses    every address that this node gave out or lets rest
      attachments  pods on this node
      workers      bundles, segments per call, queues and counters of the fast path
      drops        what was dropped, by reason
      counters     whatever else is counted
      tokens       which node has which token
      warnings     what needs an eye

    \b
    Examples:
      weave-router status
      weave-router status connections
      weave-router status --json | jq .service.id
    """
    if as_json and subject:
        print_json(client(run_dir).get(f"/status/{subject}", Any))
        return
    if subject == ADDRESSES:
        click.echo(text.addresses(client(run_dir).get("/status/addresses", tuple[schema.Address, ...])))
        return
    report = client(run_dir).get("/status", schema.StatusReport)
    if as_json:
        print_json(report)
    else:
        click.echo(text.render(report, subject or "", time.time()))
