"""``make check-ipam``: search the greater worlds, print states and how often each transition fired.

    python -m model.search                      all of worlds.GREAT, one after another
    python -m model.search NAME...              these (or mutants, by clause, with --mutants)
    --minutes N --mebibytes N --states N        per world; what does not end says how far it came
    --results FILE                              append one line per world

Run with ``PYTHONPATH=tests`` from the root of the project.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from .checker import Result, search
from .mutants import MUTANTS, load
from .worlds import GREAT, TOGETHER


def main() -> int:
    options = _options()
    os.nice(19 - os.nice(0))
    failed = 0
    chosen = [w for w in (TOGETHER, *GREAT) if not options.names or w.name in options.names]
    limits = {
        "states_max": options.states,
        "seconds_max": options.minutes * 60.0,
        "mebibytes_max": options.mebibytes,
        "progress": lambda line: print(f"    {line}", flush=True),
    }
    if options.mutants:
        for mutant in MUTANTS:
            if not options.names or mutant.name in options.names:
                result = search(mutant.world, load(mutant), **limits)
                failed += result.violation is None
                print(f"{mutant.clause}\n{result}\n", flush=True)
        return min(failed, 1)
    for world in chosen:
        # A process of its own for each, so that memory is this world's.
        child = os.fork()
        if not child:
            result = search(world, **limits)
            print(f"{result}\n", flush=True)
            _append(options.results, result)
            os._exit(result.violation is not None)
        failed += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0
    return min(failed, 1)


def _append(path: Path | None, result: Result) -> None:
    if path is not None:
        with path.open("a") as file:
            file.write(str(result).splitlines()[0] + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--mutants", action="store_true")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--mebibytes", type=int, default=8192)
    parser.add_argument("--states", type=int, default=10**9)
    parser.add_argument("--results", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
