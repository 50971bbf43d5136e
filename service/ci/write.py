"""Put a rewritten config on disk: whole or not at all, with the mode it had, and only over what was looked at."""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from service.ci.errors import ConfigChangedError, ConfigUnreadableError
from service.ci.rewrite import Rewrite
from service.ci.source import read_content


def write(rewrite: Rewrite) -> Path:
    """Write a rewrite if it changes anything.

    A symbolic link stays one: the file that it leads to is replaced. A hard link to the file keeps the old content.

    Args:
        rewrite: what was decided.

    Returns:
        The file that holds the setting now.

    Raises:
        ConfigChangedError: if the file is no longer what was looked at.
        ConfigUnreadableError: if the file or its folder may not be written.
    """
    target = rewrite.path.resolve()
    if not rewrite.is_changed:
        return target
    if read_content(target) != rewrite.before:
        raise ConfigChangedError(
            rewrite.path, "was changed since it was read, and nothing was written: check it again"
        )
    if not os.access(target, os.W_OK):
        raise ConfigUnreadableError(rewrite.path, "may not be written: change its mode or its owner")
    try:
        _replace(target, rewrite.after)
    except OSError as error:
        raise ConfigUnreadableError(rewrite.path, f"can't be written: {error.strerror}") from None
    return target


def _replace(target: Path, content: bytes) -> None:
    """Write beside the file, then take its place: a reader sees the old content or the new."""
    status = target.stat()
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _take_over(name, status)
        os.replace(name, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name)
        raise
    if os.name == "posix":
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _take_over(name: str, status: os.stat_result) -> None:
    """Give a file another's mode, and its owner where that is allowed: a container's root writes for its user."""
    if os.name == "posix":
        with suppress(PermissionError):
            os.chown(name, status.st_uid, status.st_gid)
    os.chmod(name, stat.S_IMODE(status.st_mode))
