"""firewalld by D-Bus: puts the bridge into its zone ``trusted``, as Podman and libvirt do with theirs. Decides nothing.

Its own API, because newer versions own their nft table: nobody else may write it. A reload forgets what was told this
way, so it is told again at every look. As much of D-Bus as three calls with texts need: they take 3 ms each, a process
of firewall-cmd a third of a second.
Synchronous; called by forwarding_driver.py and reset_driver.py. Where nobody answers, ``None``.
"""

import os
import socket
import struct
from typing import Final

ZONE: Final = "trusted"
COMMAND: Final = "firewall-cmd --zone=trusted --change-interface={}"
_BUS: Final = "/run/dbus/system_bus_socket"
_NAME: Final = "org.fedoraproject.FirewallD1"
_TIMEOUT: Final = 5.0
_REPLY_MAX: Final = 1 << 16
_CALL, _RETURN, _ERROR = 1, 2, 3
_NO_AUTO_START: Final = 2
_PATH, _INTERFACE, _MEMBER, _ERROR_NAME, _REPLY_SERIAL, _DESTINATION, _SIGNATURE = 1, 2, 3, 4, 5, 6, 8


class _Silent(Exception):
    """No bus, no firewalld, or an answer that is none."""


def trust(interface: str) -> str | None:
    """The zone that the interface is in afterwards; one that the operator chose stays. None: firewalld is not there."""
    try:
        with _Bus() as bus:
            zone = bus.zone("getZoneOfInterface", interface)
            return zone or bus.zone("changeZoneOfInterface", ZONE, interface)
    except (OSError, _Silent):
        return None


def distrust(interface: str) -> bool:
    """Take it out of the zone again. False: it was not there, or nobody answered."""
    try:
        with _Bus() as bus:
            if bus.zone("getZoneOfInterface", interface) != ZONE:
                return False
            return bus.zone("removeInterface", ZONE, interface) == ZONE
    except (OSError, _Silent):
        return False


def is_trusted(interface: str) -> bool:
    try:
        with _Bus() as bus:
            return bus.zone("getZoneOfInterface", interface) == ZONE
    except (OSError, _Silent):
        return False


class _Bus:
    """One connection to the system bus (D-Bus specification: "Authentication Protocol", "Message Protocol")."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(_TIMEOUT)
        self._serial = 0

    def __enter__(self) -> "_Bus":
        try:
            self._socket.connect(_address())
            self._socket.sendall(b"\0AUTH EXTERNAL " + str(os.geteuid()).encode().hex().encode() + b"\r\n")
            if not self._socket.recv(_REPLY_MAX).startswith(b"OK "):
                raise _Silent
            self._socket.sendall(b"BEGIN\r\n")
            self._call("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello", ())
        except (OSError, _Silent):
            self._socket.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def zone(self, method: str, *words: str) -> str:
        return self._call(_NAME, "/org/fedoraproject/FirewallD1", f"{_NAME}.zone", method, words)

    def _call(self, destination: str, path: str, interface: str, member: str, words: tuple[str, ...]) -> str:
        """The first text of the answer; _Silent when it is an error."""
        self._serial += 1
        fields = [(_PATH, "o", path), (_INTERFACE, "s", interface), (_MEMBER, "s", member),
                  (_DESTINATION, "s", destination)]  # fmt: skip
        self._socket.sendall(_message(self._serial, fields, words))
        while True:
            kind, serial, text = self._receive()
            if serial == self._serial:
                if kind != _RETURN:
                    raise _Silent
                return text

    def _receive(self) -> tuple[int, int, str]:
        """(kind, serial it answers, first text of the body)."""
        head = self._exactly(16)
        order = "<" if head[:1] == b"l" else ">"
        body_length, _, fields_length = struct.unpack_from(f"{order}III", head, 4)
        if max(body_length, fields_length) > _REPLY_MAX:
            raise _Silent
        fields = self._exactly(_aligned(fields_length, 8))[:fields_length]
        body = self._exactly(body_length)
        found = _fields(fields, order)
        text = body[4 : 4 + struct.unpack_from(f"{order}I", body)[0]].decode() if found.get(_SIGNATURE) == "s" else ""
        return head[1], int(found.get(_REPLY_SERIAL, 0)), text

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self._socket.recv(count - len(data))
            if not piece:
                raise _Silent
            data += piece
        return data


def _address() -> str:
    """As the bus's clients find it; paths alone."""
    for address in os.environ.get("DBUS_SYSTEM_BUS_ADDRESS", "").split(";"):
        if address.startswith("unix:path="):
            return address.removeprefix("unix:path=").split(",")[0]
    return _BUS


def _aligned(count: int, to: int) -> int:
    return -(-count // to) * to


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<I", len(data)) + data + b"\0"


def _message(serial: int, fields: list[tuple[int, str, str]], words: tuple[str, ...]) -> bytes:
    """A method call whose arguments are texts."""
    body = b""
    for word in words:
        body = body.ljust(_aligned(len(body), 4), b"\0") + _text(word)
    packed = b""
    for code, kind, value in fields:
        packed = packed.ljust(_aligned(len(packed), 8), b"\0") + bytes([code, 1]) + kind.encode() + b"\0" + _text(value)
    if words:
        packed = packed.ljust(_aligned(len(packed), 8), b"\0") + bytes([_SIGNATURE, 1]) + b"g\0"
        packed += bytes([len(words)]) + b"s" * len(words) + b"\0"
    head = struct.pack("<cBBBIII", b"l", _CALL, _NO_AUTO_START, 1, len(body), serial, len(packed))
    return (head + packed).ljust(_aligned(len(head) + len(packed), 8), b"\0") + body


def _fields(data: bytes, order: str) -> dict[int, str | int]:
    """Header fields of an answer: texts, signatures, numbers."""
    found: dict[int, str | int] = {}
    at = 0
    while at + 4 < len(data):
        at = _aligned(at, 8)
        code, kind = data[at], data[at + 2 : at + 3]
        at += 4
        if kind == b"g":
            length = data[at]
            found[code] = data[at + 1 : at + 1 + length].decode()
            at += length + 2
        elif kind == b"u":
            found[code] = struct.unpack_from(f"{order}I", data, at)[0]
            at += 4
        elif kind in (b"s", b"o"):
            length = struct.unpack_from(f"{order}I", data, at)[0]
            found[code] = data[at + 4 : at + 4 + length].decode()
            at += length + 5
        else:
            raise _Silent
    return found
