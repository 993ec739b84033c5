"""log.py: one line per record whatever it holds, and no waiting for whoever does not read."""

import io
import logging
import os
import subprocess
import sys
import threading

import pytest

from weave_router import limits, log


def line_of(message: str, *args: object, name: str = "weave_router.tunnel.core", **fields: object) -> str:
    record = logging.LogRecord(name, logging.INFO, __file__, 1, message, args, None)
    vars(record).update(fields)
    record.created = 1_800_000_000.25
    return log.LogfmtFormatter().format(record)


def test_a_line() -> None:
    assert line_of("session up", peer="0a1b", rtt=0.5, path="direct link") == (
        'ts=2027-01-15T08:00:00.250Z level=info room=tunnel msg="session up" peer=0a1b rtt=0.5 path="direct link"'
    )
    assert "room=aiohttp.server" in line_of("x", name="aiohttp.server")
    assert "room=store" in line_of("x", name="weave_router.store")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("", '""'),
        ("a=b", '"a=b"'),
        ('a"b\\', '"a\\"b\\\\"'),
        ("a\nlevel=error", '"a\\nlevel=error"'),
        ("\x1b[31m\r\t", '"\\u001b[31m\\r\\t"'),
        ("[2001:db8::1]:6783", "[2001:db8::1]:6783"),
    ],
)
def test_no_value_breaks_out_of_its_quotes(value, shown) -> None:
    line = line_of("x", value=value)
    assert line.endswith(f" value={shown}")
    assert "\n" not in line


@pytest.fixture
def restored():
    root, ours = logging.getLogger(), logging.getLogger("weave_router")
    levels = root.level, ours.level
    yield
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


def test_records_reach_the_stream_with_traceback(restored) -> None:
    stream = io.StringIO()
    output = log.configure("info", stream.write)
    logger = logging.getLogger("weave_router.mesh.core")
    fields = {"peer": "b1"}
    logger.info("link %s", "up", extra=fields)
    logger.debug("not shown")
    logging.getLogger("aiohttp.access").info("not shown either")
    try:
        raise ValueError("of\nours")
    except ValueError:
        logger.exception("failed")
    output.close()
    up, failed = stream.getvalue().splitlines()
    assert 'room=mesh msg="link up" peer=b1' in up
    assert 'traceback="Traceback (most recent call last):\\n' in failed and "of\\nours" in failed
    assert output.lost == 0


class Stalled(io.StringIO):
    """A stream whose reader sleeps until it is told otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()
        self.go_on = threading.Event()

    def write(self, text: str) -> int:
        self.entered.set()
        self.go_on.wait()
        return super().write(text)


def test_a_stalled_stream_costs_records_not_time(restored) -> None:
    stream = Stalled()
    output = log.configure("info", stream.write)
    logger = logging.getLogger("weave_router.test")
    logger.info("first")
    assert stream.entered.wait(5)
    for number in range(limits.LOG_QUEUE_MAX + 5):
        logger.info("record %d", number)
    lost = output.lost
    stream.go_on.set()
    output.close()
    assert lost == 5
    assert len(stream.getvalue().splitlines()) == 1 + limits.LOG_QUEUE_MAX


def test_a_reader_that_never_reads_does_not_delay_the_end(tmp_path) -> None:
    """A process whose stderr is a full pipe logs and ends."""
    script = (
        "import logging\nfrom weave_router import log\nlog.FINISH_SECONDS = 0.2\noutput = log.configure('info')\n"
        "for number in range(3000):\n    logging.getLogger('weave_router.x').info('line %d %s', number, 'x' * 100)\n"
        "output.close()\n"
    )
    read, write = os.pipe()
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    stuck = subprocess.Popen([sys.executable, "-c", script], env=env, stderr=write)
    try:
        assert stuck.wait(15) == 0
    finally:
        stuck.kill()
        os.close(read)
        os.close(write)
