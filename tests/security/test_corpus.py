"""The committed corpus through every decoder: each input ends as its line says, in a value or in one reason.

A line of ``corpus/ROOM.txt``: decoder, what comes of it (the kind of value, or the reason), and the bytes as a Python
literal, separated by `` | ``. What test_decoder_lines.py finds uncovered gets a line here.
"""

import ast
import os
import re
import zlib
from collections.abc import Callable
from ipaddress import IPv4Network
from pathlib import Path
from random import Random

import pytest
from security.inputs import few, mutated, seeded
from unit.mesh_helpers import DOMAIN, identity, signed
from unit.mesh_sim import PORT, remembered_verify, tokens

from weave_router import config
from weave_router.cni.codes import CniError
from weave_router.cni.service import _journalled_untrusted
from weave_router.cni.verbs import request_untrusted
from weave_router.errors import BadPacket, UsageError
from weave_router.host import handover
from weave_router.host.lock_driver import _pid_of_untrusted
from weave_router.host.overlap import nameservers_untrusted
from weave_router.ipam import wire as ipam_wire
from weave_router.ipam.registers import Runs
from weave_router.ipam.speech import Speech
from weave_router.kube import objects
from weave_router.mesh import frames
from weave_router.mesh.estate import decode_estate_untrusted
from weave_router.mesh.link import Ended, Link
from weave_router.mesh.opening import Opening
from weave_router.mesh.record import CONTEXT, decode_record_untrusted
from weave_router.mesh.targets import parse_target
from weave_router.tunnel import control, wire
from weave_router.tunnel.token import TokenSet
from weave_router.tunnel.trust import network_untrusted
from weave_router.tunnel.wire import SuiteCode

LINE = re.compile(r"(\w+) \| (.*?) \| (b['\"].*)")
CORPUS = Path(__file__).parent / "corpus"
RANGE = IPv4Network("10.32.0.0/12")


def corpus(*decoders: str) -> list[bytes]:
    """Inputs of these decoders."""
    return [data for name, _, data in LINES if name in decoders]


def lines() -> list[tuple[str, str, bytes]]:
    texts = [text for path in sorted(CORPUS.glob("*.txt")) for text in path.read_text().splitlines()]
    rows = [LINE.fullmatch(text) for text in texts if not text.startswith("#")]
    assert all(rows), "a line is no line of a corpus"
    return [(row[1], row[2], ast.literal_eval(row[3])) for row in rows if row]


LINES = lines()


# -- decoders that need something around them -------------------------------------------------------------------------


def record_of_member(body: bytes) -> object:
    """Behind a signature that fits."""
    return decode_record_untrusted(identity(1).sign(CONTEXT + DOMAIN + body) + body, domain=DOMAIN,
                                   verify=remembered_verify)


def stream(data: bytes) -> object:
    """Bytes to who was called."""
    opening = Opening(initiator=False, identity=identity(2), tokens=tokens(), suite=SuiteCode.AESGCM_SHA256, index=2,
                      entropy=Random(2).randbytes)
    link = Link(opening, own=signed(2), remote=("10.0.0.1", PORT), verify=remembered_verify, now=0.0)
    (*_, last) = link.receive_data(data, 0.0) or [None]
    assert link.unsent == 0, "not one byte to who proved nothing"
    if isinstance(last, Ended):
        raise BadPacket(last.text)
    return last


def heard(data: bytes) -> object:
    """A neighbour's words about addresses, as far as the ownership core."""
    body = ipam_wire.decode_body_untrusted(ipam_wire.decode_envelope_untrusted(data))
    one = identity(2)
    speech = Speech(Runs(64, one.ed25519_public, one.sign, remembered_verify))
    return None if body is None else speech.heard_untrusted(body)[0]


def run(data: bytes) -> object:
    """Without its 96 bytes of signature and key, which are node 1's; ``short``: as it stands."""
    one, reader = identity(1), identity(2)
    runs = Runs(64, reader.ed25519_public, reader.sign, remembered_verify)
    if data.startswith(b"short"):
        return runs.read_untrusted(data)
    return runs.read_untrusted(one.sign(runs._signed(one.ed25519_public, data)) + one.ed25519_public + data)


def cni(data: bytes) -> object:
    """A request as the shim hands it over."""
    found = request_untrusted(handover.body_untrusted(data))
    if isinstance(found, CniError):
        raise BadPacket(f"code {int(found.code)}: {found}")
    return found


class Text:
    """A decoder of text: bytes as they are in a file."""

    def __init__(self, decode: Callable[[str], object]) -> None:
        self._decode = decode

    def __call__(self, data: bytes) -> object:
        return self._decode(data.decode())


def environment(text: str) -> object:
    """Lines NAME=VALUE, and ``launch`` with a token file."""
    names = dict(line.partition("=")[::2] for line in text.splitlines())
    return config.load({"token_file": "/etc/t"}, [], names, hostname="h")


def toml(data: bytes) -> object:
    """A configuration file of these bytes, by a descriptor of the kernel's memory."""
    descriptor = os.memfd_create("config")
    with open(descriptor, "r+b", buffering=0) as file:
        file.write(data)
        try:
            return config.load({"token_file": "/t", "config": f"/proc/self/fd/{descriptor}"}, [], {}, hostname="h")
        except UsageError as error:
            raise UsageError(str(error).replace(f"/proc/self/fd/{descriptor}", "FILE")) from None


DECODERS: dict[str, Callable[[bytes], object]] = {
    "body": record_of_member,
    "frame": frames.decode_frame_untrusted,
    "estate": decode_estate_untrusted,
    "stream": stream,
    "target": Text(lambda text: parse_target(text, PORT)),
    "head": wire.parse_head_untrusted,
    "message": lambda data: wire.open_message_untrusted(data, tokens()),
    "freshness": wire.parse_payload_1_untrusted,
    "address": wire.parse_address_untrusted,
    "control": control.parse_control_untrusted,
    "token": Text(TokenSet.parse),
    "network": Text(network_untrusted),
    "ipam": heard,
    "run": run,
    "cni": cni,
    "journal": _journalled_untrusted,
    "length": handover.length_untrusted,
    "request": handover.body_untrusted,
    "pid": _pid_of_untrusted,
    "resolv": Text(nameservers_untrusted),
    "node": objects.node_untrusted,
    "lease": lambda data: objects.lease_untrusted(data, RANGE),
    "universe": objects.universe_untrusted,
    "secret": objects.secret_text_untrusted,
    "environment": Text(environment),
    "toml": toml,
}


def outcome(decoder: str, data: bytes) -> str:
    try:
        value = DECODERS[decoder](data)
    except (BadPacket, UsageError) as error:
        return " ".join(str(error).split())[:100]
    if isinstance(value, objects.Lease) and value.foreign:
        return f"foreign: {value.foreign}"
    if isinstance(value, objects.Node) and value.problem:
        return f"Node: {value.problem}"
    return f"value {value!r}" if value is None or isinstance(value, int) else f"a {type(value).__name__}"


@pytest.mark.parametrize("name", DECODERS)
def test_corpus_ends_as_it_says(name: str) -> None:
    found = [(expected, data) for decoder, expected, data in LINES if decoder == name]
    assert found, f"no line of the corpus is for {name}"
    for expected, data in found:
        assert outcome(name, data) == expected, data


@pytest.mark.parametrize("name", ["length", "request", "journal", "node", "lease", "universe", "secret", "run", "toml",
                                  "environment", "network", "pid", "resolv"])
def test_fuzz_from_the_corpus(name: str) -> None:
    """Decoders that no other file feeds with mutations: a value, or a reason of at most a few lines."""
    decode, rng, samples = DECODERS[name], seeded(zlib.crc32(name.encode())), corpus(name)
    ends: set[bool] = set()
    for _ in range(few(5)):
        data = mutated(rng, rng.choice(samples))
        try:
            decode(data)
        except (BadPacket, UsageError) as error:
            assert 0 < len(str(error)) < 2000
            ends.add(False)
        except UnicodeDecodeError:
            assert isinstance(decode, Text), data  # the file's own reader says so
        except Exception as error:
            raise AssertionError(f"{type(error).__name__} for {data!r}") from error
        else:
            ends.add(True)
    assert True in ends and (False in ends) == (name not in NEVER_REFUSE)


NEVER_REFUSE = {"journal", "network", "pid", "resolv"}
"""None, 0 or an empty list stands for what is none."""


def test_every_line_has_a_decoder() -> None:
    assert {name for name, _, _ in LINES} == DECODERS.keys()
    assert len(set(LINES)) == len(LINES)
