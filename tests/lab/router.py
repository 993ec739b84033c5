"""One router process in a host of the lab: launched, asked, killed, relaunched, as an operator would.

It drives the installed program (``WEAVE_ROUTER_BIN``, else ``.venv/bin/weave-router``) by its command line, and reads
status from its API. Each host has a boot id of its own, because all share the kernel's. Called by ``Lab.router``.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from .namespace import LabError, Namespace, kill_process, run
from .network import Host, Pod
from .tools import ROOT

LAUNCH_DEADLINE: Final = 20.0
STOP_DEADLINE: Final = 10.0
POLL_INTERVAL: Final = 0.01
LOG_TAIL_LINES: Final = 40
RANGE: Final = "10.32.0.0/12"


class RouterError(LabError):
    """The router did not do what it was told; the text ends with its last log lines."""


def program() -> str:
    path = os.environ.get("WEAVE_ROUTER_BIN", str(ROOT / ".venv" / "bin" / "weave-router"))
    if not os.access(path, os.X_OK):
        raise LabError(f"no program at {path}: run `make setup`, or say where it is by WEAVE_ROUTER_BIN")
    return path


def new_token() -> str:
    return run([program(), "token", "new"]).stdout.strip()


class Router:
    """One router. ``bridge_address`` is the host number it is given, empty: its own IPAM chooses; ``peers`` are the
    underlay addresses it lists."""

    def __init__(
        self,
        host: Host,
        *,
        bridge_address: str = "",
        token: str | None,
        peers: Sequence[str] = (),
        name: str | None = None,
        ipalloc_range: str = RANGE,
        flags: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.host = host
        self.name = name or host.label
        self.bridge_address = bridge_address
        self.peers = list(peers)
        self.ipalloc_range = ipalloc_range
        self.flags = list(flags)
        self.env = dict(env or {})
        self.boot_id = str(uuid.uuid4())
        self.process: subprocess.Popen[str] | None = None
        self.log_path = host.directory / "router.log"
        self.token_file = host.directory / "token"
        if token is not None:
            self.write_token(token)

    # -- what it is given -------------------------------------------------------------------------------------------

    def write_token(self, *lines: str) -> None:
        fresh = self.token_file.with_suffix(".new")
        fresh.touch(mode=0o600)
        fresh.write_text("\n".join(lines) + "\n")
        fresh.replace(self.token_file)

    def reboot_id(self) -> None:
        """From the next launch on the host counts as booted anew."""
        self.boot_id = str(uuid.uuid4())

    @property
    def environment(self) -> dict[str, str]:
        """What any command of the product needs in this host; also printed for people by the demo."""
        return {
            "WEAVE_ROUTER_STATE_DIR": str(self.host.state_dir),
            "WEAVE_ROUTER_RUN_DIR": str(self.host.run_dir),
            "WEAVE_ROUTER_TOKEN_FILE": str(self.token_file),
            "WEAVE_ROUTER_BIN_DIR": str(self.host.directory / "bin"),  # hosts share the machine's files
            "WEAVE_ROUTER_CONF_DIR": str(self.host.directory / "conf"),
            "WEAVE_ROUTER_DEBUG_BOOT_ID": self.boot_id,
            **self.env,
        }

    def launch_argv(self) -> list[str]:
        argv = [program(), "launch", "--name", self.name, "--state-dir", str(self.host.state_dir)]
        argv += ["--run-dir", str(self.host.run_dir), "--token-file", str(self.token_file)]
        argv += ["--ipalloc-range", self.ipalloc_range]
        argv += ["--bridge-address", self.bridge_address] if self.bridge_address else []
        return [*argv, *self.flags, *self.peers]

    # -- its life ---------------------------------------------------------------------------------------------------

    def launch(self, *, wait: bool = True) -> Router:
        if self.running:
            raise LabError(f"{self.name} runs already")
        if self.process is not None:
            kill_process(self.process)
        with self.log_path.open("a") as log:
            self.process = self.host.popen(self.launch_argv(), env=self.environment, output=log)
        if wait:
            self.wait_ready()
        return self

    relaunch = launch

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        if self.process is None:
            raise LabError(f"{self.name} was never launched")
        return self.process.pid

    def wait_ready(self, deadline: float = LAUNCH_DEADLINE) -> None:
        """Until the API gives its status. Asked directly: the program's ``status`` costs a Python start each time."""
        end = time.monotonic() + deadline
        while self.get("/status") is None:
            if not self.running:
                raise RouterError(f"{self.name} ended with status {self.exit_status} at launch\n{self.log_tail()}")
            if time.monotonic() > end:
                raise RouterError(f"{self.name} not ready after {deadline} s\n{self.log_tail()}")
            time.sleep(POLL_INTERVAL)

    @property
    def exit_status(self) -> int | None:
        return None if self.process is None else self.process.poll()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """kill -9, reaped: nothing of it runs when this returns."""
        if self.process is not None:
            kill_process(self.process)

    def stop(self) -> int:
        """SIGTERM; its exit status."""
        assert self.process is not None
        self.process.terminate()
        try:
            status = self.process.wait(STOP_DEADLINE)
        except subprocess.TimeoutExpired:
            raise RouterError(f"{self.name} still runs {STOP_DEADLINE} s after SIGTERM\n{self.log_tail()}") from None
        kill_process(self.process)
        return status

    def close(self) -> None:
        self.kill()

    # -- asking it --------------------------------------------------------------------------------------------------

    def cli(self, *words: str, check: bool = True, timeout: float = 30) -> subprocess.CompletedProcess[str]:
        done = self.host.run([program(), *words], env=self.environment, check=False, timeout=timeout)
        if check and done.returncode != 0:
            said = f"{done.stderr}{done.stdout}".strip()
            raise RouterError(
                f"{self.name}: {' '.join(words)}: exit status {done.returncode}: {said}\n{self.log_tail()}"
            )
        return done

    def get(self, path: str) -> Any:
        """What the API answers, as ``--json`` would print it; None while it does not."""
        connection = http.client.HTTPConnection("localhost", timeout=10)
        with socket.socket(socket.AF_UNIX) as link, suppress(OSError, http.client.HTTPException):
            link.settimeout(10)
            link.connect(str(self.host.run_dir / "api.sock"))
            connection.sock = link
            connection.request("GET", path, headers={"Accept": "application/json"})
            answer = connection.getresponse()
            body = answer.read()
            return json.loads(body) if answer.status == 200 else None
        return None

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] | None = self.get("/status")
        if answer is None:
            raise RouterError(f"{self.name} does not answer\n{self.log_tail()}")
        return answer

    def attach(self, pod: Pod, address: str = "", *flags: str) -> Pod:
        """``address`` with its prefix length, as ``attach`` takes it; empty: any. The pod learns what its interface was
        given."""
        self.cli("attach", *flags, str(pod.path), *([address] if address else []))
        learn_addresses(pod)
        return pod

    def detach(self, pod: Pod) -> None:
        self.cli("detach", str(pod.path))

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def log_tail(self, lines: int = LOG_TAIL_LINES) -> str:
        return "\n".join(self.log().splitlines()[-lines:])


def learn_addresses(pod: Pod, interface: str = "eth0") -> None:
    """Read the global addresses of the pod's interface back from the kernel: what is true, not what was asked."""
    for link in json.loads(run(["ip", "-n", pod.name, "-json", "address", "show", "dev", interface]).stdout):
        for entry in link["addr_info"]:
            if entry["scope"] == "global":
                setattr(pod, "v4" if entry["family"] == "inet" else "v6", entry["local"])


def wait_for(what: str, condition: Any, deadline: float = 15.0, interval: float = 0.05) -> None:
    """Poll until ``condition()`` is true; the error names what was waited for."""
    end = time.monotonic() + deadline
    while not condition():
        if time.monotonic() > end:
            raise RouterError(f"{what}: not within {deadline} s")
        time.sleep(interval)


def ping(
    source: Namespace, address: str, *, count: int = 1, wait: float = 1.0, interval: float = 0.05, size: int = 56
) -> bool:
    """Whether every one of ``count`` echoes came back."""
    argv = ["ping", "-n", "-q", "-c", str(count), "-i", str(interval), "-W", str(wait), "-s", str(size), address]
    done = source.run(argv, check=False)
    return done.returncode == 0 and " 0% packet loss" in done.stdout


def wait_ping(source: Namespace, address: str, deadline: float = 15.0) -> None:
    wait_for(f"ping from {source.label} to {address}", lambda: ping(source, address, wait=0.3), deadline)
