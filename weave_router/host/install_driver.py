"""Puts files where a container runtime looks for them: the CNI executable and the network list. Decides nothing.

Synchronous. Each file is whole or not there: written beside its place and renamed, because a runtime may be starting
the executable or reading the folder at this moment. Called by the ``install-cni`` command.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Final

import weave_router
from weave_router.host.faults import Fault, HostError

EXECUTABLE: Final = "weave-router-cni"
_VERSION_SECONDS: Final = 5.0


def our_executable() -> Path:
    """The one that came with this package."""
    path = Path(weave_router.__file__).parent / "_bin" / EXECUTABLE
    if not path.is_file():
        raise HostError(Fault.INSTALL_INCOMPLETE, path=path)
    return path


def write(path: Path, data: bytes, mode: int) -> bool:
    """On disk under ``path`` when this returns. False: it was so already. The temporary name has no extension that a
    runtime knows."""
    try:
        if path.is_file() and path.stat().st_mode & 0o777 == mode and path.read_bytes() == data:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.weave-router-new")
        with open(temporary, "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        _sync(path.parent)
    except OSError as error:
        raise HostError(Fault.INSTALL_WRITE, path=path, errno=error.errno or 0) from error
    return True


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def versions_of(executable: Path) -> list[str] | None:
    """What its VERSION says; None where there is no such executable, or none that answers."""
    if not os.access(executable, os.X_OK):
        return None
    try:
        done = subprocess.run(
            [executable], input=b'{"cniVersion":"1.0.0"}', capture_output=True, timeout=_VERSION_SECONDS, check=False,
            env={"CNI_COMMAND": "VERSION", "PATH": "/nonexistent"},
        )  # fmt: skip
        said = json.loads(done.stdout)["supportedVersions"]
    except (OSError, ValueError, KeyError, TypeError, subprocess.TimeoutExpired):
        return None
    return [version for version in said if isinstance(version, str)]
