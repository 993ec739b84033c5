"""The nft tables ``weave_router`` as text, and whether they and translated.py's still stand. Pure.

Rules are fixed at start; a pod is elements of sets, nothing else. nft_driver.py runs the text, one text one
transaction, and what elements.py makes of a pod's. Kept to what nft 1.0.6 and Linux 5.4 know: no ``icmpv6 taddr``, no
bridge ``meta ibrname``, no bridge conntrack, no bridge reject. What other tables do to pods is forwarding.py's.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from itertools import product
from typing import Any, Final

from weave_router.host import translated
from weave_router.host.elements import Element, added, deleted, packed, text
from weave_router.host.names import PORT_PREFIX
from weave_router.host.rtnl import Message
from weave_router.host.translated import ANSWERS, KEPT

TABLE: Final = "weave_router"
FAMILIES: Final = ("bridge", "inet")
TABLES: Final = (("bridge", TABLE), ("inet", TABLE), ("bridge", ANSWERS))
FORWARD_MARK: Final = 0x02000000
"""Bit of the packet mark between our chain at forward and postrouting: what may go to pods. Others' tables can ask for
it in words that iptables-nft reads; ``ct state`` of nft's own in its tables would make ``iptables -S`` fail."""


@dataclass(frozen=True)
class TablesPlan:
    """What the tables are made from, beside the pods. ``no_masq_local``: the host keeps its source towards its own
    pods. ``mac``: the bridge's, where it has its number."""

    bridge: str
    universe_v4: IPv4Network
    universe_v6: IPv6Network | None
    no_masq_local: bool = False
    mac: str | None = None


@dataclass(frozen=True)
class PortGuard:
    """What one pod port may use as source. ``station``: a port for VMs and bridges, no guard."""

    port: str
    mac: str
    ipv4: tuple[IPv4Address, ...] = ()
    ipv6: tuple[IPv6Address, ...] = ()
    station: bool = False

    @property
    def elements(self) -> dict[str, list[Element]]:
        """Of each set, by its name."""
        port = self.port
        pods: dict[str, list[Element]] = {
            "pods4": list(product(self.ipv4, repeat=2)),
            "pods6": list(product((address for address in self.ipv6 if not address.is_link_local), repeat=2)),
        }
        if self.station:
            return {"stations": [(port,)], **pods}
        return {
            "returns": [(port, port)],
            "macs": [(port, bytes.fromhex(self.mac.replace(":", "")))],
            "ipv4": [(port, address) for address in self.ipv4],
            "ipv6": [(port, address) for address in self.ipv6],
            "nd": [(port, int(address)) for address in self.ipv6],
            **pods,
        }

    @cached_property
    def packed(self) -> dict[str, list[bytes]]:
        """Likewise, as messages have them; made at the ADD, wanted again at the DEL."""
        return {name: list(map(packed, own)) for name, own in self.elements.items()}


# Every port of our name prefix is guarded, elements or not: a lost element closes a port, it opens none. Towards a port
# of no pod the bridge has no unicast: it knows no MAC there and floods none.
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
  }}
  chain forward {{
    type filter hook forward priority 0; policy accept;
    ether daddr & 01:00:00:00:00:00 == 00:00:00:00:00:00 return
    iifname . oifname @returns counter drop comment "own multicast"
    oifname "{PORT_PREFIX}*" oifname != @stations oifname . oifname != @returns counter drop comment "port of no pod"
  }}"""

_SETS: Final = (
    ("bridge", "stations", "type ifname"),
    ("bridge", "macs", "type ifname . ether_addr"),
    ("bridge", "ipv4", "type ifname . ipv4_addr"),
    ("bridge", "ipv6", "type ifname . ipv6_addr"),
    ("bridge", "nd", "typeof iifname . @th,64,128"),
    ("bridge", "returns", "type ifname . ifname"),  # a hairpin port gets its own multicast back
    ("inet", "pods4", "type ipv4_addr . ipv4_addr"),  # two addresses of one pod; an address twice: of a pod here
    ("inet", "pods6", "type ipv6_addr . ipv6_addr"),
)


def tables(plan: TablesPlan, guards: Iterable[PortGuard] = ()) -> str:
    """All tables in one transaction, those named ``weave_router`` anew, with the elements of the pods that stand."""
    elements: dict[str, list[str]] = {name: [] for _, name, _ in _SETS}
    for guard in guards:
        for name, own in guard.elements.items():
            elements[name] += map(text, own)
    sets = {
        family: "\n".join(
            f"  set {name} {{ {kind};{_initial(elements[name])} }}" for owner, name, kind in _SETS if owner == family
        )
        for family in FAMILIES
    }
    return (
        f"{_fresh('bridge')}table bridge {TABLE} {{\n{sets['bridge']}{_GUARD_CHAINS}\n}}\n"
        f"{_fresh('inet')}table inet {TABLE} {{\n{sets['inet']}\n{_masquerade(plan)}\n{_forward(plan)}\n}}\n"
        f"{translated.text(plan.mac) if plan.mac else _fresh('bridge', ANSWERS)}"
    )


def _fresh(family: str, table: str = TABLE) -> str:
    """Add before delete: deleting what is not there fails the transaction."""
    return f"table {family} {table}\ndelete table {family} {table}\n"


def removed() -> str:
    return "".join(_fresh(family, table) for family, table in TABLES)


def _initial(elements: Sequence[str]) -> str:
    return f" elements = {{ {', '.join(elements)} }};" if elements else ""


def _masquerade(plan: TablesPlan) -> str:
    """Frames bridged inside the overlay pass this hook too where bridge netfilter is on, without an input interface:
    by the bridge, from a source that is not the host's. See docs/operations.md for what each rule is for."""
    rules = _masquerade_rules(plan, "ip", str(plan.universe_v4), "224.0.0.0/4", "pods4")
    if plan.universe_v6 is not None:
        rules += _masquerade_rules(plan, "ip6", str(plan.universe_v6), "ff00::/8", "pods6")
    head = "    type nat hook postrouting priority 100; policy accept;"
    return "\n".join(["  chain postrouting {", head, *rules, "  }"])


def _masquerade_rules(plan: TablesPlan, family: str, universe: str, multicast: str, pods: str) -> list[str]:
    bridge, elsewhere = f'oifname "{plan.bridge}"', f"{family} daddr . {family} daddr != @{pods}"
    stranger = f"{family} saddr != {universe} {family} daddr {universe}"
    if family == "ip6":  # neighbour discovery speaks from link-local addresses
        stranger = f"ip6 saddr != {{ {universe}, fe80::/10 }} ip6 daddr {universe}"
    # A pod's connection that was translated and routed: without bridge netfilter its answers would be bridged past us.
    # translated.py brings them back where there are ports, one of both pods is here (else the other node would see a
    # source that is not ours), and they are two.
    service = f'iifname "{plan.bridge}" {bridge} ct status dnat {family} saddr {universe} {family} daddr {universe}'
    services = [
        f"{service} meta l4proto != {{ tcp, udp, sctp, dccp }} masquerade",
        f"{service} {family} saddr . {family} daddr @{pods} masquerade",
        f"{service} {family} saddr . {family} saddr != @{pods} {elsewhere} masquerade",
    ]
    if plan.mac is None:
        services = [f"{service} masquerade"]
    own = f"{elsewhere} " if plan.no_masq_local else ""
    leaving = f"{family} saddr {universe} {family} daddr != {{ {universe}, {multicast} }}"
    return [
        f'    oifname != "{plan.bridge}" {leaving} masquerade',
        f"    {bridge} {stranger} {own}fib saddr type local masquerade",
        f'    iifname != "{plan.bridge}" {bridge} {stranger} {elsewhere} masquerade',
        *(f"    {rule}" for rule in services),
    ]


def _forward(plan: TablesPlan) -> str:
    """Marks what may go to pods whatever others' tables say, for the rules that forwarding.py puts there; and, behind
    the translation of sources, what translated.py notes."""
    mark, rest = f"{FORWARD_MARK:#010x}", f"{~FORWARD_MARK & 0xFFFFFFFF:#010x}"
    kept = "\n".join(
        f"    {f'ct expiration > {more} ' if more else ''}meta mark set meta mark | {bits:#010x} return"
        for bits, more, _ in KEPT
    )
    return f"""  chain forward {{
    type filter hook forward priority -300; policy accept;
    oifname "{plan.bridge}" ct state established,related meta mark set meta mark | {mark}
    oifname "{plan.bridge}" ct status dnat meta mark set meta mark | {mark}
  }}
  chain unmark {{
    type filter hook postrouting priority -300; policy accept;
    oifname "{plan.bridge}" meta mark & {mark} == {mark} meta mark set meta mark & {rest}
  }}
  chain services {{
    type filter hook postrouting priority 110; policy accept;
    iifname "{plan.bridge}" oifname "{plan.bridge}" ct direction original ct status & (snat | dnat) == dnat jump service
  }}
  chain service {{
{kept}
  }}"""


def guards_added(guards: Sequence[PortGuard]) -> list[Message]:
    """Elements of more ports; of one that is there already too."""
    return _changed(added, guards)


def guards_removed(guards: Sequence[PortGuard]) -> list[Message]:
    """All or, where something flushed one of the elements meanwhile, none: then they are to be added first."""
    return _changed(deleted, guards)


def _changed(
    verb: Callable[[str, str, str, Iterable[bytes]], list[Message]], guards: Sequence[PortGuard]
) -> list[Message]:
    return [
        message
        for family, name, _ in _SETS
        for message in verb(family, TABLE, name, [each for guard in guards for each in guard.packed.get(name, ())])
    ]


def standing(listings: Iterable[Mapping[str, Any]]) -> tuple[frozenset[str], frozenset[str]]:
    """From ``nft -j list table`` of all: the rules without their handles, and the ports that sets know. Compared with
    what was read when the tables were loaded, they say whether something flushed them."""
    rules, ports = set(), set()
    for item in (item for listing in listings for item in listing.get("nftables", [])):
        if "rule" in item:
            rule = {key: value for key, value in item["rule"].items() if key not in ("handle", "index")}
            rules.add(json.dumps(rule, sort_keys=True))
        elif "set" in item and item["set"]["name"] in ("macs", "stations"):
            ports |= {_port_of(element) for element in item["set"].get("elem", ())}
    return frozenset(rules), frozenset(ports)


def _port_of(element: Any) -> str:
    """An element as nft's JSON has it: a text, or a concatenation that begins with the port."""
    return str(element["concat"][0] if isinstance(element, dict) else element)
