"""What checkpoints promise wherever they are: a folder on a disk, or one that an fsspec URL names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
import torch

from tuner.errors import CheckpointError
from tuner.training.checkpoint import MANIFEST, TENSORS, Checkpoints

TENSORS_OF_KINDS = {
    "weights": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "transposed": torch.arange(6.0).reshape(2, 3).t(),
    "scalar": torch.tensor(1 / 3, dtype=torch.float64),
    "empty": torch.empty(0, 4),
    "not finite": torch.tensor([float("nan"), float("inf"), -0.0]),
    "half": torch.tensor([1.5], dtype=torch.bfloat16),
    "expanded": torch.tensor([7.0]).expand(5),
}
VALUES = {"step": 7, "lanes": [["a", 0, 1 / 3]], "choice": None}
Harm = Callable[[bytes], bytes | None]


@pytest.fixture(params=["{folder}/deep/er", "file://{folder}/deep/er", "memory://{name}/deep/er"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Checkpoints:
    return Checkpoints(request.param.format(folder=tmp_path, name=tmp_path.name))


def save(kept: Checkpoints, step: int) -> Path | str:
    return kept.save({"weights": torch.full((50,), float(step))}, VALUES, step=step).path


def files(kept: Checkpoints) -> dict[str, bytes]:
    """What is there, whoever wrote it: content by checkpoint and name."""
    system, root = fsspec.core.url_to_fs(str(kept.folder))
    return {path.removeprefix(f"{root}/"): system.cat_file(path) for path in system.find(root)}


def change(place: Path | str, file: str, harm: Harm) -> None:
    system, path = fsspec.core.url_to_fs(f"{place}/{file}")
    content = harm(system.cat_file(path))
    if content is None:
        system.rm_file(path)
    else:
        system.pipe_file(path, content)


def test_tensors_and_values_come_back_bit_for_bit(kept: Checkpoints) -> None:
    saved = kept.save(TENSORS_OF_KINDS, VALUES, step=7)
    tensors, values = Checkpoints(kept.folder).load(saved.path)
    assert values == VALUES
    assert set(tensors) == set(TENSORS_OF_KINDS)
    for name, before in TENSORS_OF_KINDS.items():
        after = tensors[name]
        assert (after.dtype, after.shape) == (before.dtype, before.shape), name
        as_bytes = [each.contiguous().reshape(-1).view(torch.uint8) for each in (before, after)]
        assert torch.equal(*as_bytes), name
    assert saved.num_bytes == sum(map(len, files(kept).values()))


def test_all_kinds_of_places_hold_the_same_files(kept: Checkpoints) -> None:
    path = save(kept, 5)
    name = str(path).rpartition("/")[2]
    assert set(files(kept)) == {f"{name}/{TENSORS}", f"{name}/{MANIFEST}"}
    assert json.loads(files(kept)[f"{name}/{MANIFEST}"])["values"] == VALUES


def test_nothing_is_there_before_the_first(kept: Checkpoints) -> None:
    assert kept.newest_first() == []
    kept.forget_drafts()
    assert files(kept) == {}


def test_the_newest_two_are_kept(kept: Checkpoints) -> None:
    places = [save(kept, step) for step in (5, 30, 100, 1000)]
    assert Checkpoints(kept.folder).newest_first() == [places[3], places[2]]
    assert len(files(kept)) == 4


@pytest.mark.parametrize(
    "harm",
    [lambda content: content[:-1], lambda content: content + b"\0", lambda _: b"", lambda _: None],
    ids=["cut", "extended", "empty", "gone"],
)
@pytest.mark.parametrize("file", [TENSORS, MANIFEST])
def test_every_harm_is_found_and_the_one_before_is_kept(kept: Checkpoints, file: str, harm: Harm) -> None:
    before, newest = save(kept, 5), save(kept, 30)
    change(newest, file, harm)
    with pytest.raises(CheckpointError, match=str(newest).rpartition("/")[2]):
        kept.load(newest)
    again = Checkpoints(kept.folder)
    assert again.load(before).values == VALUES
    after = save(again, 40)
    assert [place for place in again.newest_first() if place != newest] == [after, before]


def test_flipped_bits_are_found(kept: Checkpoints) -> None:
    place, generator = save(kept, 5), torch.Generator().manual_seed(0)
    for _ in range(40):
        file = (TENSORS, MANIFEST)[int(torch.randint(2, (), generator=generator))]
        original = files(kept)[f"{str(place).rpartition('/')[2]}/{file}"]
        content = bytearray(original)
        content[int(torch.randint(len(content), (), generator=generator))] ^= 1
        change(place, file, lambda _, content=content: bytes(content))  # type: ignore[misc]
        with pytest.raises(CheckpointError):
            kept.load(place)
        change(place, file, lambda _, original=original: original)  # type: ignore[misc]
    assert kept.load(place).values == VALUES


def test_two_writers_of_one_step_do_not_disturb_each_other(kept: Checkpoints) -> None:
    places = {save(kept, 5), save(Checkpoints(kept.folder), 5)}
    assert set(kept.newest_first()) == places
    for place in places:
        assert kept.load(place).values == VALUES


def test_values_that_are_no_json_leave_nothing(kept: Checkpoints) -> None:
    before = save(kept, 5)
    with pytest.raises(ValueError, match="not JSON compliant"):
        kept.save({}, {"value": float("nan")}, step=9)
    assert kept.newest_first() == [before]
    assert len(files(kept)) == 2
