"""TensorBoard, written by tensorboardX: no TensorFlow, and no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from tuner.monitors.base import import_extra


@final
class TensorBoardMonitor:
    """One run as event files in a folder; ``tensorboard --logdir`` on it or its parent shows them.

    Args:
        folder: of this run alone; made if it is missing.

    Raises:
        MissingExtraError: without the extra ``tensorboard``.
    """

    def __init__(self, folder: Path | str) -> None:
        package = import_extra("tensorboardX", extra="tensorboard")
        self._writer: Any = package.SummaryWriter(str(folder))

    def log(self, step: int, figures: Mapping[str, float]) -> None:  # noqa: D102
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:  # noqa: D102
        self._writer.close()
