"""Names of Services, as a process beside the API server, and the Service by which pods reach it.

    python -P name_server.py ADDRESS KUBECTL...

Answers A for NAME.NAMESPACE.svc.cluster.local, and CNAME for a Service that stands for another name; nothing else:
names are what the conformance specs use, not what they test here. Run by cluster.py where a cluster has ``names``.
"""

import json
import socket
import socketserver
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from ipaddress import IPv4Address
from typing import Any

Object = dict[str, Any]
DOMAIN = ".svc.cluster.local"
A, CNAME, AAAA, IN = 1, 5, 28, 1
NO_SUCH_NAME = 3
SECONDS = 5


def objects(service_address: str, address: str) -> list[Object]:
    """So that pods reach ``address`` by the one that kubelet tells them."""
    where = {"name": "kube-dns", "namespace": "kube-system"}
    port = {"name": "dns", "port": 53, "protocol": "UDP"}
    service = {"apiVersion": "v1", "kind": "Service", "metadata": where,
               "spec": {"clusterIP": service_address, "ports": [port]}}
    endpoints = {
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "ports": [port],
        "metadata": where | {"labels": {"kubernetes.io/service-name": "kube-dns"}},
        "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
    }  # fmt: skip
    return [service, endpoints]


class Names:
    """Name -> the Service's address, or the name it stands for. Follows the API server for ever."""

    def __init__(self, kubectl: Sequence[str]) -> None:
        self.known: dict[str, str] = {}
        self._kubectl = kubectl

    def follow(self) -> None:
        while True:
            watch = subprocess.Popen([*self._kubectl, "get", "--raw", "/api/v1/services?watch=1"],
                                     stdout=subprocess.PIPE, text=True)  # fmt: skip
            assert watch.stdout is not None
            for line in watch.stdout:
                event = json.loads(line)
                meta, spec = event["object"]["metadata"], event["object"].get("spec", {})
                name = f"{meta['name']}.{meta['namespace']}{DOMAIN}".lower()
                value = spec.get("externalName") or spec.get("clusterIP", "")
                if event["type"] == "DELETED" or value in ("", "None"):
                    self.known.pop(name, None)
                else:
                    self.known[name] = value
            watch.wait()
            time.sleep(1)  # the API server is away

    def answers(self, name: str, kind: int) -> list[tuple[str, int, bytes]] | None:
        """(name, type, data) of each record, aliases first; None: there is no such name."""
        found: list[tuple[str, int, bytes]] = []
        while (value := self.known.get(name.lower())) is not None:
            try:
                return [*found, (name, A, IPv4Address(value).packed)] if kind == A else found
            except ValueError:
                found.append((name, CNAME, encoded(value)))
                name = value.rstrip(".")
        return found or None


def encoded(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.rstrip(".").split(".")) + b"\0"


def reply(query: bytes, names: Names) -> bytes:
    """To one question."""
    (ident,) = struct.unpack_from("!H", query)
    labels, at = [], 12
    while length := query[at]:
        labels.append(query[at + 1 : at + 1 + length].decode())
        at += 1 + length
    kind, _ = struct.unpack_from("!HH", query, at + 1)
    found = names.answers(".".join(labels), kind)
    flags = 0x8580 | (NO_SUCH_NAME if found is None else 0)
    records = b"".join(encoded(name) + struct.pack("!HHIH", type_, IN, SECONDS, len(data)) + data
                       for name, type_, data in found or ())  # fmt: skip
    return struct.pack("!6H", ident, flags, 1, len(found or ()), 0, 0) + query[12 : at + 5] + records


class Handler(socketserver.BaseRequestHandler):
    names: Names

    def handle(self) -> None:
        data, answer_on = self.request
        answer_on.sendto(reply(data, self.names), self.client_address)


def main() -> None:
    address, *kubectl = sys.argv[1:]
    Handler.names = Names(kubectl)
    threading.Thread(target=Handler.names.follow, daemon=True).start()
    socketserver.ThreadingUDPServer.address_family = socket.AF_INET
    socketserver.ThreadingUDPServer((address, 53), Handler).serve_forever()


if __name__ == "__main__":
    main()
