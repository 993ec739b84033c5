"""``make check-ipam``: search the greater worlds, print states and how often each transition fired.

    python -m model.search                      all of worlds.GREAT, one after another
    python -m model.search NAME...              these (or mutants, by clause, with --mutants)
    --minutes N --mebibytes N --states N        per world; what does not end says how far it came
    --total-minutes N                           worlds begun after that get nothing and say so
    Minutes and seconds are of the CPU: the search steps aside for everything else (nice 19).
    --results FILE                              JSON, one object per world; worlds not searched keep theirs

Run with ``PYTHONPATH=tests`` from the root of the project. Results name the core that was searched by its hash.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from weave_router.ipam import ownership

from .checker import Config, Result, search
from .mutants import FILES, MUTANTS, load
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
        searched = os.times().children_user + os.times().children_system
        limits["seconds_max"] = min(options.minutes * 60.0, max(0.0, options.total_minutes * 60 - searched))
        # A process of its own for each, so that memory is this world's.
        child = os.fork()
        if not child:
            result = search(world, **limits)
            print(f"{result}\n", flush=True)
            if options.results is not None:
                _note(options.results, world, result)
            os._exit(result.violation is not None)
        failed += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0
    return min(failed, 1)


def _note(path: Path, world: Config, result: Result) -> None:
    """Replace this world's entry."""
    entries: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    usual = asdict(Config(""))
    entries[world.name] = {
        "world": {k: _plain(v) for k, v in asdict(world).items() if v != usual[k] and k != "name"},
        "result": result.violation or ("exhaustive, none" if result.complete else "stopped, none so far"),
        "states": result.states,
        "depth": result.depth,
        "seconds": round(result.seconds, 1),
        "mebibytes": result.mebibytes,
        "fired": dict(sorted(result.fired.items())),
        "trace": result.trace,
        "core": core_hash(),
    }
    path.write_text(json.dumps(entries, indent=1, sort_keys=True) + "\n")


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, frozenset) else value


def core_hash() -> str:
    """Of the files that hold the rules and their values."""
    folder = Path(ownership.__file__).parent
    digest = hashlib.sha256()
    for name in (*FILES, "values"):
        digest.update((folder / f"{name}.py").read_bytes())
    return digest.hexdigest()[:16]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--mutants", action="store_true")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--total-minutes", type=float, default=115.0)
    parser.add_argument("--mebibytes", type=int, default=8192)
    parser.add_argument("--states", type=int, default=10**9)
    parser.add_argument("--results", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
