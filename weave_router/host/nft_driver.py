"""libnftables in this process by ctypes: one buffer is one transaction. Decides nothing.

One ``Nft`` belongs to one thread at a time and to the network namespace of the thread that made it. A process per
change would take 4 ms instead of 0.1.
"""

import ctypes
import json
from typing import Any, Final

from weave_router.host.faults import Fault, HostError
from weave_router.host.netfilter import TABLE

_OUTPUT_JSON: Final = 1 << 4
_OUTPUT_STATELESS: Final = 1 << 2
_OUTPUT_TERSE: Final = 1 << 11
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

    def run(self, text: str, operation: str, table: str = TABLE) -> None:
        """All of the text or nothing of it. ``table``: for the sentence."""
        self._run(text, operation, 0, table)

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
