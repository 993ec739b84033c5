"""A lab host whose first process is systemd, with the product's unit as `make install` puts it there.

        outside                        inside, by mount, pid and cgroup namespaces in the host's network namespace
        tests, pods  <--/run by /proc/PID/root--  systemd -- weave-router.service

The root is this machine's with private changes on top, and /run, /tmp and /dev are its own; the program is the
installed one, under another path. All of it ends with systemd. Needs hierarchies of cgroups of version 1, of which each
mount namespace may have its own view. Called by tests of the unit.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from .machine import Booted
from .namespace import LabError, environment, run
from .router import wait_for
from .tools import ROOT

SYSTEMD: Final = Path("/lib/systemd/systemd")
HIERARCHIES: Final = ("systemd", "devices", "memory", "pids")
UNIT: Final = "weave-router.service"

JOIN: Final = """
set -e
for hierarchy in $HIERARCHIES; do
  mkdir -p /sys/fs/cgroup/$hierarchy/$NAME
  echo $$ > /sys/fs/cgroup/$hierarchy/$NAME/cgroup.procs
done
exec unshare --mount --pid --ipc --uts --cgroup --fork --kill-child --propagation private bash -c "$INIT"
"""

INIT: Final = """
set -e
mount -t tmpfs tmpfs "$FOLDER"
cd "$FOLDER"
mkdir own work root
mount -t overlay overlay -o lowerdir=/,upperdir="$FOLDER/own",workdir="$FOLDER/work" root
cd root
mount -t proc proc proc
mount -t sysfs sysfs sys
for folder in run tmp dev sys/fs/cgroup; do mount -t tmpfs tmpfs $folder; done
mkdir -p dev/net dev/shm dev/pts opt/weave-router etc/weave-router
for name in null zero full random urandom tty; do touch dev/$name; mount --bind /dev/$name dev/$name; done
mknod dev/net/tun c 10 200
mount -t devpts devpts dev/pts -o newinstance,ptmxmode=0666
ln -s pts/ptmx dev/ptmx
for hierarchy in $HIERARCHIES; do
  mkdir sys/fs/cgroup/$hierarchy
  mount -t cgroup -o none,name=systemd cgroup sys/fs/cgroup/$hierarchy 2> /dev/null ||
    mount -t cgroup -o $hierarchy cgroup sys/fs/cgroup/$hierarchy
done
mount --bind "$VENV" opt/weave-router
printf '#!/bin/sh\\nexec /opt/weave-router/bin/python -P -m weave_router "$@"\\n' > usr/local/bin/weave-router
chmod 755 usr/local/bin/weave-router
cp "$UNIT_FILE" etc/systemd/system/
printf '[Unit]\\nRequires=basic.target\\nAfter=basic.target\\n' > etc/systemd/system/lab.target
ln -sf /dev/null etc/systemd/system/systemd-udevd.service
exec env -i container=lab PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot . "$SYSTEMD" --system --unit=lab.target
"""


def missing() -> str:
    """What this machine lacks for it; empty: nothing."""
    if not SYSTEMD.exists():
        return f"no {SYSTEMD}"
    lacking = [name for name in HIERARCHIES if not Path("/sys/fs/cgroup", name, "cgroup.procs").exists()]
    return f"no cgroup hierarchy of version 1 for {', '.join(lacking)}" if lacking else ""


class InitHost(Booted):
    """``with InitHost(host) as machine:``. Its router's sockets are under ``run_dir`` for everybody."""

    def _start(self) -> None:
        folder = self.host.directory / "root"
        folder.mkdir()
        texts = {"NAME": self.host.name, "FOLDER": str(folder), "VENV": str(ROOT / ".venv"), "INIT": INIT,
                 "UNIT_FILE": str(ROOT / "deploy" / UNIT), "SYSTEMD": str(SYSTEMD),
                 "HIERARCHIES": " ".join(HIERARCHIES)}  # fmt: skip
        log = self.host.directory / "systemd.log"
        with log.open("w") as output:
            self._process = subprocess.Popen(
                ["nsenter", f"--net={self.host.path}", "bash", "-c", JOIN], stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, text=True, env=environment(texts), start_new_session=True,
            )  # fmt: skip
        wait_for(f"systemd on {self.host.label}: see {log}", lambda: self._runs(log))

    def _runs(self, log: Path) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise LabError(f"no systemd on {self.host.label}: {log.read_text()[-2000:]}")
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        if not children or Path(f"/proc/{children[0]}/comm").read_text() != "systemd\n":
            return False
        self._init = int(children[0])
        return self.systemctl("is-system-running", check=False) == "running"

    # -- inside -----------------------------------------------------------------------------------------------------

    @property
    def root(self) -> Path:
        return Path(f"/proc/{self._init}/root")

    @property
    def run_dir(self) -> Path:
        return self.root / "run" / "weave-router"

    def run(self, argv: Sequence[str], *, check: bool = True) -> subprocess.CompletedProcess[str]:
        enter = ["nsenter", "--target", str(self._init), "--all", "--root", "env", "--chdir=/"]
        return run([*enter, "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", *argv], check=check)

    def systemctl(self, *words: str, check: bool = True) -> str:
        return self.run(["systemctl", *words], check=check).stdout.strip()

    def show(self, name: str) -> str:
        """A property of the unit."""
        return self.systemctl("show", UNIT, "--value", f"--property={name}")

    def write(self, path: str, text: str) -> None:
        file = self.root / path.lstrip("/")
        file.touch(mode=0o600)
        file.write_text(text)

    def log(self) -> str:
        return self.run(["journalctl", "--no-pager", "--output=cat", "--unit", UNIT]).stdout
