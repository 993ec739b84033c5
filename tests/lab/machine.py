"""A container host: a lab host with containerd and podman as Debian ships them, which see a machine of their own.

        outside                       inside, by mount and pid namespaces in the host's network namespace
        weave-router  <--attach.sock-- weave-router-cni  <-- containerd, podman  --> containers

/etc, /opt and /var are this machine's with private changes on top, /run is empty: so each has its own /opt/cni/bin,
/etc/cni/net.d, image store and container states, nothing is written to the real ones, and all of it ends with the first
process inside. The router runs outside on purpose: it needs nothing of the runtime's paths. Called by tests of the CNI.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from .image import NAME as IMAGE
from .image import write_image
from .namespace import LabError, environment, kill_process, run
from .network import Host
from .router import Router, wait_for
from .tools import ROOT

NETWORKS: Final = "/etc/cni/net.d"
EXECUTABLES: Final = "/opt/cni/bin"
DEBIAN_PLUGINS: Final = "/usr/lib/cni"
SLEEP: Final = ("sleep", "100000")

INIT: Final = """
set -e
mount -t tmpfs tmpfs /run
for folder in etc opt var; do
  mkdir -p /run/own/$folder /run/work/$folder
  mount -t overlay overlay -o lowerdir=/$folder,upperdir=/run/own/$folder,workdir=/run/work/$folder /$folder
done
rm -rf /etc/cni /opt/cni /var/lib/cni
mkdir -p /etc/cni/net.d /opt/cni/bin /run/netns
mount --make-rshared /
printf '%s\\n' "$CONTAINERD_TOML" > /run/containerd.toml
printf '%s\\n' "$CONTAINERS_TOML" > /run/containers.toml
printf '%s\\n' "$STORAGE_TOML" > /run/storage.toml
containerd --config /run/containerd.toml &
while :; do wait -n || sleep 1; done  # the first process of a pid namespace has orphans to wait for
"""

CONTAINERD_TOML: Final = """version = 2
root = "/run/containerd-root"
state = "/run/containerd"
disabled_plugins = ["io.containerd.grpc.v1.cri"]"""

CONTAINERS_TOML: Final = """[containers]
cgroups = "no-conmon"
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "runc"
[network]
network_backend = "cni"
cni_plugin_dirs = ["/opt/cni/bin"]
default_network = "weave\""""

STORAGE_TOML: Final = """[storage]
driver = "overlay"
graphroot = "/run/containers-root"
runroot = "/run/containers\""""

_serials = itertools.count(1)


class Booted(ABC):
    """A context in which a first process of its own runs; it ends with it, and with a start that fails."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._process: subprocess.Popen[str] | None = None
        self._init = 0

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def _start(self) -> None: ...

    def close(self) -> None:
        """The first process inside takes all others with it."""
        if self._init:
            with suppress(ProcessLookupError):
                os.kill(self._init, signal.SIGKILL)
        if self._process is not None:
            kill_process(self._process)
        wait_for(f"the cgroups of {self.host.label} to be empty", lambda: remove_cgroups(self.host.name))


class Machine(Booted):
    """``with Machine(router) as machine:``. Container names are unique on the machine, not in the lab."""

    def __init__(self, router: Router) -> None:
        super().__init__(router.host)
        self.router = router
        self.name = self.host.name  # containerd's namespace, and so the cgroup of all containers here
        self.log_path = self.host.directory / "containerd.log"

    def _start(self) -> None:
        for program in ("containerd", "ctr", "runc", "podman", "conmon"):
            if shutil.which(program) is None:
                raise LabError(f"no {program} here: `.ci/packages clients` installs what the tests need")
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"]
        texts = {name: globals()[name] for name in ("CONTAINERD_TOML", "CONTAINERS_TOML", "STORAGE_TOML")}
        with self.log_path.open("w") as log:
            self._process = subprocess.Popen(
                ["nsenter", f"--net={self.host.path}", *unshare, "bash", "-c", INIT], stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, text=True, env=environment(texts), start_new_session=True,
            )  # fmt: skip
        wait_for(f"containerd on {self.host.label}: see {self.log_path}", self._answers)
        self._load_image()

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise LabError(f"no machine on {self.host.label}: {self.log_path.read_text()[-2000:]}")
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        if not children or os.readlink(f"/proc/{children[0]}/ns/mnt") == os.readlink("/proc/self/ns/mnt"):
            return False
        self._init = int(children[0])
        return self.run(["ctr", "version"], check=False).returncode == 0

    def _load_image(self) -> None:
        archive = self.host.directory / "image.tar"
        write_image(archive)
        self.ctr("images", "import", str(archive))
        self.run(["podman", "load", "--quiet", "--input", str(archive)])
        archive.unlink()

    # -- commands inside --------------------------------------------------------------------------------------------

    def argv(self, argv: Sequence[str]) -> list[str]:
        return ["nsenter", "--target", str(self._init), "--net", "--mount", "--pid", *argv]

    @property
    def environment(self) -> dict[str, str]:
        """What an operator has on a host, and where this one's router keeps its files."""
        return {
            **self.router.environment,
            "WEAVE_ROUTER_BIN_DIR": EXECUTABLES,
            "WEAVE_ROUTER_CONF_DIR": NETWORKS,
            "PATH": f"{ROOT / '.venv' / 'bin'}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "CONTAINERD_NAMESPACE": self.name,
            "CONTAINERS_CONF": "/run/containers.toml",
            "CONTAINERS_STORAGE_CONF": "/run/storage.toml",
            "IMAGE": IMAGE,
        }

    def run(
        self, argv: Sequence[str], *, text_input: str | None = None, check: bool = True, timeout: float = 60,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        env = {**self.environment, **(env or {})}
        return run(self.argv(argv), text_input=text_input, check=check, timeout=timeout, env=env)

    def shell(self, text: str) -> str:
        return self.run(["bash", "-euo", "pipefail", "-c", text]).stdout

    def popen(self, argv: Sequence[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.argv(argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment(self.environment), start_new_session=True,
        )  # fmt: skip

    def install_plugins(self, *names: str) -> None:
        """Debian's, where containerd looks for them."""
        self.run(["cp", *(f"{DEBIAN_PLUGINS}/{name}" for name in names), EXECUTABLES])

    def write(self, path: str, text: str) -> None:
        self.run(["tee", path], text_input=text)

    # -- containerd -------------------------------------------------------------------------------------------------

    def ctr(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run(["ctr", *words], check=check)

    def ctr_once(self, name: str, *command: str) -> str:
        """A container that runs one command and is removed; what the command said."""
        return self.ctr("run", "--rm", "--cni", IMAGE, name, *command).stdout

    def ctr_start(self, name: str, *command: str) -> Container:
        self.ctr("run", "--detach", "--cni", IMAGE, name, *(command or SLEEP))
        return Container(self, name, ("ctr", "task", "exec"))

    # -- podman -----------------------------------------------------------------------------------------------------

    def podman(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run(["podman", *words], check=check)

    def podman_start(self, name: str, *flags: str, command: Sequence[str] = SLEEP) -> Container:
        self.podman("run", "--detach", "--cgroup-parent", f"/{self.name}", "--name", name, *flags, IMAGE, *command)
        return Container(self, name, ("podman", "exec"))


class Container:
    """A running one, of either runtime."""

    def __init__(self, machine: Machine, name: str, enter: tuple[str, ...]) -> None:
        self.machine = machine
        self.name = name
        self._enter = enter

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        flags = ["--exec-id", f"exec{next(_serials)}"] if self._enter[0] == "ctr" else []
        return self.machine.run([*self._enter, *flags, self.name, *command], check=check)

    def addresses(self, interface: str = "eth0") -> tuple[str, str]:
        """Its global IPv4 and IPv6 address, as it sees them."""
        words = self.run("ip", "-o", "addr", "show", "dev", interface, "scope", "global").stdout.split()
        found = {kind: words[words.index(kind) + 1].partition("/")[0] for kind in ("inet", "inet6") if kind in words}
        return found.get("inet", ""), found.get("inet6", "")

    def pings(self, address: str) -> bool:
        """Whether the first packet comes back: there is no second."""
        return self.run("ping", "-c", "1", "-W", "2", address, check=False).returncode == 0

    def remove(self) -> None:
        if self._enter[0] == "podman":
            self.machine.podman("rm", "--force", "--time", "0", self.name)
            return
        self.machine.ctr("task", "kill", "--signal", "SIGKILL", self.name)
        self.machine.ctr("task", "rm", "--force", self.name)
        self.machine.ctr("container", "rm", self.name)


def remove_cgroups(name: str) -> bool:
    """Whether none of that name is left. From the leaves up, and only what is empty: the killed may still be ending."""
    for base in cgroup_roots():
        for folder, _, _ in os.walk(base / name, topdown=False):
            with suppress(OSError):
                os.rmdir(folder)
    return not any((base / name).exists() for base in cgroup_roots())


def cgroup_roots() -> list[Path]:
    """The one hierarchy of version 2, or one per controller."""
    return [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").glob("*/")]
