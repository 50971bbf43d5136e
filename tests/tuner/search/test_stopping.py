"""Each reason to end a search early, and its near miss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from tuner.evidence import Reference, Stage, Trial, TrialState
from tuner.search.search import Search
from tuner.search.stopping import reason_to_stop
from tuner.spec import StudySpec

MakeTrial = Callable[..., Trial]
SPEC = StudySpec(workload="w", num_trials=40, num_seeds=2, effect=0.1)


def test_thresholds_that_were_never_exceeded_end_it(trial: MakeTrial) -> None:
    trials = [
        trial("none", 2.0, 2.1),
        trial("global_norm:5", 2.0, 2.1, clip_fraction=0.0),
        trial("global_norm:9", 2.0, 2.1, clip_fraction=0.0, state=TrialState.PRUNED),
        trial("global_norm:8", state=TrialState.FAIL),
    ]
    found = reason_to_stop(SPEC, trials)
    assert found == "none of 2 thresholds was ever exceeded, so that each trained like off"


@pytest.mark.parametrize(
    "more",
    [
        {"setting": "global_norm:1", "values": (9.0, 9.0), "clip_fraction": 0.01},
        {"setting": "global_norm:1", "values": (9.0, 9.0), "state": TrialState.PRUNED},
        {"setting": "global_norm:1", "values": (1.0, None), "clip_fraction": 0.0},
    ],
)
def test_one_that_was_exceeded_or_diverged_goes_on(trial: MakeTrial, more: dict) -> None:
    inert = [trial("none", 2.0, 2.1), trial("global_norm:5", 2.0, 2.1, clip_fraction=0.0)]
    setting, values = more.pop("setting"), more.pop("values")
    assert reason_to_stop(SPEC, [*inert, trial(setting, *values, number=2, **more)]) is None


def test_off_alone_or_failures_alone_go_on(trial: MakeTrial) -> None:
    assert reason_to_stop(SPEC, []) is None
    assert reason_to_stop(SPEC, [trial("none", 2.0, 2.1)]) is None
    assert reason_to_stop(SPEC, [trial("none", 2.0, 2.1), trial("value:1", state=TrialState.FAIL)]) is None


def unlike_off(
    trial: MakeTrial, *means: float, off: tuple[float | None, float | None] = (2.0, 2.0)
) -> list[Trial]:
    """Settings a factor of 2 apart whose differences from off are 0.1 above and below their means."""
    trials = [trial("none", *off)]
    for number, mean in enumerate(means, start=1):
        trials.append(trial(f"global_norm:{2.0**-number}", 2.0 + mean - 0.1, 2.0 + mean + 0.1, number=number))
    return trials


def test_settings_that_cannot_beat_off_end_it(trial: MakeTrial) -> None:
    # Variance 0.02 in each of three; t(0.975, 3) = 3.1824; half = 3.1824 * root(0.02 / 2) = 0.3182; margin 0.2.
    # The best is better by -0.12: at most 0.198.
    found = reason_to_stop(SPEC, unlike_off(trial, 0.12, 0.3, 0.4))
    assert found == (
        "none of 3 settings trained to the end can be better than off by the 0.1 that matters "
        "(the best by -0.12, at most 0.198)"
    )


@pytest.mark.parametrize(
    ("means", "off"),
    [
        ((0.118, 0.3, 0.4), (2.0, 2.0)),  # at most 0.2002, which matters
        ((-0.5, 0.3, 0.4), (2.0, 2.0)),
        ((0.3, 0.4), (2.0, 2.0)),  # two settings say too little
        ((0.3, 0.4, 0.5), (2.0, None)),  # off itself is in doubt
    ],
)
def test_settings_that_might_beat_off_go_on(
    trial: MakeTrial, means: tuple[float, ...], off: tuple[float | None, float | None]
) -> None:
    assert reason_to_stop(SPEC, unlike_off(trial, *means, off=off)) is None


def test_spread_is_pooled_over_settings_that_trained_to_the_end(trial: MakeTrial) -> None:
    trials = unlike_off(trial, 0.12, 0.3, 0.4)
    pruned = trial("global_norm:7", 1.0, 9.0, number=8, state=TrialState.PRUNED)
    diverged = trial("global_norm:8", 1.0, None, number=9)
    fresh = trial("global_norm:0.5", 1.0, 1.0, number=10, stage=Stage.CONFIRM, seeds=(2, 3))
    assert reason_to_stop(SPEC, [*trials, pruned, diverged, fresh]) == reason_to_stop(SPEC, trials)
    noisy = trial("global_norm:6", 2.0, 3.0, number=8)
    assert reason_to_stop(SPEC, [*trials, noisy]) is None


def leading(
    trial: MakeTrial, *thresholds: float, best: float = 1.0, method: str = "global_norm"
) -> list[Trial]:
    """A plain winner among thresholds."""
    trials = [trial("none", 5.0, 5.1)]
    for number, threshold in enumerate(thresholds, start=1):
        value = 1.0 if threshold == best else 2.0
        trials.append(trial(f"{method}:{threshold}", value, value + 0.1, number=number))
    return trials


@pytest.mark.parametrize(
    ("thresholds", "ends"),
    [
        ((0.77, 1.0, 1.3), True),  # 1 / 0.77 = 1.2987
        ((0.1, 0.8, 1.0, 1.2, 9.0), True),
        ((0.76, 1.0, 1.3), False),  # 1 / 0.76 = 1.3158
        ((0.77, 1.0, 1.31), False),
        ((0.8, 1.0), False),  # nothing above
        ((1.0, 1.2), False),  # nothing below
        ((1.0,), False),
    ],
)
def test_close_neighbours_on_both_sides_end_it(
    trial: MakeTrial, thresholds: tuple[float, ...], ends: bool
) -> None:
    found = reason_to_stop(SPEC, leading(trial, *thresholds))
    assert (found is not None) is ends
    if found:
        assert found.startswith("thresholds within 30 % on both sides of global_norm:1 were tried")


def test_neighbours_are_close_on_the_methods_own_axis(trial: MakeTrial) -> None:
    # Excesses 0.1, 0.12 and 0.15: ratios 1.2 and 1.25. As numbers 1.1, 1.12 and 1.3 would all be close.
    spec = dataclasses.replace(SPEC, methods=("adagc",))
    close = reason_to_stop(spec, leading(trial, 1.1, 1.12, 1.15, best=1.12, method="adagc"))
    assert close is not None
    assert close.endswith("(1.1 and 1.15)")
    assert reason_to_stop(spec, leading(trial, 1.1, 1.12, 1.3, best=1.12, method="adagc")) is None


def test_neighbours_need_not_be_sound_but_must_have_been_tried(trial: MakeTrial) -> None:
    trials = leading(trial, 1.0)
    pruned = trial("global_norm:0.9", 9.0, 9.0, number=5, state=TrialState.PRUNED)
    diverged = trial("global_norm:1.1", None, None, number=6)
    failed = trial("global_norm:1.1", number=6, state=TrialState.FAIL)
    other = trial("value:1.1", 3.0, 3.0, number=6)
    assert reason_to_stop(SPEC, [*trials, pruned, diverged]) is not None
    assert reason_to_stop(SPEC, [*trials, pruned, failed]) is None
    assert reason_to_stop(SPEC, [*trials, pruned, other]) is None


def test_other_questions_need_the_whole_budget(trial: MakeTrial) -> None:
    bracketed = leading(trial, 0.8, 1.0, 1.2)
    several = dataclasses.replace(SPEC, methods=("global_norm", "value"))
    assert reason_to_stop(several, bracketed) is None
    rates = dataclasses.replace(SPEC, learning_rate_low=0.1, learning_rate_high=10.0)
    assert reason_to_stop(rates, bracketed) is None
    assert reason_to_stop(rates, unlike_off(trial, 0.12, 0.3, 0.4)) is None
    # What can't beat off can't with several methods either.
    assert reason_to_stop(several, unlike_off(trial, 0.12, 0.3, 0.4)) is not None


def test_search_ends_with_the_reason_only_after_its_opening(trial: MakeTrial, reference: Reference) -> None:
    spec = dataclasses.replace(SPEC, cohort_size=4)
    opening = Search.from_trials(spec, reference, []).ask()
    assert opening is not None
    trials = [
        trial(str(each), 2.0, 2.1, number=number, clip_fraction=0.0)
        for number, each in enumerate(opening.settings)
    ]
    whole = Search.from_trials(spec, reference, trials)
    assert whole.end is None, "the opening has one more threshold than fits the first cohort"
    last = whole.ask()
    assert last is not None
    trials.append(trial(str(last.settings[0]), 2.0, 2.1, number=4, clip_fraction=0.0))
    found = Search.from_trials(spec, reference, trials)
    assert found.end == "none of 4 thresholds was ever exceeded, so that each trained like off"
    assert found.ask() is None
    waiting = trial(str(last.settings[0]), number=4, state=TrialState.WAITING)
    assert Search.from_trials(spec, reference, [*trials[:4], waiting]).end is None
