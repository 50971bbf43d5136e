"""The worker beside `cliptune serve`: restarted when it crashes, not when it is misconfigured, stopped in order."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from service.cli.worker_process import WorkerProcess
from service.jobs.retry import Backoff

AT_ONCE = Backoff(base_seconds=0.0, max_seconds=0.0)


def program(marks: Path, last_word: str) -> tuple[str, ...]:
    """A worker that leaves a line in a file at each start."""
    code = f"import sys, time, os; open({str(marks)!r}, 'a').write('started\\n'); {last_word}"
    return (sys.executable, "-c", code)


def wait_for_starts(marks: Path, count: int) -> None:
    deadline = time.monotonic() + 30
    while not marks.exists() or marks.read_text().count("started") < count:
        assert time.monotonic() < deadline, f"fewer than {count} starts"
        time.sleep(0.01)


def test_crashed_worker_is_started_again(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    with WorkerProcess(program(marks, "os._exit(1)"), AT_ONCE):
        wait_for_starts(marks, 3)


def test_misconfigured_worker_is_not_started_again(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    with WorkerProcess(program(marks, "os._exit(2)"), AT_ONCE) as worker:
        wait_for_starts(marks, 1)
        worker._watcher.join(timeout=30)
        assert not worker._watcher.is_alive()
    assert marks.read_text().count("started") == 1


@pytest.mark.parametrize("starts", range(1, 6))
def test_stop_while_it_crashes_ends(tmp_path: Path, starts: int) -> None:
    """A child that is started while the stop is decided must be stopped too, or the stop waits for ever."""
    marks = tmp_path / "marks"
    with WorkerProcess(program(marks, "os._exit(1)"), AT_ONCE) as worker:
        wait_for_starts(marks, starts)
    assert worker._child.poll() is not None
    assert not worker._watcher.is_alive()


def test_worker_that_runs_is_terminated(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    with WorkerProcess(program(marks, "time.sleep(600)"), AT_ONCE) as worker:
        wait_for_starts(marks, 1)
    assert worker._child.returncode == -15
