"""A router with the executable on its host, and what a runtime expects of an answer. For the tests of this room."""

import json
import os
from typing import Any

from cni.shim import Done, Shim, installed
from lab.namespace import Namespace, run
from lab.router import Router


class Node:
    """A router and the executable on its host."""

    def __init__(self, router: Router) -> None:
        self.router = router
        self.shim = Shim(installed(), router.host.run_dir / "attach.sock", router.host.state_dir / "cni-journal",
                         boot_id=router.boot_id)

    def run(self, verb: str, pod: Namespace | None, container: str = "c1", version: str = "1.1.0", *, args: str = "",
            ifname: str = "eth0", **more: Any) -> Done:
        path = str(pod.path) if pod else ""
        return self.shim.run(verb, {**self.shim.config(version), **more}, prefix=self.router.host.argv([]),
                             CNI_CONTAINERID=container, CNI_NETNS=path, CNI_ARGS=args, CNI_IFNAME=ifname)

    def attachments(self) -> list[tuple[str, str]]:
        listed = self.router.status()["ipam"]["attachments"]
        return [(a["container_id"], a["address"].partition("/")[0]) for a in listed]

    def ports(self) -> list[str]:
        links = json.loads(run(["ip", "-n", self.router.host.name, "-json", "link"]).stdout)
        return [link["ifname"] for link in links if link["ifname"].startswith("vethwr")]

    def journal(self) -> list[str]:
        return sorted(os.listdir(self.shim.journal))


def added(done: Done) -> dict[str, Any]:
    assert (done.status, done.stderr) == (0, ""), done
    return dict(done.value)


def quiet(done: Done) -> None:
    assert (done.status, done.stdout, done.stderr) == (0, "", ""), done
