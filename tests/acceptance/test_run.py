"""`cliptune run` from submission to recommendation: real service, real worker, a training script of the user's own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from acceptance.deployment import CLIPTUNE, Deployment, wait_for
from liveness import is_running

from service.db.models import LaneRow

#: SGD towards 0 on a bowl whose gradient noise has no variance, with an option for clipping as scripts have it.
TRAIN = """
import argparse, json, math, os, random, time

parser = argparse.ArgumentParser()
parser.add_argument("--max-grad-norm", type=float, default=math.inf)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--hang", metavar="FILE")
options = parser.parse_args()
if options.hang:
    with open(options.hang, "w") as file:
        file.write(f"{os.getpid()}\\n")
    time.sleep(600)
draws, weights = random.Random(options.seed), [10.0] * 5
for step in range(options.steps + 1):
    if step % 20 == 0 or step == options.steps:
        print(json.dumps({"step": step, "distance": math.hypot(*weights)}))
    gradient = [weight + draws.gauss(0, 1) / max(abs(draws.gauss(0, 1)), 1e-3) for weight in weights]
    norm = math.hypot(*gradient)
    print(json.dumps({"step": step, "grad_norm": norm}))
    factor = 0.05 * min(1.0, options.max_grad_norm / norm)
    weights = [weight - factor * slope for weight, slope in zip(weights, gradient)]
"""


@pytest.fixture
def deployment(tmp_path: Path, sqlite_url: str) -> Iterator[Deployment]:
    with Deployment(tmp_path / "home", sqlite_url) as started:
        started.start_api()
        started.start_worker()
        yield started


@pytest.fixture
def script(tmp_path: Path) -> Path:
    file = tmp_path / "train.py"
    file.write_text(TRAIN)
    return file


def agent(deployment: Deployment, study_id: str, script: Path, *more: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        str(script),
        "--max-grad-norm={threshold}",
        "--seed={seed}",
        "--steps={num_steps}",
    ]
    return subprocess.Popen(
        [
            *CLIPTUNE,
            "run",
            "--study",
            study_id,
            "--quiet",
            "--off",
            "inf",
            "--grace",
            "0.2",
            "--",
            *command,
            *more,
        ],
        env=deployment.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def submit(deployment: Deployment) -> str:
    wanted = {"trials": 8, "seeds": 2, "confirm-seeds": 4, "steps": 200, "cohort-size": 6}
    numbers = [f"--{name}={value}" for name, value in wanted.items()]
    done = deployment.run(
        "submit", "--external", "--workload", "my heavy tails", "--objective", "distance", *numbers, "--json"
    )
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["id"])


def test_three_agents_one_of_them_killed_find_that_clipping_pays(
    deployment: Deployment, script: Path, tmp_path: Path
) -> None:
    study_id = submit(deployment)
    pid_file = tmp_path / "pid"
    lost = agent(deployment, study_id, script, f"--hang={pid_file}")
    wait_for(lambda: pid_file.exists() and pid_file.read_text().endswith("\n"), "the first lane")
    lost.kill()
    lost.communicate()
    agents = [agent(deployment, study_id, script) for _ in range(2)]
    said = [each.communicate(timeout=240)[1] for each in agents]
    assert [each.returncode for each in agents] == [0, 0], said
    assert not is_running(int(pid_file.read_text())), "the command of the killed agent lives on"

    shown = deployment.run("show", study_id[:8])
    assert shown.returncode == 0, shown.stderr
    assert "verdict" in shown.stdout and "CLIP" in shown.stdout
    done = deployment.client().get_study(study_id)
    assert done.result is not None
    assert (done.state, done.result.verdict, done.result.objective) == ("succeeded", "clip", "distance")
    assert done.result.norms is not None and done.result.clip_fraction is not None
    with deployment.database().read() as session:
        fences = [lane.fence for lane in session.query(LaneRow) if lane.leased_at is not None]
    # The lost lane was leased twice, every other one once: nobody ever held a lane that another had.
    assert sorted(fences)[-2:] == [1, 2]
    counts = [re.search(r"(\d+) lanes?: (\d+) trained, (\d+) stopped early, 0 failed", each) for each in said]
    assert all(counts)
    assert sum(int(count[1]) for count in counts if count) == len(fences)
    assert all(f"cliptune show {study_id[:8]}" in each for each in said)


def test_study_that_fails_ends_its_agents_with_5(deployment: Deployment, script: Path) -> None:
    study_id = submit(deployment)
    running = agent(deployment, study_id, script, "--no-such-option")
    _, said = running.communicate(timeout=240)
    assert running.returncode == 5
    assert "unrecognized arguments: --no-such-option" in said
    ended = deployment.client().get_study(study_id)
    assert ended.state == "failed"
    assert ended.error is not None and "unrecognized arguments" in ended.error.detail
    assert f"study {study_id} failed" in said


def test_submission_says_how_to_train(deployment: Deployment) -> None:
    done = deployment.run("submit", "--external", "--workload", "mine")
    assert done.returncode == 0, done.stderr
    study_id = re.search(r"^study ([0-9a-f-]{36})", done.stdout)
    assert study_id is not None
    assert f"cliptune run --study {study_id[1][:8]} -- COMMAND" in done.stdout
    refused = deployment.run("submit", "--workload", "digits-mlp", "--objective", "loss")
    assert refused.returncode == 2
    assert "objective" in refused.stderr and "set external" in refused.stderr
