"""The source tree as the quality tests read it: files, rooms, imports. Reads text, imports nothing of the product."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
PRODUCT: Final = ROOT / "weave_router"
PACKAGE: Final = "weave_router"


def python_files(*directories: str) -> list[Path]:
    found = [path for name in directories for path in sorted((ROOT / name).rglob("*.py"))]
    return [path for path in found if "__pycache__" not in path.parts]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room_of(path: Path) -> str:
    """``tunnel`` for weave_router/tunnel/core.py, ``store`` for weave_router/store.py and store_file.py."""
    first = path.relative_to(PRODUCT).parts[0].removesuffix(".py")
    return first.split("_")[0] if first.startswith(("store_", "router_")) else first


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute module or module.name) for every import statement, wherever it stands in the file."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += node.module.split(".") if node.module else []
            yield from ((node.lineno, ".".join([*base, alias.name])) for alias in node.names)
