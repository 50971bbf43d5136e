"""What an answer says where a plain comparison would mislead: gaps, constants, failures on both sides."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from tuner.evidence import Reference, Stage, Trial, TrialState, Verdict
from tuner.search.recommendation import recommend
from tuner.spec import StudySpec

MakeTrial = Callable[..., Trial]
SPEC = StudySpec(workload="w", num_steps=100, effect=0.01)
OFF = (2.0, 2.1, 2.2)
WORSE = (2.5, 2.6, 2.7)


def numbered(*trials: Trial) -> list[Trial]:
    return [dataclasses.replace(each, number=number) for number, each in enumerate(trials)]


@pytest.mark.parametrize(
    ("others", "verdict"),
    [
        # 4 was never exceeded, and nothing between 1 and 4 was tried.
        ({"value:4": (OFF, 0.0)}, Verdict.INCONCLUSIVE),
        # Within a factor of 2 it was; what stopped early counts as tried.
        ({"value:1.9": (OFF, 0.0)}, Verdict.DO_NOT_CLIP),
        ({"value:2.5": (WORSE, 0.2), "value:4": (OFF, 0.0)}, Verdict.DO_NOT_CLIP),
        # Without a threshold that was never exceeded there is no such gap.
        ({"value:4": (WORSE, 0.2)}, Verdict.DO_NOT_CLIP),
        # Another method's thresholds say nothing about this one's.
        ({"global_norm:4": (OFF, 0.0)}, Verdict.DO_NOT_CLIP),
    ],
)
def test_clipping_is_not_said_to_hurt_while_thresholds_in_between_were_not_tried(
    reference: Reference, trial: MakeTrial, others: dict, verdict: Verdict
) -> None:
    more = [trial(name, *values, clip_fraction=share) for name, (values, share) in others.items()]
    trials = numbered(trial("none", *OFF), trial("value:1", *WORSE), *more)
    found = recommend(SPEC, reference, trials)
    assert found.verdict is verdict
    assert found.setting.is_off
    if verdict is Verdict.INCONCLUSIVE:
        assert "nothing between 1 and 4 was tried" in found.reason


def test_objective_that_never_changes_is_told(reference: Reference, trial: MakeTrial) -> None:
    trials = numbered(trial("none", 3.0, 3.0, 3.0), trial("value:1", 3.0, 3.0, 3.0))
    found = recommend(SPEC, reference, trials, objective="accuracy")
    assert found.verdict is Verdict.NO_DIFFERENCE
    assert "accuracy is the same (3) in every run" in found.reason
    assert "metric()" in found.reason


def test_open_answer_prefers_what_fails_less_often(reference: Reference, trial: MakeTrial) -> None:
    # A leader with a diverged seed on the confirmation's seeds only; off fails more often there.
    spec = dataclasses.replace(SPEC, num_seeds=2, num_confirm_seeds=4)
    fresh = (2, 3, 4, 5)

    def confirm(name: str, *values: float | None) -> Trial:
        made = trial(name, *values, stage=Stage.CONFIRM, seeds=fresh)
        lanes = tuple(
            dataclasses.replace(lane, seed=seed) for lane, seed in zip(made.lanes, fresh, strict=True)
        )
        return dataclasses.replace(made, lanes=lanes)

    trials = numbered(
        trial("none", 2.0, 2.1),
        trial("value:1", 1.9, 2.0),
        confirm("none", None, None, 2.0, 2.0),
        confirm("value:1", 2.3, 2.3, None, 2.3),
    )
    found = recommend(spec, reference, trials)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert str(found.setting) == "value:1"


def test_range_that_never_acts_says_where_to_look(reference: Reference, trial: MakeTrial) -> None:
    inert = trial("global_norm:9", *OFF, clip_fraction=0.0)
    found = recommend(SPEC, reference, numbered(trial("none", *OFF), inert))
    assert found.verdict is Verdict.NO_DIFFERENCE
    assert "Thresholds below 4 are the ones that would act" in found.reason


def test_settings_that_clipped_and_ended_early_are_not_forgotten(
    reference: Reference, trial: MakeTrial
) -> None:
    inert = trial("global_norm:9", *OFF, clip_fraction=0.0)
    early = trial("global_norm:0.1", *WORSE, clip_fraction=1.0, state=TrialState.PRUNED)
    found = recommend(SPEC, reference, numbered(trial("none", *OFF), inert, early))
    assert found.verdict is Verdict.INCONCLUSIVE
