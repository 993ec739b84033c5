"""CNI: ADD and DEL of one pod and of 200, against the reference `bridge` and `host-local` of Debian, in one run.

    pods (network namespaces) -- [host: router, bridge "weave", and the reference's bridge "ref0"]

Every pod's ADD and DEL is timed by the clock around the process, as a runtime waits for it: started by a thread in the
host's network namespace. The two take turns, each with 40 pods one at a time and 200 pods, 20 at a time; what one left
to the kernel is over before the other begins; a reference pod is two executables, as the specification has it: `bridge`
starts `host-local`. A figure is the median over the rounds. Ratios go into ``results/latest.json`` as ``cni_add.p50``
and so on. Exit status 1 where a bar is missed. Needs root and `.ci/packages clients`.

    cni.py [--rounds N] [--pods N]
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

import _results  # noqa: E402
from lab import Host, Lab, LabError, Router  # noqa: E402
from lab.namespace import run  # noqa: E402
from lab.plugin import EXECUTABLE  # noqa: E402
from lab.router import wait_for  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

DEBIAN = Path("/usr/lib/cni")
TOGETHER = 20
CLONE_NEWNET = 0x40000000
SINGLES = 40  # pods a round, one at a time
BARS = {
    "cni_add.p50": 0.7, "cni_add.p99": 1.0, "cni_del.p50": 0.3, "cni_add.200_pods": 0.7, "cni_del.200_pods": 0.15,
    "cni_shim.ms": 1.5,
}  # fmt: skip
"""Most; the last in milliseconds, the others of the reference's."""


class Plugin:
    """One of the two, as a runtime starts it."""

    def __init__(self, name: str, program: Path, config: dict[str, object], boot_id: str) -> None:
        self.name = name
        self._program = program
        self._input = json.dumps(config).encode()
        self._variables = {"PATH": os.environ["PATH"], "CNI_PATH": str(DEBIAN), "CNI_IFNAME": "eth0",
                           "WEAVE_ROUTER_DEBUG_BOOT_ID": boot_id}  # fmt: skip

    def call(self, verb: str, netns: str) -> float:
        """Milliseconds. Called in the host's network namespace."""
        env = {**self._variables, "CNI_COMMAND": verb, "CNI_CONTAINERID": netns, "CNI_NETNS": f"/run/netns/{netns}"}
        began = time.perf_counter()
        status, said = execute(self._program, self._input, env)
        took = (time.perf_counter() - began) * 1e3
        if status != 0:
            raise LabError(f"{self.name} {verb}: {said.decode()}")
        return took


def execute(program: Path, given: bytes, env: dict[str, str]) -> tuple[int, bytes]:
    """Its wait status, and what it wrote. subprocess.run takes longer than our DEL, and 20 threads share one lock."""
    (stdin, to), (output, stdout) = os.pipe(), os.pipe()
    try:
        os.write(to, given)  # a pipe holds 64 KB
        os.close(to)
        ends = [(os.POSIX_SPAWN_DUP2, stdin, 0), (os.POSIX_SPAWN_DUP2, stdout, 1), (os.POSIX_SPAWN_DUP2, stdout, 2)]
        pid = os.posix_spawn(program, [program], env, file_actions=ends)
    finally:
        os.close(stdin)
        os.close(stdout)
    said = b"".join(iter(lambda: os.read(output, 65536), b""))
    os.close(output)
    return os.waitpid(pid, 0)[1], said


def plugins(router: Router, data_dir: Path) -> tuple[Plugin, Plugin]:
    host = router.host
    ours: dict[str, object] = {
        "cniVersion": "1.0.0", "name": "weave", "type": EXECUTABLE.name,
        "socket": str(host.run_dir / "attach.sock"), "journal": str(host.state_dir / "cni-journal"),
    }  # fmt: skip
    reference: dict[str, object] = {
        "cniVersion": "1.0.0", "name": "ref", "type": "bridge", "bridge": "ref0", "isDefaultGateway": True,
        "ipam": {"type": "host-local", "dataDir": str(data_dir), "ranges": [[{"subnet": "172.20.0.0/16"}]]},
    }  # fmt: skip
    return (
        Plugin("weave-router", EXECUTABLE, ours, router.boot_id),
        Plugin("bridge + host-local", DEBIAN / "bridge", reference, router.boot_id),
    )


def workers(host: Host) -> ThreadPoolExecutor:
    """Threads that live in the host's network namespace, and so does what they start."""

    def enter() -> None:
        with open(host.path) as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET) != 0:
                raise LabError(f"cannot enter {host.path}: {os.strerror(ctypes.get_errno())}")

    return ThreadPoolExecutor(TOGETHER, initializer=enter)


@contextmanager
def pods(lab: Lab, host: Host, count: int) -> Iterator[list[str]]:
    """Names of fresh network namespaces; at the end the kernel has removed them and what they held."""
    names = [f"{lab.prefix}-p{number}" for number in range(count)]
    run(["ip", "-batch", "-"], text_input="".join(f"netns add {name}\n" for name in names))
    try:
        yield names
    finally:
        run(["ip", "-batch", "-"], text_input="".join(f"netns del {name}\n" for name in names))
        wait_for("ports to go", lambda: "veth" not in run(["ip", "-n", host.name, "-brief", "link"]).stdout)


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


# -- cases: each gives figures by name, in milliseconds ---------------------------------------------------------------

Figures = dict[str, float]


def singles(lab: Lab, host: Host, plugin: Plugin, pool: ThreadPoolExecutor) -> Figures:
    """One pod at a time, added and deleted."""
    taken: dict[str, list[float]] = {"ADD": [], "DEL": []}
    with pods(lab, host, SINGLES) as names:
        for netns, verb in itertools.product(names, taken):
            taken[verb].append(pool.submit(plugin.call, verb, netns).result())
    return {"add.p50": statistics.median(taken["ADD"]), "add.p99": percentile(taken["ADD"], 0.99),
            "del.p50": statistics.median(taken["DEL"])}  # fmt: skip


def together(lab: Lab, host: Host, plugin: Plugin, pool: ThreadPoolExecutor, count: int) -> Figures:
    """``count`` pods, 20 at a time: milliseconds until all are there, and until all are gone."""
    figures: Figures = {}
    with pods(lab, host, count) as names:
        for verb in ("ADD", "DEL"):
            began = time.perf_counter()
            list(pool.map(lambda netns, verb=verb: plugin.call(verb, netns), names))
            figures[f"{verb.lower()}.200_pods"] = (time.perf_counter() - began) * 1e3
    return figures


def shim_alone() -> float:
    """Milliseconds from starting the executable to its end, for VERSION, which it answers by itself."""
    taken = []
    quiet = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in (0, 1)]
    for _ in range(100):
        began = time.perf_counter()
        pid = os.posix_spawn(EXECUTABLE, [EXECUTABLE], {"CNI_COMMAND": "VERSION"}, file_actions=quiet)
        _, status = os.waitpid(pid, 0)
        taken.append((time.perf_counter() - began) * 1e3)
        if status:
            raise LabError(f"VERSION: exit status {status}")
    return statistics.median(taken)


# -- run and report ---------------------------------------------------------------------------------------------------


def measure(rounds: int, count: int, status: Callable[[str], object]) -> dict[str, dict[str, list[float]]]:
    """plugin -> figure -> one value a round."""
    samples: dict[str, dict[str, list[float]]] = {}

    def keep(name: str, figures: Figures) -> None:
        for figure, value in figures.items():
            samples.setdefault(name, {}).setdefault(figure, []).append(value)

    with Lab() as lab:
        router = lab.router(lab.host("h", lab.switch()))
        router.launch()
        both = plugins(router, lab.directory / "host-local")
        with workers(router.host) as pool:
            for number in range(rounds):
                status(f"round {number + 1} of {rounds}")
                for plugin in both if number % 2 == 0 else both[::-1]:
                    keep(plugin.name, singles(lab, router.host, plugin, pool))
                    keep(plugin.name, together(lab, router.host, plugin, pool, count))
                keep("weave-router", {"shim": shim_alone()})
        left = router.status()["ipam"]["attachments"]
        if left:
            raise LabError(f"{len(left)} attachments left")
    return samples


def main() -> int:
    parser = argparse.ArgumentParser(description="CNI against the reference plugins.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pods", type=int, default=200)
    options = parser.parse_args()
    console = Console() if sys.stdout.isatty() else Console(width=110)
    with console.status("cni") as shown:
        samples = measure(options.rounds, options.pods, lambda text: shown.update(f"cni, {text}"))
    ours, reference = ({figure: statistics.median(values) for figure, values in samples[name].items()}
                       for name in ("weave-router", "bridge + host-local"))
    ratios = {f"cni_{figure}": round(ours[figure] / reference[figure], 3) for figure in reference}
    figures = {**ratios, "cni_shim.ms": round(ours["shim"], 2)}
    table = Table("case", "weave-router, ms", "reference, ms", "ratio", "bar", "held", title="CNI")
    held = True
    for name, bar in BARS.items():
        figure = name.removeprefix("cni_")
        mine = ours["shim"] if name == "cni_shim.ms" else ours[figure]
        other = f"{reference[figure]:,.1f}" if figure in reference else ""
        ratio = "" if name == "cni_shim.ms" else f"{ratios[name]:.2f}"
        well = figures[name] <= bar
        held = held and well
        table.add_row(name, f"{mine:,.1f}", other, ratio, f"<= {bar}", "yes" if well else "NO")
    console.print(table)
    _results.merge("cni", {"rounds": options.rounds, "pods": options.pods, "singles": SINGLES, "milliseconds": samples},
                   figures)
    return 0 if held else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as error:
        sys.exit(f"cni: {error}")
