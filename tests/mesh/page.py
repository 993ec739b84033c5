"""What tests of whole routers ask a running one: its page by the API's socket, without a Python start for each look.

Called by the tests of this room, of kernel/ and of security/ that poll; what an operator types goes by ``Router.cli``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from lab import Router
from lab.router import wait_for

from weave_router.api import schema
from weave_router.api.client import ApiClient

T = TypeVar("T")


def page(router: Router) -> schema.StatusReport:
    return ApiClient(str(router.host.run_dir)).get("/status", schema.StatusReport)


def report(router: Router) -> schema.Report:
    return ApiClient(str(router.host.run_dir)).get("/report", schema.Report)


def node_id(router: Router) -> str:
    return page(router).service.id


def connection(router: Router, peer: str) -> schema.Connection | None:
    """The connection with the node of this name, if the router knows one."""
    return next((one for one in page(router).connections if one.nickname == peer), None)


def target(router: Router, address: str) -> schema.Target | None:
    return next((one for one in page(router).targets if one.address == address), None)


def links(router: Router) -> set[str]:
    """Names of the nodes to which a control link stands."""
    return {one.nickname for one in page(router).connections if one.link == "up"}


def wait_links(router: Router, *names: str, deadline: float = 20.0) -> None:
    wait_for(f"links of {router.name} to {names}", lambda: links(router) == set(names), deadline)


def wait_target(router: Router, address: str, fits: Callable[[schema.Target], bool], deadline: float = 20.0) -> None:
    def done() -> bool:
        found = target(router, address)
        return found is not None and fits(found)

    wait_for(f"target {address} of {router.name}", done, deadline)
