"""A container image without a registry: the machine's static busybox, in the archive that every runtime reads.

Called by machine.py. The same bytes each time, so runtimes know it again.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from pathlib import Path
from typing import Final

from .namespace import LabError

NAME: Final = "docker.io/lab/busybox:1"
BUSYBOX: Final = Path("/usr/bin/busybox")
COMMANDS: Final = ("sh", "ip", "ping", "sleep", "nc", "cat", "echo", "wget", "httpd", "traceroute")
FOLDERS: Final = ("bin", "etc", "tmp", "proc", "sys", "dev", "run", "var")
ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}


def write_image(path: Path) -> None:
    if not BUSYBOX.exists():
        raise LabError(f"no {BUSYBOX}: it comes with Debian's busybox-static (`make test` installs it)")
    layer = _layer()
    config = {
        "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Cmd": ["sh"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [NAME], "Layers": ["layer.tar"]}]
    with tarfile.open(path, "w") as archive:
        _add(archive, "manifest.json", json.dumps(manifest).encode())
        _add(archive, "config.json", json.dumps(config).encode())
        _add(archive, "layer.tar", layer)


def _layer() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as layer:
        for folder in FOLDERS:
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            layer.addfile(entry)
        _add(layer, "bin/busybox", BUSYBOX.read_bytes())
        for command in COMMANDS:
            entry = tarfile.TarInfo(f"bin/{command}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            layer.addfile(entry)
    return content.getvalue()


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), 0o755
    archive.addfile(entry, io.BytesIO(data))
