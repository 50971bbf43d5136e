"""Workers that die, freeze, stop or are told to stop: the study ends as if nothing had happened.

Real processes and signals, on SQLite and on PostgreSQL.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from acceptance.deployment import (
    LONG_STUDY,
    SHORT_STUDY,
    STUDY,
    Deployment,
    child_pids,
    wait_for,
    wait_until_done,
)
from liveness import is_running
from postgres import private_cluster
from sqlalchemy import func, make_url, select

from service.db.models import JobEventRow, JobRow, StudyRow, TrialResultRow, TrialRow
from service.errors import UnavailableError
from service.schemas import EventOut, RecommendationOut, StudyOut
from service.states import JobState
from tuner.evidence import TrialState

#: A study whose last rung takes seconds, trained the same way whatever else the machine does.
RESUMED_STUDY = STUDY | {"num_trials": 4, "num_confirm_seeds": 0, "num_steps": 1350, "lanes": 8}
#: What identifies a recommendation apart from ids and times.
EVIDENCE = (
    "verdict",
    "setting",
    "interval",
    "best",
    "value",
    "off",
    "difference",
    "clip_fraction",
    "norms",
    "kappa",
    "num_fresh_seeds",
    "failures",
    "search_end",
)


# What fences and leases do is the same on both engines, and `tests/contracts` proves it on both; a whole deployment
# is killed on both, and otherwise each of its faults is tried on the engine on which it is the harder one.
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
on_postgres = pytest.mark.parametrize(
    "database_url", [pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True
)


@pytest.fixture
def deployment(tmp_path: Path, database_url: str) -> Iterator[Deployment]:
    # Equal studies are compared: none may begin with what the one before it found.
    with Deployment(tmp_path / "home", database_url, warm_start=False) as running:
        running.start_api()
        yield running


def evidence(found: RecommendationOut | None) -> dict[str, object]:
    assert found is not None
    return {name: getattr(found, name) for name in EVIDENCE}


def wait_for_results(deployment: Deployment, study: StudyOut, count: int) -> set[str]:
    """Ids of the trials that have a result, once there are so many."""
    database = deployment.database()

    def ended() -> set[str]:
        with database.read() as session:
            query = select(TrialResultRow.trial_id).join(TrialRow, TrialRow.id == TrialResultRow.trial_id)
            return set(session.scalars(query.where(TrialRow.study_id == study.id)))

    return wait_for(lambda: ended() if len(ended()) >= count else None, f"{count} results") or set()


def assert_one_result_per_trial(deployment: Deployment, study: StudyOut) -> None:
    with deployment.database().read() as session:
        trials = session.scalars(select(TrialRow).where(TrialRow.study_id == study.id)).all()
        assert {trial.number for trial in trials} == set(range(len(trials)))
        searched = [trial for trial in trials if trial.stage == "search"]
        assert study.num_trials_ended == len(searched) <= study.spec["num_trials"]
        assert not [trial for trial in trials if TrialState(trial.state).is_open]
        results = select(func.count()).select_from(TrialResultRow)
        assert session.scalar(results) == sum(trial.state != "fail" for trial in trials)


def test_killed_worker_loses_nothing(deployment: Deployment) -> None:
    client = deployment.client()
    first = deployment.start_worker()
    # A fixed number: how many lanes train together, which decides about rounding, must not depend on measured times.
    asked = LONG_STUDY | {"lanes": 8}
    study = client.create_study(asked)
    kept = wait_for_results(deployment, study, 1)
    trainers = child_pids(first.pid)
    assert trainers, "the worker drives a training process"
    with deployment.database().read() as session:
        fences = dict(session.execute(select(TrialResultRow.trial_id, TrialResultRow.fence)).all())
    os.kill(first.pid, signal.SIGKILL)
    killed_at = time.monotonic()
    deployment.start_worker()

    def taken_over() -> bool:
        with deployment.database().read() as session:
            job = session.get_one(JobRow, session.get_one(StudyRow, study.id).job_id)
            return job.fence == 2 and job.state == JobState.RUNNING

    wait_for(taken_over, "the takeover", seconds=14)
    # TTL 4 s + 10 s, counted from the last renewal, which was before the kill.
    assert time.monotonic() - killed_at < 14
    wait_for(lambda: not any(map(is_running, trainers)), "the end of the dead worker's training", seconds=10)
    ended = wait_until_done(client, study)
    assert ended.state is JobState.SUCCEEDED
    assert_one_result_per_trial(deployment, ended)
    with deployment.database().read() as session:
        after = dict(session.execute(select(TrialResultRow.trial_id, TrialResultRow.fence)).all())
    assert kept <= after.keys()
    assert {trial: after[trial] for trial in fences} == fences, "finished trials were not trained again"
    undisturbed = wait_until_done(client, client.create_study(asked))
    assert evidence(ended.result) == evidence(undisturbed.result)


def lanes_of(deployment: Deployment, study: StudyOut) -> dict[int, list[dict[str, object]]]:
    """Every result by the trial's number, without the wall time."""
    with deployment.database().read() as session:
        query = select(TrialRow.number, TrialResultRow.lanes).join(
            TrialResultRow, TrialRow.id == TrialResultRow.trial_id
        )
        rows = session.execute(query.where(TrialRow.study_id == study.id)).all()
    return {number: [lane | {"seconds": 0.0} for lane in lanes] for number, lanes in rows}


def wait_for_checkpoint(deployment: Deployment, study: StudyOut, index: int) -> None:
    """Wait until a cohort has the checkpoint of a rung; it then trains towards the next."""
    database = deployment.database()

    def is_saved() -> bool:
        query = select(JobEventRow.payload).where(
            JobEventRow.study_id == study.id, JobEventRow.kind == "checkpoint"
        )
        with database.read() as session:
            return index in [payload["index"] for payload in session.scalars(query)]

    wait_for(is_saved, f"the checkpoint of rung {index + 1}")


@on_sqlite
def test_killed_between_rungs_it_goes_on_from_the_checkpoint(deployment: Deployment) -> None:
    """The training process, then the worker; each time less is trained again than a start from step 0 would need."""
    client = deployment.client()
    worker = deployment.start_worker()
    undisturbed = wait_until_done(client, client.create_study(RESUMED_STUDY))
    expected = lanes_of(deployment, undisturbed)
    rungs = (150, 450, 1350)
    for killed in ("training process", "worker"):
        study = client.create_study(RESUMED_STUDY)
        wait_for_checkpoint(deployment, study, 1)
        if killed == "worker":
            os.kill(worker.pid, signal.SIGKILL)
            deployment.start_worker()
        else:
            os.kill(child_pids(worker.pid)[0], signal.SIGKILL)
        ended = wait_until_done(client, study)
        assert ended.state is JobState.SUCCEEDED
        assert lanes_of(deployment, ended) == expected
        assert evidence(ended.result) == evidence(undisturbed.result)
        events = list(client.events(study.id))
        (resumed,) = [each.payload for each in events if each.kind == "resumed"]
        assert (resumed["index"], resumed["step"]) == (1, rungs[1])
        assert resumed["lane_steps"] >= rungs[1] * 2 * 2
        assert [each.payload["step"] for each in events if each.kind == "checkpoint"] == list(rungs[:2])
        assert_progress_never_falls_behind(events, resumed["lane_steps"])
    assert ended.result is not None
    assert ended.result.provenance["engine"] == "lanes"
    wait_for(lambda: not any((deployment.home / "checkpoints").iterdir()), "the end of the checkpoints")


def assert_progress_never_falls_behind(events: list[EventOut], lane_steps: int) -> None:
    """What was resumed from was not trained again."""
    kinds = [each.kind for each in events]
    behind = events[kinds.index("resumed") :]
    assert all(each.payload["lane_steps"] > lane_steps for each in behind if each.kind == "progress")


@on_postgres
def test_sigterm_releases_and_another_worker_goes_on_at_once(deployment: Deployment) -> None:
    client = deployment.client()
    first = deployment.start_worker()
    study = client.create_study(LONG_STUDY)
    wait_for_results(deployment, study, 1)
    trainers = child_pids(first.pid)
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=30) == 0
    assert not any(map(is_running, trainers))
    with deployment.database().read() as session:
        job = session.get_one(JobRow, session.get_one(StudyRow, study.id).job_id)
        assert (job.state, job.owner, job.attempt, job.lost_count) == ("queued", None, 0, 0)
    assert [worker.alive for worker in client.list_workers()] == [False]
    deployment.start_worker()
    ended = wait_until_done(client, study)
    assert ended.state is JobState.SUCCEEDED
    assert_one_result_per_trial(deployment, ended)
    # The workers chose for themselves how many lanes to train together, and said so.
    chosen = [each.payload for each in client.events(study.id) if each.kind == "engine"]
    assert all(each["lanes_per_second"] and each["reason"] for each in chosen)
    assert ended.result is not None
    paths = {each["path"] for each in chosen}
    assert ended.result.provenance["engine"] == " and ".join(sorted(paths))


@on_sqlite
def test_frozen_worker_wakes_up_and_changes_nothing(deployment: Deployment) -> None:
    client = deployment.client()
    zombie = deployment.start_worker()
    study = client.create_study(LONG_STUDY)
    wait_for_results(deployment, study, 1)
    freeze(deployment, zombie)
    deployment.start_worker()
    ended = wait_until_done(client, study)
    assert ended.state is JobState.SUCCEEDED
    before = snapshot(deployment, study)
    zombie.send_signal(signal.SIGCONT)
    wait_for(lambda: "lease_lost" in deployment.logs(), "the zombie noticing")
    time.sleep(1.0)
    assert snapshot(deployment, study) == before
    assert_one_result_per_trial(deployment, ended)
    assert zombie.poll() is None, "a lost lease is a normal outcome"
    again = wait_until_done(client, client.create_study(SHORT_STUDY))
    assert again.state is JobState.SUCCEEDED


def freeze(deployment: Deployment, process: subprocess.Popen[bytes]) -> None:
    """Stop it between two transactions: frozen inside one, it would keep SQLite's locks for ever."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        process.send_signal(signal.SIGSTOP)
        if is_writable(deployment):
            return
        process.send_signal(signal.SIGCONT)
        time.sleep(0.05)
    raise AssertionError("the worker was in the middle of a transaction each time")


def is_writable(deployment: Deployment) -> bool:
    if not deployment.database_url.startswith("sqlite"):
        return True
    file = make_url(deployment.database_url).database
    assert file is not None
    with closing(sqlite3.connect(file, timeout=1.0, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            return False
        connection.execute("ROLLBACK")
        return True


def snapshot(deployment: Deployment, study: StudyOut) -> tuple[object, ...]:
    with deployment.database().read() as session:
        job = session.get_one(JobRow, session.get_one(StudyRow, study.id).job_id)
        results = session.execute(select(TrialResultRow.trial_id, TrialResultRow.fence)).all()
        events = session.scalar(
            select(func.count()).select_from(JobEventRow).where(JobEventRow.study_id == study.id)
        )
        return job.state, job.fence, sorted(map(tuple, results)), events


@on_postgres
def test_cancel_stops_the_training(deployment: Deployment) -> None:
    client = deployment.client()
    worker = deployment.start_worker()
    study = client.create_study(LONG_STUDY | {"num_steps": 200_000})
    wait_for(lambda: client.get_study(study.id).state is JobState.RUNNING, "the start")
    wait_for(lambda: any(each.kind == "progress" for each in events_so_far(deployment, study)), "training")
    trainers = set(child_pids(worker.pid))
    client.cancel_study(study.id)
    ended = wait_until_done(client, study)
    assert ended.state is JobState.CANCELLED
    assert ended.error is not None and ended.result is None
    wait_for(lambda: not (deployment.home / "checkpoints" / study.id).exists(), "the end of the checkpoints")
    assert_no_open_trial(deployment, study)
    # One warm process may wait for the next study; those that were there are gone.
    wait_for(lambda: not any(map(is_running, trainers)), "the end of the training", seconds=10)
    assert wait_until_done(client, client.create_study(SHORT_STUDY)).state is JobState.SUCCEEDED


def events_so_far(deployment: Deployment, study: StudyOut) -> list[JobEventRow]:
    with deployment.database().read() as session:
        return list(session.scalars(select(JobEventRow).where(JobEventRow.study_id == study.id)))


def assert_no_open_trial(deployment: Deployment, study: StudyOut) -> None:
    with deployment.database().read() as session:
        states = session.scalars(select(TrialRow.state).where(TrialRow.study_id == study.id)).all()
        assert not any(TrialState(state).is_open for state in states)


def test_killed_serve_takes_its_worker_and_training_along(tmp_path: Path, sqlite_url: str) -> None:
    with Deployment(tmp_path / "home", sqlite_url) as deployment:
        server = deployment.start("serve")
        wait_for(lambda: deployment.is_up(server), "the API")
        client = deployment.client()
        wait_for(lambda: any(worker.alive for worker in deployment.list_workers()), "the worker")
        study = client.create_study(LONG_STUDY | {"num_steps": 200_000})
        wait_for(lambda: client.get_study(study.id).state is JobState.RUNNING, "the start")
        family = descendants(server)
        assert len(family) >= 2, "a worker and its training process"
        server.kill()
        server.wait()
        wait_for(lambda: not any(map(is_running, family)), "the end of all", seconds=40)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_stopped_serve_leaves_nothing_behind(tmp_path: Path, sqlite_url: str, stop: signal.Signals) -> None:
    with Deployment(tmp_path / "home", sqlite_url) as deployment:
        server = deployment.start("serve")
        wait_for(lambda: deployment.is_up(server), "the API")
        wait_for(lambda: any(worker.alive for worker in deployment.list_workers()), "the worker")
        family = descendants(server)
        server.send_signal(stop)
        assert server.wait(timeout=40) == 0
        assert not any(map(is_running, family))
        assert not (deployment.home / "service.json").exists()


def descendants(process: subprocess.Popen[bytes]) -> list[int]:
    found, queue = [], [process.pid]
    while queue:
        children = child_pids(queue.pop())
        found += children
        queue += children
    return found


@pytest.mark.postgres
def test_crashed_postgresql_costs_nobody_anything(tmp_path: Path, postgres_programs: Path) -> None:
    """The server is killed twice in mid-study: the API says 503, the worker waits, and no trial is charged."""
    with (
        private_cluster(postgres_programs) as cluster,
        Deployment(tmp_path / "home", cluster.url) as deployment,
    ):
        deployment.start_api()
        deployment.start_worker()
        client = deployment.client()
        study = client.create_study(LONG_STUDY)
        for results in (1, 2):
            wait_for_results(deployment, study, results)
            cluster.stop("immediate")
            with pytest.raises(UnavailableError, match="database") as caught:
                client.get_study(study.id)
            assert caught.value.status == 503
            cluster.start()
        ended = wait_until_done(client, study)
        assert ended.state is JobState.SUCCEEDED
        assert_one_result_per_trial(deployment, ended)
        with deployment.database().read() as session:
            trials = session.scalars(select(TrialRow).where(TrialRow.study_id == study.id)).all()
            assert {(trial.attempt, trial.lost_count) for trial in trials} == {(0, 0)}
