"""weave-router-init, process 1 of the container: restarts, hands signals on, reaps. Real processes, no router."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import weave_router

PROGRAM = Path(weave_router.__file__).parent / "_bin" / "weave-router-init"


@contextmanager
def init(script: str, *wrap: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([*wrap, PROGRAM, "sh", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True)
    try:
        yield process
    finally:
        # The script too, which holds the pipes: init hands SIGTERM on, unshare's --kill-child follows its own end.
        process.send_signal(signal.SIGKILL if wrap else signal.SIGTERM)
        process.communicate()


def lines(process: subprocess.Popen[str], count: int) -> list[str]:
    assert process.stdout is not None
    return [process.stdout.readline().strip() for _ in range(count)]


def test_the_dead_come_back_later_and_later() -> None:
    with init("echo born; exit 3") as process:
        assert lines(process, 4) == ["born"] * 4
        assert process.stderr is not None
        said = [process.stderr.readline() for _ in range(4)]
    waits = [float(re.search(r"again in ([0-9.]+) s", line)[1]) for line in said]  # type: ignore[index]
    assert waits == [0, 0.5, 1, 2]
    assert all("status 3" in line for line in said)


def test_a_killed_one_is_named_by_its_signal() -> None:
    with init("kill -KILL $$") as process:
        assert process.stderr is not None
        assert "status 137" in process.stderr.readline()


def test_sigterm_goes_through_and_ends_both() -> None:
    with init("trap 'echo told; exit 7' TERM; echo born; while :; do sleep 0.05; done") as process:
        assert lines(process, 1) == ["born"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 7
        assert lines(process, 1) == ["told"]


def test_sigterm_while_nobody_runs_ends_at_once() -> None:
    with init("echo $$; exit 3") as process:
        lines(process, 4)  # the next one would come after 2 s
        assert process.stderr is not None
        for _ in range(4):
            process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(1) == 3


def test_sighup_is_no_end() -> None:
    with init("trap 'echo told' HUP; echo born; while :; do sleep 0.05; done") as process:
        lines(process, 1)
        process.send_signal(signal.SIGHUP)
        assert lines(process, 1) == ["told"]
        assert process.poll() is None


def test_orphans_are_reaped() -> None:
    """As process 1 of its own namespace it gets them; what it does not reap stays as a zombie."""
    script = "(sleep 0.01 & echo $!) ; echo end; while :; do sleep 0.05; done"
    with init(script, "unshare", "--pid", "--fork", "--kill-child", "--mount-proc") as process:
        orphan = lines(process, 2)[0]
        inner = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0]
        proc = Path(f"/proc/{inner}/root/proc/{orphan}")
        while proc.exists():  # the test's own time-out ends this
            os.sched_yield()


def test_nothing_to_start() -> None:
    done = subprocess.run([PROGRAM], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("usage:")
