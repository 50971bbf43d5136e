"""The benchmark of scale still works: a recorded study is played on a few slots, with a few clients beside it."""

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
    sizes = ("--slots", "2", "--study-seconds", "4", "--queued", "60", "--stored", "20", "--clients", "10")
    options = ("--alone", "polls", "--rate", "20", "--processes", "1", "--seconds", "4", "--out", str(kept))
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "scale.py"), *sizes, *options],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    polls, ramp = map(json.loads, done.stdout.splitlines())
    assert kept.read_text() == done.stdout
    assert (polls["part"], polls["action"], polls["rate"]) == ("alone", "polls", 20)
    assert (ramp["part"], ramp["slots"], ramp["study_seconds"], ramp["streams"]) == ("ramp", 2, 4, 4)
    for line in (polls, ramp):
        assert (line["errors"], line["first_errors"]) == (0, [])
        assert set(line["cores"]) == {"postgresql", "api", "slots", "clients"} and line["cores"]["slots"] > 0
        for figures in line["latency_ms"].values():
            assert 0 <= figures["p50"] <= figures["p99"]
    assert polls["latency_ms"]["polls"]["per_second"] > 0
