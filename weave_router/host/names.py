"""Names of the links this program makes, and which link names it accepts.

Pure. Host-side ends of pod links share one prefix on purpose: the guards match it and are closed by default, network
managers are told to leave it alone, and reset finds what is left of a router whose store is gone.
"""

import hashlib
import re
from typing import Final

from weave_router.errors import UsageError

IFNAME_MAX: Final = 15  # IFNAMSIZ - 1, linux/if.h
PORT_PREFIX: Final = "vethwr"
GRAVE_GROUP: Final = 0x77720001
"""Link group of pairs that wait for their batched deletion."""

_IFNAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")


def check_ifname(name: str, what: str) -> str:
    """A link name that is safe in a path, in an nft rule and in a shell."""
    if not _IFNAME.fullmatch(name):
        raise UsageError(
            f"{what} {name!r} is no usable interface name; take 1 to {IFNAME_MAX} letters, digits, '_', '.', '-'"
        )
    return name


def tap_name(bridge: str) -> str:
    """The TAP of a bridge: ``<bridge>-tap``, the bridge part cut so that it fits."""
    return bridge[: IFNAME_MAX - len("-tap")] + "-tap"


def port_name(attachment: str, ifname: str, salt: int = 0) -> str:
    """Host-side name of a pod link: the same for the same pod and interface; ``salt`` steps past a taken name."""
    key = "\0".join((attachment, ifname, str(salt))).encode()
    return PORT_PREFIX + hashlib.sha256(key).hexdigest()[: IFNAME_MAX - len(PORT_PREFIX)]


def is_port_name(name: str) -> bool:
    return name.startswith(PORT_PREFIX)
