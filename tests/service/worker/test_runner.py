"""A study driven by a runner whose training processes break in every way: causes are counted apart."""

from __future__ import annotations

import dataclasses
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from sqlalchemy import select, update

from service.db.models import JobEventRow, RecommendationRow, StudyRow, TrialResultRow, TrialRow
from service.db.session import Database
from service.errors import LeaseLostError, TrainingError
from service.jobs.lease import Lease
from service.jobs.queue import Queue
from service.launchers.local import LocalLauncher
from service.launchers.protocol import Done
from service.settings import Settings
from service.states import JobState
from service.studies import Claim, extend
from service.worker import ledger
from service.worker.endings import ShutdownRequestedError, StudyFailedError
from service.worker.pool import SlotPool
from service.worker.runner import StudyRunner
from service.worker.stored import load_study
from service.worker.training import require_belonging
from tuner.evidence import LaneResult
from tuner.methods import get_method
from tuner.spec import OFF_SETTING, StudySpec
from tuner.training.cohort import Cohort, CohortTrial, LaneValue, RungReached, TrialEnded
from tuner.training.probe import measure_reference
from tuner.workloads.registry import create_workload, get_workload

FLAKY = str(Path(__file__).parent / "flaky_trainer.py")
SPEC = StudySpec(
    workload="digits-mlp",
    parameters={each.name: each.default for each in get_workload("digits-mlp").parameter_fields()},
    num_trials=4,
    num_seeds=2,
    num_confirm_seeds=0,
    num_steps=6,
    cohort_size=4,
    num_rungs=1,
)


class Start(Protocol):
    def __call__(self, fault: str, lease: Lease, signals: Quiet | None = None) -> StudyRunner: ...


class Quiet:
    """Signals that ask for nothing, until told otherwise."""

    def __init__(self) -> None:
        self.calls = 0
        self.after: Callable[[int], None] = lambda calls: None

    def check(self) -> None:
        self.calls += 1
        self.after(self.calls)


@pytest.fixture
def database(sqlite_database: Database) -> Database:
    return sqlite_database


@pytest.fixture
def lease(queue: Queue, lease_of: Callable[[StudySpec], Lease]) -> Lease:
    found = lease_of(SPEC)
    return found


@pytest.fixture
def start(
    database: Database, queue: Queue, tmp_path: Path, pool_for: Callable[..., SlotPool]
) -> Iterator[Start]:
    """Make a runner whose training program has a fault; its processes end with the test."""
    runners: list[StudyRunner] = []

    def start_with(fault: str, lease: Lease, signals: Quiet | None = None) -> StudyRunner:
        command = (sys.executable, FLAKY, fault, str(tmp_path / "struck"))
        launcher = LocalLauncher(threads=1, kill_grace_seconds=2, command=command)
        runner = StudyRunner(
            database=database,
            queue=queue,
            lease=lease,
            pool=pool_for(lease, launcher.launch),
            # Longer than a loaded machine takes to import scikit-learn, where nothing is told either.
            settings=Settings(stall_seconds=8 if fault == "hang:once" else 120, max_failed_trials=2),
            signals=signals or Quiet(),
        )
        runners.append(runner)
        return runner

    yield start_with
    for runner in runners:
        runner.stop_training()


def trials_of(database: Database, lease: Lease) -> list[TrialRow]:
    with database.read() as session:
        query = select(TrialRow).where(TrialRow.study_id == lease.study_id).order_by(TrialRow.number)
        return list(session.scalars(query))


@pytest.mark.parametrize(("fault", "attempts"), [("raise:once", 1), ("exit:once", 1)])
def test_training_that_breaks_once_is_repeated(
    fault: str, attempts: int, database: Database, queue: Queue, lease: Lease, start: Start
) -> None:
    runner = start(fault, lease)
    assert runner.run() is JobState.SUCCEEDED
    trials = trials_of(database, lease)
    # Losses are counted in a row: a rung is progress.
    assert [(trial.attempt, trial.lost_count) for trial in trials] == [(attempts, 0)] * 4
    assert {trial.state for trial in trials} == {"complete"}


@pytest.mark.parametrize(
    ("fault", "attempts"), [("bug-of-one:until-one-is-gone", 3), ("oom-of-one:until-one-is-gone", 1)]
)
def test_one_bad_trial_fails_alone(
    fault: str, attempts: int, database: Database, queue: Queue, lease: Lease, start: Start
) -> None:
    """A bug is tried three times; running out of memory would only happen again at the same size."""
    runner = start(fault, lease)
    assert runner.run() is JobState.SUCCEEDED
    *good, bad = trials_of(database, lease)
    assert {trial.state for trial in good} == {"complete"}
    assert (bad.state, bad.attempt) == ("fail", attempts)
    assert "wrong shape" in (bad.last_error or "") or "out of memory" in (bad.last_error or "")
    with database.read() as session:
        kinds = session.scalars(select(JobEventRow.kind)).all()
        assert kinds.count("trial_failed") == 1
        assert kinds[-2:] == ["recommendation", "succeeded"]
        assert len(session.scalars(select(RecommendationRow)).all()) == 1


def test_study_with_too_many_failed_trials_fails_with_the_reason(
    database: Database, queue: Queue, lease: Lease, start: Start
) -> None:
    runner = start("raise:always", lease)
    with pytest.raises(StudyFailedError, match=r"4 trials failed .* allows 2 .*no good"):
        runner.run()


def test_probe_that_always_fails_says_why_without_its_traceback(lease: Lease, start: Start) -> None:
    runner = start("raise-in-probe", lease)
    runner._settings = Settings(max_attempts=1)
    with pytest.raises(StudyFailedError) as caught:
        runner.run()
    assert str(caught.value) == "the probe failed 1 times; the last time: ValueError: no good"
    assert "flaky_trainer.py" in str(caught.value.__cause__)


def test_cohort_without_results_is_bad_output(
    database: Database, queue: Queue, lease: Lease, start: Start
) -> None:
    runner = start("silent", lease)
    with pytest.raises(StudyFailedError, match="without all its results"):
        runner.run()


def test_shutdown_stops_between_two_messages(
    database: Database, queue: Queue, lease: Lease, start: Start
) -> None:
    signals = Quiet()

    def stop(calls: int) -> None:
        if calls > 1:
            raise ShutdownRequestedError

    signals.after = stop
    runner = start("hang:always", lease, signals)
    with pytest.raises(ShutdownRequestedError):
        runner.run()
    runner.stop_training()
    assert queue.release(lease) is JobState.QUEUED


def test_runner_whose_lease_is_gone_writes_nothing(
    database: Database, queue: Queue, lease: Lease, start: Start
) -> None:
    queue.release(lease)
    assert queue.acquire(str(uuid.uuid4()), ["study"]) is not None
    runner = start("none", lease)
    with pytest.raises(LeaseLostError):
        runner.run()
    assert trials_of(database, lease) == []


def test_second_runner_finishes_open_trials_before_it_asks(
    database: Database, queue: Queue, lease: Lease, start: Start
) -> None:
    signals = Quiet()
    first = start("hang:once", lease, signals)

    def stop_in_cohort(calls: int) -> None:
        if trials_of(database, lease):
            raise ShutdownRequestedError

    signals.after = stop_in_cohort
    with pytest.raises(ShutdownRequestedError):
        first.run()
    first.stop_training()
    asked = [(trial.id, trial.threshold) for trial in trials_of(database, lease)]
    assert len(asked) == 4
    queue.release(lease)
    again = queue.acquire(str(uuid.uuid4()), ["study"])
    assert again is not None
    second = start("hang:once", again)
    assert second.run() is JobState.SUCCEEDED
    assert [(trial.id, trial.threshold) for trial in trials_of(database, lease)] == asked


def test_process_that_dies_while_the_worker_stops_is_nobodys_fault(
    database: Database, queue: Queue, lease: Lease, start: Start, tmp_path: Path
) -> None:
    """A stop that reaches the whole process group ends the training before the worker looks at its own flag."""
    signals = Quiet()

    def stopping_once_struck(calls: int) -> None:
        if (tmp_path / "struck").exists():
            raise ShutdownRequestedError

    signals.after = stopping_once_struck
    runner = start("exit:once", lease, signals)
    with pytest.raises(ShutdownRequestedError):
        runner.run()
    assert [(trial.attempt, trial.lost_count) for trial in trials_of(database, lease)] == [(0, 0)] * 4


def test_results_told_before_the_process_died_are_kept(
    database: Database, queue: Queue, lease: Lease, start: Start
) -> None:
    assert start("exit-after-results", lease).run() is JobState.SUCCEEDED
    assert [trial.attempt for trial in trials_of(database, lease)] == [0, 0, 0, 1]
    with database.read() as session:
        assert len(session.scalars(select(TrialResultRow)).all()) == 4


def test_study_all_of_whose_trials_failed_says_why(
    database: Database, queue: Queue, lease: Lease, start: Start
) -> None:
    """Fewer trials than may fail, and still nothing to recommend."""
    runner = start("raise:always", lease)
    runner._settings = Settings(max_failed_trials=10, max_attempts=1)
    with pytest.raises(StudyFailedError, match=r"all 4 trials failed; .*no good"):
        runner.run()


#: Confirmed on fresh seeds whatever its search says: 60 steps are enough for a threshold to clip.
CONFIRMED = dataclasses.replace(SPEC, num_confirm_seeds=2, num_steps=60)


def run(database: Database, queue: Queue, lease: Lease, start: Start) -> StudyRow:
    assert start("none", lease).run() is JobState.SUCCEEDED
    with database.read() as session:
        return session.get_one(StudyRow, lease.study_id)


def events_of(database: Database, lease: Lease, kind: str) -> list[dict[str, Any]]:
    with database.read() as session:
        query = select(JobEventRow.payload).where(
            JobEventRow.study_id == lease.study_id, JobEventRow.kind == kind
        )
        return list(session.scalars(query.order_by(JobEventRow.id)))


def recommendations_of(database: Database, lease: Lease) -> list[RecommendationRow]:
    with database.read() as session:
        query = select(RecommendationRow).where(RecommendationRow.study_id == lease.study_id)
        return list(session.scalars(query.order_by(RecommendationRow.version)))


def test_study_is_confirmed_on_fresh_seeds_and_extended(
    database: Database, queue: Queue, lease_of: Callable[[StudySpec], Lease], start: Start
) -> None:
    lease = lease_of(CONFIRMED)
    before = CONFIRMED.fingerprint
    study = run(database, queue, lease, start)
    assert study.reference is not None and study.reference["features"]["optimizer"] == "sgd"
    assert study.fingerprint != before and study.warm_start == []
    fresh = [trial for trial in trials_of(database, lease) if trial.stage == "confirm"]
    assert fresh and {tuple(trial.seeds or ()) for trial in fresh} == {(2, 3)}
    assert {trial.seeds for trial in trials_of(database, lease) if trial.stage == "search"} == {None}
    told = [(each["stage"], each["seeds"]) for each in events_of(database, lease, "cohort")]
    assert told[0] == ("search", [0, 1]) and ("confirm", [2, 3]) in told
    (first,) = recommendations_of(database, lease)
    assert first.fingerprint == study.fingerprint and first.body["num_fresh_seeds"] == 2
    assert (first.optimizer, first.precision, first.kappa) == ("sgd", "fp32", first.body["kappa"])
    assert first.body["provenance"]["sampler"] == "TPESampler"

    with database.write() as session:
        claim = Claim(tenant_id="t", route="r", key="k", body_sha256="b")
        options: dict[str, Any] = {"num_seeds": 3, "wanted": claim, "settings": Settings()}
        extend(session, queue, study_id=lease.study_id, **options)
    again = queue.acquire(str(uuid.uuid4()), ["study"])
    assert again is not None and again.job_id != lease.job_id
    searched = [trial.id for trial in trials_of(database, lease) if trial.stage == "search"]
    run(database, queue, again, start)
    after = trials_of(database, lease)
    assert [trial.id for trial in after if trial.stage == "search"] == searched, "nothing new was searched"
    assert {(4, 5, 6)} == {tuple(trial.seeds or ()) for trial in after if trial.seeds} - {(2, 3)}
    one, two = recommendations_of(database, lease)
    assert (one.version, two.version, two.body["num_fresh_seeds"]) == (1, 2, 5)
    assert one.body == first.body and two.body["provenance"]["extensions"] == [3]
    assert [each["version"] for each in events_of(database, lease, "recommendation")] == [1, 2]


def test_cancelled_extension_goes_on_where_it_stopped(
    database: Database, queue: Queue, lease_of: Callable[[StudySpec], Lease], start: Start
) -> None:
    lease = lease_of(CONFIRMED)
    run(database, queue, lease, start)
    for number, (num_seeds, outcome) in enumerate([(3, JobState.CANCELLED), (None, JobState.SUCCEEDED)]):
        with database.write() as session:
            claim = Claim(tenant_id="t", route="r", key=f"k{number}", body_sha256="b")
            options: dict[str, Any] = {"num_seeds": num_seeds, "wanted": claim, "settings": Settings()}
            extend(session, queue, study_id=lease.study_id, **options)
        lease_now = queue.acquire(str(uuid.uuid4()), ["study"])
        assert lease_now is not None
        if outcome is JobState.CANCELLED:
            queue.finish(lease_now, outcome)
        else:
            run(database, queue, lease_now, start)
    (one, two) = recommendations_of(database, lease)
    assert (one.body["num_fresh_seeds"], two.version, two.body["num_fresh_seeds"]) == (2, 2, 5)


def test_extension_that_was_cancelled_while_it_trained_goes_on(
    database: Database, queue: Queue, lease_of: Callable[[StudySpec], Lease], start: Start
) -> None:
    lease = lease_of(CONFIRMED)
    run(database, queue, lease, start)

    def extended(key: str, num_seeds: int | None) -> Lease:
        with database.write() as session:
            claim = Claim(tenant_id="t", route="r", key=key, body_sha256="b")
            extend(
                session,
                queue,
                study_id=lease.study_id,
                num_seeds=num_seeds,
                wanted=claim,
                settings=Settings(),
            )
        found = queue.acquire(str(uuid.uuid4()), ["study"])
        assert found is not None
        return found

    cut = extended("one", 3)
    with queue.held(cut) as session:
        study = load_study(session, cut.study_id)
        assert study.reference is not None
        asked = study.search(study.reference).ask()
        assert asked is not None
        ledger.insert_trials(session, cut, asked, cohort=9)
    queue.finish(cut, JobState.CANCELLED)
    stopped = [trial.last_error for trial in trials_of(database, lease) if trial.cohort == 9]
    assert stopped and set(stopped) == {"the study was cancelled"}
    again = extended("two", None)
    assert [trial.state for trial in trials_of(database, lease) if trial.cohort == 9] == ["waiting"] * len(
        stopped
    )
    run(database, queue, again, start)
    assert [trial.state for trial in trials_of(database, lease) if trial.cohort == 9] == ["complete"] * len(
        stopped
    )
    assert recommendations_of(database, lease)[-1].body["num_fresh_seeds"] == 5


def test_second_study_begins_with_what_the_first_one_found(
    database: Database, queue: Queue, lease_of: Callable[[StudySpec], Lease], start: Start
) -> None:
    first = lease_of(SPEC)
    run(database, queue, first, start)
    with database.write() as session:
        known = session.scalars(select(RecommendationRow)).one()
        known.verdict, known.method, known.threshold = "clip", "global_norm", 0.5
        setting = {"method": "global_norm", "threshold": 0.5}
        known.body = known.body | {"verdict": "clip", "setting": setting, "interval": None, "kappa": 0.123}
        median = known.median_norm
    assert median is not None
    second = lease_of(dataclasses.replace(SPEC, seed=1))
    study = run(database, queue, second, start)
    (begun,) = study.warm_start or []
    carried = get_method("global_norm").rounded(0.123 * median)
    assert (begun["study_id"], begun["setting"]["threshold"]) == (first.study_id, carried)
    assert carried in [trial.threshold for trial in trials_of(database, second)]
    (answer,) = recommendations_of(database, second)
    assert answer.body["provenance"]["warm_start"] == [
        {"study_id": first.study_id, "setting": f"global_norm:{carried:g}"}
    ]


def test_warm_start_is_kept_through_a_crash_and_can_be_switched_off(
    database: Database, queue: Queue, lease_of: Callable[[StudySpec], Lease], start: Start
) -> None:
    lease = lease_of(SPEC)
    kept = [
        {
            "recommendation_id": "r",
            "study_id": "s",
            "distance": 0.5,
            "setting": {"method": "global_norm", "threshold": 0.321, "learning_rate_scale": 1.0},
        }
    ]
    with queue.held(lease) as session:
        reference = measure_reference(create_workload("digits-mlp", SPEC.parameters), SPEC.seeds)
        ledger.record_reference(session, queue, lease, reference, spec=SPEC, begins_warm=False)
        assert session.get_one(StudyRow, lease.study_id).warm_start is None
        session.execute(update(StudyRow).values(warm_start=kept))
    study = run(database, queue, lease, start)
    assert study.warm_start == kept
    assert 0.321 in [trial.threshold for trial in trials_of(database, lease)]
    assert len(events_of(database, lease, "probe")) == 1


COHORT = Cohort(
    workload="digits-mlp",
    parameters={},
    trials=(CohortTrial(id="a", setting=OFF_SETTING), CohortTrial(id="b", setting=OFF_SETTING)),
    seeds=(0, 1),
    rung_steps=(10, 30),
    divergence_factor=3.0,
)


def lane(seed: int) -> LaneResult:
    return LaneResult(
        seed=seed,
        num_steps=30,
        value=1.0,
        divergence_step=None,
        clip_fraction=0.0,
        mean_scale=1.0,
        norms=None,
        num_non_finite=0,
        seconds=0.0,
    )


def rung(trial_id: str = "a", seed: int = 0, step: int = 10, pruned: tuple[str, ...] = ()) -> RungReached:
    return RungReached(
        index=0, step=step, values=(LaneValue(trial_id=trial_id, seed=seed, value=1.0),), pruned=pruned
    )


def ended(trial_id: str, *seeds: int) -> TrialEnded:
    return TrialEnded(trial_id=trial_id, state="complete", lanes=tuple(map(lane, seeds)))


def test_events_of_the_cohort_pass() -> None:
    require_belonging(COHORT, [rung(), rung("b", 1, 30, ("a",)), ended("a", 0, 1), Done()])


@pytest.mark.parametrize(
    "message",
    [
        rung("c"),
        rung(seed=2),
        rung(step=11),
        rung(pruned=("c",)),
        ended("c", 0, 1),
        ended("a", 0),
        ended("a", 1, 0),
        ended("a", 0, 1, 2),
    ],
)
def test_event_about_something_else_is_bad_output(message: RungReached | TrialEnded) -> None:
    with pytest.raises(TrainingError, match="not of its cohort") as caught:
        require_belonging(COHORT, [message])
    assert caught.value.cause == "bad_output"
