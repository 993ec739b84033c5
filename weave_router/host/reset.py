"""What ``reset`` removes, as an ordered list of steps.

Pure: knows no link and no file but by name. reset_driver.py finds what there is, asks here, and removes it. Called by
reset_driver.py alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from weave_router.host.faults import Fault, HostError


class Kind(StrEnum):
    LINK = "link"
    NFT = "nft"
    RULES = "accept rules in"
    ZONE = "link in firewalld's zone"
    FILE = "file"


@dataclass(frozen=True)
class Found:
    """What of ours stands on this machine. ``ports``: names; ``files``: paths in the run dir."""

    ports: tuple[str, ...] = ()
    tap: str | None = None
    bridge: str | None = None
    tables: bool = False
    answers: tuple[str, ...] = ()
    """Chains of others that hold rules of ours."""
    zone: str = ""
    """Zone of firewalld that we put the bridge into."""
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    kind: Kind
    name: str

    def __str__(self) -> str:
        return f"{self.kind.value} {self.name}"


def steps(found: Found, attachments: Sequence[str], *, force: bool) -> list[Step]:
    """Pods first, so that none of them talks through half a network. ``attachments``: pods the store knows."""
    attached = list(attachments) or list(found.ports)
    if attached and not force:
        count = f"{len(attached)} {'pod is' if len(attached) == 1 else 'pods are'}"
        raise HostError(Fault.RESET_ATTACHED, count=count, first=attached[0])
    plan = [Step(Kind.LINK, port) for port in found.ports]
    plan += [Step(Kind.LINK, link) for link in (found.tap, found.bridge) if link is not None]
    if found.tables:
        plan.append(Step(Kind.NFT, "weave_router"))
    plan += [Step(Kind.RULES, chain) for chain in found.answers]
    if found.zone:
        plan.append(Step(Kind.ZONE, found.zone))
    return plan + [Step(Kind.FILE, path) for path in found.files]
