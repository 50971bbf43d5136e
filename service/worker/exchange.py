"""The training side of a study that people train elsewhere: lanes are put out, and what comes back is told.

The worker holds the study's lease and decides what is to be trained; whoever asks over HTTP leases a lane and trains it
(`service.lanes`). This side only waits: it looks at the lanes a few times a second, ends leases that have run out, and
yields the same events as a training process would, so that nothing else needs to know who trains.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy.orm import Session

from service.errors import TrainingError
from service.jobs.lease import Lease
from service.lanes import LaneState, LaneStatus, close_lanes, insert_lanes, load_lanes, reap_lanes
from service.launchers.protocol import Message, Ready
from service.settings import Settings
from service.worker import ledger
from service.worker.lane_news import Told, news
from service.worker.lane_reference import ENOUGH_NORMS, lane_reference, told_norms
from service.worker.side import CohortTask, Count
from service.worker.stored import load_study
from service.worker.training import Signals
from service.worker.transactions import Transactions
from tuner.evidence import Reference, Stage
from tuner.search.confirmation import Asked
from tuner.spec import OFF_SETTING
from tuner.training.cohort import Cohort, EngineChosen, ProbeMeasured

#: How often the lanes are looked at, in seconds.
POLL_SECONDS = 0.25
_ENDED = (LaneStatus.COMPLETE, LaneStatus.DIVERGED, LaneStatus.PRUNED)


class Exchange:
    """Puts lanes out and waits for them; a `service.worker.side.TrainingSide`.

    Args:
        transactions: of the study's lease.
        lease: of the study's job.
        settings: limits.
        signals: looked at between two looks at the lanes.

    Attributes:
        ready: None: there is no process here.
    """

    def __init__(
        self, transactions: Transactions, lease: Lease, *, settings: Settings, signals: Signals
    ) -> None:
        self.ready: Ready | None = None
        self._transactions = transactions
        self._lease = lease
        self._settings = settings
        self._signals = signals
        self._reaped_at = 0.0

    @property
    def device_seconds(self) -> float:
        """Nothing is held here: people train on devices of their own."""
        return 0.0

    def measure(self, request: Mapping[str, Any]) -> Iterator[Sequence[Message]]:
        """Wait for norms of the runs without clipping.

        Args:
            request: unused: the study says it all.

        Yields:
            The probe's result.

        Raises:
            TrainingError: if every such run failed.
            ProbeError: if no norm was reported, and the study gives no range of thresholds.
        """
        del request
        yield [ProbeMeasured(reference=self._measure())]

    def train(self, task: CohortTask, count: Count) -> Iterator[Sequence[Message]]:
        """Put out a cohort's lanes, and yield what becomes of them.

        Args:
            task: the cohort.
            count: unused: whoever trains a lane tries again.

        Yields:
            At least one event.

        Raises:
            TrainingError: if a lane failed for good; the lanes of the other trials are kept.
        """
        del count
        yield from self._train(task.cohort)

    def stop(self) -> None:
        """Nothing runs here; leases of a study that has ended are refused by the API."""

    def drop(self) -> None:
        """Nothing runs here."""

    def _measure(self) -> Reference:
        """Wait for norms of the runs without clipping, which are trials of the study like any other.

        Raises:
            TrainingError: if every such run failed.
            ProbeError: if one ended without a norm.
        """
        spec = self._transactions.read(lambda session: load_study(session, self._lease.study_id)).spec
        if spec.threshold_low is not None:
            return Reference(l2_norm=None, max_abs=None, num_batches=0)
        asked = Asked(settings=(OFF_SETTING,), stage=Stage.SEARCH, seeds=spec.seeds)

        def put_out(session: Session) -> list[str]:
            ledger.insert_trials(session, self._lease, asked, cohort=0)
            session.flush()
            study = load_study(session, self._lease.study_id)
            ids = [trial.id for trial in study.trials if trial.cohort == 0]
            self._insert(session, ids, spec.seeds)
            return ids

        ids = self._transactions.hold(put_out)
        while True:
            lanes = self._look(ids, with_norms=True)
            self._require_none_failed(lanes)
            if len(told_norms(lanes)) >= ENOUGH_NORMS or any(lane.state in _ENDED for lane in lanes):
                return lane_reference(lanes)
            time.sleep(POLL_SECONDS)

    def _train(self, cohort: Cohort) -> Iterator[Sequence[Message]]:
        ids = [trial.id for trial in cohort.trials]
        self._transactions.hold(lambda session: self._insert(session, ids, cohort.seeds))
        yield [EngineChosen(path="external", num_lanes=1, reason="trained by whoever asks for a lane")]
        told = Told()
        while len(told.trials) < len(ids):
            lanes = self._look(ids, with_norms=False)
            self._require_none_failed(lanes)
            events, now_told = news(cohort, lanes, told)
            if now_told.trials != told.trials:
                # Norms are most of what is stored, and only a result needs them.
                events, now_told = news(cohort, self._read(ids, with_norms=True), told)
            told = now_told
            yield events
            if len(told.trials) < len(ids):
                time.sleep(POLL_SECONDS)

    def _insert(self, session: Session, trial_ids: Sequence[str], seeds: Sequence[int]) -> None:
        insert_lanes(
            session,
            study_id=self._lease.study_id,
            tenant_id=self._lease.tenant_id,
            trial_ids=trial_ids,
            seeds=seeds,
        )

    def _look(self, trial_ids: Sequence[str], *, with_norms: bool) -> tuple[LaneState, ...]:
        """The lanes as they are, after leases that ran out were ended."""
        self._signals.check()

        if time.monotonic() - self._reaped_at >= self._settings.lease_seconds / 10:
            self._reaped_at = time.monotonic()
            study_id, max_lost = self._lease.study_id, self._settings.max_lost
            self._transactions.hold(lambda session: reap_lanes(session, max_lost=max_lost, study_id=study_id))
        return self._read(trial_ids, with_norms=with_norms)

    def _read(self, trial_ids: Sequence[str], *, with_norms: bool) -> tuple[LaneState, ...]:
        study_id = self._lease.study_id
        return self._transactions.read(
            lambda session: load_lanes(session, study_id, trial_ids, with_norms=with_norms)
        )

    def _require_none_failed(self, lanes: Sequence[LaneState]) -> None:
        """End the trial of a lane that nobody will train any more.

        Raises:
            TrainingError: if there is one.
        """
        failed = next((lane for lane in lanes if lane.state is LaneStatus.FAIL), None)
        if failed is None:
            return
        self._transactions.hold(
            lambda session: close_lanes(session, study_id=self._lease.study_id, trial_id=failed.trial_id)
        )
        reason = failed.last_error or "no error was told"
        raise TrainingError(
            f"the training with seed {failed.seed} failed: {reason}",
            cause=failed.last_cause or "bug",
            trial_id=failed.trial_id,
            is_final=True,
        )
