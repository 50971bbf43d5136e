"""Files that a training writes beside its output: absent at first, growing, written anew, left by another lane."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from tensorboardX import SummaryWriter

from service.agent.errors import CommandError
from service.agent.metrics import MetricKeys, Metrics, Report
from service.agent.sources import EventFolder, JsonLinesFile, MetricsPlace


def metrics(objective: str = "val_loss", norm: str = "grad_norm") -> Metrics:
    return Metrics(MetricKeys(objective=objective, norm=norm), (100,), 100)


def line(step: int, value: float) -> str:
    return json.dumps({"step": step, "val_loss": value}) + "\n"


def test_file_appears_and_grows(tmp_path: Path) -> None:
    path, found = tmp_path / "metrics.jsonl", metrics()
    source = JsonLinesFile(path)
    source.read(found)
    assert found.take() == []
    path.write_text(line(1, 1.0))
    source.read(found)
    assert found.take() == [Report(step=1, value=1.0)]
    with path.open("a") as file:
        file.write(line(2, 2.0) + line(3, 3.0)[:-5])
        file.flush()
        source.read(found)
        assert found.take() == [Report(step=2, value=2.0)]
        file.write(line(3, 3.0)[-5:])
    source.read(found)
    assert found.take() == [Report(step=3, value=3.0)]


def test_last_line_needs_no_end(tmp_path: Path) -> None:
    path, found = tmp_path / "metrics.jsonl", metrics()
    source = JsonLinesFile(path)
    path.write_text(line(1, 1.0).rstrip())
    source.read(found)
    assert found.take() == []
    source.read(found, is_final=True)
    assert found.take() == [Report(step=1, value=1.0)]


def test_lines_of_another_lane_are_not_ours(tmp_path: Path) -> None:
    path, found = tmp_path / "metrics.jsonl", metrics()
    path.write_text(line(50, 0.1))
    source = JsonLinesFile(path)
    source.read(found)
    assert found.take() == []
    with path.open("a") as file:
        file.write(line(1, 1.0))
    source.read(found)
    assert found.take() == [Report(step=1, value=1.0)]


@pytest.mark.parametrize("before", [1, 3, 300])
@pytest.mark.parametrize("after", [1, 3, 300])
def test_file_that_is_written_anew_is_read_from_its_beginning(
    tmp_path: Path, before: int, after: int
) -> None:
    path, found = tmp_path / "metrics.jsonl", metrics()
    path.write_text("".join(line(step, 9.0) for step in range(before)))
    source = JsonLinesFile(path)
    path.write_text("".join(line(step % 100, 1.0) for step in range(after)))
    source.read(found, is_final=True)
    assert found.last is not None
    assert (found.last.step, found.last.value) == (min(after - 1, 99), 1.0)


def test_file_may_vanish(tmp_path: Path) -> None:
    path, found = tmp_path / "metrics.jsonl", metrics()
    path.write_text(line(1, 1.0))
    source = JsonLinesFile(path)
    path.unlink()
    source.read(found, is_final=True)
    assert found.take() == []


def test_event_files_appear_at_any_depth(tmp_path: Path) -> None:
    folder, found = tmp_path / "runs", metrics("eval/loss", "train/grad_norm")
    source = EventFolder(folder)
    source.read(found)
    with SummaryWriter(str(folder / "version_0"), flush_secs=0) as writer:
        writer.add_scalar("train/grad_norm", 0.5, 9)
        writer.add_scalar("eval/loss", 2.5, 10)
        deadline = time.monotonic() + 60
        while found.last is None:
            # The writer has a thread of its own, which its flush() does not wait for.
            assert time.monotonic() < deadline, "nothing was written"
            source.read(found)
        assert found.take() == [Report(step=10, value=2.5, norms=(0.5,))]
        writer.add_scalar("eval/loss", 1.5, 20)
        writer.add_scalar("eval/loss", 0.5, -1)
    source.read(found, is_final=True)
    assert found.take() == [Report(step=20, value=1.5)]


def test_event_files_of_another_lane_are_not_ours(tmp_path: Path) -> None:
    found = metrics("eval/loss")
    with SummaryWriter(str(tmp_path / "old")) as writer:
        writer.add_scalar("eval/loss", 2.5, 10)
    source = EventFolder(tmp_path)
    with SummaryWriter(str(tmp_path / "new")) as writer:
        writer.add_scalar("eval/loss", 1.5, 5)
    source.read(found, is_final=True)
    assert found.take() == [Report(step=5, value=1.5)]


@pytest.mark.parametrize(
    ("text", "kind", "path"),
    [
        ("stdout", "stdout", ""),
        ("metrics.jsonl", "file", "metrics.jsonl"),
        ("{output}/m.jsonl", "file", "{output}/m.jsonl"),
        ("tensorboard:{output}", "tensorboard", "{output}"),
    ],
)
def test_place(text: str, kind: str, path: str) -> None:
    assert MetricsPlace.parse(text) == MetricsPlace(kind, path)


@pytest.mark.parametrize("text", ["", "tensorboard:"])
def test_place_without_a_name_is_refused(text: str) -> None:
    with pytest.raises(CommandError, match="must be stdout, a file of JSON lines or tensorboard:FOLDER, got"):
        MetricsPlace.parse(text)
