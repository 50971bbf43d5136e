"""A folder in a store that an fsspec URL names: an object store, or whatever fsspec reaches. No torch.

There is no rename and no force to disk there; a file is there as a whole or not. Whatever such a file system raises
(its client's own errors, a timeout, a driver that is not installed) comes out as an OSError that names the place.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

#: File systems without folders: making one there would at best be a request too many, at worst make a bucket.
_WITHOUT_FOLDERS = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "oci", "memory"})


def is_url(place: object) -> bool:
    """Whether a place is an fsspec URL.

    Args:
        place: a path or URL.

    Returns:
        True for a text with ``://``.

    Example:
        >>> is_url("s3://bucket/checkpoints"), is_url("/var/checkpoints")
        (True, False)
    """
    return isinstance(place, str) and "://" in place


def require_plain(url: str) -> None:
    """Refuse a URL that may not be told to every process, event and log; the sentence does not repeat it.

    Args:
        url: of a store.

    Raises:
        ValueError: if it holds a secret, or does not name one place.
    """
    try:
        parts = urlsplit(url)
        has_secret = parts.password is not None or bool(parts.query)
    except ValueError:
        raise ValueError("is no URL: write s3://BUCKET/FOLDER") from None
    if has_secret:
        raise ValueError(
            "may not hold a password or a query, because it is written to events and logs: give credentials in the "
            "environment, and name it in CLIPTUNE_TRAINING_ENVIRONMENT"
        )
    if "::" in url or not (parts.netloc or parts.path.strip("/")):
        raise ValueError("must name one place of one kind: write s3://BUCKET/FOLDER, without '::'")


class RemoteFolder:
    """A folder and what is below it; made when something is written.

    Args:
        url: of a file system that fsspec knows, for example ``s3://bucket/folder``; nothing is opened yet.

    Raises:
        OSError: from every method, if the store can't be reached, or does not do what was asked for.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def names(self, path: str = "") -> list[str]:
        """What is directly in a folder, asked of the store itself.

        Args:
            path: relative to the folder; empty is itself.

        Returns:
            Last parts of names, in order; empty if the folder is not there.

        Raises:
            OSError: see the class.
        """
        with self._named(path):
            system, root = self._opened
            system.invalidate_cache()
            try:
                found = system.ls(_joined(root, path), detail=False)
            except FileNotFoundError:
                return []
        return sorted({each.rstrip("/").rpartition("/")[2] for each in found})

    def read(self, path: str) -> bytes:
        """A file's content, in one request.

        Args:
            path: relative to the folder.

        Returns:
            All of it.

        Raises:
            OSError: see the class; FileNotFoundError if it is not there.
        """
        with self._named(path):
            system, root = self._opened
            return bytes(system.cat_file(_joined(root, path)))

    def write(self, path: str, content: bytes) -> None:
        """Put a file.

        Args:
            path: relative to the folder.
            content: all of it.

        Raises:
            OSError: see the class.
        """
        with self._named(path):
            system, root = self._opened
            place = _joined(root, path)
            protocols = {system.protocol} if isinstance(system.protocol, str) else set(system.protocol)
            if not protocols & _WITHOUT_FOLDERS:
                system.makedirs(place.rpartition("/")[0], exist_ok=True)
            system.pipe_file(place, content)

    def delete(self, path: str = "") -> None:
        """Delete a file, or a folder with all that is in it; one that is not there is no error.

        Args:
            path: relative to the folder; empty is itself.

        Raises:
            OSError: see the class.
        """
        with self._named(path), contextlib.suppress(FileNotFoundError):
            system, root = self._opened
            system.invalidate_cache()
            system.rm(_joined(root, path), recursive=True)

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """The file system, and the folder's path in it."""
        # Not at the module's start: most studies keep their checkpoints on a disk.
        from fsspec.core import url_to_fs

        system, root = url_to_fs(self.url)
        return system, str(root)

    @contextlib.contextmanager
    def _named(self, path: str) -> Iterator[None]:
        """Have whatever goes wrong be an OSError that says where.

        Raises:
            OSError: if something does.
            FileNotFoundError: if something is not there.
        """
        try:
            yield
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, "not found", _joined(self.url, path)) from error
        except Exception as error:
            # Clients of object stores raise errors of their own that share no base.
            raise OSError(f"{_joined(self.url, path)}: {type(error).__name__}: {error}") from error


def _joined(root: str, path: str) -> str:
    return f"{root.rstrip('/')}/{path}" if path else root
