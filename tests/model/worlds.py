"""The small worlds that are searched to the end (``make test``) and the greater ones (``make check-ipam``)."""

from __future__ import annotations

from .checker import Config

NO_HAVE = frozenset({"Have"})
"""``Have`` says "on disk" to a giver and is read by leaving alone: worlds where nobody leaves do without."""


def _world(name: str, **more: object) -> Config:
    return Config(name, **{"muted": NO_HAVE, **more})  # type: ignore[arg-type]


TOGETHER = _world("together", members=2, joins=1, wants=1, grants=1, rounds=2, boots=1)
"""A joiner, a gift, two retirements and a return in one world: the largest that fits into ``make test``."""

GREAT = (
    # what ipam-search.md lists, now at message level
    _world("2-gifts-2-retirements", wants=2, rounds=2),
    _world("4-nodes-2-retirements", nodes=4, wants=1, grants=1, rounds=2),
    _world("2-rounds-gift-boot", wants=1, grants=1, rounds=2, boots=1),
    _world("3-rounds-2-gifts", wants=2, rounds=3),
    _world("gift-2-boots-2-rounds", wants=1, grants=1, rounds=2, boots=2),
    _world("2-gifts-boot-2-rounds", wants=2, grants=2, rounds=2, boots=1),
    _world("restarts", wants=1, grants=1, rounds=1, boots=1, restarts=1),
    _world("restarts-2-rounds", wants=1, grants=1, rounds=2, boots=1, restarts=1),
    _world("join-2-rounds", members=2, joins=1, wants=1, grants=1, rounds=2),
    _world("join-boot", members=2, joins=1, wants=1, grants=1, rounds=1, boots=1),
    _world("join-boot-operator", members=2, joins=1, wants=1, grants=1, rounds=1, boots=1, ungates=1, aborts=1),
    _world("join-boot-restart", members=2, joins=1, wants=1, grants=1, rounds=1, boots=1, restarts=1),
    _world("join-to-3", nodes=4, members=3, joins=1, wants=1, grants=1, rounds=1),
    _world("join-to-3-boot", nodes=4, members=3, joins=1, wants=1, grants=1, rounds=1, boots=1),
    _world("two-joiners", nodes=4, members=2, joins=2, wants=1, grants=1, rounds=1),
    _world("pair-retired-2-boots", nodes=4, rounds=1, boots=2),
    _world("5-nodes", nodes=5, wants=1, grants=1, rounds=1),
    _world("operator-opens", wants=1, grants=1, rounds=1, boots=1, ungates=1),
    _world("rests", wants=1, grants=1, rounds=1, boots=1, restarts=1, cooling=True),
    Config("leave", owners=(0, 1), wants=2, leaves=2, grants=3),
    Config("leave-boot-round", wants=1, leaves=1, rounds=1, boots=1, grants=3),
    Config("leave-4-round", nodes=4, wants=1, leaves=1, rounds=1, grants=2),
    Config("join-leave-round", members=2, joins=1, wants=1, leaves=1, rounds=1, grants=2),
    _world("two-universes", nodes=3, apart=True, hellos=3, joins=2, boots=1),
)
