"""Ruff, mypy --strict, stubtest and cython-lint, with the settings of pyproject.toml; their text is the failure's.

stubtest looks at the installed package: the compiled fast path against the stub that the rest of the product is
checked with.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from quality.tree import PRODUCT, ROOT

BIN = Path(sys.executable).parent


def clean(*command: object, cwd: Path = ROOT) -> None:
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}  # cython-lint looks for pycodestyle
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"


def test_ruff() -> None:
    clean(BIN / "ruff", "check", "--quiet", ".")


@pytest.mark.timeout(300)
def test_mypy() -> None:
    clean(BIN / "mypy")


STUBS = [path.stem for path in sorted((PRODUCT / "fastpath").glob("*.pyi"))]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("module", STUBS)
def test_stub_is_what_was_compiled(module: str, tmp_path: Path) -> None:
    import weave_router

    # mypy takes no stubs out of site-packages without a py.typed: it is shown the package alone.
    (tmp_path / "weave_router").symlink_to(Path(weave_router.__file__).parent)
    allowlist = Path(__file__).with_name("stubtest-allowlist.txt")
    name = f"weave_router.fastpath.{module}"
    clean(
        sys.executable, "-m", "mypy.stubtest", "--concise", "--ignore-missing-stub", "--allowlist", allowlist,
        "--ignore-unused-allowlist", "--ignore-disjoint-bases", name, cwd=tmp_path,
    )  # fmt: skip


def test_every_stub_has_its_source() -> None:
    assert STUBS
    assert [name for name in STUBS if not (PRODUCT / "fastpath" / f"{name}.pyx").exists()] == []


def test_cython_lint() -> None:
    files = sorted((PRODUCT / "fastpath").rglob("*.p[yx][xd]"))
    assert files
    clean(BIN / "cython-lint", *files)
