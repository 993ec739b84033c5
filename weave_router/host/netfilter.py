"""The nft tables ``weave_router`` as text, and what others' rules do to forwarded packets. Pure.

Rules are fixed at start; a pod is elements of sets, nothing else. nft_driver.py runs the text, one text one
transaction. Kept to what nft 1.0.6 and Linux 5.4 know: no ``icmpv6 taddr``, no bridge ``meta ibrname``, no bridge
conntrack, no bridge reject.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, Final

from weave_router.host.names import PORT_PREFIX

TABLE: Final = "weave_router"


@dataclass(frozen=True)
class PortGuard:
    """What one pod port may use as source. ``station``: a port for VMs and bridges, no guard."""

    port: str
    mac: str
    ipv4: tuple[IPv4Address, ...] = ()
    ipv6: tuple[IPv6Address, ...] = ()
    station: bool = False


# Every port of our name prefix is guarded, elements or not: a lost element closes a port, it opens none.
# A frame with a VLAN id other than 0 is another segment and only held to its MAC; Linux takes a priority tag (id 0) as
# no tag at all, so such frames would slip past the address guards: dropped. Rules after the tag checks see bare frames.
# ND targets stand 8 bytes into ICMPv6 (RFC 4861 section 4.3).
_GUARD_CHAINS: Final = f"""
  chain guard {{
    type filter hook prerouting priority -310; policy accept;
    iifname "{PORT_PREFIX}*" iifname != @stations jump port
  }}
  chain port {{
    iifname . ether saddr != @macs counter drop comment "source MAC"
    ether type 0x8100 @ll,116,12 != 0 return
    ether type 0x88a8 @ll,116,12 != 0 return
    ether type {{ 0x8100, 0x88a8 }} counter drop comment "priority tag"
    ether type arp jump port_arp
    ether type ip jump port_ipv4
    ether type ip6 jump port_ipv6
  }}
  chain port_arp {{
    iifname . arp saddr ether != @macs counter drop comment "ARP sender MAC"
    iifname . arp saddr ip @ipv4 return
    arp saddr ip 0.0.0.0 iifname . arp daddr ip @ipv4 return
    counter drop comment "ARP sender address"
  }}
  chain port_ipv4 {{
    iifname . ip saddr @ipv4 return
    counter drop comment "IPv4 source"
  }}
  chain port_ipv6 {{
    icmpv6 type {{ nd-router-advert, nd-redirect }} counter drop comment "router advertisement or redirect"
    icmpv6 type nd-neighbor-advert iifname . @th,64,128 != @nd counter drop comment "ND target"
    iifname . ip6 saddr @ipv6 return
    ip6 saddr :: icmpv6 type nd-neighbor-solicit iifname . @th,64,128 @nd return
    ip6 saddr :: icmpv6 type mld2-listener-report return
    counter drop comment "IPv6 source"
  }}"""

_GUARD_SETS: Final = (
    ("stations", "type ifname"),
    ("macs", "type ifname . ether_addr"),
    ("ipv4", "type ifname . ipv4_addr"),
    ("ipv6", "type ifname . ipv6_addr"),
    ("nd", "typeof iifname . @th,64,128"),
)


def tables(
    bridge: str, universe_v4: IPv4Network, universe_v6: IPv6Network | None, guards: Iterable[PortGuard] = ()
) -> str:
    """Both tables anew in one transaction, with the elements of the pods that are attached."""
    elements = _elements(guards)
    sets = "\n".join(f"  set {name} {{ {kind};{_initial(elements[name])} }}" for name, kind in _GUARD_SETS)
    return (
        f"{_fresh('bridge')}table bridge {TABLE} {{\n{sets}{_GUARD_CHAINS}\n}}\n"
        f"{_fresh('inet')}table inet {TABLE} {{\n{_masquerade(bridge, universe_v4, universe_v6)}\n}}\n"
    )


def _fresh(family: str) -> str:
    """Add before delete: deleting what is not there fails the transaction."""
    return f"table {family} {TABLE}\ndelete table {family} {TABLE}\n"


def removed() -> str:
    return _fresh("bridge") + _fresh("inet")


def _initial(elements: Sequence[str]) -> str:
    return f" elements = {{ {', '.join(elements)} }};" if elements else ""


def _masquerade(bridge: str, universe_v4: IPv4Network, universe_v6: IPv6Network | None) -> str:
    """Frames bridged inside the overlay pass this hook too where bridge netfilter is on: they leave by the bridge."""
    rules = [
        f'    oifname != "{bridge}" ip saddr {universe_v4} ip daddr != {{ {universe_v4}, 224.0.0.0/4 }} masquerade'
    ]
    if universe_v6 is not None:
        rules.append(
            f'    oifname != "{bridge}" ip6 saddr {universe_v6} ip6 daddr != {{ {universe_v6}, ff00::/8 }} masquerade'
        )
    head = "    type nat hook postrouting priority 100; policy accept;"
    return "\n".join(["  chain postrouting {", head, *rules, "  }"])


def guard_added(guard: PortGuard) -> str:
    """Elements of one more port; of one that is there already too."""
    return _change("add", guard)


def guard_removed(guard: PortGuard) -> str:
    """Add before delete, so that elements which something flushed meanwhile fail nothing."""
    return _change("add", guard) + _change("delete", guard)


def _change(verb: str, guard: PortGuard) -> str:
    return "".join(
        f"{verb} element bridge {TABLE} {name} {{ {', '.join(elements)} }}\n"
        for name, elements in _elements([guard]).items()
        if elements
    )


def _elements(guards: Iterable[PortGuard]) -> dict[str, list[str]]:
    elements: dict[str, list[str]] = {name: [] for name, _ in _GUARD_SETS}
    for guard in guards:
        port = f'"{guard.port}"'
        if guard.station:
            elements["stations"].append(port)
            continue
        elements["macs"].append(f"{port} . {guard.mac}")
        elements["ipv4"] += [f"{port} . {address}" for address in guard.ipv4]
        elements["ipv6"] += [f"{port} . {address}" for address in guard.ipv6]
        elements["nd"] += [f"{port} . {int(address):#034x}" for address in guard.ipv6]
    return elements


@dataclass(frozen=True)
class ForwardDrop:
    """A base chain of somebody else at ``forward`` that can drop what pods send."""

    family: str
    table: str
    chain: str
    why: str

    def __str__(self) -> str:
        return f"{self.family} {self.table} {self.chain} ({self.why})"


def forward_drops(ruleset: dict[str, Any]) -> list[ForwardDrop]:
    """From ``nft -j list ruleset``: chains at forward whose policy or rules drop or reject, ours left out."""
    items = ruleset.get("nftables", [])
    chains = [item["chain"] for item in items if "chain" in item]
    dropping = {_chain_key(rule) for rule in (item["rule"] for item in items if "rule" in item) if _drops(rule)}
    found = []
    for chain in chains:
        if chain.get("hook") != "forward" or chain["table"] == TABLE or chain["family"] == "bridge":
            continue
        if chain.get("policy") == "drop":
            found.append(ForwardDrop(chain["family"], chain["table"], chain["name"], "policy drop"))
        elif _reaches(chain, dropping, items):
            found.append(ForwardDrop(chain["family"], chain["table"], chain["name"], "a rule drops or rejects"))
    return found


def _chain_key(rule: dict[str, Any]) -> tuple[str, str, str]:
    return rule["family"], rule["table"], rule["chain"]


def _drops(rule: dict[str, Any]) -> bool:
    return any("drop" in part or "reject" in part for part in rule.get("expr", []) if isinstance(part, dict))


def _reaches(chain: dict[str, Any], dropping: set[tuple[str, str, str]], items: Sequence[dict[str, Any]]) -> bool:
    """Follows jumps and gotos."""
    jumps: dict[tuple[str, str, str], set[str]] = {}
    for rule in (item["rule"] for item in items if "rule" in item):
        jumps.setdefault(_chain_key(rule), set()).update(_targets(rule))
    todo, seen = [chain["name"]], set()
    while todo:
        name = todo.pop()
        key = (chain["family"], chain["table"], name)
        if key in dropping:
            return True
        if name not in seen:
            seen.add(name)
            todo += jumps.get(key, ())
    return False


def _targets(rule: dict[str, Any]) -> set[str]:
    verdicts = [part.get("jump") or part.get("goto") for part in rule.get("expr", []) if isinstance(part, dict)]
    return {verdict["target"] for verdict in verdicts if verdict}
