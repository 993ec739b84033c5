"""`reset`: takes back everything that the router made on this machine, its identity included.

Refuses while a router runs, and while pods are attached unless forced. Host side first: while the store still stands,
a reset that failed half-way can be repeated. In Kubernetes this node's Leases are emptied too, where the API server can
be asked; else what is left to do is said.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from weave_router.cli.common import flag, json_flag, print_either, run_dir_flag
from weave_router.config import SERVICE_ACCOUNT_DEFAULT, STATE_DIR_DEFAULT
from weave_router.errors import UsageError, UserError

if TYPE_CHECKING:
    from weave_router.store import Store

_IN_A_CLUSTER: Final = "kubernetes.json"
"""File of the state directory that says so."""


@click.command(short_help="Take back all that the router made here.")
@flag("--force", is_flag=True, help="Also while pods are attached: they lose their network at once.")
@flag("--bridge", default="weave", show_default=True, metavar="BRIDGE", help="The router's bridge, if it has another.")
@flag("--bin-dir", default="/opt/cni/bin", show_default=True, metavar="DIR", help="Where `install-cni` put the plugin.")
@flag("--conf-dir", default="/etc/cni/net.d", show_default=True, metavar="DIR", help="Where it put the network list.")
@flag("--state-dir", default=STATE_DIR_DEFAULT, show_default=True, metavar="DIR", help="Where the store is.")
@flag("--node-name", default="", metavar="NAME", help="Kubernetes: name of this Node, to empty its Leases.")
@flag("--namespace", default="kube-system", show_default=True, metavar="NAME", help="Kubernetes: where they are.")
@flag("--kubernetes-api", default="", metavar="HOST:PORT", help="Kubernetes: the API server [default: its Service].")
@flag("--service-account", default=SERVICE_ACCOUNT_DEFAULT, metavar="DIR", help="Kubernetes: of token and ca.crt.")
@run_dir_flag
@json_flag
def reset(force: bool, bridge: str, bin_dir: str, conf_dir: str, state_dir: str, node_name: str, namespace: str,
          kubernetes_api: str, service_account: str, run_dir: str, as_json: bool) -> None:
    """Remove bridge, TAP, pod ports, firewall tables, sockets, the CNI plugin, and the node's identity and memory.

    The token file stays. The next launch makes a new node. In Kubernetes rather see "Remove" in docs/kubernetes.md.

    \b
    Examples:
      weave-router reset
      weave-router reset --force
    """
    from weave_router import store_file
    from weave_router.host import install_driver, reset_driver
    from weave_router.host.names import check_ifname

    check_ifname(bridge, "--bridge")
    state, run = (Path(os.path.abspath(path)) for path in (state_dir, run_dir))
    in_a_cluster = (state / _IN_A_CLUSTER).exists()
    lock = store_file.take_lock(state) if state.is_dir() else None
    try:
        attached, identity = _memory(state, force)
        plan = reset_driver.reset(bridge, run, attached, force=force)
        removed = [str(step) for step in plan] + [f"file {path}" for path in install_driver.remove(
            install_driver.Folders(Path(bin_dir), Path(conf_dir), run, state))]
        left = _empty_leases(identity, node_name, namespace, kubernetes_api, service_account) if in_a_cluster else ""
        removed += store_file.wipe(state) if lock is not None else []
    finally:
        if lock is not None:
            os.close(lock)
    lines = [f"removed {name}" for name in removed] + ([f"left: {left}"] if left else [])
    print_either({"removed": removed, "left": left}, as_json, "\n".join(lines) or "nothing to remove")


def _memory(state: Path, force: bool) -> tuple[list[str], str]:
    """Pods that the store knows, and this node's id. A damaged store stops a reset only while nobody forces it."""
    from weave_router.store import Store

    if not (state / "store.db").exists():
        return [], ""
    try:
        with Store.open(state, boot_id="", writer=False) as store:
            return [f"{each.pod or each.container} {each.ifname}" for each in store.attachments()], _node_id(store)
    except UserError:
        if force:
            return [], ""
        raise


def _node_id(store: "Store") -> str:
    from weave_router.tunnel.identity import Identity

    return Identity(*store.identity()).node_id.hex()


def _empty_leases(identity: str, node: str, namespace: str, server: str, account: str) -> str:
    """What is left to do by hand."""
    import asyncio

    from weave_router.config import LaunchConfig, api_server
    from weave_router.kube import leave_driver, start_driver

    try:
        address = api_server(server) if server else ""
    except ValueError as error:
        raise UsageError(f"--kubernetes-api: {error}") from None
    config = LaunchConfig(name=node or "-", nickname=node or "-", kubernetes_api=address, service_account=account)

    async def empty() -> None:
        api = start_driver.make_api(config)
        try:
            await leave_driver.empty_leases(api, namespace, node or "-", identity)
        finally:
            await api.close()

    try:
        asyncio.run(empty())
    except (UserError, leave_driver.LeaveError) as error:
        return (f"this Node's Leases in {namespace} ({error}): give --kubernetes-api, or delete the Node, and others "
                "free them within 16 minutes")
    return ""
