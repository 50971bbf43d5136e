"""What pipelines are tested against: one real service with one real study, trained once for all of these tests."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from acceptance.deployment import Deployment, wait_for
from acceptance.pipeline import Answered, Repository, make_repository, tune
from acceptance.runner import Finished, installing

from service.keys import create_key


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The action's install step, run once and for real: the base install in an environment of its own."""
    runner = installing(tmp_path_factory.mktemp("runner"))
    (runner.workspace / "logging.py").write_text("raise SystemExit('a module of the repository')")
    finished = runner.use(only="install")
    assert finished.code == 0, finished.log
    return finished


@pytest.fixture(scope="session")
def answered(tmp_path_factory: pytest.TempPathFactory, installed: Finished) -> Iterator[Answered]:
    """The study is run as a team runs it, by the action in a nightly job."""
    home = tmp_path_factory.mktemp("answered")
    with Deployment(home, f"sqlite:///{home / 'cliptune.db'}") as deployment:
        deployment.start_api()
        worker = deployment.start_worker()
        client = deployment.client()
        wait_for(client.list_workloads, "the workloads")
        with deployment.database().write() as session:
            reading = create_key(session, label="ci", scopes=("read",))
            writing = create_key(session, label="nightly", scopes=("write",))
        url = json.loads((home / "service.json").read_text())["url"]
        nightly = tune(make_repository(home / "repository"), installed, server_url=url, token=writing)
        assert nightly.outputs["study-id"], nightly.log
        worker.send_signal(signal.SIGTERM)
        worker.wait(timeout=60)
        deployment.processes.remove(worker)
        yield Answered(deployment, nightly.outputs["study-id"], reading, nightly)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return make_repository(tmp_path / "repository")
