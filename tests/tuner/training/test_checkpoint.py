"""Checkpoints on disk: bit for bit, complete or absent, found out if changed, and harmless when the disk is full.

What they promise wherever they are is in `tests/contracts/test_checkpoints.py`.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tuner.errors import CheckpointError
from tuner.training import checkpoint, stores
from tuner.training.checkpoint import MANIFEST, TENSORS, Checkpoints

#: One tensor of every kind that a state holds, and the odd ones.
TENSORS_OF_ALL_KINDS = {
    "weights": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "transposed": torch.arange(6.0).reshape(2, 3).t(),
    "row": torch.arange(12.0).reshape(3, 4)[1],
    "every second": torch.arange(8)[::2],
    "scalar": torch.tensor(1 / 3, dtype=torch.float64),
    "empty": torch.empty(0, 4),
    "no bytes": torch.empty(0, dtype=torch.uint8),
    "not finite": torch.tensor([float("nan"), float("inf"), -0.0]),
    "half": torch.tensor([1.5], dtype=torch.bfloat16),
    "live": torch.tensor([True, False]),
    "expanded": torch.tensor([7.0]).expand(5),
}
VALUES = {"step": 7, "lanes": [["a", 0, 1 / 3]], "choice": None}


@pytest.fixture
def kept(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "of one cohort" / "deep")


def save(kept: Checkpoints, step: int) -> Path:
    return Path(kept.save({"weights": torch.full((50,), float(step))}, VALUES, step=step).path)


def names(kept: Checkpoints) -> list[str]:
    return sorted(each.name for each in Path(kept.folder).iterdir())


def test_tensors_and_values_come_back_bit_for_bit(kept: Checkpoints) -> None:
    saved = kept.save(TENSORS_OF_ALL_KINDS, VALUES, step=7)
    tensors, values = Checkpoints(kept.folder).load(saved.path)
    assert values == VALUES
    assert set(tensors) == set(TENSORS_OF_ALL_KINDS)
    for name, before in TENSORS_OF_ALL_KINDS.items():
        after = tensors[name]
        assert (after.dtype, after.shape) == (before.dtype, before.shape), name
        assert after.is_contiguous()
        as_bytes = [each.contiguous().reshape(-1).view(torch.uint8) for each in (before, after)]
        assert torch.equal(*as_bytes), name


def test_tensors_that_share_memory_are_written_one_by_one(kept: Checkpoints) -> None:
    whole = torch.arange(6.0)
    path = kept.save({"whole": whole, "part": whole[2:], "again": whole}, {}, step=1).path
    tensors, _ = kept.load(path)
    assert tensors["part"].tolist() == [2, 3, 4, 5]
    assert torch.equal(tensors["again"], whole)


def test_size_and_seconds_of_a_write_are_told(kept: Checkpoints) -> None:
    saved = kept.save(TENSORS_OF_ALL_KINDS, VALUES, step=7)
    assert saved.num_bytes == sum(each.stat().st_size for each in Path(saved.path).iterdir())
    assert 0 < saved.seconds < 60


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def extend(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("harm", [cut, flip, extend, empty, Path.unlink])
@pytest.mark.parametrize("name", [TENSORS, MANIFEST])
def test_every_harm_is_found_and_the_one_before_is_kept(
    kept: Checkpoints, name: str, harm: Callable[[Path], object]
) -> None:
    before, newest = save(kept, 5), save(kept, 30)
    harm(newest / name)
    with pytest.raises(CheckpointError, match=newest.name):
        kept.load(newest)
    assert kept.load(before).values == VALUES
    after = save(Checkpoints(kept.folder), 40)
    assert kept.newest_first() == [after, before]


def test_every_flipped_bit_is_found(kept: Checkpoints) -> None:
    """100 % of 200 corruptions, wherever they are."""
    path = save(kept, 5)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        name = (TENSORS, MANIFEST)[int(torch.randint(2, (), generator=generator))]
        original = (path / name).read_bytes()
        content = bytearray(original)
        position = int(torch.randint(len(content), (), generator=generator))
        content[position] ^= 1 << int(torch.randint(8, (), generator=generator))
        (path / name).write_bytes(content)
        with pytest.raises(CheckpointError):
            kept.load(path)
        (path / name).write_bytes(original)
    assert kept.load(path).values == VALUES


@pytest.mark.parametrize("content", [b"[]", b"null", b"{}", b"\xff", b"[" * 100_000, b'{"digest": "x"}'])
def test_manifest_of_another_kind_is_refused(kept: Checkpoints, content: bytes) -> None:
    path = save(kept, 5)
    (path / MANIFEST).write_bytes(content)
    with pytest.raises(CheckpointError, match="was cut or changed"):
        kept.load(path)


def test_another_format_is_refused(kept: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    path = save(kept, 5)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="format 2, and this program reads 1") as caught:
        kept.load(path)
    assert caught.value.code == "bad_checkpoint"


STAGES = ("mkdir", "tensors", "hash", "manifest", "sync", "rename", "sync folder")


def fail_at(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the disk be full at one point of a write."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def refuse(*_: object, **__: object) -> None:
        raise full

    calls = iter(range(100))
    last = {"hash": 0, "manifest": 1, "sync": 2, "sync folder": 3}
    if stage == "mkdir":
        monkeypatch.setattr(Path, "mkdir", refuse)
    elif stage == "tensors":
        monkeypatch.setattr(stores, "save_file", refuse)
    elif stage == "rename":
        monkeypatch.setattr(Path, "rename", refuse)
    else:
        monkeypatch.setattr(os, "fsync", lambda _: refuse() if next(calls) == last[stage] else None)


@pytest.mark.parametrize("stage", STAGES)
def test_full_disk_leaves_the_older_ones_and_no_remains(
    kept: Checkpoints, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [save(kept, 5), save(kept, 30)]
    with monkeypatch.context() as full:
        fail_at(stage, full)
        with pytest.raises(OSError, match="No space left"):
            save(kept, 40)
    assert not [name for name in names(kept) if name.startswith(".")]
    for path in before:
        assert kept.load(path).values == VALUES


def test_file_that_may_not_grow_is_an_os_error(kept: Checkpoints) -> None:
    """A limit of the system itself, not one that is pretended."""
    before = save(kept, 5)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            kept.save({"weights": torch.zeros(10_000)}, VALUES, step=9)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert kept.newest_first() == [before]


WRITER = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tuner.training.checkpoint import Checkpoints
kept = Checkpoints(Path(sys.argv[1]))
step = 0
while True:
    step += 1
    kept.save({"weights": torch.full((200_000,), float(step))}, {"step": step}, step=step)
    print(step, flush=True)
"""


@pytest.fixture
def writer(kept: Checkpoints) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(kept.folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("delay", [0.0, 0.002])
def test_killed_writer_leaves_the_last_one_told(
    kept: Checkpoints, writer: subprocess.Popen[str], delay: float
) -> None:
    assert writer.stdout is not None
    for _ in range(3):
        told = int(writer.stdout.readline())
    time.sleep(delay)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    told = max([told, *map(int, writer.stdout.read().split())])
    newest = kept.newest_first()[0]
    tensors, values = kept.load(newest)
    assert values["step"] in (told, told + 1), "it may have been killed between the rename and the telling"
    assert torch.equal(tensors["weights"], torch.full((200_000,), float(values["step"])))
    kept.forget_drafts()
    assert not [name for name in names(kept) if name.startswith(".")]
    for path in kept.newest_first():
        assert json.loads((path / MANIFEST).read_text())["values"]["step"] > 0


def test_killed_at_every_system_call_of_a_write(kept: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is on the disk at each call that changes it: the newest that verifies is the one before, or the new one."""
    before = save(kept, 5)
    seen: list[float] = []

    def look() -> None:
        found = [path for path in kept.newest_first() if loads(kept, path)]
        seen.append(float(kept.load(found[0]).tensors["weights"][0]))

    for owner, name in ((os, "fsync"), (Path, "rename"), (Path, "mkdir"), (stores, "save_file")):
        real = getattr(owner, name)

        def watched(*arguments: object, real: Callable[..., object] = real, **named: object) -> object:
            look()
            result = real(*arguments, **named)
            look()
            return result

        monkeypatch.setattr(owner, name, watched)
    save(kept, 30)
    assert len(seen) >= 16
    assert seen == sorted(seen)
    assert set(seen) == {5.0, 30.0}
    assert before in kept.newest_first()


def loads(kept: Checkpoints, path: Path) -> bool:
    try:
        kept.load(path)
    except CheckpointError:
        return False
    return True
