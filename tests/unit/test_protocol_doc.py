"""docs/protocol.md says what the code does: its vectors, and the numbers of its tables."""

import re
from pathlib import Path

import pytest
from unit import protocol_vectors

from weave_router.ipam import letters
from weave_router.ipam import wire as ipam_wire
from weave_router.mesh import frames
from weave_router.tunnel import control, wire

DOCUMENT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()


@pytest.mark.parametrize("name", protocol_vectors.vectors())
def test_vector(name: str) -> None:
    assert protocol_vectors.as_text(name, protocol_vectors.vectors()[name]) in DOCUMENT + "\n"


def test_message_sizes() -> None:
    assert f"| 1 | {wire.MESSAGE_1_SIZE} |" in DOCUMENT
    assert f"| 2 | {wire.MESSAGE_2_SIZE} |" in DOCUMENT


def test_link_frames_are_listed() -> None:
    for code, kind in frames.TYPES.items():
        assert f"| {code} {kind.__name__.lower()} |" in DOCUMENT


def test_words_about_addresses_are_listed() -> None:
    listed = [word for row in re.findall(r"^\| (\d+ [a-z ]+(?:, \d+ [a-z]+)*) \|", DOCUMENT, re.MULTILINE)
              for word in row.split(", ")]  # fmt: skip
    for kinds in (ipam_wire.KINDS, letters.KINDS):
        for code, kind in kinds.items():
            words = re.sub(r"(?<!^)([A-Z])", r" \1", kind.__name__).lower()
            assert f"{code} {words}" in listed


def test_control_kinds() -> None:
    kinds = [getattr(control, name).KIND for name in
             ("Probe", "ProbeAck", "Challenge", "Answer", "Ping", "Pong", "Goodbye", "PodMtu")]
    assert kinds == [1, 2, 3, 4, 5, 6, 7, 8]
