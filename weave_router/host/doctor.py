"""What the doctor says about this machine: facts in, checks out. Pure; doctor_driver.py gathers the facts.

Each check is one line: name, ok / warn / fail, a sentence, and the way out where there is something to do.
Called by the ``doctor`` command, which adds the reachability of each peer (``reachability``).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from weave_router.host.forwarding import ForwardDrop, legacy_sentence
from weave_router.limits import NEIGHBOURS, POD_MTU_MIN, UNDERLAY_OVERHEAD


class Verdict(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Check:
    name: str
    verdict: Verdict
    sentence: str
    way_out: str = ""


@dataclass(frozen=True)
class NetworkManager:
    """A program that may reconfigure our links. ``kept_off``: the file that tells it not to is installed."""

    name: str
    running: bool
    kept_off: bool


class Answer(StrEnum):
    """What came of knocking at a port."""

    UNTRIED = "untried"
    PROVEN = "proven"  # a weave-router that holds the token; by TCP without one: somebody listens
    SILENT = "silent"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    HUNG_UP = "hung up"
    FOREIGN = "foreign"


@dataclass(frozen=True)
class Reach:
    """A peer's port, tried from here. ``why_untried``: for UDP, as the end of a sentence."""

    peer: str
    udp: Answer
    tcp: Answer
    token: bool = False
    """Tried with a token: who answers has proven it."""
    why_untried: str = ""


@dataclass(frozen=True)
class Facts:
    kernel: str
    tun: bool
    capabilities: frozenset[str]
    # None: could not be tried.
    features: dict[str, bool | None] = field(default_factory=dict)
    # None: the module is not loaded.
    bridge_netfilter: bool | None = False
    forward_drops: tuple[ForwardDrop, ...] = ()
    legacy: tuple[str, ...] = ()
    bridge: str = "weave"
    nft_error: str = ""
    underlay: tuple[str, int] | None = None
    managers: tuple[NetworkManager, ...] = ()
    neighbours: int | None = None
    """Most entries of the machine's tables of neighbours; None: not to be seen from this namespace."""
    ahead: str = ""
    """A sentence about networks that container runtimes take instead of ours."""


# Feature -> (what it gives, since which kernel, what is lost without).
FEATURES: Final = {
    "csum": (
        "checksum offload of the TAP",
        "2.6.27",
        "every checksum is computed in software and nothing is segmented",
    ),
    "tso": ("TCP superframes from the TAP", "2.6.27", "TCP is several times slower"),
    "uso": ("UDP superframes from the TAP", "6.2", "UDP is slower"),
    "udp_segment": ("UDP_SEGMENT on the socket", "4.18", "each datagram is sent by itself"),
    "udp_gro": ("UDP_GRO on the socket", "5.0", "each datagram is received by itself"),
    "bpf": (
        "programs at the TAP, for steering and for credit",
        "5.5 with CAP_BPF",
        "flows are steered by the router itself, and one that floods takes from the others",
    ),
    "realtime": (
        "real-time threads, and figures of how long threads wait for a CPU",
        "2.6 with CAP_SYS_NICE, in a control group with real-time budget where groups have one,",
        "frames wait for the turns of busy pods, some milliseconds each",
    ),
    "locked": ("locked bridge ports", "5.18", "nft guards hold the source MAC alone"),
}
_NEEDED: Final = ("NET_ADMIN",)
_ATTACHING: Final = "SYS_ADMIN"


def checks(facts: Facts) -> list[Check]:
    return [
        _tun(facts),
        _capabilities(facts),
        *_features(facts),
        _bridge_netfilter(facts),
        *_forward(facts),
        _underlay(facts),
        *_managers(facts),
        *_neighbours(facts),
        _networks(facts),
    ]


def _tun(facts: Facts) -> Check:
    if facts.tun:
        return Check("/dev/net/tun", Verdict.OK, "the TAP device can be opened")
    return Check(
        "/dev/net/tun",
        Verdict.FAIL,
        "/dev/net/tun cannot be opened",
        "run `modprobe tun`, or hand the device to the container (--device /dev/net/tun)",
    )


def _capabilities(facts: Facts) -> Check:
    missing = [name for name in _NEEDED if name not in facts.capabilities]
    if missing:
        way_out = "run as root, or give the process these capabilities"
        return Check("capabilities", Verdict.FAIL, f"missing: CAP_{', CAP_'.join(missing)}", way_out)
    if _ATTACHING not in facts.capabilities:
        text = "CAP_SYS_ADMIN is missing: the router needs it not, `attach` typed here does"
        return Check("capabilities", Verdict.OK, text)
    return Check("capabilities", Verdict.OK, "all that is needed")


def _features(facts: Facts) -> list[Check]:
    found = []
    for name, (what, since, loss) in FEATURES.items():
        works = facts.features.get(name)
        if works is None:
            way_out = "run the doctor as root"
            if _ATTACHING not in facts.capabilities:
                way_out += " on the host itself: it tries them in a namespace of its own, which takes CAP_SYS_ADMIN"
            found.append(Check(f"kernel: {name}", Verdict.WARN, f"{what}: could not be tried", way_out))
        elif works:
            found.append(Check(f"kernel: {name}", Verdict.OK, f"{what}: works"))
        else:
            text = f"{what}: refused by this kernel ({facts.kernel}); without it {loss}"
            found.append(Check(f"kernel: {name}", Verdict.WARN, text, f"Linux {since} has it"))
    return found


def _neighbours(facts: Facts) -> Iterator[Check]:
    if facts.neighbours is None:
        return
    text = f"the kernel keeps {facts.neighbours} for all pods of this machine"
    if facts.neighbours >= NEIGHBOURS:
        yield Check("neighbours", Verdict.OK, text)
        return
    way_out = "; ".join(f"sysctl -w net.{family}.neigh.default.gc_thresh3={NEIGHBOURS}" for family in ("ipv4", "ipv6"))
    yield Check("neighbours", Verdict.WARN, f"{text}: pods that talk to many others lose packets", way_out)


def _bridge_netfilter(facts: Facts) -> Check:
    if facts.bridge_netfilter is None:
        text = "br_netfilter is not loaded: fine, except in Kubernetes, where Services need it"
        return Check("bridge netfilter", Verdict.OK, text, "`modprobe br_netfilter`, see docs/operations.md")
    text = "on: bridged frames pass iptables and nft too" if facts.bridge_netfilter else "off"
    return Check("bridge netfilter", Verdict.OK, text)


def _forward(facts: Facts) -> list[Check]:
    name = "forwarding rules"
    if facts.nft_error:
        return [Check(name, Verdict.WARN, f"not looked at: {facts.nft_error}", "see `nft list ruleset` by hand")]
    found = [_drop(name, drop) for drop in facts.forward_drops]
    for family in facts.legacy:
        text, _, command = legacy_sentence(family, facts.bridge).partition(": ")
        found.append(Check(name, Verdict.WARN, text, command))
    return found or [Check(name, Verdict.OK, "no chain at forward can drop")]


def _drop(name: str, drop: ForwardDrop) -> Check:
    text = f"chain {drop} can drop what pods send and get"
    if drop.answered:
        return Check(name, Verdict.OK, f"{text}; the router's rules in {drop.place} accept it")
    way_out = "the router puts its rules there while it runs; see `weave-router status warnings` if it does"
    return Check(name, Verdict.WARN, f"{text}, and has no rules of the router", way_out)


def _underlay(facts: Facts) -> Check:
    if facts.underlay is None:
        way_out = "bring the network up, or give --mtu"
        return Check("underlay MTU", Verdict.FAIL, "no underlay interface found", way_out)
    link, mtu = facts.underlay
    if mtu < POD_MTU_MIN + UNDERLAY_OVERHEAD:
        text = f"{link} has {mtu}: full-size frames of pods (MTU {POD_MTU_MIN}) are fragmented by the overlay"
        return Check("underlay MTU", Verdict.WARN, text, f"raise it to {POD_MTU_MIN + UNDERLAY_OVERHEAD} or more")
    return Check("underlay MTU", Verdict.OK, f"{link} has {mtu}: pod MTU {mtu - UNDERLAY_OVERHEAD}")


def _managers(facts: Facts) -> list[Check]:
    found = []
    for manager in facts.managers:
        if manager.running and not manager.kept_off:
            text = f"{manager.name} runs and is not told to leave our links alone"
            found.append(Check("network managers", Verdict.WARN, text, "run `make install`, which installs the file"))
    return found or [Check("network managers", Verdict.OK, "none interferes")]


def _networks(facts: Facts) -> Check:
    if facts.ahead:
        text, _, way_out = facts.ahead.partition("; ")
        return Check("container networks", Verdict.FAIL, text, way_out)
    return Check("container networks", Verdict.OK, "none stands before ours")


_FIREWALLS: Final = "allow {protocol} {port} both ways in every firewall between the hosts"
_ANSWERS: Final = {
    ("TCP", Answer.UNREACHABLE): ("TCP {port} blocked: no connection comes about", _FIREWALLS),
    ("TCP", Answer.REFUSED): (
        "nothing listens on TCP {port}", "launch weave-router there, or name its port: HOST:PORT"),
    ("TCP", Answer.HUNG_UP): (
        "wrong token: it hung up on our handshake without a word, as a weave-router of another token (or version) does",
        "compare `weave-router token status` there with the token file here"),
    ("TCP", Answer.SILENT): (
        "not a weave-router: it took the connection and has no answer to a handshake", "name the port of the router"),
    ("TCP", Answer.FOREIGN): (
        "not a weave-router: it answered a handshake with something else", "name the port of the router"),
    ("UDP", Answer.UNREACHABLE): ("UDP {port} blocked: no way to the host", _FIREWALLS),
    ("UDP", Answer.REFUSED): (
        "nothing listens on UDP {port}, while TCP {port} answers: a firewall rejects it", _FIREWALLS),
    ("UDP", Answer.SILENT): (
        "UDP {port} blocked: no answer to three handshakes, while TCP {port} answers",
        _FIREWALLS + "; a peer that has forgotten this node is silent too, until it is launched again"),
}  # fmt: skip
"""(protocol, answer) -> (sentence, way out)."""


def reachability(found: Iterable[Reach], port: int) -> list[Check]:
    """One check per peer and protocol."""
    return [check for reach in found for check in _reach(reach, port)]


def _reach(reach: Reach, port: int) -> Iterator[Check]:
    name = f"peer {reach.peer}"
    for protocol, answer in (("TCP", reach.tcp), ("UDP", reach.udp)):
        if answer is Answer.PROVEN:
            token = " and holds the token" if reach.token else ""
            yield Check(name, Verdict.OK, f"{protocol} port {port} answers{token}")
        elif answer is not Answer.UNTRIED:
            text, way_out = (part.format(protocol=protocol, port=port) for part in _ANSWERS[protocol, answer])
            yield Check(name, Verdict.FAIL, text, way_out)
        elif reach.why_untried:
            yield Check(name, Verdict.WARN, f"{protocol} port {port} not tried: {reach.why_untried}")


def worst(found: Iterable[Check]) -> Verdict:
    order = list(Verdict)
    return max((check.verdict for check in found), key=order.index, default=Verdict.OK)
