"""The lab's own C programs: compiled into ``build/lab/`` when their source is newer. Called by traffic.py, wire.py."""

from __future__ import annotations

import os
import threading
from functools import cache
from pathlib import Path
from typing import Final

from .namespace import run

ROOT: Final = Path(__file__).resolve().parents[2]
BUILD_DIR: Final = ROOT / "build" / "lab"
FLAGS: Final = ("-O2", "-Wall", "-Wextra", "-Werror")
_one_at_a_time = threading.Lock()  # labs run side by side in threads


def tool(name: str) -> Path:
    with _one_at_a_time:
        return _made(name)


@cache
def _made(name: str) -> Path:
    """The executable made from ``tests/lab/<name>.c``. Replaced by rename: another lab may be running it."""
    source, target = Path(__file__).with_name(f"{name}.c"), BUILD_DIR / name
    newest = max(path.stat().st_mtime for path in (source, source.with_name("common.h")))
    if target.exists() and target.stat().st_mtime >= newest:
        return target
    BUILD_DIR.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f"{name}.{os.getpid()}")
    run([os.environ.get("CC", "cc"), *FLAGS, "-o", str(fresh), str(source)])
    fresh.replace(target)
    return target
