"""A repository to check, a service that answers, and the command as a pipeline runs it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from serving import serving

from service.ci.lock import LOCK_FILE, Lock, write_lock
from service.ci.recommended import Measured, Recommended
from service.cli.main import main
from service.db.session import Database
from tuner.evidence import PairedDifference, Verdict
from tuner.spec import OFF_SETTING, ClipSetting

#: What tells Transformers from others.
HF = "output_dir: out\nper_device_train_batch_size: 8\n"


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclass
class Repository:
    """A folder under version control, which is the current one."""

    root: Path

    def config(self, value: str, name: str = "train.yaml", before: str = HF) -> Path:
        """Write a config of Transformers; its value stands in line 3."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{before}max_grad_norm: {value}\n")
        return path

    def keep(self, *names: str, key: str = "max_grad_norm", **changes: Any) -> Recommended:
        """Write a lock that recommends one setting for the files."""
        kept = recommendation(**changes)
        lock = Lock({})
        for name in names:
            lock = lock.with_entry(name, key, kept)
        write_lock(self.root / LOCK_FILE, lock)
        return kept


def recommendation(
    verdict: Verdict = Verdict.CLIP, setting: str = "global_norm:0.42", **changes: Any
) -> Recommended:
    """What is kept of a study: 0.25 to 0.71 is as good as 0.42, 2 and off are worse by 0.3."""
    chosen = ClipSetting.parse(setting)
    worse = PairedDifference(mean=-0.3, low=-0.4, high=-0.2, num_pairs=6)
    measured = tuple(
        Measured(setting=each, difference=worse, num_seeds=6, num_diverged=0, is_fresh=True)
        for each in (ClipSetting.parse("global_norm:2"), OFF_SETTING)
    )
    values: dict[str, Any] = {
        "study_id": "0f5a1b2c-0000-4000-8000-000000000000",
        "recommendation_id": "7e57ab1e-0000-4000-8000-000000000000",
        "version": 1,
        "workload": "charlm-rnn",
        "fingerprint": "0123456789abcdef",
        "verdict": verdict,
        "setting": chosen,
        "interval": None if chosen.is_off else (0.25, 0.71),
        "best": ClipSetting.parse("global_norm:0.42"),
        "methods": ("global_norm",),
        "objective": "val_loss",
        "margin": 0.01,
        "reason": "The study says so.",
        "num_seeds": 6,
        "more_seeds": None,
        "kappa": 1.75,
        "clip_fraction": 0.06,
        "created_at": datetime(2026, 1, 2, tzinfo=UTC),
        "measured": measured,
    }
    return Recommended(**values | changes)


@pytest.fixture
def database(sqlite_database: Database) -> Database:
    """SQLite alone: the command never sees which database answers."""
    return sqlite_database


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    root = tmp_path / "repository"
    (root / ".git").mkdir(parents=True)
    monkeypatch.chdir(root)
    for name in ("GITHUB_ACTIONS", "CLIPTUNE_URL", "CLIPTUNE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLIPTUNE_HOME", str(tmp_path / "home"))
    return Repository(root)


@pytest.fixture
def served(api: Any, repository: Repository, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The service behind ``api`` on a real socket, which the environment names."""
    with serving(api.app) as url:
        monkeypatch.setenv("CLIPTUNE_URL", url)
        monkeypatch.setenv("CLIPTUNE_API_KEY", api.key)
        yield api


@pytest.fixture
def cliptune(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """The command, run in this process."""

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["cliptune", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        code = ended.value.code
        return Ended(code if isinstance(code, int) else 0, captured.out, captured.err)

    return run
