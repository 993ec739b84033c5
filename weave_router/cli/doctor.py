"""`doctor`: what on this machine, or on the way to its peers, could keep the router from working well.

Works with the router running or not; a running one adds its peers and its warnings. With the token file peers are asked
for a proof, by TCP and by UDP. The checks themselves are those of host/; this file only collects and prints them.
"""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from weave_router.api import schema
from weave_router.api.text import node
from weave_router.cli.common import client, flag, json_flag, print_either, run_dir_flag
from weave_router.config import PORT_DEFAULT, STATE_DIR_DEFAULT, parse_target
from weave_router.errors import NotRunningError, UsageError, UserError

if TYPE_CHECKING:
    from weave_router.host.doctor import Answer, Check, Reach
    from weave_router.host.probe_driver import Caller
    from weave_router.tunnel.token import TokenSet

_PEERS_TRIED: Final = 32
"""Addresses tried by TCP, all at once; one that is silent costs three seconds."""


@click.command(short_help="Check this machine and the way to its peers.")
@click.argument("targets", nargs=-1, metavar="[TARGET]...")
@flag("--bridge", default="weave", show_default=True, metavar="BRIDGE", help="The router's bridge, if it has another.")
@flag("--conf-dir", default="/etc/cni/net.d", show_default=True, metavar="DIR", help="Where runtimes read networks.")
@flag("--token-file", default="", metavar="FILE", help="The cluster's token: peers then have to prove it.")
@flag("--state-dir", default=STATE_DIR_DEFAULT, show_default=True, metavar="DIR",
      help="Where the router keeps this node's identity: peers answer it by UDP.")
@run_dir_flag
@json_flag
@click.pass_context
def doctor(ctx: click.Context, targets: tuple[str, ...], bridge: str, conf_dir: str, token_file: str, state_dir: str,
           run_dir: str, as_json: bool) -> None:
    """Check this machine, and whether every TARGET (else every known peer) can be reached.

    Exit status 1 when a check fails; a warning is no failure.

    \b
    Examples:
      weave-router doctor
      weave-router doctor --token-file /etc/weave-router/token 192.0.2.11 192.0.2.12
    """
    from weave_router.host import doctor as rules
    from weave_router.host import doctor_driver, probe_driver
    from weave_router.host.names import tap_name
    from weave_router.tunnel.token_driver import load_tokens

    tokens = load_tokens(token_file) if token_file else None
    wanted = [_endpoint(target) for target in targets]
    report, router_check = _ask(run_dir)
    found = [router_check, *rules.checks(doctor_driver.facts((bridge, tap_name(bridge)), networks=Path(conf_dir)))]
    with probe_driver.caller(Path(os.path.abspath(state_dir))) as who:
        found += _reachable(wanted or _known(report), report, tokens, who)
    found += _of_router(report)
    print_either(found, as_json, "\n".join(_lines(found)))
    ctx.exit(1 if rules.worst(found) is rules.Verdict.FAIL else 0)


def _endpoint(target: str) -> tuple[str, int]:
    try:
        return parse_target(target)
    except ValueError as error:
        raise UsageError(f"TARGET: {error}") from None


def _ask(run_dir: str) -> "tuple[schema.StatusReport | None, Check]":
    from weave_router.host.doctor import Check, Verdict

    try:
        report = client(run_dir).get("/status", schema.StatusReport)
    except NotRunningError:
        return None, Check("router", Verdict.OK, "not running: only this machine was looked at")
    except UserError as error:
        return None, Check("router", Verdict.FAIL, str(error), "see its log")
    return report, Check("router", Verdict.OK, f"{report.service.version} runs: {report.service.status}")


def _known(report: schema.StatusReport | None) -> list[tuple[str, int]]:
    """Targets first, then what peers announce; not ourselves."""
    if report is None:
        return []
    texts = [target.address for target in report.targets if target.state != "self"]
    texts += [address for peer in report.peers if peer.id != report.service.id for address in peer.addresses[:1]]
    return list(dict.fromkeys(_endpoint(text) for text in texts))


def _reachable(endpoints: "Iterable[tuple[str, int]]", report: schema.StatusReport | None, tokens: "TokenSet | None",
               who: "Caller | None") -> "list[Check]":
    from weave_router.host import doctor

    ask = partial(_reach, heard=_heard(report), tokens=tokens, who=who)
    tried = list(endpoints)[:_PEERS_TRIED]
    with ThreadPoolExecutor(max_workers=_PEERS_TRIED) as threads:
        found = list(zip(threads.map(ask, tried), tried, strict=True))
    return [check for reach, (_, port) in found for check in doctor.reachability([reach], port)]


def _reach(endpoint: tuple[str, int], heard: dict[str, bool] | None, tokens: "TokenSet | None",
           who: "Caller | None") -> "Reach":
    """``heard``: of a running router, which holds the port and the identity; else we ask ourselves."""
    from weave_router.host import probe_driver
    from weave_router.host.doctor import Answer, Reach

    host, port = endpoint
    tcp, key = probe_driver.try_tcp(host, port, tokens) if tokens else (probe_driver.try_port(host, port), b"")
    proven = tokens is not None and tcp is Answer.PROVEN
    udp, why = Answer.UNTRIED, ""
    if heard is not None:
        udp = _of_session(heard.get(host), proven)
    elif tokens is None:
        why = "give --token-file, a router answers by UDP to who proves the token"
    elif who is None:
        why = "this node was never launched, so no peer knows its key and answers it (--state-dir)"
    elif proven:
        udp = probe_driver.try_udp(host, port, tokens, key, who)
    return Reach(host, udp, tcp, proven, why)


def _of_session(stands: bool | None, proven: bool) -> "Answer":
    from weave_router.host.doctor import Answer

    if stands:
        return Answer.PROVEN
    return Answer.SILENT if stands is False and proven else Answer.UNTRIED


def _heard(report: schema.StatusReport | None) -> dict[str, bool] | None:
    """Host -> whether a session by UDP stands, as the running router knows; None without one."""
    if report is None:
        return None
    return {
        parse_target(connection.address, PORT_DEFAULT)[0]: connection.state == "established"
        for connection in report.connections
        if connection.state != "self"
    }


def _of_router(report: schema.StatusReport | None) -> "Iterator[Check]":
    """What the running router itself complains of."""
    from weave_router.host.doctor import Check, Verdict

    if report is None:
        return
    for warning in report.warnings:
        yield Check("router", Verdict.WARN, warning)
    for connection in report.connections:
        name = f"connection to {node(connection.peer, connection.nickname) if connection.peer else connection.address}"
        if connection.state in ("failed", "retrying", "pending"):
            why = connection.detail or connection.reason or "no reason given"
            yield Check(name, Verdict.FAIL, f"{connection.state}: {why}", "see `weave-router status connections`")
        elif connection.reason:
            yield Check(name, Verdict.WARN, connection.detail or connection.reason)


def _lines(found: "Iterable[Check]") -> Iterator[str]:
    for check in found:
        yield f"{check.verdict.value:<5} {check.name}: {check.sentence}"
        if check.way_out:
            yield f"      {check.way_out}"
