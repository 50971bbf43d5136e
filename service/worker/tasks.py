"""What is asked of the training side for a cohort, and how many steps came of it: pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from service.launchers.protocol import Message
from service.worker.side import CohortTask
from tuner.evidence import Trial, TrialState
from tuner.training.cohort import Cohort, Path, Progressed, Resumed, TrialEnded


def cohort_task(
    cohort: Cohort, trials: Sequence[Trial], *, paths: Mapping[int, Path], is_whole: bool
) -> CohortTask:
    """A cohort with what the database knows of it.

    Args:
        cohort: the open trials, as `tuner.search.planning.plan_cohort` gives them.
        trials: all trials of the study.
        paths: how the lanes of the study's cohorts train, by their number, as far as that was told.
        is_whole: whether it can't be split.

    Returns:
        Its number is that of the first open trial's cohort.
    """
    open_ids = {trial.id for trial in cohort.trials}
    ordered = sorted(trials, key=lambda trial: trial.number)
    numbers = {trial.cohort for trial in ordered if trial.id in open_ids}
    whole = [trial for trial in ordered if trial.cohort in numbers]
    number = next(trial.cohort for trial in ordered if trial.id in open_ids)
    return CohortTask(
        cohort=cohort,
        number=number,
        whole=tuple(trial.id for trial in whole),
        known=_known(cohort, [trial for trial in whole if trial.id in open_ids]),
        ended_at={trial.id: _last_rung(cohort, trial) for trial in whole if trial.state is TrialState.PRUNED},
        path=paths.get(number),
        is_whole=is_whole,
    )


def _known(cohort: Cohort, trials: Iterable[Trial]) -> dict[int, dict[str, Mapping[int, float]]]:
    """The recorded objectives of open trials, by rung step."""
    found: dict[int, dict[str, Mapping[int, float]]] = {}
    for trial in trials:
        for step, values in trial.rungs.items():
            if step in cohort.rung_steps:
                found.setdefault(step, {})[trial.id] = {
                    seed: math.inf if value is None else value for seed, value in values.items()
                }
    return found


def _last_rung(cohort: Cohort, trial: Trial) -> int:
    """The rung at which a trial was pruned."""
    reached = [index for index, step in enumerate(cohort.rung_steps) if step in trial.rungs]
    return max(reached, default=0)


class StepCount:
    """Counts a cohort's optimizer steps over all lanes: by its progress, and to the last one when its trials end.

    Steps from before a checkpoint were counted by whoever took them; steps that are taken a second time after a crash
    count once.
    """

    def __init__(self) -> None:
        self._resumed = self._counted = self._ended = 0

    def take(self, batch: Sequence[Message]) -> int:
        """How many steps are new.

        Args:
            batch: events of the cohort, in their order.

        Returns:
            Steps since the last call, >= 0.
        """
        before = self._counted
        for message in batch:
            match message:
                case Resumed(is_again=False):
                    self._resumed += message.lane_steps
                case Progressed():
                    self._counted = max(self._counted, message.lane_steps - self._resumed)
                case TrialEnded():
                    self._ended += sum(lane.num_steps for lane in message.lanes)
                    self._counted = max(self._counted, self._ended - self._resumed)
                case _:
                    pass
        return self._counted - before
