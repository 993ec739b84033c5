"""Reads and writes sysctls of the calling thread's network namespace (/proc/sys/net follows the thread).

Decides nothing; knows no link of ours. Called by the other drivers of this room. In a container /proc/sys is read-only
whatever the capabilities, so the host's /proc/sys/net is mounted beside it (deploy/weave-router.yaml).
"""

from pathlib import Path

from weave_router.host.faults import Fault, HostError

HOST_ROOT = Path("/host/proc/sys")
ROOT = HOST_ROOT if (HOST_ROOT / "net").is_dir() else Path("/proc/sys")


def path_of(name: str) -> Path:
    """``net/ipv4/conf/eth0.5/rp_filter``: slashes, because interface names may hold dots."""
    return ROOT / name


def read(name: str) -> str | None:
    """The value, or None where this kernel has no such sysctl."""
    try:
        return path_of(name).read_text().strip()
    except OSError:
        return None


def write(name: str, value: str, *, link: str) -> bool:
    """Set it unless it is so already. False where this kernel has no such sysctl (IPv6 switched off)."""
    present = read(name)
    if present is None:
        return False
    if present != value:
        try:
            path_of(name).write_text(value)
        except OSError as error:
            raise HostError(Fault.SYSCTL, name=name, value=value, link=link, errno=error.errno or 0) from error
    return True
