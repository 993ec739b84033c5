"""A real kube-apiserver on etcd, on the loopback, and a relay before it that misbehaves.

    router ---TCP---> Relay (cuts, holds, halves) ---TCP---> kube-apiserver ---> etcd

The programs stand where `make test-kubernetes` builds them; without them the tests name what is missing. The router's
account has exactly the permissions of docs/kubernetes.md.
"""

from __future__ import annotations

import asyncio
import ctypes
import http.client
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

from quality.tree import ROOT

PROGRAMS = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "weave-router-k8s" / "bin"
"""Where tests/kubernetes/programs/build puts them."""
ADMIN, ROUTER = "admin-token", "router-token"
USER = "system:serviceaccount:kube-system:weave-router"


def program(name: str) -> str:
    """Path of a program, empty where it was not built."""
    found = sorted(PROGRAMS.glob(f"kubernetes-*/{name}"))
    return str(found[-1]) if found else shutil.which(name) or ""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def enter(namespace: str) -> None:
    """This thread, for good."""
    if namespace:
        with open(f"/run/netns/{namespace}") as file:
            if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), 0):
                raise OSError(ctypes.get_errno(), "setns")


def node(name: str, *addresses: str, size: int = 0) -> dict[str, Any]:
    """A Node object; ``size``: bytes that nobody needs."""
    return {"metadata": {"name": name, "annotations": {"x": "y" * size}},
            "status": {"addresses": [{"type": "InternalIP", "address": address} for address in addresses]}}


class Server:
    """``directory``: all its files. ``address``: on which it listens; ``namespace``: in which, empty: this one."""

    def __init__(self, directory: Path, address: str = "127.0.0.1", namespace: str = "") -> None:
        self.directory = directory
        self._prefix = ["ip", "netns", "exec", namespace] if namespace else []
        self._inside = ThreadPoolExecutor(1, initializer=enter, initargs=(namespace,))
        self.address = address
        self.port = free_port()
        self._processes: list[subprocess.Popen[bytes]] = []
        self.account = directory / "account"

    def start(self) -> None:
        self.make_certificate()
        shutil.copy(self.directory / "api.key", self.directory / "sa.key")
        store = free_port()
        self._run([program("etcd"), "--data-dir", f"{self.directory}/etcd", "--unsafe-no-fsync=true",
                   f"--listen-client-urls=http://127.0.0.1:{store}", f"--listen-peer-urls=http://127.0.0.1:{free_port()}",
                   f"--advertise-client-urls=http://127.0.0.1:{store}"])
        (self.directory / "tokens.csv").write_text(
            f'{ADMIN},admin,admin,"system:masters"\n{ROUTER},{USER},router,"system:serviceaccounts"\n')
        d = self.directory
        self._run([
            program("kube-apiserver"), f"--etcd-servers=http://127.0.0.1:{store}", f"--secure-port={self.port}",
            f"--bind-address={self.address}", f"--advertise-address={self.address}", f"--tls-cert-file={d}/api.crt",
            f"--tls-private-key-file={d}/api.key", "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={d}/sa.key", f"--service-account-signing-key-file={d}/sa.key",
            "--service-cluster-ip-range=10.96.0.0/16", "--authorization-mode=RBAC",
            f"--token-auth-file={d}/tokens.csv", "--disable-admission-plugins=ServiceAccount"])
        self._await()
        self.account.mkdir()
        (self.account / "token").write_text(ROUTER)
        shutil.copy(d / "api.crt", self.account / "ca.crt")
        self._permissions()

    def stop(self) -> None:
        for process in reversed(self._processes):
            process.kill()  # nothing of it is needed again
        for process in reversed(self._processes):
            process.wait(20)
        self._inside.shutdown()

    def _run(self, command: list[str]) -> None:
        with open(self.directory / f"{Path(command[0]).name}.log", "wb") as log:
            self._processes.append(
                subprocess.Popen([*self._prefix, *command], stdout=log, stderr=log, cwd=self.directory))

    def make_certificate(self, name: str = "api") -> None:
        """Its own authority. The server takes another api.crt and api.key within a moment, without a restart."""
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key",
             "-out", f"{name}.crt", "-days", "2",
             "-subj", f"/CN={name}", "-addext", f"subjectAltName=IP:127.0.0.1,IP:{self.address}"],
            cwd=self.directory, check=True, capture_output=True)

    def _await(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                self.ask("GET", "readyz")
                return
            except OSError:
                assert time.monotonic() < deadline, (self.directory / "kube-apiserver.log").read_text()[-2000:]
                assert all(process.poll() is None for process in self._processes)
                time.sleep(0.1)

    def ask(self, method: str, path: str, body: object = None, kind: str = "application/json",
            token: str = ADMIN) -> Any:
        """As the administrator, or with another token."""
        return self._inside.submit(self._ask, method, path, body, kind, token).result()

    def _ask(self, method: str, path: str, body: object, kind: str, token: str) -> Any:
        request = urllib.request.Request(
            f"https://{self.address}:{self.port}/{path}", method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {token}", "Content-Type": kind})
        context = ssl.create_default_context(cafile=str(self.directory / "api.crt"))
        with urllib.request.urlopen(request, context=context, timeout=10) as reply:
            text = reply.read()
        return json.loads(text) if text[:1] == b"{" else text

    def _permissions(self) -> None:
        """The table of the documentation, row by row, becomes two roles."""
        rules: dict[str, list[dict[str, object]]] = {"ClusterRole": [], "Role": []}
        text = (ROOT / "docs" / "kubernetes.md").read_text().partition("### Permissions")[2]
        for line in text.partition("\n\nThe Role")[0].splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if len(cells) == 5 and "Role" in cells[4]:
                names = re.findall("`([^`]+)`", cells[3])
                rule: dict[str, object] = {"resources": cells[0].split(", "), "apiGroups": [cells[1].strip('"')],
                                           "verbs": cells[2].split(", ")}
                rules[cells[4].split()[0]].append(rule | ({"resourceNames": names} if names else {}))
        assert len(rules["ClusterRole"]) == 5 and len(rules["Role"]) == 4
        base = "apis/rbac.authorization.k8s.io/v1"
        subject = [{"kind": "User", "name": USER, "apiGroup": "rbac.authorization.k8s.io"}]
        for kind, place in (("ClusterRole", base), ("Role", f"{base}/namespaces/kube-system")):
            meta = {"metadata": {"name": "weave-router"}}
            self.ask("POST", f"{place}/{kind.lower()}s", meta | {"rules": rules[kind]})
            self.ask("POST", f"{place}/{kind.lower()}bindings", meta | {"subjects": subject, "roleRef": {
                "kind": kind, "name": "weave-router", "apiGroup": "rbac.authorization.k8s.io"}})

    # -- objects -----------------------------------------------------------------------------------------------------

    def add_node(self, name: str, *addresses: str) -> str:
        found = self.ask("POST", "api/v1/nodes", node(name, *addresses))
        return str(found["metadata"]["uid"])

    def add_all(self, path: str, bodies: Iterable[dict[str, Any]]) -> None:
        """Many objects, on one connection."""
        self._inside.submit(self._add_all, path, bodies).result()

    def _add_all(self, path: str, bodies: Iterable[dict[str, Any]]) -> None:
        context = ssl.create_default_context(cafile=str(self.directory / "api.crt"))
        connection = http.client.HTTPSConnection(self.address, self.port, context=context, timeout=10)
        for body in bodies:
            connection.request("POST", f"/{path}", json.dumps(body), {
                "Authorization": f"Bearer {ADMIN}", "Content-Type": "application/json"})
            reply = connection.getresponse()
            assert reply.status == 201, reply.read()
            reply.read()
        connection.close()

    def leases(self) -> dict[str, str]:
        """Name -> holder."""
        found = self.ask("GET", "apis/coordination.k8s.io/v1/namespaces/kube-system/leases")["items"]
        return {each["metadata"]["name"]: each["spec"].get("holderIdentity", "") for each in found
                if each["metadata"]["name"].startswith("weave-router-block-")}


class Relay:
    """Before the API server. ``mood``: ``fair``; ``cut``: connections end in mid-word; ``hang``: nothing passes."""

    def __init__(self, target: tuple[str, int], rng: Random) -> None:
        self.target = target
        self.mood = "fair"
        self.connections = 0
        self.open: set[asyncio.StreamWriter] = set()
        self._rng = rng
        self._server: asyncio.Server | None = None
        self.port = 0

    async def __aenter__(self) -> Relay:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open.add(writer)
        try:
            far_reader, far_writer = await asyncio.open_connection(*self.target)
            await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
        except OSError:
            writer.transport.abort()
        finally:
            self.open.discard(writer)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = self._rng.randrange(3_000, 60_000) if self.mood == "cut" else 1 << 60
        try:
            while data := await reader.read(4096):
                while self.mood == "hang":  # noqa: ASYNC110  # a relay has no better clock
                    await asyncio.sleep(0.05)
                if self.mood == "cut":
                    left = min(left, 60_000)
                left -= len(data)
                writer.write(data[: max(0, left)] if left < 0 else data)
                await writer.drain()
                if left < 0:
                    break
        except OSError:
            pass
        finally:
            writer.close()
