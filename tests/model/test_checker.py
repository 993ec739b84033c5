"""The ownership core searched to the end in small worlds, and every mutant found in one of them."""

from dataclasses import replace

import pytest
from model.checker import Config, Search, search
from model.mutants import MUTANTS, Mutant, load
from model.worlds import TOGETHER

WORLDS = tuple(dict.fromkeys(replace(m.world, forget=True, without=frozenset()) for m in MUTANTS))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_mutant_is_found(mutant: Mutant) -> None:
    result = search(mutant.world, load(mutant), seconds_max=60, mebibytes_max=4096)
    assert result.violation is not None, result
    assert result.trace, result


@pytest.mark.parametrize("world", WORLDS, ids=lambda w: w.name.replace(" ", "-"))
def test_small_world_is_clean(world: Config) -> None:
    result = search(world, seconds_max=110, mebibytes_max=4096)
    print(result)
    assert result.violation is None, result
    assert result.complete, result


@pytest.mark.timeout(180)
def test_largest_world_is_clean(capsys: pytest.CaptureFixture[str]) -> None:
    result = search(TOGETHER, seconds_max=170, mebibytes_max=4096)
    with capsys.disabled():
        print(f"\n{result}")
    assert result.violation is None and result.complete, result
    quiet = {"deliver Have"}  # muted in this world
    wanted = {"allocate", "free", "power off", "boot", "want", "join", "retire"} | {
        f"deliver {kind}"
        for kind in (
            "Tell",
            "Ask",
            "SyncAsk",
            "SyncAnswer",
            "JoinAsk",
            "Propose",
            "Hold",
            "Admitted",
            "RetireAsk",
            "Promise",
        )
    }
    assert wanted - quiet <= result.fired.keys(), "a transition never fired: the world proves less than it says"


@pytest.mark.parametrize(
    "world",
    [
        Config("gift and retirement", wants=1, grants=1, rounds=1, muted=frozenset({"Have"})),
        Config("joiner and gift", members=2, joins=1, wants=1, muted=frozenset({"Have"})),
        Config("gift and boot", nodes=2, wants=1, boots=1),
    ],
    ids=lambda w: w.name.replace(" ", "-"),
)
def test_forgetting_messages_hides_no_node_state(world: Config) -> None:
    """What the nodes can come to is the same set with and without the search's reduction."""

    def reached(config: Config) -> set[tuple[object, ...]]:
        one = Search(config)
        result = one.explore()
        assert result.complete and result.violation is None, result
        return {tuple(one.entries[e] for e in state) for state in one.visited_entries()}

    assert reached(replace(world, forget=False)) == reached(world)
