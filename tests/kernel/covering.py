"""A pairwise covering array: few cases in which every two values of different factors meet. Greedy and deterministic.

Knows nothing of what is tested. Called by tests of this directory.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

Case = dict[str, object]
Pair = tuple[str, object, str, object]


def pairs_of(case: Mapping[str, object]) -> set[Pair]:
    names = sorted(case)
    return {(one, case[one], other, case[other]) for one, other in itertools.combinations(names, 2)}


def all_pairs(factors: Mapping[str, Sequence[object]]) -> set[Pair]:
    found: set[Pair] = set()
    for one, other in itertools.combinations(sorted(factors), 2):
        found |= {(one, a, other, b) for a, b in itertools.product(factors[one], factors[other])}
    return found


def covering_array(factors: Mapping[str, Sequence[object]]) -> list[Case]:
    """Take, again and again, the combination that holds most pairs not yet seen; the first of equals."""
    names = sorted(factors)
    every = [dict(zip(names, values, strict=True)) for values in itertools.product(*(factors[name] for name in names))]
    missing, chosen = all_pairs(factors), []
    while missing:
        best = max(every, key=lambda case: len(pairs_of(case) & missing))
        missing -= pairs_of(best)
        chosen.append(best)
    return chosen
