"""Drive one study under one lease: probe, cohorts, recommendation.

`StudyRunner.run` reads the study back from its rows before every decision, so a runner that takes a study
over does what the one before it would have done: it finishes the open trials, then asks for more. Between two
messages of the training process it looks at its `Signals`; losing the lease, a cancel and a shutdown arrive as
exceptions that only `service.worker.worker` catches.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from service import recommendations
from service.db.models import WorkloadRow
from service.db.session import Database
from service.errors import LeaseLostError, TrainingError
from service.jobs.lease import Lease
from service.jobs.queue import Queue
from service.launchers.protocol import Message, Ready
from service.settings import Settings
from service.states import JobState
from service.worker import checkpoints, ledger
from service.worker.cohort_run import ReplanError
from service.worker.endings import StudyFailedError, refuse_hopeless
from service.worker.exchange import Exchange
from service.worker.pool import SlotPool
from service.worker.showing import Showing
from service.worker.side import Counted, TrainingSide
from service.worker.slot_training import SlotTraining
from service.worker.stored import StoredStudy, load_study
from service.worker.tasks import StepCount, cohort_task
from service.worker.training import TICK_SECONDS, Signals
from service.worker.transactions import Transactions
from tuner.errors import ProbeError
from tuner.evidence import Reference, Trial
from tuner.search.confirmation import Asked
from tuner.search.planning import plan_cohort
from tuner.search.recommendation import recommend
from tuner.search.settling import settled
from tuner.snippets import snippets
from tuner.spec import EXTERNAL_OBJECTIVE, StudySpec
from tuner.training.cohort import (
    CheckpointFailed,
    CheckpointSaved,
    Cohort,
    EngineChosen,
    ProbeMeasured,
    Progressed,
    Resumed,
    RungReached,
    TrialEnded,
)

log = structlog.get_logger(__name__)

#: What a training tells about a cohort and the ledger writes down, whenever it comes.
_Fact = EngineChosen | Resumed | RungReached | TrialEnded | CheckpointSaved | CheckpointFailed

#: A progress event is written at most this often, and not less often than the second figure, in seconds.
_PROGRESS_SECONDS = (1.0, 15.0)


class StudyRunner:
    """Runs one study to its recommendation.

    Args:
        database: for reading.
        queue: every write goes through its `held`.
        lease: of the study's job.
        pool: the worker's slots, which the study has entered; None for a study whose trials are trained elsewhere.
        settings: limits and times.
        signals: looked at between messages.
        functions: names of the workloads that train with people's own loop.
        on_steps: told how many optimizer steps were taken, over all lanes, each time that some were.
    """

    def __init__(
        self,
        *,
        database: Database,
        queue: Queue,
        lease: Lease,
        pool: SlotPool | None,
        settings: Settings,
        signals: Signals,
        functions: Collection[str] = (),
        on_steps: Callable[[int], None] = lambda num_steps: None,
    ) -> None:
        self._queue = queue
        self._lease = lease
        self._settings = settings
        self._signals = signals
        self._transactions = Transactions(
            database, queue, lease, patience_seconds=settings.lease_seconds, signals=signals
        )
        self._training: TrainingSide
        if pool is None:
            self._training = Exchange(self._transactions, lease, settings=settings, signals=signals)
        else:
            self._training = SlotTraining(
                pool, lease.study_id, settings=settings, signals=signals, on_ready=self._tell_ready
            )
        self._functions = functions
        self._on_steps = on_steps
        self._steps = StepCount()
        self._seconds_written = 0.0
        self._showing = Showing(settings.monitor, study_id=lease.study_id)
        self._progress_written = 0.0
        self._started = time.monotonic()

    def run(self) -> JobState:
        """Work until the study is done.

        Returns:
            `JobState.SUCCEEDED`; the recommendation's row and the job's end are one transaction.

        Raises:
            LeaseLostError: another worker may have the study; nothing more may be written.
            CancelRequestedError: the study was cancelled.
            ShutdownRequestedError: the worker is stopping.
            StudyFailedError: too many trials failed, or the probe never worked.
        """
        try:
            return self._run()
        except LeaseLostError:
            raise
        except Exception:
            # However it ends: devices were held for it.
            self._record_device_time()
            raise

    def _run(self) -> JobState:
        study = self._load()
        reference = study.reference or self._probe(study.spec)
        while True:
            study = self._load()
            spec, trials = study.spec, study.trials
            limit = self._settings.max_failed_trials
            refuse_hopeless(trials, num_trials=spec.num_trials, limit=limit, last_error=self._last_error)
            self._showing.expect(trials, partial(self._objective, spec))
            # Norms that people report are not all of a run's, so equal runs are not known there.
            if not spec.external and (known := settled(trials)):
                self._write(known, max(trial.cohort for trial in trials), len(spec.rung_steps))
                continue
            cohort = plan_cohort(spec, reference, spec.parameters, trials)
            if cohort is not None and not (spec.external and study.is_off_alone):
                self._train(cohort, trials)
                continue
            asked = study.search(reference).ask()
            if asked is None:
                return self._recommend(study, reference)
            self._insert(asked, cohort=1 + max((trial.cohort for trial in trials), default=-1))

    def _record_device_time(self) -> None:
        """Write down the time since the last event, if the database answers."""
        held = self._training.device_seconds
        with suppress(SQLAlchemyError), self._queue.held(self._lease) as session:
            ledger.record_device_time(session, self._lease, held - self._seconds_written)

    def stop_training(self) -> None:
        """End the training process, if there is one; safe from any thread, twice too."""
        self._training.stop()

    def _tell_ready(self, slot: str, ready: Ready) -> None:
        payload = {
            "pid": ready.pid,
            "device": ready.device,
            "torch": ready.torch,
            "seconds": ready.seconds,
            "slot": slot,
        }
        self._transactions.hold(
            lambda session: self._queue.append_event(session, self._lease, "training_started", payload)
        )

    def _load(self) -> StoredStudy:
        return self._transactions.read(lambda session: load_study(session, self._lease.study_id))

    def _probe(self, spec: StudySpec) -> Reference:
        for attempt in range(1, self._settings.max_attempts + 1):
            try:
                reference = self._measure(spec)
            except ProbeError as error:
                raise StudyFailedError(str(error)) from error
            except TrainingError as error:
                self._drop_process(error)
                if error.is_final or attempt == self._settings.max_attempts:
                    # The lines behind it are a traceback; they are in the log.
                    first_line = str(error).partition("\n")[0]
                    raise StudyFailedError(
                        f"the probe failed {attempt} times; the last time: {first_line}"
                    ) from error
                self._pause(attempt * random.uniform(0.5, 1.0))
            else:
                return self._kept(spec, reference)
        raise AssertionError("max_attempts is at least 1")

    def _kept(self, spec: StudySpec, reference: Reference) -> Reference:
        self._transactions.hold(
            lambda session: ledger.record_reference(
                session, self._queue, self._lease, reference, spec=spec, begins_warm=self._settings.warm_start
            )
        )
        return reference

    def _measure(self, spec: StudySpec) -> Reference:
        request = {
            "kind": "probe",
            "workload": spec.workload,
            "parameters": dict(spec.parameters),
            "seeds": list(spec.seeds),
            "num_steps": spec.num_steps,
        }
        messages = [message for batch in self._training.measure(request) for message in batch]
        for message in messages:
            if isinstance(message, ProbeMeasured):
                return message.reference
        raise TrainingError("the training process ended the probe without a result", cause="bad_output")

    def _insert(self, asked: Asked, *, cohort: int) -> None:
        self._transactions.hold(
            lambda session: ledger.insert_trials(session, self._lease, asked, cohort=cohort)
        )

    def _train(self, cohort: Cohort, trials: Sequence[Trial]) -> None:
        """Train the open trials as one cohort; a broken training is counted on them, not raised."""  # noqa: DOC501
        self._steps = StepCount()
        paths = self._transactions.read(lambda session: ledger.cohort_paths(session, self._lease.study_id))
        task = cohort_task(cohort, trials, paths=paths, is_whole=cohort.workload in self._functions)
        waiting = {trial.id for trial in cohort.trials}
        open_trials = [trial for trial in trials if trial.id in waiting]
        self._transactions.hold(
            lambda session: ledger.start_cohort(session, self._queue, self._lease, cohort, open_trials)
        )
        try:
            for batch in self._training.train(task, self._count_failure):
                self._write(batch, task.number, len(cohort.rung_steps))
                waiting -= {message.trial_id for message in batch if isinstance(message, TrialEnded)}
            if waiting:
                raise TrainingError(
                    "the training process ended a cohort without all its results", cause="bad_output"
                )
            checkpoints.remove_cohort(self._settings.checkpoint_root, self._lease.study_id, task.number)
        except ReplanError:
            return
        except TrainingError as error:
            self._drop_process(error)
            blamed = [error.trial_id] if error.trial_id in waiting else sorted(waiting)
            self._pause(self._count_failure(error, [each for each in blamed if each]).delay_seconds)

    def _count_failure(self, error: TrainingError, trial_ids: Sequence[str]) -> Counted:
        """Write a broken training down."""
        jitter = random.random()
        return self._transactions.hold(
            lambda session: ledger.record_failure(
                session,
                self._queue,
                self._lease,
                trial_ids,
                error=error,
                settings=self._settings,
                jitter=jitter,
            )
        )

    def _recommend(self, study: StoredStudy, reference: Reference) -> JobState:
        spec = study.spec
        objective = self._objective(spec)
        recommendation = recommend(
            spec,
            reference,
            study.trials,
            objective=objective,
            extensions=study.extensions,
            warm_start=study.warm_settings,
        )
        paths = self._transactions.read(lambda session: ledger.engine_paths(session, self._lease.study_id))
        provenance = ledger.provenance(self._training.ready, paths, study)

        def conclude(session: Session) -> None:
            stored = recommendations.store(
                session,
                study_id=self._lease.study_id,
                tenant_id=self._lease.tenant_id,
                spec=spec,
                reference=reference,
                recommendation=recommendation,
                snippets=snippets(recommendation.setting, reference_norm=reference.median_norm),
                provenance=provenance,
            )
            payload = {
                "id": stored.id,
                "version": stored.version,
                "verdict": recommendation.verdict,
                "setting": recommendation.to_json()["setting"],
            }
            self._queue.append_event(session, self._lease, "recommendation", payload)
            self._queue.finish_in(session, self._lease, JobState.SUCCEEDED)
            ledger.record_device_time(
                session, self._lease, self._training.device_seconds - self._seconds_written
            )

        self._transactions.hold(conclude)
        return JobState.SUCCEEDED

    def _objective(self, spec: StudySpec) -> str:
        if spec.external:
            return spec.objective or EXTERNAL_OBJECTIVE
        row = self._transactions.read(lambda session: session.get(WorkloadRow, spec.workload))
        return row.objective if row is not None else "objective"

    def _last_error(self, trial: Trial) -> str:
        error = self._transactions.read(lambda session: ledger.last_error(session, trial.id))
        return error.splitlines()[0]

    def _write(self, batch: Sequence[Message], cohort: int, num_rungs: int) -> None:
        """Write a batch of training events in one transaction; progress only now and then."""
        self._on_steps(self._steps.take(batch))
        progress = [message for message in batch if isinstance(message, Progressed)][-1:]
        if progress and not self._is_progress_due():
            progress = []
        facts = [message for message in batch if isinstance(message, _Fact)]
        if not facts and not progress:
            return
        held = self._training.device_seconds

        def record(session: Session) -> None:
            for message in [*progress, *facts]:
                self._record(session, message, cohort, num_rungs)
            ledger.record_device_time(session, self._lease, held - self._seconds_written)

        self._transactions.hold(record)
        self._seconds_written = held
        self._showing.tell(facts)

    def _record(self, session: Session, message: Progressed | _Fact, cohort: int, num_rungs: int) -> None:
        """Write one event of a cohort."""
        queue, lease = self._queue, self._lease
        match message:
            case Progressed():
                ledger.record_progress(session, queue, lease, message, cohort=cohort)
            case RungReached():
                ledger.record_rung(session, queue, lease, message, cohort=cohort, num_rungs=num_rungs)
            case TrialEnded():
                ledger.record_trial(session, queue, lease, message)
            case EngineChosen():
                ledger.record_engine(session, queue, lease, message, cohort=cohort)
            case Resumed():
                ledger.record_resumed(session, queue, lease, message, cohort=cohort, num_rungs=num_rungs)
            case CheckpointSaved():
                ledger.record_checkpoint(session, queue, lease, message, cohort=cohort)
            case CheckpointFailed():
                log.warning(
                    "checkpoint failed",
                    action="checkpoint_failed",
                    job_id=lease.job_id,
                    error=message.error,
                )
                ledger.record_checkpoint_failed(session, queue, lease, message, cohort=cohort)

    def _is_progress_due(self) -> bool:
        """Once a second at first, then every hundredth of the time spent: a long study keeps few rows."""
        now = time.monotonic()
        shortest, longest = _PROGRESS_SECONDS
        due = now - self._progress_written >= min(max(shortest, (now - self._started) / 100), longest)
        if due:
            self._progress_written = now
        return due

    def _drop_process(self, error: TrainingError) -> None:
        """Let go of a broken training process.

        A process that ended because this worker stops, or lost its lease, did not break: no trial pays for it.
        """
        self._signals.check()
        log.warning(
            "training broke",
            action="training_failed",
            job_id=self._lease.job_id,
            cause=error.cause,
            error=str(error),
        )
        self._training.drop()

    def _pause(self, seconds: float) -> None:
        """Back off before the same thing is tried again, looking at the signals meanwhile."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._signals.check()
            time.sleep(TICK_SECONDS)
