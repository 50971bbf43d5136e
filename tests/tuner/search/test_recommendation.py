"""Verdicts on the search's own seeds, as tables with their arithmetic.

Half width with 3 seeds: 4.3027 / root 3 = 2.4842 deviations, for a single candidate. Chosen
among 2 it is 6.2053 / root 3 = 3.5826 deviations (quantile at 1 - 0.025 / 2).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import pytest

from tuner.errors import NoTrialsError
from tuner.evidence import Reference, Trial, TrialState, Verdict
from tuner.search.recommendation import recommend
from tuner.spec import ClipSetting, StudySpec

MakeTrial = Callable[..., Trial]
SPEC = StudySpec(workload="w", num_trials=6, num_steps=100, effect=0.01, num_confirm_seeds=0)
OFF = (2.0, 2.1, 2.2)


def numbered(*trials: Trial) -> list[Trial]:
    return [dataclasses.replace(each, number=number) for number, each in enumerate(trials)]


@pytest.mark.parametrize(
    ("clip", "verdict", "setting"),
    [
        # Differences -0.5, -0.5, -0.5: no spread; margin 0.01 * 2.1 = 0.021.
        ((1.5, 1.6, 1.7), Verdict.CLIP, "value:1"),
        ((2.5, 2.6, 2.7), Verdict.DO_NOT_CLIP, "none"),
        # Differences -0.001, 0, 0.001: half width 0.0025.
        ((1.999, 2.1, 2.201), Verdict.NO_DIFFERENCE, "none"),
        # Differences -0.5, -0.1, 0.3: mean -0.1, half width 0.99. The best seen has the lower mean.
        ((1.5, 2.0, 2.5), Verdict.INCONCLUSIVE, "value:1"),
        # Differences -0.3, 0.1, 0.5: off has the lower mean.
        ((1.7, 2.2, 2.7), Verdict.INCONCLUSIVE, "none"),
    ],
)
def test_verdict_of_a_paired_comparison(
    reference: Reference, trial: MakeTrial, clip: tuple[float, ...], verdict: Verdict, setting: str
) -> None:
    found = recommend(
        SPEC, reference, numbered(trial("none", *OFF), trial("value:1", *clip)), objective="val_loss"
    )
    assert found.verdict is verdict
    assert str(found.setting) == setting
    assert str(found.best) == "value:1"
    assert found.difference is not None
    assert found.difference.mean == pytest.approx(sum(clip) / 3 - 2.1)
    assert (found.interval is None) == (setting == "none")
    assert "value 1 ends at val_loss" in found.reason
    assert "off at 2.1 +- 0.058" in found.reason


def test_interval_allows_for_the_choice_among_candidates(reference: Reference, trial: MakeTrial) -> None:
    # Differences -0.4, -0.3, -0.2: mean -0.3, deviation 0.1. Alone, half width 0.2484: 0 is excluded.
    off, best = trial("none", *OFF), trial("value:1", 1.6, 1.8, 2.0)
    alone = recommend(SPEC, reference, numbered(off, best))
    assert alone.verdict is Verdict.CLIP
    assert alone.difference is not None
    assert (alone.difference.high, alone.difference.test) == (pytest.approx(-0.0516, abs=1e-4), "paired t")
    assert "The interval excludes 0, and the difference is at least the 0.01 of off" in alone.reason
    assert "chosen among" not in alone.reason

    # Best of 2, half width 0.3583: 0 is not excluded. Pruned, diverged and inert settings were no candidates.
    others = [
        trial("value:2", 1.9, 1.9, 1.9),
        trial("value:3", 0.5, 0.6, 0.7, state=TrialState.PRUNED),
        trial("value:4", 0.5, None, 0.7),
        trial("value:5", *OFF, clip_fraction=0.0),
    ]
    chosen = recommend(SPEC, reference, numbered(off, best, *others))
    assert chosen.verdict is Verdict.INCONCLUSIVE
    assert str(chosen.best) == "value:1"
    assert chosen.difference is not None
    assert chosen.difference.high == pytest.approx(0.0583, abs=1e-4)
    assert chosen.difference.test == "paired t, Bonferroni over 2 settings"
    assert (
        "(95 % interval -0.658 to 0.0583, 3 paired seeds), which may be noise. The best was chosen among 2"
        in (chosen.reason)
    )
    # Two candidates, two looks: with 4 seeds the quantile at 1 - 0.025 / 4 is 5.4; 5.4 * 0.1 / root 4 = 0.27 < 0.3.
    assert chosen.more_seeds == 4
    assert "about 4 more fresh seeds would settle it" in chosen.reason


def test_comparison_with_todays_value_allows_for_the_choice_too(
    reference: Reference, trial: MakeTrial
) -> None:
    spec = dataclasses.replace(SPEC, current=ClipSetting.parse("value:3"))
    # Differences -0.2, -0.1, 0 against today's value: half width 0.3583 with 2 candidates.
    trials = numbered(trial("none", *OFF), trial("value:1", 1.5, 1.7, 1.9), trial("value:3", 1.7, 1.8, 1.9))
    found = recommend(spec, reference, trials).against_current
    assert found is not None
    assert (found.mean, found.high) == (pytest.approx(-0.1), pytest.approx(0.2583, abs=1e-4))
    assert found.test == "paired t, Bonferroni over 2 settings"


def test_inconclusive_says_how_many_seeds_would_settle_it(reference: Reference, trial: MakeTrial) -> None:
    # Differences -0.2, -0.1, 0: deviation 0.1, mean -0.1 and margin 0.021: half width 0.1 is wanted.
    # Fresh seeds are a first look: t(n-1) * 0.1 / root n falls below 0.1 between n = 6 (0.105) and n = 7 (0.092).
    found = recommend(SPEC, reference, numbered(trial("none", *OFF), trial("value:1", 1.8, 2.0, 2.2)))
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.more_seeds == 7
    assert "about 7 more fresh seeds would settle it" in found.reason


def test_real_difference_of_doubtful_size_is_not_called_noise(reference: Reference, trial: MakeTrial) -> None:
    # Differences -0.015, -0.014, -0.016: mean -0.015, half width 0.0025; the margin is 0.0075 * 2.1 = 0.01575.
    spec = dataclasses.replace(SPEC, effect=0.0075)
    found = recommend(spec, reference, numbered(trial("none", *OFF), trial("value:1", 1.985, 2.086, 2.184)))
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "may be less or more than the 0.0075 of off that matters" in found.reason
    assert "noise" not in found.reason


def test_hopeless_comparison_says_so(reference: Reference, trial: MakeTrial) -> None:
    spec = dataclasses.replace(SPEC, effect=0.0)
    found = recommend(spec, reference, numbered(trial("none", *OFF), trial("value:1", 1.0, 2.101, 3.2)))
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.more_seeds is None
    assert "No reasonable number of further seeds would settle it" in found.reason


@pytest.mark.parametrize(
    ("off", "clip", "verdict", "words"),
    [
        # One seed of three, and all differences on one side: p = 2 / 2**3, however large they are.
        ((None, 2.0, 2.2), (1.5, 1.6, 1.7), Verdict.INCONCLUSIVE, "in 1 of 3 paired seeds and ended at"),
        ((None, 2.0, 2.2), (1.5, 1.6, 1.7), Verdict.INCONCLUSIVE, "That may be chance (by ranks, p = 0.25)."),
        # In every seed, against none.
        (
            (None, None, None, None),
            (1.5, 1.6, 1.7, 1.8),
            Verdict.CLIP,
            "in 4 of 4 paired seeds; with value 1 it failed in 0 and ended at objective 1.65",
        ),
        # Better where off survives, but it does not always.
        ((None, 1.0, 1.0), (1.5, 1.6, 1.7), Verdict.INCONCLUSIVE, "That may be chance (by ranks, p = 1)."),
        ((None, None, None), (None, None, None), Verdict.INCONCLUSIVE, "Lower the learning rate"),
        (OFF, (1.5, None, 1.7), Verdict.DO_NOT_CLIP, "All 1 clip settings diverged in at least one seed"),
        ((None, 2.0, 2.2), (1.5, None, 1.7), Verdict.INCONCLUSIVE, "None of 1 clip settings"),
    ],
)
def test_verdict_with_divergence(
    reference: Reference, trial: MakeTrial, off: tuple, clip: tuple, verdict: Verdict, words: str
) -> None:
    found = recommend(SPEC, reference, numbered(trial("none", *off), trial("value:1", *clip)))
    assert found.verdict is verdict
    assert words in found.reason
    # Open questions are answered by the best seen, where off has a diverged seed and the best has none.
    assert found.setting.is_off == (found.best is None)


def test_threshold_that_is_never_exceeded_makes_no_difference(reference: Reference, trial: MakeTrial) -> None:
    inert = trial("global_norm:9", *OFF, clip_fraction=0.0)
    found = recommend(SPEC, reference, numbered(trial("none", *OFF), inert))
    assert found.verdict is Verdict.NO_DIFFERENCE
    assert "No threshold tried was ever exceeded" in found.reason
    assert "4 before clipping" in found.reason  # the largest norm
    assert (found.best, found.value, found.difference, found.kappa, found.norms) == (None,) * 5
    assert found.setting.is_off


@pytest.mark.parametrize("values", [(9.0, 9.0, 9.0), (None, None, None)])
def test_threshold_that_was_exceeded_is_not_denied(
    reference: Reference, trial: MakeTrial, values: tuple
) -> None:
    inert = trial("global_norm:9", *OFF, clip_fraction=0.0)
    pruned = trial("global_norm:0.1", *values, clip_fraction=1.0, state=TrialState.PRUNED)
    found = recommend(SPEC, reference, numbered(trial("none", *OFF), inert, pruned))
    assert "No threshold tried was ever exceeded" not in found.reason


def test_best_is_the_lowest_mean_of_sound_effective_complete_trials(
    reference: Reference, trial: MakeTrial
) -> None:
    trials = numbered(
        trial("none", *OFF),
        trial("value:1", 1.8, 1.9, 2.0),
        trial("value:2", 1.5, 1.6, 1.7),
        trial("value:3", 0.5, None, 0.7),  # diverged once
        trial("value:4", 0.5, 0.6, 0.7, clip_fraction=0.0),  # never clipped
        trial("value:5", 0.5, 0.6, 0.7, state=TrialState.PRUNED),
        trial("value:6", 0.5, 0.6, 0.7, state=TrialState.FAIL),
        trial("value:7", state=TrialState.RUNNING),
    )
    found = recommend(SPEC, reference, trials)
    assert str(found.best) == "value:2"
    assert (found.num_trials, found.num_diverged_trials) == (6, 1)
    # 5 trials of 3 lanes of 100 steps, and one with 100 + 7 + 100.
    assert found.lane_steps == 5 * 300 + 207
    assert found.full_runs == pytest.approx(17.07)
    assert found.train_seconds == pytest.approx(18 * 0.5)


def test_evidence_of_the_best(reference: Reference, trial: MakeTrial) -> None:
    spec = dataclasses.replace(SPEC, current=ClipSetting.parse("value:3"))
    trials = numbered(trial("none", *OFF), trial("value:0.5", 1.5, 1.6, 1.7), trial("value:3", 1.6, 1.7, 1.8))
    found = recommend(spec, reference, trials)
    assert found.kappa == pytest.approx(5.0)  # threshold 0.5 over the median largest element, 0.1
    assert found.clip_fraction == 0.5
    assert found.mean_scale == pytest.approx(0.8)
    assert found.norms is not None
    assert found.norms.median == 2.0  # of 1, 2 and 3
    assert found.value is not None
    assert found.value.mean == pytest.approx(1.6)
    assert found.against_current is not None
    assert found.against_current.mean == pytest.approx(-0.1)
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["setting"]["threshold"] == 0.5


def test_no_current_value_no_comparison_with_it(reference: Reference, trial: MakeTrial) -> None:
    trials = numbered(trial("none", *OFF), trial("value:1", 1.5, 1.6, 1.7))
    assert recommend(SPEC, reference, trials).against_current is None
    unknown = dataclasses.replace(SPEC, current=ClipSetting.parse("value:7"))
    assert recommend(unknown, reference, trials).against_current is None
    off_today = dataclasses.replace(SPEC, current=ClipSetting.parse("none"))
    found = recommend(off_today, reference, trials)
    assert found.against_current == found.difference is not None


def test_off_that_has_not_ended_leaves_it_open(reference: Reference, trial: MakeTrial) -> None:
    found = recommend(SPEC, reference, [trial("value:1", 1.5, 1.6, 1.7)])
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "off has no result" in found.reason
    assert str(found.setting) == "value:1"
    assert (found.off.mean, found.off.num_seeds, found.difference) == (None, 0, None)


def test_only_off_or_only_pruned_is_inconclusive(reference: Reference, trial: MakeTrial) -> None:
    pruned = trial("value:1", 9.0, 9.0, 9.0, state=TrialState.PRUNED)
    for trials in ([trial("none", *OFF)], numbered(trial("none", *OFF), pruned)):
        found = recommend(SPEC, reference, trials)
        assert found.verdict is Verdict.INCONCLUSIVE
        assert found.setting.is_off


def test_fewer_than_two_pairs_is_inconclusive(reference: Reference, trial: MakeTrial) -> None:
    found = recommend(SPEC, reference, numbered(trial("none", 2.0), trial("value:1", 1.5)))
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "Fewer than 2 seeds" in found.reason


def test_nothing_ended_is_an_error(reference: Reference, trial: MakeTrial) -> None:
    for trials in ([], [trial("none", state=TrialState.FAIL)], [trial("none", state=TrialState.RUNNING)]):
        with pytest.raises(NoTrialsError, match="no trial has ended yet") as caught:
            recommend(SPEC, reference, trials)
    assert caught.value.code == "no_trials"
