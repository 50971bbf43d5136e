"""The last usable answer to a question, in a file: what a training run falls back on while the service is away."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tuner.inline.asking import MAX_BYTES


@dataclass(frozen=True, kw_only=True)
class KeptAnswer:
    """An answer from the cache, not yet checked to be one.

    Attributes:
        etag: its version; empty if it had none.
        kept_at: when it was kept, ISO 8601 in UTC.
        document: the answer's JSON values.
    """

    etag: str
    kept_at: str
    document: Any


class AnswerCache:
    """One file per address. Whatever is wrong with it or its folder, the cache is then empty and nothing is raised.

    Args:
        url: the whole address that is asked, query included.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._file = _folder() / f"recommendation-{hashlib.sha256(url.encode()).hexdigest()[:32]}.json"

    def read(self) -> KeptAnswer | None:
        """The answer that was kept; None without one."""
        try:
            with self._file.open("rb") as file:
                document = json.loads(file.read(2 * MAX_BYTES))
            if document["url"] != self._url:
                return None
            return KeptAnswer(
                etag=str(document["etag"]), kept_at=str(document["kept_at"]), document=document["answer"]
            )
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def write(self, etag: str, document: Any) -> None:
        """Keep an answer in place of the one before; other processes see the one or the other.

        Args:
            etag: its version; empty if it has none.
            document: its JSON values.
        """
        kept = {
            "url": self._url,
            "etag": etag,
            "kept_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "answer": document,
        }
        beside = None
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            descriptor, beside = tempfile.mkstemp(dir=self._file.parent, suffix=".new")
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(kept, file)
            Path(beside).replace(self._file)
        except OSError:
            if beside is not None:
                Path(beside).unlink(missing_ok=True)


def _folder() -> Path:
    """``$XDG_CACHE_HOME/cliptune``, which must be absolute to count, else ``~/.cache/cliptune``."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # Without a home folder the tilde stays, and the folder can't be made: then there is no cache.
    base = given if given.is_absolute() else Path(os.path.expanduser("~/.cache"))
    return base / "cliptune"
