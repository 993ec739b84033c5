"""A whole router in Kubernetes mode, in a host of the laboratory with a Node object. Called by this room's tests."""

from __future__ import annotations

import base64

from kube.server import Server
from lab.lab import Lab
from lab.network import Host
from lab.router import Router
from lab.router import program as router_program

LEASES = "apis/coordination.k8s.io/v1/namespaces/kube-system/leases"
SECRETS = "api/v1/namespaces/kube-system/secrets"
SECRET = f"{SECRETS}/weave-router"
SHORT = {"WEAVE_ROUTER_DEBUG_FENCE": "6", "WEAVE_ROUTER_DEBUG_FENCE_JITTER": "2"}


class Member(Router):
    """Without a token file and a range: both are the cluster's."""

    server: Server

    @property
    def environment(self) -> dict[str, str]:
        given = {key: value for key, value in super().environment.items() if key != "WEAVE_ROUTER_TOKEN_FILE"}
        return given | SHORT

    def launch_argv(self) -> list[str]:
        return [router_program(), "launch", "--kubernetes", "--node-name", self.name, "--kubernetes-api",
                f"{self.server.address}:{self.server.port}", "--service-account", str(self.server.account),
                "--state-dir", str(self.host.state_dir), "--run-dir", str(self.host.run_dir)]

    def kube(self) -> dict[str, object]:
        return dict(self.status()["kubernetes"])


def member(lab: Lab, server: Server, host: Host) -> Member:
    server.add_node(host.label, host.address("v4"), host.address("v6"))
    made = Member(host, token=None)
    made.server = server
    lab.routers.append(made)
    return made


def holders(server: Server, router: Member) -> dict[str, str]:
    """Leases of one router's identity, by their networks."""
    mine = router.status()["service"]["id"]
    return {name: holder for name, holder in server.leases().items() if holder.endswith(mine)}


def edit_secret(server: Server, lines: list[str]) -> None:
    text = "".join(f"{line}\n" for line in lines)
    server.ask("PATCH", SECRET, {"data": {"token": base64.b64encode(text.encode()).decode()}},
               "application/merge-patch+json")
