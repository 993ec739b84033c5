"""Elements of nft sets as bytes: those of many pods come or go in one transaction. Pure.

    nlmsghdr (nft_driver.py) | family u8 | version u8 | resource be16 | attributes
    batch begin | elements of one set | ... | batch end

libnftables asks the kernel for its tables and sets before it changes one, 0.9 ms each time; a pod comes and goes in
elements alone, so these are made here. A key is its parts one behind the other, each filled up to four bytes. Layouts:
linux/netfilter/nfnetlink.h, nf_tables.h.
"""

import struct
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from weave_router.host.rtnl import Message, attribute, nested
from weave_router.host.rtnl_numbers import NLM_F_CREATE

Part = str | bytes | IPv4Address | IPv6Address | int
"""An interface's name, a MAC, an address, or 128 bits of payload."""
Element = tuple[Part, ...]

PIECE: Final = 512
"""Elements in one message: the length of an attribute has 16 bits."""
_FAMILIES: Final = {"inet": 1, "bridge": 7}
_SUBSYSTEM, _BATCH_BEGIN, _BATCH_END, _NEW, _DELETE = 10, 16, 17, 12, 14
_TABLE, _SET, _ELEMENTS, _ELEMENT, _KEY, _VALUE = 1, 2, 3, 1, 1, 1
_HEAD: Final = struct.Struct(">BBH")
_NAME_BYTES: Final = 16

BEGIN: Final = Message(_BATCH_BEGIN, 0, _HEAD.pack(0, 0, _SUBSYSTEM))
END: Final = Message(_BATCH_END, 0, _HEAD.pack(0, 0, _SUBSYSTEM))


def text(element: Element) -> str:
    """As nft reads it."""
    return " . ".join(map(_text, element))


def _text(part: Part) -> str:
    if isinstance(part, str):
        return f'"{part}"'
    if isinstance(part, bytes):
        return part.hex(":")
    return f"{part:#034x}" if isinstance(part, int) else str(part)


def packed(element: Element) -> bytes:
    """As the message has it: an element with its key."""
    key = b"".join(map(_packed, element))
    return nested(_ELEMENT, nested(_KEY, attribute(_VALUE, key)))


def _packed(part: Part) -> bytes:
    if isinstance(part, str):
        return part.encode().ljust(_NAME_BYTES, b"\0")
    if isinstance(part, bytes):
        return part + bytes(-len(part) % 4)
    return part.to_bytes(16, "big") if isinstance(part, int) else part.packed


def added(family: str, table: str, name: str, elements: Iterable[bytes]) -> list[Message]:
    """One that is there stays."""
    return _messages(_NEW, NLM_F_CREATE, family, table, name, list(elements))


def deleted(family: str, table: str, name: str, elements: Iterable[bytes]) -> list[Message]:
    """The transaction fails if one is not there."""
    return _messages(_DELETE, 0, family, table, name, list(elements))


def _messages(verb: int, flags: int, family: str, table: str, name: str, elements: list[bytes]) -> list[Message]:
    head = _HEAD.pack(_FAMILIES[family], 0, 0) + attribute(_TABLE, table.encode() + b"\0")
    head += attribute(_SET, name.encode() + b"\0")
    pieces = (elements[at : at + PIECE] for at in range(0, len(elements), PIECE))
    return [Message(_SUBSYSTEM << 8 | verb, flags, head + nested(_ELEMENTS, *piece)) for piece in pieces]
