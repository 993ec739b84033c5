"""`capture`: inner frames, as pods send and receive them, written as pcapng.

Only whole blocks are written, so that a file is readable also when Ctrl-C cuts the capture short.
"""

import os
from collections.abc import Mapping
from contextlib import closing

import click

from weave_router import limits
from weave_router.api.client import ApiClient
from weave_router.api.pcapng import take_whole_blocks
from weave_router.cli.common import STDOUT, client, flag, open_output, run_dir_flag
from weave_router.errors import BadPacket, UsageError, UserError


@click.command(short_help="Write the frames that cross the overlay as pcapng.")
@flag("--write", "-w", default="", metavar="FILE", help="Where to write; - is standard output.")
@flag("--peer", default="", metavar="NODE", help="Only frames to and from this node (id, start of an id, or name).")
@flag("--pod", default="", metavar="POD", help="Only frames of this pod (address or container id).")
@flag("--count", "-c", default=0, type=click.IntRange(0), metavar="N", help="Stop after N frames.")
@flag("--seconds", default=0.0, type=click.FloatRange(0, 86_400), metavar="S", help="Stop after S seconds.")
@flag(
    "--snap", default=limits.CAPTURE_SNAP_MAX, type=click.IntRange(14, limits.CAPTURE_SNAP_MAX), metavar="BYTES",
    help="Keep so much of each frame.",
)  # fmt: skip
@run_dir_flag
def capture(write: str, peer: str, pod: str, count: int, seconds: float, snap: int, run_dir: str) -> None:
    """Write the frames that cross the overlay as pcapng, decrypted, with direction, until Ctrl-C.

    \b
    Examples:
      weave-router capture -w - | tcpdump -nr -
      weave-router capture --pod 10.32.0.5 --seconds 10 -w pod.pcapng
      weave-router capture --peer node-b --count 100 -w node-b.pcapng
    """
    if not write:
        raise UsageError("capture: say where to write, by -w FILE or -w - for a pipe")
    if write == STDOUT and os.isatty(1):
        raise UsageError("capture: standard output is a terminal; pipe it (`-w - | tcpdump -nr -`) or write to a file")
    query: dict[str, str | int | float] = {
        "peer": peer, "pod": pod, "count": count, "seconds": seconds, "snap": snap,
    }  # fmt: skip
    descriptor = open_output(write, "--write")
    try:
        _copy(client(run_dir), query, descriptor, write)
    except KeyboardInterrupt:
        return
    finally:
        os.close(descriptor)


def _copy(router: ApiClient, query: Mapping[str, str | int | float], descriptor: int, name: str) -> None:
    waiting = bytearray()
    with closing(router.stream("/capture", query)) as pieces:
        for piece in pieces:
            waiting += piece
            try:
                _write_all(descriptor, take_whole_blocks(waiting))
            except BadPacket:
                raise UserError("what the router sent is no pcapng; are both of one version?") from None
            except BrokenPipeError:
                raise
            except OSError as error:
                raise UserError(f"cannot write {name}: {error.strerror}; what was written so far is readable") from None


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
