"""What a start decides about addresses, before there is a loop: which universe, whether the gate is shut, the bridge.

The store goes before the options; where the two contradict each other, the start is refused and nothing overwritten.
The run directory remembers how new the store was in this boot: an older one was put back. Called by router.py.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from weave_router.config import LaunchConfig
from weave_router.errors import UsageError, UserError
from weave_router.store import Store
from weave_router.tunnel.identity import Identity, verify

from .allocator import Holder
from .driver import now, written_at_once
from .service import Service, Settings

JOIN: Final = (
    "joining a universe of addresses is not in service yet: give --ipalloc-init seed=NAME,... (the same on every node) "
    "to share the range, or --ipalloc-init none with --bridge-address to give addresses by hand"
)
MEMORY: Final = "store-seen"
LivePod = tuple[str, str, IPv4Address]


def open_service(config: LaunchConfig, store: Store, identity: Identity, domain: bytes, *, boot_id: str,
                 incarnation: int, live: Iterable[LivePod], store_older: bool,
                 name_of: Callable[[bytes], str], arbiter: bytes = b"") -> Service | None:
    """None: addresses are given by hand. UserError with the way out; what the start changed is on disk.

    ``arbiter``: the universe that the Kubernetes API names; it says whose a block is."""
    rows = store.ipam.load()
    if not arbiter and rows.head is None and config.init == "join":
        raise UsageError(JOIN)
    if not arbiter and rows.head is None and config.init in ("none", "observer"):
        return None
    service = Service(
        identity.node_id, identity.ed25519_public,
        Settings(config.name, domain, config.range_v4, config.seed_names, config.default_subnet, config.excluded,
                 cooldown=config.cooldown, arbiter=bool(arbiter)),
        sign=identity.sign, verify=verify, nonce=lambda: secrets.randbits(62), name_of=name_of)
    at = now()
    service.load(rows, at)
    if service.on and arbiter:
        _check_universe(service, arbiter)
    elif service.on:
        _check_init(config, service)
    service.boot(boot_id, incarnation, holders(live), store_older, at)
    if not service.on and arbiter:
        service.found_by_arbiter(arbiter, at)
    elif not service.on and config.init == "seed":
        service.found_seed(at)
    elif not service.on:
        service.found_new(secrets.token_bytes(16), at)
    return service


def _check_universe(service: Service, universe: bytes) -> None:
    held = service.state.universe or b""
    if held != universe:
        raise UserError(f"the store holds a part of universe {held.hex()}, the cluster's Lease names {universe.hex()}: "
                        "start anew by `weave-router reset` if this node was moved here")


def _check_init(config: LaunchConfig, service: Service) -> None:
    """What was said on this start against what the store holds."""
    said = config.ipalloc_init.partition("=")[0]
    universe = (service.state.universe or b"").hex()
    if said in ("none", "observer"):
        raise UserError(f"the store holds a part of universe {universe}, --ipalloc-init says {said}: leave it out, or "
                        "start anew by `weave-router reset`")
    if said == "seed" and service.seed_differs():
        raise UserError(f"the store holds a part of universe {universe}, which is not that of --ipalloc-init "
                        f"{config.ipalloc_init} with range {config.range_v4}: leave it out, give what the other nodes "
                        "were given, or start anew by `weave-router reset`")


def choose_bridge(service: Service, store: Store, wanted: str) -> int | None:
    """The bridge's number, on disk with all that this start changed. UserError if the wanted one is not to be had."""
    try:
        number = service.choose_bridge(int(IPv4Address(wanted)) if wanted else None, now())
    except UserError as error:
        if wanted:
            raise UsageError(f"--bridge-address: {error}; or leave it out") from None
        raise
    with store.batch():
        written_at_once(service, store)
        store.set_setting("bridge_number", str(number))
    return number


def holders(live: Iterable[LivePod]) -> dict[int, Holder]:
    return {int(address): Holder(container, ifname) for container, ifname, address in live}


# --- what this boot saw of the store ------------------------------------------------------------------------------


def is_older(run_dir: Path, boot_id: str, node_id: bytes, incarnation: int) -> bool:
    """Was the store newer before, in this boot? Then somebody put an old copy back."""
    try:
        boot, node, seen = (run_dir / MEMORY).read_text().split()
    except (OSError, ValueError):
        return False
    return (boot, node) == (boot_id, node_id.hex()) and seen.isdecimal() and int(seen) > incarnation


def remember(run_dir: Path, boot_id: str, node_id: bytes, incarnation: int) -> None:
    fresh = run_dir / f"{MEMORY}.new"
    fresh.write_text(f"{boot_id} {node_id.hex()} {incarnation}\n")
    os.replace(fresh, run_dir / MEMORY)
