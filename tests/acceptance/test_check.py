"""A pull request's check from the bad value to the good one: a repository, a real service, a finished study."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from acceptance.deployment import CLIPTUNE, Deployment, wait_for

from service.db.clock import database_now
from service.keys import create_key, revoke_key
from service.states import JobState

#: Clipping at any of its thresholds leaves steps of digits-mlp too short to arrive: off is what it recommends.
STUDY = {
    "workload": "digits-mlp",
    "num_trials": 4,
    "num_seeds": 2,
    "num_steps": 60,
    "num_confirm_seeds": 6,
    "current": {"method": "global_norm", "threshold": 0.005},
    "threshold_low": 0.001,
    "threshold_high": 0.01,
}
TRAIN = """\
output_dir: out
per_device_train_batch_size: 8
max_grad_norm: 0.005  # as in the paper
"""
ROOT = Path(__file__).parents[2]


@dataclass
class Pipeline:
    """A clone of a repository with a config in it, and the service that its jobs ask."""

    folder: Path
    deployment: Deployment

    @property
    def config(self) -> Path:
        return self.folder / "conf" / "train.yaml"

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        address = json.loads((self.deployment.home / "service.json").read_text())["url"]
        key = (self.deployment.home / "key").read_text().strip()
        given = {
            **{name: each for name, each in self.deployment.environment.items() if name[:8] != "CLIPTUNE"},
            "CLIPTUNE_HOME": str(self.folder.parent / "nobody"),
            "CLIPTUNE_URL": address,
            "CLIPTUNE_API_KEY": key,
            "GITHUB_ACTIONS": "",
        }
        return subprocess.run(
            [*CLIPTUNE, *arguments],
            env=given | environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def git(self, *arguments: str) -> str:
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def pipeline(tmp_path: Path, sqlite_url: str) -> Iterator[Pipeline]:
    with Deployment(tmp_path / "home", sqlite_url) as deployment:
        deployment.start_api()
        deployment.start_worker()
        found = Pipeline(tmp_path / "repository", deployment)
        found.config.parent.mkdir(parents=True)
        found.config.write_text(TRAIN)
        found.git("init", "--quiet")
        found.git("add", ".")
        found.git("commit", "--quiet", "--message", "Train")
        yield found


@pytest.mark.slow
def test_pull_request_from_a_bad_value_to_a_good_one(pipeline: Pipeline) -> None:
    deployment = pipeline.deployment
    wait_for(lambda: deployment.client().list_workloads(), "the workloads")
    study = deployment.client().create_study(STUDY)
    ended = wait_for(
        lambda: found if (found := deployment.client().get_study(study.id)).done else None, "the study"
    )
    assert ended.state is JobState.SUCCEEDED, ended.error

    bad = pipeline.run("check", "--workload", "digits-mlp", "--write-lock", "--report", "json=online.json")
    assert bad.returncode == 1, bad.stdout + bad.stderr
    assert bad.stdout.startswith("failed: conf/train.yaml:3: max_grad_norm 0.005 "), bad.stdout
    assert study.id[:8] in bad.stdout and "paired fresh seeds" in bad.stdout, "it fails with its evidence"
    online = (pipeline.folder / "online.json").read_bytes()
    pipeline.git("add", "cliptune.lock.json")

    # The same verdict without a service, and before a commit.
    offline = pipeline.run(
        "check", "--offline", "--report", "json=offline.json", CLIPTUNE_URL="", CLIPTUNE_API_KEY=""
    )
    assert (offline.returncode, offline.stdout) == (1, bad.stdout)
    assert (pipeline.folder / "offline.json").read_bytes() == online

    applied = pipeline.run("apply", "conf/train.yaml")
    assert applied.returncode == 0, applied.stderr
    changed = pipeline.git("diff", "--numstat").split()
    assert changed == ["1", "1", "conf/train.yaml"]
    assert pipeline.config.read_text().endswith("  # as in the paper\n")
    good = pipeline.run("check")
    assert good.returncode == 0 and good.stdout.startswith("ok: conf/train.yaml:3: "), good.stdout
    again = pipeline.run("apply", "conf/train.yaml", "--offline")
    assert again.returncode == 0 and "already applied" in again.stderr

    refused_keys_have_their_own_sentence(pipeline)
    an_outage_is_no_verdict(pipeline)


def refused_keys_have_their_own_sentence(pipeline: Pipeline) -> None:
    with pipeline.deployment.database().write() as session:
        expired = create_key(session, label="old", expires_at=database_now(session) - 1)
        revoked = create_key(session, label="gone")
        assert revoke_key(session, revoked.split("_")[2])
        unscoped = create_key(session, label="other", scopes=())
    sentences = set()
    for key, code in (
        (expired, "key_expired"),
        (revoked, "key_revoked"),
        (expired[:-1] + ("0" if expired[-1] != "0" else "1"), "key_malformed"),
        (foreign_key(pipeline), "key_unknown"),
        (unscoped, "forbidden"),
    ):
        softened = pipeline.run("check", CLIPTUNE_API_KEY=key)
        assert softened.returncode == 0, softened.stdout
        first = softened.stdout.splitlines()[0]
        assert first.startswith("warning: ") and first.endswith(f"[{code}]"), first
        assert key not in softened.stdout + softened.stderr, "a log is no place for a key"
        sentences.add(first.partition(", so that")[0])
        failed = pipeline.run("check", "--on-service-error", "fail", CLIPTUNE_API_KEY=key)
        assert failed.returncode == 3
    assert len(sentences) == 5


def foreign_key(pipeline: Pipeline) -> str:
    """A key that another service made."""
    other = pipeline.folder.parent / "other"
    with Deployment(other, f"sqlite:///{other}/cliptune.db") as deployment:
        deployment.start_api()
        return (other / "key").read_text().strip()


def an_outage_is_no_verdict(pipeline: Pipeline) -> None:
    pipeline.config.write_text(TRAIN)
    url = json.loads((pipeline.deployment.home / "service.json").read_text())["url"]
    for process in reversed(pipeline.deployment.processes):
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
    # The file is the service's own, and went with it.
    (pipeline.deployment.home / "service.json").write_text(json.dumps({"url": url}))
    softened = pipeline.run("check")
    assert softened.returncode == 0, softened.stdout
    assert softened.stdout.startswith("warning: The service can't be reached"), softened.stdout
    assert pipeline.run("check", "--on-service-error=fail").returncode == 3
    assert pipeline.run("apply", "conf/train.yaml").returncode == 3
    assert pipeline.config.read_text() == TRAIN
    assert pipeline.run("check", "--offline").returncode == 1, "the lock still judges"


# ---- before a commit ----


def hook() -> dict[str, str]:
    (found,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    return dict(found)


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    """A repository whose lock names one of its two configs, and a machine without a service."""
    found = Path(shutil.copytree(ROOT / "tests" / "data" / "hook", tmp_path / "repository"))
    subprocess.run(["git", "init", "--quiet"], cwd=found, check=True)
    return found


def run_hook(folder: Path, *files: str) -> subprocess.CompletedProcess[str]:
    """As pre-commit does it: the entry's words, then the names of the staged files, from the root."""
    program, *words = hook()["entry"].split()
    assert program == "cliptune"
    environment = {"PATH": "", "HOME": str(folder.parent), "CLIPTUNE_URL": "http://127.0.0.1:1"}
    return subprocess.run(
        [*CLIPTUNE, *words, *files],
        env=environment | {"PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
    )


def test_hook_refuses_a_bad_value_and_nothing_else(staged: Path) -> None:
    names = ["conf/train.yaml", "values.yaml", "broken.yaml"]
    assert all(re.search(hook()["files"], name) for name in names), "pre-commit passes them all"
    bad = run_hook(staged, *names)
    assert bad.returncode == 1, bad.stdout + bad.stderr
    assert bad.stdout.startswith("failed: conf/train.yaml:3: max_grad_norm 1.0 is outside"), bad.stdout
    assert bad.stdout.count("\n") == 2
    path = staged / "conf" / "train.yaml"
    path.write_text(path.read_text().replace("1.0", "0.42"))
    assert run_hook(staged, *names).returncode == 0
    assert run_hook(staged, "values.yaml").returncode == 0
    path.write_text("max_grad_norm: [")
    assert run_hook(staged, "conf/train.yaml").returncode == 2
