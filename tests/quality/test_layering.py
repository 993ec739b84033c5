"""Who may import whom, and who may touch the world; by AST, so that a forbidden import is seen before it runs.

A file imports only rooms to the left of its own in ``ORDER``. A core takes values and gives values: sockets, clocks,
files, randomness and netlink are for drivers (``driver.py``, ``*_driver.py``) and the few files in ``MAY_DO_IO``.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from quality.tree import PACKAGE, PRODUCT, imports_of, name_of, python_files, room_of

ORDER = ["fastpath", "store", "tunnel", "mesh", "ipam", "host", "cni", "kube", "api", "router"]
FOR_ALL = {"errors", "limits", "reasons", "config", "log", "__version__"}
CLI_MAY = {"api", "host", "cli", "tunnel.token", "tunnel.token_driver"}
"""``token new`` writes tokens; ``doctor``, ``reset`` and ``attach`` look at this machine: all without a router."""

ALSO_MAY = {
    "cli/launch.py": {"router.run"},  # it becomes the router
    "cli/reset.py": {
        "store.Store", "store_file", "tunnel.identity.Identity", "kube.leave_driver", "kube.start_driver",
    },  # it removes what no router holds any more
}

MAY_DO_IO = {
    "__main__.py", "router.py", "router_commands.py", "store.py", "store_file.py", "store_ipam.py", "store_group.py",
    "config.py", "log.py",
    "api/server.py", "api/client.py", "api/handlers.py", "api/door.py",
    "api/view.py",  # the composition root's eyes: it reads the drivers when somebody asks
}  # fmt: skip
WORLD = {
    "aiohttp", "asyncio", "concurrent", "ctypes", "datetime", "fcntl", "http", "io", "mmap", "multiprocessing", "os",
    "pathlib", "pyroute2", "pytun", "random", "resource", "secrets", "select", "selectors", "shutil", "signal",
    "socket", "sqlite3", "ssl", "subprocess", "tempfile", "threading", "time", "urllib", "uuid", "uvloop",
}  # fmt: skip
PURE = {
    "asyncio.Lock", "asyncio.gather", "asyncio.shield", "datetime.UTC", "datetime.datetime", "datetime.timedelta",
    "os.PathLike", "os.strerror", "random.Random", "socket.AF_INET", "socket.AF_INET6", "socket.inet_ntop",
    "socket.inet_pton",
}  # fmt: skip
"""Names of those modules that only compute or only order tasks. A generator is an argument; ``Random`` is its type."""

IMPURE = re.compile(r"\.generate\(\)|\.now\(|\.utcnow\(|\.today\(|\bRandom\(\)|\bopen\(")
"""The world without an import: keys that the cryptography package draws by itself, the clock, an unseeded generator."""

FILES = python_files(PACKAGE)


def is_driver(path: Path) -> bool:
    return path.stem == "driver" or path.stem.endswith("_driver")


def may_do_io(path: Path) -> bool:
    inside = path.relative_to(PRODUCT).as_posix()
    return is_driver(path) or inside in MAY_DO_IO or inside.startswith("cli/")


def used_names(path: Path) -> Iterator[tuple[int, str]]:
    """Imported names; for ``import os`` what is used of it (``os.strerror``)."""
    modules = {name for _, name in imports_of(path) if name in WORLD}
    yield from ((line, name) for line, name in imports_of(path) if name not in modules)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            yield node.lineno, f"{node.value.id}.{node.attr}"


def names_at_runtime(path: Path) -> set[str]:
    """Names that are used outside annotations."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    notes = [getattr(node, field, None) for node in nodes for field in ("annotation", "returns")]
    types = {id(inner) for note in notes if isinstance(note, ast.AST) for inner in ast.walk(note)}
    return {node.id for node in nodes if isinstance(node, ast.Name) and id(node) not in types}


def product_imports(path: Path) -> list[tuple[int, str]]:
    """(line, module below the package) of what this file imports of the product."""
    prefix = PACKAGE + "."
    return [(line, name.removeprefix(prefix)) for line, name in imports_of(path) if name.startswith(prefix)]


def allowed(importer: str, imported: str) -> bool:
    room = imported.split(".")[0]
    room = room.split("_")[0] if room.startswith(("store_", "router_")) else room
    if room in FOR_ALL or room == importer:
        return True
    if importer == "cli":
        return any(imported == name or imported.startswith(name + ".") for name in CLI_MAY)
    if importer in FOR_ALL or room == "cli":
        return False
    return room in ORDER and importer in ORDER and ORDER.index(room) < ORDER.index(importer)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_only_rooms_to_the_left(path: Path) -> None:
    room = room_of(path)
    if room in {"__main__", "__init__"}:
        return
    may = ALSO_MAY.get(path.relative_to(PRODUCT).as_posix(), set())
    wrong = [(line, name) for line, name in product_imports(path) if not allowed(room, name) and name not in may]
    assert not wrong, f"{name_of(path)} may not import {wrong}"


@pytest.mark.parametrize("path", [path for path in FILES if not may_do_io(path)], ids=name_of)
def test_cores_do_not_touch_the_world(path: Path) -> None:
    wrong = [(line, name) for line, name in used_names(path) if name.split(".")[0] in WORLD and name not in PURE]
    wrong += [(number, text) for number, text in enumerate(path.read_text().splitlines(), 1) if IMPURE.search(text)]
    assert not wrong, f"{name_of(path)} is a core and may not use {wrong}: take it as an argument"


@pytest.mark.parametrize("path", [path for path in FILES if not may_do_io(path)], ids=name_of)
def test_cores_do_not_import_drivers(path: Path) -> None:
    drivers = [(line, name) for line, name in product_imports(path) if re.search(r"(^|[._])driver(\.|$)", name)]
    called = names_at_runtime(path)
    wrong = [(line, name) for line, name in drivers if name.split(".")[-1] in called]
    assert not wrong, f"{name_of(path)} is a core and uses the driver {wrong}; it may be handed one"


@pytest.mark.parametrize("path", sorted((PRODUCT / "fastpath").glob("*.p*")), ids=name_of)
def test_fastpath_knows_nothing_of_the_rooms_above(path: Path) -> None:
    imports = re.findall(r"^\s*(?:from|c?import)\s+weave_router\.(\w+)", path.read_text(), re.MULTILINE)
    assert set(imports) <= {"fastpath", "limits"}


def test_only_host_knows_netlink() -> None:
    knowing = {room_of(path) for path in FILES if any(n.split(".")[0] == "pyroute2" for _, n in imports_of(path))}
    assert knowing <= {"host"}


@pytest.mark.parametrize(
    ("importer", "imported", "verdict"),
    [
        ("tunnel", "store", True),
        ("store", "tunnel.core", False),
        ("mesh", "tunnel.token", True),
        ("tunnel", "mesh.record", False),
        ("cli", "tunnel.token", True),
        ("cli", "tunnel.core", False),
        ("cli", "mesh.table", False),
        ("router", "store", True),
        ("store", "store_file", True),
        ("limits", "store", False),
        ("api", "router", False),
        ("api", "cli", False),
    ],
)
def test_the_rule_itself(importer: str, imported: str, verdict: bool) -> None:
    assert allowed(importer, imported) is verdict
