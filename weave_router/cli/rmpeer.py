"""`rmpeer`: the addresses of machines that are off for ever come back to those that are left.

The router decides and waits for the others' promises; this file asks, shows who is missing, and stops waiting. Decides
nothing.
"""

import sys
import time
from typing import Final

import click

from weave_router.api import schema
from weave_router.api.client import ApiClient
from weave_router.cli.common import client, flag, json_flag, print_either, run_dir_flag
from weave_router.errors import UsageError, UserError

WORD: Final = "lost-majority"
LOOK_SECONDS: Final = 0.2


@click.command(short_help="Take back the addresses of a machine that is off for ever.")
@click.argument("peers", nargs=-1, metavar="PEER...")
@flag("--timeout", default=60.0, show_default=True, type=click.FloatRange(0, 86_400), metavar="SECONDS",
      help="How long to wait for the others' promises; the router goes on waiting.")
@flag("--lost-majority", is_flag=True, help="More than half of the members are off for ever: asks for the word.")
@flag("--abort", is_flag=True, help="Give up the retirement that this node has open.")
@run_dir_flag
@json_flag
def rmpeer(
    peers: tuple[str, ...], timeout: float, lost_majority: bool, abort: bool, run_dir: str, as_json: bool
) -> None:
    """Retire every PEER (a name, or at least 4 digits of an id): this node takes all its addresses.

    You promise that these machines are off and never start again with what is on their disks. Every other member has to
    promise, too, that it listens to them no more, on its disk; so all of them must run, and none is left out. Name all
    machines that are gone at once.

    \b
    Examples:
      weave-router rmpeer node-c
      weave-router rmpeer node-c 0a1b2c3d4e5f --timeout 600
      weave-router rmpeer --abort
    """
    if abort == bool(peers):
        raise UsageError("rmpeer: name at least one PEER (see `weave-router status ipam`), or give --abort alone")
    api = client(run_dir)
    if abort:
        reply = api.post("/retire", schema.RetireRequest(give_up=True), schema.Retirement)
        print_either(reply, as_json, f"given up: the retirement of {', '.join(reply.victims)}")
        return
    if lost_majority:
        _ask_for_the_word(peers)
    reply = api.post("/retire", schema.RetireRequest(peers=peers, lost_majority=lost_majority), schema.Retirement)
    reply = _wait(api, reply, timeout)
    print_either(reply, as_json, _done(reply))


def _ask_for_the_word(peers: tuple[str, ...]) -> None:
    click.echo(
        f"You promise that {', '.join(peers)} are off and never start again with what is on their disks, although they "
        "are more than half of the members. If one of them does, it and its like may open each other's gates without "
        f"asking those that are left, and addresses are given twice. Type {WORD} to go on:", err=True)  # fmt: skip
    if sys.stdin.readline().strip() != WORD:
        raise UserError(f"nothing was retired: --lost-majority asks for the word {WORD}")


def _wait(api: ApiClient, reply: schema.Retirement, timeout: float) -> schema.Retirement:
    deadline, said = time.monotonic() + timeout, ""
    while reply.state == "open":
        progress = f"waiting for the promise of {', '.join(reply.missing)}; {', '.join(reply.promised)} promised"
        if progress != said:
            click.echo(progress, err=True)
            said = progress
        if time.monotonic() > deadline:
            raise UserError(
                f"{', '.join(reply.missing)} did not promise within {timeout:g} s: the retirement of "
                f"{', '.join(reply.victims)} stays open and is completed when they do; start them, or, if they are off "
                "for ever, too, give it up by `weave-router rmpeer --abort` and name them all")
        time.sleep(LOOK_SECONDS)
        reply = api.get("/retirement", schema.Retirement)
    if reply.state != "done":
        raise UserError(f"not retired: {reply.reason or 'the router was started anew; ask again'}")
    return reply


def _done(reply: schema.Retirement) -> str:
    who = ", ".join(reply.victims)
    if reply.blocks:
        return f"retired {who}: {reply.addresses} addresses are this node's now"
    return f"{who}: retired before, or without an address"
