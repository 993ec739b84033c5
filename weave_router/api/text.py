"""The status page as text: values of schema.py in, lines out. Labels and order are those Weave's users know.

Pure; ``now`` is an argument. Called by the command line and by handlers.py for whoever asks for ``text/plain``, so
both print the same. What is new against Weave: the encryption stands first on a connection's line, and every line
says why, not only what.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from weave_router.api import schema
from weave_router.api.schema import StatusReport

ID_SHOWN: Final = 12
"""Hexadecimal digits of an id that are shown: 48 bits, as long as Weave's names; commands take any prefix."""

Renderer = Callable[[StatusReport, float], str]


def node(peer: str, nickname: str) -> str:
    """``0a1b2c3d4e5f(node-a)``"""
    shown = peer[:ID_SHOWN] or "?"
    return f"{shown}({nickname})" if nickname else shown


def duration(seconds: float) -> str:
    """The two largest units."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    units = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))
    first = next(index for index, (_, size) in enumerate(units) if whole >= size)
    parts = []
    for name, size in units[first : first + 2]:
        parts.append(f"{whole // size}{name}")
        whole %= size
    return "".join(parts)


def moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def size(count: int) -> str:
    """Bytes with binary prefixes and three digits."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1000 or unit == "TiB":
            break
        value /= 1024
    return f"{count}B" if unit == "B" else f"{value:.3g}{unit}"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; nothing after the last."""
    lines = [list(heads), *([*row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    joined = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(line.rstrip() for line in joined)


def _fields(pairs: Iterable[tuple[str, str]]) -> str:
    """Labels right-aligned to the colon, as Weave prints them."""
    return "\n".join(f"{label:>15}: {value}".rstrip() for label, value in pairs)


def _counts(counts: Mapping[str, int]) -> str:
    """``2 established, 1 failed``"""
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def _arrow(direction: schema.Direction) -> str:
    return "->" if direction == "outbound" else "<-"


# --- the page ---------------------------------------------------------------------------------------------------


def page(report: StatusReport, now: float) -> str:
    """`weave-router status` without a subject."""
    parts = [_fields([("Version", report.service.version)]), _router(report), _ipam(report), _fastpath(report),
             _firewall(report)]
    if report.kubernetes.status:
        parts.append(_kubernetes(report.kubernetes))
    if report.warnings:
        parts.append(warnings(report, now))
    return "\n\n".join(parts)


def _router(report: StatusReport) -> str:
    service = report.service
    encryption = service.encryption or "unknown"
    if encryption != schema.PLAINTEXT:
        encryption = f"enabled ({encryption})"
    states = Counter[str](connection.state for connection in report.connections)
    breakdown = f" ({_counts(states)})" if states else ""
    established = sum(link.state == "established" for peer in report.peers for link in peer.links)
    return _fields([
        ("Service", "router"),
        ("Status", service.status),
        ("Protocol", f"weave-router {service.protocol_min}..{service.protocol_max}"),
        ("Name", node(service.id, service.nickname or service.name)),
        ("Encryption", encryption),
        ("PeerDiscovery", "enabled" if service.discovery else "disabled"),
        ("Targets", str(len(report.targets))),
        ("Connections", f"{len(report.connections)}{breakdown}"),
        ("Peers", f"{len(report.peers)} (with {established} established connections)"),
        ("TrustedSubnets", ", ".join(service.trusted_subnets) or "none"),
        ("Token", f"{report.tokens.sending or 'none'} ({len(report.tokens.accepted)} accepted)"),
        ("PodMTU", _mtu(report)),
        ("Uptime", duration(service.uptime)),
        *([("Refused", ", ".join(service.refused))] if service.refused else []),
    ])


def _mtu(report: StatusReport) -> str:
    """Ours, and who has another: one cluster should have one."""
    own = report.service.pod_mtu
    others = [peer for peer in report.peers if peer.pod_mtu not in (0, own)]
    if not others:
        return str(own)
    named = ", ".join(f"{node(peer.id, peer.nickname)} {peer.pod_mtu}" for peer in others[:4])
    more = f" and {len(others) - 4} more" if len(others) > 4 else ""
    return f"{own} (differs: {named}{more})"


def _ipam(report: StatusReport) -> str:
    ipam = report.ipam
    return _fields([
        ("Service", "ipam"),
        ("Status", ipam.status),
        ("Range", ipam.range),
        ("DefaultSubnet", ipam.default_subnet or ipam.range),
        ("RangeIPv6", ipam.range_ipv6 or "none"),
        ("BridgeAddress", ipam.bridge_address or "none"),
        ("Attachments", str(len(ipam.attachments))),
        ("Conflicts", ", ".join((*(conflict.address for conflict in ipam.conflicts),
                                 *(f"MAC {both.mac}" for both in ipam.mac_conflicts))) or "none"),
    ])


def _kubernetes(kube: schema.Kubernetes) -> str:
    return _fields([
        ("Service", "kubernetes"),
        ("Status", kube.status),
        ("Node", kube.node),
        ("Nodes", str(kube.nodes)),
        ("Blocks", f"{kube.own_blocks} here, {kube.blocks} held in the cluster"),
        ("Token", kube.token or "unknown"),
        ("Trouble", "; ".join(kube.troubles) or "none"),
    ])


def _fastpath(report: StatusReport) -> str:
    drops = {reason: count for reason, count in report.drops.items() if count}
    worst = dict(sorted(drops.items(), key=lambda pair: -pair[1])[:4])
    return _fields([
        ("Service", "fastpath"),
        ("Bridge", report.service.bridge),
        ("Workers", str(len(report.workers))),
        ("BundleFill", _per_worker(report, lambda worker: worker.bundle_fill)),
        ("SegmentsPerSend", _per_worker(report, lambda worker: worker.segments_per_send)),
        ("SegmentsPerRecv", _per_worker(report, lambda worker: worker.segments_per_receive)),
        ("SegmentsPerWrit", _per_worker(report, lambda worker: worker.segments_per_write)),
        ("QueueDepth", " ".join(size(worker.queue_depth) for worker in report.workers) or "none"),
        ("Drops", f"{sum(drops.values())} ({_counts(worst)})" if drops else "0"),
    ])


def _firewall(report: StatusReport) -> str:
    state = report.firewall
    named = [(f"{answer.chain}: accepted at {answer.place}" if answer.place else f"{answer.chain}: NOT answered")
             for answer in state.chains]
    return _fields([
        ("Service", "firewall"),
        ("BridgeNetfilter", "on" if state.bridge_netfilter else "off"),
        ("Hairpin", "on" if state.hairpin else "off"),
        ("ForwardDrops", "; ".join(named) or "none"),
        *([("PutBack", f"{state.healed} times")] if state.healed else []),
    ])


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _per_worker(report: StatusReport, figure: Callable[[schema.Worker], float | None]) -> str:
    return " ".join(_figure(figure(worker)) for worker in report.workers) or "none"


# --- subjects ---------------------------------------------------------------------------------------------------


def connections(report: StatusReport, now: float) -> str:
    """Encryption, direction, remote address, state, and what there is to know: Weave's line with one column before."""
    lines = [_connection(connection, now) for connection in report.connections]
    return "\n".join(lines) or "no connections: name a node by `weave-router connect ADDRESS`"


def _connection(connection: schema.Connection, now: float) -> str:
    sealed, arrow = connection.encryption or "-", _arrow(connection.direction)
    line = f"{sealed:<17} {arrow} {connection.address:<24} {connection.state:<11} {_info(connection, now)}"
    return line.rstrip()


def _info(connection: schema.Connection, now: float) -> str:
    parts = []
    if connection.peer:
        parts += [connection.path or "-", node(connection.peer, connection.nickname)]
    if connection.state == "pending":
        parts.append(f"(link {connection.link or 'down'}, data {connection.data or 'down'})")
    if connection.state == "established":
        parts += _path(connection)
    if connection.reason or connection.detail:
        known = f"{connection.reason}: {connection.detail}" if connection.detail else connection.reason
        parts.append(f"[{known if connection.reason else connection.detail}]")
    if connection.since is not None:
        parts.append(f"since={moment(connection.since)}")
    if connection.retry_at is not None:
        parts.append(f"retry in {duration(connection.retry_at - now)}")
    return " ".join(parts)


def _path(connection: schema.Connection) -> list[str]:
    parts = []
    if connection.pod_mtu is not None:
        parts.append(f"mtu={connection.pod_mtu}")
    if connection.path_mtu is not None:
        parts.append(f"path-mtu={connection.path_mtu}")
    if connection.rtt is not None:
        parts.append(f"rtt={connection.rtt * 1000:.2f}ms")
    parts.append(f"tx={size(connection.tx_bytes)}/{connection.tx_packets}")
    parts.append(f"rx={size(connection.rx_bytes)}/{connection.rx_packets}")
    return parts


def peers(report: StatusReport, now: float) -> str:
    """One block per node, each line one connection as that node tells it: the topology from any node."""
    lines = []
    for peer in report.peers:
        lines.append(node(peer.id, peer.nickname) + ("" if peer.reachable else " - unreachable!"))
        for link in peer.links:
            far = node(link.peer, link.nickname)
            lines.append(f"   {_arrow(link.direction)} {link.address or '-':<24} {far:<30} {link.state}")
    return "\n".join(lines) or "no peers"


def targets(report: StatusReport, now: float) -> str:
    """The address first and alone on the line where nothing is wrong, as scripts expect it."""
    lines = []
    for target in report.targets:
        word = f"{target.state}: {target.detail}" if target.detail else target.state
        lines.append(target.address if target.state == "established" else f"{target.address:<24} {word}")
    return "\n".join(lines) or "no targets: name a node by `weave-router connect ADDRESS`"


def ipam(report: StatusReport, now: float) -> str:
    """Who has which part: with IPAM one line per member, by hand one per node that announces addresses."""
    state, total = report.ipam, _range_size(report.ipam.range)
    lines = []
    if state.universe:
        why = f": {state.reason}" if state.reason else ""
        lines += [f"universe {state.universe} of {state.range}, {state.status}{why}",
                  f"this node: {state.used} used, {state.resting} resting, {state.free} free; {state.cold_start}"]
        for member in state.members:
            share = f"({100 * member.addresses / total:.1f}% of total)" if total else ""
            away = "" if member.reachable else " - unreachable!"
            standing = "" if member.standing == "member" else f" {member.standing}"
            lines.append(f"{node(member.peer, member.nickname):<30} {member.addresses:>8} IPs {share}{standing}{away}")
        lines += [_retirement(each) for each in state.retirements]
        lines += [f"another universe: {node(o.peer, o.nickname)} has {o.range} ({o.universe[:ID_SHOWN] or 'none'})"
                  for o in state.other_universes]
    else:
        lines += [_block(block, report, total) for block in state.blocks]
    for conflict in state.conflicts:
        others = ", ".join(peer[:ID_SHOWN] for peer in conflict.others)
        lines.append(f"conflict: {conflict.address} belongs to {conflict.owner[:ID_SHOWN]}, also announced by {others}")
    lines += [f"conflict: MAC {both.mac} belongs to {both.owner}, also given to pods of {', '.join(both.others)}"
              for both in state.mac_conflicts]
    return "\n".join(lines) or "no addresses are in use"


def _retirement(each: schema.Retirement) -> str:
    missing = f": {', '.join(each.promised)} promised, {', '.join(each.missing)} did not yet" if each.missing else ""
    return f"{each.coordinator} is retiring {', '.join(each.victims)}{missing}"


def _block(block: schema.Block, report: StatusReport, total: int) -> str:
    share = f"({100 * block.addresses / total:.1f}% of total)" if total else ""
    active = f" ({len(report.ipam.attachments)} active)" if block.peer == report.service.id else ""
    away = "" if block.reachable else " - unreachable!"
    return f"{node(block.peer, block.nickname):<30} {block.addresses:>8} IPs {share}{active}{away}"


def addresses(found: Sequence[schema.Address]) -> str:
    """Every address that this node gave out or lets rest."""
    heads = ("ADDRESS", "STATE", "HOLDER", "IPV6")
    rows = [(a.address, a.state, a.holder or "-", a.ipv6 or "-") for a in found]
    return table(heads, rows) if rows else "no addresses"


def _range_size(text: str) -> int:
    _, slash, prefix = text.partition("/")
    return 1 << (32 - int(prefix)) if slash and prefix.isdigit() and int(prefix) <= 32 else 0


def attachments(report: StatusReport, now: float) -> str:
    """Weave's `ps`: container, MAC, addresses."""
    heads = ("POD", "CONTAINER", "INTERFACE", "MAC", "ADDRESS", "IPV6", "PORT", "NAMESPACE")
    rows = [
        (a.pod or "-", a.container_id or "-", a.ifname, a.mac or "-", a.address, a.ipv6 or "-", a.port or "-",
         a.netns or "-")
        for a in report.ipam.attachments
    ]
    return table(heads, rows) if rows else "no attachments"


def workers(report: StatusReport, now: float) -> str:
    """The three figures, then every counter that moved, per worker."""
    heads = ("WORKER", "BUNDLE FILL", "SEGS/SEND", "SEGS/RECEIVE", "SEGS/WRITE", "QUEUE", "CLASS")
    rows = [
        (
            str(worker.index), _figure(worker.bundle_fill), _figure(worker.segments_per_send),
            _figure(worker.segments_per_receive), _figure(worker.segments_per_write), size(worker.queue_depth),
            "realtime" if worker.realtime else "ordinary",
        )
        for worker in report.workers
    ]  # fmt: skip
    names = dict.fromkeys(name for worker in report.workers for name in worker.counters)
    moved = [name for name in names if any(worker.counters.get(name) for worker in report.workers)]
    counts = [(name, *(str(worker.counters.get(name, 0)) for worker in report.workers)) for name in moved]
    parts = [table(heads, rows) if rows else "no workers"]
    if counts:
        parts.append(table(("COUNTER", *(f"WORKER {worker.index}" for worker in report.workers)), counts))
    return "\n\n".join(parts)


def drops(report: StatusReport, now: float) -> str:
    counted = [(reason, count) for reason, count in report.drops.items() if count]
    rows = [(reason, str(count)) for reason, count in sorted(counted, key=lambda row: (-row[1], row[0]))]
    return table(("REASON", "FRAMES"), rows) if rows else "no drops"


def counters(report: StatusReport, now: float) -> str:
    rows = [(name, str(count)) for name, count in sorted(report.counters.items())]
    return table(("COUNTER", "COUNT"), rows) if rows else "no counters"


def tokens(report: StatusReport, now: float) -> str:
    return rotation(report.tokens)


def rotation(state: schema.Tokens) -> str:
    """Who has which token, and what that allows next: a rotation is install, use, remove, file by file."""
    lines = [f"sending with {state.sending or 'none'}, accepting {', '.join(state.accepted) or 'none'}"]
    rows = [(node(use.peer, use.nickname), use.sending or "-", " ".join(use.accepted) or "-") for use in state.nodes]
    if rows:
        lines += ["", table(("NODE", "SENDS", "ACCEPTS"), rows), ""]
    lines += [_token_advice(state, token) for token in state.accepted]
    lines += [f"next edit: wait for {_some(state.waits_for)}, which have other tokens than this node"
              if state.next_edit == "wait" else "next edit: safe, all nodes have the tokens of this one"]
    if state.away:
        lines += [f"unreachable, with other tokens when last heard: {_some(state.away)}; copy the file there first"]
    return "\n".join(lines)


def _token_advice(state: schema.Tokens, token: str) -> str:
    lacking = [node(use.peer, use.nickname) for use in state.nodes if token not in use.accepted]
    senders = [node(use.peer, use.nickname) for use in state.nodes if use.sending == token]
    if lacking:
        return f"{token}: not yet accepted by {_some(lacking)}; add it to their files before any node sends with it"
    if senders:
        return f"{token}: in use by {_some(senders)}; accepted by all, safe to send with, not safe to remove"
    return f"{token}: accepted by all, sent by none; safe to send with, or to remove"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def warnings(report: StatusReport, now: float) -> str:
    return "\n".join(f"warning: {warning}" for warning in report.warnings) or "no warnings"


SUBJECTS: Final[dict[str, Renderer]] = {
    "connections": connections,
    "peers": peers,
    "targets": targets,
    "ipam": ipam,
    "attachments": attachments,
    "workers": workers,
    "drops": drops,
    "counters": counters,
    "tokens": tokens,
    "warnings": warnings,
}
"""What may follow `status`; each is also a path under /status/."""


def render(report: StatusReport, subject: str, now: float) -> str:
    """The page, or one subject of it."""
    return (SUBJECTS[subject] if subject else page)(report, now)
