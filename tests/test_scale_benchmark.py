"""The benchmarks of scale still work: a recorded study on a few slots with a few clients beside it, and two reads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.postgres
def test_slots_and_clients_meet_no_error(tmp_path: Path, postgres_programs: Path) -> None:
    kept = tmp_path / "scale.jsonl"
    sizes = ("--slots", "2", "--study-seconds", "4", "--queued", "60", "--stored", "20", "--clients", "5")
    # Not each action by itself too: it starts the same processes once more.
    options = ("--alone", "", "--processes", "1", "--seconds", "4", "--out", str(kept))
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "scale.py"), *sizes, *options],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    (ramp,) = map(json.loads, done.stdout.splitlines())
    assert kept.read_text() == done.stdout
    assert (ramp["part"], ramp["slots"], ramp["study_seconds"], ramp["streams"]) == ("ramp", 2, 4, 2)
    assert (ramp["errors"], ramp["first_errors"]) == (0, [])
    assert set(ramp["cores"]) == {"postgresql", "api", "slots", "clients"} and ramp["cores"]["slots"] > 0
    assert ramp["latency_ms"]
    for figures in ramp["latency_ms"].values():
        assert 0 <= figures["p50"] <= figures["p99"]


@pytest.mark.postgres
def test_reads_are_measured_on_both_databases(postgres_programs: Path) -> None:
    sizes = ("--studies", "40", "--answers", "30", "--repeats", "1")
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "scale_reads.py"), *sizes],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    found = {each["database"]: each for each in map(json.loads, done.stdout.splitlines())}
    assert set(found) == {"sqlite", "postgresql"}
    for each in found.values():
        assert all(each[name] > 0 for name in ("scrape_ms", "scrape_without_index_ms", "similar_ms"))
