"""Images without a registry: archives that `ctr images import` takes.

``pause`` is ten lines of C, ``busybox`` Debian's static one with its links, both one layer written here; the router's
image is built by `make image` and written by the tool that built it. Made once per version into the cache outside the
clone; run as a program it only does that. Called by cluster.py and the Makefile.
"""

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final

ROOT: Final = Path(__file__).resolve().parents[2]
CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "weave-router-k8s"
PAUSE: Final = "docker.io/weave-router-test/pause:1"
ARCHIVES: Final = 4
"""Of the router that are kept, 220 MB each: clones of one machine share the cache."""
BUSYBOX: Final = "docker.io/library/busybox:latest"
_PAUSE_C: Final = r"""
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
static void end(int number) { (void)number; _exit(0); }
static void reap(int number) { (void)number; while (waitpid(-1, 0, WNOHANG) > 0); }
int main(void) { signal(SIGTERM, end); signal(SIGINT, end); signal(SIGCHLD, reap); for (;;) pause(); }
"""
_DIRECTORIES: Final = ("bin", "etc", "tmp", "proc", "sys", "dev", "root", "var", "run", "www")


def archive(path: Path, name: str, files: dict[str, bytes], links: dict[str, str], command: Sequence[str]) -> None:
    """One image of one layer, in the format of `docker save`."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for directory in _DIRECTORIES:
            info = tarfile.TarInfo(directory)
            info.type, info.mode = tarfile.DIRTYPE, 0o1777 if directory == "tmp" else 0o755
            tar.addfile(info)
        for member, data in files.items():
            info = tarfile.TarInfo(member)
            info.size, info.mode = len(data), 0o755
            tar.addfile(info, io.BytesIO(data))
        for member, target in links.items():
            info = tarfile.TarInfo(member)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    blob = layer.getvalue()
    config = {
        "architecture": "amd64", "os": "linux", "config": {"Cmd": list(command), "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(blob).hexdigest()]},
    }  # fmt: skip
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    members = {
        "manifest.json": json.dumps(manifest).encode(), "config.json": json.dumps(config).encode(), "layer.tar": blob,
    }  # fmt: skip
    with tarfile.open(path, "w") as tar:
        for member, data in members.items():
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def pause(folder: Path, name: str = PAUSE) -> Path:
    program = folder / "pause"
    subprocess.run(["cc", "-static", "-O2", "-s", "-x", "c", "-o", program, "-"], input=_PAUSE_C.encode(), check=True)
    data = program.read_bytes()
    archive(folder / "pause.tar", name, {"pause": data}, {}, ["/pause"])
    return folder / "pause.tar"


def busybox(folder: Path, name: str = BUSYBOX) -> Path:
    program = shutil.which("busybox")
    if program is None:
        raise RuntimeError("busybox is missing: apt-get install busybox-static")
    commands = subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout.split()
    links = {f"bin/{each}": "busybox" for each in commands if each not in ("busybox", "[", "[[")}
    archive(folder / "busybox.tar", name, {"bin/busybox": Path(program).read_bytes()}, links, ["sh"])
    return folder / "busybox.tar"


def router_name() -> str:
    """As the manifest asks for it."""
    for line in (ROOT / "deploy" / "weave-router.yaml").read_text().splitlines():
        if line.strip().startswith("image:"):
            return line.split("image:")[1].strip()
    raise RuntimeError("deploy/weave-router.yaml names no image")


def _source_digest() -> str:
    """Of everything that the image is made of."""
    digest = hashlib.sha256()
    names = [ROOT / name for name in (
        "Dockerfile", ".dockerignore", "meson.build", "meson_options.txt", "pyproject.toml", ".ci/constraints.txt")]
    for folder in ("weave_router", "cni_shim"):
        names += sorted(p for p in (ROOT / folder).rglob("*") if p.is_file() and p.suffix not in (".so", ".pyc"))
    for path in names:
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def router() -> Path:
    """Builds it by `make image` unless these very sources were built before; keeps the newest archives."""
    path = CACHE / "images" / f"weave-router-{_source_digest()}.tar"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    base, flags = debian()
    name = router_name()
    # buildah by name: docker's daemon, where there is one, knows nothing of the base image made here.
    environment = {"BASE": base, "BUILD_FLAGS": f"--layers {' '.join(flags)}", "BUILDER": "buildah"}
    run([ROOT / "deploy" / "image", name], environment)
    archives = sorted(path.parent.glob("weave-router-*.tar"), key=lambda old: old.stat().st_mtime)
    for old in archives[: 1 - ARCHIVES]:
        old.unlink()
    return save(name, path)


def debian() -> tuple[str, list[str]]:
    """Name of a Debian 12 to build on, and buildah's flags that give a build this machine's own way to the packages."""
    base = run([ROOT / "tests/kubernetes/programs/base-image"]).strip()
    places = ("/etc/apt", "/usr/share/keyrings", "/etc/ssl/certs", "/etc/pip.conf")
    return base, ["--pull-never", *(word for place in places if os.path.exists(place)
                                    for word in ("--volume", f"{place}:{place}:ro"))]


def save(name: str, path: Path) -> Path:
    """What buildah calls ``name``, as the archive ``path``: there when it is whole."""
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    run(["buildah", "push", "-q", name, f"docker-archive:{new}:{name}"])
    return new.rename(path)


def router_as(folder: Path, name: str) -> Path:
    """The router's image under another name and with another id: the same layers, one more label."""
    path = folder / f"{name.rpartition(':')[2]}.tar"
    with tarfile.open(router()) as old, tarfile.open(path, "w") as new:
        (manifest,) = json.load(_member(old, "manifest.json"))
        config = json.load(_member(old, manifest["Config"]))
        config["config"]["Labels"] = (config["config"].get("Labels") or {}) | {"named": name}
        written = {"config.json": json.dumps(config).encode()}
        manifest |= {"Config": "config.json", "RepoTags": [name]}
        written["manifest.json"] = json.dumps([manifest]).encode()
        for layer in dict.fromkeys(manifest["Layers"]):
            link = old.getmember(layer)
            file = old.extractfile(link)
            info = tarfile.TarInfo(layer)
            info.size = old.getmember(link.linkname).size if link.issym() or link.islnk() else link.size
            new.addfile(info, file)
        for member, data in written.items():
            info = tarfile.TarInfo(member)
            info.size = len(data)
            new.addfile(info, io.BytesIO(data))
    return path


def _member(archive_file: tarfile.TarFile, name: str) -> IO[bytes]:
    found = archive_file.extractfile(name)
    assert found is not None, name
    return found


def run(command: Sequence[str | Path], environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, **(environment or {})}, stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]}: exit status {done.returncode}\n{done.stdout[-4000:]}")
    return done.stdout.splitlines()[-1] if done.stdout else ""


if __name__ == "__main__":
    router()
