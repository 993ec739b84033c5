"""What passes an interface, by tcpdump, as a pcap file; and a reader for it. Called by Lab.capture and by tests."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from .namespace import LabError, Namespace, kill_process

RECORD: Final = struct.Struct("<IIII")
FILE_HEADER_SIZE: Final = 24
MAGIC_MICROSECONDS: Final = 0xA1B2C3D4


class Capture:
    """A running tcpdump. Listens when the constructor returns; the file is complete when ``stop`` does."""

    def __init__(self, namespace: Namespace, interface: str, path: Path, expression: str = "") -> None:
        self.path = path
        argv = ["tcpdump", "-Z", "root", "-n", "-s", "0", "-B", "32768", "--immediate-mode", "-U"]
        self._process = namespace.popen([*argv, "-i", interface, "-w", str(path), *expression.split()])
        self._wait_listening()

    def _wait_listening(self) -> None:
        assert self._process.stderr is not None
        said = []
        for line in self._process.stderr:
            if "listening on" in line:
                return
            said.append(line)
        raise LabError(f"tcpdump: {''.join(said)}")

    def stop(self) -> Path:
        """SIGTERM makes tcpdump take what the kernel holds already, then close the file."""
        self._process.terminate()
        try:
            self._process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            pass
        finally:
            kill_process(self._process)
        return self.path

    def packets(self) -> list[bytes]:
        return [data for _, data in read_pcap(self.stop())]


def read_pcap(path: Path) -> Iterator[tuple[float, bytes]]:
    """(seconds, frame) of each record of a pcap file as tcpdump writes it here: little-endian, microseconds."""
    data = path.read_bytes()
    if len(data) < FILE_HEADER_SIZE or int.from_bytes(data[:4], "little") != MAGIC_MICROSECONDS:
        raise LabError(f"{path} is no pcap file of this machine")
    at = FILE_HEADER_SIZE
    while at + RECORD.size <= len(data):
        seconds, micros, kept, _ = RECORD.unpack_from(data, at)
        at += RECORD.size
        yield seconds + micros / 1e6, data[at : at + kept]
        at += kept
