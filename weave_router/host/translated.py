"""The nft table ``bridge weave_router_answers``: who answers what the host translated, answers the host. Pure.

    pod A -> Service, to the bridge's MAC    the host translates, and routes it out of the bridge; A stays its source
    host -> pod B                            output: B, A, protocol and ports are noted, by netfilter.py's mark
    pod B -> A, to A's MAC                   prerouting: noted, so it goes to the bridge's MAC, and the host says that
                                             it comes from the Service

Without, and without bridge netfilter, B's answer would be bridged past the translation: the whole cluster is one link.
With bridge netfilter such frames are bridged as they are translated, nothing is marked and nothing noted.

What is noted outlives a reload and the router: connections stand on it. So a set whose form changes gets another name.
"""

from typing import Final

from weave_router.limits import TRANSLATED_CONNECTIONS, TRANSLATED_PAIRS

ANSWERS: Final = "weave_router_answers"
MARKED: Final = 0x0C000000
"""Bits of the packet mark from postrouting to the bridge's output, on what is translated and whose source is not."""
KEPT: Final = ((0x0C000000, "1h", "5d"), (0x08000000, "130s", "61m"), (0x04000000, "", "150s"))
"""(Those bits, what conntrack keeps for more than this, how long the note of it is kept.) A note lives longer than what
conntrack knows, and little: one too many sends an answer by way of the host, which has nothing to translate in it."""
_SHORTEST: Final = KEPT[-1][2]
_FAMILIES: Final = (
    # Suffix, family, key of a connection after addresses, fragments, errors that a pod sends about what it was sent.
    ("4", "ip", "ip protocol", "ip frag-off & 0x3fff != 0", "icmp type { destination-unreachable, time-exceeded }"),
    ("6", "ip6", "meta l4proto", "exthdr frag exists", "icmpv6 type { destination-unreachable, time-exceeded }"),
)


def text(mac: str) -> str:
    """The table with empty or kept sets. ``mac``: the bridge's."""
    table = f"table bridge {ANSWERS}"
    sets = "".join(
        f"  set pairs{n} {{ typeof {ip} saddr . {ip} daddr; flags dynamic,timeout; size {TRANSLATED_PAIRS}; }}\n"
        f"  set connections{n} {{ typeof {ip} saddr . {ip} daddr . {protocol} . th sport . th dport;"
        f" flags dynamic,timeout; size {TRANSLATED_CONNECTIONS}; }}\n"
        for n, ip, protocol, _, _ in _FAMILIES
    )
    chains = "".join(_chains(*family) for family in _FAMILIES)
    # Bridged, so not translated: a note of an earlier connection from the same port to the same pod would mislead it.
    opened = "".join(
        f"    delete @connections{n} {{ {_noted(ip, protocol)} }}\n" for n, ip, protocol, _, _ in _FAMILIES
    )
    return f"""{table} {{
{sets}}}
flush {table}
{table} {{
  chain host {{ ether daddr set {mac} meta pkttype set host; }}
{chains}  chain opened {{
{opened}  }}
  chain output {{
    type filter hook output priority 0; policy accept;
    meta mark & {MARKED:#010x} == 0 return
    meta protocol vmap {{ ip : jump note4, ip6 : jump note6 }}
    meta mark set meta mark & {~MARKED & 0xFFFFFFFF:#010x}
  }}
  chain prerouting {{
    type filter hook prerouting priority -300; policy accept;
    tcp flags & (syn | ack) == syn jump opened
    ip saddr . ip daddr @pairs4 jump answer4
    ip6 saddr . ip6 daddr @pairs6 jump answer6
  }}
}}
"""


def _noted(ip: str, protocol: str) -> str:
    """The key of what will answer this packet."""
    return f"{ip} daddr . {ip} saddr . {protocol} . th dport . th sport"


def _chains(n: str, ip: str, protocol: str, fragment: str, error: str) -> str:
    """Fragments bear no ports and errors those of what they are about: all of the pair go to the host, which lets
    through what it did not translate. A connection that its server resets is no longer kept: its client says nothing
    more. A client of UDP need not either, so there the answers keep it."""
    noted = _noted(ip, protocol)
    seen = f"{ip} saddr . {ip} daddr . {protocol} . th sport . th dport"
    notes = "\n".join(
        f"    meta mark & {MARKED:#010x} == {mark:#010x} update @connections{n} {{ {noted} timeout {kept} }}"
        for mark, _, kept in KEPT
    )
    return f"""  chain note{n} {{
    update @pairs{n} {{ {ip} daddr . {ip} saddr timeout {KEPT[0][2]} }}
{notes}
  }}
  chain answer{n} {{
    {fragment} goto host
    {error} goto host
    {seen} != @connections{n} return
    meta l4proto udp update @connections{n} {{ {seen} timeout {_SHORTEST} }}
    tcp flags & rst == rst update @connections{n} {{ {seen} timeout {_SHORTEST} }}
    goto host
  }}
"""
