"""Commands as people type them: a shell in the clone's folder in which `kubectl` is the administrator's.

Called by the tests that run what docs/kubernetes.md says.
"""

import os
import shlex
import subprocess

from kubernetes.cluster import Cluster
from kubernetes.images import ROOT


def typed(cluster: Cluster, line: str, seconds: float = 180) -> subprocess.CompletedProcess[str]:
    folder = cluster.folder / "typed"
    folder.mkdir(exist_ok=True)
    program = folder / "kubectl"
    if not program.exists():
        program.write_text(f'#!/bin/sh\nexec {shlex.join(cluster.kubectl_words())} "$@"\n')
        program.chmod(0o755)
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line], cwd=ROOT, text=True, capture_output=True, timeout=seconds,
        stdin=subprocess.DEVNULL, env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"})  # fmt: skip
