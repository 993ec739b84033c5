"""The account's token and CA file rotated under a running router, as kubelet does it: nothing it asks is refused.

The tokens are real ones, each bound to a Secret: when that is deleted the API server answers 401 to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import ssl
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from kube.server import ROUTER, Relay, Server
from kube.test_api_server import Member, until

from weave_router.kube.values import Answer, Call

NAMESPACE = "api/v1/namespaces/kube-system"


def replace(path: Path, text: str) -> None:
    """As kubelet's links do it: another file in one step."""
    fresh = path.with_suffix(".fresh")
    fresh.write_text(text)
    os.replace(fresh, path)


def bound_token(server: Server, name: str) -> str:
    """Of the router's account, for as long as the Secret ``name`` is there."""
    secret = server.ask("POST", f"{NAMESPACE}/secrets", {"metadata": {"name": name}})
    reference = {"kind": "Secret", "apiVersion": "v1", "name": name, "uid": secret["metadata"]["uid"]}
    found = server.ask("POST", f"{NAMESPACE}/serviceaccounts/weave-router/token", {
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {"audiences": ["https://kubernetes.default.svc"], "boundObjectRef": reference}})
    return str(found["status"]["token"])


def works(server: Server, token: str) -> bool:
    try:
        server.ask("GET", "api/v1/nodes", token=token)
    except urllib.error.HTTPError as error:
        assert error.code == 401
        return False
    return True


@pytest.fixture
def account(server: Server) -> Iterator[Path]:
    """The directory; as it was, afterwards."""
    with contextlib.suppress(urllib.error.HTTPError):
        server.ask("POST", f"{NAMESPACE}/serviceaccounts", {"metadata": {"name": "weave-router"}})
    yield server.account
    (server.account / "token").write_text(ROUTER)
    shutil.copy(server.directory / "api.crt", server.account / "ca.crt")


def counted(member: Member) -> list[Answer]:
    """Answers to what the router asks from now on."""
    answers: list[Answer] = []
    request = member.api.request

    async def one(call: Call) -> Any:
        answers.append(await request(call))
        return answers[-1]

    member.api.request = one  # type: ignore[method-assign]
    return answers


def cut(relay: Relay) -> None:
    """So that nothing lives on a connection that was let in before."""
    for writer in list(relay.open):
        writer.transport.abort()


async def claims_one_more(member: Member) -> None:
    member.blocks.appetite += 1
    await until(lambda: len(member.blocks.owned()) == member.blocks.appetite, 20)


async def test_the_token_is_rotated_and_the_old_one_is_refused(server: Server, account: Path) -> None:
    server.add_node("a", "192.0.2.1")
    first = await asyncio.to_thread(bound_token, server, "first")
    replace(account / "token", first)
    async with Relay(("127.0.0.1", server.port), Random(1)) as relay:
        async with Member(server, "a", 1, relay.port).running() as member:
            answers = counted(member)
            await claims_one_more(member)
            second = await asyncio.to_thread(bound_token, server, "second")
            replace(account / "token", second)
            await asyncio.to_thread(server.ask, "DELETE", f"{NAMESPACE}/secrets/first")
            await until(lambda: not works(server, first), 30)
            await claims_one_more(member)
            cut(relay)
            await until(lambda: not member.core.nodes_synced)
            await until(lambda: member.core.nodes_synced and member.core.leases_synced and not member.core.troubles, 12)
            await claims_one_more(member)
            assert answers and 401 not in {answer.status for answer in answers}


async def test_the_authority_is_rotated_and_the_servers_certificate_with_it(server: Server, account: Path) -> None:
    """Both authorities in the file, then the server's new certificate, then the new authority alone."""
    server.add_node("a", "192.0.2.1")
    old = (server.directory / "api.crt").read_text()
    await asyncio.to_thread(server.make_certificate, "next")
    new = (server.directory / "next.crt").read_text()
    async with Relay(("127.0.0.1", server.port), Random(1)) as relay:
        async with Member(server, "a", 1, relay.port).running() as member:
            answers = counted(member)
            await claims_one_more(member)
            replace(account / "ca.crt", old + new)
            replace(server.directory / "api.key", (server.directory / "next.key").read_text())
            replace(server.directory / "api.crt", new)
            await until(lambda: ssl.get_server_certificate(("127.0.0.1", server.port)).split() == new.split(), 90)
            replace(account / "ca.crt", new)
            cut(relay)
            await until(lambda: not member.core.nodes_synced)
            await until(lambda: member.core.nodes_synced and member.core.leases_synced and not member.core.troubles, 12)
            await claims_one_more(member)
            assert {answer.status for answer in answers} <= {200, 201, 404}, answers
