"""The store's process is killed, and the machine loses power, at every single change of a file in a store's life.

crash_shim.c counts the changes and ends the process; store_crash_child.py is the life and compares what is left.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("shim") / "crash_shim.so"
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, HERE / "crash_shim.c", "-ldl"], check=True)
    return library


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is such a place: the loss of power is modelled, so nothing is won by waiting for a disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path, prefix="store-crash-") as name:
        yield Path(name)


def lives(
    shim: Path, scratch: Path, mutant: str, child: Path = HERE / "store_crash_child.py"
) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, child, scratch, mutant],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "LD_PRELOAD": str(shim), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    return dict(json.loads(done.stdout))


def test_killed_and_powered_off_at_every_change(shim: Path, scratch: Path) -> None:
    result = lives(shim, scratch, "none")
    assert result["wrong"] is None
    assert isinstance(result["deaths"], int)
    assert result["deaths"] > 100


@pytest.mark.parametrize("mutant", ["not synced", "no directory sync", "two commits"])
def test_the_harness_notices(shim: Path, scratch: Path, mutant: str) -> None:
    assert lives(shim, scratch, mutant)["wrong"]
