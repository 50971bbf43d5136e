"""`cliptune workload check` as a user runs it, in the folder of a module of theirs."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.cli.workload import checked_lines
from tuner.user_loop.findings import Checked, Finding

PROGRAM = "import sys; from service.cli.main import main; sys.argv[0] = 'cliptune'; main()"
MODULE = '''
import torch
from torch import nn


def train(trial):
    """A linear regression."""
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05 * trial.learning_rate_scale)
    for step in range(trial.num_steps + 1):
        if step in (0, trial.num_steps // 2, trial.num_steps):
            trial.report(step, float(model.weight.detach().square().sum()))
        inputs = torch.randn(8, 4)
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        if step < trial.num_steps:
            trial.clip(model)
            optimizer.step()


def silent(trial):
    """Reports nothing."""

    class Mute:
        num_steps, learning_rate_scale, clip = trial.num_steps, trial.learning_rate_scale, trial.clip

        def report(self, step, value):
            print("a workload may print")

    train(Mute())


def exits(trial):
    import os
    os._exit(9)


nothing = 3
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("mine")
    (found / "checked_mine.py").write_text(MODULE)
    return found


def cliptune(
    folder: Path, *arguments: str, program: str = PROGRAM, **settings: str
) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CLIPTUNE_")}
    environment |= {"COLUMNS": "120", "CLIPTUNE_HOME": str(folder / "home")} | settings
    command = [sys.executable, "-c", program, "workload", "check", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, cwd=folder)


def test_good_function_of_this_folder_passes(folder: Path) -> None:
    done = cliptune(folder, "checked_mine:train", "--steps", "10")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "checked_mine:train   function, 10 steps a run on cpu"
    assert [line.split()[:2] for line in lines[2:9]] == [
        ["ok", "clip"],
        ["ok", "report"],
        ["ok", "clipping"],
        ["ok", "repeatable"],
        ["ok", "seeds"],
        ["ok", "pruning"],
        ["note", "lanes"],
    ]
    assert lines[-1] == "  nothing to fix"
    assert "steps/s" in lines[-2] and "peak memory" in lines[-2]
    assert done.stderr == ""
    assert not (folder / "home").exists()


def test_what_is_to_be_fixed_is_exit_code_1(folder: Path) -> None:
    done = cliptune(folder, "checked_mine:silent", "--steps", "10")
    assert done.returncode == 1, done.stderr
    assert "fix   report         nothing was reported" in done.stdout
    assert "-> call trial.report(step, value)" in done.stdout
    assert done.stdout.splitlines()[-1] == "  1 thing to fix"


def test_registered_class_with_parameters_as_json(folder: Path) -> None:
    done = cliptune(folder, "digits-mlp", "--param", "hidden=4", "--steps", "5", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["workload"], document["form"], document["num_steps"]) == ("digits-mlp", "class", 5)
    assert {each["standing"] for each in document["findings"]} == {"ok"}
    assert document["lanes_per_second"] > 0 and document["solo_per_second"] > 0
    assert 0 < document["data_share"] < 1 and document["peak_bytes"] > 0
    model = next(each for each in document["findings"] if each["about"] == "model")
    assert model["text"].startswith("310 trainable numbers")


def test_workload_of_the_allow_list_is_found_by_its_name(folder: Path) -> None:
    given = {"CLIPTUNE_WORKLOADS": "mine=checked_mine:train", "CLIPTUNE_WORKLOAD_SOURCES": "none"}
    done = cliptune(folder, "mine", "--steps", "6", **given)
    assert done.returncode == 0, done.stderr
    done = cliptune(folder, "digits-mlp", **given)
    assert done.returncode == 2
    assert done.stderr == (
        "cliptune: no workload is called 'digits-mlp'; known workloads: mine [unknown_workload]\n"
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["checked_mine:gone"],
            "AttributeError: module 'checked_mine' has no attribute 'gone' [invalid_spec]",
        ),
        (["no_such_module:train"], "ModuleNotFoundError: No module named 'no_such_module' [invalid_spec]"),
        (["checked_mine:nothing"], "it is of type int; register a subclass of tuner.Workload"),
        (
            ["checked mine:train"],
            "workload must be MODULE:ATTRIBUTE or a registered name, got 'checked mine:train'",
        ),
        (["checked_mine:train", "--param", "width=3"], "parameters.width is no parameter of this workload"),
        (["digits-mlp", "--param", "hidden=0"], "parameters.hidden must be >= 1, got 0 [invalid_spec]"),
        (["checked_mine:exits"], "the training process ended with exit code 9"),
        (["checked_mine:train", "--steps", "0"], "'--steps'"),
        ([], "Missing argument 'workload'"),
    ],
)
def test_what_is_wrong_is_told_with_exit_code_2(folder: Path, arguments: list[str], says: str) -> None:
    done = cliptune(folder, *arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_wrong_settings_are_told(folder: Path) -> None:
    done = cliptune(folder, "mine", CLIPTUNE_WORKLOADS="mine=checked_mine")
    assert done.returncode == 2
    assert "CLIPTUNE_WORKLOADS='mine=checked_mine': " in done.stderr
    assert "must name MODULE:ATTRIBUTE" in done.stderr and done.stderr.endswith("[invalid_settings]\n")
    done = cliptune(folder, "mine", CLIPTUNE_WORKLOADS="digits-mlp=checked_mine:train")
    assert done.returncode == 2
    assert "register 'digits-mlp' twice: tuner.workloads.digits_mlp:DigitsMlp (built in) and " in done.stderr
    done = cliptune(folder, "mine", CLIPTUNE_WORKLOAD_SOURCES="builtin")
    assert done.returncode == 2
    assert "must be none or some of built_in, entry_points" in done.stderr


def test_probe_knows_registered_functions_and_says_why_one_is_refused(folder: Path) -> None:
    program = PROGRAM + "\n"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CLIPTUNE_")}
    inherited = environment.get("PYTHONPATH", "")
    environment |= {
        "CLIPTUNE_WORKLOADS": "mine=checked_mine:train,gone=checked_mine:gone",
        "PYTHONPATH": os.pathsep.join(filter(None, [".", inherited])),
        "COLUMNS": "120",
    }
    command = [sys.executable, "-c", program, "probe", "--seeds", "2", "--json", "--workload"]
    options = {"capture_output": True, "text": True, "timeout": 120, "env": environment, "cwd": folder}
    done = subprocess.run([*command, "mine"], **options)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["reference"]["num_batches"] == 100
    refused = subprocess.run([*command, "gone"], **options)
    assert refused.returncode == 2
    assert "has no attribute 'gone'" in refused.stderr


def test_missing_torch_is_told_with_the_extra_that_brings_it(folder: Path) -> None:
    done = cliptune(folder, "digits-mlp", program=f"import sys; sys.modules['torch'] = None; {PROGRAM}")
    assert done.returncode == 2
    assert done.stderr == "cliptune: this command needs torch: pip install 'cliptune[tune]' [missing_extra]\n"


def test_command_itself_loads_no_torch(folder: Path) -> None:
    program = (
        "import sys\nfrom service.cli.main import app\n"
        "app(sys.argv[1:], standalone_mode=False)\n"
        "print('loaded', sorted({'torch', 'optuna', 'numpy', 'sqlalchemy', 'httpx2'} & set(sys.modules)))"
    )
    done = cliptune(folder, "digits-mlp", "--steps", "2", program=program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded []"


def test_lines_leave_out_what_was_not_measured() -> None:
    checked = Checked(
        workload="w",
        form="function",
        num_steps=3,
        device="cpu",
        findings=(
            Finding(about="clip", standing="fix", text="No.", remedy="Do."),
            Finding(about="seeds", standing="fix", text="No."),
        ),
    )
    assert checked_lines(checked) == [
        "w   function, 3 steps a run on cpu",
        "",
        "  fix   clip           No.",
        "                       -> Do.",
        "  fix   seeds          No.",
        "",
        "  ",
        "  2 things to fix",
    ]
    full = dataclasses.replace(
        checked, solo_per_second=1234.5, lanes_per_second=9876.5, data_share=0.25, peak_bytes=2**30
    )
    assert checked_lines(full)[-2] == (
        "  solo 1,234 steps/s   lanes 9,876 steps/s over all lanes   25% of the time in train_batch   "
        "peak memory 1,024 MiB"
    )
