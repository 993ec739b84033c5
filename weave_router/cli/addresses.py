"""`claim`, `expose`, `hide` and `ipam`: addresses by name, the host's own, and whether all books agree.

Decides nothing: what was typed is checked, the router answers.
"""

import ipaddress

import click

from weave_router.api import schema
from weave_router.cli.common import client, flag, json_flag, print_either, run_dir_flag
from weave_router.errors import UsageError, UserError


def _address(text: str, option: str) -> str:
    try:
        return str(ipaddress.IPv4Address(text.partition("/")[0]))
    except ValueError:
        raise UsageError(f"{option}: {text!r} should be an IPv4 address such as 10.32.0.5") from None


def _short(text: str, option: str, most: int) -> str:
    if len(text) > most:
        raise UsageError(f"{option}: {text[:20]!r}... is longer than {most} characters")
    return text


@click.command(short_help="Keep an address for a pod.")
@click.argument("address")
@flag("--container-id", default="", metavar="ID", help="The pod that gets it at `attach` without an address.")
@flag("--ifname", default="eth0", metavar="NAME", help="Name of the interface in the pod.")
@flag("--release", is_flag=True, help="Give it back instead.")
@run_dir_flag
@json_flag
def claim(address: str, container_id: str, ifname: str, release: bool, run_dir: str, as_json: bool) -> None:
    """Keep ADDRESS, out of this node's blocks, from being given to anybody else.

    \b
    Examples:
      weave-router claim 10.32.0.5 --container-id blue
      weave-router claim 10.32.0.5 --release
    """
    request = schema.ClaimRequest(
        address=_address(address, "ADDRESS"),
        container_id=_short(container_id, "--container-id", 255),
        ifname=_short(ifname, "--ifname", 15) or "eth0",
        release=release,
    )
    reply = client(run_dir).post("/claim", request, schema.AddressesReply)
    print_either(reply, as_json, f"{'released' if release else 'claimed'} {' '.join(reply.addresses)}")


def _expose(address: str | None, hide: bool, run_dir: str, as_json: bool) -> None:
    request = schema.ExposeRequest(address=_address(address, "ADDRESS") if address else "", hide=hide)
    reply = client(run_dir).post("/expose", request, schema.AddressesReply)
    print_either(reply, as_json, f"{'hidden' if hide else 'exposed'} {' '.join(reply.addresses) or 'nothing'}")


@click.command(short_help="Give this host an address of its own.")
@click.argument("address", required=False)
@run_dir_flag
@json_flag
def expose(address: str | None, run_dir: str, as_json: bool) -> None:
    """Put ADDRESS, or any free one, on this host's bridge beside the bridge's own; kept over restarts.

    \b
    Example:
      weave-router expose 10.32.0.9
    """
    _expose(address, False, run_dir, as_json)


@click.command(short_help="Take exposed addresses off this host.")
@click.argument("address", required=False)
@run_dir_flag
@json_flag
def hide(address: str | None, run_dir: str, as_json: bool) -> None:
    """Take ADDRESS, or all that `expose` put there, off this host's bridge.

    \b
    Example:
      weave-router hide 10.32.0.9
    """
    _expose(address, True, run_dir, as_json)


@click.group(short_help="Check addresses, open the gate.")
def ipam() -> None:
    """Look after this node's part of the addresses."""


@ipam.command()
@flag("--repair", is_flag=True, help="Mend what was found: the kernel's ports are what is true.")
@run_dir_flag
@json_flag
def check(repair: bool, run_dir: str, as_json: bool) -> None:
    """Compare the kernel's ports, the attachments, the leases and the disk. Exit status 1 if something stays wrong.

    \b
    Examples:
      weave-router ipam check
      weave-router ipam check --repair
    """
    reply = client(run_dir).post("/ipam/check", schema.CheckRequest(repair=repair), schema.CheckReply)
    lines = [*reply.findings, *(f"repair: {done}" for done in reply.repaired)]
    print_either(reply, as_json, "\n".join(lines) or "all agree")
    if reply.findings and not repair:
        raise UserError(f"{len(reply.findings)} findings: mend them by `weave-router ipam check --repair`")


@ipam.command()
@run_dir_flag
@json_flag
def ungate(run_dir: str, as_json: bool) -> None:
    """Open this node's gate by the promise that it was not retired meanwhile and that its store is the newest.

    \b
    Example:
      weave-router ipam ungate
    """
    reply = client(run_dir).post("/ipam/ungate", schema.UngateRequest(), schema.Ipam)
    print_either(reply, as_json, f"gate: {reply.gate}")
