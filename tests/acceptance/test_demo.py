"""The first command a newcomer runs: it prints a recommendation and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

#: The demo with as much of its study as its verdict needs.
SMALL_DEMO = """
import sys
from service.cli import demo
from service.cli.main import main

for option, value in {"--trials": "6", "--seeds": "3", "--steps": "120"}.items():
    demo.STUDY[demo.STUDY.index(option) + 1] = value
sys.argv = ["cliptune", "demo"]
main()
"""


def processes_of(folder: Path) -> list[str]:
    """Command lines of the processes whose environment names a folder."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                if f"{folder}/".encode() in (process / "environ").read_bytes():
                    found.append((process / "cmdline").read_text().replace("\0", " "))
            except OSError:
                continue
    return found


@pytest.mark.slow
def test_demo_recommends_and_cleans_up(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CLIPTUNE_")}
    environment |= {"TMPDIR": str(tmp_path), "HOME": str(tmp_path / "user")}
    command = [sys.executable, "-c", SMALL_DEMO]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    rows = {line[:12].strip(): line[12:] for line in done.stdout.splitlines() if line[:12].strip()}
    assert rows["verdict"] == "CLIP"
    assert rows["method"].startswith("global_norm")
    assert rows["threshold"].startswith("max_norm = ") and "as good:" in rows["threshold"]
    assert "off" in rows["val_loss"]
    assert "of steps clipped" in rows["engages"]
    assert "probe    median norm" in done.stderr and "rung 3/3" in done.stderr
    assert not (tmp_path / "user" / ".cliptune").exists()
    assert processes_of(tmp_path) == [], "what the demo started has ended with it"
    assert not list(tmp_path.glob("cliptune-*"))
