"""Every bound in limits.py gives its reason, is used by the product, and is reached by a test that names it."""

import ast
import re

import pytest
from quality.tree import PRODUCT, ROOT, python_files

SOURCE = (PRODUCT / "limits.py").read_text()
STATEMENTS = ast.parse(SOURCE).body
BOUNDS = [
    (index, node.target.id)
    for index, node in enumerate(STATEMENTS)
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
]
NAMES = [name for _, name in BOUNDS]


def words(texts: list[str]) -> set[str]:
    return {word for text in texts for word in re.findall(r"\b[A-Z][A-Z0-9_]+\b", text)}


IN_TESTS = words([path.read_text() for path in python_files("tests") if path.parent.name != "quality"])
IN_PRODUCT = words(
    [path.read_text() for end in ("*.py", "*.pyx", "*.pxd", "*.h") for path in PRODUCT.rglob(end)
     if path.name != "limits.py"]
)  # fmt: skip


@pytest.mark.parametrize(("index", "name"), BOUNDS, ids=NAMES)
def test_gives_its_reason(index: int, name: str) -> None:
    after = STATEMENTS[index + 1] if index + 1 < len(STATEMENTS) else None
    assert isinstance(after, ast.Expr), f"{name} has no reason below it"
    assert isinstance(after.value, ast.Constant)
    assert isinstance(after.value.value, str)


@pytest.mark.parametrize("name", NAMES)
def test_is_used_by_the_product(name: str) -> None:
    derived = sum(1 for line in SOURCE.splitlines() if re.search(rf"\b{name}\b", line) and not line.startswith(name))
    assert name in IN_PRODUCT or derived, f"{name} bounds nothing"


@pytest.mark.parametrize("name", NAMES)
def test_is_reached_by_a_test(name: str) -> None:
    assert name in IN_TESTS, f"no test under {ROOT}/tests names {name}"


def test_no_name_comes_twice() -> None:
    assert sorted(NAMES) == sorted(set(NAMES))
