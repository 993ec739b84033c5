"""One list and the watch that follows it: pages, bookmarks, and when to list again. Sans-I/O.

``request`` says what to ask next; ``read_page`` and ``read_line`` take what came. A version that the server
has forgotten (410) starts over. Called by driver.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Final

import msgspec

from weave_router import limits
from weave_router.errors import BadPacket

from . import objects
from .values import Answer, Call

GONE = 410
TOO_LARGE = 413
GOOD_SECONDS: Final = 30.0
"""A watch that lasted so long was a good one: what broke it is no repetition of what broke the one before."""


class WatchEnded(Exception):
    """The server ended it, or said what cannot be used; the text is for status. ``status`` 0: no answer."""

    def __init__(self, text: str, status: int = 0, after: float = 0.0) -> None:
        super().__init__(text)
        self.status = status
        self.after = after


@dataclass
class Watch:
    """``kind`` is for people. ``items``: of the pages so far, each turned into a value by whoever reads it."""

    kind: str
    path: str
    selector: Mapping[str, str] = field(default_factory=dict)
    version: str = ""
    """Empty: to be listed."""
    limit: int = limits.KUBE_PAGE
    _continue: str = ""
    failures: int = 0
    """In a row."""

    def ended(self, lasted: float) -> int:
        """How often it failed before this time, which ``lasted`` seconds: for the back-off."""
        before = 0 if lasted >= GOOD_SECONDS else self.failures
        self.failures = before + 1
        return before

    def request(self, rng: Random) -> Call:
        if self.version:
            return Call("GET", self.path, "watch", params={
                **self.selector, "watch": "1", "allowWatchBookmarks": "true", "resourceVersion": self.version,
                "timeoutSeconds": str(rng.randrange(300, 600))})
        more = {"continue": self._continue} if self._continue else {}
        return Call("GET", self.path, "list", params={**self.selector, "limit": str(self.limit), **more})

    @property
    def first_page(self) -> bool:
        return not self._continue

    def read_page(self, answer: Answer) -> list[msgspec.Raw]:
        """The objects of one page; ``version`` is set after the last. WatchEnded: wait, then ask ``request`` again."""
        if answer.status == TOO_LARGE and self.limit > 1:
            self.limit = max(1, self.limit // 4)
            return []
        if answer.status != 200:
            self.restart()
            raise WatchEnded(answer.detail or f"it answered {answer.status}", answer.status, answer.after)
        try:
            page = objects.read_untrusted(answer.body, objects.Page)
        except BadPacket:
            self.restart()
            raise WatchEnded("its list cannot be read") from None
        self._continue = page.metadata.continue_
        if not self._continue:
            self.version = page.metadata.resource_version
            if not self.version:
                raise WatchEnded("its list has no resourceVersion")
        return page.items or []

    def restart(self) -> None:
        self.version = self._continue = ""

    def read_line(self, line: bytes) -> tuple[str, msgspec.Raw] | None:
        """(ADDED, MODIFIED or DELETED, the object); None: a bookmark."""
        try:
            event = objects.read_untrusted(line, objects.WatchLine)
            if event.type == "ERROR":
                status = objects.read_untrusted(event.object, objects.Status)
                self.restart()
                raise WatchEnded(status.message[:200] or "it ended the watch", status.code)
            if event.type not in ("ADDED", "MODIFIED", "DELETED", "BOOKMARK"):
                raise BadPacket("watch event")
            version = objects.read_untrusted(event.object, _Versioned).metadata.resource_version
        except BadPacket:
            self.restart()
            raise WatchEnded("a line of its watch cannot be read") from None
        self.version = version or self.version
        return None if event.type == "BOOKMARK" else (event.type, event.object)

    def refused(self, answer: Answer) -> WatchEnded:
        """The watch was not opened."""
        if answer.status not in (0, 429, 500, 502, 503, 504):
            self.restart()
        return WatchEnded(answer.detail or f"it answered {answer.status}", answer.status, answer.after)


class _Versioned(objects._Struct):
    metadata: objects.NodeMeta
