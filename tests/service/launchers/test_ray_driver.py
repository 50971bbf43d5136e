"""The child of a worker that is a Ray driver, before it has a cluster: real processes, no Ray cluster."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.launchers.process import TrainingProcess
from service.launchers.ray import RayLauncher
from service.settings import Settings
from tuner.workloads.registrations import Registrations


def variables_of(pid: int) -> list[str]:
    """The environment that a process was started with; it is empty for a moment after that."""
    while not (text := Path(f"/proc/{pid}/environ").read_text()):
        assert Path(f"/proc/{pid}/cwd").exists(), "the process has ended"
    return text.split("\0")


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TrainingProcess]:
    """One whose head takes connections and says nothing, so that it is not attached for a minute."""
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text("0" * 64)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "token")
    with socket.create_server(("127.0.0.1", 0)) as head:
        settings = Settings(launcher="ray", ray_address=f"127.0.0.1:{head.getsockname()[1]}")
        process = RayLauncher(settings, registrations=Registrations([])).launch()
        yield process
        process.stop()


@pytest.mark.parametrize("last", [b"", b'{"kind": "coh', b'{"kind": "describe"}\n{"kin'])
def test_worker_that_is_killed_in_the_middle_of_a_line_takes_its_driver_along(
    driver: TrainingProcess, last: bytes
) -> None:
    folder = Path(driver._folder.name)
    stdin = driver._process.stdin
    assert stdin is not None
    stdin.write(last)
    stdin.close()
    # Not 4, which is what it ends with if the head says nothing for a minute.
    assert driver._process.wait(timeout=120) == 3
    assert not folder.exists()


def test_files_are_found_from_the_folder_in_which_the_worker_was_started(
    driver: TrainingProcess, tmp_path: Path
) -> None:
    assert f"RAY_AUTH_TOKEN_PATH={tmp_path / 'token'}" in variables_of(driver.pid)
