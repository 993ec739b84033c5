"""Files of docs/results/ that `make soak-kubernetes` writes: one object, its list of rounds or events a line each."""

import json
from pathlib import Path
from typing import Any, Final

from kubernetes.images import ROOT

FOLDER: Final = ROOT / "docs" / "results"


def write(name: str, found: dict[str, Any], lines: str) -> Path:
    """``lines``: the key whose value is the list; it comes last."""
    each = ",\n".join(f"  {json.dumps(value)}" for value in found[lines])
    rest = json.dumps({key: value for key, value in found.items() if key != lines}, indent=1)
    path = FOLDER / name
    path.write_text(f'{rest[:-2]},\n "{lines}": [\n{each}\n ]\n}}\n')
    return path
