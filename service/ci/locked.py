"""A lock where it lies: which of a repository's files it names, and what to do where there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from service.ci.lock import LOCK_FILE, Lock, LockNotFoundError, read_lock, write_lock
from service.ci.recommended import Recommended
from service.ci.repository import relative_name


@dataclass(frozen=True)
class LockFile:
    """A lock and its place.

    Attributes:
        path: of the file.
        lock: what it holds; nothing if there is no file.
        exists: whether there is one.
    """

    path: Path
    lock: Lock
    exists: bool

    def keys_of(self, config: Path) -> tuple[str, ...]:
        """The keys of a config that the lock names.

        Args:
            config: path of the file.

        Returns:
            The keys, in the lock's order; none for a file that it does not know.
        """
        return tuple(self._keys.get(relative_name(self.path.parent, config), ()))

    @cached_property
    def _keys(self) -> dict[str, list[str]]:
        """Keys by file: a sweep asks for every file."""
        keys: dict[str, list[str]] = {}
        for place in self.lock.entries:
            keys.setdefault(place.file, []).append(place.key)
        return keys

    def find(self, config: Path, key: str) -> Recommended | None:
        """The recommendation for a value.

        Args:
            config: path of the file.
            key: the value's name.

        Returns:
            The recommendation; None if the lock has none.
        """
        return self.lock.find(relative_name(self.path.parent, config), key)

    def record(self, found: Mapping[tuple[Path, str], Recommended]) -> bool:
        """Keep recommendations; what belongs to configs that are gone is dropped.

        Args:
            found: by config and key.

        Returns:
            Whether the file has changed.

        Raises:
            LockUnreadableError: if it can't be written.
        """
        folder = self.path.parent
        entries = self.lock.entries.items()
        lock = Lock({place: each for place, each in entries if (folder / place.file).is_file()})
        for (config, key), each in found.items():
            lock = lock.with_entry(relative_name(folder, config), key, each)
        return write_lock(self.path, lock)


def open_lock(path: Path | None, root: Path, *, is_needed: bool) -> LockFile:
    """Read the lock of a repository.

    Args:
        path: of the file; None for `LOCK_FILE` at the root.
        root: of the repository.
        is_needed: whether there must be one.

    Returns:
        The lock; an empty one if there is no file and none is needed.

    Raises:
        LockError: if it can't be used.
        LockNotFoundError: if it is needed and not there.
    """
    file = path or root / LOCK_FILE
    try:
        return LockFile(file, read_lock(file), exists=True)
    except LockNotFoundError:
        if is_needed:
            raise
        return LockFile(file, Lock({}), exists=False)
