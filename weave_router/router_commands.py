"""What people and runtimes may tell a running router: the verbs of the API, and requests that come with a namespace.

Each finds the room that can carry it out; the page itself is api/view.py's. Made by router.py, called by api/server.py
and host/handover_driver.py.
"""

import os
from collections.abc import Iterable
from ipaddress import IPv4Interface
from typing import TYPE_CHECKING, Any

import msgspec

from weave_router.api import schema
from weave_router.api.addresses import AddressBook
from weave_router.api.capture_driver import EngineCapture
from weave_router.api.router_api import Capture
from weave_router.api.view import Parts, View, fits
from weave_router.cni.attachments import Wish
from weave_router.errors import UserError
from weave_router.host.handover_driver import Request

if TYPE_CHECKING:
    from weave_router.router import Router


class Commands(View):
    """The RouterApi: the page, and what people may tell a router."""

    def __init__(self, parts: Parts, router: "Router") -> None:
        super().__init__(parts)
        self._router = router

    async def connect(self, request: schema.ConnectRequest) -> schema.TargetsReply:
        if request.replace:
            return await self._set_targets(request.targets, ())
        targets = self._router.targets
        return await self._set_targets((*targets.stored, *request.targets), targets.configured)

    async def forget(self, request: schema.ForgetRequest) -> schema.TargetsReply:
        targets = self._router.targets
        unwanted = targets.keyed(request.targets)
        stored, configured = targets.keyed(targets.stored), targets.keyed(targets.configured)
        of_nodes = unwanted.keys() & targets.keyed(targets.nodes)
        for key, target in unwanted.items():
            if key in stored or key in configured:
                continue
            if key in of_nodes:
                raise UserError(f"{target} is the address of a Node of the cluster and is called as long as that is "
                                "there: nobody named it by `connect`")
            raise UserError(f"{target} is no target: see `weave-router status targets`")
        reply = await self._set_targets([stored[key] for key in stored if key not in unwanted],
                                        [configured[key] for key in configured if key not in unwanted])
        return msgspec.structs.replace(reply, of_nodes=tuple(unwanted[key] for key in unwanted if key in of_nodes))

    async def _set_targets(self, stored: Iterable[str], configured: Iterable[str]) -> schema.TargetsReply:
        """Exactly these beside the Nodes of a cluster, ``stored`` on disk first. Names are checked before anything
        changes."""
        targets = self._router.targets
        kept, configured = tuple(targets.keyed(stored).values()), tuple(configured)
        await self._router.in_writer(lambda: self._router.store.set_targets(kept))
        targets.set_given(kept, configured)
        return schema.TargetsReply(targets=targets.all())

    async def detach(self, request: schema.DetachRequest) -> schema.DetachReply:
        held = self._router.attachments
        wanted = [attachment for attachment in held.all() if fits(attachment, request)]
        if not wanted:
            raise UserError("no such pod is attached here: see `weave-router status ipam`")
        for attachment in wanted:
            await held.detach(attachment.container, attachment.ifname)
        return schema.DetachReply(detached=tuple(self.attachment(a) for a in wanted))

    async def claim(self, request: schema.ClaimRequest) -> schema.AddressesReply:
        return await self._book.claim(request)

    async def expose(self, request: schema.ExposeRequest) -> schema.AddressesReply:
        return await self._book.expose(request)

    async def ipam_check(self, request: schema.CheckRequest) -> schema.CheckReply:
        return await self._book.check(request)

    async def ungate(self, request: schema.UngateRequest) -> schema.Ipam:
        await self._book.ungate()
        return self.ipam()

    async def retire(self, request: schema.RetireRequest) -> schema.Retirement:
        return await self._book.retire(request, self._parts.mesh.status().reachable)

    def retirement(self) -> schema.Retirement:
        return self._book.retirement()

    @property
    def _book(self) -> AddressBook:
        if self._router.book is None:
            raise UserError("this node gives no addresses (--ipalloc-init none): all are named by hand")
        return self._router.book

    async def capture(self, request: schema.CaptureRequest) -> Capture:
        slot = self.slot_of(request.peer) if request.peer else None
        number = self.number_of(request.pod) if request.pod else None
        return EngineCapture(self._parts.engine, slot, number, request.snap)

    # -- requests that come with a namespace ---------------------------------------------------------------------------

    async def attach(self, request: Request) -> dict[str, Any]:
        if "cni" in request.body or "probe" in request.body:
            return await self._router.cni.handle(request)
        if self._router.refusal():
            return {"error": self._router.refusal(), "exit_status": 1}
        if request.netns < 0:
            return {"error": "the request cannot be read: no namespace came with it", "exit_status": 2}
        try:
            wanted = msgspec.convert(request.body, schema.AttachRequest)
            attachment = await self._router.attachments.attach(wish_of(wanted, request))
        except (msgspec.ValidationError, ValueError) as error:
            return {"error": f"the request cannot be read: {error}", "exit_status": 2}
        except UserError as error:
            return {"error": str(error), "exit_status": error.exit_status}
        return dict(msgspec.to_builtins(self.attachment(attachment)))

    async def abandoned(self, request: Request, reply: dict[str, Any]) -> None:
        """The client went away before it had its answer: it will ask again, or nobody wants the pod."""
        if request.undo is not None:
            await request.undo()
        elif "container_id" in reply:
            await self._router.attachments.detach(reply["container_id"], reply["ifname"])


def wish_of(wanted: schema.AttachRequest, request: Request) -> Wish:
    """The namespace's device and inode name the pod where nobody does."""
    status = os.fstat(request.netns)
    container = wanted.container_id or f"netns-{status.st_dev:x}-{status.st_ino}"
    address = IPv4Interface(wanted.address) if wanted.address else None
    return Wish(container, wanted.ifname, address, status.st_ino, request.netlink, request.netns)
