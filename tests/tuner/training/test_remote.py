"""Stores that fail as object stores do: with errors of their own, in the middle of a write, or out of reach."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from tuner.errors import CheckpointError
from tuner.training.checkpoint import MANIFEST, TENSORS, Checkpoints
from tuner.training.remote import RemoteFolder


class ClientError(Exception):
    """What a store's client raises, which is no OSError."""


class Faulty(MemoryFileSystem):
    """A store in memory that refuses what it is told to refuse."""

    protocol = "faulty"
    store: dict[str, object] = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    refused: tuple[str, ...] = ()

    def pipe_file(self, path, value, mode="overwrite", **kwargs):  # type: ignore[no-untyped-def]
        self._refuse(path)
        return super().pipe_file(path, value, mode, **kwargs)

    def cat_file(self, path, start=None, end=None, **kwargs):  # type: ignore[no-untyped-def]
        self._refuse(path)
        return super().cat_file(path, start, end, **kwargs)

    def ls(self, path, detail=True, **kwargs):  # type: ignore[no-untyped-def]
        self._refuse("list" if "list" in self.refused else "")
        return super().ls(path, detail, **kwargs)

    def _refuse(self, path: str) -> None:
        if any(path.endswith(each) for each in self.refused):
            raise ClientError("503 slow down")


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoints:
    fsspec.register_implementation("faulty", Faulty, clobber=True)
    monkeypatch.setattr(Faulty, "refused", ())
    return Checkpoints(f"faulty://{tmp_path.name}/c")


def save(kept: Checkpoints, step: int) -> str:
    return str(kept.save({"weights": torch.full((5,), float(step))}, {"step": step}, step=step).path)


def names(kept: Checkpoints) -> list[str]:
    return RemoteFolder(str(kept.folder)).names()


@pytest.mark.parametrize("file", [TENSORS, MANIFEST])
def test_write_that_fails_in_the_middle_leaves_the_older_ones_and_no_draft(
    kept: Checkpoints, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    before = [save(kept, 5), save(kept, 30)]
    monkeypatch.setattr(Faulty, "refused", (file,))
    with pytest.raises(OSError, match=f"{file}: ClientError: 503 slow down"):
        save(kept, 40)
    monkeypatch.undo()
    assert names(kept) == [each.rpartition("/")[2] for each in before]
    assert kept.load(before[1]).values == {"step": 30}


def test_manifest_is_written_last(kept: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(Faulty, "_refuse", lambda _, path: written.append(path.rpartition("/")[2]))
    kept.save({}, {}, step=1)
    assert [each for each in written if each][:2] == [TENSORS, MANIFEST]


def test_draft_is_no_checkpoint_and_goes_once_there_is_a_newer_one(kept: Checkpoints) -> None:
    folder = RemoteFolder(str(kept.folder))
    older, newer = "0000000005-0123456789ab", "0000000040-0123456789ab"
    for draft in (older, newer):
        folder.write(f"{draft}/{TENSORS}", b"half")
    kept.forget_drafts()
    assert names(kept) == [older, newer], "somebody may be writing them"
    place = save(kept, 30)
    assert kept.newest_first() == [place]
    kept.forget_drafts()
    assert names(kept) == [place.rpartition("/")[2], newer]


def test_what_cannot_be_read_is_a_checkpoint_error_and_the_older_one_can(
    kept: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    older, newest = save(kept, 5), save(kept, 30)
    name = newest.rpartition("/")[2]
    monkeypatch.setattr(Faulty, "refused", (f"{name}/{TENSORS}",))
    with pytest.raises(CheckpointError, match=r"has no readable tensors .*503 slow down"):
        kept.load(newest)
    assert kept.load(older).values == {"step": 5}


def test_list_that_is_refused_is_an_os_error_and_never_taken_for_no_checkpoint(
    kept: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = save(kept, 5)
    monkeypatch.setattr(Faulty, "refused", ("list",))
    with pytest.raises(OSError, match=r"faulty://.*: ClientError: 503 slow down"):
        kept.newest_first()
    later = save(kept, 30)
    monkeypatch.undo()
    assert kept.newest_first() == [later, place], "what can't be listed is not deleted"


def test_driver_that_is_not_installed_is_an_os_error() -> None:
    with pytest.raises(OSError, match="nosuchstore://b/c: ValueError: Protocol not known"):
        Checkpoints("nosuchstore://b/c").newest_first()


def test_deleting_what_is_not_there_is_no_error() -> None:
    RemoteFolder("memory://not-there/at-all").delete()
