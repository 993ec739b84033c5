"""One API server for the room; each test has names of its own and leaves no Lease, Secret or Node behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kube.member import Member, member
from kube.server import Server, program
from lab.lab import Lab


@pytest.fixture(scope="session")
def programs() -> None:
    missing = [name for name in ("etcd", "kube-apiserver") if not program(name)]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}, which `make test-kubernetes` builds once")


@pytest.fixture(scope="session")
def running(programs: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(Path(tmp_path_factory.mktemp("api")))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def server(running: Server) -> Iterator[Server]:
    yield running
    for path in ("apis/coordination.k8s.io/v1/namespaces/kube-system/leases", "api/v1/nodes",
                 "api/v1/namespaces/kube-system/secrets", "api/v1/namespaces/default/events"):
        running.ask("DELETE", path)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture
def cluster(programs: None, lab: Lab) -> Iterator[tuple[Server, list[Member]]]:
    switch = lab.switch()
    api = lab.host("api", switch)
    server = Server(api.directory, api.address("v4"), api.name)
    try:
        server.start()
        yield server, [member(lab, server, lab.host(f"n{number}", switch)) for number in (1, 2, 3)]
    finally:
        for router in lab.routers:
            router.close()
        server.stop()
