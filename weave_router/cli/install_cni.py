"""`install-cni`: makes container runtimes on this machine use the router for their pods.

The executable first, the network list last and only when the router can serve: a runtime that sees the list starts
pods. Asks the router through its API; host/conflist.py decides what is written, host/install_driver.py writes it.
"""

import os
import re
import time
from pathlib import Path

import click

from weave_router.api import schema
from weave_router.cli.common import client, flag, json_flag, print_either, run_dir_flag
from weave_router.config import STATE_DIR_DEFAULT
from weave_router.errors import UsageError, UserError


@click.command("install-cni", short_help="Make container runtimes use this router.")
@flag("--bin-dir", default="/opt/cni/bin", show_default=True, metavar="DIR", help="Where runtimes look for plugins.")
@flag("--conf-dir", default="/etc/cni/net.d", show_default=True, metavar="DIR", help="Where they look for networks.")
@flag("--network", default="weave", show_default=True, metavar="NAME", help="Name of the network.")
@flag("--chain", default="portmap", show_default=True, metavar="NAMES",
      help="Plugins to chain where they are there: portmap, bandwidth, tuning, firewall.")
@flag("--follow", is_flag=True, help="Stay, and rewrite the list when a plugin comes, goes or changes.")
@flag("--state-dir", default=STATE_DIR_DEFAULT, show_default=True, metavar="DIR", help="The router's state directory.")
@run_dir_flag
@json_flag
def install_cni(bin_dir: str, conf_dir: str, network: str, chain: str, follow: bool, state_dir: str, run_dir: str,
                as_json: bool) -> None:
    """Copy the CNI plugin and write 10-weave-router.conflist, when the router can serve pods.

    \b
    Examples:
      weave-router install-cni
      weave-router install-cni --bin-dir /usr/lib/cni --chain portmap,bandwidth
    """
    _check(network)
    plugins = _plugins(chain)
    _check_serving(run_dir)
    from weave_router.host import install_driver

    folders = install_driver.Folders(*(Path(os.path.abspath(path)) for path in (bin_dir, conf_dir, run_dir, state_dir)))
    written = install_driver.install(folders, network, plugins)
    print_either({"written": written}, as_json, "\n".join(f"wrote {path}" for path in written) or "nothing to change")
    while follow:
        time.sleep(install_driver.FOLLOW_SECONDS)
        for path in install_driver.install(folders, network, plugins):
            click.echo(f"wrote {path}")


def _check(network: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", network, re.ASCII):
        raise UsageError(f"--network: {network[:70]!r} should be 1 to 64 letters, digits, '_', '.', '-'")


def _plugins(text: str) -> list[str]:
    from weave_router.host.conflist import CHAINED

    names = list(dict.fromkeys(text.replace(",", " ").split()))
    for name in names:
        if name not in CHAINED:
            raise UsageError(f"--chain: {name[:32]!r} should be one of {', '.join(CHAINED)}")
    return names


def _check_serving(run_dir: str) -> None:
    if not client(run_dir).get("/status", schema.StatusReport).ipam.bridge_address:
        raise UserError("the router cannot serve pods yet, it has no address in the range: launch --bridge-address")
