"""The process that gives addresses is killed, and the machine loses power, at every single change of its store's files.

ipam_crash_child.py is the life and judges what is left; the shim is that of the store's own test.
"""

from pathlib import Path

import pytest
from unit.test_store_crash import lives, scratch, shim

CHILD = Path(__file__).parent / "ipam_crash_child.py"
__all__ = ["scratch", "shim"]


@pytest.mark.timeout(180)
def test_addresses_are_neither_lost_nor_doubled_wherever_the_driver_dies(shim: Path, scratch: Path) -> None:
    result = lives(shim, scratch, "none", CHILD)
    assert result["wrong"] is None
    assert isinstance(result["deaths"], int)
    assert result["deaths"] > 200


@pytest.mark.parametrize("mutant", ["not synced", "two commits"])
def test_the_harness_notices(shim: Path, scratch: Path, mutant: str) -> None:
    assert lives(shim, scratch, mutant, CHILD)["wrong"]
