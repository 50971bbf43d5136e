"""Workloads of one's own through the real service: registered by the operator, submitted over HTTP, answered.

The modules are those that the documentation shows.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from acceptance.deployment import Deployment, wait_until_done
from acceptance.packages import install_package

from service.errors import ProblemError
from service.states import JobState
from tuner.evidence import TrialState

ROOT = Path(__file__).parents[2]
FAULTY = ROOT / "tests" / "service" / "launchers" / "faulty.py"
STALL_SECONDS = 20
#: `faulty.LARGE`: trials with thresholds above it misbehave.
LARGE = 4.0
STUDY = {"num_trials": 4, "num_seeds": 2, "num_confirm_seeds": 2, "num_steps": 20, "cohort_size": 4}


def documented(page: str) -> str:
    """The first block of Python of a how-to page: a whole module."""
    text = (ROOT / "docs" / "how-to" / f"{page}.md").read_text()
    found = re.search(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def with_modules(deployment: Deployment, folder: Path) -> None:
    inherited = os.environ.get("PYTHONPATH", "")
    deployment.environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), inherited]))


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A service whose workers know the documented class and function, a broken one, and one with faults."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "digits_transformer.py").write_text(documented("workload-class"))
    (folder / "train_digits.py").write_text(documented("function"))
    (folder / "faulty.py").write_text(FAULTY.read_text())
    home = tmp_path_factory.mktemp("home")
    registered = {
        "digits-transformer": "digits_transformer:DigitsTransformer",
        "digits-function": "train_digits:train",
        "faulty": "faulty:train",
        "broken": "no_such_module:train",
    }
    with Deployment(
        home / "home",
        f"sqlite:///{home / 'cliptune.db'}",
        workloads=",".join(f"{name}={target}" for name, target in registered.items()),
        stall_seconds=STALL_SECONDS,
        max_attempts=1,
        max_lost=1,
        warm_start=False,
    ) as running:
        with_modules(running, folder)
        running.start_api()
        running.start_worker()
        yield running


def test_documented_class_is_short() -> None:
    module = documented("workload-class")
    body = module[module.index("class DigitsTransformer") :]
    assert len(body.strip().splitlines()) < 40


def test_class_has_its_schema_and_is_answered(deployment: Deployment) -> None:
    client = deployment.client()
    known = {each.name: each for each in client.list_workloads()}
    schema = known["digits-transformer"].parameters
    assert schema["properties"]["width"] == {
        "type": "integer",
        "default": 32,
        "description": "Width of the model, a multiple of 4.",
        "minimum": 4,
        "maximum": 512,
    }
    with pytest.raises(ProblemError, match="width must be <= 512, got 1000"):
        client.create_study({"workload": "digits-transformer", "parameters": {"width": 1000}} | STUDY)
    study = client.create_study({"workload": "digits-transformer", "parameters": {"width": 8}} | STUDY)
    assert wait_until_done(client, study).state is JobState.SUCCEEDED, deployment.logs()
    found = client.get_recommendation(study.id)
    assert found is not None
    assert found.objective == "val_loss"
    assert found.parameters == {"width": 8, "num_layers": 2, "learning_rate": 0.003}


def test_function_is_answered_and_its_lanes_are_stored(deployment: Deployment) -> None:
    client = deployment.client()
    known = {each.name: each for each in client.list_workloads()}
    assert known["digits-function"].description == "Handwritten digits with a small convolutional net."
    study = client.create_study({"workload": "digits-function"} | STUDY | {"num_steps": 40})
    assert wait_until_done(client, study).state is JobState.SUCCEEDED, deployment.logs()
    assert client.get_recommendation(study.id) is not None
    events = [event for event in client.events(study.id) if event.kind == "engine"]
    assert {(each.payload["path"], each.payload["reason"]) for each in events} == {
        ("solo", "a training function trains one lane at a time")
    }
    trials = client.list_trials(study.id)
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    assert {len(trial.lanes) for trial in complete} == {2}
    assert all(lane.num_steps == 40 and lane.norms is not None for trial in complete for lane in trial.lanes)
    assert all(lane.initial is not None for trial in complete for lane in trial.lanes)


def test_what_is_not_registered_runs_nothing(deployment: Deployment) -> None:
    client = deployment.client()
    for name in ("nope", "train_digits:train", "broken"):
        with pytest.raises(ProblemError) as caught:
            client.create_study({"workload": name} | STUDY)
        assert (caught.value.status, caught.value.code) == (422, "unknown_workload")
    assert '"action": "workload_refused"' in deployment.logs()
    assert "No module named 'no_such_module'" in deployment.logs()


#: A study whose one trial with a large threshold, of four, misbehaves.
FAULTY_STUDY: dict[str, Any] = STUDY | {
    "workload": "faulty",
    "num_confirm_seeds": 0,
    "num_steps": 10,
    "threshold_low": 0.5,
    "threshold_high": 8.0,
}


# Every fault has its cause and its sentence in `tests/service/launchers/test_faults.py`, and what a worker does about
# each cause is in `tests/service/worker/test_runner.py`; here are one that the process survives, one that it does not,
# and one in which it has to be killed.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("raise", "ValueError: the batch has the wrong shape"),
        ("hang", f"said nothing for {STALL_SECONDS} s"),
        ("killed", "killed by SIGKILL, which was not ours"),
    ],
)
def test_fault_costs_one_trial(deployment: Deployment, fault: str, says: str) -> None:
    client = deployment.client()
    study = client.create_study(FAULTY_STUDY | {"parameters": {"fault": fault}})
    assert wait_until_done(client, study).state is JobState.SUCCEEDED, deployment.logs()
    *good, bad = sorted(client.list_trials(study.id), key=lambda trial: trial.setting.threshold or 0.0)
    assert bad.setting.threshold is not None and bad.setting.threshold > LARGE
    assert [trial.state for trial in good] == [TrialState.COMPLETE] * 3
    assert bad.state is TrialState.FAIL
    (failed,) = [event for event in client.events(study.id) if event.kind == "trial_failed"]
    assert failed.payload["trial_id"] == bad.id
    assert says in failed.payload["error"]


@pytest.mark.slow
def test_divergence_is_no_fault(deployment: Deployment) -> None:
    client = deployment.client()
    study = client.create_study(FAULTY_STUDY | {"parameters": {"fault": "nan"}})
    assert wait_until_done(client, study).state is JobState.SUCCEEDED, deployment.logs()
    trials = client.list_trials(study.id)
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    bad = max(trials, key=lambda trial: trial.setting.threshold or 0.0)
    assert bad.num_diverged == len(bad.lanes) > 0


def test_nothing_registered_trains_nothing(tmp_path: Path) -> None:
    with Deployment(
        tmp_path / "home", f"sqlite:///{tmp_path / 'cliptune.db'}", workload_sources="none"
    ) as running:
        running.start_api()
        running.start_worker()
        client = running.client()
        assert client.list_workloads() == []
        with pytest.raises(ProblemError) as caught:
            client.create_study({"workload": "digits-mlp"} | STUDY)
        assert (caught.value.status, caught.value.code) == (422, "unknown_workload")
        assert '"action": "no_workloads"' in running.logs()


@pytest.mark.slow
def test_entry_points_of_an_installed_package_are_trained(tmp_path: Path) -> None:
    target = install_package(
        tmp_path, documented("workload-class"), entry_points={"ours": "ours.model:DigitsTransformer"}
    )
    with Deployment(tmp_path / "home", f"sqlite:///{tmp_path / 'cliptune.db'}") as running:
        with_modules(running, target)
        running.start_api()
        running.start_worker()
        client = running.client()
        assert [each.name for each in client.list_workloads()] == ["charlm-rnn", "digits-mlp", "ours"]
        study = client.create_study({"workload": "ours", "parameters": {"width": 4, "num_layers": 1}} | STUDY)
        assert wait_until_done(client, study).state is JobState.SUCCEEDED, running.logs()


def test_two_registrations_of_a_name_stop_the_worker_with_both(tmp_path: Path) -> None:
    with Deployment(
        tmp_path / "home", f"sqlite:///{tmp_path / 'cliptune.db'}", workloads="digits-mlp=mine:train"
    ) as running:
        running.start_api()
        process = running.start("worker")
        assert process.wait(60) == 2
        assert (
            "register 'digits-mlp' twice: tuner.workloads.digits_mlp:DigitsMlp (built in) and"
            in running.logs()
        )
        assert "mine:train (CLIPTUNE_WORKLOADS)" in running.logs()
