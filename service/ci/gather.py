"""The clip values of files and folders, read before anything is asked: each is found, refused, or passed over."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from service.ci.config import Config, open_config
from service.ci.discover import find_configs
from service.ci.errors import AmbiguousFrameworkError, AmbiguousValueError, ConfigError, KeyPathError
from service.ci.locked import LockFile
from service.ci.report import Refusal
from service.ci.repository import shown_name

#: What a file of a folder may be without anybody being told file by file: no training config, or one whose number
#: stands in another file, which the folder has as well, or is no threshold.
_PASSED_OVER = ("ambiguous_framework", "missing_key", "auto_value", "per_sample_clip")


@dataclass(frozen=True, kw_only=True)
class Hints:
    """What the caller says about the files.

    Attributes:
        framework: whose they are; None to tell it by their keys.
        key: where the value is; None for the framework's own key.
        is_followed: whether to follow aliases and references to the number.
    """

    framework: str | None = None
    key: str | None = None
    is_followed: bool = False


@dataclass(frozen=True)
class Value:
    """A clip value of a repository.

    Attributes:
        file: its path as reports show it.
        config: what was found there.
    """

    file: str
    config: Config

    @property
    def path(self) -> Path:
        """Of the file."""
        return self.config.located.path

    @property
    def key(self) -> str:
        """What the value is called."""
        return self.config.located.key


@dataclass(frozen=True)
class Gathered:
    """What was found in files and folders.

    Attributes:
        values: to be judged.
        refusals: files whose value can't be told.
        num_passed_over: files of folders that name a key and hold no value to judge.
    """

    values: tuple[Value, ...]
    refusals: tuple[Refusal, ...]
    num_passed_over: int


def gather(
    paths: Iterable[Path],
    *,
    root: Path,
    lock: LockFile,
    hints: Hints | None = None,
    only_locked: bool = False,
) -> Gathered:
    """Read the clip values of files and folders.

    Args:
        paths: a file is always told about; a folder is searched, and what is no training config in it passed over.
        root: of the repository.
        lock: names the keys of files in which none is found otherwise.
        hints: what is known of the files.
        only_locked: whether files that the lock does not name are passed over unread.

    Returns:
        What was found, in the order of the paths; a file that is named twice counts once.
    """
    values: list[Value] = []
    refusals: list[Refusal] = []
    num_passed_over = 0
    for path, is_swept in _files(paths):
        keys = lock.keys_of(path)
        if only_locked and not keys:
            continue
        try:
            values += open_values(path, root=root, keys=keys, hints=hints)
        except ConfigError as error:
            if is_swept and not keys and error.code in _PASSED_OVER:
                num_passed_over += 1
                continue
            refusals.append(
                Refusal(
                    file=shown_name(root, error.path),
                    line=error.line or 1,
                    code=error.code,
                    sentence=error.reason,
                )
            )
    return Gathered(tuple(values), tuple(refusals), num_passed_over)


def open_values(
    path: Path, *, root: Path, keys: tuple[str, ...] = (), hints: Hints | None = None
) -> tuple[Value, ...]:
    """Read the clip value of a file.

    Args:
        path: of the file.
        root: of the repository.
        keys: where to look if no value is found otherwise, or several are: what a lock names.
        hints: what is known of the file.

    Returns:
        One value; several only if several keys are named.

    Raises:
        ConfigError: if it can't be told.
    """  # noqa: DOC501
    hints = hints or Hints()
    try:
        return (_open(path, root, hints, hints.key),)
    except (AmbiguousFrameworkError, AmbiguousValueError, KeyPathError):
        if hints.key is not None or not keys:
            raise
    return tuple(_open(path, root, hints, key) for key in keys)


def _open(path: Path, root: Path, hints: Hints, key: str | None) -> Value:
    config = open_config(path, framework=hints.framework, key=key, follow=hints.is_followed)
    return Value(shown_name(root, path), config)


def _files(paths: Iterable[Path]) -> Iterator[tuple[Path, bool]]:
    """Files with whether they were found in a folder, each once; a file that is named is never a found one."""
    given = {each.absolute(): each for each in reversed(list(paths))}
    seen = set(given)
    for absolute, path in reversed(given.items()):
        if not absolute.is_dir():
            yield path, False
            continue
        for each in find_configs(path):
            if each.absolute() not in seen:
                seen.add(each.absolute())
                yield each, True
