"""libnftables in this process by ctypes, and a bare socket for elements of sets. Decides nothing.

One buffer is one transaction, and so is one list of messages. One ``Nft`` belongs to one thread at a time and to the
network namespace of the thread that made it. A process per change would take 4 ms.
"""

import ctypes
import json
import os
import socket
import struct
from collections.abc import Sequence
from errno import ETIMEDOUT
from typing import Any, Final

from weave_router.host.elements import BEGIN, END
from weave_router.host.faults import Fault, HostError
from weave_router.host.netfilter import TABLE
from weave_router.host.rtnl import NETLINK_HEAD, Message, framed
from weave_router.host.rtnl_numbers import NLMSG_ERROR

_OUTPUT_JSON: Final = 1 << 4
_OUTPUT_STATELESS: Final = 1 << 2
_OUTPUT_TERSE: Final = 1 << 11
_NETLINK_NETFILTER: Final = 12
_READ_BYTES: Final = 64 * 1024
_SECONDS: Final = 5.0
"""The kernel answers within the send; this only bounds what should never happen."""
_ROOT_SENTENCE: Final = "run as root, or give the process CAP_NET_ADMIN"
_OTHER_SENTENCE: Final = (
    "see that the kernel has nf_tables (`weave-router doctor`) and that nothing else uses this table"
)


def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libnftables.so.1")
    except OSError as error:
        raise HostError(Fault.NFT_MISSING, reason=error) from error
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_get_output_buffer.restype = ctypes.c_char_p
    library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
    return library


class Nft:
    """An open libnftables context."""

    def __init__(self) -> None:
        self._library = _load()
        # Opens its netlink socket here: in the caller's network namespace, for ever.
        self._context = ctypes.c_void_p(self._library.nft_ctx_new(0))
        if not self._context:
            raise HostError(Fault.NFT_MISSING, reason="nft_ctx_new failed")
        self._library.nft_ctx_buffer_output(self._context)
        self._library.nft_ctx_buffer_error(self._context)
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
        self._socket.settimeout(_SECONDS)
        self._sequence = 0

    def run(self, text: str, operation: str, table: str = TABLE) -> None:
        """All of the text or nothing of it. ``table``: for the sentence."""
        self._run(text, operation, 0, table)

    def change(self, messages: Sequence[Message], operation: str) -> None:
        """All of the messages or nothing of them."""
        if not messages:
            return
        first = self._sequence + 1
        last = self._sequence = first + len(messages) + 1
        try:
            self._socket.send(framed((BEGIN, *messages, END), first, answered=last - 1))
            code = self._outcome(first, last - 1)
        except OSError as error:  # no room for so much in one send, or no answer
            code = error.errno or ETIMEDOUT
        if code:
            raise _refused(operation, TABLE, f"Error: {os.strerror(code)}")

    def _outcome(self, begin: int, last: int) -> int:
        """0 or an errno. What the kernel refuses is answered by its number, of the others the last; what it cannot
        begin or commit by the number of the begin."""
        refused = 0
        while True:
            data = self._socket.recv(_READ_BYTES)
            _, kind, _, sequence, _ = NETLINK_HEAD.unpack_from(data)
            if kind == NLMSG_ERROR and begin <= sequence <= last:
                refused = refused or -int(struct.unpack_from("=i", data, NETLINK_HEAD.size)[0])
                if sequence == last or (sequence == begin and refused):
                    return refused

    def ruleset(self) -> dict[str, Any]:
        """``nft -j list ruleset``, counters and elements of sets left out."""
        return self.listing("list ruleset")

    def listing(self, command: str, elements: bool = False) -> dict[str, Any]:
        """``nft -j COMMAND``, counters left out. HostError when what it names is not there. ``elements``: of named sets
        too, which others' tables may have by the thousand."""
        output = _OUTPUT_JSON | _OUTPUT_STATELESS | (0 if elements else _OUTPUT_TERSE)
        text = self._run(command, command, output, "of the host")
        return dict(json.loads(text)) if text else {}

    def close(self) -> None:
        if self._context:
            self._library.nft_ctx_free(self._context)
            self._context = ctypes.c_void_p(None)
            self._socket.close()

    def _run(self, text: str, operation: str, output: int, table: str) -> str:
        self._library.nft_ctx_output_set_flags(self._context, output)
        status = self._library.nft_run_cmd_from_buffer(self._context, text.encode())
        # Both are borrowed: libnftables frees them at the next call, ctypes has copied by then.
        result: bytes = self._library.nft_ctx_get_output_buffer(self._context) or b""
        complaint: bytes = self._library.nft_ctx_get_error_buffer(self._context) or b""
        if status:
            raise _refused(operation, table, complaint.decode("utf-8", "replace"))
        return result.decode("utf-8", "replace")


def _refused(operation: str, table: str, complaint: str) -> HostError:
    """nft writes the place, the line and a caret line; the operator needs the error itself."""
    lines = [line.strip() for line in complaint.splitlines() if "rror" in line] or ["no reason given"]
    reason = lines[0].split("Error: ", 1)[-1]
    way_out = _ROOT_SENTENCE if "not permitted" in reason else _OTHER_SENTENCE
    return HostError(Fault.NFT_REFUSED, operation=operation, table=table, reason=reason, way_out=way_out)
