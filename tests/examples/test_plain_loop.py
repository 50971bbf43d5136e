"""The example of the plain loop runs as it stands, in all its ways."""

from __future__ import annotations

import json
import math
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tuner.inline import CliptuneWarning

EXAMPLE = Path(__file__).parents[2] / "examples" / "plain_loop.py"
Lines = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def lines_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Lines:
    """Run the example's main part here, with no service in reach; the JSON lines that it prints."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CLIPTUNE_URL", "http://127.0.0.1:1")

    def run(*options: str) -> list[dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", [str(EXAMPLE), "--quick", *options])
        runpy.run_path(str(EXAMPLE), run_name="__main__")
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


def test_it_is_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLE), "--quick"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [json.loads(line).get("step") for line in done.stdout.splitlines()] == [10, 20, 30, 40, None]


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--accumulate", "4"),
        ("--fp16",),
        ("--fp16", "--accumulate", "4"),
        ("--clip", "skip_step:3", "--fp16"),
        ("--clip", "none"),
    ],
    ids=" ".join,
)
def test_it_trains(options: tuple[str, ...], lines_of: Lines) -> None:
    *evaluations, told = lines_of(*options)
    assert [line["step"] for line in evaluations] == [10, 20, 30, 40]
    assert all(math.isfinite(line["val_loss"]) for line in evaluations)
    assert all(line["grad_norm"] > 0 for line in evaluations)
    assert (told["clip_fraction"] > 0.5) == ("--clip" not in options)


def test_the_same_seed_gives_the_same_lines_and_fp16_nearly_the_same(lines_of: Lines) -> None:
    first = lines_of("--seed", "3")
    assert lines_of("--seed", "3") == first
    assert lines_of("--seed", "4") != first
    half = lines_of("--seed", "3", "--fp16")
    assert half[-2]["val_loss"] == pytest.approx(first[-2]["val_loss"], rel=0.1)


def test_without_a_service_the_fallback_trains(lines_of: Lines) -> None:
    with pytest.warns(CliptuneWarning, match="training with the fallback global_norm:1"):
        told = lines_of("--workload", "mine", "--clip", "global_norm:1")
    assert told[-1]["setting"] == "global_norm:1"


def test_monitor_has_files(lines_of: Lines, tmp_path: Path) -> None:
    lines_of("--monitor", f"tensorboard:{tmp_path / 'runs'}")
    assert [each.stat().st_size > 0 for each in (tmp_path / "runs").iterdir()] == [True]
