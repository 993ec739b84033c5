"""Finds and removes everything this room made: pod ports, TAP, bridge, nft tables, files in the run dir. Idempotent.

Synchronous. The caller (the ``reset`` command) holds the TAP's lock, so that no router runs meanwhile; the state dir
is the store's to remove. Forwarding stays on: others may have come to need it.
"""

from collections.abc import Sequence
from errno import ENODEV
from pathlib import Path

from pyroute2.netlink.exceptions import NetlinkError

from weave_router.host import firewalld_driver, forwarding, lock_driver
from weave_router.host.names import is_port_name, tap_name
from weave_router.host.netfilter import TABLE, removed
from weave_router.host.netlink_driver import Link, Netlink, explain, links, open_netlink
from weave_router.host.nft_driver import Nft
from weave_router.host.reset import Found, Kind, Step, steps

LEFT_OF_A_ROUTER = ("api.sock", "alive", "alive.new", "store-seen", "store-seen.new")
"""Files of the run dir that nobody needs once a router ended."""
_RUN_FILES = (*LEFT_OF_A_ROUTER, "attach.sock", "standby.sock", "tap-*.lock")


def reset(bridge: str, run_dir: Path, attachments: Sequence[str] = (), *, force: bool = False) -> list[Step]:
    """Returns what was removed. Refuses while a router runs, and while pods are attached unless forced."""
    files = _run_files(run_dir)
    made_run_dir = not run_dir.exists()
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = lock_driver.take(run_dir, tap_name(bridge))
    try:
        return reset_held(bridge, files, attachments, force=force)
    finally:
        for path in _run_files(run_dir):
            if path not in files:  # the lock of this very call
                path.unlink()
        lock.release()
        if made_run_dir:
            run_dir.rmdir()


def reset_held(bridge: str, files: Sequence[Path] = (), attachments: Sequence[str] = (), *,
               force: bool = False) -> list[Step]:
    """Likewise, of the links, the rules and these files, for who holds the TAP's lock already."""
    ipr, nft = open_netlink(), Nft()
    try:
        plan = steps(_find(ipr, nft, bridge, files), attachments, force=force)
        for step in plan:
            _remove(ipr, nft, step, bridge)
    finally:
        ipr.close()
        nft.close()
    return plan


def _run_files(run_dir: Path) -> list[Path]:
    return [path for pattern in _RUN_FILES for path in sorted(run_dir.glob(pattern))]


def _find(ipr: Netlink, nft: Nft, bridge: str, files: Sequence[Path]) -> Found:
    """Another program's link that bears our name is left alone."""
    present = {link.name: link for link in links(ipr)}
    ruleset = nft.ruleset()
    tables = [item["table"]["name"] for item in ruleset.get("nftables", []) if "table" in item]
    return Found(
        ports=tuple(sorted(name for name in present if is_port_name(name))),
        tap=_if_kind(present.get(tap_name(bridge)), "tun"),
        bridge=_if_kind(present.get(bridge), "bridge"),
        tables=TABLE in tables,
        answers=forwarding.places(ruleset),
        zone=firewalld_driver.ZONE if firewalld_driver.is_trusted(bridge) else "",
        files=tuple(map(str, files)),
    )


def _if_kind(link: Link | None, kind: str) -> str | None:
    return link.name if link is not None and link.kind == kind else None


def _remove(ipr: Netlink, nft: Nft, step: Step, bridge: str) -> None:
    if step.kind is Kind.LINK:
        with explain("delete", step.name):
            _delete_link(ipr, step.name)
    elif step.kind is Kind.NFT:
        nft.run(removed(), "remove everything")
    elif step.kind is Kind.RULES:
        nft.run(forwarding.withdrawn(nft.ruleset(), of=step.name), "remove accept rules", table=step.name)
    elif step.kind is Kind.ZONE:
        firewalld_driver.distrust(bridge)
    else:
        Path(step.name).unlink(missing_ok=True)


def _delete_link(ipr: Netlink, name: str) -> None:
    try:
        ipr.link("del", ifname=name)
    except NetlinkError as error:
        if error.code != ENODEV:  # a pod's namespace that ends meanwhile takes its port with it
            raise
