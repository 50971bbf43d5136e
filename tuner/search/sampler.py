"""Optuna as a search library: a study rebuilt in memory from the trials, asked, and thrown away.

Divergence is a violated constraint, never a made-up loss; an open trial is a running one, which the constant
liar keeps apart from new proposals; *off* and settings outside the ranges are not in the sampler's space.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as OptunaState

from tuner.evidence import Trial, TrialState
from tuner.search.space import ThresholdRange, is_known
from tuner.search.statistics import mean_value
from tuner.spec import ClipSetting

#: Ended trials in the space before the sampler models them; below that it draws at random.
NUM_STARTUP_TRIALS = 4
#: Answers tried for one proposal before the widest gap is filled instead.
MAX_ATTEMPTS = 16


def propose(
    ranges: Sequence[ThresholdRange],
    trials: Sequence[Trial],
    chosen: Sequence[ClipSetting],
    *,
    count: int,
    seed: int,
) -> list[ClipSetting]:
    """New settings from a tree-structured Parzen estimator.

    Args:
        ranges: one per method.
        trials: all trials of the study, by number.
        chosen: settings that will be trained beside the proposals.
        count: how many proposals, >= 1.
        seed: the study's; the sampler's own also depends on the number of trials, and on nothing else.

    Returns:
        Settings that differ from each other, from the trials' and from ``chosen``; where the sampler only repeats
        itself, the middle of the widest gap.

    Source:
        Watanabe (2023), https://arxiv.org/abs/2304.11127, as in `optuna.samplers.TPESampler`.
    """
    with _quiet():
        study = _rebuild(ranges, trials, sampler_seed(seed, len(trials)))
        for setting in chosen:
            _add_running(study, ranges, setting)
        taken = [*(trial.setting for trial in trials), *chosen]
        for _ in range(count):
            taken.append(_propose_one(study, ranges, taken))
    return taken[-count:]


def sampler_seed(seed: int, num_trials: int) -> int:
    """The sampler's seed.

    Args:
        seed: the study's.
        num_trials: trials known.

    Returns:
        A whole number below 2**32.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{num_trials}".encode()).digest()[:4], "big")


def _rebuild(ranges: Sequence[ThresholdRange], trials: Iterable[Trial], seed: int) -> optuna.Study:
    sampler = optuna.samplers.TPESampler(
        seed=seed, multivariate=True, constant_liar=True, n_startup_trials=NUM_STARTUP_TRIALS
    )
    study = optuna.create_study(direction="minimize", sampler=sampler)
    for trial in trials:
        if trial.state.is_open:
            _add_running(study, ranges, trial.setting)
        elif trial.state is not TrialState.FAIL and _is_inside(ranges, trial.setting):
            study.add_trial(_frozen(ranges, trial))
    return study


def _frozen(ranges: Sequence[ThresholdRange], trial: Trial) -> FrozenTrial:
    """An ended trial as Optuna stores it; a pruned one carries its rungs instead of a value."""
    is_complete = trial.state is TrialState.COMPLETE
    return create_trial(
        state=OptunaState.COMPLETE if is_complete else OptunaState.PRUNED,
        params=_params(ranges, trial.setting),
        distributions=_distributions(ranges, trial.setting.method),
        value=mean_value(lane.value for lane in trial.lanes) if is_complete else None,
        intermediate_values={
            step: mean_value(by_seed.values()) for step, by_seed in sorted(trial.rungs.items())
        },
        constraints={"diverged": float(trial.num_diverged)},
    )


def _add_running(study: optuna.Study, ranges: Sequence[ThresholdRange], setting: ClipSetting) -> None:
    if _is_inside(ranges, setting):
        study.add_trial(
            create_trial(
                state=OptunaState.RUNNING,
                params=_params(ranges, setting),
                distributions=_distributions(ranges, setting.method),
            )
        )


def _propose_one(
    study: optuna.Study, ranges: Sequence[ThresholdRange], taken: Sequence[ClipSetting]
) -> ClipSetting:
    for _ in range(MAX_ATTEMPTS):
        trial = study.ask()
        setting = _suggest(trial, ranges)
        if not is_known(setting, taken):
            return setting
        study.tell(trial, state=OptunaState.FAIL)
    setting = _widest_gap(ranges, taken)
    _add_running(study, ranges, setting)
    return setting


def _suggest(trial: optuna.Trial, ranges: Sequence[ThresholdRange]) -> ClipSetting:
    """A method (if there are several), then its threshold."""
    methods = [each.method for each in ranges]
    method = trial.suggest_categorical("method", methods) if len(methods) > 1 else methods[0]
    chosen = _range_of(ranges, method)
    coordinate = trial.suggest_float(_parameter(method), *chosen.coordinates, log=True)
    return ClipSetting(method=method, threshold=chosen.at(coordinate))


def _params(ranges: Sequence[ThresholdRange], setting: ClipSetting) -> dict[str, str | float | None]:
    """The values that `_suggest` would have drawn."""
    axis = _range_of(ranges, setting.method).axis
    coordinate = None if setting.threshold is None else axis.coordinate(setting.threshold)
    params: dict[str, str | float | None] = {_parameter(setting.method): coordinate}
    return params if len(ranges) == 1 else {"method": setting.method, **params}


def _distributions(ranges: Sequence[ThresholdRange], method: str) -> dict[str, BaseDistribution]:
    chosen = _range_of(ranges, method)
    threshold = {_parameter(method): FloatDistribution(*chosen.coordinates, log=True)}
    if len(ranges) == 1:
        return dict(threshold)
    return {"method": CategoricalDistribution([each.method for each in ranges]), **threshold}


def _parameter(method: str) -> str:
    return f"{method}.threshold"


def _range_of(ranges: Sequence[ThresholdRange], method: str) -> ThresholdRange:
    return next(each for each in ranges if each.method == method)


def _is_inside(ranges: Sequence[ThresholdRange], setting: ClipSetting) -> bool:
    return any(each.contains(setting) for each in ranges)


def _widest_gap(ranges: Sequence[ThresholdRange], taken: Sequence[ClipSetting]) -> ClipSetting:
    """The middle, on the axis, of the widest stretch in which nothing was tried."""
    gaps = []
    for each in ranges:
        inside = sorted(other.threshold for other in taken if other.threshold and each.contains(other))
        edges = map(each.axis.coordinate, [each.low, *inside, each.high])
        for low, high in pairwise(edges):
            gaps.append((high / low, each.method, each.at(math.sqrt(high * low))))
    _, method, middle = max(gaps)
    return ClipSetting(method=method, threshold=middle)


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna without its messages about studies and independent sampling, here and only here."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
