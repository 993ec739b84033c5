"""Keeps the host's firewall open for pods: looks, answers, and looks again when the kernel tells of a change.

Decides nothing: forwarding.py says what is missing, this file reads listings, runs the text, and listens to nftables'
notifications. A look may take long where a node has many rules, so it has a thread and an nft of its own, and rests
twenty times as long as it took. ``Watch`` is built and run by router.py; doctor
calls ``listing`` and ``legacy``.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from weave_router.host import firewalld_driver, forwarding
from weave_router.host.faults import HostError
from weave_router.host.forwarding import Firewall, ForwardDrop
from weave_router.host.netfilter import TABLE
from weave_router.host.nft_driver import Nft
from weave_router.limits import FIREWALL_LOOK_SECONDS

_log = logging.getLogger(__name__)
_SOL_NETLINK: Final = 270
_NETLINK_ADD_MEMBERSHIP: Final = 1
_NETLINK_NETFILTER: Final = 12
_NFNLGRP_NFTABLES: Final = 7
_READ: Final = 1 << 16


def listing(nft: Nft) -> dict[str, Any]:
    """The tables with a chain at forward, as one ruleset: not all tables, some nodes have ten thousands of rules."""
    items: list[Any] = []
    for family, table in forwarding.forward_tables(nft.listing("list chains")):
        try:
            items += nft.listing(f"list table {family} {table}").get("nftables", [])
        except HostError:  # gone meanwhile: the notification of that makes us look again
            continue
    return {"nftables": items}


def legacy() -> tuple[str, ...]:
    """Families whose legacy iptables has a filter table, which nft does not show."""
    names = {"ip": "ip_tables_names", "ip6": "ip6_tables_names"}
    return tuple(family for family, name in names.items() if "filter" in _words(Path("/proc/thread-self/net", name)))


def _words(path: Path) -> list[str]:
    """Nothing where the module is not loaded."""
    try:
        return path.read_text().split()
    except OSError:
        return []


def answer(nft: Nft, bridge: str) -> tuple[Firewall, frozenset[tuple[str, str]], int]:
    """One look: what stands now, the tables to watch, and how many rules had to be put (back)."""
    ruleset = listing(nft)
    drops = forwarding.forward_drops(ruleset, bridge)
    keep = {(drop.family, drop.table, drop.place) for drop in drops}
    stale = forwarding.withdrawn(ruleset, keep)
    if stale:
        nft.run(stale, "remove accept rules that are no longer needed", table="of others")
    answered, refused, put = [], [], 0
    for drop in drops:
        why, where = _answer_one(nft, drop, bridge)
        put += not why and not drop.answered and where == drop.place
        if why:
            refused.append((str(drop), why))
        else:
            answered.append((str(drop), where))
    watched = {(drop.family, drop.table) for drop in drops} | set(_tables_of(ruleset)) | {("inet", TABLE)}
    return Firewall(tuple(answered), tuple(refused), legacy()), frozenset(watched | {("bridge", TABLE)}), put


def _tables_of(ruleset: dict[str, Any]) -> list[tuple[str, str]]:
    return [(item["table"]["family"], item["table"]["name"]) for item in ruleset["nftables"] if "table" in item]


def _answer_one(nft: Nft, drop: ForwardDrop, bridge: str) -> tuple[str, str]:
    """(why not, where the answer stands). firewalld is asked by its own API; where that is silent, its table is
    answered like any other."""
    if drop.table == forwarding.FIREWALLD:
        zone = firewalld_driver.trust(bridge)
        if zone == firewalld_driver.ZONE:
            return "", f"firewalld's zone {zone}"
        if zone is not None:
            return f"{bridge} is in firewalld's zone {zone}; run `{firewalld_driver.COMMAND.format(bridge)}`", ""
    if drop.answered:
        return "", drop.place
    try:
        nft.run(forwarding.answer(drop, bridge), "accept pods", table=f"{drop.family} {drop.table}")
    except HostError as error:
        hint = f"; run `{firewalld_driver.COMMAND.format(bridge)}`" if drop.table == forwarding.FIREWALLD else ""
        return f"{error}{hint}", ""
    return "", drop.place


class Watch:
    """``tend`` looks after what is ours (tables, bridge, ports): it gets the last state, returns it completed."""

    def __init__(self, bridge: str, tend: Callable[[Firewall], Awaitable[Firewall]]) -> None:
        self.state = Firewall()
        self._bridge = bridge
        self._tend = tend
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="firewall")
        self._nft: Nft | None = None
        self._watched: frozenset[tuple[str, str]] = frozenset()
        self._changed = asyncio.Event()
        self._put = 0
        self._looks = 0
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_NETFILTER)

    def now(self) -> Firewall:
        return self.state

    async def __aenter__(self) -> "Watch":
        """The first look is over when this returns."""
        self._socket.bind((0, 0))  # an unbound one hears nothing
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _NFNLGRP_NFTABLES)
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._heard)
        await self.look()
        return self

    async def __aexit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._socket.close()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown(wait=False)

    async def run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(FIREWALL_LOOK_SECONDS):
                    await self._changed.wait()
            except TimeoutError:
                pass
            began = time.monotonic()
            await self.look()
            await asyncio.sleep(forwarding.rest(time.monotonic() - began))

    async def look(self) -> None:
        self._changed.clear()
        state = await self._tend(await asyncio.get_running_loop().run_in_executor(self._thread, self._look))
        self._say(state)
        self.state = state

    def _look(self) -> Firewall:
        try:
            if self._nft is None:
                self._nft = Nft()
            state, self._watched, put = answer(self._nft, self._bridge)
        except HostError as error:
            return Firewall(legacy=legacy(), problem=str(error), healed=self._put)
        self._looks += 1
        if self._looks > 1:  # what the first look puts was never there
            self._put += put
        return Firewall(state.answered, state.refused, state.legacy, healed=self._put)

    def _close(self) -> None:
        if self._nft is not None:
            self._nft.close()

    def _heard(self) -> None:
        """Drain; a notification that was lost (ENOBUFS) counts as one that concerns us."""
        while True:
            try:
                data = self._socket.recv(_READ)
            except BlockingIOError:
                return
            except OSError:
                self._changed.set()
                return
            if forwarding.concerns(data, self._watched):
                self._changed.set()

    def _say(self, state: Firewall) -> None:
        """The log has what changed, not every look."""
        before = self.state
        for chain, where in set(state.answered) - set(before.answered):
            _log.info("forwarding answered", extra={"chain": chain, "at": where})
        for text in set(forwarding.warnings(state, self._bridge)) - set(forwarding.warnings(before, self._bridge)):
            _log.warning("%s", text)
        if state.healed > before.healed:
            _log.warning("firewall rules were gone and were put back", extra={"times": state.healed})
