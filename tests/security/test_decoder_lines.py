"""Every line of every decoder runs when the corpus and the vectors of the unit tests go through them.

The files of ``VECTORS`` run in a process of their own under coverage.py, which says which lines of the package they
reached; decoders.py says which lines had to be. What only a mistake of ours could reach (``raise RuntimeError``)
is no line of a decoder. The compiled decoders count what they refuse by reason, and a test awaits each.
"""

import os
import subprocess
import sys
from pathlib import Path

import coverage
from security.decoders import decoders

import weave_router
from weave_router.fastpath import engine

TESTS = Path(__file__).parents[1]
PACKAGE = Path(weave_router.__file__).parent
VECTORS = (
    "security/test_corpus.py",
    *(f"unit/test_{name}.py" for name in (
        "config_load", "mesh_record", "mesh_link", "mesh_parts", "mesh_replica", "tunnel_wire", "tunnel_noise",
        "tunnel_token", "kube_parts", "api_server", "host_handover", "ipam_rounds")),
)  # fmt: skip
CANNOT_COME = {"truncated"}
"""UDP's length field ends at 65,535, the receive buffers are that large."""


def measured(data_file: Path) -> dict[str, set[int]]:
    """File of the package -> lines that ran."""
    command = [sys.executable, "-P", "-m", "coverage", "run", f"--data-file={data_file}", f"--include={PACKAGE}/*"]
    command += ["-m", "pytest", "-q", "-p", "no:cacheprovider", *(str(TESTS / name) for name in VECTORS)]
    done = subprocess.run(command, cwd=TESTS.parent, env={**os.environ, "COVERAGE_CORE": "ctrace"}, capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    data = coverage.CoverageData(str(data_file))
    data.read()
    return {str(Path(file).relative_to(PACKAGE)): set(data.lines(file) or ()) for file in data.measured_files()}


def test_every_line_of_every_decoder(tmp_path: Path) -> None:
    ran, found = measured(tmp_path / "data"), decoders(PACKAGE)
    assert sum(len(decoder.lines) for decoder in found) > 800
    missed = [f"{one.file}:{line} in {one.name}" for one in found
              for line in sorted(one.lines - ran.get(one.file, set()))]  # fmt: skip
    assert not missed, "\n".join(["no input reaches these lines; add one to tests/security/corpus/:", *missed])


def test_every_refusal_of_the_compiled_decoders_is_awaited_by_a_test() -> None:
    sources = [*(TESTS / "kernel").glob("test_fastpath_*.py"), *(TESTS / "security").glob("test_fastpath_*.py")]
    text = "".join(path.read_text() for path in sources)
    assert {name for name in engine.DROP_REASONS if f'"{name}"' not in text} == CANNOT_COME
