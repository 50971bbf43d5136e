"""The repository that a check runs in: where it begins, and what its files are called from there."""

from __future__ import annotations

import os
from pathlib import Path


def find_root(folder: Path) -> Path:
    """The repository that a folder is in.

    Args:
        folder: any.

    Returns:
        The nearest folder with a ``.git``, upwards; the folder itself outside of repositories.
    """
    here = folder.absolute()
    return next((each for each in (here, *here.parents) if (each / ".git").exists()), here)


def relative_name(folder: Path, path: Path) -> str:
    """A file as a lock names it.

    Args:
        folder: of the lock.
        path: of the file; a symbolic link is not followed.

    Returns:
        The way from the folder to the file, with forward slashes.

    Example:
        >>> relative_name(Path("ci"), Path("conf/../train.yaml"))
        '../train.yaml'
    """
    return Path(os.path.relpath(path, folder)).as_posix()


def shown_name(root: Path, path: Path) -> str:
    """A file as reports name it: platforms find it by its path from the repository's root.

    Args:
        root: of the repository.
        path: of the file.

    Returns:
        The path from the root; a file that is not below it as it was given.
    """
    name = relative_name(root, path)
    return path.as_posix() if name.startswith("../") else name
