"""A study's trials on the monitor that CLIPTUNE_MONITOR names: what the database has anyway, where people look.

A monitor is worth less than the study: the first time that one breaks it is logged, and the study goes on without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import structlog

from service.launchers.protocol import Message
from tuner.evidence import Trial
from tuner.monitoring import TrialMonitors
from tuner.monitors import open_monitor
from tuner.training.cohort import RungReached, TrialEnded

log = structlog.get_logger(__name__)


class Showing:
    """Shows every trial that ends, one run per lane, called ``<study id>/<trial number> <setting> seed <seed>``.

    Args:
        monitor: see `tuner.monitors.open_monitor`; empty shows nothing.
        study_id: whose trials.
    """

    def __init__(self, monitor: str, *, study_id: str) -> None:
        self._monitor = monitor
        self._study_id = study_id
        self._monitors: TrialMonitors | None = None

    def expect(self, trials: Sequence[Trial], objective: Callable[[], str]) -> None:
        """Learn the numbers and settings of the trials that have not ended, and their rungs so far.

        Args:
            trials: of the study.
            objective: gives the name of what is minimized; asked once.
        """
        if not self._monitor:
            return
        if self._monitors is None:
            self._monitors = TrialMonitors(
                lambda run: open_monitor(self._monitor, run=f"{self._study_id}/{run}"), objective=objective()
            )
        self._monitors.expect(trials)

    def tell(self, messages: Iterable[Message]) -> None:
        """Show what was just written to the database.

        Args:
            messages: of the training, any kind.
        """
        for message in messages:
            if self._monitors is None or not isinstance(message, RungReached | TrialEnded):
                continue
            try:
                self._monitors(message)
            except Exception as error:
                self._monitor, self._monitors = "", None
                log.warning(
                    "monitor failed", action="monitor_failed", study_id=self._study_id, error=repr(error)
                )
