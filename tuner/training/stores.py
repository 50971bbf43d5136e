"""Where the files of checkpoints are: a folder on a disk, or one that an fsspec URL names.

A store writes a checkpoint as a whole or not at all. On a disk its folder is written beside its final place, forced
to the disk and then renamed. Elsewhere there is no rename: the tensors are put first and the manifest last, and a
folder without a manifest is a draft.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import save, save_file
from torch import Tensor

from tuner.training.remote import RemoteFolder

TENSORS, MANIFEST = "tensors.safetensors", "manifest.json"
#: A step, and something that is never used twice.
_NAME = re.compile(r"\d{10}-[0-9a-f]{12}")

#: ``describe(size and SHA-256 of the tensor file) -> the manifest``.
Describe = Callable[[int, str], bytes]


class Store(Protocol):
    """The folder of one cohort's checkpoints."""

    def place(self, name: str) -> Path | str:
        """Where a checkpoint is."""
        ...

    def write(self, name: str, tensors: Mapping[str, Tensor], describe: Describe) -> int:
        """Write a checkpoint under a new name; the size of its files.

        Raises:
            OSError: if it can't be written; nothing of it is then taken for a checkpoint.
        """
        ...

    def read(self, name: str, file: str) -> bytes:
        """A file of a checkpoint.

        Raises:
            OSError: if it can't be read.
        """
        ...

    def newest_first(self) -> list[str]:
        """The names of all checkpoints, verified or not; empty without any.

        Raises:
            OSError: if they can't be listed.
        """
        ...

    def delete(self, name: str) -> None:
        """Delete a checkpoint, as far as that can be done."""
        ...

    def delete_drafts(self) -> None:
        """Delete what a killed process left half written or half deleted, as far as that can be done."""
        ...


class LocalStore:
    """A `Store` on a disk.

    Args:
        folder: made when something is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def place(self, name: str) -> Path:  # noqa: D102
        return self.folder / name

    def write(self, name: str, tensors: Mapping[str, Tensor], describe: Describe) -> int:  # noqa: D102
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = self.folder / f".{name}"
        draft.mkdir(mode=0o700)
        try:
            num_bytes = _fill(draft, tensors, describe)
            draft.rename(self.folder / name)
            _sync(self.folder)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        return num_bytes

    def read(self, name: str, file: str) -> bytes:  # noqa: D102
        return (self.folder / name / file).read_bytes()

    def newest_first(self) -> list[str]:  # noqa: D102
        try:
            found = [each.name for each in self.folder.iterdir() if _NAME.fullmatch(each.name)]
        except FileNotFoundError:
            return []
        return sorted(found, reverse=True)

    def delete(self, name: str) -> None:  # noqa: D102
        # Renamed first, so that one that was deleted by half is not taken for a harmed one.
        with contextlib.suppress(OSError):
            shutil.rmtree((self.folder / name).rename(self.folder / f".{name}"), ignore_errors=True)

    def delete_drafts(self) -> None:  # noqa: D102
        for each in self.folder.glob(".*-*"):
            shutil.rmtree(each, ignore_errors=True)


class RemoteStore:
    """A `Store` that an fsspec URL names.

    Args:
        url: of the cohort's own folder.
    """

    def __init__(self, url: str) -> None:
        self._folder = RemoteFolder(url)

    def place(self, name: str) -> str:  # noqa: D102
        return f"{self._folder.url}/{name}"

    def write(self, name: str, tensors: Mapping[str, Tensor], describe: Describe) -> int:  # noqa: D102
        content = save(plain(tensors))
        manifest = describe(len(content), hashlib.sha256(content).hexdigest())
        try:
            self._folder.write(f"{name}/{TENSORS}", content)
            self._folder.write(f"{name}/{MANIFEST}", manifest)
        except BaseException:
            self.delete(name)
            raise
        return len(content) + len(manifest)

    def read(self, name: str, file: str) -> bytes:  # noqa: D102
        return self._folder.read(f"{name}/{file}")

    def newest_first(self) -> list[str]:  # noqa: D102
        return [name for name in self._names() if self._has_manifest(name)]

    def delete(self, name: str) -> None:  # noqa: D102
        # The manifest first: what is left is a draft.
        with contextlib.suppress(OSError):
            self._folder.delete(f"{name}/{MANIFEST}")
            self._folder.delete(name)

    def delete_drafts(self) -> None:  # noqa: D102
        # Those that are newer than the newest checkpoint may be on their way, written by another process.
        with contextlib.suppress(OSError):
            is_older = False
            for name in self._names():
                if self._has_manifest(name):
                    is_older = True
                elif is_older:
                    self._folder.delete(name)

    def _names(self) -> list[str]:
        """Of checkpoints and drafts, newest first.

        Raises:
            OSError: if they can't be listed.
        """
        return [name for name in reversed(self._folder.names()) if _NAME.fullmatch(name)]

    def _has_manifest(self, name: str) -> bool:
        return MANIFEST in self._folder.names(name)


def plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as a file wants them: by name, on the CPU, contiguous, and sharing memory with no other.

    Args:
        tensors: on any device, of any shape and layout.

    Returns:
        Copies where needed.
    """
    return {name: _plain(tensors[name]) for name in sorted(tensors)}


def _plain(tensor: Tensor) -> Tensor:
    found = tensor.detach().cpu().contiguous()
    shares = found.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
    return found.clone(memory_format=torch.contiguous_format) if shares else found


def _fill(draft: Path, tensors: Mapping[str, Tensor], describe: Describe) -> int:
    """Fill a checkpoint's folder and force it to the disk; the size of its files.

    Raises:
        OSError: if that fails.
    """
    tensor_file = draft / TENSORS
    try:
        save_file(plain(tensors), tensor_file)
    except SafetensorError as error:
        raise OSError(f"{tensor_file}: {error}") from None
    with tensor_file.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    size = tensor_file.stat().st_size
    content = describe(size, sha256)
    with (draft / MANIFEST).open("wb") as manifest:
        manifest.write(content)
        manifest.flush()
        os.fsync(manifest.fileno())
    _sync(draft)
    return size + len(content)


def _sync(folder: Path) -> None:
    """Force a folder's entries to the disk.

    Raises:
        OSError: if that fails.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
