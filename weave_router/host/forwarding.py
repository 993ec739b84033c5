"""Others' chains that can drop what pods send or get, and the accept pair that answers them. Pure.

A packet passes every base chain at ``forward``, and a drop in one of them cannot be undone by our own table: so each
chain that can drop gets two marked rules at its head (in DOCKER-USER where the chain jumps there). They accept what
comes from the bridge, and what our table marked on its way to it: answers and published ports, nothing else from
outside. Who put other rules before ours meant it: a pair that is there is left where it is. forwarding_driver.py reads
the listings and runs the text.
"""

import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from weave_router.host.netfilter import FORWARD_MARK, TABLE
from weave_router.limits import FIREWALL_LOOK_SHARE, FIREWALL_LOOK_SPACING

COMMENT: Final = "weave-router: "
"""How the comment of each rule of ours in others' chains begins."""
_FROM: Final = COMMENT + "from pods"
_TO: Final = COMMENT + "answers to pods"
_DOCKER: Final = "DOCKER-USER"
FIREWALLD: Final = "firewalld"
_SERVICES: Final = ("kube-proxy", "KUBE-")
"""Kubernetes' own tables and chains drop what no Service should carry: to go past them would break Services."""
_FAMILIES: Final = ("ip", "ip6", "inet")

Key = tuple[str, str, str]
"""Family, table, chain."""


@dataclass(frozen=True)
class ForwardDrop:
    """A base chain of somebody else at ``forward`` that can drop what pods send. ``place``: the chain for our pair;
    ``missing``: comments of the rules that are not there."""

    family: str
    table: str
    chain: str
    why: str
    place: str = ""
    missing: tuple[str, ...] = (_TO, _FROM)

    def __str__(self) -> str:
        return f"{self.family} {self.table} {self.chain} ({self.why})"

    @property
    def answered(self) -> bool:
        return not self.missing


def forward_tables(chains: Mapping[str, Any]) -> list[tuple[str, str]]:
    """From ``nft -j list chains``: (family, table) with a base chain at forward, ours and kube-proxy's left out."""
    found = [(c["family"], c["table"]) for c in _items(chains, "chain") if c.get("hook") == "forward"]
    return [key for key in dict.fromkeys(found) if key[0] in _FAMILIES and key[1] != TABLE and key[1] != _SERVICES[0]]


def forward_drops(ruleset: Mapping[str, Any], bridge: str = "") -> list[ForwardDrop]:
    """From ``nft -j list ruleset`` or tables of it: chains at forward whose policy or rules drop or reject."""
    rules = _by_chain(ruleset)
    wanted = {(chain["family"], chain["table"]) for chain in _items(ruleset, "chain")}
    found = []
    for chain in _items(ruleset, "chain"):
        key = _key(chain, "name")
        if key[:2] not in wanted or chain.get("hook") != "forward" or key[0] not in _FAMILIES:
            continue
        if key[1] in (TABLE, _SERVICES[0]):
            continue
        reached = _reached(key, rules)
        why = _why(chain, reached, rules)
        if why:
            place = _DOCKER if _DOCKER in reached else key[2]
            there = {rule.get("comment") for rule in rules.get((*key[:2], place), ()) if _is_ours(rule, bridge)}
            found.append(ForwardDrop(*key, why, place, tuple(text for text in (_TO, _FROM) if text not in there)))
    return found


def _items(ruleset: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
    return [item[kind] for item in ruleset.get("nftables", []) if kind in item]


def _key(item: Mapping[str, Any], name: str) -> Key:
    return item["family"], item["table"], item[name]


def _by_chain(ruleset: Mapping[str, Any]) -> dict[Key, list[dict[str, Any]]]:
    rules: dict[Key, list[dict[str, Any]]] = {}
    for rule in _items(ruleset, "rule"):
        rules.setdefault(_key(rule, "chain"), []).append(rule)
    return rules


def _why(chain: Mapping[str, Any], reached: Iterable[str], rules: Mapping[Key, Sequence[Mapping[str, Any]]]) -> str:
    if chain.get("policy") == "drop":
        return "policy drop"
    family, table = chain["family"], chain["table"]
    if any(_drops(rule) for name in reached for rule in rules.get((family, table, name), ())):
        return "a rule drops or rejects"
    return ""


def _reached(base: Key, rules: Mapping[Key, Sequence[Mapping[str, Any]]]) -> set[str]:
    """The chain and all that its jumps and gotos lead to."""
    todo, seen = [base[2]], set[str]()
    while todo:
        name = todo.pop()
        if name not in seen and not name.startswith(_SERVICES):
            seen.add(name)
            todo += [target for rule in rules.get((*base[:2], name), ()) for target in _targets(rule)]
    return seen


def _parts(rule: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [part for part in rule.get("expr", []) if isinstance(part, dict)]


def _drops(rule: Mapping[str, Any]) -> bool:
    return any("drop" in part or "reject" in part or _rejects(part) or _maps_to_drop(part) for part in _parts(rule))


def _rejects(part: Mapping[str, Any]) -> bool:
    """iptables-nft's REJECT is a target of x_tables; older nft says of these no more than that there is one."""
    return "xt" in part and (part["xt"] is None or part["xt"].get("name") == "REJECT")


def _maps_to_drop(part: Mapping[str, Any]) -> bool:
    return "vmap" in part and '"drop"' in str(part["vmap"]).replace("'", '"')


def _targets(rule: Mapping[str, Any]) -> list[str]:
    """Of jumps and gotos, those inside verdict maps included."""
    found: list[str] = []
    todo: list[Any] = list(_parts(rule))
    while todo:
        part = todo.pop()
        if isinstance(part, dict):
            verdict = part.get("jump") or part.get("goto")
            if isinstance(verdict, dict) and "target" in verdict:
                found.append(verdict["target"])
            todo += part.values()
        elif isinstance(part, list):
            todo += part
    return found


def _is_ours(rule: Mapping[str, Any], bridge: str) -> bool:
    return is_marked(rule) and (not bridge or bridge in str(rule.get("expr")))


def is_marked(rule: Mapping[str, Any]) -> bool:
    return str(rule.get("comment", "")).startswith(COMMENT)


# -- what is put there, and taken away -----------------------------------------------------------------------------


def answer(drop: ForwardDrop, bridge: str) -> str:
    """The rules that are missing, at the head. Only words that iptables-nft can read back."""
    mark = f"{FORWARD_MARK:#x}"
    words = {
        _TO: f'oifname "{bridge}" meta mark & {mark} == {mark} counter accept',
        _FROM: f'iifname "{bridge}" counter accept',
    }
    head = f"insert rule {drop.family} {drop.table} {drop.place}"
    return "".join(f'{head} {words[text]} comment "{text}"\n' for text in drop.missing)


def places(ruleset: Mapping[str, Any]) -> tuple[str, ...]:
    """Chains that hold rules of ours: family, table, name."""
    return tuple(dict.fromkeys(" ".join(_key(rule, "chain")) for rule in _items(ruleset, "rule") if is_marked(rule)))


def withdrawn(ruleset: Mapping[str, Any], keep: Collection[Key] = (), of: str = "") -> str:
    """Deletes every rule of ours in chains that are not to be kept; ``of``: in this chain alone, as in ``places``."""
    marked = [
        rule
        for rule in _items(ruleset, "rule")
        if is_marked(rule) and _key(rule, "chain") not in keep and of in ("", " ".join(_key(rule, "chain")))
    ]
    return "".join(
        f"delete rule {rule['family']} {rule['table']} {rule['chain']} handle {rule['handle']}\n" for rule in marked
    )


# -- what the kernel tells of changes ------------------------------------------------------------------------------

_HEADER: Final = struct.Struct("=IHHIIBBH")  # nlmsghdr, nfgenmsg (linux/netlink.h, linux/netfilter/nfnetlink.h)
_ATTRIBUTE: Final = struct.Struct("=HH")
_SUBSYSTEM: Final = 10  # NFNL_SUBSYS_NFTABLES
_TABLES_AND_CHAINS: Final = (0, 2, 3, 5)  # NFT_MSG_NEWTABLE, DELTABLE, NEWCHAIN, DELCHAIN
_RULES: Final = (6, 8)  # NFT_MSG_NEWRULE, DELRULE
_FAMILY_NAMES: Final = {1: "inet", 2: "ip", 7: "bridge", 10: "ip6"}


def concerns(data: bytes, watched: Collection[tuple[str, str]]) -> bool:
    """Whether this notification can have changed what was looked at: a table or chain anywhere, a rule of a watched
    table. Elements of sets, which every pod changes, never do."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, _, _, _, family, _, _ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size:
            return True
        if kind >> 8 == _SUBSYSTEM:
            message = kind & 0xFF
            if message in _TABLES_AND_CHAINS:
                return True
            if message in _RULES:
                table = _first_name(data[at + _HEADER.size : at + length])
                if (_FAMILY_NAMES.get(family, ""), table) in watched:
                    return True
        at += (length + 3) & ~3
    return False


def _first_name(attributes: bytes) -> str:
    """NFTA_RULE_TABLE is the first attribute of every rule message."""
    if len(attributes) < _ATTRIBUTE.size:
        return ""
    length, _ = _ATTRIBUTE.unpack_from(attributes)
    return attributes[_ATTRIBUTE.size : length].rstrip(b"\0").decode("utf-8", "replace")


def rest(seconds: float) -> float:
    """How long to leave the rules alone after a look that took ``seconds``."""
    return max(FIREWALL_LOOK_SPACING, seconds / FIREWALL_LOOK_SHARE)


# -- what is said of it --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Firewall:
    """What was found and done at the last look. ``answered``: chain, and where the pair stands. ``refused``: chain and
    why. ``legacy``: families whose legacy iptables has a filter table. ``problem``: why nothing could be looked at."""

    answered: tuple[tuple[str, str], ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    legacy: tuple[str, ...] = ()
    bridge_netfilter: bool = False
    hairpin: bool = False
    unready: str = ""
    problem: str = ""
    healed: int = 0
    """Looks at which something of ours was missing and was put back."""


def legacy_commands(family: str, bridge: str) -> str:
    """What accepts pods in front of a legacy FORWARD drop."""
    program = "ip6tables-legacy" if family == "ip6" else "iptables-legacy"
    return f"{program} -I FORWARD -i {bridge} -j ACCEPT; {program} -I FORWARD -o {bridge} -j ACCEPT"


def legacy_sentence(family: str, bridge: str) -> str:
    program = legacy_commands(family, bridge).split(" ", 1)[0]
    return (
        f"legacy iptables has a filter table, which nft does not show: if `{program} -S FORWARD` drops or "
        f"rejects, run `{legacy_commands(family, bridge)}`"
    )


def warnings(firewall: Firewall, bridge: str) -> list[str]:
    """For status and doctor: what a person has to do."""
    found = [f"chain {chain} can drop what pods send and get, and could not be answered: {why}"
             for chain, why in firewall.refused]  # fmt: skip
    found += [legacy_sentence(family, bridge) for family in firewall.legacy]
    found += [text for text in (firewall.unready, firewall.problem) if text]
    return found
