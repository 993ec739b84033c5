"""Both sides under random and mutated input: the executable's parser with sanitizers, the router's with exact types."""

import json
import random
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cni.shim import SANITIZERS, build
from security.inputs import INPUTS, seeded

from weave_router.cni import verbs
from weave_router.errors import BadPacket

SEEDS: list[bytes] = [
    b'{"cniVersion":"1.0.0","name":"weave","type":"weave-router-cni","socket":"/a.sock","journal":"/j"}',
    b'{"cniVersion":"1.1.0","name":"w","cni.dev/valid-attachments":[{"containerID":"c","ifname":"eth0"}]}',
    b'{"cniVersion":"0.3.1","name":"w","args":{"cni":{"ips":["10.32.0.5/12"]}},"runtimeConfig":{"ips":["10.32.0.5"],'
    b'"mac":"0a:58:0a:20:00:05"},"dns":{"nameservers":["10.0.0.1"],"search":["a"]},"prevResult":{"cniVersion":"0.3.1",'
    b'"interfaces":[{"name":"a","mac":"m"}],"ips":[{"version":"4","address":"10.32.0.5/12","interface":0}],"dns":{}}}',
    b'{"cniVersion":"1.0.0","code":11,"msg":"later \\u00e9\\"\\\\"}',
]
TOKENS = [b'"', b"\\", b"{", b"}", b"[", b"]", b":", b",", b"null", b"1e999", b"-", b"\0", b"\xff", b'"cniVersion"',
          b'"code"', b'"1.1.0"', b'"socket"', b'"/x"', b"[" * 200, b'{"a":' * 100,
          b"\\u12", b" " * 50, b"9" * 400]  # fmt: skip


def mutated(rng: random.Random) -> bytes:
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
