"""The hook that checks clip values before a commit, as pre-commit runs it: offline, on the staged files alone."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from acceptance.deployment import CLIPTUNE

ROOT = Path(__file__).parents[2]


def hook() -> dict[str, str]:
    (found,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    return dict(found)


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    """A repository whose lock names one of its two configs, and a machine without a service."""
    found = Path(shutil.copytree(ROOT / "tests" / "data" / "hook", tmp_path / "repository"))
    subprocess.run(["git", "init", "--quiet"], cwd=found, check=True)
    return found


def run_hook(folder: Path, *files: str) -> subprocess.CompletedProcess[str]:
    """As pre-commit does it: the entry's words, then the names of the staged files, from the root."""
    program, *words = hook()["entry"].split()
    assert program == "cliptune"
    environment = {"PATH": "", "HOME": str(folder.parent), "CLIPTUNE_URL": "http://127.0.0.1:1"}
    return subprocess.run(
        [*CLIPTUNE, *words, *files],
        env=environment | {"PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
    )


def test_hook_refuses_a_bad_value_and_nothing_else(staged: Path) -> None:
    names = ["conf/train.yaml", "values.yaml", "broken.yaml"]
    assert all(re.search(hook()["files"], name) for name in names), "pre-commit passes them all"
    bad = run_hook(staged, *names)
    assert bad.returncode == 1, bad.stdout + bad.stderr
    assert bad.stdout.startswith("failed: conf/train.yaml:3: max_grad_norm 1.0 is outside"), bad.stdout
    assert bad.stdout.count("\n") == 2
    path = staged / "conf" / "train.yaml"
    path.write_text(path.read_text().replace("1.0", "0.42"))
    assert run_hook(staged, *names).returncode == 0
    assert run_hook(staged, "values.yaml").returncode == 0
    path.write_text("max_grad_norm: [")
    assert run_hook(staged, "conf/train.yaml").returncode == 2
