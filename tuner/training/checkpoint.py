"""A cohort's checkpoints on disk: each is a folder, complete or not there, and found out if it was changed.

``tensors.safetensors`` holds the tensors, ``manifest.json`` the tensor file's size and SHA-256, the values, and a
digest of itself. Nothing is unpickled. A folder is written beside its final place, forced to the disk and then
renamed, so a process that dies at any instant leaves the checkpoints before it as they were. Names are never used
twice: a process that should be dead can't overwrite what another one reads.

Whoever may write to the folder may change what is trained; keep it as private as the database.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from tuner.errors import CheckpointError
from tuner.spec import canonical_digest

#: Raised whenever a newer program could not read what an older one wrote, or the other way round.
FORMAT = 1
#: Checkpoints of a cohort that are kept: the newest, and one to fall back on.
KEPT = 2

TENSORS, MANIFEST = "tensors.safetensors", "manifest.json"
_NAME = re.compile(r"\d{10}-[0-9a-f]{12}")


class Saved(NamedTuple):
    """A checkpoint that was written.

    Attributes:
        path: its folder.
        num_bytes: size of its files.
        seconds: what the write took, verified and forced to the disk.
    """

    path: Path
    num_bytes: int
    seconds: float


class Stored(NamedTuple):
    """A checkpoint that was read.

    Attributes:
        tensors: by name, on the CPU, bit for bit as they were.
        values: JSON values.
    """

    tensors: dict[str, Tensor]
    values: dict[str, Any]


class Checkpoints:
    """The checkpoints of one cohort.

    Args:
        folder: theirs alone; made when the first one is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._verified: set[str] = set()

    def save(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any], *, step: int) -> Saved:
        """Write a checkpoint, then delete all but the newest two that verify.

        Args:
            tensors: by name, on any device, of any shape and layout; copied.
            values: JSON values, without NaN or infinity.
            step: orders the checkpoints, >= 0.

        Returns:
            Where it is, its size and the time it took.

        Raises:
            OSError: if it can't be written, for example on a full disk; the older ones are untouched.
        """
        started = time.monotonic()
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.folder / f"{step:010d}-{uuid.uuid4().hex[:12]}"
        draft = path.with_name(f".{path.name}")
        draft.mkdir(mode=0o700)
        try:
            num_bytes = _write(draft, tensors, values)
            draft.rename(path)
            _sync(self.folder)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        self._verified.add(path.name)
        self._delete_older()
        return Saved(path, num_bytes, time.monotonic() - started)

    def newest_first(self) -> list[Path]:
        """The folders of all checkpoints, verified or not; empty if there are none or they can't be listed."""
        try:
            found = [each for each in self.folder.iterdir() if _NAME.fullmatch(each.name)]
        except OSError:
            return []
        return sorted(found, reverse=True)

    def load(self, path: Path) -> Stored:
        """Read a checkpoint, if it is as it was written.

        Args:
            path: one of `newest_first`.

        Returns:
            What was saved.

        Raises:
            CheckpointError: if it is incomplete, changed or of another format.
        """
        manifest = _read_manifest(path)
        content = _read_tensor_file(path, manifest)
        try:
            tensors = load(content)
        except (SafetensorError, ValueError) as error:
            raise CheckpointError(path, f"holds no tensors ({error})") from None
        self._verified.add(path.name)
        return Stored(tensors, manifest["values"])

    def forget_drafts(self) -> None:
        """Delete what a killed process left half written or half deleted; call it before anything is written."""
        for each in self.folder.glob(".*-*"):
            shutil.rmtree(each, ignore_errors=True)

    def _delete_older(self) -> None:
        num_good = 0
        for path in self.newest_first():
            if num_good < KEPT and self._verifies(path):
                num_good += 1
                continue
            # Renamed first, so that one that was deleted by half is not taken for a harmed one.
            doomed = path.with_name(f".{path.name}")
            with contextlib.suppress(OSError):
                shutil.rmtree(path.rename(doomed), ignore_errors=True)

    def _verifies(self, path: Path) -> bool:
        if path.name not in self._verified:
            try:
                _read_tensor_file(path, _read_manifest(path))
            except CheckpointError:
                return False
            self._verified.add(path.name)
        return True


def _write(draft: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> int:
    """Fill a checkpoint's folder and force it to the disk; the size of its files.

    Raises:
        OSError: if that fails.
    """
    tensor_file = draft / TENSORS
    try:
        save_file({name: _plain(tensors[name]) for name in sorted(tensors)}, tensor_file)
    except SafetensorError as error:
        raise OSError(f"{tensor_file}: {error}") from None
    with tensor_file.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    size = tensor_file.stat().st_size
    document: dict[str, Any] = {
        "format": FORMAT,
        "tensors": {"bytes": size, "sha256": sha256},
        "values": values,
    }
    text = json.dumps(document | {"digest": canonical_digest(document)}, allow_nan=False, indent=1)
    with (draft / MANIFEST).open("w") as manifest:
        manifest.write(text)
        manifest.flush()
        os.fsync(manifest.fileno())
    _sync(draft)
    return size + len(text.encode())


def _plain(tensor: Tensor) -> Tensor:
    """The tensor as a file wants it: on the CPU, contiguous, and sharing memory with no other."""
    plain = tensor.detach().cpu().contiguous()
    shares = plain.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
    return plain.clone(memory_format=torch.contiguous_format) if shares else plain


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


def _read_manifest(path: Path) -> dict[str, Any]:
    """A manifest that is as it was written.

    Raises:
        CheckpointError: if it is not.
    """
    try:
        document = json.loads((path / MANIFEST).read_bytes())
        digest = document.pop("digest")
        is_whole = digest == canonical_digest(document)
    except OSError as error:
        raise CheckpointError(path, f"has no readable manifest ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        is_whole = False
    if not is_whole:
        raise CheckpointError(path, "has a manifest that was cut or changed")
    if document["format"] != FORMAT:
        raise CheckpointError(path, f"has format {document['format']}, and this program reads {FORMAT}")
    return dict(document)


def _read_tensor_file(path: Path, manifest: Mapping[str, Any]) -> bytes:
    """The tensor file, read once: what is verified is what is used.

    Raises:
        CheckpointError: if it is not what the manifest says.
    """
    expected = manifest["tensors"]
    try:
        content = (path / TENSORS).read_bytes()
    except OSError as error:
        raise CheckpointError(path, f"has no readable tensors ({error.strerror})") from None
    if len(content) != expected["bytes"]:
        raise CheckpointError(path, f"has {len(content)} bytes of tensors instead of {expected['bytes']}")
    if hashlib.sha256(content).hexdigest() != expected["sha256"]:
        raise CheckpointError(path, "has tensors that were changed: their SHA-256 differs")
    return content
