"""Every file says at its head what it is; none grows past what can be read; nothing compiled is committed."""

import ast
import re
import subprocess
from pathlib import Path

import pytest
from quality.tree import PRODUCT, ROOT, name_of, python_files

LINES_MAX = 700


def head_lines(path: Path) -> int:
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    return len(docstring.splitlines()) if docstring else 0


@pytest.mark.parametrize("path", python_files("weave_router"), ids=name_of)
def test_product_files_open_with_three_to_fifteen_lines(path: Path) -> None:
    least = 1 if path.name in ("__init__.py", "__main__.py") else 3
    assert least <= head_lines(path) <= 15


@pytest.mark.parametrize("path", python_files("tests", "benchmarks", "cni_shim"), ids=name_of)
def test_other_python_files_open_with_a_docstring(path: Path) -> None:
    assert head_lines(path) >= 1


def other_sources() -> list[Path]:
    found = [path for end in ("*.pyx", "*.pxd", "*.c", "*.h") for path in sorted(PRODUCT.rglob(end))]
    found += [path for name in ("tests", "cni_shim", "benchmarks") for path in sorted((ROOT / name).rglob("*.c"))]
    return [path for path in found if path.with_suffix(".pyx") == path or not path.with_suffix(".pyx").exists()]


@pytest.mark.parametrize("path", other_sources(), ids=name_of)
def test_compiled_sources_open_with_a_comment(path: Path) -> None:
    text = re.sub(r"\A(#\s*(cython|distutils):.*\n)+\n*", "", path.read_text())
    assert text.startswith(('"""', "#", "/*", "//"))


def test_no_file_is_too_long() -> None:
    files = [*python_files("weave_router", "tests", "benchmarks"), *PRODUCT.rglob("*.pyx")]
    lines = {name_of(path): len(path.read_text().splitlines()) for path in files}
    long = {name: count for name, count in lines.items() if count > LINES_MAX}
    assert long == {}


def test_hostile_readers_wear_their_mark() -> None:
    """A function that ends in ``_untrusted`` returns or raises BadPacket; beside that only our own bug (RuntimeError),
    and towards the operator on the API socket his sentence."""
    wrong = []
    for path in python_files("weave_router"):
        may = {"BadPacket", "RuntimeError", *(["UsageError"] if path.parent.name == "api" else [])}
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.endswith("_untrusted"):
                raised = [n.exc for n in ast.walk(node) if isinstance(n, ast.Raise) and n.exc]
                names = [e.func if isinstance(e, ast.Call) else e for e in raised]
                wrong += [f"{name_of(path)}:{e.lineno} {ast.unparse(e)}" for e in names if ast.unparse(e) not in may]
    assert not wrong


def test_nothing_compiled_is_committed() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("needs the git repository: this is an unpacked archive")
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert [name for name in names if re.search(r"\.(so|o|pyc|whl|egg)$|^build/|^\.venv/", name)] == []
