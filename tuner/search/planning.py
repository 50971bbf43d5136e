"""Turn a study's trials into the next cohort to train: pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tuner.evidence import Reference, Stage, Trial, TrialState
from tuner.parameters import ParameterValue
from tuner.search.statistics import mean_value
from tuner.spec import OFF_SETTING, StudySpec
from tuner.training.cohort import Cohort, CohortTrial

_WITH_RESULT = (TrialState.COMPLETE, TrialState.PRUNED)


def plan_cohort(
    spec: StudySpec,
    reference: Reference,
    parameters: Mapping[str, ParameterValue],
    trials: Iterable[Trial],
) -> Cohort | None:
    """The cohort of the open trials; of those that search first, then of one round of confirmation after the other.

    Every ended trial's rung values enter the history, those of a cohort that was interrupted too. What is left of
    such a cohort is therefore pruned against the same values as if it had not been interrupted.

    Args:
        spec: the question.
        reference: the probe's result, which gives clippers their scale.
        parameters: all the workload's parameters, resolved.
        trials: all trials of the study.

    Returns:
        Open trials by number; *off* and today's value are protected, and everything in a confirmation. None if no
        trial is open.
    """
    ordered = sorted(trials, key=lambda trial: trial.number)
    first = next((trial for trial in ordered if trial.state.is_open), None)
    if first is None:
        return None
    alike = [trial for trial in ordered if (trial.stage, trial.seeds) == (first.stage, first.seeds)]
    searches = first.stage is Stage.SEARCH
    open_trials = tuple(
        CohortTrial(
            id=trial.id,
            setting=trial.setting,
            protected=not searches or trial.setting == OFF_SETTING or trial.setting == spec.current,
        )
        for trial in alike
        if trial.state.is_open
    )
    cohorts = {trial.cohort for trial in alike if trial.state.is_open}
    return Cohort(
        workload=spec.workload,
        parameters=dict(parameters),
        trials=open_trials,
        seeds=first.seeds or spec.seeds,
        rung_steps=spec.rung_steps,
        divergence_factor=spec.divergence_factor,
        history=rung_history(spec.rung_steps, alike) if searches else {},
        reference_norm=reference.median_norm,
        largest_norm=None if reference.l2_norm is None else reference.l2_norm.max,
        lanes=spec.lanes,
        ended=tuple(trial.id for trial in alike if trial.cohort in cohorts and trial.state in _WITH_RESULT),
    )


def rung_history(rung_steps: Iterable[int], trials: Iterable[Trial]) -> dict[int, tuple[float, ...]]:
    """Means over seeds of all ended trials, at each rung they reached.

    Args:
        rung_steps: the study's rungs.
        trials: all trials; open and failed ones are left out.

    Returns:
        Per rung step the means, inf = diverged, in the order of ``trials``.
    """
    ended = [trial for trial in trials if trial.state in _WITH_RESULT]
    return {
        step: tuple(mean_value(trial.rungs[step].values()) for trial in ended if step in trial.rungs)
        for step in rung_steps
    }
