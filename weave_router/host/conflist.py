"""The network list that a container runtime reads, as a value. Pure; install_driver.py writes it.

Called by the ``install-cni`` command.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

NAME: Final = "10-weave-router.conflist"
BASE_VERSION: Final = "1.0.0"
NEWER_VERSION: Final = "1.1.0"
TYPE: Final = "weave-router-cni"

_READ: Final = (".conf", ".conflist", ".json")
"""Extensions of files that runtimes take for networks."""

CHAINED: Final[dict[str, dict[str, Any]]] = {
    "portmap": {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
    "bandwidth": {"type": "bandwidth", "capabilities": {"bandwidth": True}},
    "tuning": {"type": "tuning"},
    "firewall": {"type": "firewall"},
}
"""Plugins that can stand behind ours, with what each is told."""


def ahead(names: Iterable[str]) -> list[str]:
    """Networks of others that a runtime takes instead of ours, where ours is among them: it takes the first."""
    found = sorted(name for name in names if name.endswith(_READ))
    return found[: found.index(NAME)] if NAME in found else []


def ahead_sentence(folder: str, names: Sequence[str]) -> str:
    return (f"{folder}/{names[0]} sorts before {NAME}: the runtime gives pods that network; remove it and what else "
            "is left of the other network")


def conflist(
    network: str, socket: str, journal: str, chain: Sequence[str], versions: Mapping[str, Sequence[str] | None]
) -> bytes:
    """``versions``: what each chained plugin speaks, None where its executable is missing: it is left out, because a
    missing plugin fails every ADD. ``cniVersions`` only where all speak the newer one: libcni takes the highest."""
    ours = {"type": TYPE, "socket": socket, "journal": journal, "capabilities": {"ips": True, "mac": True}}
    standing = [name for name in chain if versions.get(name) is not None]
    value: dict[str, Any] = {"cniVersion": BASE_VERSION}
    if all(NEWER_VERSION in (versions[name] or ()) for name in standing):
        value["cniVersions"] = [BASE_VERSION, NEWER_VERSION]
    value |= {"name": network, "plugins": [ours, *(CHAINED[name] for name in standing)]}
    return json.dumps(value, indent=2).encode() + b"\n"
