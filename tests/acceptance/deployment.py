"""A deployment for tests: the real `cliptune` processes on one database, started, signalled and cleaned up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

from service.client import Client
from service.db.session import Database
from service.errors import ServiceError
from service.schemas import StudyOut, WorkerOut

T = TypeVar("T")
CLIPTUNE = (sys.executable, "-m", "service.cli.main")

#: A study of seconds: real data, two cohorts and a confirmation, three rungs.
STUDY = {
    "workload": "digits-mlp",
    "num_trials": 8,
    "num_seeds": 2,
    "num_confirm_seeds": 2,
    "num_steps": 300,
    "cohort_size": 4,
}
#: The same with so many steps that a test can interfere.
LONG_STUDY = STUDY | {"num_steps": 600}
#: What a worker does in no time, if it does anything.
SHORT_STUDY = STUDY | {"num_trials": 3, "num_confirm_seeds": 0, "num_steps": 20}


def wait_for(
    condition: Callable[[], T], what: str, seconds: float = 90.0, *, every_seconds: float = 0.05
) -> T:
    """Poll until the condition is truthy; its value."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(every_seconds)


def wait_until_done(client: Client, study: StudyOut, seconds: float = 180.0) -> StudyOut:
    """The study once it has ended, asked for seldom: each answer is work that the training does not get."""

    def ended() -> StudyOut | None:
        found = client.get_study(study.id)
        return found if found.done else None

    return wait_for(ended, "the study", seconds, every_seconds=0.25) or study


class Deployment:
    """API and workers as processes; leave the block and nothing of it is left."""

    def __init__(self, home: Path, database_url: str, **settings: object) -> None:
        self.home = home
        self.database_url = database_url
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith("CLIPTUNE_")
        }
        self.environment |= {
            "CLIPTUNE_HOME": str(home),
            "CLIPTUNE_DATABASE_URL": database_url,
            "CLIPTUNE_PORT": "0",
            "CLIPTUNE_LOG_FORMAT": "json",
            "CLIPTUNE_POLL_SECONDS": "0.1",
            "CLIPTUNE_LEASE_SECONDS": "4",
            "CLIPTUNE_RENEW_SECONDS": "0.5",
            "CLIPTUNE_KILL_GRACE_SECONDS": "0.5",
            "CLIPTUNE_TRAINING_THREADS": "1",
        }
        self.environment |= {f"CLIPTUNE_{name.upper()}": str(value) for name, value in settings.items()}
        self._stack = ExitStack()
        self._asked: tuple[tuple[str, str], Client] | None = None
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Deployment:
        self.home.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()
        self._stack.close()

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        log = self._stack.enter_context((self.home / f"{arguments[0]}-{len(self.processes)}.log").open("wb"))
        process = subprocess.Popen(
            [*CLIPTUNE, *arguments], env=self.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
        self.processes.append(process)
        return process

    def run(self, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*CLIPTUNE, *arguments], env=self.environment, capture_output=True, text=True, timeout=timeout
        )

    def logs(self) -> str:
        return "\n".join(file.read_text(errors="replace") for file in sorted(self.home.glob("*.log")))

    def start_api(self) -> subprocess.Popen[bytes]:
        process = self.start("api")
        wait_for(lambda: self.is_up(process), "the API")
        return process

    def start_worker(self) -> subprocess.Popen[bytes]:
        before = self._alive_workers()
        process = self.start("worker")
        wait_for(lambda: self._alive_workers() - before or process.poll() is not None, "the worker")
        assert process.poll() is None, self.logs()
        return process

    def client(self) -> Client:
        return self._stack.enter_context(Client(*self._address()))

    def list_workers(self) -> list[WorkerOut]:
        return self._poller().list_workers()

    def _poller(self) -> Client:
        """One client for all that is asked again and again: making one costs more than a hundred answers."""
        address = self._address()
        if self._asked is None or self._asked[0] != address:
            self._asked = address, self.client()
        return self._asked[1]

    def _address(self) -> tuple[str, str]:
        url = json.loads((self.home / "service.json").read_text())["url"]
        return url, (self.home / "key").read_text().strip()

    def database(self) -> Database:
        opened = Database(self.database_url)
        self._stack.callback(opened.close)
        return opened

    def is_up(self, process: subprocess.Popen[bytes]) -> bool:
        assert process.poll() is None, self.logs()
        if not ((self.home / "service.json").exists() and (self.home / "key").exists()):
            return False
        try:
            self._poller().version()
        except ServiceError:
            return False
        return True

    def _alive_workers(self) -> set[str]:
        return {worker.id for worker in self.list_workers() if worker.alive}


def child_pids(pid: int) -> list[int]:
    """Processes whose parent is ``pid``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[1]) == pid and fields[0] != "Z":
                found.append(int(entry.name))
    return found
