"""Builds stranger.c, the sender of random datagrams. Called by the tests of the fast path and of whole routers."""

import os
import subprocess
from pathlib import Path

OUTSIDE_SANITIZERS = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
"""The environment for programs that were not built with the sanitizers that `make asan` preloads."""


def build_stranger(directory: Path) -> Path:
    program = directory / "stranger"
    source = Path(__file__).with_name("stranger.c")
    command = ["cc", "-O2", "-Wall", "-Werror", "-o", str(program), str(source)]
    subprocess.run(command, check=True, env=OUTSIDE_SANITIZERS)
    return program
