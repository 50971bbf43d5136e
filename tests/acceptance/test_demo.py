"""The first command a newcomer runs: it prints a recommendation and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest
from acceptance.deployment import CLIPTUNE


@pytest.mark.slow
def test_demo_recommends_and_cleans_up(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CLIPTUNE_")}
    environment |= {"TMPDIR": str(tmp_path), "HOME": str(tmp_path / "user")}
    done = subprocess.run([*CLIPTUNE, "demo"], env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    rows = {line[:12].strip(): line[12:] for line in done.stdout.splitlines() if line[:12].strip()}
    assert rows["verdict"] == "CLIP"
    assert rows["method"].startswith("global_norm")
    assert rows["threshold"].startswith("max_norm = ") and "as good:" in rows["threshold"]
    assert "off" in rows["val_loss"]
    assert "of steps clipped" in rows["engages"]
    assert "probe    median norm" in done.stderr and "rung 3/3" in done.stderr
    assert not (tmp_path / "user" / ".cliptune").exists()
    left = [
        entry for entry in Path(tempfile.gettempdir()).glob("cliptune-demo-*") if entry.parent == tmp_path
    ]
    assert not left and not list(tmp_path.glob("cliptune-*"))
