"""What is said of processes of this machine alone; what every launcher keeps is in the contract suite."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from liveness import is_running

from service.errors import TrainingError
from service.launchers.local import TRAINER, LocalLauncher
from service.launchers.process import TrainingProcess
from service.launchers.protocol import Catalogue, Done, Message, Ready, decode, encode
from tuner.spec import MAX_SEEDS, MAX_STEPS, MAX_TRIALS, OFF_SETTING, ClipSetting
from tuner.training.cohort import (
    CheckpointSaved,
    Cohort,
    CohortTrial,
    EngineChosen,
    LaneValue,
    ProbeMeasured,
    Progressed,
    Resumed,
    RungReached,
    TrialEnded,
)

ODD = (sys.executable, str(Path(__file__).parent / "odd_trainer.py"))


@pytest.fixture
def launch() -> Iterator[object]:
    started: list[TrainingProcess] = []

    def start(*command: str, grace: float = 5.0) -> TrainingProcess:
        started.append(TrainingProcess(command, threads=1, kill_grace_seconds=grace))
        return started[-1]

    yield start
    for process in started:
        process.stop()


def receive(process: TrainingProcess) -> Message:
    message = process.receive(60)
    assert message is not None, "nothing was said for a minute"
    return message


def messages_until_done(process: TrainingProcess) -> list[Message]:
    found = [receive(process)]
    while not isinstance(found[-1], Done):
        found.append(receive(process))
    return found


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 20
    while is_running(pid):
        assert time.monotonic() < deadline, f"process {pid} lives on"
        time.sleep(0.02)


def test_real_trainer_answers_every_request_in_one_process(launch, tmp_path) -> None:
    process = launch(*TRAINER)
    assert isinstance(receive(process), Ready)
    process.send({"kind": "describe"})
    catalogue, _ = messages_until_done(process)
    assert isinstance(catalogue, Catalogue)
    assert {each.name for each in catalogue.workloads} >= {"charlm-rnn", "digits-mlp"}

    process.send({"kind": "probe", "workload": "digits-mlp", "parameters": {}, "seeds": [0, 1]})
    probe, _ = messages_until_done(process)
    assert isinstance(probe, ProbeMeasured)
    assert probe.reference.l2_norm.median > 0

    trials = (
        CohortTrial(id="a", setting=OFF_SETTING, protected=True),
        CohortTrial(id="b", setting=ClipSetting.parse("global_norm:0.5")),
    )
    cohort = Cohort(
        workload="digits-mlp",
        parameters={},
        trials=trials,
        seeds=(0, 1),
        rung_steps=(2, 5),
        divergence_factor=3.0,
    )
    folder = tmp_path / "cohort"
    process.send({"kind": "cohort", "cohort": cohort.to_json(), "checkpoints": str(folder)})
    told = [message for message in messages_until_done(process) if not isinstance(message, Progressed)]
    assert [type(message) for message in told] == [
        EngineChosen,
        RungReached,
        CheckpointSaved,
        RungReached,
        TrialEnded,
        TrialEnded,
        Done,
    ]
    assert [lane.seed for lane in told[4].lanes] == [0, 1]
    assert [lane.num_steps for lane in told[5].lanes] == [5, 5]

    process.send({"kind": "cohort", "cohort": cohort.to_json(), "checkpoints": str(folder)})
    again = [message for message in messages_until_done(process) if not isinstance(message, Progressed)]
    assert [type(message) for message in again[:3]] == [EngineChosen, Resumed, RungReached]
    assert [each.lanes[0].value for each in again[3:5]] == [each.lanes[0].value for each in told[4:6]]


def test_exception_in_a_request_is_told_and_the_process_goes_on(launch) -> None:
    process = launch(*TRAINER)
    receive(process)
    process.send({"kind": "probe", "workload": "no-such", "parameters": {}, "seeds": [0]})
    broken = receive(process)
    assert (broken.kind, broken.cause) == ("broken", "bug")
    assert "no-such" in broken.detail and "Traceback" in broken.traceback
    process.send({"kind": "describe"})
    assert isinstance(messages_until_done(process)[0], Catalogue)


def test_output_that_arrives_after_the_end_is_in_the_reason(launch, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("service.launchers.process._SILENCE_SECONDS", 60.0)
    process = launch(*ODD)
    receive(process)
    process.send({"kind": "odd", "behaviour": "last_words"})
    with pytest.raises(TrainingError, match=r"exit code 7\nthe reason is here"):
        receive(process)


def test_description_that_waits_for_a_node_is_not_late(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Each look at the clock is 100 s after the last, and the third message would be too late."""
    clock = SimpleNamespace(monotonic=itertools.count(0, 100).__next__)
    monkeypatch.setattr("service.launchers.launcher.time", clock)
    launcher = LocalLauncher(threads=1, kill_grace_seconds=1, command=ODD)
    process = launcher.launch()
    try:
        assert "digits-mlp" in [each.name for each in launcher.describe(process, 250).workloads]
    finally:
        process.stop()


def test_ended_process_says_so_every_time(launch) -> None:
    process = launch(*ODD)
    receive(process)
    process.send({"kind": "odd", "behaviour": "exit"})
    for _ in range(2):
        with pytest.raises(TrainingError, match="exit code 7"):
            receive(process)
    assert not process.is_alive


def test_training_ends_when_its_worker_is_killed() -> None:
    program = (
        "import sys, time\n"
        "from service.launchers.local import TRAINER\n"
        "from service.launchers.process import TrainingProcess\n"
        "process = TrainingProcess(TRAINER, threads=1, kill_grace_seconds=5)\n"
        "print(process.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    worker = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    trainer = int(worker.stdout.readline())
    assert is_running(trainer)
    folder = Path(f"/proc/{trainer}/cwd").resolve()
    assert folder.name.startswith("cliptune-training-")
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    worker.stdout.close()
    wait_until_gone(trainer)
    assert not folder.exists()


def test_rung_of_the_largest_cohort_is_one_event() -> None:
    name = "00000000-0000-4000-8000-000000000000"
    values = tuple(
        LaneValue(trial_id=name, seed=seed, value=-1.2345678901234567e-100)
        for _ in range(MAX_TRIALS)
        for seed in range(MAX_SEEDS)
    )
    rung = RungReached(index=9, step=MAX_STEPS, values=values, pruned=(name,) * MAX_TRIALS)
    assert decode(encode(rung)) == rung


def test_folder_that_can_not_be_removed_at_once_is_no_failure(launch, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    process = launch(*ODD)
    process.send({"kind": "odd", "behaviour": "litters"})
    messages_until_done(process)
    process.stop()
    assert not process.is_alive


def test_reader_of_a_process_that_is_stopped_ends_although_nobody_listened(launch) -> None:
    """More lines than are kept, none of them received: the reader waits for room while the process is stopped."""
    process = launch(*ODD)
    process.send({"kind": "cohort", "behaviour": "counts", "up_to": 30_000})
    deadline = time.monotonic() + 60
    while not process._lines.full():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.stop()
    assert not any(thread.is_alive() for thread in process._threads)


def test_dead_process_is_noticed_by_looks_that_do_not_wait(launch) -> None:
    """What it started holds its pipe open, so that the pipe never ends."""
    program = (
        "import os, subprocess, sys; fd = int(sys.argv[sys.argv.index('--events') + 1]); "
        "subprocess.Popen(['sleep', '600'], pass_fds=[fd]); os._exit(7)"
    )
    process = launch(sys.executable, "-c", program)
    deadline = time.monotonic() + 60
    with pytest.raises(TrainingError, match="exit code 7"):
        while time.monotonic() < deadline:
            assert process.receive(0) is None
            time.sleep(0.02)
