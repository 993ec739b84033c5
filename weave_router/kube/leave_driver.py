"""Gives a node's Leases back when its router goes for good: their holder is emptied, the blocks are free at once.

By the Node's UID and the router's identity, as the API server has them at this moment; the state directory need not be
there any more. Called by router_leave_driver.py and the `reset` command.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from ipaddress import IPv4Network
from typing import TYPE_CHECKING

from weave_router.errors import BadPacket

from . import objects
from .values import Call

if TYPE_CHECKING:
    from .api_driver import Api

LEFT = "kubectl -n {namespace} delete secret,lease -l app.kubernetes.io/name=weave-router"
"""What removes the rest of the cluster's objects, once no router runs any more."""


class LeaveError(Exception):
    """What is in the way, for now."""


async def empty_leases(api: Api, namespace: str, node: str, identity: str) -> int:
    """How many were emptied. ``identity``: hexadecimal, empty where it is not known. LeaveError: try again."""
    path = f"apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
    range_v4 = await _range(api, path)
    if range_v4 is None:
        return 0
    uid = await _uid(api, node)
    emptied = 0
    async for lease in _leases(api, path, range_v4):
        if lease.foreign or not lease.holder or not (lease.node_uid == uid or lease.identity == identity):
            continue
        body = objects.lease_body(lease.block, range_v4, "", lease.gen, "", uid=lease.uid, version=lease.version)
        await _ask(api, Call("PUT", f"{path}/{lease.name}", "leave", body=body))
        emptied += 1
    return emptied


async def _ask(api: Api, call: Call, *may: int) -> tuple[int, bytes]:
    answer = await api.request(call)
    if answer.status not in (200, *may):
        said = answer.detail or f"the API server answered {answer.status}"
        raise LeaveError(f"{call.method} {call.path}: {said}")
    return answer.status, answer.body


async def _range(api: Api, path: str) -> IPv4Network | None:
    """None: there is no universe, so there are no blocks."""
    status, body = await _ask(api, Call("GET", f"{path}/{objects.UNIVERSE}", "leave"), 404)
    try:
        return None if status == 404 else IPv4Network(objects.universe_untrusted(body).range_v4)
    except BadPacket as error:
        raise LeaveError(error.reason) from None


async def _uid(api: Api, node: str) -> str:
    """``-``, which no holder has, where the Node is gone."""
    status, body = await _ask(api, Call("GET", f"api/v1/nodes/{node}", "leave"), 404)
    try:
        return "-" if status == 404 else objects.node_untrusted(body).uid
    except BadPacket as error:
        raise LeaveError(f"Node {node}: {error.reason}") from None


async def _leases(api: Api, path: str, range_v4: IPv4Network) -> AsyncIterator[objects.Lease]:
    """Of this cluster's blocks; what cannot be read is nobody's."""
    params = {"labelSelector": f"{objects.LABEL}={objects.NAME}", "limit": "500"}
    while True:
        _, body = await _ask(api, Call("GET", path, "leave", params=params))
        try:
            page = objects.read_untrusted(body, objects.Page)
        except BadPacket as error:
            raise LeaveError(f"Leases: {error.reason}") from None
        for item in page.items or ():
            try:
                lease = objects.lease_untrusted(item, range_v4)
            except BadPacket:
                continue
            if lease is not None:
                yield lease
        if not page.metadata.continue_:
            return
        params = params | {"continue": page.metadata.continue_}
