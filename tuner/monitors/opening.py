"""From a text to a monitor: ``tensorboard:runs/a``, ``wandb:project`` or ``mlflow:sqlite:///mlflow.db``."""

from __future__ import annotations

import re
from pathlib import Path

from tuner.monitors.base import Monitor, MonitorError
from tuner.monitors.mlflow import MlflowMonitor
from tuner.monitors.tensorboard import TensorBoardMonitor
from tuner.monitors.wandb import WandbMonitor

_FORMS = "tensorboard:FOLDER, wandb:PROJECT or mlflow:ADDRESS"


def open_monitor(text: str, *, run: str | None = None) -> Monitor:
    """Open the monitor that a text names.

    Args:
        text: ``tensorboard:FOLDER``, ``wandb:PROJECT`` or ``mlflow:ADDRESS``, where the address is MLflow's own, for
            example ``http://127.0.0.1:5000`` or ``sqlite:///mlflow.db``.
        run: name of the run: a folder below FOLDER, or what W&B and MLflow call it; None is FOLDER itself, or a name of
            their own.

    Returns:
        The monitor; whoever opened it closes it.

    Raises:
        MonitorError: if the text names none.
        MissingExtraError: if its package is not installed.
    """
    kind, target = parse_monitor(text)
    if kind == "tensorboard":
        return TensorBoardMonitor(Path(target) / folder_name(run) if run else target)
    return WandbMonitor(target, run=run) if kind == "wandb" else MlflowMonitor(target, run=run)


def parse_monitor(text: str) -> tuple[str, str]:
    """Check a text without opening anything.

    Args:
        text: see `open_monitor`.

    Returns:
        The kind, and what stands behind its colon.

    Raises:
        MonitorError: if it names no monitor.

    Example:
        >>> parse_monitor("mlflow:sqlite:///mlflow.db")
        ('mlflow', 'sqlite:///mlflow.db')
    """
    kind, _, target = text.partition(":")
    if kind not in ("tensorboard", "wandb", "mlflow"):
        raise MonitorError(text, f"is of no known kind: give {_FORMS}")
    if not target.strip():
        raise MonitorError(text, f"has nothing behind {kind}: give {_FORMS}")
    return kind, target


def folder_name(run: str) -> str:
    """A run's name as the name of one folder, or of several where it has slashes.

    Args:
        run: any text that is not empty.

    Returns:
        The name with letters, digits and ``._@:=+-`` kept and everything else as one ``_``; it never leads upwards.

    Example:
        >>> folder_name("4 global_norm:0.35 seed 0"), folder_name("../x")
        ('4_global_norm:0.35_seed_0', '_/x')
    """
    parts = [re.sub(r"[^\w.@:=+-]+", "_", part) for part in run.split("/")]
    return "/".join("_" if part in ("", ".", "..") else part for part in parts)
