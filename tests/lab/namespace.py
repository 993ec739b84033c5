"""One network namespace: made, entered, emptied, removed; and the sweep of what a killed lab left.

Names are ``wrlab-<pid>-<serial>-<label>``, so that labs never meet and leftovers of dead processes are known by the
pid. Knows nothing of hosts or wires. Called by every other file of the lab.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import IO, Final

PREFIX: Final = "wrlab"
NETNS_DIR: Final = Path("/run/netns")
NAME_PATTERN: Final = re.compile(rf"^{PREFIX}-(\d+)-\d+")
KEEP_MARK: Final = "keep"
COMMAND_TIMEOUT: Final = 120.0


class Nic(Enum):
    """What the card at the end of a wire does; the value is ethtool's words for a veth."""

    OFFLOADS = ""
    """Superframes cross whole."""
    SEGMENTED = "tso off gso off tx-udp-segmentation off gro on"
    """Frames of wire size, which the receiver merges: a card without offloads."""
    BARE = "tx off sg off tso off gso off gro off tx-udp-segmentation off"
    """Frames of wire size with finished checksums, one by one."""


class LabError(Exception):
    """A command of the lab failed; the text holds the command and what it said."""


def run(
    argv: Sequence[str],
    *,
    text_input: str | None = None,
    check: bool = True,
    timeout: float = COMMAND_TIMEOUT,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end in a session of its own, so that Ctrl-C reaches the lab and not its tools."""
    done = subprocess.run(
        argv,
        input=text_input,
        stdin=subprocess.DEVNULL if text_input is None else None,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        env=environment(env),
        start_new_session=True,
    )
    if check and done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise LabError(f"{' '.join(argv)}: exit status {done.returncode}: {said}\n{text_input or ''}".rstrip())
    return done


def environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    """The caller's, without the product's own variables: what a router is told, the lab says."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WEAVE_ROUTER_")}
    return {**kept, **(extra or {})}


def kill_process(process: subprocess.Popen[str]) -> None:
    """SIGKILL, reap, and close the pipes: an open pipe would be a ResourceWarning."""
    if process.poll() is None:
        process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with suppress(OSError):
                stream.close()


class Namespace:
    """A named network namespace with loopback up and without bridge netfilter."""

    def __init__(self, name: str, label: str) -> None:
        self.name = name
        self.label = label

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    @property
    def path(self) -> Path:
        return NETNS_DIR / self.name

    def create(self) -> None:
        run(["ip", "netns", "add", self.name])
        self.ip("link set lo up")
        self.bridge_netfilter(False)

    def bridge_netfilter(self, on: bool) -> None:
        """New namespaces may come with bridge netfilter on, which would hide what a bridge alone does."""
        if not Path("/proc/sys/net/bridge").exists():
            return
        self.sysctl({f"net.bridge.bridge-nf-call-{table}tables": int(on) for table in ("ip", "ip6", "arp")})

    def argv(self, argv: Sequence[str]) -> list[str]:
        return ["ip", "netns", "exec", self.name, *argv]

    def run(
        self,
        argv: Sequence[str],
        *,
        text_input: str | None = None,
        check: bool = True,
        timeout: float = COMMAND_TIMEOUT,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        return run(self.argv(argv), text_input=text_input, check=check, timeout=timeout, env=env)

    def popen(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, output: IO[str] | None = None
    ) -> subprocess.Popen[str]:
        """Start a program here; ``ip netns exec`` execs, so the pid is the program's. ``output`` takes both streams."""
        return subprocess.Popen(
            self.argv(argv),
            stdin=subprocess.PIPE,
            stdout=output or subprocess.PIPE,
            stderr=subprocess.STDOUT if output else subprocess.PIPE,
            text=True,
            env=environment(env),
            start_new_session=True,
        )

    def ip(self, *lines: str) -> None:
        """One ``ip -batch`` for all lines: a process costs more than what it does."""
        run(["ip", "-n", self.name, "-batch", "-"], text_input="\n".join(lines) + "\n")

    def nft(self, text: str) -> None:
        self.run(["nft", "-f", "-"], text_input=text)

    def sysctl(self, values: Mapping[str, int | str]) -> None:
        self.run(["sysctl", "-qw", *(f"{key}={value}" for key, value in values.items())])

    def set_nic(self, interface: str, nic: Nic) -> None:
        """Make a new veth end behave like this card."""
        if nic.value:
            self.run(["ethtool", "-K", interface, *nic.value.split()])

    def pids(self) -> list[int]:
        listed = run(["ip", "netns", "pids", self.name], check=False)
        return [int(word) for word in listed.stdout.split()]

    def delete(self) -> None:
        """Kill whatever still runs inside and remove the name. Never raises: teardown must reach the next one."""
        delete_namespace(self.name)


def delete_namespace(name: str) -> None:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        pids = [int(word) for word in run(["ip", "netns", "pids", name], check=False).stdout.split()]
        if not pids:
            break
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    run(["ip", "netns", "delete", name], check=False)


def is_leftover(name: str, kept: bool) -> bool:
    """Whether the process that the name carries is gone, and nobody asked to keep its lab (unless ``kept``)."""
    matched = NAME_PATTERN.match(name)
    if matched is None or Path(f"/proc/{matched[1]}").exists():
        return False
    return kept or not (temporary_directory() / matched[0] / KEEP_MARK).exists()


def temporary_directory() -> Path:
    return Path(tempfile.gettempdir())


def leftovers(directory: Path, kept: bool) -> list[str]:
    if not directory.exists():
        return []
    return [entry.name for entry in directory.iterdir() if is_leftover(entry.name, kept)]


def sweep(*, kept: bool = False) -> list[str]:
    """Remove the namespaces and folders of labs whose process is gone; returns the namespaces' names."""
    names = leftovers(NETNS_DIR, kept)
    for name in names:
        delete_namespace(name)
    for name in leftovers(temporary_directory(), kept):
        shutil.rmtree(temporary_directory() / name, ignore_errors=True)
    return names
