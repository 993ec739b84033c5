"""No allocation per packet: heap calls of the worker threads, counted in a child (topology: fastpath_pair.py)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from security.inputs import SANITIZED

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("shim") / "malloc_shim.so"
    command = ["cc", "-shared", "-fPIC", "-O2", "-fno-builtin", "-o", str(library), str(HERE / "malloc_shim.c")]
    subprocess.run(command, check=True)
    return library


@pytest.mark.skipif(SANITIZED, reason="needs the C library's allocator: a sanitizer puts its own in its place")
def test_no_kind_of_frame_costs_an_allocation(shim: Path) -> None:
    paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH", "")])]
    environment = os.environ | {"LD_PRELOAD": str(shim), "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-P", str(HERE / "fastpath_allocation_child.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for suite, calls in json.loads(done.stdout).items():
        assert calls.pop("parked") >= 10, suite  # a parked frame is a copy: the count works
        assert set(calls.values()) == {0}, (suite, calls)
