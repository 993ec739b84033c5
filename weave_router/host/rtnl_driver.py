"""A bare rtnetlink socket: several messages in one send, their answers read back. Decides nothing.

The kernel carries out a whole batch before the send returns, one after the other, and goes on behind a refusal; who
needs an order asks again with the next batch. Called by pod_driver.py and netlink_driver.py.
"""

import os
import socket
import struct
from collections.abc import Sequence
from typing import Final, Self

from weave_router.host.rtnl import NETLINK_HEAD, Message, address_list, attributes, framed, link_get, link_list
from weave_router.host.rtnl_numbers import (
    IFA_ADDRESS,
    IFA_LOCAL,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    RTM_NEWADDR,
    RTM_NEWLINK,
)
from weave_router.limits import RTNL_MESSAGES

_READ_BYTES: Final = 64 * 1024
_SECONDS: Final = 5.0
"""The kernel answers within the send; this only bounds what should never happen."""


class Rtnl:
    """``descriptor``: a socket that was opened elsewhere (in a pod); it is duplicated, the caller's stays open."""

    def __init__(self, descriptor: int | None = None) -> None:
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
        if descriptor is None:
            self._socket = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        else:
            self._socket = socket.socket(fileno=os.dup(descriptor))
        self._socket.settimeout(_SECONDS)
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, *messages: Message) -> list[int]:
        """Carry out all; per message 0 or its errno."""
        pieces = (messages[at : at + RTNL_MESSAGES] for at in range(0, len(messages), RTNL_MESSAGES))
        return [code for piece in pieces for code in self._run(piece)]

    def _run(self, messages: Sequence[Message]) -> list[int]:
        """What is refused is answered, of the others only the last: each answer is a call that lets go of the
        interpreter's lock."""
        first = self._sequence + 1
        last = self._sequence = self._sequence + len(messages)
        self._socket.send(framed(messages, first, last))
        codes: dict[int, int] = {}
        while last not in codes:
            for kind, sequence, body in self._read():
                if kind == NLMSG_ERROR and first <= sequence <= last:
                    codes[sequence] = -int(struct.unpack_from("=i", body)[0])
        return [codes.get(n, 0) for n in range(first, last + 1)]

    def link(self, name: str) -> tuple[bytes, int]:
        """(ifinfomsg with its attributes, errno) of one link."""
        return self._ask(link_get(name), NLM_F_REQUEST)

    def links(self) -> list[bytes]:
        """Every link's ifinfomsg with its attributes. OSError when the kernel refuses."""
        return self._list(link_list(), RTM_NEWLINK)

    def addresses(self) -> list[tuple[int, bytes, int]]:
        """(index of the link, packed address, prefix length) of all links."""
        found = []
        for data in self._list(address_list(), RTM_NEWADDR):
            present = attributes(data[8:])
            packed = present.get(IFA_LOCAL) or present.get(IFA_ADDRESS, b"")
            found.append((struct.unpack_from("=I", data, 4)[0], packed, data[1]))
        return found

    def _list(self, message: Message, wanted: int) -> list[bytes]:
        self._send(message, NLM_F_REQUEST | NLM_F_DUMP)
        found: list[bytes] = []
        while True:
            for kind, sequence, body in self._read():
                if sequence == self._sequence:
                    if kind == wanted:
                        found.append(body)
                    elif kind == NLMSG_DONE:
                        return found
                    elif kind == NLMSG_ERROR:
                        code = -int(struct.unpack_from("=i", body)[0])
                        raise OSError(code, os.strerror(code))

    def _send(self, message: Message, flags: int) -> None:
        self._sequence += 1
        length = NETLINK_HEAD.size + len(message.body)
        head = NETLINK_HEAD.pack(length, message.kind, message.flags | flags, self._sequence, 0)
        self._socket.send(head + message.body)

    def _ask(self, message: Message, flags: int) -> tuple[bytes, int]:
        self._send(message, flags)
        while True:
            for kind, sequence, body in self._read():
                if sequence == self._sequence:
                    return (b"", -int(struct.unpack_from("=i", body)[0])) if kind == NLMSG_ERROR else (body, 0)

    def _read(self) -> list[tuple[int, int, bytes]]:
        """What the kernel sent: whoever else writes to the socket (a pod's root could) is not listened to."""
        data, sender = self._socket.recvfrom(_READ_BYTES)
        found, at = [], 0
        while sender[0] == 0 and at + NETLINK_HEAD.size <= len(data):
            length, kind, _, sequence, _ = NETLINK_HEAD.unpack_from(data, at)
            found.append((kind, sequence, data[at + NETLINK_HEAD.size : at + length]))
            at += (length + 3) & ~3
        return found
