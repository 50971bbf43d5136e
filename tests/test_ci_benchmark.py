"""The benchmark of `cliptune check` still works: tiny counts, and nothing heavy is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_check_is_measured_and_loads_nothing_heavy(tmp_path: Path) -> None:
    kept = tmp_path / "ci.jsonl"
    options = ("--files", "60", "--runs", "1", "--out", str(kept))
    command = [sys.executable, str(ROOT / "benchmarks" / "ci.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert kept.read_text() == done.stdout
    many, one = map(json.loads, done.stdout.splitlines())
    assert many["summary"].startswith("60 clip values checked: ")
    assert one["summary"].startswith("1 clip value checked: ")
    for line in (many, one):
        assert line["heavy"] == []
        assert all(each > 0 for each in line["median_seconds"].values())
