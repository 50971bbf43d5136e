"""Every monitor with its real package: what was logged is in its files."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monitor_files import Figures, tensorboard_figures, wandb_run
from torch import nn

from tuner import Clipper
from tuner.monitors import (
    MissingExtraError,
    MlflowMonitor,
    Monitor,
    MonitorError,
    TensorBoardMonitor,
    WandbMonitor,
    open_monitor,
)
from tuner.monitors.base import import_extra
from tuner.monitors.opening import parse_monitor

# MLflow's SQL store still asks SQLAlchemy 2.1 for the noload strategy.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

Opened = tuple[Monitor, Callable[[], Figures]]


def tensorboard(folder: Path) -> Opened:
    return TensorBoardMonitor(folder / "run"), lambda: tensorboard_figures(folder / "run")


def wandb(folder: Path) -> Opened:
    monitor = WandbMonitor("cliptune-test", run="4 none", mode="offline", folder=str(folder))
    return monitor, lambda: wandb_run(folder)[2]


def mlflow(folder: Path) -> Opened:
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    return MlflowMonitor(uri, run="4 none"), lambda: mlflow_run(uri)[1]


def mlflow_run(uri: str, experiment: str = "cliptune") -> tuple[Any, Figures]:
    """The newest run of an experiment and its figures, by MLflow's own client."""
    client = import_extra("mlflow", extra="mlflow").MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    history = {
        name: {point.step: point.value for point in client.get_metric_history(run.info.run_id, name)}
        for name in run.data.metrics
    }
    return run, history


@pytest.fixture(params=[tensorboard, wandb, mlflow], ids=lambda each: each.__name__)
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
    open_it: Callable[[Path], Opened] = request.param
    return open_it(tmp_path)


def test_figures_are_where_the_package_keeps_them(opened: Opened) -> None:
    monitor, read = opened
    monitor.log(50, {"pre_clip_norm": 3.0, "clip_fraction": 0.25})
    monitor.log(100, {"pre_clip_norm": 2.0})
    # The objective of an earlier step may come later.
    monitor.log(75, {"val_loss": 1.5})
    monitor.close()
    monitor.close()
    assert read() == {
        "pre_clip_norm": {50: 3.0, 100: 2.0},
        "clip_fraction": {50: 0.25},
        "val_loss": {75: 1.5},
    }


def test_run_that_diverges_is_shown(opened: Opened) -> None:
    monitor, read = opened
    monitor.log(1, {"pre_clip_norm": math.nan, "train_loss": math.inf, "scale": 1.0})
    monitor.close()
    found = read()
    assert found["scale"] == {1: 1.0}
    assert not math.isfinite(float(found["pre_clip_norm"][1]))
    # MLflow's SQL store keeps the largest number in place of an infinity.
    assert float(found["train_loss"][1]) > 1e300


def test_clipper_tells_a_monitor_while_it_trains(opened: Opened) -> None:
    monitor, read = opened
    weight = nn.Parameter(torch.zeros(1))
    clipper = Clipper.from_setting("global_norm:0.5", monitor=monitor, monitor_every=2)
    for gradient in (0.25, 1.0, 1.0, 4.0):
        weight.grad = torch.tensor([gradient])
        clipper([weight], loss=torch.tensor(gradient))
    monitor.close()
    found = read()
    assert set(found) == {"pre_clip_norm", "post_clip_norm", "scale", "clip_fraction", "train_loss"}
    assert found["pre_clip_norm"] == {2: 1.0, 4: 4.0}
    assert found["post_clip_norm"] == pytest.approx({2: 0.5, 4: 0.5}, rel=1e-5)
    assert found["scale"] == pytest.approx({2: 0.5, 4: 0.125}, rel=1e-5)
    assert found["clip_fraction"] == {2: 0.5, 4: 1.0}
    assert found["train_loss"] == {2: 1.0, 4: 4.0}


def test_wandb_runs_stand_side_by_side(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for each in folders:
        each.mkdir()
    runs = [WandbMonitor("p", run=each.name, mode="offline", folder=str(each)) for each in folders]
    for number, run in enumerate(runs):
        run.log(1, {"scale": float(number)})
    for run in runs:
        run.close()
    assert [wandb_run(each) for each in folders] == [
        ("p", "one", {"scale": {1: 0}}),
        ("p", "two", {"scale": {1: 1}}),
    ]


def test_mlflow_run_is_named_and_ends(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monitor = open_monitor(f"mlflow:{uri}", run="4 none seed 0")
    monitor.log(1, {"scale": 1.0})
    assert mlflow_run(uri)[0].info.status == "RUNNING"
    monitor.close()
    run, _ = mlflow_run(uri)
    assert (run.info.run_name, run.info.status) == ("4 none seed 0", "FINISHED")
    other = MlflowMonitor(uri, experiment="other")
    other.close()
    assert mlflow_run(uri, "other")[0].info.status == "FINISHED"


def test_mlflow_folder_needs_its_own_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"mlflow:file:{tmp_path / 'mlruns'}"
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    with pytest.raises(MonitorError, match=r"is refused by MLflow: .*MLFLOW_ALLOW_FILE_STORE=true") as raised:
        open_monitor(text)
    assert raised.value.code == "bad_monitor"
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monitor = open_monitor(text, run="4 none")
    monitor.log(3, {"scale": 0.5})
    monitor.close()
    run, figures = mlflow_run(text.removeprefix("mlflow:"))
    assert (run.info.run_name, figures) == ("4 none", {"scale": {3: 0.5}})


def test_tensorboard_run_is_a_folder_of_the_runs_name(tmp_path: Path) -> None:
    monitor = open_monitor(f"tensorboard:{tmp_path}", run="my study/4 global_norm:0.35 seed 0")
    monitor.log(1, {"scale": 1.0})
    monitor.close()
    assert tensorboard_figures(tmp_path / "my_study" / "4_global_norm:0.35_seed_0") == {"scale": {1: 1.0}}
    whole = open_monitor(f"tensorboard:{tmp_path / 'whole'}")
    whole.close()
    assert list((tmp_path / "whole").glob("events.out.tfevents.*"))


def test_wandb_opened_by_text_is_offline_if_the_environment_says_so(tmp_path: Path) -> None:
    """In a process of its own: W&B reads its environment once."""
    program = """
from tuner.monitors import open_monitor
monitor = open_monitor("wandb:my-project", run="7 none seed 1")
monitor.log(1, {"val_loss": 2.0})
monitor.close()
"""
    environment = os.environ | {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert wandb_run(tmp_path) == ("my-project", "7 none seed 1", {"val_loss": {1: 2}})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "monitor '' is of no known kind: give tensorboard:FOLDER, wandb:PROJECT or mlflow:ADDRESS"),
        ("runs/x", "monitor 'runs/x' is of no known kind"),
        ("neptune:x", "monitor 'neptune:x' is of no known kind"),
        ("tensorboard", "monitor 'tensorboard' has nothing behind tensorboard: give"),
        ("wandb: ", "monitor 'wandb: ' has nothing behind wandb: give"),
    ],
)
def test_text_that_names_no_monitor_is_refused(text: str, words: str) -> None:
    for read in (open_monitor, parse_monitor):
        with pytest.raises(MonitorError) as raised:
            read(text)
        assert str(raised.value).startswith(words)


@pytest.mark.parametrize(
    ("package", "extra", "call"),
    [
        ("tensorboardX", "tensorboard", "TensorBoardMonitor('x')"),
        ("wandb", "wandb", "WandbMonitor('x')"),
        ("mlflow", "mlflow", "MlflowMonitor('sqlite:///x')"),
        ("sqlalchemy", "server", "MlflowMonitor('sqlite:///x')"),
        ("alembic", "server", "MlflowMonitor('sqlite:///x')"),
    ],
)
def test_missing_package_names_its_extra(package: str, extra: str, call: str) -> None:
    """In a process that can't import it, as on a machine where it is not installed."""
    program = f"""
import sys

sys.modules[{package!r}] = None
from tuner.monitors import MissingExtraError, MlflowMonitor, TensorBoardMonitor, WandbMonitor
try:
    {call}
except MissingExtraError as error:
    print(error.code, "|", error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == (
        f"missing_extra | the package {package} is not installed: pip install 'cliptune[{extra}]'"
    ), done.stderr


def test_package_that_is_broken_itself_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_installed.py").write_text("import what_it_needs\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="what_it_needs") as raised:
        import_extra("half_installed", extra="wandb")
    assert not isinstance(raised.value, MissingExtraError)


def test_monitors_load_no_package_before_one_is_opened() -> None:
    program = (
        "import sys, tuner.monitors, tuner.monitoring\n"
        "print([name for name in ('tensorboardX', 'wandb', 'mlflow', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
