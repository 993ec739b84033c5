"""`reset`: takes back everything that the router made on this machine, its identity included.

Refuses while a router runs, and while pods are attached unless forced. Host side first: while the store still stands,
a reset that failed half-way can be repeated.
"""

import os
from pathlib import Path
from typing import Final

import click

from weave_router.cli.common import flag, json_flag, print_either, run_dir_flag
from weave_router.config import STATE_DIR_DEFAULT
from weave_router.errors import UserError

_STORE_FILES: Final = ("store.db", "store.db-wal", "store.db-shm", "store.db-journal")
_JOURNAL: Final = "cni-journal"
"""Folder of DELs that the shim could not hand over: of pods that this node, by then another, never had."""


@click.command(short_help="Take back all that the router made here.")
@flag("--force", is_flag=True, help="Also while pods are attached: they lose their network at once.")
@flag("--bridge", default="weave", show_default=True, metavar="BRIDGE", help="The router's bridge, if it has another.")
@flag("--state-dir", default=STATE_DIR_DEFAULT, show_default=True, metavar="DIR", help="Where the store is.")
@run_dir_flag
@json_flag
def reset(force: bool, bridge: str, state_dir: str, run_dir: str, as_json: bool) -> None:
    """Remove bridge, TAP, pod ports, firewall tables, sockets, and the node's identity and memory.

    The token file stays. The next launch makes a new node.

    \b
    Examples:
      weave-router reset
      weave-router reset --force
    """
    from weave_router.host import reset_driver
    from weave_router.host.names import check_ifname
    from weave_router.store_file import take_lock

    check_ifname(bridge, "--bridge")
    state = Path(os.path.abspath(state_dir))
    lock = take_lock(state) if state.is_dir() else None
    try:
        attached = _attachments(state, force)
        plan = reset_driver.reset(bridge, Path(os.path.abspath(run_dir)), attached, force=force)
        removed = [str(step) for step in plan] + _wipe(state)
    finally:
        if lock is not None:
            os.close(lock)
    print_either({"removed": removed}, as_json, "\n".join(f"removed {name}" for name in removed) or "nothing to remove")


def _attachments(state: Path, force: bool) -> list[str]:
    """Pods that the store knows. A damaged store stops a reset only while nobody forces it."""
    from weave_router.store import Store

    if not (state / "store.db").exists():
        return []
    try:
        with Store.open(state, boot_id="", writer=False) as store:
            return [f"{attachment.container} {attachment.ifname}" for attachment in store.attachments()]
    except UserError:
        if force:
            return []
        raise


def _wipe(state: Path) -> list[str]:
    """The lock's file stays: it is held, and without it two processes could lock two files of one name."""
    journal = state / _JOURNAL
    try:
        entries = sorted(journal.iterdir()) if journal.is_dir() else []
        removed = [f"file {path}" for path in (*(state / name for name in _STORE_FILES), *entries) if _unlink(path)]
        if journal.is_dir():
            journal.rmdir()
            removed.append(f"folder {journal}")
    except OSError as error:
        raise UserError(f"cannot remove {error.filename}: {error.strerror}") from None
    return removed


def _unlink(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True
