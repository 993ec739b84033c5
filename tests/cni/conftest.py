"""What the tests of this room that start routers begin with."""

from collections.abc import Iterator

import pytest
from lab.lab import Lab


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One for the tests of a file, which share its routers; a file whose tests have hosts of their own overrides it."""
    with Lab() as lab:
        yield lab


def selected(request: pytest.FixtureRequest, test: str) -> bool:
    """Whether a test of the file is run: what takes long is begun before the first one, but only for it."""
    return any(item.path == request.path and item.name == test for item in request.session.items)
