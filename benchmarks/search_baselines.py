"""How thresholds are tuned without this project, on the same curves: Optuna, a grid, and ASHA.

Each takes the range that a study derives from the probe, which its user would have to guess, and tries *off* first. A
run of several seeds trains them in step and reports their mean; a run with a diverged seed ends there.
"""

from __future__ import annotations

import heapq
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState as OptunaState
from optuna.trial import create_trial

from benchmarks.search_curves import AbstractCurves
from benchmarks.search_studies import Outcome
from tuner.evidence import Verdict
from tuner.search.space import threshold_ranges
from tuner.spec import OFF_SETTING, ClipSetting, StudySpec

METHOD = "global_norm"
#: As in a study that sets neither.
DEFAULTS = StudySpec(workload="simulated")
#: Trials of Optuna and of ASHA, *off* among them.
NUM_TRIALS = 30
#: Reports per full run to Optuna's pruner.
NUM_REPORTS = 10
#: ASHA as in Ray Tune: reduction factor 4, here with the first comparison at a sixteenth; runs at a time.
ASHA_FACTOR, ASHA_LEVELS, ASHA_WORKERS = 4, 2, 4


class Runs:
    """Trains settings on curves, and counts the steps.

    Args:
        curves: of every lane.
        num_seeds: per setting.

    Attributes:
        lane_steps: taken so far, over all seeds.
    """

    def __init__(self, curves: AbstractCurves, num_seeds: int) -> None:
        self.curves = curves
        self.num_seeds = num_seeds
        self.lane_steps = 0

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest threshold, as in a study that sets neither."""
        (found,) = threshold_ranges(DEFAULTS, self.curves.reference)
        return found.low, found.high

    def advance(self, setting: ClipSetting, start: int, step: int) -> float:
        """Train on, from one step to another.

        Args:
            setting: of the run.
            start: where it is.
            step: where it is to go.

        Returns:
            The mean objective there; inf if a seed has diverged.
        """
        values = []
        for seed in range(self.num_seeds):
            curve = self.curves.curve(setting, seed)
            values.append(curve.value_at(step, DEFAULTS.divergence_factor))
            end = step if curve.divergence_step is None else min(step, curve.divergence_step)
            self.lane_steps += max(0, end - start)
        return math.inf if None in values else float(np.mean([each for each in values if each is not None]))

    def points(self, setting: ClipSetting, steps: Sequence[int]) -> Iterator[tuple[int, float]]:
        """Train from the beginning, and tell the objective at each of some steps; ends where a seed has diverged."""
        start = 0
        for step in steps:
            value = self.advance(setting, start, step)
            yield step, value
            if value == math.inf:
                return
            start = step

    def answer(self, values: dict[ClipSetting, float]) -> Outcome:
        """What a user would take from the values: the lowest, and *off* where none is."""
        off = values[OFF_SETTING]
        setting = min(values, key=lambda each: (values[each], not each.is_off))
        gain = off - values[setting] if off < math.inf else math.inf
        matters = not setting.is_off and gain >= DEFAULTS.effect * abs(off)
        return Outcome(
            setting=setting,
            verdict=Verdict.CLIP if matters else Verdict.NO_DIFFERENCE,
            lane_steps=self.lane_steps,
        )


def tpe(curves: AbstractCurves, seed: int, *, num_seeds: int) -> Outcome:
    """Optuna's default sampler and its median pruner, both as they are."""
    sampler = optuna.samplers.TPESampler(seed=seed)
    return _optuna(curves, sampler, optuna.pruners.MedianPruner(), num_seeds)


def gaussian_process(curves: AbstractCurves, seed: int, *, num_seeds: int = 1) -> Outcome:
    """Optuna's Gaussian process sampler; every run goes to the end, unless it diverges."""
    sampler = optuna.samplers.GPSampler(seed=seed)
    return _optuna(curves, sampler, optuna.pruners.NopPruner(), num_seeds)


def _optuna(
    curves: AbstractCurves,
    sampler: optuna.samplers.BaseSampler,
    pruner: optuna.pruners.BasePruner,
    num_seeds: int,
) -> Outcome:
    runs = Runs(curves, num_seeds)
    steps = [curves.num_steps * part // NUM_REPORTS for part in range(1, NUM_REPORTS + 1)]
    values: dict[ClipSetting, float] = {}
    with _quiet():
        study = optuna.create_study(sampler=sampler, pruner=pruner)
        points = dict(runs.points(OFF_SETTING, steps))
        values[OFF_SETTING] = points[max(points)]
        study.add_trial(create_trial(value=values[OFF_SETTING], intermediate_values=points))
        space = {"threshold": FloatDistribution(*runs.range, log=True)}
        for _ in range(NUM_TRIALS - 1):
            trial = study.ask(space)
            setting = ClipSetting(method=METHOD, threshold=trial.params["threshold"])
            value = _follow(trial, runs.points(setting, steps))
            state = OptunaState.PRUNED if value is None else OptunaState.COMPLETE
            study.tell(trial, value, state=state)
            if value is not None:
                values[setting] = value
    return runs.answer(values)


def _follow(trial: optuna.Trial, points: Iterator[tuple[int, float]]) -> float | None:
    """Report a run until it ends; its value, None if it was pruned or diverged."""
    value = math.inf
    for step, value in points:
        trial.report(value, step)
        if value == math.inf or trial.should_prune():
            return None
    return value


def grid(curves: AbstractCurves, seed: int, *, num_values: int = 8, num_seeds: int = 3) -> Outcome:
    """Log-spaced thresholds over the range, and *off*, all to the end."""
    del seed
    runs = Runs(curves, num_seeds)
    found = np.geomspace(*runs.range, num_values)
    settings = [OFF_SETTING, *(ClipSetting(method=METHOD, threshold=float(each)) for each in found)]
    return runs.answer({each: runs.advance(each, 0, curves.num_steps) for each in settings})


def asha(curves: AbstractCurves, seed: int, *, num_seeds: int = 1) -> Outcome:
    """Random settings, stopped early as Ray Tune's scheduler does, four at a time.

    A run that reaches a milestone stops if its value is worse than the best quarter of the values seen there before
    (Ray's ``AsyncHyperBandScheduler``, one bracket). The answer is the run with the best last value.

    Source:
        Li et al. (2020), https://arxiv.org/abs/1810.05934.
    """
    runs = Runs(curves, num_seeds)
    low, high = runs.range
    drawn = np.exp(np.random.default_rng(seed).uniform(math.log(low), math.log(high), NUM_TRIALS - 1))
    waiting = [OFF_SETTING, *(ClipSetting(method=METHOD, threshold=float(each)) for each in drawn)][::-1]
    milestones = [curves.num_steps // ASHA_FACTOR**level for level in range(ASHA_LEVELS, -1, -1)]
    seen: dict[int, list[float]] = {step: [] for step in milestones}
    values: dict[ClipSetting, float] = {}
    # Per run in training: when it reaches its next milestone, a number that breaks ties, and which milestone that is.
    active = [(milestones[0], number, waiting.pop(), 0) for number in range(ASHA_WORKERS)]
    started = ASHA_WORKERS
    while active:
        now, number, setting, level = heapq.heappop(active)
        step = milestones[level]
        value = runs.advance(setting, milestones[level - 1] if level else 0, step)
        values[setting] = value
        stops = value == math.inf or step == curves.num_steps or _is_worse(value, seen[step])
        seen[step].append(value)
        if not stops:
            heapq.heappush(active, (now + milestones[level + 1] - step, number, setting, level + 1))
        elif waiting:
            heapq.heappush(active, (now + milestones[0], started, waiting.pop(), 0))
            started += 1
    return runs.answer(values)


def _is_worse(value: float, earlier: Sequence[float]) -> bool:
    finite = [min(each, sys.float_info.max) for each in earlier]
    return bool(finite) and value > float(np.percentile(finite, 100 / ASHA_FACTOR))


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna without a line per trial."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
