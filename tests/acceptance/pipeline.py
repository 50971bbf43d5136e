"""A team's repository, its jobs, and the service that they ask; `conftest` makes one of each."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from acceptance.deployment import CLIPTUNE, Deployment
from acceptance.runner import ROOT, Finished, Runner

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


@dataclass
class Answered:
    """A service that has an answer: its study, a key that may read, and the job that ran the study."""

    deployment: Deployment
    study_id: str
    key: str
    nightly: Finished

    @property
    def url(self) -> str:
        return str(json.loads((self.deployment.home / "service.json").read_text())["url"])

    def stop(self) -> str:
        """Stop the service; where it was."""
        url = self.url
        for process in self.deployment.processes:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)
        self.deployment.processes.clear()
        return url


@dataclass
class Repository:
    """A clone with a config in it, on a machine where nobody has set up anything."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "conf" / "train.yaml"

    @property
    def environment(self) -> dict[str, str]:
        kept = {
            name: each
            for name, each in os.environ.items()
            if not name.startswith(("CLIPTUNE", "GITHUB_", "CI_"))
        }
        return kept | {"CLIPTUNE_HOME": str(self.folder.parent / "nobody"), "OMP_NUM_THREADS": "1"}

    @property
    def head(self) -> str:
        return self.git("rev-parse", "HEAD").strip()

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*CLIPTUNE, *arguments],
            env=self.environment | environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=240,
        )

    def git(self, *arguments: str) -> str:
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=True).stdout


def tune(repository: Repository, installed: Finished, **given: str) -> Finished:
    """A nightly job."""
    (repository.folder / "cliptune.study.json").write_text(json.dumps(STUDY))
    job = repository.environment | {"GITHUB_REPOSITORY": "octo/nets", "GITHUB_SHA": repository.head}
    runner = Runner(ROOT, repository.folder, repository.folder.parent / "temp", job)
    asked = {
        "mode": "tune",
        "spec": "cliptune.study.json",
        "config_file": "conf/train.yaml",
        "write_lock": "true",
    }
    return runner.use(known={"install": installed.steps["install"]}, **asked | given)


def make_repository(folder: Path) -> Repository:
    found = Repository(folder)
    found.config.parent.mkdir(parents=True)
    found.config.write_text(TRAIN)
    found.git("init", "--quiet", "--initial-branch=main")
    found.git("add", ".")
    found.git("commit", "--quiet", "--message", "Train")
    return found
