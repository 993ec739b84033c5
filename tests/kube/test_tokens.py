"""The token's Secret under an administrator's hands: early edits, a deletion, a router that finds none.

    api ── switch ── n1, n2, n3      each a host of the laboratory with its router, and a Node object
"""

from __future__ import annotations

import base64
import json

from kube.member import SECRET, Member, edit_secret
from kube.server import Server
from lab.lab import Lab
from lab.router import new_token, wait_for, wait_ping

from weave_router.tunnel.token import Token

EVENTS = "api/v1/namespaces/default/events"


def lines_of(server: Server) -> list[str]:
    """Empty where there is no Secret."""
    found = server.ask("GET", SECRET.rpartition("/")[0])["items"]
    return base64.b64decode(found[0]["data"]["token"]).decode().split() if found else []


def next_token(lab: Lab, router: Member, old: str) -> str:
    file = lab.directory / "old"
    file.touch(mode=0o600)
    file.write_text(old + "\n")
    return router.cli("token", "new", "--domain-of", str(file)).stdout.strip()


def troubles(router: Member) -> str:
    return json.dumps(router.kube()["troubles"])


def sending(router: Member) -> str:
    return str(router.status()["tokens"]["sending"])


def test_edits_out_of_order_and_a_secret_that_goes(lab: Lab, cluster: tuple[Server, list[Member]]) -> None:
    server, (first, second, third) = cluster
    lab.parallel(first.launch, second.launch)
    pods = [router.attach(lab.pod(router.host, "p")) for router in (first, second)]
    wait_ping(pods[0], pods[1].address("v4"))
    (old,) = lines_of(server)
    new = next_token(lab, first, old)
    ids = {line: f"{Token.parse(line).id:08x}" for line in (old, new)}
    stream = pods[0].popen(["ping", "-i", "0.05", "-c", "300", "-W", "1", pods[1].address("v4")])

    edit_secret(server, [new, old])  # the swap before the new one was added
    for router in (first, second):
        wait_for("refused", lambda router=router: f"first token {ids[new]} is new" in troubles(router))
        assert (sending(router), router.status()["tokens"]["accepted"]) == (ids[old], [ids[old]])
    wait_for("an event says so", lambda: any(
        (event["reason"], event["involvedObject"]["name"]) == ("TokenSecret", "n1") and "is refused" in event["message"]
        for event in server.ask("GET", EVENTS)["items"]), 20)

    edit_secret(server, [new_token()])
    wait_for("another's", lambda: "none of its tokens" in troubles(first))
    edit_secret(server, [old, new])
    for router in (first, second):
        wait_for("both", lambda router=router: router.status()["tokens"]["accepted"] == [ids[old], ids[new]])
        wait_for("safe", lambda router=router: router.status()["tokens"]["next_edit"] == "safe")
        assert router.kube()["troubles"] == []
    server.ask("DELETE", SECRET)
    wait_for("written back", lambda: lines_of(server) == [old, new])
    edit_secret(server, [new, old])
    for router in (first, second):
        wait_for("swapped", lambda router=router: sending(router) == ids[new])
    out, _ = stream.communicate(timeout=60)
    assert " 0% packet loss" in out, out

    lab.parallel(first.stop, second.stop)
    server.ask("DELETE", SECRET)
    third.launch(wait=False)
    wait_for("it waits", lambda: "makes no second token" in third.log())
    assert lines_of(server) == [] and third.get("/status") is None
    first.launch()
    wait_for("written back by the first", lambda: lines_of(server) == [new, old])
    third.wait_ready(60)
    assert sending(third) == ids[new]
    wait_ping(third.attach(lab.pod(third.host, "p")), pods[0].address("v4"))
