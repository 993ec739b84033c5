"""Puts files where a container runtime looks for them: the CNI executable and the network list. Decides nothing.

Each file is whole or not there: written beside its place and renamed, because a runtime may be starting the executable
or reading the folder at this moment. Called by the ``install-cni`` command and, in a container, by the router.
"""

import asyncio
import json
import logging
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import weave_router
from weave_router.host import conflist
from weave_router.host.faults import Fault, HostError

_log = logging.getLogger(__name__)
EXECUTABLE: Final = "weave-router-cni"
FOLLOW_SECONDS: Final = 3.0
"""How often one who stays looks at plugins that come, go or change."""
_VERSION_SECONDS: Final = 5.0
_ATTACH_SOCKET: Final = "attach.sock"
_JOURNAL: Final = "cni-journal"


STANDARD_EXECUTABLES: Final = Path("/opt/cni/bin")
STANDARD_NETWORKS: Final = Path("/etc/cni/net.d")
STANDARD_NETWORK: Final = "weave"
STANDARD_CHAIN: Final = ("portmap",)


@dataclass(frozen=True)
class Folders:
    """Where the runtime looks for executables and networks, and the router's own."""

    executables: Path
    networks: Path
    run: Path
    state: Path


def install(folders: Folders, network: str, chain: Sequence[str]) -> list[str]:
    """Paths that were changed. The list last: it makes all the rest count."""
    executable = folders.executables / EXECUTABLE
    written = []
    if write(executable, our_executable().read_bytes(), 0o755):
        written.append(str(executable))
    versions = {name: versions_of(folders.executables / name) for name in chain}
    path = folders.networks / conflist.NAME
    socket, journal = str(folders.run / _ATTACH_SOCKET), str(folders.state / _JOURNAL)
    if write(path, conflist.conflist(network, socket, journal, chain, versions), 0o600):
        written.append(str(path))
    return written


def remove(folders: Folders) -> list[str]:
    """Paths that were removed. The list first: without the executable it would fail every verb."""
    removed = []
    for path in (folders.networks / conflist.NAME, folders.executables / EXECUTABLE):
        for each in (path, _temporary(path)):
            try:
                each.unlink()
                _sync(each.parent)
                removed.append(str(each))
            except (FileNotFoundError, NotADirectoryError):
                pass
            except OSError as error:
                raise HostError(Fault.INSTALL_REMOVE, path=each, errno=error.errno or 0) from error
    return removed


def ahead(folder: Path) -> str:
    """A sentence about networks of others that runtimes take instead of ours; empty where there is none."""
    try:
        found = conflist.ahead(os.listdir(folder))
    except OSError:
        return ""
    return conflist.ahead_sentence(str(folder), found) if found else ""


def standard(run_dir: Path, state_dir: Path) -> Folders:
    return Folders(STANDARD_EXECUTABLES, STANDARD_NETWORKS, run_dir, state_dir)


def _temporary(path: Path) -> Path:
    """No runtime knows its extension."""
    return path.with_name(f".{path.name}.weave-router-new")


def our_executable() -> Path:
    """The one that came with this package."""
    path = Path(weave_router.__file__).parent / "_bin" / EXECUTABLE
    if not path.is_file():
        raise HostError(Fault.INSTALL_INCOMPLETE, path=path)
    return path


def write(path: Path, data: bytes, mode: int) -> bool:
    """On disk under ``path`` when this returns. False: it was so already."""
    try:
        if path.is_file() and path.stat().st_mode & 0o777 == mode and path.read_bytes() == data:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path)
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


async def follow(run_dir: Path, state_dir: Path) -> None:
    """At the standard places, until cancelled. The list stays: without it a runtime could stop no pod."""
    folders = standard(run_dir, state_dir)
    while True:
        for path in await asyncio.to_thread(install, folders, STANDARD_NETWORK, STANDARD_CHAIN):
            _log.info("installed", extra={"path": path})
        await asyncio.sleep(FOLLOW_SECONDS)


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
