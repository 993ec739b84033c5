"""The documentation is about this tree: every path it names exists, every code that a person can meet is explained."""

import re
from pathlib import Path

import pytest
from quality.tree import PRODUCT, ROOT, name_of

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "tests" / "README.md"]
DOCUMENTS += sorted((ROOT / "docs").glob("*.md"))
TOP = "weave_router|tests|docs|deploy|benchmarks|cni_shim|\\.ci"
ROOMS = "|".join(sorted(path.name for path in PRODUCT.iterdir() if (path / "__init__.py").exists()))
PATH = re.compile(rf"(?<![\w/.-])((?:{TOP})/[\w./*-]*[\w/*]|(?:{ROOMS})/\w+\.(?:py|pyx|pxd|pyi)\b)")
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


def missing(document: Path) -> list[str]:
    text = document.read_text()
    wrong = [name for name in sorted(set(PATH.findall(text))) if not found(name)]
    return wrong + [link for link in LINK.findall(text) if not (document.parent / link).exists()]


def found(name: str) -> bool:
    return any(next(base.glob(name.rstrip("/")), None) is not None for base in (ROOT, PRODUCT))


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_path_exists(document: Path) -> None:
    assert missing(document) == []


def test_paths_are_recognised() -> None:
    assert PATH.findall("see `weave_router/store.py`, tests/quality/, tunnel/core.py and docs/*.md.") == [
        "weave_router/store.py",
        "tests/quality/",
        "tunnel/core.py",
        "docs/*.md",
    ]
    assert not found("weave_router/nothing.py")
    assert found("store.py")


def test_readme_names_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text()
    assert "make demo" in text
    assert "make test" in text
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def explained() -> set[str]:
    """What docs/operations.md lists in the first column of a table."""
    text = (ROOT / "docs" / "operations.md").read_text()
    return set(re.findall(r"^\| `([^`]+)`", text, re.MULTILINE))


def test_every_reason_code_is_explained() -> None:
    from weave_router.reasons import Reason

    assert {reason.value for reason in Reason} - explained() == set()


def test_every_drop_reason_is_explained() -> None:
    from weave_router.fastpath.engine import DROP_REASONS

    by_the_kernel = re.findall(r'"(kernel_\w+)"', (PRODUCT / "host" / "kernel_driver.py").read_text())
    assert by_the_kernel
    assert {*DROP_REASONS, *by_the_kernel} - explained() == set()


def test_every_option_is_explained() -> None:
    from weave_router import config

    text = (ROOT / "docs" / "operations.md").read_text()
    assert [option.flag for option in config.OPTIONS if f"`--{option.flag}" not in text] == []
