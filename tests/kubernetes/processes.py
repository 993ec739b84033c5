"""Processes of a node's pods, found from outside by command line and control group: what a test kills without kubectl.

Reads /proc only. Called by the tests that take something away.
"""

from collections.abc import Iterator
from pathlib import Path

from kubernetes.cluster import Node


def of_node(node: Node) -> Iterator[tuple[int, list[str], str]]:
    """(pid, command line, path of the control group) of whatever runs in the node's pods."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
            group = (folder / "cgroup").read_text()
        except OSError:
            continue  # it ended meanwhile
        if f"/{node.netns}/" in group:
            yield int(folder.name), words, group


def router(node: Node) -> int:
    """The router itself, not the init before it; 0 while there is none."""
    found = [pid for pid, words, _ in of_node(node) if "launch" in words and not words[0].endswith("weave-router-init")]
    return found[0] if len(found) == 1 else 0


def pause(node: Node, uid: str) -> int:
    """First process of a pod's sandbox."""
    found = [pid for pid, words, group in of_node(node) if words == ["/pause"] and uid in group]
    return found[0] if len(found) == 1 else 0
