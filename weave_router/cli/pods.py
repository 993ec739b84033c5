"""`attach` and `detach`: pods by hand.

`attach` enters the pod's namespace itself and hands it over as a descriptor, for the router has no right to enter
one; `detach` only says which.
"""

import ipaddress
import os
from errno import ECONNREFUSED, ENOENT
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from weave_router.api import schema
from weave_router.cli.common import client, flag, json_flag, print_either, run_dir_flag
from weave_router.config import RANGE_DEFAULT
from weave_router.errors import NotRunningError, UsageError, UserError

ATTACH_SOCKET: Final = "attach.sock"
_ANSWER_SECONDS: Final = 30.0
"""An attach takes tens of milliseconds; it waits for one busy with others."""

_ifname_flag = flag("--ifname", default="", metavar="NAME", help="Name of the interface in the pod.")
_container_flag = flag("--container-id", default="", metavar="ID", help="Name of the pod in status and captures.")


def netns_path(text: str) -> str:
    """A path as it is, a number as a process's namespace, a name as one made by `ip netns`."""
    if "/" in text:
        return os.path.abspath(text)
    return f"/proc/{text}/ns/net" if text.isdecimal() else f"/run/netns/{text}"


def _interface(text: str) -> str:
    """The address with its prefix length, IPv4: the IPv6 address is made from it."""
    try:
        interface = ipaddress.ip_interface(text)
    except ValueError:
        raise UsageError(f"ADDRESS/LEN: {text!r} should be an IPv4 address and a length: 10.32.0.5/12") from None
    if interface.version == 6:
        raise UsageError(f"ADDRESS/LEN: {text} is IPv6; give an IPv4 address, the IPv6 one follows from it")
    if "/" not in text:
        length = RANGE_DEFAULT.partition("/")[2]
        raise UsageError(f"ADDRESS/LEN: {text} lacks the range's prefix length; did you mean {text}/{length}?")
    return str(interface)


def _short(text: str, option: str, most: int) -> str:
    if len(text) > most:
        raise UsageError(f"{option}: {text[:20]!r}... is longer than {most} characters")
    return text


@click.command(short_help="Connect a network namespace.")
@click.argument("netns")
@click.argument("address", metavar="[ADDRESS/LEN]", required=False)
@_ifname_flag
@_container_flag
@run_dir_flag
@json_flag
def attach(netns: str, address: str | None, ifname: str, container_id: str, run_dir: str, as_json: bool) -> None:
    """Connect a network namespace to the pod network under ADDRESS/LEN, or any address; needs root.

    NETNS is a path, a process id, or a name of `ip netns`. LEN is the prefix length of the range, so that the pod
    reaches all pods. The interface is called eth0 unless --ifname says otherwise.

    \b
    Examples:
      weave-router attach blue
      weave-router attach blue 10.32.0.5/12
      weave-router attach /proc/4711/ns/net 10.32.0.6/12 --ifname eth1
    """
    path = netns_path(netns)
    request = schema.AttachRequest(
        address=_interface(address) if address else "",
        netns=path,
        ifname=_short(ifname, "--ifname", 15) or "eth0",
        container_id=_short(container_id, "--container-id", 255),
    )
    attached = _read_reply(_hand_over(Path(os.path.abspath(run_dir)) / ATTACH_SOCKET, path, request))
    addresses = " ".join(filter(None, (attached.address, attached.ipv6)))
    print_either(attached, as_json, f"attached {attached.ifname} {addresses} mac {attached.mac or '-'}")


def _hand_over(socket_path: Path, path: str, request: schema.AttachRequest) -> dict[str, Any]:
    from weave_router.host.faults import Fault, HostError
    from weave_router.host.handover_driver import hand_over, open_pod

    pod = open_pod(path)
    try:
        return hand_over(socket_path, msgspec.to_builtins(request), pod, timeout=_ANSWER_SECONDS)
    except HostError as error:
        if error.fault is Fault.HANDOVER_AWAY and error.errno in (ENOENT, ECONNREFUSED):
            raise NotRunningError(str(error)) from None
        raise
    finally:
        pod.close()


def _read_reply(reply: dict[str, Any]) -> schema.Attachment:
    """The attachment, or the router's sentence."""
    try:
        if "error" not in reply:
            return msgspec.convert(reply, schema.Attachment)
        refusal = msgspec.convert(reply, schema.ErrorReply)
    except msgspec.ValidationError as error:
        raise UserError(f"cannot read the router's answer ({error}); are both of one version?") from None
    raise (UsageError if refusal.exit_status == 2 else UserError)(refusal.error)


@click.command(short_help="Disconnect a network namespace.")
@click.argument("netns", required=False)
@flag("--address", default="", metavar="ADDRESS", help="Only the attachment with this address.")
@_ifname_flag
@_container_flag
@run_dir_flag
@json_flag
def detach(netns: str | None, address: str, ifname: str, container_id: str, run_dir: str, as_json: bool) -> None:
    """Disconnect a network namespace; by address or container id also when the namespace is gone.

    \b
    Examples:
      weave-router detach blue
      weave-router detach --address 10.32.0.6
    """
    if not (netns or address or container_id):
        raise UsageError("detach: say which by NETNS, --address or --container-id (`weave-router status attachments`)")
    path = netns_path(netns) if netns else ""
    request = schema.DetachRequest(
        netns=path,
        netns_inode=_inode(path),
        address=_address(address),
        ifname=_short(ifname, "--ifname", 15),
        container_id=_short(container_id, "--container-id", 255),
    )
    reply = client(run_dir).post("/detach", request, schema.DetachReply)
    lines = [f"detached {gone.ifname} {gone.address} {gone.container_id}".rstrip() for gone in reply.detached]
    print_either(reply, as_json, "\n".join(lines) or "nothing was attached there")


def _inode(path: str) -> int | None:
    try:
        return os.stat(path).st_ino if path else None
    except OSError:
        return None


def _address(text: str) -> str:
    try:
        return str(ipaddress.IPv4Address(text.partition("/")[0])) if text else ""
    except ValueError:
        raise UsageError(f"--address: {text!r} should be an IPv4 address such as 10.32.0.5") from None
