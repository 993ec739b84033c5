"""A life that is ended at its n-th change of a file, for every n, by a kill and by a loss of power.

What store_crash_child.py and ipam_crash_child.py have in common: the fork under crash_shim.so, and the loop over
all deaths. Knows no store; the life says what it had acknowledged, the caller judges what is left.
"""

import ctypes
import os
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path

EXIT_CRASHED = 86
Life = Callable[[Path, Callable[[bytes], object]], object]
"""Lives in a directory; hands each acknowledgement to the function it is given."""
Judge = Callable[[Path, bytes], object]
"""(what is left, all acknowledgements) -> what is wrong with it, something false for nothing."""


def die_at(nth: int, power: bool, state: Path, life: Life) -> tuple[bytes, bool]:
    """One life in a child: (its acknowledgements, whether it died)."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        ctypes.CDLL(None).crash_arm(os.fsencode(state), ctypes.c_long(nth), ctypes.c_int(power))
        try:
            life(state, lambda said: os.write(writer, said))
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        said = file.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in (0, EXIT_CRASHED):
        raise SystemExit(f"the life failed with status {status} at change {nth}")
    return said, status == EXIT_CRASHED


def every_death(scratch: Path, life: Life, judge: Judge, powers: tuple[bool, ...] = (False, True)) -> dict[str, object]:
    """How many deaths, and the first thing that was wrong. ``powers``: killed, without power, or both."""
    deaths = 0
    for nth in range(1, 10_000):
        died = False
        for power in powers:
            state = scratch / f"{nth}-{power}"
            said, crashed = die_at(nth, power, state, life)
            for shared in state.glob("*-shm"):  # memory does not outlive the process here: nobody else has it mapped
                shared.unlink()
            wrong = judge(state, said)
            shutil.rmtree(state, ignore_errors=True)
            if wrong:
                return {"deaths": deaths, "wrong": f"change {nth}, power {power}, {said!r} acknowledged: {wrong}"}
            died |= crashed
            deaths += crashed
        if not died:
            return {"deaths": deaths, "wrong": None}
    raise SystemExit("the life does not end")
