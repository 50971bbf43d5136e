"""How quick the command line starts: ``cliptune --help`` against the bare interpreter, in turns.

``python benchmarks/startup.py`` prints one JSON line: medians of 20 runs each, in seconds (goal for
``cliptune --help``: under 0.3 s). The API process's start is measured from the command to its first answer.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])

from benchmarks.machine import report  # noqa: E402, I001  (it makes the tests' modules importable)
from acceptance.deployment import Deployment  # noqa: E402


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    cliptune = str(Path(sys.executable).parent / "cliptune")
    commands = {
        "python": [sys.executable, "-c", "pass"],
        "help": [cliptune, "--help"],
        "version": [cliptune, "version"],
    }
    runs: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(20):
        for name, command in commands.items():
            runs[name].append(seconds(command))
    with tempfile.TemporaryDirectory() as folder:
        for number in range(3):
            with Deployment(Path(folder) / str(number), f"sqlite:///{folder}/{number}.db") as deployment:
                started = time.perf_counter()
                deployment.start_api()
                runs.setdefault("api_first_answer", []).append(time.perf_counter() - started)
    medians = {name: round(statistics.median(each), 3) for name, each in runs.items()}
    report({"benchmark": "startup", "median_seconds": medians, "worst_help": round(max(runs["help"]), 3)})


if __name__ == "__main__":
    main()
