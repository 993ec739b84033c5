"""docs/operations.md, command by command: what it says about a rotation and a backup is done as it stands there.

    h1 ── switch ── h2      a pod on each; "systemctl" is the laboratory's own way to stop, start and reload a router
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator

import pytest
from lab.lab import Lab
from lab.namespace import LabError
from lab.router import Router, program, wait_for, wait_ping
from quality.tree import ROOT

ASKS = "weave-router token status"
FLAGS = ("--ipalloc-init", "seed=h1,h2")


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


def commands(section: str) -> list[str]:
    """Of the section's block, without its comments; what precedes ``&& umask`` sets the folder."""
    text = (ROOT / "docs" / "operations.md").read_text().partition(f"## {section}\n")[2].partition("\n## ")[0]
    (block,) = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return [line for line in (line.partition("  #")[0].strip() for line in block.splitlines()) if line]


def carry_out(router: Router, command: str) -> str:
    match command.split():
        case ["systemctl", "stop", _]:
            return str(router.stop())
        case ["systemctl", "start", _]:
            router.launch()
        case ["systemctl", "reload", _]:
            router.signal(signal.SIGHUP)
        case _:
            state = router.host.state_dir
            line = command.replace("/var/lib/weave-router", str(state)).replace("/var/lib", str(state.parent))
            line = re.sub(r"\bweave-router$", state.name, line) if line.startswith("tar") else line
            line = re.sub(r"^weave-router\b", program(), line)
            done = router.host.run(["sh", "-c", f"cd {router.token_file.parent} && umask 077 && {line}"],
                                   env=router.environment)
            return done.stdout
    return ""


def two(lab: Lab) -> list[Router]:
    switch = lab.switch()
    hosts = [lab.host(label, switch) for label in ("h1", "h2")]
    routers = [lab.router(host, peers=[hosts[0].address("v4")] if host is not hosts[0] else [], flags=FLAGS)
               for host in hosts]
    lab.parallel(*(router.launch for router in routers))
    return routers


def test_rotation_as_documented(lab: Lab) -> None:
    routers = two(lab)
    a, b = (router.attach(lab.pod(router.host, "p")) for router in routers)
    wait_ping(a, b.address("v4"))
    stream = a.popen(["ping", "-q", "-i", "0.05", b.address("v4")])
    folder, made, *steps = commands("Tokens")
    assert folder == "cd /etc/weave-router && umask 077"
    carry_out(routers[0], made)
    next_token = (routers[0].token_file.parent / "next").read_text()
    (routers[1].token_file.parent / "next").touch(mode=0o600)
    (routers[1].token_file.parent / "next").write_text(next_token)
    for command in steps:
        if command == ASKS:
            for router in routers:
                wait_for("safe", lambda router=router: "next edit: safe" in carry_out(router, ASKS))
            continue
        carry_out(routers[0], command)
        if command.startswith("systemctl") and command is steps[1]:
            wait_for("it waits", lambda: "next edit: wait for h2" in carry_out(routers[0], ASKS))
        carry_out(routers[1], command)
    stream.send_signal(signal.SIGINT)
    out, _ = stream.communicate(timeout=10)
    sent, received = map(int, re.search(r"(\d+) packets transmitted, (\d+) received", out).groups())  # type: ignore[union-attr]
    assert sent > 20 and received >= sent - 1, out  # the last one may have been on its way
    assert all(router.token_file.read_text() == next_token for router in routers)
    wait_for("safe", lambda: routers[0].status()["tokens"]["next_edit"] == "safe")
    assert len(routers[0].status()["tokens"]["accepted"]) == 1


def test_a_machine_that_is_off_for_ever_as_documented(lab: Lab) -> None:
    switch = lab.switch()
    hosts = [lab.host(f"h{number}", switch) for number in (1, 2, 3, 4)]
    one, _, three, four = routers = [
        lab.router(host, peers=[hosts[0].address("v4")] if host is not hosts[0] else [],
                   flags=("--ipalloc-init", "seed=h1,h2,h3,h4")) for host in hosts]  # fmt: skip
    lab.parallel(*(router.launch for router in routers))
    look, ask, look_again, abort, ask_again, look_last = commands("A machine that is off for ever")
    wait_for("all members", lambda: all(carry_out(router, look).count("% of total)\n") == 4 for router in routers))
    for router in (three, four):
        router.kill()
    wait_for("both are missed", lambda: carry_out(one, look).count("unreachable!") == 2)
    with pytest.raises(LabError, match=r"h3 did not promise within 5 s: the retirement of h4 stays open"):
        carry_out(one, ask)
    assert "is retiring h4: h1, h2 promised, h3 did not yet" in carry_out(one, look_again)
    assert carry_out(one, abort) == "given up: the retirement of h4\n"
    three.launch()
    wait_for("h3 is back", lambda: carry_out(one, look).count("unreachable!") == 1)
    assert carry_out(one, ask_again).startswith("retired h4: ")
    assert re.search(r"\(h4\) +0 IPs .* retired", carry_out(one, look_last))


def test_backup_and_restore_as_documented(lab: Lab) -> None:
    routers = two(lab)
    a, b = (router.attach(lab.pod(router.host, "p")) for router in routers)
    wait_ping(a, b.address("v4"))
    said = [carry_out(routers[0], command) for command in commands("Back up and restore")]
    assert said[-2:] == ["all agree\n", "gate: own\n"]
    assert routers[0].cli("ipam", "check").stdout == "all agree\n"
    wait_ping(a, b.address("v4"))
    assert routers[0].get("/status/ipam")["gate"] == "own"
    assert routers[0].attach(lab.pod(routers[0].host, "q")).v4
