"""One line per record in logfmt: ``ts=... level=info room=tunnel msg="..." key=value``. Fields come by ``extra=``.

Rooms use plain ``logging.getLogger(__name__)``; only ``launch`` calls ``configure``. Records pass through a bounded
queue to a thread that writes, so a stalled journal never stalls the event loop; what finds the queue full is counted.
"""

import contextlib
import logging
import logging.handlers
import os
import queue
import re
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Final

from weave_router import limits

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_ESCAPES: Final = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_PLAIN: Final = re.compile(r"[A-Za-z0-9_.:/@%+,()\[\]-]+")
FINISH_SECONDS = 2.0
"""What a reader has, at the end, for what is queued."""


class LogfmtFormatter(logging.Formatter):
    """Time in UTC with milliseconds; a value is quoted when it is not one plain word."""

    def format(self, record: logging.LogRecord) -> str:
        return " ".join(f"{key}={_quoted(value)}" for key, value in self._pairs(record))

    def _pairs(self, record: logging.LogRecord) -> Iterator[tuple[str, object]]:
        yield "ts", datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"
        yield "level", record.levelname.lower()
        yield "room", _room(record.name)
        yield "msg", record.getMessage()
        for key, value in vars(record).items():
            if key not in _STANDARD and not key.startswith("_"):
                yield re.sub(r"[^A-Za-z0-9_.-]", "_", key), value
        if record.exc_info:
            yield "traceback", self.formatException(record.exc_info)


def _room(logger: str) -> str:
    """``weave_router.tunnel.core`` -> ``tunnel``; a library keeps its name."""
    ours = logger.removeprefix("weave_router.")
    return ours.partition(".")[0] if ours != logger else logger


def _quoted(value: object) -> str:
    """JSON-like escapes, so that no value can begin a new line or end its own quotes."""
    text = str(value)
    if _PLAIN.fullmatch(text):
        return text
    escaped = "".join(_ESCAPES.get(char) or (char if char.isprintable() else f"\\u{ord(char):04x}") for char in text)
    return f'"{escaped}"'


class _Handler(logging.handlers.QueueHandler):
    """Puts records into the queue without ever waiting, and as they are: the writer's thread formats."""

    def __init__(self, records: "queue.Queue[logging.LogRecord | None]") -> None:
        super().__init__(records)
        self.lost = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Arguments are rendered now: they may change before the thread comes to it."""
        record.msg = record.getMessage()
        record.args = None
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self.lost += 1


class _Writer(threading.Thread):
    """Takes records out of the queue and writes them. It is a daemon and holds no lock of the logging module or of
    sys.stderr: a reader that never reads delays neither the loop nor the end of the process.
    """

    def __init__(self, records: "queue.Queue[logging.LogRecord | None]", write: Callable[[str], object]) -> None:
        super().__init__(name="log", daemon=True)
        self._records = records
        self._write = write
        self._formatter = LogfmtFormatter()

    def run(self) -> None:
        while (record := self._records.get()) is not None:
            with contextlib.suppress(OSError):  # nobody reads: there is no one left to tell
                self._write(self._formatter.format(record) + "\n")

    def finish(self) -> None:
        """Write what is queued; give up on a reader that takes nothing for seconds."""
        with contextlib.suppress(queue.Full):
            self._records.put(None, timeout=1.0)
        self.join(FINISH_SECONDS)


def _to_stderr(line: str) -> None:
    data = line.encode(errors="backslashreplace")
    while data:
        data = data[os.write(2, data) :]


class LogOutput:
    """What ``configure`` set up. ``close`` writes what is queued and ends the thread."""

    def __init__(self, handler: _Handler, writer: _Writer) -> None:
        self._handler = handler
        self._writer = writer

    @property
    def lost(self) -> int:
        """Records dropped because nobody took them."""
        return self._handler.lost

    def close(self) -> None:
        logging.getLogger().removeHandler(self._handler)
        self._writer.finish()


def configure(level: str, write: Callable[[str], object] = _to_stderr) -> LogOutput:
    """Hand every record of ``level`` and above to ``write``, a line each. Libraries speak from warning upwards."""
    records: queue.Queue[logging.LogRecord | None] = queue.Queue(limits.LOG_QUEUE_MAX)
    handler, writer = _Handler(records), _Writer(records, write)
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(max(logging.WARNING, _number(level)))
    logging.getLogger("weave_router").setLevel(_number(level))
    writer.start()
    return LogOutput(handler, writer)


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level.upper()]
