"""The benchmark of round trips still works: a fraction of a second of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_the_benchmark_counts_every_call(tmp_path: Path) -> None:
    kept = tmp_path / "kept.jsonl"
    script = str(ROOT / "benchmarks" / "integrations_http.py")
    options = ["--seconds", "0.5", "--cohorts", "20", "--database", "sqlite", "--out", str(kept)]
    done = subprocess.run(
        [sys.executable, script, *options], capture_output=True, text=True, check=True, cwd=ROOT
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [json.loads(line) for line in kept.read_text().splitlines()] == rows
    assert [(row["database"], row["clients"]) for row in rows] == [("sqlite", 1), ("sqlite", 32)]
    for row in rows:
        counts = {verb: figures["count"] for verb, figures in row["by_call"].items()}
        assert sum(counts.values()) == row["round_trips"] > 0
        assert counts["ask"] == counts["complete"] and counts["report"] >= counts["ask"]
        assert row["server_cpu_ms"] > 0 and row["p50_ms"] <= row["p99_ms"] <= row["worst_ms"]
