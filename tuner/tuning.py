"""Answer the question in this process: the same probe, cohorts and verdict as the service, as one call."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from tuner.evidence import Recommendation, Reference, Trial, TrialState
from tuner.parameters import ParameterValue
from tuner.progress import ProgressBar
from tuner.search.confirmation import Asked
from tuner.search.halving import halving
from tuner.search.planning import plan_cohort
from tuner.search.recommendation import recommend
from tuner.search.search import Search
from tuner.search.settling import settled
from tuner.spec import ClipSetting, StudySpec, study_spec
from tuner.training.cohort import Event, ProbeMeasured, RungReached, TrialEnded
from tuner.training.loop import train_cohort
from tuner.training.probe import measure_reference
from tuner.training.rehearsals import Rehearsals
from tuner.workloads import AnyWorkload, create_workload


def tune(
    workload: AnyWorkload | str,
    *,
    parameters: Mapping[str, ParameterValue] | None = None,
    on_event: Callable[[Event], None] | None = None,
    device: str = "cpu",
    progress: bool | None = None,
    compiles: bool = False,
    **fields: Any,
) -> Recommendation:
    """Which clip setting should this workload train with?

    Args:
        workload: a workload, or the name of a registered one.
        parameters: values for a registered workload's parameters; leave out for an instance, which has its own.
        on_event: called with every event.
        device: where to train, for example ``"cuda"``.
        progress: whether to show a progress bar; None shows one in a terminal or a notebook.
        compiles: whether batched programs are compiled with torch.compile, which takes tens of seconds per shape and
            makes each step faster: for long studies.
        **fields: the other fields of `tuner.StudySpec`, for example ``num_trials=8``; ``current`` may be a text
            such as ``"global_norm:1.0"``.

    Returns:
        The recommendation.

    Raises:
        SpecError: if a field is unknown or out of bounds.
        UnknownWorkloadError: if no workload has that name.
        LaneError: if the workload's code raised.

    Example:
        >>> answer = tune("digits-mlp", num_trials=2, num_seeds=2, num_steps=5, num_confirm_seeds=0)
        >>> answer.num_trials, answer.lane_steps
        (2, 20)
    """
    ready = create_workload(workload, parameters or {}) if isinstance(workload, str) else workload
    spec = _spec(ready, fields)
    with ProgressBar(spec, is_shown=progress) as bar:

        def tell(event: Event) -> None:
            bar(event)
            if on_event is not None:
                on_event(event)

        reference = measure_reference(ready, spec.seeds, device=device)
        tell(ProbeMeasured(reference=reference))
        trials = _train(spec, reference, ready, tell, device=device, compiles=compiles)
    return recommend(spec, reference, trials.values(), objective=ready.objective)


def _train(
    spec: StudySpec,
    reference: Reference,
    workload: AnyWorkload,
    tell: Callable[[Event], None],
    *,
    device: str,
    compiles: bool,
) -> dict[str, Trial]:
    """All trials of a study, trained; by id."""
    trials: dict[str, Trial] = {}
    rehearsals = Rehearsals()
    while (asked := Search.from_trials(spec, reference, trials.values()).ask()) is not None:
        add(trials, asked)
        for ended in settled(trials.values()):
            record(trials, ended)
            tell(ended)
        cohort = plan_cohort(spec, reference, workload.parameter_values, trials.values())
        if cohort is None:
            continue
        for event in train_cohort(
            cohort,
            workload,
            prune=halving(cohort.rung_steps, cohort.clips),
            device=device,
            compiles=compiles,
            rehearsals=rehearsals,
        ):
            record(trials, event)
            tell(event)
    return trials


def add(trials: dict[str, Trial], asked: Asked) -> None:
    """Put the settings that a search asked for into the trials, as a cohort of their own.

    Args:
        trials: by id; changed in place.
        asked: what is to be trained.
    """
    cohort = 1 + max((trial.cohort for trial in trials.values()), default=-1)
    for setting in asked.settings:
        number = len(trials)
        trials[str(number)] = Trial(
            id=str(number),
            number=number,
            cohort=cohort,
            setting=setting,
            stage=asked.stage,
            seeds=asked.seeds,
        )


def record(trials: dict[str, Trial], event: Event) -> None:
    """Put what an event says into the trials.

    Args:
        trials: by id; changed in place.
        event: any event of `tuner.training.loop.train_cohort`.
    """
    if isinstance(event, RungReached):
        for lane in event.values:
            trial = trials[lane.trial_id]
            rungs = {step: dict(by_seed) for step, by_seed in trial.rungs.items()}
            rungs.setdefault(event.step, {})[lane.seed] = lane.value
            trials[lane.trial_id] = dataclasses.replace(trial, rungs=rungs)
    elif isinstance(event, TrialEnded):
        trials[event.trial_id] = dataclasses.replace(
            trials[event.trial_id], state=TrialState(event.state), lanes=event.lanes
        )


def _spec(workload: AnyWorkload, fields: Mapping[str, Any]) -> StudySpec:
    """The study of a library call; a text or a setting may stand for ``current``."""
    document = {"workload": workload.name, "parameters": workload.parameter_values, **fields}
    current = document.get("current")
    if isinstance(current, str):
        current = ClipSetting.parse(current)
    if isinstance(current, ClipSetting):
        document["current"] = dataclasses.asdict(current)
    return study_spec(document)
