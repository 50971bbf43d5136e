"""The stretch of thresholds around the best that can't be told from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from tuner.evidence import Reference, Trial, TrialState
from tuner.search.recommendation import recommend
from tuner.spec import StudySpec

MakeTrial = Callable[..., Trial]
SPEC = StudySpec(workload="w", num_steps=100, effect=0.01, num_confirm_seeds=0)
OFF = (2.0, 2.1, 2.2)


def numbered(*trials: Trial) -> list[Trial]:
    return [dataclasses.replace(each, number=number) for number, each in enumerate(trials)]


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        # Worse by exactly 0.3 in each seed on both sides: only the best remains. Margin 0.021.
        ({"value:0.5": (1.8, 1.9, 2.0), "value:2": (1.8, 1.9, 2.0)}, (1.0, 1.0)),
        # Worse by 0.02 without any noise: below what matters.
        ({"value:0.5": (1.52, 1.62, 1.72), "value:2": (1.8, 1.9, 2.0)}, (0.5, 1.0)),
        # Noise: differences -0.3, 0.1, 0.8 don't exclude 0.
        ({"value:2": (1.2, 1.7, 2.5), "value:4": (1.8, 1.9, 2.0)}, (1.0, 2.0)),
        # A worse trial in between ends the stretch, however good the ones beyond it are.
        ({"value:2": (1.8, 1.9, 2.0), "value:4": (1.51, 1.61, 1.71)}, (1.0, 1.0)),
        # So does a diverged seed.
        ({"value:2": (1.5, None, 1.7), "value:4": (1.51, 1.61, 1.71)}, (1.0, 1.0)),
        # Another method has its own thresholds.
        ({"global_norm:2": (1.51, 1.61, 1.71)}, (1.0, 1.0)),
    ],
)
def test_interval_of_equally_good_thresholds(
    reference: Reference, trial: MakeTrial, others: dict, expected: tuple
) -> None:
    trials = [trial("none", *OFF), trial("value:1", 1.5, 1.6, 1.7)]
    trials += [trial(setting, *values) for setting, values in others.items()]
    found = recommend(SPEC, reference, numbered(*trials))
    assert str(found.setting) == "value:1"
    assert found.interval == expected


def test_interval_includes_inert_and_passes_over_pruned_trials(
    reference: Reference, trial: MakeTrial
) -> None:
    trials = numbered(
        trial("none", *OFF),
        trial("value:1", 1.5, 1.6, 1.7),
        trial("value:2", 5.0, 5.0, 5.0, state=TrialState.PRUNED),
        trial("value:4", 1.5, 1.6, 1.71, clip_fraction=0.0),
    )
    assert recommend(SPEC, reference, trials).interval == (1.0, 4.0)


def test_interval_ends_at_a_pruned_trial_that_diverged(reference: Reference, trial: MakeTrial) -> None:
    trials = numbered(
        trial("none", *OFF),
        trial("value:1", 1.5, 1.6, 1.7),
        trial("value:2", None, None, None, state=TrialState.PRUNED),
        trial("value:4", 1.51, 1.61, 1.71),
    )
    assert recommend(SPEC, reference, trials).interval == (1.0, 1.0)
