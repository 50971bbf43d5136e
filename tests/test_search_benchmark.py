"""The search's benchmark: looked-up cohorts are those that training gives, judgements are right, intervals hold."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import search_baselines as baselines
from benchmarks.search_calibration import SCENARIOS, GaussianCurves, calibrate
from benchmarks.search_curves import SimulatedCohort, TableCurves
from benchmarks.search_problems import PROBLEMS, RegressionMlp, SearchProblem
from benchmarks.search_report import Judge, Score, score, summary
from benchmarks.search_studies import Outcome
from benchmarks.search_truth import Truth, read_truth, train_truth, write_truth
from tuner.evidence import Verdict
from tuner.search.halving import halving
from tuner.spec import OFF_SETTING, ClipSetting
from tuner.training.cohort import Cohort, CohortTrial, RungReached, TrialEnded
from tuner.training.loop import train_cohort

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "benchmarks" / "results" / "search-truth.json.gz"


@pytest.fixture(autouse=True, scope="module")
def single_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def kept() -> dict[str, Truth]:
    return read_truth(KEPT)


@pytest.fixture(scope="module")
def small() -> Truth:
    """A truth at a rate where some lanes explode: 6 thresholds, 3 seeds, 32 steps."""
    problem = SearchProblem(
        workload=RegressionMlp,
        parameters={"learning_rate": 1e-2},
        num_steps=32,
        num_thresholds=6,
        num_seeds=3,
    )
    told: list[str] = []
    truth = train_truth(problem, machine={}, tell=told.append)
    assert [line.partition(":")[0] for line in told] == ["seeds 0 to 2", "learning rates done"]
    return truth


def cohort_of(problem: str, truth: Truth, *settings: str, seeds: tuple[int, ...], steps: int) -> Cohort:
    norms = truth.reference["l2_norm"]
    return Cohort(
        workload=problem,
        parameters={},
        trials=tuple(
            CohortTrial(id=text, setting=ClipSetting.parse(text), protected=text == "none")
            for text in settings
        ),
        seeds=seeds,
        rung_steps=tuple(truth.num_steps // steps**level for level in (2, 1, 0)),
        divergence_factor=3.0,
        reference_norm=norms["median"],
        largest_norm=norms["max"],
        lanes=len(settings) * len(seeds),
    )


def rungs_and_ends(events: Any) -> tuple[list[RungReached], dict[str, TrialEnded]]:
    told = list(events)
    ended = {event.trial_id: event for event in told if isinstance(event, TrialEnded)}
    return [event for event in told if isinstance(event, RungReached)], ended


def assert_same_events(cohort: Cohort, workload: Any, truth: Truth) -> None:
    """Both tell the same trials' ends at the same rungs, and the same figures, up to rounding in the table."""
    prune = halving(cohort.rung_steps, cohort.clips)
    rungs, ended = rungs_and_ends(train_cohort(cohort, workload, prune=prune))
    curves = TableCurves(truth, range(truth.num_seeds))
    simulated, simulated_ended = rungs_and_ends(SimulatedCohort(cohort, curves, prune).events())
    assert [(rung.index, rung.step, rung.pruned) for rung in simulated] == [
        (rung.index, rung.step, rung.pruned) for rung in rungs
    ]
    for mine, theirs in zip(simulated, rungs, strict=True):
        assert [(lane.trial_id, lane.seed) for lane in mine.values] == [
            (lane.trial_id, lane.seed) for lane in theirs.values
        ]
        for one, other in zip(mine.values, theirs.values, strict=True):
            assert one.value == (None if other.value is None else pytest.approx(other.value, rel=1e-3))
    assert list(simulated_ended) == list(ended)
    for trial, event in ended.items():
        assert simulated_ended[trial].state == event.state
        for mine, theirs in zip(simulated_ended[trial].lanes, event.lanes, strict=True):
            assert (mine.seed, mine.num_steps, mine.divergence_step, mine.num_non_finite) == (
                theirs.seed,
                theirs.num_steps,
                theirs.divergence_step,
                theirs.num_non_finite,
            )
            assert mine.initial == pytest.approx(theirs.initial, rel=1e-4)
            if event.state == "complete" and not theirs.diverged:
                assert mine.first_clipped_step == theirs.first_clipped_step
                assert mine.clip_fraction == pytest.approx(theirs.clip_fraction, abs=2e-3)
                assert mine.mean_scale == pytest.approx(theirs.mean_scale, rel=1e-3)
                assert mine.norms is not None and theirs.norms is not None
                assert mine.norms.max == pytest.approx(theirs.norms.max, rel=2e-3)


@pytest.mark.parametrize("problem", ["regression-mlp-0.0003", "digits-mlp-0.1"])
def test_kept_truth_is_what_training_gives_today(kept: dict[str, Truth], problem: str) -> None:
    """Thresholds of the middle, where rounding does not grow; the lowest are ended early."""
    truth = kept[problem]
    chosen = [truth.settings[row] for row in (5, 12, 19, 26, 30)]
    cohort = cohort_of(problem, truth, "none", *chosen, seeds=(0, 3, 7), steps=3)
    assert_same_events(cohort, PROBLEMS[problem].make(), truth)


def test_simulated_cohort_knows_divergence_and_sharing(small: Truth) -> None:
    """Off explodes, the loosest threshold is off until it is first exceeded, the tightest one learns nothing."""
    problem = PROBLEMS["regression-mlp-0.01"]
    cohort = cohort_of("regression-mlp", small, *small.settings[:7], seeds=(0, 2), steps=2)
    assert_same_events(cohort, problem.make(), small)
    curves = TableCurves(small, range(3))
    _, ended = rungs_and_ends(SimulatedCohort(cohort, curves, lambda *_: ()).events())
    assert all(lane.diverged and lane.value is None for lane in ended["none"].lanes)
    loosest = ended[small.settings[6]].lanes
    assert [lane.num_shared_steps for lane in loosest] == [lane.first_clipped_step for lane in loosest]
    assert all(0 < lane.num_shared_steps < lane.num_steps for lane in loosest)
    assert all(lane.num_shared_steps == 0 for lane in ended[small.settings[1]].lanes)


def test_truth_is_read_as_it_was_written(small: Truth, tmp_path: Path) -> None:
    path = tmp_path / "truth.json.gz"
    assert read_truth(path) == {}
    write_truth(path, {"small": small})
    assert read_truth(path) == {"small": small}


def test_table_takes_the_nearest_threshold_and_says_what_it_lacks(small: Truth) -> None:
    curves = TableCurves(small, (2, 0))
    third = ClipSetting.parse(small.settings[3])
    assert third.threshold is not None
    near = ClipSetting(method="global_norm", threshold=third.threshold * 1.2)
    assert curves.row(near) == 3
    assert curves.curve(near, 0) == curves.curve(third, 0)
    assert curves.curve(near, 1) == TableCurves(small, (0,)).curve(third, 0)
    assert small.settings[curves.row(ClipSetting.parse("none@0.09"))] == "none@0.1"
    with pytest.raises(ValueError, match="no setting like value:1"):
        curves.row(ClipSetting.parse("value:1"))
    with pytest.raises(ValueError, match="holds 2 seeds, and seed 2"):
        curves.curve(OFF_SETTING, 2)
    with pytest.raises(ValueError, match=r"not at 31: choose other rungs"):
        curves.curve(OFF_SETTING, 0).value_at(31, 3.0)


def test_judge_measures_regret_by_the_gap(small: Truth) -> None:
    """Off stays where it began (10), the thresholds end at 9, 2, 4 and 10, and one more never clips."""
    ends = [40.0, 9.0, 2.0, 4.0, 10.0, 1.0]
    truth = dataclasses.replace(
        small,
        settings=["none", *(f"global_norm:{threshold:g}" for threshold in (1, 2, 3, 4, 5))],
        rung_steps=[32],
        initial=[10.0, 10.0, 10.0],
        values=[[[end + noise] for noise in (0.0, 0.1, -0.1)] for end in ends],
        clip_fraction=[[0.0] * 3, *[[0.5] * 3] * 4, [0.0] * 3],
    )
    judge = Judge(truth)
    assert (judge.off, judge.best) == (10.0, pytest.approx(2.0))
    assert judge.verdict is Verdict.CLIP
    assert judge.regret(ClipSetting.parse("global_norm:2")) == 0.0
    assert judge.regret(ClipSetting.parse("global_norm:3")) == pytest.approx(2 / 8)
    assert judge.regret(OFF_SETTING) == 1.0
    assert judge.relative_loss(ClipSetting.parse("global_norm:3")) == pytest.approx(1.0)
    outcomes = [
        Outcome(setting=ClipSetting.parse("global_norm:2"), verdict=Verdict.CLIP, lane_steps=64),
        Outcome(setting=OFF_SETTING, verdict=Verdict.NO_DIFFERENCE, lane_steps=32),
        Outcome(setting=OFF_SETTING, verdict=Verdict.INCONCLUSIVE, lane_steps=0),
    ]
    found = score("p", "s", truth, outcomes)
    assert found.regrets == (0.0, 1.0, 1.0)
    assert found.full_runs == (2.0, 1.0, 0.0)
    assert found.num_wrong == 1
    assert found.to_json()["undecided"] == pytest.approx(1 / 3, rel=1e-3)


def test_summary_compares_with_the_cheapest_rival_of_no_more_regret() -> None:
    def made(strategy: str, regret: float, cost: float) -> Score:
        return Score(
            problem="p",
            strategy=strategy,
            regrets=(regret,),
            losses=(regret,),
            full_runs=(cost,),
            seconds=(1.0,),
            num_wrong=0,
            verdicts=(Verdict.CLIP,),
        )

    rivals = [made("tpe-1", 0.3, 15.0), made("tpe-3", 0.01, 45.0), made("tpe-8", 0.0, 120.0)]
    found = summary([made("study", 0.01, 30.0), *rivals], "study")
    assert found["cost_at_equal_regret"] == {"rival": "tpe-3", "share": 0.6667, "is_bound": False}
    assert found["goals_met"] == {
        "median_regret": True,
        "p90_regret": True,
        "wrong_verdicts": True,
        "cost": False,
    }
    found = summary([made("study", 0.0, 30.0), *rivals[:2]], "study")
    assert found["cost_at_equal_regret"] == {"rival": "tpe-3", "share": 0.6667, "is_bound": True}
    # A difference that no user would notice is none.
    assert found["cost_at_equal_loss"] == {"rival": "tpe-3", "share": 0.6667, "is_bound": False}
    found = summary([made("study", 0.0, 30.0), made("tpe-1", 0.0009, 15.0), *rivals[1:]], "study")
    assert found["cost_at_equal_regret"] == {"rival": "tpe-1", "share": 2.0, "is_bound": False}


@pytest.mark.parametrize(
    ("strategy", "full_runs"),
    [
        (lambda curves: baselines.grid(curves, 0), (27, 27)),
        (lambda curves: baselines.tpe(curves, 0, num_seeds=1), (10, 30)),
        (lambda curves: baselines.asha(curves, 0), (4, 15)),
    ],
    ids=["grid", "tpe", "asha"],
)
def test_baselines_find_a_large_effect_at_their_usual_cost(strategy: Any, full_runs: tuple[int, int]) -> None:
    curves = GaussianCurves(SCENARIOS["large effect"], 0)
    outcome = strategy(curves)
    assert SCENARIOS["large effect"].difference(outcome.setting) < -0.1
    assert outcome.verdict is Verdict.CLIP
    assert full_runs[0] <= outcome.lane_steps / curves.num_steps <= full_runs[1]


def test_gaussian_curves_share_their_seeds_effect() -> None:
    """The spread of paired differences is that of two lanes' own noise, not of the seeds."""
    scenario = SCENARIOS["large effect"]
    curves, best = GaussianCurves(scenario, 5), ClipSetting(method="global_norm", threshold=0.3)
    pairs = [[curves.curve(each, seed).values[400] for each in (best, OFF_SETTING)] for seed in range(400)]
    differences = torch.tensor(pairs).diff(dim=1)
    assert -float(differences.mean()) == pytest.approx(scenario.difference(best), abs=0.01)
    assert float(differences.std()) == pytest.approx(math.sqrt(2) * scenario.noise, rel=0.2)
    assert float(torch.tensor(pairs)[:, 1].std()) == pytest.approx(
        math.hypot(scenario.noise, scenario.seed_effect), rel=0.2
    )


def test_intervals_hold_the_true_difference() -> None:
    """95 % within three standard errors of 200 studies; the benchmark itself simulates 2000."""
    found = calibrate(SCENARIOS["large effect"], 200, {})
    assert found.judged == 200
    assert found.coverage is not None
    assert 0.905 <= found.coverage <= 0.995
    assert found.verdicts["clip"] > 0.9


def test_no_effect_is_rarely_called_one() -> None:
    found = calibrate(SCENARIOS["no effect"], 200, {})
    assert found.verdicts["clip"] <= 0.05


def test_command_prints_a_line_per_strategy_and_the_goals(kept: dict[str, Truth]) -> None:
    options = (
        "--problem",
        "digits-mlp-1",
        "--strategy",
        "study,grid",
        "--repeats",
        "2",
        "--set",
        "num_trials=8",
    )
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "search.py"), *options],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    truth, *rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert truth["truth"]["verdict"] == "clip"
    assert [(row["problem"], row["strategy"]) for row in rows[:-1]] == [
        ("digits-mlp-1", "study"),
        ("digits-mlp-1", "grid"),
        ("all", "study"),
        ("all", "grid"),
    ]
    assert rows[1]["full_runs"] == pytest.approx(27, abs=1)
    assert rows[-1]["summary"] == "study"
    assert set(rows[-1]["goals_met"]) == {"median_regret", "p90_regret", "wrong_verdicts", "cost"}
