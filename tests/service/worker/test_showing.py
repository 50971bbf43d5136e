"""A worker shows its studies' trials on a monitor, and a monitor that breaks costs no study."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from service.db.models import TrialResultRow, TrialRow
from service.db.session import Database
from service.errors import SettingsError
from service.jobs.lease import Lease
from service.jobs.queue import Queue
from service.launchers.local import LocalLauncher
from service.settings import Settings, load_settings
from service.states import JobState
from service.worker.pool import SlotPool
from service.worker.runner import StudyRunner
from service.worker.slot import Slot
from tuner.spec import StudySpec
from tuner.workloads.registry import get_workload

SPEC = StudySpec(
    workload="digits-mlp",
    parameters={each.name: each.default for each in get_workload("digits-mlp").parameter_fields()},
    num_trials=3,
    num_seeds=2,
    num_confirm_seeds=0,
    num_steps=12,
)


class Quiet:
    def check(self) -> None: ...


@pytest.fixture
def database(sqlite_database: Database) -> Database:
    return sqlite_database


def run(database: Database, queue: Queue, lease: Lease, monitor: str) -> JobState:
    launcher = LocalLauncher(threads=1, kill_grace_seconds=2)
    pool = SlotPool([Slot(name="cpu", launch=launcher.launch)])
    pool.enter(lease.study_id, tenant_id=lease.tenant_id)
    runner = StudyRunner(
        database=database,
        queue=queue,
        lease=lease,
        pool=pool,
        settings=Settings(monitor=monitor),
        signals=Quiet(),
    )
    try:
        return runner.run()
    finally:
        runner.stop_training()
        pool.close()


def test_every_lane_of_a_study_has_its_run(
    database: Database, queue: Queue, lease_of: Callable[[StudySpec], Lease], tmp_path: Path
) -> None:
    lease = lease_of(SPEC)
    assert run(database, queue, lease, f"tensorboard:{tmp_path / 'runs'}") is JobState.SUCCEEDED
    with database.read() as session:
        trials = session.query(TrialRow).filter_by(study_id=lease.study_id).all()
        assert session.query(TrialResultRow).count() == len(trials) == 3
        settings = {
            each.number: each.method if each.threshold is None else f"{each.method}:{each.threshold:g}"
            for each in trials
        }
    shown = {folder.name for folder in (tmp_path / "runs" / lease.study_id).iterdir()}
    assert shown == {f"{number}_{text}_seed_{seed}" for number, text in settings.items() for seed in (0, 1)}
    for folder in (tmp_path / "runs" / lease.study_id).iterdir():
        (file,) = folder.iterdir()
        content = file.read_bytes()
        for figure in (b"objective", b"train_loss", b"clip_fraction", b"scale", b"pre_clip_norm_median"):
            assert figure in content, (folder.name, figure)


def test_monitor_that_breaks_costs_no_study(
    database: Database, queue: Queue, lease_of: Callable[[StudySpec], Lease], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with capture_logs() as logs:
        state = run(database, queue, lease_of(SPEC), f"tensorboard:{tmp_path / 'file' / 'runs'}")
    assert state is JobState.SUCCEEDED
    (told,) = [line for line in logs if line.get("action") == "monitor_failed"]
    assert "NotADirectoryError" in told["error"] and told["log_level"] == "warning"


def test_setting_names_a_monitor_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings({}).monitor == ""
    monkeypatch.setenv("CLIPTUNE_MONITOR", "runs/x")
    with pytest.raises(
        SettingsError, match=r"CLIPTUNE_MONITOR='runs/x': .*is of no known kind: give tensorboard:"
    ):
        load_settings()
    monkeypatch.setenv("CLIPTUNE_MONITOR", "mlflow:http://127.0.0.1:5000")
    assert load_settings().monitor == "mlflow:http://127.0.0.1:5000"
