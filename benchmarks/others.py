"""The other encrypted overlays of Debian, each between the same two hosts as the product, in one run.

    h1 [router, wg, tinc, fastd, n2n, openvpn, nebula] ----cable---- [the same] h2

Each has its own interface in the hosts' namespaces and its own subnet 10.98.x.0/24, all up at once and idle while one
is measured; runs alternate. The others are measured from host to host, so without the bridge and the pod's veth that
the product and VXLAN pass: to their advantage. Each runs as its manual says for the best speed with encryption on, and
with its default MTU. One that is not installed, does not start or does not answer is left out with the reason.

wireguard-go comes twice: Debian's, and a current one that Go builds once into the cache (XDG_CACHE_HOME).

    others.py [--rounds N] [--seconds S] [--only NAME,...] [--wire segmented|offloads]

Prints a table and writes object ``others`` of ``benchmarks/results/latest.json``. Needs root and the installed program.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

from _measures import Way, measures  # noqa: E402
from _results import Bar, circumstances, merge_figures, met  # noqa: E402
from lab import Host, Lab, LabError  # noqa: E402
from lab.namespace import run  # noqa: E402
from lab.router import wait_for, wait_ping  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from throughput import WIRES, ways_of  # noqa: E402

UP_SECONDS: Final = 15.0
COLUMNS: Final = {"tcp1": ("TCP Mbit/s", ",.0f"), "cpu_per_gb": ("CPU s/GB", ".1f"),
                  "udp64": ("64-byte frames/s", ",.0f"), "rtt.p50": ("RTT p50 us", ",.0f"),
                  "rtt.p99": ("RTT p99 us", ",.0f"), "rtt_loaded.p50": ("beside TCP", ",.0f"),
                  "rtt_loaded.p99": ("p99", ",.0f")}  # fmt: skip
BARS: Final[dict[str, Bar]] = {
    "tcp1.encrypted_to_wireguard-go": (">=", 8.0),
    "tcp1.encrypted_to_wireguard-go-current": (">=", 2.5),
    "rtt_loaded.p50.encrypted_to_wireguard-go-current": ("<=", 0.3),
}
"""By ratio, on either wire."""
WIREGUARD: Final = "golang.zx2c4.com/wireguard@v0.0.0-20260522210424-ecfc5a8d5446"
OPENVPN_CIPHER: Final = "AES-256-GCM"


class System:
    """One overlay. ``start`` brings it up on both hosts; its addresses are ``10.98.<subnet>.1`` and ``.2``."""

    def __init__(self, name: str, package: str, subnet: int, start: Callable[[System, Lab, Host, Host], None]) -> None:
        self.name, self.package, self.subnet, self._start = name, package, subnet, start

    def address(self, number: int) -> str:
        return f"10.98.{self.subnet}.{number}"

    def version(self) -> str | None:
        """None: not installed."""
        asked = run(["dpkg-query", "-W", "-f", "${db:Status-Status} ${Version}", self.package], check=False).stdout
        return asked.split()[1] if asked.startswith("installed ") else None

    def lacking(self) -> str:
        return f"package {self.package} is not installed"

    def up(self, lab: Lab, near: Host, far: Host) -> Way:
        self._start(self, lab, near, far)
        wait_ping(near, self.address(2), UP_SECONDS)
        return Way(self.name, near, far, self.address(2))  # type: ignore[arg-type]  # a host is a namespace as good

    def folder(self, host: Host) -> Path:
        made = host.directory / self.name
        made.mkdir(parents=True, exist_ok=True)
        return made

    def serve(self, host: Host, *argv: str) -> subprocess.Popen[str]:
        """In the foreground in the host's namespace; ends with the namespace, its output in its folder."""
        with (self.folder(host) / "log").open("a") as log:
            return host.popen(argv, output=log)

    def give_address(self, host: Host, interface: str, number: int) -> None:
        """Once the program has made its interface."""
        wait = f"until [ -e /sys/class/net/{interface} ]; do sleep 0.05; done"
        host.run(["timeout", str(UP_SECONDS), "sh", "-c", wait])
        host.ip(f"address add {self.address(number)}/24 dev {interface}", f"link set {interface} up")


class Built(System):
    """A program that Go builds; ``package`` is ``MODULE@VERSION``."""

    program = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "weave-router-bench" / "wireguard"

    def version(self) -> str | None:
        wanted = self.package.partition("@")[2]
        if self._built() != wanted and shutil.which("go"):
            environment = {**os.environ, "GOBIN": str(self.program.parent)}
            subprocess.run(["go", "install", self.package], env=environment, check=False, capture_output=True)
        return wanted if self._built() == wanted else None

    def _built(self) -> str:
        if not self.program.exists() or not shutil.which("go"):
            return ""
        lines = run(["go", "version", "-m", str(self.program)], check=False).stdout.splitlines()
        return next((line.split()[2] for line in lines if line.split()[:1] == ["mod"]), "")

    def lacking(self) -> str:
        return f"`go install {self.package}` does not work here"


def pairs(near: Host, far: Host) -> Iterator[tuple[int, Host, Host]]:
    """(own number, this host, the other one)."""
    yield 1, near, far
    yield 2, far, near


# -- how each is brought up -----------------------------------------------------------------------------------------


def wireguard(program: str, system: System, lab: Lab, near: Host, far: Host) -> None:
    """Interface names differ because its control sockets share one folder, ports because all are up at once."""
    secrets = {host: run(["wg", "genkey"]).stdout for host in (near, far)}
    publics = {host: run(["wg", "pubkey"], text_input=secret).stdout.strip() for host, secret in secrets.items()}
    for number, host, other in pairs(near, far):
        interface = f"wg{lab.prefix.split('-')[1]}{system.subnet}{number}"[:15]
        key = system.folder(host) / "key"
        key.touch(0o600)
        key.write_text(secrets[host])
        system.serve(host, program, "-f", interface)
        system.give_address(host, interface, number)
        wait_for(f"the socket of {interface}", Path(f"/var/run/wireguard/{interface}.sock").is_socket)
        host.ip(f"link set {interface} mtu 1420")
        port = str(51820 + system.subnet)
        host.run(["wg", "set", interface, "private-key", str(key), "listen-port", port, "peer", publics[other],
                  "endpoint", f"{other.address()}:{port}", "allowed-ips", f"{system.address(3 - number)}/32"])


def tinc(system: System, lab: Lab, near: Host, far: Host) -> None:
    for number, host, _ in pairs(near, far):
        folder = system.folder(host)
        (folder / "hosts").mkdir(exist_ok=True)
        (folder / "tinc.conf").write_text(f"Name = n{number}\nConnectTo = n{3 - number}\nInterface = tinc0\n"
                                          "AddressFamily = ipv4\nCipher = aes-256-cbc\nProcessPriority = high\n")
        (folder / "hosts" / f"n{number}").write_text(
            f"Address = {host.address()}\nSubnet = {system.address(number)}/32\nCompression = 0\n")
        run(["tincd", "-c", str(folder), "-K2048"], text_input="\n\n")
    for number, host, other in pairs(near, far):
        folder = system.folder(host)
        shutil.copy(system.folder(other) / "hosts" / f"n{3 - number}", folder / "hosts")
        system.serve(host, "tincd", "-c", str(folder), "-D", f"--pidfile={folder / 'pid'}")
        system.give_address(host, "tinc0", number)


def fastd(system: System, lab: Lab, near: Host, far: Host) -> None:
    keys = {}
    for host in (near, far):
        said = run(["fastd", "--generate-key"])
        keys[host] = dict(re.findall(r"(Secret|Public): ([0-9a-f]{64})", said.stdout + said.stderr))
    for number, host, other in pairs(near, far):
        config = system.folder(host) / "fastd.conf"
        config.write_text(
            f'log level warn;\nmode tap;\ninterface "fastd0";\nmethod "salsa2012+umac";\nmtu 1400;\n'
            f'bind {host.address()}:10000;\nsecret "{keys[host]["Secret"]}";\n'
            f'peer "other" {{ key "{keys[other]["Public"]}"; remote {other.address()}:10000; }}\n')
        system.serve(host, "fastd", "-c", str(config))
        system.give_address(host, "fastd0", number)


def n2n(system: System, lab: Lab, near: Host, far: Host) -> None:
    system.serve(near, "supernode", "-l", "7777")
    for number, host, _ in pairs(near, far):
        system.serve(host, "edge", "-d", "n2n0", "-a", system.address(number), "-c", "bench", "-k", "benchmark",
                     "-u", "0", "-g", "0", "-p", "7778", "-l", f"{near.address()}:7777")


def openvpn(system: System, lab: Lab, near: Host, far: Host) -> None:
    """Peer to peer by TLS with fingerprints, so that its data channel is AEAD."""
    prints = {}
    for host in (near, far):
        folder = system.folder(host)
        run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:secp384r1", "-nodes",
             "-days", "2", "-subj", f"/CN={host.label}", "-keyout", str(folder / "key"), "-out", str(folder / "crt")])
        said = run(["openssl", "x509", "-in", str(folder / "crt"), "-noout", "-sha256", "-fingerprint"]).stdout
        prints[host] = said.partition("=")[2].strip()
    for number, host, other in pairs(near, far):
        folder, side = system.folder(host), ["--tls-server", "--dh", "none"] if number == 1 else ["--tls-client"]
        system.serve(host, "openvpn", "--dev", "tunovpn", "--dev-type", "tun", "--proto", "udp", "--remote",
                     other.address(), "--port", "1194", *side, "--cert", str(folder / "crt"), "--key",
                     str(folder / "key"), "--peer-fingerprint", prints[other], "--ifconfig", system.address(number),
                     system.address(3 - number), "--data-ciphers", OPENVPN_CIPHER, "--cipher", OPENVPN_CIPHER)


def nebula(system: System, lab: Lab, near: Host, far: Host) -> None:
    ca = system.folder(near)
    run(["nebula-cert", "ca", "-name", "bench", "-out-crt", f"{ca}/ca.crt", "-out-key", f"{ca}/ca.key"])
    for number, host, other in pairs(near, far):
        folder = system.folder(host)
        run(["nebula-cert", "sign", "-ca-crt", f"{ca}/ca.crt", "-ca-key", f"{ca}/ca.key", "-name", f"n{number}",
             "-ip", f"{system.address(number)}/24", "-out-crt", f"{folder}/host.crt", "-out-key", f"{folder}/host.key"])
        allow = [{"port": "any", "proto": "any", "host": "any"}]
        config = {
            "pki": {"ca": f"{ca}/ca.crt", "cert": f"{folder}/host.crt", "key": f"{folder}/host.key"},
            "static_host_map": {system.address(3 - number): [f"{other.address()}:4242"]},
            "lighthouse": {"am_lighthouse": False, "hosts": []},
            "listen": {"host": host.address(), "port": 4242, "batch": 64},
            "cipher": "aes", "tun": {"dev": "nebula0"},
            "firewall": {"outbound": allow, "inbound": allow},
        }
        (folder / "config.yml").write_text(json.dumps(config))  # JSON is YAML
        system.serve(host, "nebula", "-config", str(folder / "config.yml"))


SYSTEMS: Final = (
    System("wireguard-go", "wireguard-go", 1, partial(wireguard, "wireguard-go")),
    Built("wireguard-go-current", WIREGUARD, 7, partial(wireguard, str(Built.program))),
    System("tinc", "tinc", 2, tinc),
    System("fastd", "fastd", 3, fastd),
    System("n2n", "n2n", 4, n2n),
    System("openvpn", "openvpn", 5, openvpn),
    System("nebula", "nebula", 6, nebula),
)


# -- run and report -------------------------------------------------------------------------------------------------


def bring_up(lab: Lab, ways: dict[str, Way], names: list[str], console: Console) -> dict[str, str]:
    """All that can; what is said of each: its version, or why it is left out."""
    near, far = ways["encrypted"].near.host, ways["encrypted"].far.host
    said = {}
    for system in SYSTEMS:
        if names and system.name not in names:
            continue
        version = system.version()
        if version is None:
            said[system.name] = f"left out: {system.lacking()}"
            continue
        try:
            ways[system.name] = system.up(lab, near, far)
            said[system.name] = version
        except LabError as error:
            log = (system.folder(near) / "log").read_text(errors="replace").strip().splitlines()[-1:]
            said[system.name] = f"{version}, left out: {' '.join([str(error).splitlines()[0], *log])}"
    for name, text in said.items():
        console.print(f"{name}: {text}", highlight=False)
    return said


def measure(lab: Lab, ways: dict[str, Way], options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """metric -> system -> a figure a round."""
    known = measures(lab, options.seconds)
    taken: dict[str, dict[str, list[float]]] = {}
    for case in ("tcp1", "udp64", "rtt", "rtt_loaded"):
        for number in range(options.rounds):
            order = list(ways) if number % 2 == 0 else list(ways)[::-1]
            for name in order:
                with console.status(f"{case}, round {number + 1} of {options.rounds}, {name}"):
                    for metric, value in known[case](ways[name]).items():
                        taken.setdefault(metric, {one: [] for one in ways})[name].append(round(value, 3))
    return taken


def medians(taken: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    return {metric: {name: statistics.median(values) for name, values in per.items()} for metric, per in taken.items()}


def ratios_of(per_wire: dict[str, Any]) -> dict[str, float]:
    """Our encrypted stream, and the round trip beside one, in parts of theirs: ``tcp1.encrypted_to_tinc.segmented``."""
    ratios = {}
    for wire, found in per_wire.items():
        for metric in ("tcp1", "rtt_loaded.p50"):
            per = found["medians"][metric]
            for name in per.keys() - {"vxlan", "encrypted"}:
                ratios[f"{metric}.encrypted_to_{name}.{wire}"] = round(per["encrypted"] / per[name], 3)
    return ratios


def show(wire: str, middle: dict[str, dict[str, float]], console: Console) -> None:
    table = Table("system", *(title for title, _ in COLUMNS.values()), "TCP: ours is", title=f"{wire} wire")
    for name in middle["tcp1"]:
        mine = middle["tcp1"]["encrypted"] / middle["tcp1"][name]
        table.add_row(name, *(f"{middle[metric][name]:{form}}" for metric, (_, form) in COLUMNS.items()),
                      f"{mine:.2f} x")
    console.print(table)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed beside other overlays, in network namespaces.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1, help="length of each throughput run")
    parser.add_argument("--only", default="", help="names, by commas")
    parser.add_argument("--wire", choices=sorted(WIRES), help="one kind of wire only")
    return parser.parse_args()


def main() -> int:
    options = parse()
    console = Console() if sys.stdout.isatty() else Console(width=110)
    per_wire: dict[str, Any] = {}
    said: dict[str, str] = {}
    for wire in [options.wire] if options.wire else WIRES:
        with Lab() as lab:
            ways, _ = ways_of(lab, wire, plaintext=False)
            said = bring_up(lab, ways, [name for name in options.only.split(",") if name], console)
            taken = measure(lab, ways, options, console)
        per_wire[wire] = {"medians": medians(taken), "samples": taken}
        show(wire, per_wire[wire]["medians"], console)
    how = {**circumstances(), "rounds": options.rounds, "seconds": options.seconds, "versions": said}
    ratios = ratios_of(per_wire)
    merge_figures("others", {wire: {**how, **found} for wire, found in per_wire.items()}, ratios)
    bars = {name: BARS[kind] for name in ratios if (kind := name.rpartition(".")[0]) in BARS}
    for name, bar in bars.items():
        held = "" if met(bar, ratios[name]) else ", missed"
        console.print(f"{name}: {ratios[name]} (bar {' '.join(map(str, bar))}{held})", highlight=False)
    return 0 if all(met(bar, ratios[name]) for name, bar in bars.items()) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as error:
        sys.exit(f"others: {error}")
