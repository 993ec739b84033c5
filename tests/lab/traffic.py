"""Python's hand on ``traffic.c``: start a receiver, run a sender, get both results.

A receiver is bound when its ``Task`` is returned, so nothing needs to sleep. Knows namespaces, nothing of routers.
Called by tests, demo and benchmarks, by ``lab.traffic``.
"""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Callable
from typing import Any, Final

from .namespace import LabError, Namespace, kill_process
from .tools import tool

Result = dict[str, Any]
FIRST_PORT: Final = 7000


def arguments(mode: str, options: dict[str, object]) -> list[str]:
    pairs = ((f"--{key.replace('_', '-')}", str(value)) for key, value in options.items() if value is not None)
    return [str(tool("traffic")), mode, *itertools.chain.from_iterable(pairs)]


class Task:
    """One run of the generator."""

    def __init__(self, namespace: Namespace, mode: str, options: dict[str, object]) -> None:
        self.what = f"traffic {mode} in {namespace.name}"
        self.port = options.get("port")
        self.process = namespace.popen(arguments(mode, options))

    def wait_ready(self) -> None:
        assert self.process.stdout is not None and self.process.stderr is not None
        if not self.process.stdout.readline():
            raise LabError(f"{self.what}: {self.process.stderr.read()}")

    def result(self, timeout: float = 60) -> Result:
        """Wait for the end; the JSON object it printed."""
        try:
            out, err = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise LabError(f"{self.what}: no end after {timeout} s") from None
        finally:
            self.kill()
        if self.process.returncode != 0:
            raise LabError(f"{self.what}: {err.strip()}")
        result: Result = json.loads(out.strip().splitlines()[-1])
        return result

    def stop(self, timeout: float = 10) -> Result:
        """Tell it to end now and take its result."""
        self.process.terminate()
        return self.result(timeout)

    def kill(self) -> None:
        kill_process(self.process)


class Traffic:
    """The generator for one lab; hands out ports so that runs side by side do not meet."""

    def __init__(self) -> None:
        self._ports = itertools.count(FIRST_PORT)
        self.tasks: list[Task] = []

    def start(self, namespace: Namespace, mode: str, **options: object) -> Task:
        task = Task(namespace, mode, options)
        self.tasks = [one for one in self.tasks if one.process.poll() is None] + [task]
        return task

    def listen(self, namespace: Namespace, mode: str, **options: object) -> Task:
        task = self.start(namespace, mode, **{"port": next(self._ports), **options})
        task.wait_ready()
        return task

    def tcp(
        self, source: Namespace, sink: Namespace, to: str, *, timeout: float = 60, **options: object
    ) -> Callable[[], Result]:
        """Start a stream of ``bytes`` or ``seconds``, at ``rate`` Mbit/s; the returned function waits for both ends."""
        receiver = self.listen(sink, "tcp-recv")
        sender = self.start(source, "tcp-send", to=to, port=receiver.port, **options)

        def finish() -> Result:
            sent = sender.result(timeout)
            return {**receiver.result(timeout), "sent_bytes": sent["bytes"], "sent_hash": sent["hash"]}

        return finish

    def udp(
        self,
        source: Namespace,
        sink: Namespace,
        to: str,
        *,
        mode: str = "udp-send",
        timeout: float = 60,
        **options: object,
    ) -> Callable[[], Result]:
        """Start datagrams; the returned function waits for both ends. See traffic.c for the options of each mode."""
        receiver = self.listen(sink, "udp-recv")
        sender = self.start(source, mode, to=to, port=receiver.port, **options)

        def finish() -> Result:
            sent = sender.result(timeout)
            got = receiver.result(timeout)
            return {**got, "sent": sent["sent"], "errors": sent["errors"], "lost": sent["sent"] - got["unique"]}

        return finish

    def stream(
        self, source: Namespace, sink: Namespace, to: str, *, timeout: float = 60, **options: object
    ) -> Callable[[], Result]:
        """Small and full-size datagrams in turn, one each ``interval`` ms (10), for ``seconds``."""
        return self.udp(source, sink, to, mode="stream-send", timeout=timeout, **options)

    def close(self) -> None:
        for task in self.tasks:
            task.kill()
