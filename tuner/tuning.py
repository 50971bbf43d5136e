"""Answer the question in this process: the same probe, cohorts and verdict as the service, as one call."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from tuner.evidence import Recommendation, Reference, Trial, TrialState
from tuner.inline.errors import CliptuneWarning
from tuner.monitoring import TrialMonitors
from tuner.monitors import MissingExtraError, open_monitor, parse_monitor
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
from tuner.user_loop.cohort import train_function_cohort
from tuner.user_loop.probe import measure_function
from tuner.workloads import AnyWorkload, FunctionWorkload, Workload, create_workload
from tuner.workloads.function import Train


def tune(
    workload: AnyWorkload | FunctionWorkload | Train | str,
    *,
    parameters: Mapping[str, ParameterValue] | None = None,
    on_event: Callable[[Event], None] | None = None,
    monitor: str | None = None,
    device: str = "cpu",
    progress: bool | None = None,
    compiles: bool = False,
    **fields: Any,
) -> Recommendation:
    """Which clip setting should this workload train with?

    Args:
        workload: a workload, the name of a built-in one, or a training function ``train(trial)``, as it is or made by
            `tuner.workloads.training_function`. A function trains in this process, where it likes.
        parameters: values for the parameters of a built-in workload or of a training function; leave out for a
            workload, which has its own.
        on_event: called with every event.
        monitor: where every trial that ends is shown, one run per lane: ``tensorboard:FOLDER``, ``wandb:PROJECT`` or
            ``mlflow:ADDRESS``; see `tuner.monitoring.TrialMonitors`. One that breaks is let go with a warning.
        device: where a workload trains, for example ``"cuda"``.
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
        LaneError: if the workload's code raised, or a function does not clip or report.
        ProbeError: if there is no usable gradient at the first weights.
        MonitorError: if ``monitor`` names none.

    Example:
        >>> answer = tune("digits-mlp", num_trials=2, num_seeds=2, num_steps=5, num_confirm_seeds=0)
        >>> answer.num_trials, answer.lane_steps
        (2, 20)
    """
    ready = _ready(workload, parameters or {})
    spec = _spec(ready, fields)
    monitors = None if monitor is None else _monitors(monitor, ready.objective)
    show = _shown_on(monitors)
    with ProgressBar(spec, is_shown=progress) as bar:

        def tell(event: Event) -> None:
            bar(event)
            if on_event is not None:
                on_event(event)
            show(event)

        if isinstance(ready, FunctionWorkload):
            reference = measure_function(ready, spec.seeds, num_steps=spec.num_steps)
        else:
            reference = measure_reference(ready, spec.seeds, device=device)
        tell(ProbeMeasured(reference=reference))
        trials = _train(spec, reference, ready, tell, monitors=monitors, device=device, compiles=compiles)
    return recommend(spec, reference, trials.values(), objective=ready.objective)


def _monitors(monitor: str, objective: str) -> TrialMonitors:
    """Runs of the monitor that the text names; a wrong text is refused before anything is trained."""
    parse_monitor(monitor)
    return TrialMonitors(lambda run: open_monitor(monitor, run=run), objective=objective)


def _shown_on(monitors: TrialMonitors | None) -> Callable[[Event], None]:
    """Shows events; monitors that break are let go, because they are worth less than the study."""
    left = [] if monitors is None else [monitors]

    def show(event: Event) -> None:
        try:
            for each in left:
                each(event)
        except MissingExtraError:
            raise
        except Exception as error:
            left.clear()
            warnings.warn(
                CliptuneWarning(f"trials are not shown on the monitor any more, it failed: {error!r}"),
                stacklevel=2,
            )

    return show


def _ready(
    workload: AnyWorkload | FunctionWorkload | Train | str, parameters: Mapping[str, ParameterValue]
) -> AnyWorkload | FunctionWorkload:
    """The workload to train."""
    if isinstance(workload, str):
        return create_workload(workload, parameters)
    if isinstance(workload, Workload):
        return workload
    function = workload if isinstance(workload, FunctionWorkload) else FunctionWorkload.of(workload)
    return function.create(parameters) if parameters else function


def _train(
    spec: StudySpec,
    reference: Reference,
    workload: AnyWorkload | FunctionWorkload,
    tell: Callable[[Event], None],
    *,
    monitors: TrialMonitors | None,
    device: str,
    compiles: bool,
) -> dict[str, Trial]:
    """All trials of a study, trained; by id."""
    trials: dict[str, Trial] = {}
    rehearsals = Rehearsals()

    def take(event: Event) -> None:
        record(trials, event)
        tell(event)

    while (asked := Search.from_trials(spec, reference, trials.values()).ask()) is not None:
        add(trials, asked)
        if monitors is not None:
            monitors.expect(trials.values())
        for ended in settled(trials.values()):
            take(ended)
        cohort = plan_cohort(spec, reference, workload.parameter_values, trials.values())
        if cohort is None:
            continue
        if isinstance(workload, FunctionWorkload):
            train_function_cohort(cohort, workload, tell=take)
            continue
        for event in train_cohort(
            cohort,
            workload,
            prune=halving(cohort.rung_steps, cohort.clips),
            device=device,
            compiles=compiles,
            rehearsals=rehearsals,
        ):
            take(event)
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


def _spec(workload: AnyWorkload | FunctionWorkload, fields: Mapping[str, Any]) -> StudySpec:
    """The study of a library call; a text or a setting may stand for ``current``."""
    document = {"workload": workload.name, "parameters": workload.parameter_values, **fields}
    current = document.get("current")
    if isinstance(current, str):
        current = ClipSetting.parse(current)
    if isinstance(current, ClipSetting):
        document["current"] = dataclasses.asdict(current)
    return study_spec(document)
