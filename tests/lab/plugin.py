"""The CNI executable, started as a container runtime starts it, for pods of the lab. Called by demo and benchmarks."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, Final

import weave_router

from .namespace import LabError, environment
from .network import Pod
from .router import Router, learn_addresses

EXECUTABLE: Final = Path(weave_router.__file__).parent / "_bin" / "weave-router-cni"


def call(router: Router, verb: str, pod: Pod, *, address: str = "") -> dict[str, Any]:
    """One verb for a pod's eth0; its result. LabError with what the executable said."""
    config = {
        "cniVersion": "1.1.0", "name": "weave", "type": EXECUTABLE.name,
        "socket": str(router.host.run_dir / "attach.sock"), "journal": str(router.host.state_dir / "cni-journal"),
    }  # fmt: skip
    variables = {
        "CNI_COMMAND": verb, "CNI_CONTAINERID": pod.name, "CNI_NETNS": str(pod.path), "CNI_IFNAME": "eth0",
        "CNI_ARGS": f"IP={address}" if address else "", "WEAVE_ROUTER_DEBUG_BOOT_ID": router.boot_id,
    }  # fmt: skip
    done = subprocess.run([EXECUTABLE], input=json.dumps(config), capture_output=True, text=True, timeout=60,
                          check=False, env=environment(variables))  # fmt: skip
    if done.returncode != 0:
        raise LabError(f"{verb} of {pod.label}: {done.stdout.strip()}\n{router.log_tail()}")
    return dict(json.loads(done.stdout)) if done.stdout else {}


def add(router: Router, pod: Pod, address: str = "") -> Pod:
    """On the network when this returns; the pod learns what its interface was given. ``address`` empty: any."""
    call(router, "ADD", pod, address=address)
    learn_addresses(pod)
    return pod
