"""A real service with an external study whose lanes a test puts up, and `cliptune run` against it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from serving import serving
from sqlalchemy import select
from warm import Warm, warm_process

from service.client import Client
from service.db.clock import database_now
from service.db.models import LaneReportRow, StudyRow, TrialRow
from service.db.session import Database
from service.lanes import LaneState, insert_lanes, load_lanes
from service.settings import Settings
from tuner.spec import ClipSetting

COMMAND = Path(__file__).parents[3] / "service" / "cli" / "main.py"
MODULES = ("service.cli.main", "service.cli.run", "service.client", "service.agent")
#: Trains nothing: logs a curve that depends on the threshold, and norms.
TRAIN = """
    import json, sys
    threshold, seed, num_steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    for step in range(num_steps + 1):
        print(json.dumps({"step": step, "grad_norm": 1 + step / 100}))
        if step % 10 == 0:
            print(json.dumps({"step": step, "val_loss": 3.0 - step / 100 + seed / 10}))
"""


@pytest.fixture
def database(sqlite_database: Database) -> Database:
    """SQLite alone: the agent never sees which database answers."""
    return sqlite_database


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Leases of two seconds, so that a heartbeat comes twice a second."""
    return Settings(home=tmp_path, lease_seconds=2.0, renew_seconds=0.5, kill_grace_seconds=0.4)


@dataclass
class External:
    """An external study and who asks for its lanes."""

    api: Any
    url: str
    study_id: str
    tenant_id: str
    running: ExitStack
    warm: Warm

    @contextmanager
    def without_service(self) -> Iterator[None]:
        """The service is away within the block, and back at the same address after it."""
        self.running.close()
        yield
        self.running.enter_context(serving(self.api.app, int(self.url.rpartition(":")[2])))

    def put_up(self, *settings: str, seeds: tuple[int, ...] = (0,)) -> list[str]:
        """New trials with their lanes, as the study's worker would put them up."""
        ids = [str(uuid.uuid4()) for _ in settings]
        with self.api.database.write() as session:
            now = database_now(session)
            begin = len(session.scalars(select(TrialRow.id).filter_by(study_id=self.study_id)).all())
            for number, (trial_id, text) in enumerate(zip(ids, settings, strict=True), begin):
                setting = ClipSetting.parse(text)
                session.add(
                    TrialRow(
                        id=trial_id,
                        study_id=self.study_id,
                        number=number,
                        cohort=0,
                        state="running",
                        attempt=0,
                        lost_count=0,
                        created_at=now,
                        method=setting.method,
                        threshold=setting.threshold,
                    )
                )
            session.flush()
            insert_lanes(
                session, study_id=self.study_id, tenant_id=self.tenant_id, trial_ids=ids, seeds=seeds
            )
        return ids

    def lanes(self, trial_ids: list[str]) -> list[LaneState]:
        with self.api.database.read() as session:
            found = load_lanes(session, self.study_id, trial_ids)
        return sorted(found, key=lambda lane: lane.position)

    def lane(self, trial_id: str) -> LaneState:
        (found,) = self.lanes([trial_id])
        return found

    def reported_steps(self, trial_id: str) -> list[int]:
        with self.api.database.read() as session:
            query = select(LaneReportRow.step).filter_by(trial_id=trial_id).order_by(LaneReportRow.step)
            return list(session.scalars(query))

    def client(self) -> Client:
        return Client(self.url, self.api.key)

    def cancel(self) -> None:
        with self.client() as client:
            client.cancel_study(self.study_id)

    def environment(self) -> dict[str, str]:
        passed_on = {name: each for name, each in os.environ.items() if not name.startswith("CLIPTUNE_")}
        return passed_on | {"CLIPTUNE_API_KEY": self.api.key, "CLIPTUNE_URL": self.url, "COLUMNS": "120"}

    def start(self, *arguments: str, study: str | None = None) -> subprocess.Popen[str]:
        """`cliptune run` with these arguments."""
        study_arguments = () if study == "" else ("--study", study or self.study_id)
        return subprocess.Popen(
            [sys.executable, "-m", "service.cli.main", "run", *study_arguments, *arguments],
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, study: str | None = None) -> subprocess.CompletedProcess[str]:
        """The same until its end, with its modules loaded already."""
        study_arguments = () if study == "" else ("--study", study or self.study_id)
        given = ("run", *study_arguments, *arguments)
        return self.warm.run(COMMAND, *given, modules=MODULES, env=self.environment(), timeout=120)


def python(program: str, *arguments: str) -> list[str]:
    """A Python program; its braces are literal."""
    literal = textwrap.dedent(program).replace("{", "{{").replace("}", "}}")
    return [sys.executable, "-c", literal, *arguments]


@pytest.fixture
def train_command() -> list[str]:
    return python(TRAIN, "{threshold}", "{seed}", "{num_steps}")


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    """`cliptune run` is imported once; each is a process of its own."""
    with warm_process() as process:
        yield process


@pytest.fixture
def external(api: Any, warm: Warm) -> Iterator[External]:
    changes = {"workload": "my-resnet", "external": True, "num_steps": 100, "num_seeds": 2, "num_rungs": 2}
    study = api.study(**changes, parameters={"width": 8, "text": "$(id); 'x' {seed}"})
    with api.database.read() as session:
        tenant_id = session.get_one(StudyRow, study["id"]).tenant_id
    with ExitStack() as running:
        url = running.enter_context(serving(api.app))
        yield External(api, url, study["id"], tenant_id, running, warm)
