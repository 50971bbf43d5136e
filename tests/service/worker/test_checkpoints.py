"""Where checkpoints may be, who deletes them, and a runner that goes on from them."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from sqlalchemy import select

from service.db.models import JobEventRow
from service.db.session import Database
from service.errors import SettingsError, TrainingError
from service.jobs.lease import Lease
from service.jobs.queue import Queue
from service.schemas import WarmStart
from service.settings import Settings, load_settings
from service.states import JobState
from service.worker import checkpoints, ledger
from service.worker.stored import StoredStudy
from service.worker.training import require_belonging
from tuner.spec import OFF_SETTING, ClipSetting, StudySpec
from tuner.training.checkpoint import Checkpoints
from tuner.training.cohort import (
    CheckpointFailed,
    CheckpointSaved,
    Cohort,
    CohortTrial,
    EngineChosen,
    Resumed,
)
from tuner.training.parts import Grid

SPEC = StudySpec(workload="w")
STUDY_ID = str(uuid.UUID(int=7))


def test_folder_is_made_of_the_setting_and_ids(tmp_path: Path) -> None:
    assert checkpoints.cohort_folder(tmp_path, STUDY_ID, 3) == f"{tmp_path}/{STUDY_ID}/cohort-3"
    part = checkpoints.part_folder("s3://bucket/c/", STUDY_ID, 3, Grid(2, 1), 1)
    assert part == f"s3://bucket/c/{STUDY_ID}/cohort-3/2x1/1"


@pytest.mark.parametrize(
    "study_id", ["", "..", "../x", f"{STUDY_ID}/..", STUDY_ID.upper() + "A", "/etc", "a\0"]
)
def test_no_other_text_becomes_a_path(tmp_path: Path, study_id: str) -> None:
    with pytest.raises(ValueError, match="must be a lower-case uuid"):
        checkpoints.study_folder(tmp_path, study_id)


def test_relative_root_is_refused() -> None:
    with pytest.raises(ValueError, match="must be absolute, got checkpoints"):
        checkpoints.study_folder(Path("checkpoints"), STUDY_ID)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (Settings(home=Path("/data")), "/data/checkpoints"),
        (Settings(home=Path("/data"), checkpoint_dir="/shared/c"), "/shared/c"),
        (Settings(checkpoint_dir="c"), str(Path.cwd() / "c")),
        (Settings(checkpoint_dir="~/c"), str(Path.home() / "c")),
        (Settings(checkpoint_dir="s3://bucket/c/"), "s3://bucket/c"),
        (Settings(checkpoint_dir="abfs://container@account/c"), "abfs://container@account/c"),
    ],
)
def test_setting_is_an_absolute_path_or_a_url(settings: Settings, expected: str) -> None:
    assert settings.checkpoint_root == expected


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("s3://key:secret@bucket/c", "may not hold a password or a query"),
        ("https://host/c?signature=secret", "may not hold a password or a query"),
        ("filecache::s3://bucket/secret", "must name one place of one kind"),
        ("s3://", "must name one place of one kind"),
        ("s3://[secret", "is no URL: write s3://BUCKET/FOLDER"),
    ],
)
def test_url_that_is_no_plain_place_is_refused_and_not_repeated(url: str, problem: str) -> None:
    with pytest.raises(SettingsError, match=f"^CLIPTUNE_CHECKPOINT_DIR {problem}") as caught:
        load_settings({}, checkpoint_dir=url)
    assert "secret" not in str(caught.value)


#: Both kinds of places, each its own.
PLACES = pytest.mark.parametrize("place", ["{folder}/c", "file://{folder}/c", "memory://of-{name}/c"])


def written(root: str, study_id: str, grid: Grid, part: int, step: int) -> str:
    """Write a checkpoint of a part as a training process does."""
    folder = checkpoints.part_folder(root, study_id, 0, grid, part)
    Checkpoints(folder).save({}, {}, step=step)
    return folder


@PLACES
def test_grid_of_a_cohort_is_found_by_its_checkpoints(place: str, tmp_path: Path) -> None:
    root = place.format(folder=tmp_path, name=tmp_path.name)
    assert checkpoints.find_grid(root, STUDY_ID, 0) is None
    written(root, STUDY_ID, Grid(3, 1), 2, step=4)
    written(root, STUDY_ID, Grid(2, 2), 1, step=0)
    written(root, STUDY_ID, Grid(2, 2), 3, step=12)
    assert checkpoints.find_grid(root, STUDY_ID, 0) == Grid(2, 2)
    assert checkpoints.find_grid(root, STUDY_ID, 1) is None
    checkpoints.remove_cohort(root, STUDY_ID, 1)
    assert checkpoints.find_grid(root, STUDY_ID, 0) == Grid(2, 2)
    checkpoints.remove_cohort(root, STUDY_ID, 0)
    assert checkpoints.find_grid(root, STUDY_ID, 0) is None


def test_draft_and_what_is_no_checkpoint_are_no_grid(tmp_path: Path) -> None:
    for name in ("2x1/0/0000000004-0123456789ab", "4x1/0/notes", "grids/0/0000000004-0123456789ab"):
        (tmp_path / STUDY_ID / "cohort-0" / name).mkdir(parents=True)
    (tmp_path / STUDY_ID / "cohort-0" / "README").touch()
    assert checkpoints.find_grid(tmp_path, STUDY_ID, 0) is None


@pytest.mark.parametrize("root", ["nosuchstore://c", "sftp://127.0.0.1:1/c"])
def test_place_that_cannot_be_reached_is_logged_and_harms_nothing(
    root: str, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints.sweep(database, root)
    checkpoints.remove_cohort(root, STUDY_ID, 0)
    assert checkpoints.find_grid(root, STUDY_ID, 0) is None
    told = [line for line in capsys.readouterr().out.splitlines() if "checkpoints unreachable" in line]
    assert len(told) == 3
    assert all(root in line for line in told)


@PLACES
def test_sweep_deletes_what_ended_studies_left_and_nothing_else(
    place: str, database: Database, queue: Queue, lease_of: Callable[[StudySpec], Lease], tmp_path: Path
) -> None:
    root = place.format(folder=tmp_path, name=tmp_path.name)
    ended, running = lease_of(SPEC), lease_of(StudySpec(workload="v"))
    queue.finish(ended, JobState.CANCELLED)
    of_another_database = STUDY_ID
    folders = {
        study_id: written(root, study_id, Grid(1, 1), 0, step=4)
        for study_id in (ended.study_id, running.study_id, of_another_database)
    }
    somebodys = Checkpoints(f"{root}/somebody's files")
    somebodys.save({}, {}, step=1)
    checkpoints.sweep(database, root)
    left = {study_id for study_id, folder in folders.items() if Checkpoints(folder).newest_first()}
    assert left == {running.study_id, of_another_database}
    assert somebodys.newest_first()


def test_sweep_asks_for_a_few_studies_at_once(
    database: Database,
    queue: Queue,
    lease_of: Callable[[StudySpec], Lease],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A statement of PostgreSQL takes 65,535 parameters, and a place may hold more studies."""
    monkeypatch.setattr(checkpoints, "_AT_ONCE", 2)
    root = tmp_path / "root"
    for number in range(5):
        ended = lease_of(StudySpec(workload=f"v{number}"))
        queue.finish(ended, JobState.CANCELLED)
        (root / ended.study_id).mkdir(parents=True)
    checkpoints.sweep(database, root)
    assert list(root.iterdir()) == []


def test_sweep_without_a_folder_does_nothing(database: Database, tmp_path: Path) -> None:
    checkpoints.sweep(database, tmp_path / "not there")
    assert not (tmp_path / "not there").exists()


def test_events_of_a_training_are_told(
    database: Database, queue: Queue, lease_of: Callable[[StudySpec], Lease]
) -> None:
    lease = lease_of(SPEC)
    chosen = EngineChosen(
        path="lanes", num_lanes=24, reason="fast\0er", lanes_per_second=49.0, solo_per_second=10.0
    )
    with queue.held(lease) as session:
        ledger.record_engine(session, queue, lease, chosen, cohort=1)
        resumed = Resumed(index=1, step=133, lane_steps=400, seconds=0.5)
        ledger.record_resumed(session, queue, lease, resumed, cohort=1, num_rungs=3)
        saved = CheckpointSaved(index=1, step=133, num_bytes=10, seconds=0.25)
        ledger.record_checkpoint(session, queue, lease, saved, cohort=1)
        ledger.record_checkpoint_failed(session, queue, lease, CheckpointFailed(error="full \0"), cohort=1)
    with database.read() as session:
        rows = session.scalars(select(JobEventRow).order_by(JobEventRow.id)).all()[-4:]
        assert [(row.kind, row.payload["cohort"]) for row in rows] == [
            ("engine", 1),
            ("resumed", 1),
            ("checkpoint", 1),
            ("checkpoint_failed", 1),
        ]
        assert rows[0].payload["reason"] == "fast\\x00er"
        assert (rows[1].payload["step"], rows[1].payload["num_rungs"]) == (133, 3)
        assert ledger.engine_paths(session, lease.study_id) == ["lanes"]
        assert ledger.engine_paths(session, STUDY_ID) == []
        assert ledger.cohort_paths(session, lease.study_id) == {1: "lanes"}
        assert ledger.cohort_paths(session, STUDY_ID) == {}


def test_checkpoint_is_progress_that_forgets_lost_workers(
    database: Database, queue: Queue, lease_of: Callable[[StudySpec], Lease], monkeypatch: pytest.MonkeyPatch
) -> None:
    lease, forgiven = lease_of(SPEC), []
    monkeypatch.setattr(queue, "forget_losses", lambda session, lease: forgiven.append(lease))
    with queue.held(lease) as session:
        saved = CheckpointSaved(index=0, step=1, num_bytes=1, seconds=0.1)
        ledger.record_checkpoint(session, queue, lease, saved, cohort=0)
    assert forgiven == [lease]


@pytest.mark.parametrize("step", [30, 11])
def test_checkpoint_at_a_step_that_is_no_rung_to_go_on_from_is_bad_output(step: int) -> None:
    cohort = Cohort(
        workload="w",
        parameters={},
        trials=(CohortTrial(id="a", setting=OFF_SETTING),),
        seeds=(0,),
        rung_steps=(10, 30),
        divergence_factor=3.0,
    )
    require_belonging(cohort, [CheckpointSaved(index=0, step=10, num_bytes=1, seconds=0.1)])
    for message in (
        CheckpointSaved(index=0, step=step, num_bytes=1, seconds=0.1),
        Resumed(index=0, step=step, lane_steps=1, seconds=0.1),
    ):
        with pytest.raises(TrainingError, match="not of its cohort"):
            require_belonging(cohort, [message])


def test_provenance_says_how_lanes_were_trained_and_what_was_asked() -> None:
    taken = WarmStart(
        recommendation_id="r", study_id="s", distance=0.5, setting=ClipSetting.parse("global_norm:0.5")
    )
    study = StoredStudy(spec=SPEC, reference=None, trials=(), extensions=(4,), warm_start=(taken,))
    told = ledger.provenance(None, [], study)
    assert "engine" not in told
    assert told["extensions"] == [4]
    assert told["warm_start"] == [{"study_id": "s", "setting": "global_norm:0.5"}]
    assert hasattr(optuna.samplers, told["sampler"]) and told["optuna"] == optuna.__version__
    assert ledger.provenance(None, ["lanes"], study)["engine"] == "lanes"
    assert ledger.provenance(None, ["lanes", "solo"], study)["engine"] == "lanes and solo"
