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
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as OptunaState

from tuner.evidence import Trial, TrialState
from tuner.search import axes
from tuner.search.space import Space, is_known
from tuner.search.statistics import mean_value
from tuner.spec import ClipSetting

#: Ended trials in the space before the sampler models them; below that it draws at random.
NUM_STARTUP_TRIALS = 4
#: Answers tried for one proposal before the widest gap is filled instead.
MAX_ATTEMPTS = 16


def propose(
    space: Space,
    trials: Sequence[Trial],
    chosen: Sequence[ClipSetting],
    *,
    count: int,
    seed: int,
) -> list[ClipSetting]:
    """New settings from a tree-structured Parzen estimator.

    Args:
        space: where settings may lie.
        trials: the study's trials that search, by number.
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
        study = _rebuild(space, trials, sampler_seed(seed, len(trials)))
        for setting in chosen:
            _add_running(study, space, setting)
        taken = [*(trial.setting for trial in trials), *chosen]
        for _ in range(count):
            taken.append(_propose_one(study, space, taken))
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


def _rebuild(space: Space, trials: Iterable[Trial], seed: int) -> optuna.Study:
    sampler = optuna.samplers.TPESampler(
        seed=seed, multivariate=True, constant_liar=True, n_startup_trials=NUM_STARTUP_TRIALS
    )
    study = optuna.create_study(direction="minimize", sampler=sampler)
    for trial in trials:
        if trial.state.is_open:
            _add_running(study, space, trial.setting)
        elif trial.state is not TrialState.FAIL and axes.is_inside(space, trial.setting):
            study.add_trial(_frozen(space, trial))
    return study


def _frozen(space: Space, trial: Trial) -> FrozenTrial:
    """An ended trial as Optuna stores it; a pruned one carries its rungs instead of a value."""
    is_complete = trial.state is TrialState.COMPLETE
    return create_trial(
        state=OptunaState.COMPLETE if is_complete else OptunaState.PRUNED,
        params=axes.params(space, trial.setting),
        distributions=axes.distributions(space, trial.setting.method),
        value=mean_value(lane.value for lane in trial.lanes) if is_complete else None,
        intermediate_values={
            step: mean_value(by_seed.values()) for step, by_seed in sorted(trial.rungs.items())
        },
        constraints={"diverged": float(trial.num_diverged)},
    )


def _add_running(study: optuna.Study, space: Space, setting: ClipSetting) -> None:
    if axes.is_inside(space, setting):
        study.add_trial(
            create_trial(
                state=OptunaState.RUNNING,
                params=axes.params(space, setting),
                distributions=axes.distributions(space, setting.method),
            )
        )


def _propose_one(study: optuna.Study, space: Space, taken: Sequence[ClipSetting]) -> ClipSetting:
    for _ in range(MAX_ATTEMPTS):
        trial = study.ask()
        setting = axes.suggest(trial, space)
        if not is_known(setting, taken):
            return setting
        study.tell(trial, state=OptunaState.FAIL)
    setting = _widest_gap(space, taken)
    _add_running(study, space, setting)
    return setting


def _widest_gap(space: Space, taken: Sequence[ClipSetting]) -> ClipSetting:
    """The middle, on the axis, of the widest stretch in which nothing was tried."""
    gaps = []
    for each in space.ranges:
        inside = sorted(other.threshold for other in taken if other.threshold and each.contains(other))
        edges = map(each.axis.coordinate, [each.low, *inside, each.high])
        for low, high in pairwise(edges):
            gaps.append((high / low, each.method, each.at(math.sqrt(high * low))))
    _, method, middle = max(gaps)
    rate = 1.0 if space.rates is None else space.rates.spread(1)[0]
    return ClipSetting(method=method, threshold=middle, learning_rate_scale=rate)


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna without its messages about studies and independent sampling, here and only here."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
