"""Takes a cluster down when nobody holds it any more: a process of its own that waits for the end of its input.

    python -P keeper.py FOLDER

The harness keeps the other end of the pipe, so that its end, be it Ctrl-C, SIGKILL or an orderly one, is seen here.
What is taken down: processes by the ids written in FOLDER/pids (with their start times: ids are used again),
namespaces, cgroups, sysctls, FOLDER. Also a function for what an earlier keeper could not finish. Called by cluster.py.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

PREFIX: Final = "wrk8s"
_SECONDS: Final = 30.0


def start_time(pid: int) -> str:
    """Field 22 of /proc/PID/stat; empty when there is no such process, or it waits only to be reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def take_down(folder: Path) -> None:
    """Idempotent. The last started first."""
    _end(folder)
    for name in sorted(path.name for path in Path("/run/netns").glob(f"{PREFIX}-*")):
        subprocess.run(["ip", "netns", "del", name], check=False)
    remove_cgroups(f"{PREFIX}-n*")
    restore_sysctls(folder)
    shutil.rmtree(folder, ignore_errors=True)


def set_sysctl(folder: Path, path: Path, value: int) -> None:
    """At least ``value``; what stood there is written down first, and comes back when the cluster goes."""
    present = int(path.read_text())
    if present < value:
        with open(folder / "sysctls", "a") as file:
            file.write(f"{path} {present}\n")
        path.write_text(str(value))


def restore_sysctls(folder: Path) -> None:
    """The last changed first."""
    with contextlib.suppress(FileNotFoundError):
        for line in reversed((folder / "sysctls").read_text().splitlines()):
            path, value = line.split()
            Path(path).write_text(value)


def _end(folder: Path) -> None:
    written = (folder / "pids").read_text().split("\n") if (folder / "pids").exists() else []
    found = [line.split() for line in written if line]
    left = {(int(pid), began) for pid, began in found if start_time(int(pid)) == began}
    for pid, _ in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    end = time.monotonic() + _SECONDS
    while any(start_time(pid) == began for pid, began in left) and time.monotonic() < end:
        time.sleep(0.05)


def remove_cgroups(nodes: str) -> None:
    """Of the nodes whose name matches. A group can go when its last process is reaped, a moment after SIGKILL."""
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end:
        groups = [path for top in Path("/sys/fs/cgroup").glob(f"*/{nodes}") for path in (*top.rglob("*/"), top)]
        if not groups:
            return
        for group in sorted(groups, key=lambda path: -len(path.parts)):
            with contextlib.suppress(OSError):
                group.rmdir()
        time.sleep(0.05)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    take_down(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
