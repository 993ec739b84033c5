"""What the doctor says about this machine: facts in, checks out. Pure; doctor_driver.py gathers the facts.

Each check is one line: name, ok / warn / fail, a sentence, and the way out where there is something to do.
Called by the ``doctor`` command, which adds the reachability of each peer (``reachability``).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from weave_router.host.forwarding import ForwardDrop, legacy_sentence
from weave_router.limits import POD_MTU_MIN, UNDERLAY_OVERHEAD


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


@dataclass(frozen=True)
class Reach:
    """A peer's port, tried from here. None: not tried."""

    peer: str
    udp: bool | None
    tcp: bool | None


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
    "bpf": ("steering programs (TUNSETSTEERINGEBPF)", "4.16 with CAP_BPF", "flows are steered by the router itself"),
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


def reachability(found: Iterable[Reach], port: int) -> list[Check]:
    """One check per peer and protocol."""
    return [
        _reach(reach.peer, protocol, well, port)
        for reach in found
        for protocol, well in (("UDP", reach.udp), ("TCP", reach.tcp))
        if well is not None
    ]


def _reach(peer: str, protocol: str, well: bool, port: int) -> Check:
    name = f"peer {peer}"
    if well:
        return Check(name, Verdict.OK, f"{protocol} port {port} answers")
    text = f"{protocol} port {port} does not answer"
    return Check(name, Verdict.FAIL, text, f"allow {protocol} {port} both ways in every firewall between the hosts")


def worst(found: Iterable[Check]) -> Verdict:
    order = list(Verdict)
    return max((check.verdict for check in found), key=order.index, default=Verdict.OK)
