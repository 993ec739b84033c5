"""One router per TAP: locks between threads that stand for processes, in one and in two namespaces."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from weave_router.host import lock_driver
from weave_router.host.faults import Fault, HostError
from weave_router.limits import LOCK_RETRY_SECONDS

from .conftest import Netns

HOLDER = """
import sys
from pathlib import Path
from weave_router.host import lock_driver
lock = lock_driver.take(Path(sys.argv[1]), "weave-tap")
print("held", flush=True)
sys.stdin.read()
"""


def hold(host: Netns, run_dir: Path) -> subprocess.Popen[str]:
    command = ["ip", "netns", "exec", host.name, sys.executable, "-c", HOLDER, str(run_dir)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.close()
    process.wait(timeout=5)
    process.stdout.close()


@pytest.mark.parametrize("same_run_dir", [True, False])
def test_loser_says_who_holds_it(host: Netns, tmp_path: Path, same_run_dir: bool) -> None:
    other = tmp_path if same_run_dir else tmp_path / "other"
    other.mkdir(exist_ok=True)
    process = hold(host, tmp_path)
    with pytest.raises(HostError) as caught:
        host.call(lock_driver.take, other, "weave-tap")
    assert caught.value.fault is Fault.TAP_HELD
    assert f"held by pid {process.pid} (" in str(caught.value) and "lock_driver.take" in str(caught.value)
    host.call(lock_driver.take, other, "other-tap").release()  # another TAP is free
    end(process)
    host.call(lock_driver.take, other, "weave-tap").release()


def test_holder_in_another_namespace_is_known_by_the_file(
    host: Netns, make_netns: Callable[[], Netns], tmp_path: Path
) -> None:
    process = hold(host, tmp_path)
    with pytest.raises(HostError, match=f"held by pid {process.pid} "):
        make_netns().call(lock_driver.take, tmp_path, "weave-tap")
    end(process)


def test_killed_holder_holds_nothing(host: Netns, tmp_path: Path) -> None:
    process = hold(host, tmp_path)
    process.kill()
    end(process)
    lock = host.call(lock_driver.take, tmp_path, "weave-tap")
    lock.release()
    lock.release()


@pytest.mark.parametrize("same_namespace", [True, False])
def test_waiting_for_a_hand_over(
    host: Netns, make_netns: Callable[[], Netns], tmp_path: Path, same_namespace: bool
) -> None:
    process = hold(host, tmp_path)
    waiter = host if same_namespace else make_netns()
    ending = threading.Timer(3 * LOCK_RETRY_SECONDS, end, [process])
    ending.start()
    waiter.call(lock_driver.take, tmp_path, "weave-tap", wait=10).release()
    ending.join()


def test_waiting_ends(host: Netns, tmp_path: Path) -> None:
    process = hold(host, tmp_path)
    with pytest.raises(HostError) as caught:
        host.call(lock_driver.take, tmp_path, "weave-tap", wait=0.1)
    assert caught.value.fault is Fault.TAP_HELD
    end(process)


def test_run_dir_that_is_not_there(host: Netns, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(HostError) as caught:
        host.call(lock_driver.take, tmp_path / "none", "weave-tap")
    assert caught.value.fault is Fault.LOCK_FILE
    assert len(os.listdir("/proc/self/fd")) == before
