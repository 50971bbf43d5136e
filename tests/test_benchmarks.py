"""The benchmarks that nothing else runs still work: tiny counts, in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def rows_of(script: str, *options: str) -> tuple[list[dict[str, Any]], str]:
    """The JSON lines a benchmark prints, and what it tells on stderr."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), *options],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_lanes_tells_what_each_way_of_training_reached(tmp_path: Path) -> None:
    kept = tmp_path / "lanes.jsonl"
    names = ["serial", "solo", "lanes", "auto", "lanes-shared"]
    rows, told = rows_of(
        "lanes.py",
        *("--case", "tiny-mlp", "--lanes", "16", "--contestants", ",".join(names)),
        *("--quick", "--no-memory", "--out", str(kept)),
    )
    assert [json.loads(line) for line in kept.read_text().splitlines()] == rows
    by_name = {row["contestant"]: row for row in rows}
    assert sorted(by_name) == sorted(names)
    for row in rows:
        assert (row["case"], row["lanes"], row["seeds"], row["settings"]) == ("tiny-mlp", 16, 4, 4)
        assert row["lane_steps_per_second"] > 0
        assert len(row["rates"]) == 2
        assert row["machine"]["torch"]
    assert by_name["lanes"]["path"] == "lanes"
    assert by_name["lanes"]["lanes_at_once"] == 16
    least, most = by_name["lanes"]["times_serial"][1:]
    assert 0 < least <= most
    assert by_name["auto"]["reason"]
    assert by_name["auto"]["times_best_alternative"][0] > 0
    assert "auto/best" in told


def test_lanes_skips_what_memory_does_not_hold() -> None:
    rows, _ = rows_of("lanes.py", "--case", "tiny-mlp", "--lanes", "100000000", "--quick")
    assert [row["lanes"] for row in rows] == [100_000_000]
    assert "free" in rows[0]["skipped"]


def test_vmap_variants_measures_and_compares() -> None:
    rows, _ = rows_of("vmap_variants.py", "--quick", "--parts", "layout,equality")
    layout, *equalities = rows
    assert all(value > 0 for value in layout["milliseconds"].values())
    assert [row["case"] for row in equalities] == ["wide-mlp", "small-cnn"]
    assert all(row["prefix_ends_at_first_clipped_step"] for row in equalities)


def test_integrations_compares_the_clipper_with_pytorch(tmp_path: Path) -> None:
    kept = tmp_path / "integrations.jsonl"
    rows, _ = rows_of(
        "integrations.py", "clip", "--quick", "--settings", "global_norm:0.35,value:0.001", "--out", str(kept)
    )
    assert [json.loads(line) for line in kept.read_text().splitlines()] == rows
    assert [row["setting"] for row in rows] == ["global_norm:0.35", "value:0.001"]
    for row in rows:
        assert row["parameters"] >= 10_000_000
        assert row["ratio"] > 0 and row["torch_seconds"] > 0
        assert row["waits"] == 0
