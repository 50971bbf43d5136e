"""What a monitor is, and what opening one refuses."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Protocol

from tuner.errors import TunerError


class Monitor(Protocol):
    """Takes in the figures of one run.

    A monitor belongs to one thread. Figures may be NaN or infinite: that is what a diverging run looks like.
    """

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Show figures.

        Args:
            step: optimizer steps taken, >= 0.
            figures: by name: ``pre_clip_norm``, ``post_clip_norm``, ``scale``, ``clip_fraction``, ``train_loss``, and
                the objective's own name.
        """
        ...

    def close(self) -> None:
        """Write what is left and end the run; a second call does nothing."""
        ...


class MonitorError(TunerError, ValueError):
    """A monitor can't be opened as asked.

    Attributes:
        monitor: what was asked for.
        reason: what is wrong with it and what to give instead, as a sentence without its subject.
    """

    code = "bad_monitor"

    def __init__(self, monitor: str, reason: str) -> None:
        self.monitor = monitor
        self.reason = reason
        super().__init__(f"monitor {monitor!r} {reason}")


class MissingExtraError(TunerError, ImportError):
    """A package that is not part of the base install is needed.

    Attributes:
        package: its import name.
        extra: the extra of cliptune that installs it.
    """

    code = "missing_extra"

    def __init__(self, package: str, extra: str) -> None:
        self.package = package
        self.extra = extra
        super().__init__(f"the package {package} is not installed: pip install 'cliptune[{extra}]'")


def import_extra(package: str, *, extra: str) -> Any:
    """A package of an extra.

    Args:
        package: its import name.
        extra: which extra of cliptune installs it.

    Returns:
        The module.

    Raises:
        MissingExtraError: if it is not installed.
        ModuleNotFoundError: if it is, and what it needs itself is not.
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package.partition(".")[0]:
            raise
        raise MissingExtraError(package, extra) from error
