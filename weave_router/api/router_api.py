"""What the API needs of a running router. ``router.py`` implements it; tests write a small real one.

Sections are separate methods, so that a scrape or a sub-report pays only for what it shows. All are called on the
event loop's thread. ``UserError`` of any of them reaches the person who asked as its sentence.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from weave_router.api import schema

CapturedFrame = tuple[int, int, int, bytes]
"""(CLOCK_REALTIME ns, direction 0 to peer / 1 from peer, original length, frame), as the fast path hands it out."""


class Capture(Protocol):
    """A capture under way; there is one at a time."""

    async def read(self) -> Sequence[CapturedFrame]:
        """Frames that came since; waits at most about 0.2 s for the first and may return none."""

    async def stop(self) -> int:
        """End it. How many frames there was no room for. Called exactly once."""


class RouterApi(Protocol):
    """Everything that can be asked of a router, or told to it."""

    def service(self) -> schema.Service: ...
    def connections(self) -> tuple[schema.Connection, ...]: ...
    def targets(self) -> tuple[schema.Target, ...]: ...
    def peers(self) -> tuple[schema.Peer, ...]: ...
    def ipam(self) -> schema.Ipam: ...
    def kubernetes(self) -> schema.Kubernetes: ...
    def addresses(self) -> tuple[schema.Address, ...]: ...
    def workers(self) -> tuple[schema.Worker, ...]: ...
    def drops(self) -> dict[str, int]: ...
    def counters(self) -> dict[str, int]: ...
    def tokens(self) -> schema.Tokens: ...
    def firewall(self) -> schema.Firewall: ...
    def warnings(self) -> tuple[str, ...]: ...

    def trace(self) -> Sequence[tuple[int, ...]]:
        """The last events of every worker, oldest first."""

    def tables(self) -> dict[str, Sequence[Any]]:
        """Tables for the report (routes, stations, nodes, sessions ...); rows must be JSON values, no secrets."""

    async def connect(self, request: schema.ConnectRequest) -> schema.TargetsReply: ...
    async def forget(self, request: schema.ForgetRequest) -> schema.TargetsReply: ...
    async def detach(self, request: schema.DetachRequest) -> schema.DetachReply: ...
    async def claim(self, request: schema.ClaimRequest) -> schema.AddressesReply: ...
    async def expose(self, request: schema.ExposeRequest) -> schema.AddressesReply: ...
    async def ipam_check(self, request: schema.CheckRequest) -> schema.CheckReply: ...
    async def ungate(self, request: schema.UngateRequest) -> schema.Ipam: ...
    async def retire(self, request: schema.RetireRequest) -> schema.Retirement: ...
    def retirement(self) -> schema.Retirement:
        """This node's last."""

    async def capture(self, request: schema.CaptureRequest) -> Capture: ...


def status_report(router: RouterApi) -> schema.StatusReport:
    """The whole page."""
    return schema.StatusReport(
        service=router.service(),
        connections=router.connections(),
        targets=router.targets(),
        peers=router.peers(),
        ipam=router.ipam(), kubernetes=router.kubernetes(),
        workers=router.workers(),
        drops=router.drops(),
        counters=router.counters(),
        tokens=router.tokens(),
        firewall=router.firewall(),
        warnings=router.warnings(),
    )
