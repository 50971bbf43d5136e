"""Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, final

from tuner.monitors.base import import_extra


@final
class WandbMonitor:
    """One run of a project, beside any others of this process.

    Figures are drawn over their own ``step``, so that they may come in any order.

    Args:
        project: its name.
        run: the run's name; None lets W&B choose one.
        mode: ``online``, or ``offline`` for files that ``wandb sync`` uploads; None leaves it to WANDB_MODE.
        folder: where W&B keeps its files; None is the current one, or WANDB_DIR.

    Raises:
        MissingExtraError: without the extra ``wandb``.
    """

    def __init__(
        self,
        project: str,
        *,
        run: str | None = None,
        mode: Literal["online", "offline"] | None = None,
        folder: str | None = None,
    ) -> None:
        package = import_extra("wandb", extra="wandb")
        self._run: Any = package.init(
            project=project, name=run, mode=mode, dir=folder, reinit="create_new", settings={"silent": True}
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, figures: Mapping[str, float]) -> None:  # noqa: D102
        self._run.log({"step": step, **figures})

    def close(self) -> None:  # noqa: D102
        self._run.finish()
