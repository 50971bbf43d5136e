"""`cliptune probe` as a user runs it, without a service; and what it says of each way to fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from service.errors import TrainingError
from service.launchers.probing import ProbeFailedError, receive, refuse
from service.launchers.process import TrainingProcess
from service.launchers.protocol import Broken
from tuner.training.cohort import ProbeMeasured

PROGRAM = "import sys; from service.cli.main import main; sys.argv[0] = 'cliptune'; main()"


def cliptune(
    *arguments: str, program: str = PROGRAM, home: Path | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CLIPTUNE_")}
    environment |= {"COLUMNS": "120"} | ({} if home is None else {"CLIPTUNE_HOME": str(home)})
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


@pytest.fixture(scope="module")
def printed() -> str:
    done = cliptune("probe", "--workload", "charlm-rnn", "--param", "hidden=8", "--param", "learning_rate=4")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_page_has_its_rows(printed: str) -> None:
    lines = printed.splitlines()
    assert lines[0] == "charlm-rnn   102 batches over 3 seeds on cpu, initial weights, before clipping"
    labels = [line[1:11].strip() for line in lines[1:] if line[1:2].isalpha() and line[11:12] == " "]
    assert labels[:5] == ["norms", "spikes", "curvature", "model", "expect"]
    assert "sgd at learning rate 4, batch of 16, fp32" in printed
    assert "no verdict" in printed
    assert all(len(line) <= 120 and line.isascii() for line in lines)


def test_table_has_every_rule_with_kappa(printed: str) -> None:
    rules = ["10th percentile", "median", "90th percentile", "1.0", "mean x 5", "mean x 10"]
    for rule in rules:
        (line,) = (each for each in printed.splitlines() if each[4:].startswith(f"{rule} "))
        assert "global_norm:" in line
        assert float(line[43:50]) > 0


def test_json_is_the_reference_and_the_prior() -> None:
    done = cliptune(
        "probe", "--workload", "digits-mlp", "--param", "hidden=4", "--seeds", "1", "--device-less", "--json"
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["workload"] == "digits-mlp"
    assert document["parameters"] == {"hidden": 4, "batch_size": 64, "learning_rate": 0.1}
    assert (document["num_seeds"], document["device"]) == (1, "cpu")
    assert document["reference"]["num_batches"] == 100
    assert document["reference"]["features"]["optimizer"] == "sgd"
    assert document["reference"]["smoothness"]["num_points"] == 24
    assert document["prior"]["expectation"] in ("helps", "may_help", "unlikely")
    thresholds = [rule["setting"]["threshold"] for rule in document["prior"]["rules"]]
    assert thresholds == sorted(thresholds)


def test_command_itself_loads_no_torch_and_leaves_no_home(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom service.cli.main import app\n"
        "app(['probe', '--workload', 'digits-mlp', '--seeds', '1'], standalone_mode=False)\n"
        "print('loaded', sorted({'torch', 'optuna', 'numpy', 'sqlalchemy', 'httpx2'} & set(sys.modules)))"
    )
    done = cliptune(program=program, home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded []"
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["--workload", "nope"],
            "cliptune: no workload is called 'nope'; known workloads: charlm-rnn, digits-mlp [unknown_workload]",
        ),
        (
            ["--workload", "digits-mlp", "--param", "hidden=0"],
            "cliptune: parameters.hidden must be >= 1, got 0 [invalid_spec]",
        ),
        (
            ["--workload", "digits-mlp", "--param", "width=8"],
            "parameters.width is no parameter of this workload; its parameters are: hidden, batch_size",
        ),
        (["--workload", "digits-mlp", "--param", "hidden"], "--param must be NAME=VALUE, got 'hidden'"),
        (["--workload", "digits-mlp", "--seeds", "0"], "'--seeds'"),
        (["--workload", "digits-mlp", "--seeds", "33"], "'--seeds'"),
        ([], "'--workload'"),
    ],
)
def test_what_is_wrong_is_told_with_exit_code_2(arguments: list[str], says: str) -> None:
    done = cliptune("probe", *arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_missing_torch_is_told_with_the_extra_that_brings_it() -> None:
    done = cliptune(
        "probe", "--workload", "digits-mlp", program=f"import sys; sys.modules['torch'] = None; {PROGRAM}"
    )
    assert done.returncode == 2
    assert done.stderr == "cliptune: this command needs torch: pip install 'cliptune[tune]' [missing_extra]\n"


def test_interrupted_probe_leaves_no_process() -> None:
    command = [sys.executable, "-c", PROGRAM, "probe", "--workload", "charlm-rnn", "--seeds", "32"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
        deadline = time.monotonic() + 60
        while not (found := children.read_text().split()):
            assert time.monotonic() < deadline, "no training process was started"
            time.sleep(0.01)
        # Python ignores an interrupt that comes in the middle of a fork.
        while b"trainer" not in Path(f"/proc/{found[0]}/cmdline").read_bytes():
            assert time.monotonic() < deadline, "the training process never began"
            time.sleep(0.01)
        time.sleep(0.3)
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 130
    deadline = time.monotonic() + 60
    while Path(f"/proc/{found[0]}").exists():
        assert time.monotonic() < deadline, "the training process lives on"
        time.sleep(0.01)


def test_refusal_of_the_science_package_keeps_its_sentence_and_code() -> None:
    told = Broken(cause="bug", detail="ProbeError: the gradient is 0; repair it", traceback="Traceback ...")
    with pytest.raises(ProbeFailedError) as caught:
        refuse(told)
    assert (str(caught.value), caught.value.code) == ("the gradient is 0; repair it", "probe_failed")
    assert caught.value.exit_code == 2


def test_error_of_the_workloads_own_code_says_where_it_came_from() -> None:
    told = Broken(cause="bug", detail="KeyError: 'x'", traceback="Traceback ...\n  in my_workload.py")
    with pytest.raises(TrainingError, match=r"KeyError: 'x'\nTraceback ...\n  in my_workload.py") as caught:
        refuse(told)
    assert caught.value.cause == "bug"


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ('{"kind":"done"}', "gave no answer"),
        (
            '{"kind":"broken","cause":"bug","detail":"UnsupportedModelError: the loss must","traceback":""}',
            "the loss must",
        ),
        ("", "ended with exit code 7"),
    ],
)
def test_process_that_gives_no_answer_is_an_error(answer: str, says: str) -> None:
    line = f"{answer}\n".encode() if answer else b""
    code = f"import os, sys\nos.write(int(sys.argv[2]), {line!r})\nos._exit(7)"
    process = TrainingProcess((sys.executable, "-c", code), threads=1, kill_grace_seconds=5.0)
    try:
        with pytest.raises((ProbeFailedError, TrainingError), match=says):
            receive(process, ProbeMeasured, 60)
    finally:
        process.stop()


def test_process_that_hangs_is_given_up() -> None:
    code = "import time\ntime.sleep(600)"
    process = TrainingProcess((sys.executable, "-c", code), threads=1, kill_grace_seconds=5.0)
    try:
        with pytest.raises(TrainingError, match=r"said nothing for 0.1 s.*CLIPTUNE_STALL_SECONDS") as caught:
            receive(process, ProbeMeasured, 0.1)
    finally:
        process.stop()
    assert caught.value.cause == "stall"
