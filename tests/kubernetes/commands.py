"""Commands out of docs/operations.md, executed as they stand there. Called by the tests of the cluster's life."""

import os
import re
from typing import Final

from kubernetes.cluster import Cluster, run
from kubernetes.images import ROOT

OFF: Final = "# power the machine off"
TIMEOUT: Final = 900


def block(title: str) -> str:
    """The commands below a heading."""
    text = (ROOT / "docs" / "operations.md").read_text()
    section = re.search(rf"^### {re.escape(title)}\n(.*?)(?=^##)", text, re.MULTILINE | re.DOTALL)
    assert section is not None, title
    found = re.search(r"^```sh\n(.*?)^```", section[1], re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found[1]


def execute(cluster: Cluster, commands: str, **variables: str) -> str:
    """By a shell for which ``kubectl`` is the cluster's, up to the first that fails; what they printed."""
    programs = cluster.folder / "bin"
    programs.mkdir(exist_ok=True)
    wrapper = programs / "kubectl"
    wrapper.write_text(f'#!/bin/sh\nexec {" ".join(cluster.kubectl_words())} "$@"\n')
    wrapper.chmod(0o755)
    path = {"PATH": f"{programs}:{os.environ['PATH']}"}
    return run("sh", "-euc", commands, env={**os.environ, **path, **variables}, timeout=TIMEOUT).stdout
