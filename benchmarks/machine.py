"""Facts about the machine and the libraries that stand beside every measured figure."""

from __future__ import annotations

import json
import os
import platform
import sqlite3
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# The tests' PostgreSQL cluster and deployment serve the benchmarks too.
sys.path.append(str(ROOT / "tests"))


def facts() -> dict[str, Any]:
    """Cores, processor, versions."""
    return {
        "cores": os.cpu_count(),
        "processor": _processor(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "torch": version("torch"),
        "load_before": round(os.getloadavg()[0], 1),
    }


def report(result: dict[str, Any]) -> None:
    """Print one JSON line with the figures and the machine."""
    print(json.dumps(result | {"machine": facts()}), flush=True)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown"
    )
