"""The benchmark of `cliptune drift` still works: tiny counts, one workload."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_drift_is_measured_for_errors_power_and_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # In this process, which has loaded torch anyway; the benchmark puts its root in the first place, too.
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import drift

    kept = tmp_path / "drift.jsonl"
    options = ("--cases", "1", "--draws", "3", "--pool", "12", "--runs", "1", "--workloads", "digits-mlp")
    monkeypatch.setattr(sys, "argv", ["drift.py", *options, "--out", str(kept)])
    drift.main()
    printed = capsys.readouterr().out
    assert kept.read_text() == printed
    accuracy, duration = map(json.loads, printed.splitlines())
    assert set(accuracy["false_alarms"]) == {"least", "most", "mean", "unsettled"}
    assert {"norms x 2", "norms x 0.5", "hidden=32"} <= set(accuracy["found"])
    rates = [accuracy["false_alarms"], *accuracy["found"].values()]
    assert all(0 <= each["least"] <= each["mean"] <= each["most"] <= 1 for each in rates)
    assert duration["is_repeat"] == {"unchanged": True, "changed": False}
    assert all(each > 0 for each in duration["median_seconds"].values())
