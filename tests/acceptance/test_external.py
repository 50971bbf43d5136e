"""Studies that people train elsewhere: real processes on both databases, and trainings in here that ask and tell."""

from __future__ import annotations

import math
import os
import random
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from acceptance.deployment import Deployment, wait_for

from service.client import Client, LeasedTrial
from service.db.models import LaneRow, TrialResultRow, TrialRow
from service.db.session import Database
from tuner.errors import TrialPruned

#: Seconds of work: heavy-tailed gradients, where clipping is worth a lot.
STUDY = {
    "workload": "heavy tails",
    "external": True,
    "objective": "distance",
    "num_trials": 8,
    "num_seeds": 2,
    "num_confirm_seeds": 8,
    "num_steps": 200,
    "cohort_size": 6,
}
DIMENSIONS, RATE = 5, 0.05


@pytest.fixture
def deployment(tmp_path: Path, database_url: str) -> Iterator[Deployment]:
    with Deployment(tmp_path / "home", database_url) as started:
        started.start_api()
        yield started


@pytest.fixture(scope="module")
def on_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """What does not depend on the database is tested on one, and one service; each test has a study of its own."""
    folder = tmp_path_factory.mktemp("external")
    # Equal questions are asked again and again: none may begin with what the one before it found.
    with Deployment(folder / "home", f"sqlite:///{folder / 'cliptune.db'}", warm_start=False) as started:
        started.start_api()
        yield started


def worker_of(deployment: Deployment) -> subprocess.Popen[bytes]:
    """The worker that runs, or a new one where a test has killed it."""
    _api, *workers = deployment.processes
    return next((each for each in workers if each.poll() is None), None) or deployment.start_worker()


def train(trial: LeasedTrial, *, told_norms: bool = True) -> float:
    """SGD towards 0 on a bowl whose gradient noise has no variance; the distance that is left."""
    draws = random.Random(trial.seed)
    weights, norms = [10.0] * DIMENSIONS, []
    for step in range(trial.num_steps + 1):
        if step in (0, *trial.rung_steps):
            distance = math.dist(weights, [0.0] * DIMENSIONS)
            trial.report(step, distance, norms=norms if told_norms else ())
            norms = []
        gradient = [weight + draws.gauss(0, 1) / max(abs(draws.gauss(0, 1)), 1e-3) for weight in weights]
        norm = math.hypot(*gradient)
        norms.append(norm)
        factor = min(1.0, (trial.setting.threshold or math.inf) / norm)
        weights = [weight - RATE * factor * slope for weight, slope in zip(weights, gradient, strict=True)]
    return distance


def work(client: Client, study_id: str, name: str, trained: list[tuple[str, int]], **options: bool) -> None:
    """An agent: ask, train and tell until the study has ended."""
    while (trial := client.ask(study_id, client_id=name)) is not None:
        with trial:
            trained.append((trial.trial_id, trial.seed))
            train(trial, **options)


def run_agents(deployment: Deployment, study_id: str, count: int, **options: bool) -> list[tuple[str, int]]:
    trained: list[tuple[str, int]] = []
    agents = [
        threading.Thread(
            target=work, args=(deployment.client(), study_id, f"agent {number}", trained), kwargs=options
        )
        for number in range(count)
    ]
    for each in agents:
        each.start()
    for each in agents:
        each.join(timeout=240)
        assert not each.is_alive(), deployment.logs()
    return trained


def test_agents_find_that_clipping_pays(deployment: Deployment) -> None:
    deployment.start_worker()
    client = deployment.client()
    study = client.create_study(STUDY)
    trained = run_agents(deployment, study.id, 3)
    done = client.get_study(study.id)
    assert done.state == "succeeded", done.error
    found = done.result
    assert found is not None
    assert (found.verdict, found.objective, found.workload) == ("clip", "distance", "heavy tails")
    assert found.num_fresh_seeds == 8
    assert found.kappa is not None and found.norms is not None
    assert found.clip_fraction is not None and 0 < found.clip_fraction < 1
    assert len(trained) == len(set(trained)), "no lane was trained twice"
    trials = client.list_trials(study.id)
    assert {trial.state for trial in trials} <= {"complete", "pruned"}
    assert any(trial.state == "pruned" and len(trial.lanes) < 2 for trial in trials), "bad ones end early"
    events = {event.kind for event in client.events(study.id)}
    assert {"probe", "cohort", "rung", "trial", "recommendation", "succeeded"} <= events
    assert client.ask(study.id) is None


def test_study_with_a_range_needs_no_norms(on_sqlite: Deployment) -> None:
    worker_of(on_sqlite)
    client = on_sqlite.client()
    study = client.create_study(STUDY | {"threshold_low": 1.0, "threshold_high": 100.0})
    run_agents(on_sqlite, study.id, 2, told_norms=False)
    done = client.get_study(study.id)
    assert done.state == "succeeded", done.error
    assert done.result is not None
    assert (done.result.kappa, done.result.clip_fraction, done.result.norms) == (None, None, None)
    assert done.result.verdict in ("clip", "inconclusive")


def test_study_without_norms_or_range_says_what_is_missing(on_sqlite: Deployment) -> None:
    worker_of(on_sqlite)
    client = on_sqlite.client()
    study = client.create_study(STUDY)
    run_agents(on_sqlite, study.id, 1, told_norms=False)
    done = client.get_study(study.id)
    assert done.state == "failed"
    assert done.error is not None
    assert "threshold_low" in done.error.detail and "Traceback" not in done.error.detail


def test_study_survives_its_worker(on_sqlite: Deployment) -> None:
    """The lanes are rows: whoever takes the study over finds them as they are."""
    first = worker_of(on_sqlite)
    client = on_sqlite.client()
    study = client.create_study(STUDY)
    trial = client.ask(study.id, client_id="slow")
    assert trial is not None
    first.kill()
    first.wait()
    trial.report(0, 20.0)
    worker_of(on_sqlite)
    with trial:
        train_rest = dict.fromkeys(trial.rung_steps, 20.0)
        for step, value in train_rest.items():
            trial.report(step, value, norms=[1.0, 2.0, 3.0])
    trained = run_agents(on_sqlite, study.id, 2)
    assert client.get_study(study.id).state == "succeeded", on_sqlite.logs()
    assert (trial.trial_id, trial.seed) not in trained
    assert one_result_each(on_sqlite.database(), study.id)


def test_cancelled_study_stops_its_agents(on_sqlite: Deployment) -> None:
    worker_of(on_sqlite)
    client = on_sqlite.client()
    study = client.create_study(STUDY)
    trial = client.ask(study.id)
    assert trial is not None
    client.cancel_study(study.id)
    wait_for(lambda: client.get_study(study.id).done, "the cancel")

    def is_told() -> bool:
        try:
            trial.report(1, 1.0)
        except TrialPruned as stop:
            return "cancelled" in stop.reason
        return False

    wait_for(is_told, "the agent's stop")
    assert client.ask(study.id) is None


KILLED = """
import sys, time
from service.client import Client
with Client(sys.argv[1], sys.argv[2]) as client:
    trial = client.ask(sys.argv[3], client_id="victim")
    trial.report(0, 20.0)
    print(trial.trial_id, trial.seed, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize(
    "database_url", [pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True
)
def test_lane_of_a_killed_process_goes_to_another(deployment: Deployment) -> None:
    deployment.start_worker()
    client = deployment.client()
    study = client.create_study(STUDY)
    key = (deployment.home / "key").read_text().strip()
    victim = subprocess.Popen(
        [sys.executable, "-c", KILLED, client.url, key, study.id], stdout=subprocess.PIPE, text=True
    )
    assert victim.stdout is not None
    trial_id, seed = victim.stdout.readline().split()
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    victim.stdout.close()
    trained = run_agents(deployment, study.id, 2)
    assert (trial_id, int(seed)) in trained
    assert client.get_study(study.id).state == "succeeded"
    with deployment.database().read() as session:
        lane = session.get_one(LaneRow, (trial_id, int(seed)))
        assert (lane.lost_count, lane.state) == (1, "complete")


@pytest.mark.parametrize("how", ["raises", "out of memory"])
def test_training_that_fails_costs_one_trial(on_sqlite: Deployment, how: str) -> None:
    worker_of(on_sqlite)
    client = on_sqlite.client()
    study = client.create_study(STUDY | {"threshold_low": 1.0, "threshold_high": 100.0})
    bad: list[str] = []

    def fail() -> None:
        raise MemoryError("no room") if how == "out of memory" else RuntimeError("broken data")

    def agent() -> None:
        while (trial := client.ask(study.id, client_id=str(uuid.uuid4()))) is not None:
            if trial.number == 3 or trial.trial_id in bad:
                bad.append(trial.trial_id)
                with pytest.raises((MemoryError, RuntimeError)), trial:
                    fail()
            else:
                with trial:
                    train(trial)

    run_thread(agent, on_sqlite)
    assert client.get_study(study.id).state == "succeeded", client.get_study(study.id).error
    failed = [trial for trial in client.list_trials(study.id) if trial.state == "fail"]
    assert [trial.number for trial in failed] == [3]
    assert (
        failed[0].error is not None
        and ("no room" if how == "out of memory" else "broken data") in failed[0].error
    )
    # Each of the two seeds is tried on its own: once without memory, three times with a bug.
    assert len(bad) in ((1, 2) if how == "out of memory" else (3, 4, 5, 6))


def run_thread(target: Callable[[], None], deployment: Deployment) -> None:
    thread = threading.Thread(target=target)
    thread.start()
    thread.join(timeout=240)
    assert not thread.is_alive(), deployment.logs()


def one_result_each(database: Database, study_id: str) -> bool:
    with database.read() as session:
        lanes = session.query(LaneRow.trial_id, LaneRow.seed).filter_by(study_id=study_id).all()
        results = session.query(TrialResultRow.trial_id).join(TrialRow).filter_by(study_id=study_id).all()
    return len(lanes) == len(set(lanes)) and len(results) == len(set(results)) > 0


def test_external_study_does_not_keep_a_worker_from_training(on_sqlite: Deployment) -> None:
    worker_of(on_sqlite)
    client = on_sqlite.client()
    waiting = client.create_study(STUDY)
    wait_for(lambda: client.get_study(waiting.id).state == "running", "the external study")
    trained = client.create_study(
        {"workload": "digits-mlp", "num_trials": 3, "num_seeds": 2, "num_steps": 20, "num_confirm_seeds": 0}
    )
    wait_for(lambda: client.get_study(trained.id).done, "the study that the worker trains")
    assert client.get_study(trained.id).state == "succeeded"
    assert client.get_study(waiting.id).state == "running"
    client.cancel_study(waiting.id)
