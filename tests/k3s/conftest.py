"""A cluster with k3s's ranges: Nodes carry parts of 10.42.0.0/16, Services have 10.43.0.0/16.

The product is applied by the commands of docs/kubernetes.md, with options.
"""

from collections.abc import Iterator

import pytest
from kubernetes import control, product
from kubernetes.cluster import Cluster, wait_for
from kubernetes.conftest import progress
from kubernetes.typed import typed
from quality import promises

TEST_SECONDS = 480


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "k3s" in item.path.parts:
            item.add_marker(pytest.mark.timeout(TEST_SECONDS))


@pytest.fixture(scope="session")
def cluster(pytestconfig: pytest.Config) -> Iterator[Cluster]:
    with Cluster(nodes=2, say=progress(pytestconfig), ranges=control.K3S) as made:
        made.boot(mode="iptables", cidr=control.K3S.pods)
        for line in promises.AT_INSTALL[:2]:
            done = typed(made, line)
            assert done.returncode == 0, (line, done.stderr)
        product.wait_installed(made)
        wait_for("ServiceAccount default", lambda: made.get("serviceaccounts"), 30)
        yield made
