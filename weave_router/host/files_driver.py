"""Installs and removes the files of files.py. Run as a program by ``make install``; needs nothing else of the product.

``python -m weave_router.host.files_driver install [DESTDIR]`` or ``... remove [DESTDIR]``.
"""

import os
import sys
from pathlib import Path

from weave_router.host.files import INSTALLED, KEEPS_OFF, RUN_MARKS, SOURCE_DIR


def install(root: Path = Path("/")) -> list[Path]:
    """Returns what was written. What is the same already is left."""
    written = []
    for source, target in INSTALLED.items():
        text = (Path(__file__).parent / SOURCE_DIR / source).read_text()
        path = _under(root, target)
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.new")
            temporary.write_text(text)
            os.replace(temporary, path)
            written.append(path)
    return written


def remove(root: Path = Path("/")) -> list[Path]:
    present = [path for target in INSTALLED.values() if (path := _under(root, target)).exists()]
    for path in present:
        path.unlink()
    return present


def is_kept_off(manager: str, root: Path = Path("/")) -> bool:
    return all(_under(root, INSTALLED[source]).exists() for source in KEEPS_OFF[manager])


def is_running(manager: str, root: Path = Path("/")) -> bool:
    return _under(root, RUN_MARKS[manager]).exists()


def _under(root: Path, path: str) -> Path:
    return root / path.removeprefix("/")


def main(arguments: list[str]) -> int:
    verbs = {"install": install, "remove": remove}
    if not 1 <= len(arguments) <= 2 or arguments[0] not in verbs:
        print("usage: files_driver install|remove [DESTDIR]", file=sys.stderr)
        return 2
    for path in verbs[arguments[0]](Path(arguments[1] if len(arguments) == 2 else "/")):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
