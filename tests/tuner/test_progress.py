"""The bar of a library call: counts lane-steps, says what is going on, and is silent where nobody watches."""

from __future__ import annotations

import re

import pytest

from tuner.evidence import LaneResult, Reference
from tuner.progress import ProgressBar
from tuner.spec import StudySpec
from tuner.training.cohort import EngineChosen, LaneValue, ProbeMeasured, Progressed, RungReached, TrialEnded
from tuner.tuning import tune

SPEC = StudySpec(workload="w", num_trials=2, num_seeds=2, num_steps=10)


def ended(trial_id: str, num_steps: int) -> TrialEnded:
    lanes = tuple(
        LaneResult(
            seed=seed,
            num_steps=num_steps,
            value=1.0,
            divergence_step=None,
            clip_fraction=0.0,
            mean_scale=1.0,
            norms=None,
            num_non_finite=0,
            seconds=0.1,
        )
        for seed in (0, 1)
    )
    return TrialEnded(trial_id=trial_id, state="pruned", lanes=lanes)


def test_bar_counts_lane_steps_and_shrinks_when_a_setting_ends(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar(SPEC, is_shown=True) as bar:
        assert (bar._bar.n, bar._bar.total) == (0, 40)
        bar(Progressed(lane_steps=12, total_lane_steps=40, step=3))
        assert bar._bar.n == 12
        values = tuple(LaneValue(trial_id=trial, seed=seed, value=0.5) for trial in "ab" for seed in (0, 1))
        bar(RungReached(index=0, step=5, values=values, pruned=("a",)))
        assert bar._bar.n == 20
        bar(ended("a", 5))
        bar(Progressed(lane_steps=24, total_lane_steps=30, step=7))
        # Ten steps of the ended setting, and the other one's two full runs.
        assert bar._bar.total == 10 + 20
        bar(ended("b", 10))
        bar(Progressed(lane_steps=30, total_lane_steps=30, step=10))
        assert bar._bar.n == bar._bar.total == 30
    shown = capsys.readouterr().err
    assert "w: step 5 of 10" in shown
    assert "2 settings, best 0.5" in shown


def test_bar_says_how_lanes_train(capsys: pytest.CaptureFixture[str], reference: Reference) -> None:
    with ProgressBar(SPEC, is_shown=True) as bar:
        bar(ProbeMeasured(reference=reference))
        bar(EngineChosen(path="lanes", num_lanes=4, reason="3.0 times as fast"))
        bar(EngineChosen(path="solo", num_lanes=1, reason="the loss must be one number"))
    shown = capsys.readouterr().err
    for text in ("probe: median norm 1", "4 lanes together (3.0 times", "one lane at a time (the loss must"):
        assert text in shown


def test_bar_is_hidden_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    tune("digits-mlp", num_trials=2, num_seeds=2, num_steps=2, lanes="solo")
    assert capsys.readouterr().err == ""


def test_library_call_shows_a_bar_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    tune("digits-mlp", num_trials=2, num_seeds=2, num_steps=2, lanes=4, progress=True)
    assert re.search(r"digits-mlp: step 2 of 2: 100%.* 8\.00/8\.00", capsys.readouterr().err)


def test_all_diverged_rung_has_no_best(capsys: pytest.CaptureFixture[str]) -> None:
    values = (LaneValue(trial_id="a", seed=0, value=None),)
    with ProgressBar(SPEC, is_shown=True) as bar:
        bar(RungReached(index=0, step=5, values=values, pruned=()))
    assert "best inf" in capsys.readouterr().err
