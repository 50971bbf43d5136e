"""How long `cliptune check` takes: a repository of 2,000 configs, and one file as a pre-commit hook checks it.

``python benchmarks/ci.py --out benchmarks/results/ci.jsonl`` writes a JSON line per case: the median of several runs of
the command, in seconds, with ``cliptune version`` in turns beside it (goals: under 2 s and under 0.4 s). The configs
are those of the corpus in ``tests/data/configs`` that hold a value, in YAML followed by 60 further keys as real ones
have them, copied until there are enough. Every case is run once more to see what it loads: torch and optuna have no
business there.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT)

from benchmarks.machine import facts  # noqa: E402
from service.ci.config import open_config  # noqa: E402
from service.ci.discover import find_configs  # noqa: E402
from service.ci.errors import ConfigError  # noqa: E402
from service.ci.lock import (  # noqa: E402
    LOCK_FILE,
    Lock,
    Place,
    read_lock,
    write_lock,
)

CORPUS = ROOT / "tests" / "data"
HEAVY = ("torch", "optuna", "numpy", "sqlalchemy", "fastapi", "httpx2")
MORE = b"\n" + b"".join(b"setting_%d: value of a usual length  # why\n" % number for number in range(60))
#: Runs the command and tells on standard error what it has loaded.
LOADED = "import sys, atexit; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); "


def is_config(path: Path) -> bool:
    try:
        open_config(path)
    except ConfigError:
        return False
    return True


def fill(root: Path, num_files: int) -> int:
    """A repository of configs and its lock; how many bytes the configs have."""
    values = []
    for path in find_configs(CORPUS / "configs"):
        try:
            values.append((path, open_config(path).located.key))
        except ConfigError:
            continue
    (kept,) = read_lock(CORPUS / "hook" / LOCK_FILE).entries.values()
    (root / ".git").mkdir()
    entries = {}
    for number in range(num_files):
        path, key = values[number % len(values)]
        content = path.read_bytes()
        name = f"project{number // 50}/run{number}/{path.name}"
        (root / name).parent.mkdir(parents=True)
        (root / name).write_bytes(content + MORE)
        if path.suffix not in (".yaml", ".yml") or not is_config(root / name):
            (root / name).write_bytes(content)
        entries[Place(name, key)] = kept
    write_lock(root / LOCK_FILE, Lock(entries))
    return sum((root / place.file).stat().st_size for place in entries)


def seconds(folder: Path, *arguments: str) -> tuple[float, float, subprocess.CompletedProcess[str]]:
    """Wall time and CPU time of a command, and how it ended."""
    command = [str(Path(sys.executable).parent / "cliptune"), *arguments]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment())
    took, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done


def environment() -> dict[str, str]:
    return {name: each for name, each in os.environ.items() if not name.startswith("CLIPTUNE_")}


def heavy(folder: Path, *arguments: str) -> list[str]:
    """Which of the heavy packages a command loads."""
    program = f"{LOADED}sys.argv = {['cliptune', *arguments]!r}; from service.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        capture_output=True,
        text=True,
        env=environment() | {"PYTHONPATH": str(ROOT)},
    )
    return sorted({name.partition(".")[0] for name in done.stderr.splitlines()[-1].split()} & set(HEAVY))


def measure(case: str, root: Path, goal: float, num_runs: int, *files: str) -> dict[str, Any]:
    arguments = ("check", *files, "--offline")
    runs: dict[str, list[float]] = {"check": [], "check_cpu": [], "version": [], "version_cpu": []}
    for _ in range(num_runs):
        for name, words in (("version", ("version",)), ("check", arguments)):
            took, cpu, done = seconds(root, *words)
            runs[name].append(took)
            runs[f"{name}_cpu"].append(cpu)
    assert done.returncode in (0, 1), done.stderr
    return {
        "benchmark": "ci",
        "case": case,
        "summary": done.stdout.splitlines()[-1],
        "goal_seconds": goal,
        "median_seconds": {name: round(statistics.median(each), 3) for name, each in runs.items()},
        "worst_seconds": round(max(runs["check"]), 3),
        "heavy": heavy(root, *arguments),
        "machine": facts(),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        many, one = Path(folder, "many"), Path(folder, "one")
        for root in (many, one):
            root.mkdir()
        num_bytes = fill(many, options.files)
        fill(one, 1)
        lines = [
            measure("repository", many, 2.0, options.runs, ".") | {"bytes": num_bytes},
            measure("one file", one, 0.4, options.runs, *(str(path) for path in find_configs(one))),
        ]
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    if options.out:
        options.out.write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
