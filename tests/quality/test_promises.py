"""Every command and every variable of docs/kubernetes.md is in the hands of a test that there is."""

import re

import pytest
from quality import promises
from quality.tree import ROOT


def there(place: str) -> bool:
    """``FILE::NAME``: the function of the test, or the Makefile's target, is there."""
    path, _, name = place.partition("::")
    file = ROOT / path if path == "Makefile" else ROOT / "tests" / path
    pattern = rf"^{re.escape(name)}:" if path == "Makefile" else rf"^(async )?def {re.escape(name)}\("
    return file.is_file() and re.search(pattern, file.read_text(), re.MULTILINE) is not None


def test_every_command_is_run() -> None:
    known = [*promises.ON_CLUSTER, *promises.ON_NODE, *promises.AT_INSTALL, *promises.ELSEWHERE]
    assert len(known) == len(set(known))
    assert promises.commands() - set(known) == set(), "nobody runs these"
    assert set(known) - promises.commands() == set(), "the document does not say these any more"


def test_every_variable_is_tested_by_its_effect() -> None:
    assert promises.options() ^ set(promises.OPTIONS) == set()


@pytest.mark.parametrize("place", sorted({*promises.ELSEWHERE.values(), *promises.OPTIONS.values()}))
def test_the_test_is_there(place: str) -> None:
    assert there(place)


def test_a_place_that_is_not_there_is_seen() -> None:
    assert not there("kube/test_router.py::test_nothing") and not there("nothing.py::test_a")
    assert not there("Makefile::nothing")
