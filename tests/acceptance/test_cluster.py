"""A worker on a real Ray cluster whose nodes, or head, are killed: every study finds what it finds undisturbed.

CLIPTUNE_TEST_NODE_KILLS (1) nodes are killed over CLIPTUNE_TEST_CLUSTER_STUDIES (1) studies; 20 over 10 is the count
that the documentation reports.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from acceptance.deployment import STUDY, Deployment, wait_for, wait_until_done
from ray_nodes import RayNodes
from sqlalchemy import select

from service.client import Client
from service.db.models import JobEventRow, JobRow, TrialResultRow, TrialRow
from service.db.session import Database
from service.schemas import StudyOut
from tuner import tune

NUM_KILLS = int(os.environ.get("CLIPTUNE_TEST_NODE_KILLS", "1"))
NUM_STUDIES = int(os.environ.get("CLIPTUNE_TEST_CLUSTER_STUDIES", "1"))
#: Long enough to be interrupted; lanes fixed, because `auto` measures.
QUESTION = STUDY | {"num_trials": 4, "num_steps": 1500, "lanes": 64, "cohort_size": 4}


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    """What the library finds, on one thread as the workers do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return tune(**QUESTION).to_json()
    finally:
        torch.set_num_threads(threads)


def assert_found(answer: StudyOut, expected: dict[str, Any]) -> None:
    assert answer.result is not None, answer.error
    told = answer.result.model_dump(mode="json")
    for name in ("verdict", "setting", "interval", "difference", "divergence"):
        assert told.get(name) == expected.get(name), (name, answer.id)


def started(database: Database, study_id: str) -> list[int]:
    """Ids of the training processes that a study has had, in their order."""
    with database.read() as session:
        query = select(JobEventRow.payload).where(
            JobEventRow.study_id == study_id, JobEventRow.kind == "training_started"
        )
        return [payload["pid"] for payload in session.scalars(query.order_by(JobEventRow.id))]


def is_relaunched(client: Client, database: Database, study_id: str, num_before: int) -> bool:
    return len(started(database, study_id)) > num_before or client.get_study(study_id).done


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[RayNodes]:
    with RayNodes(tmp_path) as cluster:
        cluster.have(2)
        yield cluster


@pytest.mark.timeout(300 + 120 * NUM_STUDIES)
def test_nodes_that_die_at_random_change_no_answer(
    tmp_path: Path, nodes: RayNodes, expected: dict[str, Any]
) -> None:
    chance = random.Random(7)
    settings = {
        "launcher": "ray",
        "ray_address": nodes.address,
        "ray_gpus": 0,
        "ray_slots": 2,
        "max_lost": 50,
    }
    with Deployment(tmp_path / "home", f"sqlite:///{tmp_path}/cliptune.db", **settings) as deployment:
        deployment.environment |= nodes.environment
        deployment.start_api()
        deployment.start_worker()
        client, database = deployment.client(), deployment.database()

        answers, num_killed = [], 0
        for number in range(NUM_STUDIES):
            study = client.create_study(QUESTION | {"name": f"study {number}"})
            due = NUM_KILLS * (number + 1) // NUM_STUDIES
            while not client.get_study(study.id).done:
                alive = [pid for pid in started(database, study.id) if Path(f"/proc/{pid}").exists()]
                if num_killed < due and alive:
                    time.sleep(chance.uniform(0.0, 2.0))
                    victim = chance.choice(alive)
                    if Path(f"/proc/{victim}").exists():
                        nodes.kill(nodes.node_of(victim))
                        num_killed += 1
                        # As an autoscaler would; until then the parts take turns on the node that is left.
                        nodes.have(2)
                        before = len(started(database, study.id))
                        wait_for(partial(is_relaunched, client, database, study.id, before), "the relaunch")
                time.sleep(0.1)
            answers.append(client.get_study(study.id))
        assert num_killed == NUM_KILLS
        with database.read() as session:
            trials = session.scalars(select(TrialRow)).all()
            results = {each.trial_id: each.fence for each in session.scalars(select(TrialResultRow))}
            fences = {job.study_id: job.fence for job in session.scalars(select(JobRow))}
    assert {trial.id for trial in trials} == set(results)
    assert {(trial.state in ("complete", "pruned"), trial.attempt) for trial in trials} == {(True, 0)}
    # One lease each from beginning to end: nodes die, the worker does not.
    assert set(results.values()) == set(fences.values()) == {1}
    for answer in answers:
        assert_found(answer, expected)


def test_head_that_dies_in_mid_study_and_comes_back_changes_no_answer(
    tmp_path: Path, expected: dict[str, Any]
) -> None:
    with ExitStack() as stack:
        head = stack.enter_context(RayNodes(tmp_path, head_cpus=1))
        settings = {"launcher": "ray", "ray_address": head.address, "ray_gpus": 0, "ray_slots": 1}
        url = f"sqlite:///{tmp_path}/cliptune.db"
        deployment = stack.enter_context(Deployment(tmp_path / "home", url, **settings))
        deployment.environment |= head.environment
        deployment.start_api()
        deployment.start_worker()
        client, database = deployment.client(), deployment.database()
        study = client.create_study(QUESTION)
        assert any(each.kind == "rung" for each in client.events(study.id))
        head.kill_head()
        before = started(database, study.id)
        stack.enter_context(RayNodes(tmp_path, head_cpus=1, port=int(head.address.rpartition(":")[2])))
        assert_found(wait_until_done(client, study), expected)
        assert len(started(database, study.id)) > len(before)
        with database.read() as session:
            trials = session.scalars(select(TrialRow)).all()
            results = session.scalars(select(TrialResultRow.trial_id)).all()
    # Counted as lost devices, of which a trial has several in a row, and not as its own failures.
    assert {trial.attempt for trial in trials} == {0}
    assert sorted(results) == sorted(trial.id for trial in trials)
