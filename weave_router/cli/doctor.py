"""`doctor`: what on this machine, or on the way to its peers, could keep the router from working well.

Works with the router running or not; a running one adds its peers and its warnings. The checks themselves are those
of host/; this file only collects and prints them.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

import click

from weave_router.api import schema
from weave_router.api.text import node
from weave_router.cli.common import client, flag, json_flag, print_either, run_dir_flag
from weave_router.config import PORT_DEFAULT, parse_target
from weave_router.errors import NotRunningError, UsageError, UserError

if TYPE_CHECKING:
    from weave_router.host.doctor import Check

_PEERS_TRIED: Final = 32
"""Addresses tried by TCP, all at once; one that is silent costs three seconds."""


@click.command(short_help="Check this machine and the way to its peers.")
@click.argument("targets", nargs=-1, metavar="[TARGET]...")
@flag("--bridge", default="weave", show_default=True, metavar="BRIDGE", help="The router's bridge, if it has another.")
@run_dir_flag
@json_flag
@click.pass_context
def doctor(ctx: click.Context, targets: tuple[str, ...], bridge: str, run_dir: str, as_json: bool) -> None:
    """Check this machine, and whether every TARGET (else every known peer) can be reached.

    Exit status 1 when a check fails; a warning is no failure.

    \b
    Examples:
      weave-router doctor
      weave-router doctor 192.0.2.11 192.0.2.12
    """
    from weave_router.host import doctor as rules
    from weave_router.host import doctor_driver
    from weave_router.host.names import tap_name

    wanted = [_endpoint(target) for target in targets]
    report, router_check = _ask(run_dir)
    found = [router_check, *rules.checks(doctor_driver.facts((bridge, tap_name(bridge))))]
    found += _reachable(wanted or _known(report), report)
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


def _reachable(endpoints: Iterable[tuple[str, int]], report: schema.StatusReport | None) -> "list[Check]":
    from weave_router.host import doctor, doctor_driver

    heard = _heard(report)

    def try_one(endpoint: tuple[str, int]) -> "list[Check]":
        host, port = endpoint
        reach = doctor_driver.reach([host], port, lambda host, _: heard.get(host))
        return doctor.reachability(reach, port)

    tried = list(endpoints)[:_PEERS_TRIED]
    with ThreadPoolExecutor(max_workers=_PEERS_TRIED) as threads:
        return [check for checks in threads.map(try_one, tried) for check in checks]


def _heard(report: schema.StatusReport | None) -> dict[str, bool]:
    """Host -> whether a session by UDP stands; only the running router can know."""
    if report is None:
        return {}
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
