"""The lab itself: owns every namespace, process and file of one experiment, and takes all of it away at the end.

At the end means: the block ends, an exception leaves it, Ctrl-C, SIGTERM or SIGHUP arrives. After SIGKILL the next
lab sweeps. Called by tests, demo and benchmarks; decides nothing about what is tested.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final, TypeVar

from .capture import Capture
from .namespace import KEEP_MARK, PREFIX, LabError, Namespace, Nic, sweep
from .network import BOTH, Cable, Gateway, Host, Nat, Node, Pod, Segment, Switch
from .router import Router, new_token
from .traffic import Traffic
from .wire import Faults

T = TypeVar("T")
END_SIGNALS: Final = (signal.SIGTERM, signal.SIGHUP)
_serials = itertools.count(1)


def _leave(number: int, frame: FrameType | None) -> None:
    """A signal becomes an exception, so that every ``with`` on the way out does its work."""
    raise SystemExit(128 + number)


def free_prefix() -> str:
    """Pids come round: a kept lab may carry ours."""
    while True:
        prefix = f"{PREFIX}-{os.getpid()}-{next(_serials)}"
        if not (Path(tempfile.gettempdir()) / prefix).exists():
            return prefix


class Lab:
    """``with Lab() as lab:``. ``keep``: on a normal end leave it all up (the demo's KEEP=1)."""

    def __init__(self, *, keep: bool = False) -> None:
        self.keep = keep
        self.prefix = free_prefix()
        self.directory = Path(tempfile.gettempdir()) / self.prefix
        self.traffic = Traffic()
        self.hosts: list[Host] = []
        self.routers: list[Router] = []
        self._namespaces: list[Namespace] = []
        self._segments: list[Segment] = []
        self._captures: list[Capture] = []
        self._handlers: dict[signal.Signals, Any] = {}
        self._token: str | None = None

    # -- begin and end ----------------------------------------------------------------------------------------------

    def __enter__(self) -> Lab:
        if os.geteuid() != 0:
            raise LabError("the lab makes network namespaces: run it as root")
        sweep()
        self.directory.mkdir(mode=0o700)
        self._catch_signals()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and issubclass(kind, Exception):
            self.print_logs()
        if self.keep and kind is None:
            (self.directory / KEEP_MARK).touch()
        else:
            self.close()

    def _catch_signals(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, _leave) for number in END_SIGNALS}

    def close(self) -> None:
        """Undo everything. Signals are ignored meanwhile: a second Ctrl-C must not leave half of it."""
        in_main = threading.current_thread() is threading.main_thread()
        interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main else None
        for number in self._handlers:
            signal.signal(number, signal.SIG_IGN)
        try:
            self._take_down()
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            if in_main:
                signal.signal(signal.SIGINT, interrupt)

    def _take_down(self) -> None:
        self.traffic.close()
        closers: list[Callable[[], object]] = [one.stop for one in self._captures]
        closers += [router.close for router in self.routers]
        closers += [wire.stop for segment in self._segments for wire in segment.wires]
        for close in closers:
            with suppress(Exception):
                close()
        for namespace in reversed(self._namespaces):
            namespace.delete()
        shutil.rmtree(self.directory, ignore_errors=True)
        self._namespaces.clear()

    def print_logs(self) -> None:
        """The end of every router's log, for a failure that has to be understood from afar."""
        for router in self.routers:
            print(f"---- log of {router.name}, last lines\n{router.log_tail()}", file=sys.stderr)

    # -- building ---------------------------------------------------------------------------------------------------

    def _name(self, label: str) -> str:
        return f"{self.prefix}-{label}"

    def _create(self, namespace: Namespace) -> None:
        self._namespaces.append(namespace)  # first: an interrupt in mid-creation still finds it
        namespace.create()

    def namespace(self, label: str) -> Namespace:
        made = Namespace(self._name(label), label)
        self._create(made)
        return made

    def switch(self, *, mtu: int = 1500, nic: Nic = Nic.OFFLOADS) -> Switch:
        index = len(self._segments) + 1
        made = Switch(self.namespace(f"switch{index}"), index, mtu=mtu, nic=nic)
        self._segments.append(made)
        return made

    def cable(self, *, mtu: int = 1500, nic: Nic = Nic.OFFLOADS) -> Cable:
        made = Cable(len(self._segments) + 1, mtu=mtu, nic=nic)
        self._segments.append(made)
        return made

    def host(
        self,
        label: str,
        segment: Segment,
        *,
        families: Sequence[str] = BOTH,
        faults: Faults | None = None,
        bridge_netfilter: bool = False,
    ) -> Host:
        made = Host(self._name(label), label, self.directory / label)
        self._create(made)
        made.join(segment, families=families, faults=faults)
        if bridge_netfilter:
            made.bridge_netfilter(True)
        self.hosts.append(made)
        return made

    def _node(self, made: Node) -> None:
        self._create(made)

    def gateway(self, label: str, *segments: Segment) -> Gateway:
        """A router between segments; hosts that join them afterwards have it as default route."""
        made = Gateway(self._name(label), label, self.directory / label)
        self._create(made)
        for segment in segments:
            made.join_as_gateway(segment)
        return made

    def nat(self, label: str, outside: Segment, inside: Segment, kind: str) -> Nat:
        """A NAT of one of ``Nat.KINDS``: an ordinary member outside, the gateway inside."""
        made = Nat(self._name(label), label, self.directory / label)
        self._create(made)
        made.join(outside)
        made.join_as_gateway(inside)
        made.translate(kind)
        return made

    def pod(self, host: Host, label: str) -> Pod:
        made = Pod(self._name(f"{host.label}-{label}"), f"{host.label}/{label}", host)
        self._create(made)
        host.pods.append(made)
        return made

    def token(self) -> str:
        """The lab's cluster token, made by the product once."""
        if self._token is None:
            self._token = new_token()
        return self._token

    def router(self, host: Host, **options: Any) -> Router:
        """A router for this host, not yet launched: see ``Router``."""
        made = Router(host, **{"token": None, **options})
        made.write_token(options.get("token") or self.token())
        self.routers.append(made)
        return made

    def capture(self, namespace: Namespace, interface: str, expression: str = "") -> Capture:
        path = self.directory / f"{len(self._captures) + 1}-{namespace.label.replace('/', '-')}-{interface}.pcap"
        made = Capture(namespace, interface, path, expression)
        self._captures.append(made)
        return made

    def parallel(self, *tasks: Callable[[], T]) -> list[T]:
        """Run them side by side in threads, results in order; the first error is raised when all have ended."""
        with ThreadPoolExecutor(max_workers=max(1, len(tasks))) as pool:
            return [future.result() for future in [pool.submit(task) for task in tasks]]
