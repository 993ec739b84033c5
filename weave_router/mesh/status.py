"""What the mesh shows to people: values for the API, sentences for codes.

Reads the core's parts and changes nothing; must not know how it is shown. Called by core.py and driver.py of this room.
"""

import errno
import os
from collections.abc import Iterable
from typing import Final

from weave_router.mesh.admission import Admission
from weave_router.mesh.events import LinkStatus, MeshStatus, StrangerStatus, TargetStatus
from weave_router.mesh.link import Link
from weave_router.mesh.record import Endpoint
from weave_router.mesh.replica import Replica
from weave_router.mesh.targets import Targets

NO_ANSWER: Final = "no answer (host down, or TCP to this port blocked)"
REASONS: Final = {
    "duplicate": "another link with this node is in use",
    "full": "the peer has as many links as it may",
    "self": "this is our own address",
    "shutdown": "the router there ends",
    "silent": "nothing heard for 2 s",
    "token removed": "the token of this link is no longer accepted",
    "forgotten": "forgotten by the operator",
}
"""Codes of close frames -> what they mean to the one who reads them."""


def of_mesh(replica: Replica, targets: Targets, admission: Admission,
            links: Iterable[tuple[Link, Endpoint]]) -> MeshStatus:
    return MeshStatus(
        own=replica.own.signed,
        records=len(replica.table),
        reachable=replica.topology.reachable,
        links=[of_link(link, local) for link, local in links],
        targets=[TargetStatus(target.text, str(target.state), target.reason, target.node_id, target.retry_at)
                 for target in targets.all()],
        openings=len(admission),
        strangers=[StrangerStatus(reason, stranger.count, stranger.remote, stranger.at)
                   for reason, stranger in admission.strangers.items()],
        counters=dict(replica.counters),
        duplicate_names=replica.table.duplicate_names(),
        first_synced=replica.first_synced,
        clone=replica.clone,
    )


def of_link(link: Link, local: Endpoint) -> LinkStatus:
    peer = link.peer
    assert peer is not None
    return LinkStatus(peer.node_id, peer.name, link.remote, local, link.initiator, link.since, link.rtt,
                      link.bytes_in, link.bytes_out, link.opening.token.id)


def dial_reason(code: int | None) -> str:
    """Why a call did not even connect (errno), and what to look at."""
    if code == errno.ECONNREFUSED:
        return "connection refused (no router listens there)"
    if code in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EADDRNOTAVAIL):
        return "no route to this address"
    if code == errno.ETIMEDOUT:
        return NO_ANSWER
    return os.strerror(code) if code else "the call failed"
