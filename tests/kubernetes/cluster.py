"""A real cluster on this machine: control plane and nodes, each node with a network, mounts and processes of its own.

       switch (bridge in a namespace)  192.168.77.0/24, fd77::/64
         |             |             |
       node-1        node-2        node-3          kubelet, containerd, kube-proxy; node-3 has the newer containerd
       .11, ::11     .12, ::12     .13, ::13       node-1's network also has etcd and the control plane

One cluster at a time on a machine (a lock). Whatever ends the process that holds it, the keeper takes it down.
Must not know the product: it applies manifests. Called by conftest.py and demo.py.
"""

import contextlib
import fcntl
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Final

from kubernetes import control, images, keeper, name_server, nodefiles

HERE: Final = Path(__file__).resolve().parent
KUBERNETES: Final = "v1.34.4"
CONTAINERD: Final = "v2.3.7"
BIN: Final = images.CACHE / "bin"
PROGRAMS: Final = BIN / f"kubernetes-{KUBERNETES}"
NEWER: Final = BIN / f"containerd-{CONTAINERD}"
LOCK: Final = Path("/run/weave-router-k8s.lock")
SWITCH: Final = f"{keeper.PREFIX}-switch"
CLUSTER_V4: Final = "10.32.0.0/12"
NEIGHBOURS: Final = 32_768
"""What the router sets where it is in a machine's first namespace. These nodes share the machine's."""


class ClusterError(Exception):
    """Something did not come up, or a command failed; the text says which and what it said."""


def wait_for(what: str, look: Callable[[], object], seconds: float, every: float = 0.2) -> Any:
    """The first true value of ``look``."""
    end = time.monotonic() + seconds
    while not (value := look()):
        if time.monotonic() > end:
            raise ClusterError(f"{what}: not within {seconds:g} s")
        time.sleep(every)
    return value


class Node:
    """One node: its folder, its first process, and what runs beside it."""

    def __init__(self, cluster: "Cluster", serial: int, newer: bool) -> None:
        self.cluster = cluster
        self.name = f"node-{serial}"
        self.netns = f"{keeper.PREFIX}-n{serial}"
        self.v4, self.v6 = f"192.168.77.{10 + serial}", f"fd77::{10 + serial}"
        self.folder = cluster.folder / self.name
        self.newer = newer
        self.pid = 0
        self.holder: subprocess.Popen[bytes] | None = None
        self.kubelet: subprocess.Popen[bytes] | None = None
        self.proxy: subprocess.Popen[bytes] | None = None

    def make_network(self) -> None:
        ip("netns", "add", self.netns)
        ip("-n", self.netns, "link", "set", "lo", "up")
        ip("link", "add", "eth0", "netns", self.netns, "type", "veth", "peer", "name", self.netns, "netns", SWITCH)
        ip("-n", SWITCH, "link", "set", self.netns, "master", "br0", "up")
        ip("-n", self.netns, "addr", "add", f"{self.v4}/24", "dev", "eth0")
        ip("-n", self.netns, "addr", "add", f"{self.v6}/64", "dev", "eth0", "nodad")
        ip("-n", self.netns, "link", "set", "eth0", "up")
        # Without a default route host processes get no route to Service addresses.
        ip("-n", self.netns, "route", "add", "default", "via", "192.168.77.1")
        ip("-n", self.netns, "-6", "route", "add", "default", "via", "fd77::1")
        run("ip", "netns", "exec", self.netns, "sysctl", "-qw", "net.ipv4.ip_forward=1",
            "net.ipv6.conf.all.forwarding=1")

    def boot(self, archives: Sequence[Path]) -> None:
        nodefiles.write(self.folder, cgroup=self.netns, pause=images.PAUSE,
                        name_server=self.cluster.ranges.name_server if self.cluster.names else "")
        command = ["nsenter", f"--net=/run/netns/{self.netns}", "unshare", "--mount", "--uts", "--pid", "--fork",
                   "--kill-child=SIGKILL", "--mount-proc", "--propagation", "private",
                   str(HERE / "node.sh"), str(self.cluster.folder), self.name, self.netns]
        holder = self.holder = self.cluster.spawn(f"{self.name}/node", command)
        wait_for(f"{self.name} has its own mounts", (self.folder / "ready").exists, 20, 0.05)
        self.pid = wait_for("first process", lambda: child_of(holder.pid), 5, 0.05)
        self.spawn("containerd", ["containerd", "-c", f"{self.folder}/containerd.toml"])
        wait_for(f"{self.name}: containerd", lambda: self.run("ctr", "version", check=False).returncode == 0, 30)
        for archive in archives:
            self.run("ctr", "-n", "k8s.io", "images", "import", str(archive))

    def start_kubelet(self) -> None:
        self.kubelet = self.spawn("kubelet", [
            f"{PROGRAMS}/kubelet", f"--config={self.folder}/kubelet.yaml",
            f"--kubeconfig={self.folder}/kubelet.kubeconfig", f"--hostname-override={self.name}",
            f"--node-ip={self.v4},{self.v6}", "--root-dir=/var/lib/kubelet", "--v=1"])

    def restart_kubelet(self) -> None:
        """Its pods run on; what it knew of the API server is read anew."""
        end(self.kubelet)
        self.start_kubelet()

    def start_proxy(self, mode: str, cidr: str) -> None:
        """Ends the one that ran and removes its rules, if there was one."""
        if self.proxy is not None:
            end(self.proxy)
            self.run(f"{PROGRAMS}/kube-proxy", "--cleanup", check=False)
        words = [f"{PROGRAMS}/kube-proxy", f"--kubeconfig={self.folder}/proxy.kubeconfig",
                 f"--hostname-override={self.name}", f"--proxy-mode={mode}", "--conntrack-max-per-core=0"]
        # In the node's own process namespace: its /proc/net, where kube-proxy looks for IPv6, is empty for others.
        self.proxy = self.spawn("proxy", words + ([f"--cluster-cidr={cidr}"] if cidr else []))

    @contextlib.contextmanager
    def without_kubelet(self) -> Iterator[None]:
        """It hangs while the block runs."""
        assert self.kubelet is not None
        os.kill(child_of(self.kubelet.pid), signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.kubelet.pid, signal.SIGCONT)  # nsenter, which stopped with its child and wakes it

    # -- power and wire --

    def wire(self, up: bool) -> None:
        """Its cable to the switch."""
        ip("-n", SWITCH, "link", "set", self.netns, "up" if up else "down")

    def power_off(self) -> None:
        """Nothing of it is left but its disk. Not for node-1, whose network has the control plane."""
        assert self.holder is not None
        self.wire(False)
        os.kill(self.pid, signal.SIGKILL)  # and with it every process of its pid namespace
        self.holder.wait()
        wait_for(f"the end of {self.name}", lambda: not keeper.start_time(self.pid), 30, 0.05)
        keeper.remove_cgroups(self.netns)  # else the next kubelet looks 3 s for each container that was in them
        ip("-n", SWITCH, "link", "del", self.netns)  # the kernel takes its time with a namespace
        ip("netns", "del", self.netns)
        self.proxy = None

    def power_on(self, *, new_disk: bool, more_images: Sequence[Path] = ()) -> None:
        """Registers again; ``new_disk``: as another machine, or one that was imaged anew, under the same name.
        ``more_images``: what it could pull where there is a registry."""
        (self.folder / "ready").unlink(missing_ok=True)
        shutil.rmtree(self.folder / "private" / ("" if new_disk else "run"), ignore_errors=True)
        self.make_network()
        self.boot([*self.cluster.archives, *more_images])
        self.start_kubelet()
        self.start_proxy(*self.cluster.proxied)

    def environment(self) -> dict[str, str]:
        before = f"{NEWER}:" if self.newer else ""
        return {**os.environ, "PATH": f"{before}/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}

    def inside(self, command: Sequence[str]) -> list[str]:
        return ["nsenter", "-t", str(self.pid), "--mount", "--uts", "--net", "--pid", "--wd=/", *command]

    def spawn(self, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        return self.cluster.spawn(f"{self.name}/{name}", self.inside(command), self.environment())

    def run(self, *command: str, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return run(*self.inside(command), check=check, timeout=timeout, env=self.environment())


class Cluster:
    """Boots by ``boot``, goes by ``close`` or with the process."""

    def __init__(self, nodes: int = 3, say: Callable[[str], None] = lambda line: print(line, flush=True),
                 ranges: control.Ranges = control.KUBEADM, names: bool = False) -> None:
        """``names``: pods find Services by their names."""
        self.say = say
        self.names = names
        self.ranges = ranges
        self._lock = self._take_lock()
        for left in Path(tempfile.gettempdir()).glob("weave-router-k8s-*"):
            keeper.take_down(left)
        self.folder = Path(tempfile.mkdtemp(prefix="weave-router-k8s-"))
        (self.folder / "pids").touch()
        (self.folder / "log").mkdir()
        self._keeper = subprocess.Popen(
            [sys.executable, "-P", str(HERE / "keeper.py"), str(self.folder)], stdin=subprocess.PIPE,
            start_new_session=True, pass_fds=[self._lock.fileno()],
        )  # fmt: skip
        self._children: list[subprocess.Popen[bytes]] = []
        self._control: dict[str, subprocess.Popen[bytes]] = {}
        self.control = self.folder / "control"
        self.archives: list[Path] = []
        self.proxied = ("", "")
        self.nodes = [Node(self, serial, newer=serial == nodes) for serial in range(1, nodes + 1)]

    def _take_lock(self) -> IO[str]:
        lock = open(LOCK, "w")  # noqa: SIM115 -- held as long as the cluster, also by the keeper
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.say("another cluster runs on this machine: waiting for its end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        return lock

    # -- life ----------------------------------------------------------------------------------------------------------

    def boot(self, mode: str = "nftables", cidr: str = CLUSTER_V4, more_images: Sequence[Path] = ()) -> "Cluster":
        """Returns when every Node is registered. Ready they are when a CNI configuration is there."""
        began = time.monotonic()
        programs()
        self.say(f"programs are there ({time.monotonic() - began:.0f} s)")
        archives = self.archives = [
            images.pause(self.folder), images.busybox(self.folder), images.router(), *more_images]
        self.say(f"images are there ({time.monotonic() - began:.0f} s)")
        began = time.monotonic()
        for family, serial in itertools.product(("ipv4", "ipv6"), (3, 2, 1)):
            path = Path(f"/proc/sys/net/{family}/neigh/default/gc_thresh{serial}")
            keeper.set_sysctl(self.folder, path, NEIGHBOURS >> (3 - serial))
        ip("netns", "add", SWITCH)
        ip("-n", SWITCH, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        ip("-n", SWITCH, "link", "set", "br0", "up")
        ip("-n", SWITCH, "addr", "add", "192.168.77.1/24", "dev", "br0")
        ip("-n", SWITCH, "addr", "add", "fd77::1/64", "dev", "br0", "nodad")
        for node in self.nodes:
            node.make_network()
        control.prepare(self.control, {node.name: node.folder for node in self.nodes}, self.nodes[0].v4, self.ranges)
        for name in control.PROGRAMS:
            self._start_control(name)
        with ThreadPoolExecutor() as threads:
            booting = [threads.submit(node.boot, archives) for node in self.nodes]
            wait_for("API server", self.api_answers, 90)
            self.say(f"control plane is ready ({time.monotonic() - began:.1f} s)")
            for boot in booting:
                boot.result()
        if self.names:
            server = [sys.executable, "-P", str(HERE / "name_server.py"), self.nodes[0].v4, *self.kubectl_words()]
            self.spawn("names", ["nsenter", f"--net=/run/netns/{self.nodes[0].netns}", *server])
            self.apply(*name_server.objects(self.ranges.name_server, self.nodes[0].v4))
        self.proxied = mode, cidr
        for node in self.nodes:
            node.start_kubelet()
            node.start_proxy(mode, cidr)
        wait_for("Nodes", lambda: len(self.get("nodes")) == len(self.nodes), 60)
        self.say(f"{len(self.nodes)} nodes are registered ({time.monotonic() - began:.1f} s)")
        return self

    def _start_control(self, name: str) -> None:
        command = control.commands(self.control, PROGRAMS, self.nodes[0].v4, self.ranges)[name]
        self._control[name] = self.spawn(name, ["nsenter", f"--net=/run/netns/{self.nodes[0].netns}", *command])

    def api_answers(self) -> bool:
        return self.kubectl("get", "--raw", "/readyz", check=False).stdout == "ok"

    @contextlib.contextmanager
    def without_api(self) -> Iterator[None]:
        """The API server is killed, and back, on the same etcd, when the block ends."""
        self._control["apiserver"].kill()
        self._control["apiserver"].wait()
        try:
            yield
        finally:
            self._start_control("apiserver")
            wait_for("API server", self.api_answers, 60)

    def renew_clients(self) -> None:
        """Another scheduler and controller manager, and another kubelet and kube-proxy on each node: watches of theirs
        wait up to a minute after the API server was away, those of new ones do not."""
        for name in ("controller-manager", "scheduler"):
            self._control[name].kill()
            self._control[name].wait()
            self._start_control(name)
        for node in self.nodes:
            node.restart_kubelet()
            node.start_proxy(*self.proxied)

    def close(self) -> None:
        """The keeper does it; it ends when nothing is left."""
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        self._keeper.wait()
        for child in self._children:
            child.wait()
        self._lock.close()

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def spawn(self, name: str, command: Sequence[str], env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Written down before anything else can fail; its log is FOLDER/log/NAME."""
        log = self.folder / "log" / f"{name.replace('/', '-')}.log"
        with open(log, "ab") as output:
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env,
                                     start_new_session=True)
        with open(self.folder / "pids", "a") as file:
            file.write(f"{child.pid} {keeper.start_time(child.pid)}\n")
        self._children.append(child)
        return child

    # -- use -----------------------------------------------------------------------------------------------------------

    def kubectl_words(self, *words: str) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self.nodes[0].netns}", f"{PROGRAMS}/kubectl",
                f"--kubeconfig={self.control}/admin.kubeconfig", *words]

    def kubectl(self, *words: str, text: str | None = None, check: bool = True,
                timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return run(*self.kubectl_words(*words), text=text, check=check, timeout=timeout)

    def get(self, *words: str) -> list[dict[str, Any]]:
        done = self.kubectl("get", *words, "-o", "json", check=False)
        return json.loads(done.stdout)["items"] if done.returncode == 0 else []

    def apply(self, *objects: dict[str, Any]) -> None:
        self.kubectl("apply", "-f", "-", text=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    @contextlib.contextmanager
    def objects(self, *objects: dict[str, Any], grace: int = 0) -> Iterator[None]:
        """They exist while the block runs."""
        self.apply(*objects)
        try:
            yield
        finally:
            text = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
            self.kubectl("delete", "--ignore-not-found", f"--grace-period={grace}", *(["--force"] if not grace else []),
                         "-f", "-", text=text, check=False)


def end(entered: subprocess.Popen[bytes] | None) -> None:
    """SIGKILL of the program that was started by nsenter, which ends after it."""
    assert entered is not None
    os.kill(wait_for("the program's process", lambda: child_of(entered.pid), 5, 0.05), signal.SIGKILL)
    entered.wait()


def child_of(pid: int) -> int:
    try:
        words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    return int(words[0]) if words else 0


def programs() -> None:
    """Its own progress goes to the terminal: the first time takes minutes."""
    done = subprocess.run([HERE / "programs" / "build"], stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise ClusterError("the programs of the cluster could not be built")


def ip(*words: str) -> None:
    run("ip", *words)


def run(*command: str, text: str | None = None, check: bool = True, timeout: float = 120,
        env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    source = {"stdin": subprocess.DEVNULL} if text is None else {"input": text}
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=env, start_new_session=True,
                          check=False, **source)  # type: ignore[call-overload]
    if check and done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise ClusterError(f"{' '.join(command)}: exit status {done.returncode}: {said}")
    return done
