"""A cohort's checkpoints: each is a folder, complete or not there, and found out if it was changed.

``tensors.safetensors`` holds the tensors, ``manifest.json`` the tensor file's size and SHA-256, the values, and a
digest of itself. Nothing is unpickled. A process that dies at any instant leaves the checkpoints before it as they
were. Names are never used twice: a process that should be dead can't overwrite what another one reads.

Whoever may write to the folder may change what is trained; keep it as private as the database.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from tuner.errors import CheckpointError
from tuner.spec import canonical_digest
from tuner.training.remote import is_url
from tuner.training.stores import MANIFEST as MANIFEST
from tuner.training.stores import TENSORS as TENSORS
from tuner.training.stores import LocalStore, RemoteStore, Store

#: Raised whenever a newer program could not read what an older one wrote, or the other way round.
FORMAT = 1
#: Checkpoints of a cohort that are kept: the newest, and one to fall back on.
KEPT = 2


class Saved(NamedTuple):
    """A checkpoint that was written.

    Attributes:
        path: its folder, or the URL of one.
        num_bytes: size of its files.
        seconds: what the write took, verified and forced to the disk.
    """

    path: Path | str
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
    """The checkpoints of one cohort, or of one part of it.

    Args:
        folder: theirs alone, made when the first one is written; a path, or an fsspec URL (``s3://bucket/folder``).
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = folder if is_url(folder) else Path(folder)
        self._store: Store = RemoteStore(str(folder)) if is_url(folder) else LocalStore(Path(folder))
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
        name = f"{step:010d}-{uuid.uuid4().hex[:12]}"
        num_bytes = self._store.write(name, tensors, lambda size, sha256: _manifest(values, size, sha256))
        self._verified.add(name)
        self._delete_older()
        return Saved(self._store.place(name), num_bytes, time.monotonic() - started)

    def newest_first(self) -> list[Path | str]:
        """The folders of all checkpoints, verified or not; empty if there are none.

        Returns:
            Paths, or URLs.

        Raises:
            OSError: if they can't be listed.
        """
        return [self._store.place(name) for name in self._store.newest_first()]

    def load(self, path: Path | str) -> Stored:
        """Read a checkpoint, if it is as it was written.

        Args:
            path: one of `newest_first`.

        Returns:
            What was saved.

        Raises:
            CheckpointError: if it is incomplete, changed or of another format, or can't be read.
        """
        name = str(path).rpartition("/")[2]
        manifest = self._read_manifest(name)
        content = self._read_tensors(name, manifest)
        try:
            tensors = load(content)
        except (SafetensorError, ValueError) as error:
            raise CheckpointError(path, f"holds no tensors ({error})") from None
        self._verified.add(name)
        return Stored(tensors, manifest["values"])

    def forget_drafts(self) -> None:
        """Delete what a killed process left half written or half deleted; call it before anything is written."""
        self._store.delete_drafts()

    def _delete_older(self) -> None:
        num_good = 0
        with contextlib.suppress(OSError):
            for name in self._store.newest_first():
                if num_good < KEPT and self._verifies(name):
                    num_good += 1
                else:
                    self._store.delete(name)

    def _verifies(self, name: str) -> bool:
        if name not in self._verified:
            try:
                self._read_tensors(name, self._read_manifest(name))
            except CheckpointError:
                return False
            self._verified.add(name)
        return True

    def _read_manifest(self, name: str) -> dict[str, Any]:
        """A manifest that is as it was written.

        Raises:
            CheckpointError: if it is not.
        """
        path = self._store.place(name)
        try:
            document = json.loads(self._store.read(name, MANIFEST))
            digest = document.pop("digest")
            is_whole = digest == canonical_digest(document)
        except OSError as error:
            raise CheckpointError(path, f"has no readable manifest ({error.strerror or error})") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            is_whole = False
        if not is_whole:
            raise CheckpointError(path, "has a manifest that was cut or changed")
        if document["format"] != FORMAT:
            raise CheckpointError(path, f"has format {document['format']}, and this program reads {FORMAT}")
        return dict(document)

    def _read_tensors(self, name: str, manifest: Mapping[str, Any]) -> bytes:
        """The tensor file, read once: what is verified is what is used.

        Raises:
            CheckpointError: if it is not what the manifest says.
        """
        expected, path = manifest["tensors"], self._store.place(name)
        try:
            content = self._store.read(name, TENSORS)
        except OSError as error:
            raise CheckpointError(path, f"has no readable tensors ({error.strerror or error})") from None
        if len(content) != expected["bytes"]:
            raise CheckpointError(path, f"has {len(content)} bytes of tensors instead of {expected['bytes']}")
        if hashlib.sha256(content).hexdigest() != expected["sha256"]:
            raise CheckpointError(path, "has tensors that were changed: their SHA-256 differs")
        return content


def _manifest(values: Mapping[str, Any], size: int, sha256: str) -> bytes:
    document: dict[str, Any] = {
        "format": FORMAT,
        "tensors": {"bytes": size, "sha256": sha256},
        "values": values,
    }
    return json.dumps(document | {"digest": canonical_digest(document)}, allow_nan=False, indent=1).encode()
