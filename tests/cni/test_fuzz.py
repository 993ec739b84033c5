"""Both sides under random and mutated input: the executable's parser with sanitizers, the router's with exact types,
and the verbs behind it."""

import asyncio
import json
import random
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cni.shim import SANITIZERS, build
from cni.test_codes import World
from security.inputs import INPUTS, seeded

from weave_router.cni import verbs
from weave_router.cni.codes import Code
from weave_router.cni.service import DONE
from weave_router.errors import BadPacket
from weave_router.host.handover_driver import Request

SEEDS = (Path(__file__).parent / "corpus" / "configurations.txt").read_bytes().splitlines()
"""Configurations and answers, one a line: of every kind that there is, and of every refusal; then mutated."""
TOKENS = [b'"', b"\\", b"{", b"}", b"[", b"]", b":", b",", b"null", b"1e999", b"-", b"\0", b"\xff", b'"cniVersion"',
          b'"code"', b'"1.1.0"', b'"socket"', b'"/x"', b"[" * 200, b'{"a":' * 100,
          b"\\u12", b" " * 50, b"9" * 400]  # fmt: skip


def mutated(rng: random.Random) -> bytes:
    """A quarter as it stands in the corpus."""
    data = bytearray(rng.choice(SEEDS))
    for _ in range(rng.choice((0, 1, 1, 2, 4, 16))):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(4):
            case 0:
                data[at:at] = rng.choice(TOKENS)
            case 1:
                del data[at : at + rng.choice((1, 2, 8, 1000))]
            case 2 if at < len(data):
                data[at] = rng.randrange(256)
            case _:
                data[at:at] = data[: rng.randrange(40)]
    return bytes(data)


@pytest.mark.timeout(0)
def test_fuzz_the_executable(tmp_path: Path) -> None:
    rng = seeded(20241)
    harness = build(tmp_path / "fuzz", *SANITIZERS, source=Path(__file__).with_name("fuzz_shim.c"))
    root = tmp_path / "root"
    root.mkdir()
    environment = {"CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": "/none",
                   "ASAN_OPTIONS": "detect_leaks=0"}  # fmt: skip
    process = subprocess.Popen([harness, root], stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    assert process.stdin and process.stderr
    with process.stdin as pipe:
        for number in range(INPUTS):
            data = mutated(rng)
            pipe.write(struct.pack("=BBI", rng.randrange(7), number % 4 == 0, len(data)) + data)
    said = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait() == 0, said


def body(rng: random.Random) -> dict[str, Any]:
    def text() -> Any:
        texts = ["", "c1", "eth0", "a/b", "\u00e9", "x" * 300, "IP=10.32.0.5", "K", "\u4e00", "IP=1;MAC=z"]
        return rng.choice([*texts, 7, None, []])

    command, config = rng.choice(["ADD", "DEL", "CHECK", "GC", "VERSION", 1]), mutated(rng).decode("latin-1")
    relayed = {"command": command, "config": config, "container": "c1", "ifname": "eth0", "netns": "/x",
               "args": "", "boot_id": "b", "netns_inode": 1}  # fmt: skip
    if rng.random() < 0.5:
        relayed[rng.choice([*relayed, "other"])] = text()
    return {"cni": relayed if rng.random() < 0.98 else text()}


@pytest.mark.timeout(0)
def test_fuzz_the_routers_side() -> None:
    rng = seeded(20242)
    kinds: dict[str, int] = {}
    for _ in range(INPUTS):
        try:
            parsed = verbs.request_untrusted(body(rng))
        except BadPacket:
            kinds["bad"] = kinds.get("bad", 0) + 1
            continue
        name = type(parsed).__name__
        kinds[name] = kinds.get(name, 0) + 1
        if isinstance(parsed, verbs.CniError):
            json.dumps(verbs.error_reply(parsed))
        else:
            assert parsed.version in verbs.VERSIONS and parsed.network
            assert parsed.verb == "GC" or (parsed.container and parsed.ifname)
    assert min(kinds.get(name, 0) for name in ("bad", "CniError", "Request")) > INPUTS // 100, kinds


@pytest.mark.timeout(0)
def test_fuzz_the_verbs() -> None:
    """On a host of dictionaries: whatever is asked, the answer is one of the specification's, and what stands is what
    is on record. A fresh host now and then, for four attachments of networks that no seed names would stay for ever."""
    rng, world = seeded(20243), World()
    kinds: dict[str, int] = {}

    async def ask_all() -> None:
        nonlocal world
        for number in range(INPUTS):
            if number % 1000 == 0:
                world = World()
            verb, container = rng.choice(["ADD", "ADD", "DEL", "CHECK", "GC"]), f"c{rng.randrange(4)}"
            args = rng.choice(["", f"IP=10.32.0.{rng.randrange(12)}", "MAC=02:00:00:00:00:77;IP=10.32.0.8", "IP=::1"])
            config = mutated(rng) if rng.random() < 0.5 else rng.choice(SEEDS)
            relayed = {"command": verb, "config": config.decode("latin-1"), "container": container,
                       "ifname": rng.choice(["eth0", "eth1"]), "netns": "/x", "args": args, "boot_id": "boot",
                       "netns_inode": 1}  # fmt: skip
            answer = await world.service.handle(Request({"cni": relayed}, 1, rng.choice((1, 1, 1, 2))))
            kind = f"{verb} {answer['code']}" if "code" in answer else verb
            kinds[kind] = kinds.get(kind, 0) + 1
            if "code" in answer:
                assert answer["code"] in set(Code) and answer["msg"] and answer["cniVersion"] in verbs.VERSIONS, answer
            assert answer == DONE or "cniVersion" in answer, answer
            assert {one.host_ifname for one in world.rows.values()} == set(world.wired) == {
                one.host_ifname for one in world.attachments.all()}  # fmt: skip
            numbers = world.attachments.numbers()
            assert len(numbers) == len(set(numbers)), numbers

    asyncio.run(ask_all())
    assert min(kinds.get(verb, 0) for verb in ("ADD", "DEL", "CHECK", "GC")) > INPUTS // 1000, kinds
    assert len(kinds) > 12, kinds
