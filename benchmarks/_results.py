"""The one file of figures, ``results/latest.json``, that every benchmark writes its part into.

``ratios`` holds what bars are set on, keyed ``<case>.<mode>.<wire>``; each script replaces its own keys and leaves the
others'. Called by the scripts beside it.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
RESULTS: Final = ROOT / "benchmarks" / "results" / "latest.json"

Bar = tuple[str, float]
""">= or <=, and the figure."""


def met(bar: Bar, value: float) -> bool:
    sign, figure = bar
    return value >= figure if sign == ">=" else value <= figure


def load() -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(RESULTS.read_text())
    except FileNotFoundError:
        return {}
    return content


def merge_figures(part: str, figures: Mapping[str, Any], ratios: Mapping[str, float]) -> None:
    """Each of ``figures`` replaces the one of its name in object ``part``, the others stay: for runs in pieces."""
    _write({part: {**load().get(part, {}), **figures}}, ratios)


def merge(part: str, content: Mapping[str, Any], ratios: Mapping[str, float] | None = None) -> None:
    """Object ``part`` becomes ``content`` with where and when it was measured; ``ratios`` replace those they name."""
    _write({part: {**circumstances(), **content}}, ratios or {})


def _write(parts: Mapping[str, Any], ratios: Mapping[str, float]) -> None:
    found = {**load(), **parts}
    found["ratios"] = dict(sorted({**found.get("ratios", {}), **ratios}.items()))
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    fresh = RESULTS.with_suffix(".new")
    fresh.write_text(json.dumps(found, indent=1) + "\n")
    fresh.replace(RESULTS)


def circumstances() -> dict[str, Any]:
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "kernel": platform.release(),
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "commit": commit(),
    }


def cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def commit() -> str:
    """With ``+`` where the tree differs from it; empty outside a clone."""
    said = subprocess.run(["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"],
                          capture_output=True, text=True, check=False)
    return said.stdout.strip()
