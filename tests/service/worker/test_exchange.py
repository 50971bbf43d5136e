"""A study that people train elsewhere, driven by a runner here and trained by this test's own hands."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select

from service.db.models import TrialRow
from service.db.session import Database
from service.errors import ConflictError
from service.jobs.lease import Lease
from service.jobs.queue import Queue
from service.lanes import Completion, LaneQueue, Leased, LeaseToken, Report, Waiting
from service.settings import Settings
from service.states import JobState
from service.worker.runner import StudyRunner
from tuner.spec import StudySpec

SPEC = StudySpec(
    workload="w",
    external=True,
    num_trials=6,
    num_seeds=2,
    num_confirm_seeds=0,
    num_steps=90,
    cohort_size=6,
    threshold_low=0.1,
    threshold_high=10.0,
)


class Quiet:
    """Signals that ask for nothing."""

    def check(self) -> None:
        """Nothing happened."""


class Agent:
    """Asks for lanes and trains them, all by one name."""

    def __init__(self, database: Database, study_id: str) -> None:
        self._queue = LaneQueue(database, lease_seconds=60)
        self._study_id = study_id

    def ask(self) -> Leased | Waiting:
        return self._queue.ask(tenant_id="t", study_id=self._study_id, client_id="agent")

    def end(self, lane: Leased, **completion: Any) -> None:
        self._queue.complete(**self._named(lane), completion=Completion(**completion))

    def train(self, lane: Leased, value: float) -> None:
        for step in (0, *lane.spec.rung_steps):
            report = Report(step=step, has_value=True, value=value)
            if not self._queue.report(**self._named(lane), report=report).go_on:
                return
        self.end(lane)

    @staticmethod
    def _named(lane: Leased) -> dict[str, Any]:
        return {"tenant_id": "t", "trial_id": lane.trial_id, "token": LeaseToken.parse(lane.token)}


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.worker.exchange.POLL_SECONDS", 0.02)


def test_trial_that_is_pruned_while_its_first_seed_waits_costs_no_other_trial(
    database: Database, queue: Queue, lease_of: Callable[[StudySpec], Lease]
) -> None:
    """Seed 0 of trial 3 breaks and waits for its next try; meanwhile seed 1 has the trial pruned."""
    lease = lease_of(SPEC)
    runner = StudyRunner(
        database=database, queue=queue, lease=lease, pool=None, settings=Settings(), signals=Quiet()
    )
    ended: list[JobState | Exception] = []

    def drive() -> None:
        try:
            ended.append(runner.run())
        except Exception as error:
            ended.append(error)

    driving = threading.Thread(target=drive)
    driving.start()
    agent, broke = Agent(database, lease.study_id), False
    while driving.is_alive():
        try:
            lane = agent.ask()
        except ConflictError as study_ended:
            assert study_ended.code == "study_ended"
            driving.join(timeout=30)
            break
        if isinstance(lane, Waiting):
            driving.join(timeout=0.02)
        elif (lane.number, lane.seed) == (3, 0):
            assert not broke, "it was pruned before its second try"
            broke = True
            agent.end(lane, cause="stall", error="stood still")
        else:
            agent.train(lane, 9.0 if lane.number == 3 else 1.0 + (lane.number or 0) / 100)
    assert ended == [JobState.SUCCEEDED]
    with database.read() as session:
        found = session.execute(select(TrialRow.number, TrialRow.state, TrialRow.attempt)).all()
    states = {row.number: row.state for row in found}
    assert set(states.values()) <= {"complete", "pruned"} and states[3] == "pruned"
    assert {row.attempt for row in found} == {0}
