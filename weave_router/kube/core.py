"""What one router does about the API's objects: claims blocks, keeps them, frees those of machines that are gone.

Sans-I/O. Told what the watches see and what became of a call; answers with calls, with words for the addresses
(``Blocks``: ipam/arbitrated.py), and with sentences. One call is under way at a time. A call without an answer may have
been carried out: the object is read again before anything follows from it. Called by driver.py and the simulation.

    block's Lease says          and here                      then
    my UID, my identity         the same generation           nothing
    my UID, my identity         a newer register is known     count on: write generation known + 1, then use it
    my UID, my identity         older or nothing              use it
    my identity, another UID    -                             write my UID (the Node object was made anew)
    my UID, another identity    -                             take it over (the machine was set up anew)
    nobody, or no Lease         register says mine            take it again, one generation on; not if given back
    somebody else               register says mine            lost: nothing new from it, its pods' ports down
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from random import Random
from typing import Final

from weave_router import limits
from weave_router.errors import BadPacket
from weave_router.ipam.founding import block_count, network_of
from weave_router.tunnel.token import TokenSet

from . import objects, tokens
from .events import Event, EventQueue, lost_event
from .objects import Lease, Node, UniverseLease
from .values import BACKOFF_MOST, Answer, Blocks, Call, Settings, World, back_off

FULL_AGAIN_SECONDS: Final = 30.0
"""From a claim that found no free block to the next."""


@dataclass(slots=True)
class Gone:
    """A holder whose Node is not there. ``checked``: a live list found no Pod on it."""

    since: float
    due: float
    seen: int = 1
    checked: bool = False


class Kube:
    def __init__(self, settings: Settings, me: bytes, blocks: Blocks, rng: Random, *,
                 universe: UniverseLease | None = None, held: TokenSet | None = None,
                 targets: Collection[str] = ()) -> None:
        """``targets``: of the start before this one, until the Nodes are known."""
        self.settings = settings
        self.me = me.hex()
        self.blocks = blocks
        self.held = held
        self.universe = universe
        self.nodes: dict[str, Node] = {}
        self._targets: Collection[str] | None = targets
        self.leases: dict[int, Lease] = {}
        self.nodes_synced = self.leases_synced = False
        self.troubles: dict[str, str] = {}
        """What is wrong, by its subject: the sentences of status."""
        self.counts: dict[str, int] = {}
        self.new_tokens: TokenSet | None = None
        self._rng = rng
        self._calls: deque[Call] = deque()
        self._under_way: Call | None = None
        self.events = EventQueue()
        self.lost: dict[int, int] = {}
        """Lost blocks that pods still live in, and the generation that took them: said in the record of this node."""
        self._gone: dict[str, Gone] = {}
        self._graves: dict[bytes, float] = {}
        self.buried: list[bytes] = []
        """Identities whose machines are gone, until somebody drops their records."""
        self._pods_of: dict[str, str] = {}
        self._not_before = 0.0
        self._failures = 0
        self._claim_at = 0.0
        self._avoid: set[int] = set()
        """Blocks another node was faster with, until the watch shows it."""
        self.given: set[int] = set()
        """Blocks given back: not used, whatever the register says, until they are claimed again. A restart forgets
        them, and takes again what nobody has claimed meanwhile."""
        self._spare_since: float | None = None
        self._patched = ""
        self._secret: str | None = None
        self._secret_seen = False
        self._world = World()

    # -- what there is -------------------------------------------------------------------------------------------------

    @property
    def own(self) -> Node | None:
        return self.nodes.get(self.settings.node)

    @property
    def _uid(self) -> str:
        return self.own.uid if self.own else ""

    @property
    def holder(self) -> str:
        """Empty while the Node of this router is not known."""
        return f"{self.own.uid}.{self.me}" if self.own else ""

    def addresses(self) -> dict[str, tuple[str, ...]]:
        """Of the other Nodes."""
        return {node.name: node.addresses for node in self.nodes.values() if node.name != self.settings.node}

    def targets(self) -> list[str]:
        """Whom to call: the next one by name, so that all are one ring, and some drawn by name. Both families."""
        if self._targets is not None:
            return list(self._targets)
        names = sorted(name for name, found in self.addresses().items() if found)
        after = [name for name in names if name > self.settings.node] + [n for n in names if n < self.settings.node]
        drawn = Random(self.settings.node).sample(names, min(len(names), limits.KUBE_TARGETS - 1))
        chosen = dict.fromkeys((*after[:1], *sorted(drawn)))
        return [address for name in chosen for address in self.nodes[name].addresses]

    def free(self) -> bool:
        return self._under_way is None

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def nodes_listed(self, nodes: Iterable[Node], now: float) -> None:
        self.nodes = {node.name: node for node in nodes}
        self._targets = None
        self.nodes_synced = True
        self.troubles.pop("watch of nodes", None)
        self._nodes_changed(now)

    def node_changed(self, node: Node, deleted: bool, now: float) -> None:
        if deleted:
            self.nodes.pop(node.name, None)
        elif node.name in self.nodes or len(self.nodes) < limits.KUBE_OBJECTS_MAX:
            self.nodes[node.name] = node
        self._nodes_changed(now)

    def _nodes_changed(self, now: float) -> None:
        wrong = sorted(f"Node {node.name} {node.problem}" for node in self.nodes.values() if node.problem)
        more = f", and {len(wrong) - 4} more Nodes" if len(wrong) > 4 else ""
        self._trouble("nodes", ", ".join(wrong[:4]) + more, "NodeAddress")
        gone = self.nodes_synced and self.own is None
        self._trouble("own node", f"there is no Node {self.settings.node}: its blocks are given away once this "
                                  "router is off; create the Node, or stop the router" if gone else "", "NodeGone")
        self._settle_all(now)

    # -- leases --------------------------------------------------------------------------------------------------------

    def leases_listed(self, leases: Iterable[Lease], now: float) -> None:
        """All there are: after it a closed gate opens."""
        self.leases = {lease.block: lease for lease in leases}
        self.leases_synced = True
        self.troubles.pop("watch of leases", None)
        self._avoid.clear()
        self._check_foreign()
        self._settle_all(now)
        self.blocks.grant({}, now, read=True)

    def lease_changed(self, lease: Lease, deleted: bool, now: float) -> None:
        if self._older(lease):
            return
        self._avoid.discard(lease.block)
        if deleted:
            self.leases.pop(lease.block, None)
        else:
            self.leases[lease.block] = lease
        self._check_foreign()
        self._settle(lease.block, now)

    def _older(self, lease: Lease) -> bool:
        """An own write is known before the watch tells of it; what the watch tells may be from before."""
        held = self.leases.get(lease.block)
        return held is not None and held.uid == lease.uid and number(lease.version) < number(held.version)

    def _check_foreign(self) -> None:
        found = [f"Lease {lease.name} is not ours: {lease.foreign}" for lease in self.leases.values() if lease.foreign]
        self._trouble("leases", "; ".join(sorted(found)[:2]), "LeaseForeign")

    def unsynced(self, kind: str, sentence: str) -> None:
        """A watch is broken; what it showed stays as it is, but nobody is declared gone by it."""
        self.troubles[f"watch of {kind}"] = sentence
        if kind == "nodes":
            self.nodes_synced = False
            self._gone.clear()
        if kind == "leases":
            self.leases_synced = False

    def resumed(self, kind: str) -> None:
        """The watch goes on where it was: nothing was missed."""
        self.troubles.pop(f"watch of {kind}", None)
        self.nodes_synced = self.nodes_synced or kind == "nodes"
        self.leases_synced = self.leases_synced or kind == "leases"

    # -- a block and its Lease -----------------------------------------------------------------------------------------

    def _settle_all(self, now: float) -> None:
        if not self.leases_synced:
            return
        mine = {lease.block for lease in self.leases.values()
                if lease.holder and (lease.identity == self.me or (self.own and lease.node_uid == self.own.uid))}
        for block in sorted(mine.union(self.blocks.owned(), self.blocks.disputed())):
            self._settle(block, now)

    def _settle(self, block: int, now: float) -> None:
        """The table at the head of this file."""
        lease, own = self.leases.get(block), self.own
        known = self.blocks.known_gen(block)
        if block in self.given:
            self._settle_given(block, lease)
        elif lease is not None and lease.foreign:
            self._lose(block, "its Lease was edited", now)
        elif lease is not None and lease.holder and own is not None and lease.holder == self.holder:
            if block in self.blocks.disputed() and lease.gen <= known:
                self._write(block, known + 1)
            elif self.blocks.has(block) and lease.gen < known:
                self._write(block, known)
            elif not self.blocks.grant({block: lease.gen}, now):
                self._write(block, known + 1)
        elif lease is not None and lease.holder and lease.identity == self.me:
            if own is not None:
                self._write(block, lease.gen)
        elif lease is not None and lease.holder and own is not None and lease.node_uid == own.uid:
            self._write(block, max(lease.gen, known) + 1)
        elif lease is None or not lease.holder:
            if self.blocks.has(block) and own is not None:
                self._write(block, max(known, lease.gen if lease else 0) + 1)
            elif self.nodes_synced:
                self._lose(block, "its Lease has no holder and this Node is gone", now)
        else:
            self._lose(block, f"it belongs to node {lease.node or lease.node_uid}", now)

    def _settle_given(self, block: int, lease: Lease | None) -> None:
        if lease is not None and lease.holder and lease.holder == self.holder:
            self._give(lease)  # it was not carried out

    def _lose(self, block: int, why: str, now: float) -> None:
        if not self.blocks.inhabited(block):
            return
        self.blocks.withdraw([block], now)
        self._count("blocks lost")
        lease, known = self.leases.get(block), self.blocks.known_gen(block)
        self.lost[block] = max(known, lease.gen if lease else 0)
        network = network_of(self.settings.range_v4, block)
        event = lost_event(self.settings.node, self._uid, network, self.lost[block], why)
        self.troubles[f"block {network}"] = event.message
        self.events.add(event)

    def _forget_lost(self) -> None:
        """Their last pods are gone."""
        for block in self.lost.keys() - self._world.cut:
            del self.lost[block]
            self.troubles.pop(f"block {network_of(self.settings.range_v4, block)}", None)

    def _tell_lost(self) -> None:
        """Of blocks of this node: what others lost to it."""
        mine = {each for each in self._world.lost if (lease := self.leases.get(each.block)) is not None
                and self.holder and lease.holder == self.holder and each.gen <= lease.gen}
        for each in self.events.fresh(mine):
            node = self.nodes.get(each.node)
            network, why = network_of(self.settings.range_v4, each.block), f"it belongs to node {self.settings.node}"
            self.events.add(lost_event(each.node, node.uid if node else "", network, each.gen, why))

    def _write(self, block: int, gen: int, purpose: str = "keep") -> None:
        """Make this node the holder of a Lease that there is, or of a new one."""
        if not self.holder or any(call.block == block and call.purpose != "free" for call in self._all_calls()):
            return
        lease = self.leases.get(block)
        body = objects.lease_body(block, self.settings.range_v4, self.holder, gen, self.settings.node,
                                  uid=lease.uid if lease else "", version=lease.version if lease else "")
        if lease is None:
            self._calls.append(Call("POST", self._leases, purpose, block, body, gen=gen))
        else:
            self._calls.append(Call("PUT", f"{self._leases}/{lease.name}", purpose, block, body, gen=gen))

    def _all_calls(self) -> list[Call]:
        return [*self._calls, *([self._under_way] if self._under_way else [])]

    @property
    def _leases(self) -> str:
        return f"apis/coordination.k8s.io/v1/namespaces/{self.settings.namespace}/leases"

    # -- a block ahead -------------------------------------------------------------------------------------------------

    def _claim(self, now: float) -> None:
        """One more block, if this node is about to run out of them: drawn among those without a holder."""
        if self.settings.leaving:
            self.blocks.may_grow(False)
            return
        wanted = self.blocks.wants_block() and self.leases_synced and bool(self.holder)
        busy = any(call.purpose in ("claim", "look", "keep") for call in self._all_calls())
        self.blocks.may_grow(busy or (self.leases_synced and bool(self.holder) and self._claim_at <= now))
        if busy or not wanted or now < self._claim_at:
            return
        block = self._draw()
        if block is None:
            self._claim_at = now + FULL_AGAIN_SECONDS
            self._trouble("range", f"no block of {self.settings.range_v4} is free: delete Nodes that are gone, or set "
                                   "the cluster up with a larger range", "RangeFull")
            return
        self._trouble("range", "", "")
        lease = self.leases.get(block)
        self.given.discard(block)
        self._write(block, max(self.blocks.known_gen(block), lease.gen if lease else -1) + 1, "claim")

    def _draw(self) -> int | None:
        count = block_count(self.settings.range_v4)
        for _ in range(16):
            block = self._rng.randrange(count)
            if self._is_free(block):
                return block
        free = [block for block in range(count) if self._is_free(block)]
        return self._rng.choice(free) if free else None

    def _is_free(self, block: int) -> bool:
        lease = self.leases.get(block)
        empty = lease is None or not (lease.holder or lease.foreign)
        return empty and block not in self._avoid and (block in self.given or not self.blocks.has(block))

    # -- a block too many ----------------------------------------------------------------------------------------------

    def _give_back(self, now: float) -> None:
        """One block at a time, out of use here before the API server hears of it."""
        spare = self.blocks.spare() if self.leases_synced and self.holder else None
        if spare is None:
            self._spare_since = None
            return
        if self._spare_since is None:
            self._spare_since = now
        lease = self.leases.get(spare)
        busy = any(call.purpose in ("claim", "look", "keep", "give") for call in self._all_calls())
        if busy or now - self._spare_since < self.settings.idle or lease is None or lease.holder != self.holder:
            return
        self.blocks.withdraw([spare], now)
        self.given.add(spare)
        self._give(lease)

    def _give(self, lease: Lease) -> None:
        if any(call.block == lease.block for call in self._all_calls()):
            return
        body = objects.lease_body(lease.block, self.settings.range_v4, "", lease.gen, "", uid=lease.uid,
                                  version=lease.version)
        self._calls.append(Call("PUT", f"{self._leases}/{lease.name}", "give", lease.block, body))

    # -- machines that are gone ----------------------------------------------------------------------------------------

    def _fence(self, now: float) -> None:
        """Who holds a block, has no Node and is not heard, for the whole time and seen so at least twice."""
        if not (self.nodes_synced and self.leases_synced):
            self._gone.clear()
            return
        uids = {node.uid for node in self.nodes.values()}
        heard = {identity.hex() for identity in self._world.reachable}
        absent = {lease.holder: lease.node for lease in self.leases.values()
                  if lease.holder and not lease.foreign and lease.node_uid not in uids
                  and lease.identity != self.me and lease.identity not in heard}
        for holder in self._gone.keys() - absent.keys():
            del self._gone[holder]
        for holder, node in absent.items():
            gone = self._gone.get(holder)
            if gone is None:
                self._gone[holder] = Gone(now, now + self.settings.fence + self._rng.uniform(0, self.settings.jitter))
                continue
            gone.seen += 1
            if now >= gone.due and gone.seen >= 2:
                self._free(holder, node, gone)

    def _bury(self, now: float) -> None:
        """Records go by the same rule: no Node, no Lease, no word for the whole time."""
        if not (self.nodes_synced and self.leases_synced):
            self._graves.clear()
            return
        holding = {lease.identity for lease in self.leases.values()}
        world = self._world
        heard = {world.names.get(identity) for identity in world.reachable}
        absent = {identity for identity, name in world.names.items()
                  if identity not in world.reachable and identity.hex() not in holding and identity.hex() != self.me
                  and (name not in self.nodes or name in heard)}
        self._graves = {identity: self._graves.get(identity, now) for identity in absent}
        for identity, since in list(self._graves.items()):
            if now - since >= self.settings.fence + self.settings.jitter:
                self.buried.append(identity)
                del self._graves[identity]

    def _free(self, holder: str, node: str, gone: Gone) -> None:
        if any(call.target == holder for call in self._all_calls()):
            return
        if not gone.checked:
            self._calls.append(Call("GET", "api/v1/pods", "pods", target=holder,
                                    params={"fieldSelector": f"spec.nodeName={node}", "limit": "500"}))
            return
        for lease in [lease for lease in self.leases.values() if lease.holder == holder][:1]:
            self._calls.append(Call("GET", f"{self._leases}/{lease.name}", "reread", lease.block, target=holder))

    def _pods(self, call: Call, answer: Answer, now: float) -> None:
        """Pods of a new Node under the old name do not count: they are younger than it."""
        gone = self._gone.get(call.target)
        if gone is None:
            return
        try:
            page = objects.read_untrusted(answer.body, objects.Page)
            pods = [objects.read_untrusted(item, objects.RawPod).metadata for item in page.items or ()]
        except BadPacket:
            pods = [objects.NodeMeta(name="?")]
        name = next((lease.node for lease in self.leases.values() if lease.holder == call.target), "")
        successor = self.nodes.get(name)
        since = successor.created if successor else ""
        bound = [pod for pod in pods if not since or pod.creation_timestamp < since]
        if bound:
            gone.due = now + self.settings.fence / 10
            self.troubles[f"node {name}"] = f"blocks of node {name} wait: {len(bound)} Pods are bound to it"
        else:
            self.troubles.pop(f"node {name}", None)
            gone.checked = True

    def _reread(self, call: Call, answer: Answer, now: float) -> None:
        lease = self._lease_of(answer)
        if lease is None or lease.holder != call.target or call.target not in self._gone:
            return
        self.leases[lease.block] = lease
        body = objects.lease_body(lease.block, self.settings.range_v4, "", lease.gen, "", uid=lease.uid,
                                  version=lease.version)
        self._calls.append(Call("PUT", f"{self._leases}/{lease.name}", "free", lease.block, body, target=call.target))

    # -- the token -----------------------------------------------------------------------------------------------------

    def secret_seen(self, text: str | None, now: float) -> None:
        """The Secret as it is now; None: there is none."""
        self._secret, self._secret_seen = text, True
        self.troubles.pop("watch of secrets", None)
        self._judge()

    def secret_unusable(self, why: str) -> None:
        self._secret_seen = False
        self._trouble("token", f"Secret {objects.NAME} {why}: the tokens in use stay", "TokenSecret")

    def _judge(self) -> None:
        if not self._secret_seen or self.universe is None or self.held is None:
            return
        verdict = tokens.judge(self._secret, self.universe.token_id, self.held, self._world.sent,
                               self._world.accepted)
        self._trouble("token", verdict.sentence, "TokenSecret")
        if verdict.create:
            if not any(call.purpose == "secret" for call in self._all_calls()):
                text = "".join(f"{token}\n" for token in self.held)
                self._calls.append(Call("POST", f"api/v1/namespaces/{self.settings.namespace}/secrets", "secret",
                                        body=objects.secret_body(text)))
        elif verdict.tokens is not None:
            if list(verdict.tokens.ids) != list(self.held.ids):
                self.held = self.new_tokens = verdict.tokens
            if verdict.token_id != self.universe.token_id:
                self._name_token(verdict.token_id)

    def take_tokens(self) -> TokenSet | None:
        found, self.new_tokens = self.new_tokens, None
        return found

    def _name_token(self, token_id: str) -> None:
        """The universe's Lease follows the first line, so that the old one may go later."""
        if any(call.purpose == "universe" for call in self._all_calls()) or self.universe is None:
            return
        now_named = UniverseLease(self.universe.universe, self.universe.range_v4, self.universe.prefix_v6, token_id,
                                  self.universe.uid, self.universe.version)
        self._calls.append(Call("PUT", f"{self._leases}/{objects.UNIVERSE}", "universe", body=now_named.body()))

    def universe_seen(self, universe: UniverseLease, now: float) -> None:
        """Ranges and id never change; whoever edits them is told so."""
        if self.universe is None:
            self.universe = universe
        same = (universe.universe, universe.range_v4) == (self.universe.universe, self.universe.range_v4)
        self._trouble("universe", "" if same else
                      f"Lease {objects.UNIVERSE} was edited: it says range {universe.range_v4}, this cluster runs with "
                      f"{self.universe.range_v4}; put it back", "UniverseEdited")
        if same and number(universe.version) >= number(self.universe.version):
            self.universe = universe
            self._judge()

    # -- time and calls ------------------------------------------------------------------------------------------------

    def handle_timer(self, now: float, world: World) -> None:
        """Every few seconds, and whenever addresses changed."""
        self._world = world
        self._forget_lost()
        self._tell_lost()
        if self.leases_synced:
            for block in sorted(self.blocks.disputed()):
                self._settle(block, now)
        else:
            self._without_api(now)
        self._fence(now)
        self._bury(now)
        self._claim(now)
        self._give_back(now)
        self._judge()
        if self.own is not None and world.serving and not self.own.available and self._patched != self.own.version:
            self._patched = self.own.version
            self._calls.append(Call("PATCH", f"api/v1/nodes/{self.settings.node}/status", "condition",
                                    body=objects.condition_body(world.utc)))

    def _without_api(self, now: float) -> None:
        """The mesh alone says that a block is another's."""
        for block in sorted(self.blocks.disputed()):
            if not self.blocks.has(block):
                self._lose(block, "its register names another node, and the API server is away", now)

    def next_call(self, now: float) -> Call | None:
        """At most one under way; after a failure the next waits."""
        if self._under_way is not None or now < self._not_before or not self._calls:
            return None
        self._under_way = self._calls.popleft()
        return self._under_way

    def answered(self, answer: Answer, now: float) -> None:
        """What became of the call under way."""
        call, self._under_way = self._under_way, None
        assert call is not None, "no call is under way"
        if answer.status in (200, 201):
            self._failures = 0
            self.troubles.pop("api", None)
            self._done(call, answer, now)
        elif answer.status in (404, 409, 422):
            self._conflict(call, now)
        else:
            self._failed(call, answer, now)
        self._claim(now)

    def _done(self, call: Call, answer: Answer, now: float) -> None:
        match call.purpose:
            case "pods":
                self._pods(call, answer, now)
            case "reread":
                self._reread(call, answer, now)
            case "universe":
                self._universe_done(answer, now)
            case "claim" | "keep" | "free" | "give" | "look":
                lease = self._lease_of(answer)
                if lease is None or lease.block != call.block:
                    self._failed(call, Answer(0, detail="the answer is no Lease"), now)
                    return
                self._count(f"leases {call.purpose}")
                if call.purpose == "free":
                    self._say("BlockFreed", f"block {network_of(self.settings.range_v4, lease.block)} of a node "
                                            "that is gone is free again", "Normal")
                self.lease_changed(lease, False, now)

    def _universe_done(self, answer: Answer, now: float) -> None:
        try:
            self.universe_seen(objects.universe_untrusted(answer.body), now)
        except BadPacket as error:
            self.troubles["universe"] = error.reason

    def _conflict(self, call: Call, now: float) -> None:
        """Somebody was faster, or it is gone: what there is now is read, or the watch tells."""
        self._failures = 0
        self._count(f"conflicts {call.purpose}")
        if call.purpose in ("claim", "look"):
            self._avoid.add(call.block)
        elif call.purpose in ("keep", "give"):
            self._look(call.block)

    def _failed(self, call: Call, answer: Answer, now: float) -> None:
        """No answer, or one that says nothing about what was done."""
        self._not_before = now + max(min(answer.after, BACKOFF_MOST), back_off(self._failures, self._rng))
        self._failures += 1
        self._count("calls failed")
        what = answer.detail or f"it answered {answer.status}"
        wait = "; forbidden: compare the Role with docs/kubernetes.md" if answer.status == 403 else ""
        self._trouble("api", f"the API server did not carry out {call.method} {call.path}: {what}{wait}", "ApiServer")
        if call.purpose in ("claim", "keep", "free", "give") and answer.status in (0, 500, 502, 503, 504):
            self._look(call.block)
        elif call.purpose == "claim":
            self._claim_at = self._not_before
        elif call.purpose in ("keep", "look", "secret", "universe", "condition"):
            self._calls.append(call)

    def _look(self, block: int) -> None:
        """Read one Lease: its state decides what follows (``lease_changed``), 404 that the block is to be left."""
        name = objects.lease_name(network_of(self.settings.range_v4, block))
        self._calls.appendleft(Call("GET", f"{self._leases}/{name}", "look", block))

    def _lease_of(self, answer: Answer) -> Lease | None:
        try:
            return objects.lease_untrusted(answer.body, self.settings.range_v4)
        except BadPacket:
            return None

    # -- words ---------------------------------------------------------------------------------------------------------

    def _trouble(self, subject: str, sentence: str, reason: str) -> None:
        """A sentence of status; an event when it is a new one."""
        if not sentence:
            self.troubles.pop(subject, None)
        elif self.troubles.get(subject) != sentence:
            self.troubles[subject] = sentence
            self._say(reason, sentence)

    def _say(self, reason: str, message: str, kind: str = "Warning") -> None:
        self.events.add(Event(kind, reason, message, self.settings.node, self._uid))

    def warn(self, subject: str, sentence: str, reason: str) -> None:
        self._trouble(subject, sentence, reason)

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1


def number(version: str) -> int:
    """resourceVersions of one kind are numbers in order (KEP-5504); what is none counts as old."""
    return int(version) if version.isascii() and version.isdecimal() and len(version) < 20 else 0
