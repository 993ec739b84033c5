"""The process that gives addresses is killed, and the machine loses power, at every single change of its store's files.

ipam_crash_child.py (addresses) and ipam_round_child.py (retirements) live and judge what is left; the shim is that of
the store's own test.
"""

from pathlib import Path

import pytest
from crash.test_store_crash import lives, scratch, shim

CHILD = Path(__file__).parent / "ipam_crash_child.py"
ROUNDS = Path(__file__).parent / "ipam_round_child.py"
__all__ = ["scratch", "shim"]


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("child", "least"), [(CHILD, 200), (ROUNDS, 100)], ids=["addresses", "retirements"])
def test_nothing_is_lost_wherever_the_driver_dies(shim: Path, scratch: Path, child: Path, least: int) -> None:
    result = lives(shim, scratch, "none", child)
    assert result["wrong"] is None
    assert isinstance(result["deaths"], int)
    assert result["deaths"] > least


@pytest.mark.parametrize(("child", "mutant"), [
    (CHILD, "not synced"), (CHILD, "two commits"), (ROUNDS, "not synced"), (ROUNDS, "said first"),
])  # fmt: skip
def test_the_harness_notices(shim: Path, scratch: Path, child: Path, mutant: str) -> None:
    assert lives(shim, scratch, mutant, child)["wrong"]
