"""cnitool, the reference client of the CNI: built once by Go into a cache outside the tree, started in a machine.

Debian's containerd is older than STATUS and GC; cnitool is libcni 1.3 and has both. Called by tests of the CNI.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from .machine import EXECUTABLES, NETWORKS, Machine
from .namespace import LabError, run

MODULE: Final = "github.com/containernetworking/cni/cnitool"
VERSION: Final = "v1.3.0"


def cnitool() -> Path:
    """The program. LabError where it is not built yet and there is no Go."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = caches / "weave-router-tests" / f"cnitool-{VERSION}"
    program = cache / "cnitool"
    if not program.exists():
        go = shutil.which("go", path=f"{os.environ.get('PATH', '')}:/usr/local/go/bin:/usr/lib/go/bin")
        if go is None:
            raise LabError(f"no Go here to build cnitool with: put one on the PATH, or cnitool {VERSION} at {program}")
        run([go, "install", f"{MODULE}@{VERSION}"], env={"GOBIN": str(cache), "CGO_ENABLED": "0"}, timeout=600)
    return program


def ask(
    machine: Machine, verb: str, netns: str = "", *, network: str = "weave", ifname: str = "eth0",
    capabilities: Mapping[str, Any] | None = None, conf_dir: str = NETWORKS, bin_dir: str = EXECUTABLES,
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """``cnitool VERB NETWORK NETNS``; the container id is a hash of the namespace's path."""
    env = {"NETCONFPATH": conf_dir, "CNI_PATH": bin_dir, "CNI_IFNAME": ifname}
    if capabilities is not None:
        env["CAP_ARGS"] = json.dumps(capabilities)
    return machine.run([str(cnitool()), verb, network, netns or "/proc/self/ns/net"], check=False, env=env)
