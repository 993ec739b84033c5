"""A wire: a veth pair between two namespaces, with its MTU, its cards and its faults.

        without repeats and reordering            with them: a relay in the middle, in the namespace of end b

    [a eth0]----veth----[b port]              [a eth0]--veth--[port.a]  relay.c  [port.b]--veth--[b port]

Loss and cuts are nftables rules at end b and may change at any time, on every wire; they never need the relay. The
relay carries finished frames of wire size, so its cards are bare. Called by network.py.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from typing import Any, Final

from .namespace import LabError, Namespace, Nic, kill_process
from .tools import tool

PPM: Final = 1_000_000
TABLE: Final = "lab_wire"


@dataclass(frozen=True)
class Faults:
    """Shares from 0 to 1 of the frames of either direction. Any repeat, reordering or delay needs the relay."""

    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    delay_us: int = 0
    seed: int = 1

    @property
    def needs_relay(self) -> bool:
        return bool(self.duplicate or self.reorder or self.delay_us)

    @property
    def words(self) -> list[str]:
        return [*(str(int(share * PPM)) for share in (self.loss, self.duplicate, self.reorder)), str(self.delay_us)]


@dataclass(frozen=True)
class End:
    """Where a wire ends. ``borrowed:`` the namespace belongs to the lab."""

    namespace: Namespace
    interface: str


class Wire:
    """One cable; laid once, changed by ``lose``, ``cut``, ``mend``, ``rule`` and ``set_faults``."""

    def __init__(
        self, a: End, b: End, *, mtu: int = 1500, nic: Nic = Nic.OFFLOADS, faults: Faults | None = None
    ) -> None:
        self.a = a
        self.b = b
        self.mtu = mtu
        self.faults = faults
        self.nic = nic if faults is None else Nic.BARE
        self._relay: subprocess.Popen[str] | None = None

    def lay(self) -> None:
        if self.faults is None:
            self._pair(self.a, self.b)
            return
        near = End(self.b.namespace, f"{self.b.interface}.a")
        far = End(self.b.namespace, f"{self.b.interface}.b")
        self._pair(self.a, near)
        self._pair(far, self.b)
        self._start_relay(near.interface, far.interface, self.faults)

    def _pair(self, one: End, other: End) -> None:
        one.namespace.ip(
            f"link add {one.interface} mtu {self.mtu} type veth "
            f"peer name {other.interface} mtu {self.mtu} netns {other.namespace.name}"
        )
        for end in (one, other):
            end.namespace.set_nic(end.interface, self.nic)
            end.namespace.ip(f"link set {end.interface} up")

    # -- faults -----------------------------------------------------------------------------------------------------

    def _start_relay(self, near: str, far: str, faults: Faults) -> None:
        argv = [str(tool("relay")), near, far, *faults.words, str(faults.seed)]
        self._relay = self.b.namespace.popen(argv)
        self._relay_line("ready")

    def _relay_line(self, word: str) -> None:
        assert self._relay is not None and self._relay.stdout is not None and self._relay.stderr is not None
        line = self._relay.stdout.readline()
        if not line or word not in json.loads(line):
            raise LabError(f"relay: {self._relay.stderr.read()}")

    def set_faults(self, faults: Faults) -> None:
        """Change what the relay does from the next frame on."""
        if self._relay is None or self._relay.stdin is None:
            raise LabError("this wire was laid without faults: give Faults() when it is made")
        self.faults = faults
        self._relay.stdin.write(" ".join(faults.words) + "\n")
        self._relay.stdin.flush()
        self._relay_line("changed")

    def rule(self, *rules: str) -> None:
        """Put nft statements on both directions, at end b; replaces those before. None at all: a clean wire."""
        chains = "".join(
            f"chain {hook} {{ type filter hook {hook} device {self.b.interface} priority 0; policy accept;\n"
            + "".join(f"{rule}\n" for rule in rules)
            + "}\n"
            for hook in ("ingress", "egress")
        )
        name = f"{TABLE}_{self.b.interface.replace('.', '_')}"
        fresh = f"table netdev {name} {{\n{chains}}}\n" if rules else ""
        self.b.namespace.nft(f"table netdev {name}\ndelete table netdev {name}\n{fresh}")

    def lose(self, share: float) -> None:
        """Drop this share of the frames, of each direction, at random."""
        self.rule(f"numgen random mod {PPM} < {int(share * PPM)} counter drop")

    def cut(self) -> None:
        """Drop everything; both interfaces keep their carrier, as when a switch further on fails."""
        self.rule("counter drop")

    def mend(self) -> None:
        self.rule()

    def unplug(self) -> None:
        """Take the carrier away."""
        self.b.namespace.ip(f"link set {self.b.interface} down")

    def plug(self) -> None:
        self.b.namespace.ip(f"link set {self.b.interface} up")

    def stop(self) -> dict[str, Any]:
        """Stop the relay and return its counters; {} where there is none. What is on the wire is lost."""
        if self._relay is None:
            return {}
        relay, self._relay = self._relay, None
        relay.terminate()
        try:
            out, _ = relay.communicate(timeout=5)
        finally:
            kill_process(relay)
        counters: dict[str, Any] = json.loads(out)
        return counters
